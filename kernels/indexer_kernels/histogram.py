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

MAGNITUDES = 194
ZERO_BIN = MAGNITUDES
BINS = 2 * MAGNITUDES + 1
BINS_PER_OCTAVE = 8
SMALLEST_EXPONENT, LARGEST_EXPONENT = -10, 14


def magnitude_edges() -> NDArray[np.float64]:
    """Edges of the 194 bins of one sign, float64 [195]: 0, 2^-10, 1.125 * 2^-10, ..., 2^14, infinity."""
    octave, eighth = np.divmod(np.arange(MAGNITUDES - 1), BINS_PER_OCTAVE)
    inner = np.ldexp(1 + eighth / BINS_PER_OCTAVE, SMALLEST_EXPONENT + octave)
    return np.concatenate([[0.0], inner, [np.inf]])


def bins_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The bin of each finite value, int64 of the same shape; -0.0 is 0.0."""
    size = np.abs(values.astype(np.float64))
    magnitude = np.searchsorted(magnitude_edges(), size, side="right")  # 1 to 194
    return np.where(values == 0, ZERO_BIN, np.where(values > 0, ZERO_BIN + magnitude, ZERO_BIN - magnitude))


@dataclass
class Histogram:
    """Counts per unit and bin.

    counts: int64 [units, 389].
    recent: uint16 [units, 389], new counts of the compiled kernel that `settle` moves to `counts`.
    recent_tokens: int32 [units], tokens in `recent`.
    """

    counts: NDArray[np.int64]
    recent: NDArray[np.uint16]
    recent_tokens: NDArray[np.int32]
    _native: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(cls, units: int) -> Histogram:
        """The histogram of no tokens."""
        return cls(
            committed_zeros((units, BINS), np.int64),
            committed_zeros((units, BINS), np.uint16),
            np.zeros(units, np.int32),
        )

    def update(self, activations: NDArray[np.float32], sequences: Sequences) -> None:
        """Count every finite counted activation; activations: float32 [tokens, units]. The reference."""
        values = activations[counted_rows(sequences)]
        units = np.broadcast_to(np.arange(values.shape[1]), values.shape)
        finite = np.isfinite(values)
        np.add.at(self.counts, (units[finite], bins_of(values[finite])), 1)

    def merge(self, other: Histogram) -> None:
        """Add the counts of `other`, which covers other tokens."""
        self.settle()
        other.settle()
        self.counts += other.counts

    def settle(self) -> None:
        """Bring `counts` up to date."""
        if self.recent_tokens.any():
            self.counts += self.recent
            self.recent[:] = 0
            self.recent_tokens[:] = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": None}

    def native(self) -> Any:
        """The compiled kernel's view of this state."""
        if self._native is None:
            from indexer_kernels import _cpp

            self._native = _cpp.Histogram(self.counts, self.recent, self.recent_tokens)
        return self._native
