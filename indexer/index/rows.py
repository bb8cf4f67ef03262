"""The rows of some units out of the files of one layer, checked as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from indexer_kernels import Keep

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.files import DAMAGED, GroupedFile, UnitFile, in_one_line
from indexer.index.opened import OpenFiles
from indexer.names import Key


class LayerRows:
    """The files of one layer, opened as they are needed; a context manager.

    units: of the layer. first_row: that of its first unit in units.parquet. keep: what was kept of each unit.
    statistics: the names of its codecs.
    """

    def __init__(
        self, index: Path, key: Key, units: int, first_row: int, keep: Keep, statistics: Sequence[str] = ()
    ) -> None:
        self.index, self.key, self.units, self.keep = index, key, units, keep
        self.statistics = statistics
        self._first_row = first_row
        self._files = OpenFiles(index)

    def __enter__(self) -> LayerRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    def of_units(self, units: slice, columns: Sequence[str]) -> pa.Table:
        """Columns of units.parquet, one row for each unit of a block."""
        file = self._files.get(schema.UNITS_FILE, GroupedFile, schema.UNITS)
        wanted = ["unit", *columns]
        first, last = self._first_row + units.start, self._first_row + units.stop
        tables, before = [file.empty(wanted)], 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            start, end = max(first - before, 0), min(last - before, rows)
            if start < end:
                tables.append(_group(file, group, wanted).slice(start, end - start))
            before += rows
        table = pa.concat_tables(tables)
        self.must_be(
            schema.UNITS_FILE, np.array_equal(table["unit"].to_numpy(), np.arange(units.start, units.stop))
        )
        return table

    def of_block(
        self, path: str, wanted: pa.Schema, units: slice, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """The rows of a block of units in a file sorted by unit, a table for each row group with some."""
        file = self._files.get(path, UnitFile, wanted)
        place = file.schema.get_field_index("unit")
        for group in range(file.metadata.num_row_groups):
            with in_one_line(file.path):
                held = file.metadata.row_group(group).column(place).statistics
            if held is None or not held.has_min_max or held.max < units.start or held.min >= units.stop:
                continue
            table = _group(file, group, columns)
            unit = table["unit"].to_numpy()
            start, end = (int(place) for place in np.searchsorted(unit, [units.start, units.stop]))
            if start < end:
                yield table.slice(start, end - start)

    def groups(self, path: str, wanted: pa.Schema) -> Iterator[pa.Table]:
        """All rows of a file, one row group after the other."""
        file = self._files.get(path, GroupedFile, wanted)
        for group in range(file.metadata.num_row_groups):
            yield file.group(group)

    def must_be(self, path: str, right: bool) -> None:
        """Raise IndexerError where what was read of a file is not right."""
        if not right:
            raise IndexerError(f"{self.index / path}: its rows are not those of layer {self.key}; {DAMAGED}")

    def bounds(self, units: slice | None) -> slice:
        """First and last + 1 of some units, all without them; raises IndexerError where there are none."""
        if units is None:
            return slice(0, self.units)
        if not 0 <= units.start <= units.stop <= self.units or units.step not in (None, 1):
            raise IndexerError(
                f"index {self.index}: units {units.start} to {units.stop - 1} of {self.key}: it has units "
                f"0 to {self.units - 1}"
            )
        return units


def _group(file: GroupedFile, group: int, columns: Sequence[str]) -> pa.Table:
    with in_one_line(file.path):
        return file.reader().read_row_group(group, columns=list(columns)).select(list(columns))
