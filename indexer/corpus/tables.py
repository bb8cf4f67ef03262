"""Parquet files, and columns of Arrow tables as texts, which hub data sets need too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from indexer.corpus.pieces import Run
from indexer.corpus.policy import Reading
from indexer.corpus.streams import BLOCK_BYTES, unreadable

BATCH_ROWS = 1024


def read_parquet(run: Run, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of each row of a Parquet file; only the text column is read, from where the run begins."""
    file = run.file
    # what stays in the manifest where reading ends early
    reading.note_digest(file, None, None)
    try:
        with pq.ParquetFile(file.path, memory_map=False) as parquet:
            yield from _rows(parquet, run, reading)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, error) from None
    if run.whole and run.first == 0:
        reading.note_digest(file, *_digest(file.path))


def column_texts(
    column: pa.Array | pa.ChunkedArray, reading: Reading, place: Callable[[int], str], first: int = 0
) -> Iterator[tuple[int, str]]:
    """(row, text) of a column of strings or binary UTF-8, rows counted from `first`; null is an empty text.

    place: names a row, for errors. Raises IndexerError where the column is no text.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        yield from ((first + index, "") for index in range(len(column)))
        return
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):  # fmt: skip
        raise reading.not_text(place(first), kind)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(kind).cast(pa.large_binary()).to_pylist()
    for row, value in enumerate(values, first):
        if isinstance(value, bytes):

            def byte_place(byte: int, row: int = row) -> str:
                return f"{place(row)}, byte {byte} of the text"

            value = reading.decode(value, byte_place)
            if value is None:
                continue
        yield row, value or ""


def _rows(parquet: pq.ParquetFile, run: Run, reading: Reading) -> Iterator[tuple[int, str]]:
    file, names = run.file, parquet.schema_arrow.names
    if reading.text_column not in names:
        raise reading.no_column(f"corpus file {file.source}", names)

    def place(row: int) -> str:
        return f"corpus file {file.source}, row {row}"

    counts, rows, before = reading.counts, parquet.metadata.num_rows, reading.counts.bytes_read
    first, last = run.bound(run.first, rows), run.bound(run.last, rows)
    bytes_before = (file.bytes or 0) * first // max(1, rows)
    row, groups = _groups_from(parquet, max(first, run.skip))
    for batch in parquet.iter_batches(
        BATCH_ROWS, row_groups=groups, columns=[reading.text_column], use_threads=False
    ):
        column = batch.column(0)
        # what lies before the run, or was read before, and what lies behind it
        left_out = min(max(0, max(first, run.skip) - row), len(column))
        wanted = column.slice(left_out, max(0, min(len(column), last - row) - left_out))
        for place_in_file, text in column_texts(wanted, reading, place, row + left_out):
            while place_in_file >= run.bound(reading.index + 1, rows) and reading.index < run.last - 1:
                reading.index += 1
            reading.see(file, place_in_file)
            yield place_in_file, text
        row += len(column)
        counts.bytes_read = before + (file.bytes or 0) * min(row, last) // max(1, rows) - bytes_before
        if row >= last:
            break
    counts.bytes_read = before + (file.bytes or 0) * last // max(1, rows) - bytes_before
    if last > first:
        reading.see(file, first)
        reading.see(file, last - 1)


def _groups_from(parquet: pq.ParquetFile, wanted: int) -> tuple[int, list[int]]:
    """The first row of the row group that holds a row, and that group and all after it."""
    row = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if row + rows > wanted:
            return row, list(range(group, parquet.num_row_groups))
        row += rows
    return row, []


def _digest(path: str) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb", buffering=0) as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
