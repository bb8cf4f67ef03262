"""Where the histogram's bins lie, and the quantiles read from them.

The guarantee: for magnitudes in [2^-10, 2^14) a quantile is within 1/16 relative of the exact order
statistic, because a bin spans at most an eighth of its lower edge and the answer is the bin's middle. It is
never outside [minimum, maximum]. For the two outermost bins of each sign only the latter holds.
"""

from __future__ import annotations

import numpy as np

from indexer.index.records import BINS_PER_OCTAVE, HISTOGRAM_BINS, LOWEST_EXPONENT, MAGNITUDE_BINS, ZERO_BIN

# by column name, the share of values at or below it, in ten-thousandths
QUANTILES = {"p01": 100, "p10": 1000, "p50": 5000, "p90": 9000, "p99": 9900, "p999": 9990, "p9999": 9999}
# bit pattern of 2^-10 without the 20 mantissa bits that a bin ignores
_FIRST_KEY = (127 + LOWEST_EXPONENT) << 3


def magnitude_edges() -> np.ndarray:
    """float32 [MAGNITUDE_BINS + 1]: bin m covers magnitudes from edge m to edge m + 1."""
    number = np.arange(MAGNITUDE_BINS - 1)
    octave, eighth = np.divmod(number, BINS_PER_OCTAVE)
    inner = 2.0 ** (LOWEST_EXPONENT + octave) * (1 + eighth / BINS_PER_OCTAVE)
    return np.concatenate([[0.0], inner, [np.inf]]).astype(np.float32)


def bin_edges() -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of every bin, ascending by value; two of float32 [HISTOGRAM_BINS].

    Positive bins hold lower <= value < upper, negative ones lower < value <= upper, zero has both edges 0.
    """
    edges = magnitude_edges()
    zero = np.zeros(1, np.float32)
    lower = np.concatenate([-edges[:0:-1], zero, edges[:-1]])
    upper = np.concatenate([-edges[-2::-1], zero, edges[1:]])
    # the mirrored edge of the smallest bin is zero, not minus zero
    return lower + np.float32(0), upper + np.float32(0)


def bins_of(values: np.ndarray) -> np.ndarray:
    """The bin of each float32 value, from sign, exponent and top 3 mantissa bits; int64, same shape."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.int64)
    magnitude = np.clip(((bits & 0x7FFFFFFF) >> 20) - _FIRST_KEY + 1, 0, MAGNITUDE_BINS - 1)
    signed = np.where(bits >> 31, ZERO_BIN - 1 - magnitude, ZERO_BIN + 1 + magnitude)
    return np.where(bits & 0x7FFFFFFF == 0, ZERO_BIN, signed)


def numbers_of_bins(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The numbers of bins from their edges, both float32 [n]; int64 [n], -1 for what is no bin's edges."""
    edges = bin_edges()
    # an edge has 3 mantissa bits: its upper 12 bits tell it from every other
    table = np.zeros(1 << 12, np.int64)
    table[_upper_bits(edges[0][::-1])] = np.arange(HISTOGRAM_BINS)[::-1]
    number = table[_upper_bits(lower)]
    # zero and the smallest positive bin begin alike
    number += (number == ZERO_BIN) & (upper > 0)
    right = (edges[0][number] == lower) & (edges[1][number] == upper)
    return np.where(right, number, -1)


def _upper_bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32) >> 20


def quantiles(histogram: np.ndarray, minimum: np.ndarray, maximum: np.ndarray) -> dict[str, np.ndarray]:
    """The columns p01 ... p9999: the middle of the bin that holds the value of rank ceil(share * n).

    histogram: int64 [units, HISTOGRAM_BINS]. minimum, maximum: float32 [units].
    Returns float32 [units] per column, NaN for units without a finite value.
    """
    lower, upper = bin_edges()
    # the middle of an endless bin is its endless edge; the clip below brings it to the extreme
    middle = (lower + upper) / 2
    cumulative = np.cumsum(histogram, axis=1)
    total = cumulative[:, -1]
    columns = {}
    for name, share in QUANTILES.items():
        # Whole numbers throughout: a float would round ranks beyond 2^53. In parts, against overflow.
        whole, rest = np.divmod(total, 10_000)
        rank = np.maximum(whole * share + (rest * share + 9_999) // 10_000, 1)
        found = np.minimum((cumulative < rank[:, None]).sum(axis=1), HISTOGRAM_BINS - 1)
        columns[name] = np.where(total > 0, np.clip(middle[found], minimum, maximum), np.float32(np.nan))
    return columns
