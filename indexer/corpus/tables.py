"""Parquet files, and columns of Arrow tables as texts, which hub data sets need too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from indexer.corpus.policy import Reading
from indexer.corpus.sources import CorpusFile
from indexer.corpus.streams import BLOCK_BYTES, unreadable

BATCH_ROWS = 1024


def read_parquet(file: CorpusFile, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of each row of a Parquet file; only the text column is read."""
    # what stays in the manifest where reading ends early
    reading.note_digest(file, None, None)
    try:
        with pq.ParquetFile(file.path, memory_map=False) as parquet:
            yield from _rows(parquet, file, reading)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, error) from None
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


def _rows(parquet: pq.ParquetFile, file: CorpusFile, reading: Reading) -> Iterator[tuple[int, str]]:
    names = parquet.schema_arrow.names
    if reading.text_column not in names:
        raise reading.no_column(f"corpus file {file.source}", names)

    def place(row: int) -> str:
        return f"corpus file {file.source}, row {row}"

    counts = reading.counts
    rows = max(1, parquet.metadata.num_rows)
    before = counts.bytes_read
    row = 0
    for batch in parquet.iter_batches(BATCH_ROWS, columns=[reading.text_column], use_threads=False):
        yield from column_texts(batch.column(0), reading, place, row)
        row += batch.num_rows
        counts.bytes_read = before + (file.bytes or 0) * row // rows
    counts.bytes_read = before + (file.bytes or 0)


def _digest(path: str) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb", buffering=0) as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
