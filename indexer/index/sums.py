"""Exact sums of powers as an index holds them: integers of 304 bits, in units of 2^-150."""

from __future__ import annotations

import numpy as np
from indexer_kernels.moments import LIMBS, OVERFLOWED

# bytes of a packed sum: 15 limbs of 16 bits and one of 64
PACKED = 38


def pack(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Settled sums as bytes: uint8 [units, POWERS, PACKED], each a little-endian two's complement integer in
    units of 2^-150; and int64 [units, POWERS], the partial sums that left float32.

    sums: int64 [units, POWERS, LIMBS].
    """
    assert not (sums[..., : OVERFLOWED - 1] >> 16).any(), "sums are packed before they are settled"
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
