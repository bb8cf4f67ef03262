"""Activation histogram of every unit, free of calibration.

The bin of a value is read off its float32 bits: sign, exponent and top 3 mantissa bits. That gives 8 bins
per octave over magnitudes [2^-10, 2^14), one bin below and one above per sign, and exact zero: 389 bins,
ascending by value. Any quantile inside the range is known within 1/16 relative; merging is adding int64
counts, exact in any order. NaN and infinities are in no bin: sum of bins + nan + inf = counted tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import committed_zeros, counted_rows
from indexer_kernels.sequences import Sequences

# units whose new counts are added together
_UNITS_AT_ONCE = 1_024
BINS_PER_OCTAVE = 8
SMALLEST_EXPONENT, LARGEST_EXPONENT = -10, 14
MAGNITUDES = BINS_PER_OCTAVE * (LARGEST_EXPONENT - SMALLEST_EXPONENT) + 2
ZERO_BIN = MAGNITUDES
BINS = 2 * MAGNITUDES + 1
# by column name, the share of values at or below it, in ten-thousandths
QUANTILES = {"p01": 100, "p10": 1000, "p50": 5000, "p90": 9000, "p99": 9900, "p999": 9990, "p9999": 9999}


def magnitude_edges() -> NDArray[np.float64]:
    """Edges of the 194 bins of one sign, float64 [195]: 0, 2^-10, 1.125 * 2^-10, ..., 2^14, infinity."""
    octave, eighth = np.divmod(np.arange(MAGNITUDES - 1), BINS_PER_OCTAVE)
    inner = np.ldexp(1 + eighth / BINS_PER_OCTAVE, SMALLEST_EXPONENT + octave)
    return np.concatenate([[0.0], inner, [np.inf]])


def bin_edges() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lower and upper edge of every bin, ascending by value; two of float32 [389].

    Positive bins hold lower <= value < upper, negative ones lower < value <= upper, zero has both edges 0.
    """
    edges = magnitude_edges().astype(np.float32)
    zero = np.zeros(1, np.float32)
    lower = np.concatenate([-edges[:0:-1], zero, edges[:-1]])
    upper = np.concatenate([-edges[-2::-1], zero, edges[1:]])
    # the mirrored edge of the smallest bin is zero, not minus zero
    return lower + np.float32(0), upper + np.float32(0)


def bins_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each finite value, from sign, exponent and top 3 mantissa bits; int64 of the same shape."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.int64)
    first = (127 + SMALLEST_EXPONENT) << 3  # of 2^-10, without the 20 mantissa bits that a bin ignores
    magnitude = np.clip(((bits & 0x7FFFFFFF) >> 20) - first + 2, 1, MAGNITUDES)
    signed = np.where(bits >> 31, ZERO_BIN - magnitude, ZERO_BIN + magnitude)
    return np.where(bits & 0x7FFFFFFF == 0, ZERO_BIN, signed)


def bins_between(lower: NDArray[np.float32], upper: NDArray[np.float32]) -> NDArray[np.int64]:
    """The inverse of `bin_edges`: the bins with these edges, int64 [n]; -1 for what is no bin's edges."""
    edges = bin_edges()
    # an edge has 3 mantissa bits: its upper 12 bits tell it from every other
    table = np.zeros(1 << 12, np.int64)
    table[_upper_bits(edges[0][::-1])] = np.arange(BINS)[::-1]
    number = table[_upper_bits(lower)]
    # zero and the smallest positive bin begin alike
    number += (number == ZERO_BIN) & (upper > 0)
    right = (edges[0][number] == lower) & (edges[1][number] == upper)
    return np.where(right, number, -1)


