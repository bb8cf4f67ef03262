"""units.parquet: one row for each unit, of what its statistics come to in one number each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa

from indexer.index import schema
from indexer.index.codecs import codecs_for
from indexer.index.codecs.codec import as_table, constants
from indexer.index.records import LayerRecord


def unit_table(record: LayerRecord, first: int = 0) -> pa.Table:
    """Rows of units.parquet; first: the number, within the layer, of the record's first unit."""
    values = {"count": record.count}
    for codec in codecs_for(record.states):
        values |= codec.unit_columns(record)
    columns = constants(record, np.arange(first, first + record.units))
    # undefined is NULL in SQL: a NaN would sort above every number and spoil averages
    columns |= {name: pa.array(column, mask=np.isnan(column)) for name, column in values.items()}
    return as_table(columns, schema.UNITS)


class UnitTables:
    """Rows of units.parquet in a file without a name, until all layers are there and their order is known."""

    def __init__(self, folder: Path) -> None:
        """folder: where the file lies. Raises OSError where the disk fails, as the methods do."""
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - lives until `close`
        self._writer = pa.ipc.new_file(self._file, schema.UNITS)
        self._tables = 0

    def add(self, table: pa.Table) -> int:
        """Put the rows of one unit or more there; returns the number of the table."""
        (batch,) = table.cast(schema.UNITS).combine_chunks().to_batches()
        self._writer.write_batch(batch)
        self._tables += 1
        return self._tables - 1

    def read(self, numbers: Iterable[int]) -> Iterator[pa.Table]:
        """The tables of some numbers, once all are there."""
        self._writer.close()
        file = pa.ipc.open_file(self._file)
        for number in numbers:
            yield pa.Table.from_batches([file.get_batch(number)])

    def close(self) -> None:
        """Remove the file; what the disk has no room for is not missed any more."""
        with suppress(OSError):
            self._file.close()


def unit_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Row groups of units.parquet; its rows are found by their number, so a group may cut a layer.

    tables: of blocks of units, in their order.
    """
    rest = schema.UNITS.empty_table()
    for table in tables:
        rest = pa.concat_tables([rest, table])
        while rest.num_rows >= schema.UNIT_ROWS:
            yield rest.slice(0, schema.UNIT_ROWS)
            rest = rest.slice(schema.UNIT_ROWS)
    if rest.num_rows:
        yield rest
