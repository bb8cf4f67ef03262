"""Parquet and Arrow files, and columns of Arrow tables as what is indexed, which hub data sets need too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexer.corpus.pieces import Run
from indexer.corpus.policy import Column, Reading
from indexer.corpus.sources import CorpusFile
from indexer.corpus.streams import BLOCK_BYTES, seekable, unreadable
from indexer.corpus.values import Content, Text, content, joined, token_ids
from indexer.errors import IndexerError

BATCH_ROWS = 1024


def read_parquet(run: Run, reading: Reading) -> Iterator[tuple[int, Content]]:
    """(row, content) of each row of a Parquet file; only the columns are read, from where the run begins."""
    with (
        _in_one_line(run, reading),
        seekable(run.file) as source,
        pq.ParquetFile(source, memory_map=False) as parquet,
    ):
        try:
            paths = paths_of(parquet.schema_arrow, reading, f"corpus file {run.file.source}")
        except IndexerError as error:
            share = (run.file.bytes or 0) * (run.last - run.first) // run.count
            reading.leave_out(run.file, error, run.first == 0, share)
            return
        yield from _rows(parquet, paths, run, reading)


def read_arrow(run: Run, reading: Reading) -> Iterator[tuple[int, Content]]:
    """(row, content) of each row of an Arrow IPC file or stream, such as `save_to_disk` of `datasets` writes.

    Held is one record batch at most, and of that what is not compressed stays on disk.
    """
    file = run.file
    before = reading.counts.bytes_read
    with _in_one_line(run, reading), seekable(file, memory_map=True) as source:
        schema, batches = _batches(source, reading)
        try:
            paths = paths_of(schema, reading, f"corpus file {file.source}")
        except IndexerError as error:
            reading.leave_out(file, error, True, file.bytes or 0)
            return
        row = 0
        for batch in batches:
            for first in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(first, BATCH_ROWS)
                if row + part.num_rows > run.skip:
                    wanted = part.slice(max(0, run.skip - row))
                    first_row = row + part.num_rows - wanted.num_rows
                    for place, value in contents(wanted, paths, reading, _place(file), first_row):
                        reading.see(file, place)
                        yield place, value
                row += part.num_rows
            if batch.num_rows:
                reading.see(file, row - batch.num_rows)
                reading.see(file, row - 1)
            reading.counts.bytes_read = before + min(file.bytes or 0, source.tell())
        reading.counts.bytes_read = before + (file.bytes or 0)


def paths_of(schema: pa.Schema, reading: Reading, place: str) -> list[list[str]]:
    """What leads to each wanted column, see `field`; raises IndexerError where one is not there."""
    paths = []
    for column in reading.columns:
        path = field(schema, column.name)
        if path is None:
            raise reading.no_column(place, names(schema), column)
        paths.append(path)
    return paths


def contents(
    table: pa.RecordBatch | pa.Table,
    paths: Sequence[list[str]],
    reading: Reading,
    place: Callable[[int], str],
    first: int = 0,
) -> Iterator[tuple[int, Content]]:
    """(row, content) of a table, rows counted from `first`: see indexer.corpus.values; binary is UTF-8.

    paths: of the wanted columns. place: names a row, for errors.
    Raises IndexerError where a column holds something else.
    """
    columns = [
        _texts(inner(table, path), reading, place, first, column)
        for path, column in zip(paths, reading.columns, strict=True)
    ]
    for row, parts in enumerate(zip(*columns, strict=True), first):
        found = joined(parts, reading, partial(place, row))
        if found is not None:
            yield row, found


def _texts(
    column: pa.Array | pa.ChunkedArray,
    reading: Reading,
    place: Callable[[int], str],
    first: int,
    wanted: Column,
) -> Iterator[Text | None]:
    """What each row of a column stands for; None where the policy leaves it out."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if reading.ids:
        yield from _ids(column, reading, place, first, wanted)
        return
    if pa.types.is_null(kind):
        yield from ("" for _ in range(len(column)))
        return
    if _is_list(kind):
        yield from _lists(column, reading, place, first, wanted)
        return
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):  # fmt: skip
        raise reading.not_wanted(place(first), kind, wanted)
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
                yield None
                continue
        yield value or ""


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
    column: pa.Array | pa.ChunkedArray,
    reading: Reading,
    place: Callable[[int], str],
    first: int,
    wanted: Column,
) -> Iterator[Text]:
    kind = column.type
    if not (pa.types.is_null(kind) or (_is_list(kind) and pa.types.is_integer(kind.value_type))):
        raise reading.not_wanted(place(first), kind, wanted)
    for row, value in enumerate(column, first):
        here = partial(place, row)
        ids: Any = []
        if value.is_valid:
            if value.values.null_count:
                raise reading.not_wanted(here(), f"{kind} with nulls in it", wanted)
            ids = value.values.to_numpy(zero_copy_only=False)
        yield token_ids(ids, reading, here, wanted)


def _lists(
    column: pa.Array | pa.ChunkedArray,
    reading: Reading,
    place: Callable[[int], str],
    first: int,
    wanted: Column,
) -> Iterator[Text]:
    for row, value in enumerate(column, first):
        here = partial(place, row)
        try:
            plain = value.as_py()
        except UnicodeDecodeError:
            raise IndexerError(f"{here()}: not valid UTF-8 within a list; convert the file") from None
        yield content(plain, reading, here, wanted)


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


def _batches(source: Any, reading: Reading) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the record batches of an IPC file or stream, with what of each is wanted."""
    head = source.read(6)
    source.seek(0)
    opened = pa.ipc.open_file if head == b"ARROW1" else pa.ipc.open_stream
    reader = opened(source)
    schema = reader.schema
    found = [field(schema, column.name) for column in reading.columns]
    paths = [path for path in found if path is not None]
    if len(paths) == len(found):
        source.seek(0)
        wanted = sorted({schema.get_field_index(path[0]) for path in paths})
        reader = opened(source, options=pa.ipc.IpcReadOptions(included_fields=wanted))
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    return schema, iter(reader)


def _rows(
    parquet: pq.ParquetFile, paths: Sequence[list[str]], run: Run, reading: Reading
) -> Iterator[tuple[int, Content]]:
    file = run.file
    counts, rows, before = reading.counts, parquet.metadata.num_rows, reading.counts.bytes_read
    first, last = run.bound(run.first, rows), run.bound(run.last, rows)
    bytes_before = (file.bytes or 0) * first // max(1, rows)
    row, groups = _groups_from(parquet, max(first, run.skip))
    columns = [".".join(path) for path in paths]
    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
        rows_of_batch = batch.num_rows
        # what lies before the run, or was read before, and what lies behind it
        left_out = min(max(0, max(first, run.skip) - row), rows_of_batch)
        wanted = batch.slice(left_out, max(0, min(rows_of_batch, last - row) - left_out))
        for place_in_file, value in contents(wanted, paths, reading, _place(file), row + left_out):
            while place_in_file >= run.bound(reading.index + 1, rows) and reading.index < run.last - 1:
                reading.index += 1
            reading.see(file, place_in_file)
            yield place_in_file, value
        row += rows_of_batch
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
