"""Arrow tables of the index from a layer's record, or from the record of a block of its units.

first: the number, within the layer, of the record's first unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from indexer_kernels import TopK
from indexer_kernels.histogram import active, bin_edges, positive, quantiles

from indexer.index import schema
from indexer.index.records import LayerRecord
from indexer.index.sums import pack
from indexer.index.vocabulary import Vocabulary

# in the order of the rows, which is the order of the words
EXTREMES = ("bottom", "top")


def unit_table(record: LayerRecord, first: int = 0) -> pa.Table:
    """Rows of units.parquet, one per unit."""
    moments, counts = record.moments, record.histogram.counts
    seen = moments.minimum <= moments.maximum
    minimum, maximum = (
        np.where(seen, _no_minus_zero(values), np.float32(np.nan))
        for values in (moments.minimum, moments.maximum)
    )
    floats = {"minimum": minimum, "maximum": maximum} | record.summary
    floats |= quantiles(counts, minimum, maximum)
    integers = {
        "unit": np.arange(first, first + record.units, dtype=np.int32),
        "count": np.full(record.units, record.count, np.int64),
        "positive": positive(counts),
        "active": active(counts),
        "nan": moments.nan,
        "inf": moments.inf,
    }
    columns = _constants(record, record.units)
    columns |= {name: pa.array(values) for name, values in integers.items()}
    # undefined is NULL in SQL: a NaN would sort above every number and spoil averages
    columns |= {name: pa.array(values, mask=np.isnan(values)) for name, values in floats.items()}
    return _table(columns, schema.UNITS)


def sums_table(record: LayerRecord, first: int = 0) -> pa.Table:
    """Rows of the layer's file of sums, one per unit."""
    packed, overflowed = pack(record.moments.sums)
    columns = _constants(record, record.units)
    columns["unit"] = pa.array(np.arange(first, first + record.units, dtype=np.int32))
    for power, (name, lost) in enumerate(zip(schema.SUM_NAMES, schema.OVERFLOWED_NAMES, strict=True)):
        content = pa.py_buffer(np.ascontiguousarray(packed[:, power]))
        kind = schema.SUMS.field(name).type
        columns[name] = pa.FixedSizeBinaryArray.from_buffers(kind, record.units, [None, content])
        columns[lost] = pa.array(np.ascontiguousarray(overflowed[:, power]))
    return _table(columns, schema.SUMS)


def units_per_group(units: int, places: int) -> int:
    """Units of a row group of the examples of a layer of so many units, with `places` examples each."""
    return -(-schema.rows_per_group(units * max(places, 1), schema.EXAMPLE_ROWS) // max(places, 1))


def example_tables(
    record: LayerRecord, vocabulary: Vocabulary, at_once: int, first: int = 0
) -> Iterator[pa.Table]:
    """Rows of the layer's examples file, `at_once` units at a time.

    Sorted by unit, extreme ('bottom' first), rank. Memory: a few times one of the tables.
    """
    for start in range(0, record.units, at_once):
        units = slice(start, min(start + at_once, record.units))
        yield _example_table(record, units, vocabulary, first)


def histogram_tables(record: LayerRecord, rows: int, first: int = 0) -> Iterator[pa.Table]:
    """Rows of the layer's histograms file, filled bins only: tables of whole units and some `rows` rows."""
    filled = (record.histogram.counts > 0).sum(axis=1)
    # rows before each unit; a table ends with the unit that fills it
    before = np.concatenate([[0], np.cumsum(filled)])
    lower, upper = (pa.array(edges) for edges in bin_edges())
    start = 0
    while start < record.units:
        last = int(np.searchsorted(before, before[start] + rows, "left"))
        last = min(max(last, start + 1), record.units)
        counts = record.histogram.counts[start:last]
        unit, number = np.nonzero(counts)
        columns = _constants(record, len(unit)) | {
            "unit": pa.array((unit + (first + start)).astype(np.int32)),
            "lower": lower.take(pa.array(number)),
            "upper": upper.take(pa.array(number)),
            "count": pa.array(counts[unit, number]),
        }
        yield _table(columns, schema.HISTOGRAMS)
        start = last


def _example_table(record: LayerRecord, units: slice, vocabulary: Vocabulary, first: int) -> pa.Table:
    parts = [getattr(record, extreme).ranked(units) for extreme in EXTREMES]
    places = [part.k for part in parts]
    valid = np.concatenate([part.taken for part in parts], axis=1)  # [units, places]
    rows = int(valid.sum())

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts], axis=1)[valid]

    def spread(per_place: np.ndarray) -> np.ndarray:
        return np.broadcast_to(per_place, valid.shape)[valid]

    number = np.arange(first + units.start, first + units.stop, dtype=np.int32)
    unit = np.broadcast_to(number[:, None], valid.shape)[valid]
    rank = np.concatenate([np.arange(1, count + 1, dtype=np.int32) for count in places])
    extreme = np.repeat(np.arange(len(EXTREMES), dtype=np.int8), places)
    windows = _windows(parts, valid, join("window_length"))
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
    columns["text"] = vocabulary.texts(token_ids.values, token_ids.offsets)
    return _table(columns, schema.EXAMPLES_STORED)


def _windows(parts: list[TopK], valid: np.ndarray, length: np.ndarray) -> dict[str, pa.ListArray]:
    """The list columns: windows of the valid places, without what lies beyond their lengths."""
    offsets = np.concatenate([[0], np.cumsum(length, dtype=np.int64)]).astype(np.int32)
    width = max(part.token_ids.shape[-1] for part in parts)
    inside = None if (length == width).all() else np.arange(width, dtype=np.int32) < length[:, None]
    columns = {}
    for name in ("token_ids", "activations"):
        places = sum(part.k for part in parts)
        joined = np.empty((*valid.shape[:1], places, width), getattr(parts[0], name).dtype)
        start = 0
        for part in parts:
            values = getattr(part, name)
            joined[:, start : start + part.k, : values.shape[-1]] = values
            start += part.k
        rows = joined.reshape(-1, width) if valid.all() else joined[valid]
        flat = rows.reshape(-1) if inside is None else rows[inside]
        columns[name] = pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(flat), type=schema.EXAMPLES.field(name).type
        )
    return columns


def _constants(record: LayerRecord, rows: int) -> dict[str, pa.Array]:
    site = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), [record.key.site])
    return {"site": site, "layer": pa.array(np.full(rows, record.key.layer, np.int32))}


def _table(columns: dict[str, pa.Array], wanted: pa.Schema) -> pa.Table:
    """The columns in the schema's order; strings may stay dictionaries, which Parquet does not tell apart."""
    fields = [pa.field(field.name, columns[field.name].type, field.nullable) for field in wanted]
    return pa.Table.from_arrays([columns[field.name] for field in wanted], schema=pa.schema(fields))


def _no_minus_zero(values: np.ndarray) -> np.ndarray:
    return values + np.float32(0)
