"""The histogram on the GPU: which counter of a program's shared memory a value belongs to, and their flush.

A program counts 64 units in 512 rows of 32 words, 64 kB. A row is the upper nine bits of the value as a
float16: sign, exponent and three bits of mantissa, just as a bin has them, so that a conversion and a mask
make an address. The conversion must not round into the next row: the 16-bit types have at most ten bits of
mantissa, and of a float32 three are kept. Magnitudes below 2^-10 have 40 rows, and those from 2^14 on 17;
the flush adds them up. Small values would fall into the row of zero, so zeros take the last row of all.

A word holds two 16-bit counters, of the units that one lane reads together. Lanes are units, so a warp's 32
increments fall into 32 different words and banks, whatever the values are. Non-finite values are counted
like large ones, and taken out again by whoever meets them.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from indexer_kernels.histogram import LARGEST_EXPONENT, SMALLEST_EXPONENT
from indexer_kernels.histogram import MAGNITUDES as HOST_MAGNITUDES
from indexer_kernels.words_triton import UNITS, WARPS, WORDS, opaque, pairs, rounded_row, zero_words

ROWS = gl.constexpr(512)
MAGNITUDES = gl.constexpr(HOST_MAGNITUDES)
# Rows of either sign: the first of 2^-10, the first of 2^14, and that of infinity; those of NaN follow
FIRST_ROW = gl.constexpr(8 * (SMALLEST_EXPONENT + 15))
LARGE_ROW = gl.constexpr(8 * (LARGEST_EXPONENT + 15))
INFINITE_ROW = gl.constexpr(8 * 31)
# Rows of the counters in global memory: 195 of either sign, zero among both
RECENT_ROWS = gl.constexpr(2 * (HOST_MAGNITUDES + 1))
# 16-bit counters hold this many groups of 8 blocks of 256 positions
FLUSH_GROUPS = gl.constexpr(31)
PARTS = gl.constexpr(8)
PART_ROWS = gl.constexpr(64)


@gluon.jit
def places_of(half, zero):
    """Which counters the values belong to: two int32 [256], of even and odd units, in words.

    half: int32 [WARPS, 32], pairs of float16. zero: all bits of a half set where the value is zero.
    """
    # the lane's place in a row, in bytes, in both halves; a compiler that sees how they came about takes them
    # apart again, which costs more than it saves
    lane = gl.arange(0, UNITS // 2, gl.SliceLayout(0, WORDS))[None, :]
    lane = opaque((lane << 2) | (lane << 18)) & 0x007C007C
    place = ((half | zero) & -0x7F0080) | lane
    even, odd = (place & 0xFFFF) >> 2, ((place >> 16) & 0xFFFF) >> 2
    return gl.reshape(even, [WARPS * UNITS // 2]), gl.reshape(odd, [WARPS * UNITS // 2])


@gluon.jit
def count(counters, row, value, amount, mask, DTYPE: gl.constexpr):
    """Add `amount` to the counter of every value of a row, or of those in the mask.

    counters: shared int32 [512 * 32]. value: values_of(row). mask: [WARPS, 64], or None.
    """
    if DTYPE == gl.float32:
        kept = (value.to(gl.int32, bitcast=True) & -0x100000).to(gl.float32, bitcast=True)
        even_zero, odd_zero = pairs(value == 0.0)
        zero = gl.where(even_zero, 0xFFFF, 0) | gl.where(odd_zero, -0x10000, 0)
        half = rounded_row(kept, gl.float16)
    else:
        zero = zero_words(row)
        half = row if DTYPE == gl.float16 else rounded_row(value, gl.float16)
    even, odd = places_of(half, zero)
    if mask is None:
        counters.atomic_scatter_add(gl.full_like(even, amount), even, axis=0)
        counters.atomic_scatter_add(gl.full_like(odd, amount * 65536), odd, axis=0)
    else:
        even_mask, odd_mask = pairs(mask)
        even_mask = gl.reshape(even_mask, [WARPS * UNITS // 2])
        odd_mask = gl.reshape(odd_mask, [WARPS * UNITS // 2])
        counters.atomic_scatter_add(gl.full_like(even, amount), even, axis=0, mask=even_mask)
        counters.atomic_scatter_add(gl.full_like(odd, amount * 65536), odd, axis=0, mask=odd_mask)


@gluon.jit
def part_places(part):
    """int32 [64 * 32], where the words of a part's 64 rows stand among the counters."""
    row = part * PART_ROWS + gl.arange(0, PART_ROWS, gl.SliceLayout(1, WORDS))
    place = row[:, None] * (UNITS // 2) + gl.arange(0, UNITS // 2, gl.SliceLayout(0, WORDS))[None, :]
    return gl.reshape(place, [PART_ROWS * UNITS // 2])


@gluon.jit
def clear(counters):
    """Set all counters to zero; counters: shared int32 [512 * 32]."""
    gl.barrier()
    for part in range(PARTS):
        place = part_places(part)
        counters.scatter(gl.full_like(place, 0), place, axis=0)
    gl.barrier()


@gluon.jit
def add_words(at, word, unit, end, mask):
    """Add the two counters of words to numbers in global memory; at: that of the even unit."""
    even, odd = word & 0xFFFF, (word >> 16) & 0xFFFF
    even_mask = mask & (unit < end) & (even != 0)
    odd_mask = mask & (unit + 1 < end) & (odd != 0)
    gl.store(at, gl.load(at, even_mask, other=0) + even, even_mask)
    gl.store(at + 1, gl.load(at + 1, odd_mask, other=0) + odd, odd_mask)


@gluon.jit
def flush(counters, recent, first_unit, end, units):
    """Add the counters to those in global memory, which belong to this program alone.

    counters: shared int32 [512 * 32]. end: behind the last unit that counts. recent: int32 [390, units];
    non-negative rows, then negative ones.
    """
    gl.barrier()
    unit = first_unit + 2 * gl.arange(0, UNITS // 2, gl.SliceLayout(0, WORDS))
    # every warp has the total of all rows; the first one adds it
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, WORDS))[:, None]
    # a loop, for its addresses would be kept in registers throughout the kernel
    for part in range(PARTS):
        word = gl.reshape(counters.gather(part_places(part), axis=0), [PART_ROWS, UNITS // 2])
        word = gl.convert_layout(word, WORDS, assert_trivial=True)
        row = part * PART_ROWS + gl.arange(0, PART_ROWS, gl.SliceLayout(1, WORDS))
        negative = gl.where(gl.to_tensor(part) < PARTS // 2, 0, MAGNITUDES + 1)
        magnitude = row & (ROWS // 2 - 1)
        between = (magnitude >= FIRST_ROW) & (magnitude < LARGE_ROW)
        zero = row == ROWS - 1
        place = gl.where(zero, 0, magnitude - FIRST_ROW + 2 + negative)
        # int64: 390 rows of a million units pass 2^31 bytes
        at = recent + place.to(gl.int64)[:, None] * units + unit[None, :]
        add_words(at, word, unit[None, :], end, (between | zero)[:, None])
        # one bin has all rows that are smaller, one all that are larger; 16 bits hold either sum
        outside = (magnitude <= INFINITE_ROW) & ((magnitude < FIRST_ROW) | (magnitude >= LARGE_ROW))
        total = gl.sum(gl.where(outside[:, None], word, 0), axis=0)[None, :]
        place = gl.where(gl.to_tensor(part) % (PARTS // 2) == 0, 1, MAGNITUDES) + negative
        at = recent + place.to(gl.int64) * units + unit[None, :] + 0 * warp
        add_words(at, total, unit[None, :], end, warp == 0)
