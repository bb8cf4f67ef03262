"""What must hold before the query case reports: that the rows it asks for are the right ones.

They are compared with the records that the index was made of, and with plain reads of its Parquet files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from indexer_kernels import TopK

from benchmarks.questions import SCAN, SEARCH, four_calls, in_sql
from benchmarks.report import WrongResultError
from benchmarks.states import differing
from benchmarks.synthetic import Size, synthetic_records
from indexer.index import schema
from indexer.index.codecs import EXAMPLES, HISTOGRAMS
from indexer.index.read import Index, UnitRecord
from indexer.index.records import LayerRecord

FIELDS = ("value", "document", "sequence", "position", "window_start")


def check_records(index: Index, units: Sequence[str], size: Size, seed: int) -> str:
    """Records of some units, by the API and in SQL; raises WrongResultError."""
    made = next(synthetic_records(size, seed))
    for name in units:
        record = index.record(name)
        whole = (record.statistics, record.histogram, record.top, record.bottom)
        for kind, asked in (("four calls", four_calls(index, name)), ("SQL", in_sql(index, name))):
            for part, rows, others in zip(("unit", "histogram", "top", "bottom"), whole, asked, strict=True):
                if not rows.equals(others):
                    raise WrongResultError(f"{name}: {part} in {kind} differs from that of the record")
        _check_plain_read(index, record)
        if record.unit.key == made.key:
            _check_made(record, made)
    return (
        f"records of {len(units)} units are those that were written; the API, SQL and pyarrow agree on them"
    )


def _check_plain_read(index: Index, record: UnitRecord) -> None:
    """The stored columns, against a filtered read of the layer's files."""
    unit = record.unit
    wanted = [("unit", "=", unit.unit)]
    rows = pq.read_table(index.path / EXAMPLES.file(unit.key), filters=wanted)
    for kind in ("top", "bottom"):
        stored = rows.filter(pc.equal(rows["kind"], kind)).sort_by("rank")
        found = getattr(record, kind)
        for column in (*FIELDS, "token_id", "token_ids", "activations"):
            if stored[column].to_pylist() != found[column].to_pylist():
                raise WrongResultError(f"{unit}, {kind} {column}: the record differs from a plain read")
    bins = pq.read_table(index.path / HISTOGRAMS.file(unit.key), filters=wanted)
    for column in ("lower", "upper", "count"):
        if bins[column].to_pylist() != record.histogram[column].to_pylist():
            raise WrongResultError(f"{unit}, histogram {column}: the record differs from a plain read")


def _check_made(record: UnitRecord, made: LayerRecord) -> None:
    """Against the numbers that the layer was written from."""
    unit = record.unit.unit
    counts = made.histogram.counts[unit]
    pairs = [("histogram count", record.histogram["count"].to_numpy(), counts[counts > 0])]
    sides: tuple[tuple[str, pa.Table, TopK], ...] = (
        ("top", record.top, made.top),
        ("bottom", record.bottom, made.bottom),
    )
    for kind, rows, examples in sides:
        for field in FIELDS:
            pairs.append((f"{kind} {field}", rows[field].to_numpy(), getattr(examples, field)[unit]))
        for field in ("token_ids", "activations"):
            found = rows[field].combine_chunks().flatten().to_numpy()
            pairs.append((f"{kind} {field}", found, getattr(examples, field)[unit].reshape(-1)))
    for name, found, expected in pairs:
        what = differing(f"{record.unit}, {name}, read and written", found, expected.astype(found.dtype))
        if what is not None:
            raise WrongResultError(what)


def check_search(index: Index, token: str) -> str:
    """The token search for one token, against plain reads of all files; raises WrongResultError."""
    found = index.sql(SEARCH, {"token": token})
    parts = []
    for entry in index.manifest.layers:
        path = index.path / EXAMPLES.file(entry.key)
        rows = pq.read_table(path, columns=["layer", "unit", "kind", "token", "value"])
        parts.append(rows.filter(pc.and_(pc.equal(rows["kind"], "top"), pc.equal(rows["token"], token))))
    rows = pa.concat_tables(parts).group_by(["layer", "unit"])
    grouped = rows.aggregate([("value", "count"), ("value", "max")])
    best_first = [("value_count", "descending"), ("value_max", "descending")]
    order = [*best_first, ("layer", "ascending"), ("unit", "ascending")]
    expected = grouped.sort_by(order).slice(0, 20)
    _same_rows(f"search for {token!r}", found, expected, ("layer", "unit", "value_count", "value_max"))
    return f"the search for {token!r} finds what a plain read finds ({grouped.num_rows:,} units)"


def check_scan(index: Index) -> str:
    """The scan of all units, against a plain read of them; raises WrongResultError."""
    found = index.sql(SCAN)
    units = pq.read_table(index.path / schema.UNITS_FILE)
    selective = pc.cast(pc.greater(units["p999"], pc.multiply(units["p90"], 4)), pa.int64())
    units = units.append_column("selective", selective)
    sums = [("unit", "count"), ("maximum", "max"), ("active", "sum"), ("selective", "sum")]
    expected = units.group_by("layer").aggregate(sums).sort_by("layer")
    _same_rows("scan", found, expected, ("layer", "unit_count", "maximum_max", "active_sum", "selective_sum"))
    return f"the scan agrees with a plain read of all {units.num_rows:,} units"


def _same_rows(name: str, found: pa.Table, expected: pa.Table, columns: Sequence[str]) -> None:
    """Column by column, whatever their names; raises WrongResultError."""
    for place, column in enumerate(columns):
        ours, theirs = _numbers(found.column(place)), _numbers(expected[column])
        what = differing(f"{name}, {column}, in SQL and by a plain read", ours, theirs)
        if what is not None:
            raise WrongResultError(what)


def _numbers(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), np.float64)
