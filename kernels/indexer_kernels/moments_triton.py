"""The moments on the GPU: four float32 sums that ride in registers, and their exact addition to integer
limbs.

A unit's sums over 256 positions stay with one lane from the first to the last, so that tokens are added one
after another as the reference does. Two multiply-adds are fused, as there; all else is rounded one by one, so
the kernel must be compiled without further ones (`enable_fp_fusion=False`).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from indexer_kernels.moments import LIMBS as HOST_LIMBS
from indexer_kernels.moments import POWERS as HOST_POWERS

POWERS = gl.constexpr(HOST_POWERS)
LIMBS = gl.constexpr(HOST_LIMBS)


@gluon.jit
def add_powers(value, sum1, sum2, sum3, sum4):
    """The sums of x, x^2, x^3, x^4 with another value in them; all float32 of one shape."""
    square = value * value
    return sum1 + value, sum2 + square, gl.fma(square, value, sum3), gl.fma(square, square, sum4)


@gluon.jit
def is_finite(value):
    """Whether a float32 is neither infinite nor NaN, by its bits."""
    return (value.to(gl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000


@gluon.jit
def add_exactly(sums, addend, units, mask):
    """Add float32 addends to integer limbs without rounding; see moments.add_exactly.

    sums: pointers to limb 0 of each addend's sum; limbs are `units` int64 apart. No two addends share a sum.
    """
    bits = addend.to(gl.int32, bitcast=True)
    exponent = (bits >> 23) & 0xFF
    mantissa = bits & 0x7FFFFF
    mantissa = gl.where(exponent > 0, mantissa | 0x800000, mantissa).to(gl.int64)
    overflowed = exponent == 0xFF
    exponent = gl.maximum(exponent, 1)
    term = mantissa << (exponent & 15).to(gl.int64)
    term = gl.where(overflowed, 1, gl.where(bits < 0, -term, term))
    limb = sums + gl.where(overflowed, LIMBS - 1, exponent >> 4).to(gl.int64) * units
    gl.store(limb, gl.load(limb, mask, other=0) + term, mask)
