"""Exact sums of powers: what mean, variance, skewness and kurtosis are computed from, here and nowhere else.

A sum is an integer of 304 bits, in units of 2^-150: 16 limbs of 16 bits, of which the highest has 64 and the
sign. Integers add up to the same bits in any order, so indexes merge exactly. The summary uses additions,
products, quotients and square roots alone, which IEEE 754 rounds the same everywhere: the same sums give the
same bits on every machine.
"""

from __future__ import annotations

import numpy as np

POWERS = 4
# limb i counts 2^(16 i - 150); the last entry counts partial sums that left float32
LIMBS = 17
OVERFLOWED = LIMBS - 1
LOWEST = -150
# bytes of a packed sum: 15 limbs of 16 bits and one of 64
PACKED = 38


def settle(sums: np.ndarray) -> None:
    """Carry between limbs, in place, so that equal sums have equal limbs: 0 to 65535 in all but the highest.

    sums: int64 [..., LIMBS].
    """
    for limb in range(OVERFLOWED - 1):
        sums[..., limb + 1] += sums[..., limb] >> 16
        sums[..., limb] &= 0xFFFF


def is_settled(sums: np.ndarray) -> bool:
    """Whether limbs are as `settle` leaves them; sums: int64 [..., LIMBS]."""
    return not (sums[..., : OVERFLOWED - 1] >> 16).any()


def pack(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Settled sums as bytes: uint8 [units, POWERS, PACKED], each a little-endian two's complement integer in
    units of 2^-150; and int64 [units, POWERS], the partial sums that left float32.

    sums: int64 [units, POWERS, LIMBS].
    """
    packed = np.empty((*sums.shape[:-1], PACKED), np.uint8)
    packed[..., :30] = np.ascontiguousarray(sums[..., :15]).astype("<u2").view(np.uint8)
    packed[..., 30:] = np.ascontiguousarray(sums[..., 15:OVERFLOWED]).astype("<i8").view(np.uint8)
    return packed, np.ascontiguousarray(sums[..., OVERFLOWED])


def unpack(packed: np.ndarray, overflowed: np.ndarray) -> np.ndarray:
    """The inverse of `pack`: settled sums, int64 [units, POWERS, LIMBS]."""
    sums = np.empty((*packed.shape[:-1], LIMBS), np.int64)
    sums[..., :15] = np.ascontiguousarray(packed[..., :30]).view("<u2")
    sums[..., 15:OVERFLOWED] = np.ascontiguousarray(packed[..., 30:]).view("<i8")
    sums[..., OVERFLOWED] = overflowed
    return sums


def exact_sums(values: np.ndarray) -> np.ndarray:
    """Settled sums equal to the given numbers, as far as they are multiples of 2^-150; int64 [..., LIMBS].

    values: finite float64 below 2^127. What lies below 2^-150 is cut off.
    """
    fraction, exponent = np.frexp(values)
    # 53 bits in two parts of 26 and 27: shifted by up to 15, neither leaves 64 bits
    mantissa = np.ldexp(fraction, 53).astype(np.int64)
    sums = np.zeros((*np.shape(values), LIMBS), np.int64)
    for part, place in ((mantissa >> 27, exponent - 26), (mantissa & ((1 << 27) - 1), exponent - 53)):
        bit = place - LOWEST
        part = part >> np.clip(-bit, 0, 63)
        bit = np.maximum(bit, 0)
        limb = (bit >> 4)[..., None]
        term = (part << (bit & 15))[..., None]
        np.put_along_axis(sums, limb, np.take_along_axis(sums, limb, axis=-1) + term, axis=-1)
    settle(sums)
    return sums


def sums_of_powers(sums: np.ndarray) -> np.ndarray:
    """Sums of x, x^2, x^3, x^4 as float64 [units, POWERS], rounded once or twice from the exact ones.

    sums: settled, int64 [units, POWERS, LIMBS]. NaN where a partial sum left float32.
    """
    exact = sums[..., :OVERFLOWED].copy()
    negative = exact[..., -1] < 0
    exact[negative] *= -1
    for limb in range(OVERFLOWED - 1):
        exact[..., limb + 1] += exact[..., limb] >> 16
        exact[..., limb] &= 0xFFFF
    total = np.zeros(exact.shape[:-1])
    for limb in range(OVERFLOWED):
        total += np.ldexp(exact[..., limb].astype(np.float64), 16 * limb + LOWEST)
    total[negative] *= -1
    total[sums[..., OVERFLOWED] > 0] = np.nan
    return total


def summary(
    sums: np.ndarray, finite: np.ndarray, minimum: np.ndarray, maximum: np.ndarray
) -> dict[str, np.ndarray]:
    """Mean, population variance, skewness and kurtosis (3 for a normal distribution), float64 [units].

    sums: settled, int64 [units, POWERS, LIMBS]. finite: int64 [units], values that are in them.
    minimum, maximum: float32 [units]. NaN where undefined: no finite value, or no spread for the last two.
    """
    number = finite.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        m1, m2, m3, m4 = (sums_of_powers(sums) / number[:, None]).T
        square = m1 * m1
        spread = maximum > minimum
        variance = np.where(number > 0, np.where(spread, np.maximum(m2 - square, 0.0), 0.0), np.nan)
        third = m3 - 3 * m1 * m2 + 2 * (square * m1)
        fourth = m4 - 4 * m1 * m3 + 6 * square * m2 - 3 * (square * square)
        skewness = np.where(variance > 0, third / (variance * np.sqrt(variance)), np.nan)
        kurtosis = np.where(variance > 0, fourth / (variance * variance), np.nan)
    return {"mean": m1, "variance": variance, "skewness": skewness, "kurtosis": kurtosis}
