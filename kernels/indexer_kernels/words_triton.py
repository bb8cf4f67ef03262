"""Rows of a program's 64 units as the hot loop holds them: in 16 bits, two neighbouring units to a word.

A row is int32 [WARPS, 32], the even unit in the lower half, where DTYPE is bfloat16 or float16, so that one
instruction does the work of two; in float32 it is its values, [WARPS, 64]. The packed instructions have no
names in the language, so they stand here as assembly, one to a function; all exist from sm_80 on.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.language import PropagateNan

from indexer_kernels.plan import GROUP_BLOCKS

WARPS = gl.constexpr(GROUP_BLOCKS)
UNITS = gl.constexpr(64)
# [WARPS, 64] values, and [WARPS, 32] words of which every lane has one
VALUES = gl.constexpr(gl.BlockedLayout([1, 2], [1, 32], [GROUP_BLOCKS, 1], [1, 0]))
WORDS = gl.constexpr(gl.BlockedLayout([1, 1], [1, 32], [GROUP_BLOCKS, 1], [1, 0]))
KEEP_NAN = gl.constexpr(PropagateNan.ALL)
# The sign bits of a word: -0 twice
SIGNS = gl.constexpr(-0x7FFF8000)


@gluon.jit
def pairs(value):
    """The even and the odd units of [WARPS, 64], as two [WARPS, 32]."""
    even, odd = gl.split(gl.reshape(value, [WARPS, UNITS // 2, 2]))
    even = gl.convert_layout(even, WORDS, assert_trivial=True)
    return even, gl.convert_layout(odd, WORDS, assert_trivial=True)


@gluon.jit
def unpaired(even, odd):
    """[WARPS, 64] of even and odd units."""
    both = gl.reshape(gl.join(even, odd), [WARPS, UNITS])
    return gl.convert_layout(both, VALUES, assert_trivial=True)


@gluon.jit
def row_of(read, DTYPE: gl.constexpr):
    """The row of [WARPS, 64] in DTYPE."""
    if DTYPE == gl.float32:
        return read
    else:
        even, odd = pairs(read.to(gl.uint16, bitcast=True).to(gl.uint32))
        return (even | (odd << 16)).to(gl.int32, bitcast=True)


@gluon.jit
def stored_of(row, DTYPE: gl.constexpr):
    """[WARPS, 64] in DTYPE of a row."""
    if DTYPE == gl.float32:
        return row
    else:
        return unpaired(row.to(gl.int16), (row >> 16).to(gl.int16)).to(DTYPE, bitcast=True)


@gluon.jit
def values_of(row, DTYPE: gl.constexpr):
    """float32 [WARPS, 64] of a row."""
    if DTYPE == gl.bfloat16:
        even = (row << 16).to(gl.float32, bitcast=True)
        return unpaired(even, (row & -65536).to(gl.float32, bitcast=True))
    else:
        return stored_of(row, DTYPE).to(gl.float32)


@gluon.jit
def rounded_row(value, DTYPE: gl.constexpr):
    """The row of float32 values, each to nearest, ties to even."""
    if DTYPE == gl.float32:
        return value
    else:
        even, odd = pairs(value)
        if DTYPE == gl.bfloat16:
            return bfloat16_words(even, odd)
        else:
            return float16_words(even, odd)


@gluon.jit
def positive_row(row, DTYPE: gl.constexpr):
    """A row with 0 where it is negative; NaN stays."""
    if DTYPE == gl.float32:
        return gl.maximum(row, 0.0, propagate_nan=KEEP_NAN)
    else:
        return positive_words(row, "bf16x2" if DTYPE == gl.bfloat16 else "f16x2")


@gluon.jit
def product_row(row, other, DTYPE: gl.constexpr):
    """The product of two rows, rounded once."""
    if DTYPE == gl.float32:
        return row * other
    else:
        return product_words(row, other, "bf16x2" if DTYPE == gl.bfloat16 else "f16x2")


@gluon.jit
def largest_row(row, one, other, DTYPE: gl.constexpr):
    """The largest of each unit in three rows; of a number and NaN, the number."""
    if DTYPE == gl.float32:
        return gl.maximum(gl.maximum(row, one), other)
    else:
        return extreme_words(row, one, other, "max", "bf16x2" if DTYPE == gl.bfloat16 else "f16x2")


@gluon.jit
def smallest_row(row, one, other, DTYPE: gl.constexpr):
    """The smallest of each unit in three rows; of a number and NaN, the number."""
    if DTYPE == gl.float32:
        return gl.minimum(gl.minimum(row, one), other)
    else:
        return extreme_words(row, one, other, "min", "bf16x2" if DTYPE == gl.bfloat16 else "f16x2")


@gluon.jit
def bfloat16_words(even, odd):
    return gl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [even, odd], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def float16_words(even, odd):
    """Words of float32 values [WARPS, 32] as float16, to nearest, ties to even; infinite beyond it."""
    return gl.inline_asm_elementwise(
        "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [even, odd], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def zero_words(word):
    """All bits of a half where it is 0 or -0, none elsewhere; a zero looks the same in both dtypes."""
    return gl.inline_asm_elementwise(
        "set.eq.u32.f16x2 $0, $1, $2;", "=r,r,r", [word, gl.full_like(word, 0)],
        dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def positive_words(word, TYPE: gl.constexpr):
    return gl.inline_asm_elementwise(
        "max.NaN." + TYPE + " $0, $1, $2;", "=r,r,r", [word, gl.full_like(word, 0)],
        dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def positive_or_nan(word):
    """0 where a bfloat16 is negative, NaN where it is -infinity; NaN stays."""
    return gl.inline_asm_elementwise(
        "{.reg .b32 low; min.bf16x2 low, $1, $2; fma.rn.bf16x2 low, low, $2, $2; "
        "max.NaN.bf16x2 $0, $1, low;}", "=r,r,r",
        [word, gl.full_like(word, 0)], dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def negative_sizes(word, LIMIT: gl.constexpr):
    """-min(|word|, LIMIT) of bfloat16; of NaN, -LIMIT. LIMIT: the bits of a word."""
    # Sizes in both types are in the order of their bits, and what float16 takes for NaN loses to a number.
    # Of float16 alone the maximum takes sign and size in its stride: one instruction.
    return gl.inline_asm_elementwise(
        "{.reg .b32 size; abs.f16x2 size, $1; neg.f16x2 size, size; max.f16x2 $0, size, $2;}", "=r,r,r",
        [word, gl.full_like(word, LIMIT + SIGNS)], dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def product_words(word, other, TYPE: gl.constexpr):
    # a product plus -0, for sm_80 has no product alone in bfloat16
    return sum_words(word, other, gl.full_like(word, SIGNS), TYPE)


@gluon.jit
def sum_words(word, factor, addend, TYPE: gl.constexpr):
    """word * factor + addend, rounded once."""
    return gl.inline_asm_elementwise(
        "fma.rn." + TYPE + " $0, $1, $2, $3;", "=r,r,r,r", [word, factor, addend],
        dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def extreme_words(word, one, other, END: gl.constexpr, TYPE: gl.constexpr):
    # one instruction from sm_90 on
    return gl.inline_asm_elementwise(
        "{.reg .b32 two; " + END + "." + TYPE + " two, $1, $2; " + END + "." + TYPE + " $0, two, $3;}",
        "=r,r,r,r", [word, one, other], dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def opaque(word):
    """The same; the compiler cannot see through it."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [word], dtype=gl.int32, is_pure=True, pack=1)
