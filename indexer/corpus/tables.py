"""Parquet and Arrow files, and columns of Arrow tables as what is indexed, which hub data sets need too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexer.corpus.pieces import Run
from indexer.corpus.policy import Reading
from indexer.corpus.sources import CorpusFile
from indexer.corpus.streams import BLOCK_BYTES, seekable, unreadable
from indexer.corpus.values import Content, content, token_ids
from indexer.errors import IndexerError

BATCH_ROWS = 1024


def read_parquet(run: Run, reading: Reading) -> Iterator[tuple[int, Content]]:
    """(row, content) of each row of a Parquet file; only the column is read, from where the run begins."""
    with (
        _in_one_line(run, reading),
        seekable(run.file) as source,
        pq.ParquetFile(source, memory_map=False) as parquet,
    ):
        found = field(parquet.schema_arrow, reading.column)
        if found is None:
            error = reading.no_column(f"corpus file {run.file.source}", names(parquet.schema_arrow))
            share = (run.file.bytes or 0) * (run.last - run.first) // run.count
            reading.leave_out(run.file, error, run.first == 0, share)
            return
        yield from _rows(parquet, found, run, reading)


def read_arrow(run: Run, reading: Reading) -> Iterator[tuple[int, Content]]:
    """(row, content) of each row of an Arrow IPC file or stream, such as `save_to_disk` of `datasets` writes.

    Held is one record batch at most, and of that what is not compressed stays on disk.
    """
    file = run.file
    before = reading.counts.bytes_read
    with _in_one_line(run, reading), seekable(file, memory_map=True) as source:
        schema, batches = _batches(source, reading.column)
        found = field(schema, reading.column)
        if found is None:
            error = reading.no_column(f"corpus file {file.source}", names(schema))
            reading.leave_out(file, error, True, file.bytes or 0)
            return
        row = 0
        for batch in batches:
            for first in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(first, BATCH_ROWS)
                if row + part.num_rows > run.skip:
                    wanted = part.slice(max(0, run.skip - row))
                    column = inner(wanted, found)
                    for place, value in contents(
                        column, reading, _place(file), row + part.num_rows - len(column)
                    ):
                        reading.see(file, place)
                        yield place, value
                row += part.num_rows
            if batch.num_rows:
                reading.see(file, row - batch.num_rows)
                reading.see(file, row - 1)
            reading.counts.bytes_read = before + min(file.bytes or 0, source.tell())
        reading.counts.bytes_read = before + (file.bytes or 0)


def contents(
    column: pa.Array | pa.ChunkedArray, reading: Reading, place: Callable[[int], str], first: int = 0
) -> Iterator[tuple[int, Content]]:
    """(row, content) of a column, rows counted from `first`: see indexer.corpus.values; binary is UTF-8.

    place: names a row, for errors. Raises IndexerError where the column holds something else.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if reading.ids:
        yield from _ids(column, reading, place, first)
        return
    if pa.types.is_null(kind):
        yield from ((first + index, "") for index in range(len(column)))
        return
    if _is_list(kind):
        yield from _lists(column, reading, place, first)
        return
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):  # fmt: skip
        raise reading.not_wanted(place(first), kind)
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


def field(schema: pa.Schema, path: str) -> list[str] | None:
    """The names that lead to a column, those of the structs it is in first; None where it is not there.

    `a.b` is field b of the struct a, unless there is a column of that very name.
    """
    if path in schema.names:
        return [path]
    for place, character in enumerate(path):
        if character == "." and path[:place] in schema.names:
            kind = schema.field(path[:place]).type
            rest = field(pa.schema(kind), path[place + 1 :]) if pa.types.is_struct(kind) else None
            if rest is not None:
                return [path[:place], *rest]
    return None


def names(schema: pa.Schema) -> Iterator[str]:
    """The names that `field` knows, those within structs one level deep."""
    for column in schema:
        if pa.types.is_struct(column.type):
            yield from (f"{column.name}.{part.name}" for part in column.type)
        else:
            yield column.name


def inner(table: pa.RecordBatch | pa.Table, path: list[str]) -> pa.Array | pa.ChunkedArray:
    """The column that `field` found; null where a struct around it is."""
    column = table.column(path[0])
    for name in path[1:]:
        column = pc.struct_field(column, name)
    return column


def _ids(
    column: pa.Array | pa.ChunkedArray, reading: Reading, place: Callable[[int], str], first: int
) -> Iterator[tuple[int, Content]]:
    kind = column.type
    if not (pa.types.is_null(kind) or (_is_list(kind) and pa.types.is_integer(kind.value_type))):
        raise reading.not_wanted(place(first), kind)
    for row, value in enumerate(column, first):
        here = partial(place, row)
        ids: Any = []
        if value.is_valid:
            if value.values.null_count:
                raise reading.not_wanted(here(), f"{kind} with nulls in it")
            ids = value.values.to_numpy(zero_copy_only=False)
        yield row, token_ids(ids, reading, here)


def _lists(
    column: pa.Array | pa.ChunkedArray, reading: Reading, place: Callable[[int], str], first: int
) -> Iterator[tuple[int, Content]]:
    for row, value in enumerate(column, first):
        here = partial(place, row)
        try:
            plain = value.as_py()
        except UnicodeDecodeError:
            raise IndexerError(f"{here()}: not valid UTF-8 within a list; convert the file") from None
        yield row, content(plain, reading, here)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _place(file: CorpusFile) -> Callable[[int], str]:
    return lambda row: f"corpus file {file.source}, row {row}"


@contextmanager
def _in_one_line(run: Run, reading: Reading) -> Iterator[None]:
    """One line for what is broken; and the file's digest, where the block reads it to its end."""
    file = run.file
    # what stays in the manifest where reading ends early
    reading.note_digest(file, None, None)
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, error) from None
    if run.whole and run.first == 0 and file.bytes is not None and file.ordinal not in reading.left_out:
        reading.note_digest(file, *_digest(file.path))


def _batches(source: Any, path: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the record batches of an IPC file or stream, with what of each the path needs."""
    head = source.read(6)
    source.seek(0)
    opened = pa.ipc.open_file if head == b"ARROW1" else pa.ipc.open_stream
    reader = opened(source)
    schema = reader.schema
    found = field(schema, path)
    if found is not None:
        source.seek(0)
        wanted = [schema.get_field_index(found[0])]
        reader = opened(source, options=pa.ipc.IpcReadOptions(included_fields=wanted))
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    return schema, iter(reader)


def _rows(
    parquet: pq.ParquetFile, path: list[str], run: Run, reading: Reading
) -> Iterator[tuple[int, Content]]:
    file = run.file
    counts, rows, before = reading.counts, parquet.metadata.num_rows, reading.counts.bytes_read
    first, last = run.bound(run.first, rows), run.bound(run.last, rows)
    bytes_before = (file.bytes or 0) * first // max(1, rows)
    row, groups = _groups_from(parquet, max(first, run.skip))
    wanted_column = [".".join(path)]
    for batch in parquet.iter_batches(
        BATCH_ROWS, row_groups=groups, columns=wanted_column, use_threads=False
    ):
        column = inner(batch, path)
        # what lies before the run, or was read before, and what lies behind it
        left_out = min(max(0, max(first, run.skip) - row), len(column))
        wanted = column.slice(left_out, max(0, min(len(column), last - row) - left_out))
        for place_in_file, value in contents(wanted, reading, _place(file), row + left_out):
            while place_in_file >= run.bound(reading.index + 1, rows) and reading.index < run.last - 1:
                reading.index += 1
            reading.see(file, place_in_file)
            yield place_in_file, value
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