def positive(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values above zero, int64 [units]; counts: int64 [units, 389]."""
    return counts[:, ZERO_BIN + 1 :].sum(axis=1)


def active(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values of at least 2^-10, the least that bins tell apart, int64 [units]; counts: int64 [units, 389]."""
    # the first bin above zero ends there
    return counts[:, ZERO_BIN + 2 :].sum(axis=1)


def quantiles(
    counts: NDArray[np.int64], minimum: NDArray[np.float32], maximum: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """By the names of QUANTILES, the middle of the bin that holds the value of rank ceil(share * n).

    For magnitudes in [2^-10, 2^14) that is within 1/16 relative of the exact order statistic, because a bin
    spans at most an eighth of its lower edge. It is never outside [minimum, maximum]; for the two outermost
    bins of each sign only that holds.
    counts: int64 [units, 389]. minimum, maximum: float32 [units].
    Returns float32 [units] each, NaN for units without a finite value.
    """
    lower, upper = bin_edges()
    # the middle of an endless bin is its endless edge; the clip below brings it to the extreme
    middle = (lower + upper) / 2
    cumulative = np.cumsum(counts, axis=1)
    total = cumulative[:, -1]
    columns = {}
    for name, share in QUANTILES.items():
        # Whole numbers throughout: a float would round ranks beyond 2^53. In parts, against overflow.
        whole, rest = np.divmod(total, 10_000)
        rank = np.maximum(whole * share + (rest * share + 9_999) // 10_000, 1)
        found = np.minimum((cumulative < rank[:, None]).sum(axis=1), BINS - 1)
        columns[name] = np.where(total > 0, np.clip(middle[found], minimum, maximum), np.float32(np.nan))
    return columns


@dataclass
class Histogram:
    """Counts per unit and bin.

    low, high: uint32 [units, 389]; a count is high * 2^32 + low. What no count has reached of `high` takes no
        memory: a corpus of less than 2^32 tokens writes nothing there.
    recent: uint16 [units, 389], new counts of the compiled kernel that `settle` moves to the others.
    recent_tokens: int32 [units], tokens in `recent`.
    """

    low: NDArray[np.uint32]
    high: NDArray[np.uint32] = field(metadata={"seldom": True})
    recent: NDArray[np.uint16]
    recent_tokens: NDArray[np.int32]
    _native: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(cls, units: int) -> Histogram:
        """The histogram of no tokens."""
        return cls(
            committed_zeros((units, BINS), np.uint32),
            np.zeros((units, BINS), np.uint32),
            committed_zeros((units, BINS), np.uint16),
            np.zeros(units, np.int32),
        )

    def update(self, activations: NDArray[np.float32], sequences: Sequences) -> None:
        """Count every finite counted activation; activations: float32 [tokens, units]. The reference."""
        values = activations[counted_rows(sequences)]
        units = np.broadcast_to(np.arange(values.shape[1]), values.shape)
        finite = np.isfinite(values)
        found = np.zeros(self.low.shape, np.int64)
        np.add.at(found, (units[finite], bins_of(values[finite])), 1)
        self.add(..., found)

    def add(self, bins: Any, counts: NDArray[Any]) -> None:
        """Add counts, none negative, to some bins, by an index of [units, 389] that has each of them once."""
        total = self.low[bins] + counts.astype(np.uint64)
        self.low[bins] = total.astype(np.uint32)
        carry = total >> np.uint64(32)
        if carry.any():
            self.high[bins] += carry.astype(np.uint32)

    def of(self, units: slice) -> NDArray[np.int64]:
        """The counts of some units, int64 [chosen, 389]."""
        return (self.high[units].astype(np.int64) << 32) + self.low[units]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Those of all units, made anew: int64 [units, 389]."""
        return self.of(slice(None))

    def settle(self) -> None:
        """Bring the counts up to date."""
        if self.recent_tokens.any():
            for first in range(0, len(self.low), _UNITS_AT_ONCE):
                units = slice(first, first + _UNITS_AT_ONCE)
                self.add(units, self.recent[units])
            self.recent[:] = 0
            self.recent_tokens[:] = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": None}

    def native(self) -> Any:
        """The compiled kernel's view of this state."""
        if self._native is None:
            from indexer_kernels import _cpp

            self._native = _cpp.Histogram(self.low, self.high, self.recent, self.recent_tokens)
        return self._native


def _upper_bits(values: NDArray[np.float32]) -> NDArray[Any]:
    return np.ascontiguousarray(values, np.float32).view(np.uint32) >> 20
