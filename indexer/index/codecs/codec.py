"""What a codec is: how one statistic lies on disk, and the way there and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from indexer.index import schema
from indexer.index.laws import LayerLaws
from indexer.index.records import LayerRecord
from indexer.index.rows import LayerRows
from indexer.index.sql import Place, view
from indexer.index.vocabulary import Vocabulary
from indexer.names import Key


class Codec:
    """One statistic on disk: a file for each layer, FOLDER/SITE.LAYER.parquet, sorted by unit.

    name: as the manifest lists it. states: the states that it keeps, by their names in a record.
    columns: of its files; the first are schema.UNIT. view: the name of what shows them in SQL; "" for none.
    common: columns of files that it has once for all layers, by their paths.
    other_views, macros: names of what its `views` make beside the view.
    units_of_a_group: see least_group.
    """

    name: str
    folder: str
    states: tuple[str, ...]
    columns: pa.Schema
    view: str = ""
    common: Mapping[str, pa.Schema] = MappingProxyType({})
    other_views: tuple[str, ...] = ()
    macros: tuple[str, ...] = ()
    units_of_a_group = 128

    def file(self, key: Key) -> str:
        """Path of a layer's file within the index."""
        return str(PurePosixPath(self.folder) / f"{key}.parquet")

    def unit_bytes(self, record: LayerRecord) -> int:
        """What the rows of a unit take in memory, about and at most; record: any block of the layer."""
        return 1024

    def least_group(self, record: LayerRecord) -> int:
        """Units of a row group below which it costs more in the footer than it saves."""
        return self.units_of_a_group

    def group_units(self, record: LayerRecord, units: int) -> int:
        """Units of a row group; record: any block of the layer, which has `units` of them."""
        wanted = max(-(-units // schema.MOST_ROW_GROUPS), self.least_group(record))
        return max(min(wanted, schema.GROUP_BYTES // self.unit_bytes(record)), 1)

    def table_units(self, record: LayerRecord, units: int) -> int:
        """Units whose rows are made at a time: an even share of a row group's."""
        group = self.group_units(record, units)
        return -(-group // -(-group * self.unit_bytes(record) // schema.TABLE_BYTES))

    def page_values(self, record: LayerRecord) -> int | None:
        """Elements of a page of its list columns, so that one unit's are a small read; None for no such."""
        return None

    def unit_columns(self, record: LayerRecord) -> dict[str, np.ndarray]:
        """What it adds to units.parquet: columns of schema.UNITS, one value for each unit; NaN for null."""
        return {}

    def documents(self, record: LayerRecord) -> np.ndarray:
        """int64: the documents that its rows point to."""
        return np.empty(0, np.int64)

    def common_tables(self, record: LayerRecord) -> dict[str, pa.Table]:
        """The tables of the files that are common to all layers, which any record tells."""
        return {}

    def table(self, record: LayerRecord, units: slice, first: int, vocabulary: Vocabulary) -> pa.Table:
        """The rows of some units of a record, whose own first unit is number `first` of the layer.

        Strings may be dictionaries. Memory: a few times the table.
        """
        raise NotImplementedError

    def merge_into(self, record: LayerRecord, rows: LayerRows, units: slice) -> None:
        """Merge what the files hold of a block of units into the states of a record of as many.

        The exact inverse of writing, where the record is empty. Raises IndexerError where a file is damaged.
        """
        raise NotImplementedError

    def check(self, laws: LayerLaws) -> None:
        """Raise IndexerError for the first unit that breaks a law of the statistic."""
        raise NotImplementedError

    def views(self, place: Place, layers: Sequence[Key]) -> Iterator[str]:
        """The SQL statements that show it; layers: those that have it, one or more."""
        if self.view:
            yield view(self.view, self.columns.names, [place(self.file(key)) for key in layers])


def constants(record: LayerRecord, unit: np.ndarray) -> dict[str, Any]:
    """The columns of schema.UNIT for rows of these units, int [rows]."""
    site = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(unit), np.int8)), [record.key.site])
    layer = pa.array(np.full(len(unit), record.key.layer, np.int32))
    return {"site": site, "layer": layer, "unit": pa.array(unit.astype(np.int32))}


def as_table(columns: dict[str, Any], wanted: pa.Schema) -> pa.Table:
    """The columns in the schema's order; strings may stay dictionaries, which Parquet does not tell apart."""
    fields = [pa.field(field.name, columns[field.name].type, field.nullable) for field in wanted]
    return pa.Table.from_arrays([columns[field.name] for field in wanted], schema=pa.schema(fields))


def no_minus_zero(values: np.ndarray) -> np.ndarray:
    """The values, zeros without a sign."""
    return values + np.float32(0)
