"""Non-finite counts, range, mean, variance, skewness and kurtosis of every unit.

Sums of x, x^2, x^3, x^4 are formed in float32 over at most 256 positions of a sequence, token by token: x^2
is rounded, and x^2 x and x^2 x^2 are added by a fused multiply-add, which rounds them once with their sum.
These partial sums are added exactly (integers, see `add_exactly`). So the result is the same bits for any
order of sequences, any batches, threads, shards and instruction sets, and each sum of n tokens is within
256 * 2^-24 * sum |x|^p = 1.6e-5 * sum |x|^p of the true one (in practice some 1e-7 of it). A partial sum
that leaves float32 (magnitudes above 4e9 for x^4) makes its moment undefined: NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import committed_zeros, counted_rows, sum_blocks
from indexer_kernels.sequences import Sequences

POWERS = 4
# limb i counts 2^(16 i - 150); the last entry counts partial sums that left float32
LIMBS = 17
OVERFLOWED = LIMBS - 1
LOWEST = -150


@dataclass
class Moments:
    """Counts of non-finite values, range and exact sums of powers.

    nan, inf: int64 [units]; inf has both signs.
    minimum, maximum: float32 [units]; +infinity and -infinity before the first finite value.
    sums: int64 [units, 4, 17]; sum of x^p = sum over limbs i < 16 of sums[:, p - 1, i] * 2^(16 i - 150);
        limb 16 counts partial sums that left float32.
    pending: int32 [units], partial sums added since carries were settled.
    """

    nan: NDArray[np.int64]
    inf: NDArray[np.int64]
    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    sums: NDArray[np.int64]
    pending: NDArray[np.int32]
    _native: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(cls, units: int) -> Moments:
        """The moments of no tokens."""
        return cls(
            np.zeros(units, np.int64),
            np.zeros(units, np.int64),
            np.full(units, np.inf, np.float32),
            np.full(units, -np.inf, np.float32),
            committed_zeros((units, POWERS, LIMBS), np.int64),
            np.zeros(units, np.int32),
        )

    def update(self, activations: NDArray[np.float32], sequences: Sequences) -> None:
        """Take in every counted activation; activations: float32 [tokens, units]. The reference."""
        values = activations[counted_rows(sequences)]
        finite = np.isfinite(values)
        self.nan += np.isnan(values).sum(axis=0)
        self.inf += np.isinf(values).sum(axis=0)
        if len(values):
            self.minimum[:] = np.minimum(
                self.minimum, np.where(finite, values, np.inf).min(axis=0)
            ) + np.float32(0)
            self.maximum[:] = np.maximum(
                self.maximum, np.where(finite, values, -np.inf).max(axis=0)
            ) + np.float32(0)
        for rows in sum_blocks(sequences):
            x = activations[rows]
            x = np.where(np.isfinite(x), x, np.float32(0))
            with np.errstate(over="ignore", invalid="ignore"):
                square = x * x
                # cumsum adds token after token; a plain sum may pair them up
                for power, term in enumerate((x, square)):
                    add_exactly(self.sums[:, power], np.cumsum(term, axis=0, dtype=np.float32)[-1])
                for power, factor in enumerate((x, square), 2):
                    total = np.zeros(x.shape[1], np.float32)
                    for one, other in zip(square, factor, strict=True):
                        total = fused_multiply_add(one, other, total)
                    add_exactly(self.sums[:, power], total)

    def merge(self, other: Moments) -> None:
        """Take in the tokens of `other`, which are others than ours."""
        self.nan += other.nan
        self.inf += other.inf
        np.minimum(self.minimum, other.minimum, out=self.minimum)
        np.maximum(self.maximum, other.maximum, out=self.maximum)
        self.sums += other.sums
        self.settle()

    def settle(self) -> None:
        """Carry between limbs, so that equal sums have equal limbs: 0 to 65535 in all but the highest."""
        settle_carries(self.sums)
        self.pending[:] = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": None}

    def native(self) -> Any:
        """The compiled kernel's view of this state."""
        if self._native is None:
            from indexer_kernels import _cpp

            self._native = _cpp.Moments(
                self.nan, self.inf, self.minimum, self.maximum, self.sums, self.pending
            )
        return self._native

    def sums_of_powers(self) -> NDArray[np.float64]:
        """Sums of x, x^2, x^3, x^4, float64 [units, 4], rounded once or twice from the exact ones."""
        self.settle()
        exact = self.sums[..., :OVERFLOWED].copy()
        negative = exact[..., -1] < 0
        exact[negative] *= -1
        settle_carries(exact)
        total = np.zeros(exact.shape[:-1])
        for limb in range(OVERFLOWED):
            total += np.ldexp(exact[..., limb].astype(np.float64), 16 * limb + LOWEST)
        total[negative] *= -1
        total[self.sums[..., OVERFLOWED] > 0] = np.nan
        return total

    def summary(self, count: int | NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Mean, population variance, skewness and kurtosis (3 for a normal distribution), float64 [units].

        count: counted tokens, of every unit or int64 [units]. NaN where undefined: no finite value, or no
        spread for the last two.
        """
        finite = (count - self.nan - self.inf).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            m1, m2, m3, m4 = (self.sums_of_powers() / finite[:, None]).T
            # powers as products: unlike pow, they are rounded the same on every machine
            square = m1 * m1
            spread = self.maximum > self.minimum
            variance = np.where(finite > 0, np.where(spread, np.maximum(m2 - square, 0.0), 0.0), np.nan)
            third = m3 - 3 * m1 * m2 + 2 * (square * m1)
            fourth = m4 - 4 * m1 * m3 + 6 * square * m2 - 3 * (square * square)
            skewness = np.where(variance > 0, third / (variance * np.sqrt(variance)), np.nan)
            kurtosis = np.where(variance > 0, fourth / (variance * variance), np.nan)
        return {"mean": m1, "variance": variance, "skewness": skewness, "kurtosis": kurtosis}


def settle_carries(sums: Any) -> None:
    """Carry between limbs, in place, so that equal sums have equal limbs: 0 to 65535 in all but the highest.

    sums: int64 [..., 16 or more], of NumPy or of torch.
    """
    for limb in range(OVERFLOWED - 1):
        sums[..., limb + 1] += sums[..., limb] >> 16
        sums[..., limb] &= 0xFFFF


def fused_multiply_add(
    one: NDArray[np.float32], other: NDArray[np.float32], addend: NDArray[np.float32]
) -> NDArray[np.float32]:
    """one * other + addend, rounded once, as processors do; float32 of one shape.

    The product is exact in float64. The sum is rounded to odd there, after which the second rounding, to
    float32, is the only one (Boldo and Melquiond 2008).
    """
    product = one.astype(np.float64) * other
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    to_odd = (error != 0) & np.isfinite(error) & (bits & 1 == 0)
    step = np.where((error > 0) == (total > 0), 1, -1)
    return (bits + np.where(to_odd, step, 0)).view(np.float64).astype(np.float32)


def add_exactly(limbs: NDArray[np.int64], addends: NDArray[np.float32]) -> None:
    """Add a float32 to each row of limbs without rounding; limbs: int64 [units, 17], addends [units].

    A float32 is m * 2^(e - 150): limb e // 16 takes the integer m * 2^(e % 16). Non-finite addends are
    counted.
    """
    bits = addends.view(np.uint32).astype(np.int64)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    mantissa = np.where(exponent > 0, mantissa | 0x800000, mantissa)
    exponent = np.maximum(exponent, 1)
    term = np.where(bits >> 31, -1, 1) * (mantissa << (exponent & 15))
    overflowed = exponent == 0xFF
    row = np.arange(len(addends))
    limbs[row, np.where(overflowed, OVERFLOWED, exponent >> 4)] += np.where(overflowed, 1, term)
