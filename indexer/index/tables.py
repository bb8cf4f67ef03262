"""Arrow tables of the index from a layer's record."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from indexer.index import schema
from indexer.index.quantiles import bin_edges, quantiles
from indexer.index.records import Examples, LayerRecord
from indexer.index.vocabulary import Vocabulary

# in the order of the rows, which is the order of the words
EXTREMES = ("bottom", "top")


def unit_table(record: LayerRecord) -> pa.Table:
    """The layer's rows of units.parquet, one per unit."""
    minimum, maximum = _no_minus_zero(record.minimum), _no_minus_zero(record.maximum)
    floats = {"minimum": minimum, "maximum": maximum}
    floats |= {name: getattr(record, name) for name in schema.MOMENTS}
    floats |= quantiles(record.histogram, minimum, maximum)
    integers = {
        "unit": np.arange(record.units, dtype=np.int32),
        "count": np.full(record.units, record.count, np.int64),
        "active": record.active,
        "nan": record.nan,
        "inf": record.inf,
    }
    columns = _constants(record, record.units)
    columns |= {name: pa.array(values) for name, values in integers.items()}
    # undefined is NULL in SQL: a NaN would sort above every number and spoil averages
    columns |= {name: pa.array(values, mask=np.isnan(values)) for name, values in floats.items()}
    return _table(columns, schema.UNITS)


def example_tables(record: LayerRecord, vocabulary: Vocabulary, group_rows: int) -> Iterator[pa.Table]:
    """The layer's rows of its examples file: one table of whole units per row group, some `group_rows` rows.

    Sorted by unit, extreme ('bottom' first), rank. Memory: a few times one group.
    """
    per_unit = max(record.top.places + record.bottom.places, 1)
    group_units = -(-schema.rows_per_group(record.units * per_unit, group_rows) // per_unit)
    for first in range(0, record.units, group_units):
        table = _example_table(record, slice(first, min(first + group_units, record.units)), vocabulary)
        if table.num_rows:
            yield table


def histogram_tables(record: LayerRecord, group_rows: int) -> Iterator[pa.Table]:
    """The layer's rows of its histograms file, filled bins only: one table of whole units per row group."""
    filled = (record.histogram > 0).sum(axis=1)
    # rows before each unit; a group ends with the unit that fills it
    before = np.concatenate([[0], np.cumsum(filled)])
    wanted = schema.rows_per_group(int(before[-1]), group_rows)
    lower, upper = (pa.array(edges) for edges in bin_edges())
    first = 0
    while first < record.units:
        last = int(np.searchsorted(before, before[first] + wanted, "left"))
        last = min(max(last, first + 1), record.units)
        counts = record.histogram[first:last]
        unit, number = np.nonzero(counts)
        if len(unit):
            columns = _constants(record, len(unit)) | {
                "unit": pa.array((unit + first).astype(np.int32)),
                "lower": lower.take(pa.array(number)),
                "upper": upper.take(pa.array(number)),
                "count": pa.array(counts[unit, number]),
            }
            yield _table(columns, schema.HISTOGRAMS)
        first = last


def _example_table(record: LayerRecord, units: slice, vocabulary: Vocabulary) -> pa.Table:
    parts = [getattr(record, extreme) for extreme in EXTREMES]
    places = [part.places for part in parts]
    valid = np.concatenate([part.valid[units] for part in parts], axis=1)  # [units, places]
    rows = int(valid.sum())

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name)[units] for part in parts], axis=1)[valid]

    def spread(per_place: np.ndarray) -> np.ndarray:
        return np.broadcast_to(per_place, valid.shape)[valid]

    unit = np.broadcast_to(np.arange(units.start, units.stop, dtype=np.int32)[:, None], valid.shape)[valid]
    rank = np.concatenate([np.arange(1, count + 1, dtype=np.int32) for count in places])
    extreme = np.repeat(np.arange(len(EXTREMES), dtype=np.int8), places)
    windows = _windows(parts, units, valid, join("window_length"))
    columns = _constants(record, rows) | windows
    columns |= {
        "unit": pa.array(unit),
        "rank": pa.array(spread(rank)),
        "extreme": pa.DictionaryArray.from_arrays(pa.array(spread(extreme)), list(EXTREMES)),
        "value": pa.array(_no_minus_zero(join("value"))),
    }
    columns |= {name: pa.array(join(name)) for name in ("document", "sequence", "position", "window_start")}
    token_ids = windows["token_ids"]
    peak = token_ids.offsets.to_numpy()[:-1] + join("position") - join("window_start")
    columns["token_id"] = token_ids.values.take(pa.array(peak, pa.int32()))
    columns["token"] = vocabulary.token_strings(columns["token_id"])
    return _table(columns, schema.EXAMPLES_STORED)


def _windows(
    parts: list[Examples], units: slice, valid: np.ndarray, length: np.ndarray
) -> dict[str, pa.ListArray]:
    """The list columns: windows of the valid places, without what lies beyond their lengths."""
    offsets = np.concatenate([[0], np.cumsum(length, dtype=np.int64)]).astype(np.int32)
    width = max(part.token_ids.shape[-1] for part in parts)
    inside = None if (length == width).all() else np.arange(width, dtype=np.int32) < length[:, None]
    columns = {}
    for name in ("token_ids", "activations"):
        places = sum(part.places for part in parts)
        joined = np.empty((*valid.shape[:1], places, width), getattr(parts[0], name).dtype)
        start = 0
        for part in parts:
            values = getattr(part, name)[units]
            joined[:, start : start + part.places, : values.shape[-1]] = values
            start += part.places
        rows = joined.reshape(-1, width) if valid.all() else joined[valid]
        flat = rows.reshape(-1) if inside is None else rows[inside]
        columns[name] = pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(flat), type=schema.EXAMPLES.field(name).type
        )
    return columns


def _constants(record: LayerRecord, rows: int) -> dict[str, pa.Array]:
    site = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), [record.site])
    return {"site": site, "layer": pa.array(np.full(rows, record.layer, np.int32))}


def _table(columns: dict[str, pa.Array], wanted: pa.Schema) -> pa.Table:
    """The columns in the schema's order; strings may stay dictionaries, which Parquet does not tell apart."""
    fields = [pa.field(field.name, columns[field.name].type, field.nullable) for field in wanted]
    return pa.Table.from_arrays([columns[field.name] for field in wanted], schema=pa.schema(fields))


def _no_minus_zero(values: np.ndarray) -> np.ndarray:
    return values + np.float32(0)
