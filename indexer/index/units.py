"""units.parquet: one row for each unit, of what its statistics come to in one number each."""

from __future__ import annotations

from collections.abc import Iterator

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


def unit_groups(layers: list[list[pa.Table]]) -> Iterator[pa.Table]:
    """Row groups of units.parquet; its rows are found by their number, so a group may cut a layer.

    layers: of each the tables of its blocks, in the order of the manifest.
    """
    table = pa.concat_tables([block for layer in layers for block in layer])
    for first in range(0, table.num_rows, schema.UNIT_ROWS):
        yield table.slice(first, schema.UNIT_ROWS)
