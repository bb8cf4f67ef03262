"""Moments: exact sums of powers, of which the columns of `units` are rounded; what merging adds up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from indexer_kernels import Moments
from indexer_kernels.histogram import bin_edges
from indexer_kernels.moments import OVERFLOWED, POWERS

from indexer.index import schema
from indexer.index.codecs.codec import Codec, as_table, constants, no_minus_zero
from indexer.index.laws import LayerLaws
from indexer.index.records import LayerRecord
from indexer.index.rows import LayerRows
from indexer.index.schema import column
from indexer.index.sums import PACKED, pack, unpack
from indexer.index.vocabulary import Vocabulary

_SUMS = tuple(f"sum{power}" for power in range(1, POWERS + 1))
_OVERFLOWED = tuple(f"overflowed{power}" for power in range(1, POWERS + 1))
_OF_UNITS = {"nan": np.int64, "inf": np.int64, "minimum": np.float32, "maximum": np.float32}
# a sum of n tokens is within this share of the sum of |x|^p: float32 sums of up to 256 positions
_SUM_ERROR = 256 * 2.0**-24
# where |x|^p is below, no sum over 256 positions can leave float32
_SAFE = 2.0**119
_UNITS_AT_ONCE = 1_024


class MomentSums(Codec):
    """Sums of x, x^2, x^3 and x^4, little-endian two's complement in units of 2^-150; see sums.py.

    Counts of what is not finite and the range are columns of `units`.
    """

    name, folder = "moments", "sums"
    states = ("moments",)
    units_of_a_group = 4_096
    columns = pa.schema(
        [
            *schema.UNIT,
            *(column(name, pa.binary(PACKED)) for name in _SUMS),
            *(column(name, pa.int64()) for name in _OVERFLOWED),
        ]
    )

    def unit_columns(self, record: LayerRecord) -> dict[str, np.ndarray]:
        moments = record.moments
        seen = moments.minimum <= moments.maximum
        ends = {"minimum": moments.minimum, "maximum": moments.maximum}
        return {
            "nan": moments.nan,
            "inf": moments.inf,
            **{name: np.where(seen, no_minus_zero(end), np.float32(np.nan)) for name, end in ends.items()},
            **moments.summary(record.count),
        }

    def table(self, record: LayerRecord, units: slice, first: int, vocabulary: Vocabulary) -> pa.Table:
        packed, overflowed = pack(record.moments.sums[units])
        columns = constants(record, np.arange(first + units.start, first + units.stop))
        for power, (name, lost) in enumerate(zip(_SUMS, _OVERFLOWED, strict=True)):
            content = pa.py_buffer(np.ascontiguousarray(packed[:, power]))
            kind = self.columns.field(name).type
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(kind, len(packed), [None, content])
            columns[lost] = pa.array(np.ascontiguousarray(overflowed[:, power]))
        return as_table(columns, self.columns)

    def merge_into(self, record: LayerRecord, rows: LayerRows, units: slice) -> None:
        record.moments.merge(self._read(rows, units))

    def check(self, laws: LayerLaws) -> None:
        """The moments are those of the exact sums, and each sum is one that values in the bins can have."""
        moments = self._read(laws.rows, slice(0, laws.units))
        for name, wanted in moments.summary(laws.integers("count")).items():
            laws.require_equal(name, wanted, "that of the sums of powers")
        totals, lost = moments.sums_of_powers(), moments.sums[..., OVERFLOWED]
        for first in range(0, laws.units, _UNITS_AT_ONCE):
            units = slice(first, first + _UNITS_AT_ONCE)
            _check_range(laws, totals[units], lost[units], units)

    def _read(self, rows: LayerRows, units: slice) -> Moments:
        """Counts of what is not finite, range and exact sums, settled."""
        table = rows.of_units(units, tuple(_OF_UNITS))
        found: dict[str, Any] = {
            name: table[name].to_numpy().astype(kind) for name, kind in _OF_UNITS.items()
        }
        for name, none in (("minimum", np.inf), ("maximum", -np.inf)):
            found[name][np.isnan(found[name])] = none
        pending = np.zeros(units.stop - units.start, np.int32)
        return Moments(**found, sums=self._sums(rows, units), pending=pending)

    def _sums(self, rows: LayerRows, units: slice) -> np.ndarray:
        """Exact sums of powers, settled, int64 [units, POWERS, LIMBS]."""
        path, names = self.file(rows.key), ("unit", *_SUMS, *_OVERFLOWED)
        empty = pa.schema([self.columns.field(name) for name in names]).empty_table()
        table = pa.concat_tables([empty, *rows.of_block(path, self.columns, units, names)])
        rows.must_be(path, np.array_equal(table["unit"].to_numpy(), np.arange(units.start, units.stop)))
        packed = np.empty((table.num_rows, POWERS, PACKED), np.uint8)
        for power, name in enumerate(_SUMS):
            packed[:, power] = _fixed_bytes(table[name])
        overflowed = np.stack([table[name].to_numpy() for name in _OVERFLOWED], axis=1)
        rows.must_be(path, bool((overflowed >= 0).all()))
        return unpack(packed, overflowed)


def _fixed_bytes(column: pa.ChunkedArray) -> np.ndarray:
    """uint8 [rows, PACKED] of a column of fixed-size binary without nulls."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * PACKED, chunk.offset * PACKED)
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([*parts, np.empty(0, np.uint8)]).reshape(-1, PACKED)


def _check_range(laws: LayerLaws, totals: np.ndarray, overflowed: np.ndarray, units: slice) -> None:
    """Between the sums of the lowest and of the highest value that each bin can have held.

    totals: float64 [chosen, POWERS]. overflowed: int64 of that shape, partial sums that left float32.
    """
    counts = laws.histogram[units]
    number = np.arange(laws.units)[units]
    # the bins of a unit without a value are empty
    extremes = [np.nan_to_num(values[units])[:, None] for values in (laws.minimum, laws.maximum)]
    edges = [np.clip(edge, *extremes).astype(np.float64) for edge in bin_edges()]
    ends = [np.ones(1), np.ones(1)]
    for power in range(1, POWERS + 1):
        ends = [end * edge for end, edge in zip(ends, edges, strict=True)]
        largest = np.maximum(*map(np.abs, ends))
        lowest, highest = ((counts * end(*ends)).sum(axis=1) for end in (np.minimum, np.maximum))
        # beside the share of it, what each tiny value loses to underflow
        slack = _SUM_ERROR * (counts * largest).sum(axis=1) + counts.sum(axis=1) * 2.0**-149
        found, lost = totals[:, power - 1], overflowed[:, power - 1]
        laws.require(
            (lost >= 0) & ((lost == 0) | (largest.max(axis=1) >= _SAFE)),
            f"its sum of x^{power} left float32, and its range is too small for that",
            number,
        )
        laws.require(
            (lost > 0) | ((found >= lowest - slack) & (found <= highest + slack)),
            f"its sum of x^{power} is impossible for values in its bins",
            number,
        )
