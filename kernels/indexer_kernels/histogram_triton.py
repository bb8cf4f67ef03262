"""The histogram on the GPU: which counter of a program's shared memory a value belongs to, and their flush.

A program counts 64 units in 512 rows of 32 words, 64 kB. A row is a bin: 0 is zero, 1 to 194 are the
magnitudes, and 256 more are those of negative values, so that no branch and no table is needed. A word
holds two 16-bit counters, of the units that one lane reads together. Lanes are units, so a warp's 32
increments fall into 32 different words and banks, whatever the values are. Non-finite values are counted with
the largest magnitudes and taken out again by whoever meets them.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from indexer_kernels.histogram import MAGNITUDES as HOST_MAGNITUDES

ROWS = gl.constexpr(512)
MAGNITUDES = gl.constexpr(HOST_MAGNITUDES)
# (bits >> 20) of 2^-10, less the row that it opens
ROW_OFFSET = gl.constexpr(((127 - 10) << 3) - 2)
# Rows of the counters in global memory: 195 of either sign, zero among both
RECENT_ROWS = gl.constexpr(2 * (HOST_MAGNITUDES + 1))
# 16-bit counters hold this many groups of 8 blocks of 256 positions
FLUSH_GROUPS = gl.constexpr(31)
PARTS = gl.constexpr(8)
PART_ROWS = gl.constexpr(64)


@gluon.jit
def histogram_row(value):
    """value: float32 of any shape; int32 of the same shape."""
    bits = value.to(gl.int32, bitcast=True)
    # NaN as well as infinity becomes 2^14, whose row is the last one
    magnitude = gl.minimum(gl.abs(value), 16384.0).to(gl.uint32, bitcast=True).to(gl.int32)
    row = gl.maximum((magnitude >> 20) - ROW_OFFSET, gl.minimum(magnitude, 1))
    return row | ((bits >> 23) & (ROWS // 2))


@gluon.jit
def count(counters, value, amount, mask):
    """Add `amount` to the counter of every value; value: float32 [WARPS, 64], counters: shared [512, 32]."""
    row = histogram_row(value)
    even, odd = gl.split(gl.reshape(row, [row.shape[0], 32, 2]))
    if mask is None:
        counters.atomic_scatter_add(gl.full_like(even, amount), even, axis=0)
        counters.atomic_scatter_add(gl.full_like(odd, amount * 65536), odd, axis=0)
    else:
        even_mask, odd_mask = gl.split(gl.reshape(mask, [row.shape[0], 32, 2]))
        counters.atomic_scatter_add(gl.full_like(even, amount), even, axis=0, mask=even_mask)
        counters.atomic_scatter_add(gl.full_like(odd, amount * 65536), odd, axis=0, mask=odd_mask)


@gluon.jit
def clear(counters, LAYOUT: gl.constexpr):
    """Set all counters to zero; counters: shared [8, 64, 32]."""
    gl.barrier()
    for part in range(PARTS):
        counters.index(part).store(gl.full([PART_ROWS, 32], 0, gl.int32, LAYOUT))
    gl.barrier()


@gluon.jit
def flush(counters, recent, first_unit, units, LAYOUT: gl.constexpr):
    """Add the counters to those in global memory, which belong to this program alone.

    counters: shared [8, 64, 32]. recent: int32 [390, units]; non-negative rows, then negative ones.
    """
    gl.barrier()
    # a loop, for its addresses would be kept in registers throughout the kernel
    for part in range(PARTS):
        word = counters.index(part).load(LAYOUT)
        row = part * PART_ROWS + gl.arange(0, PART_ROWS, gl.SliceLayout(1, LAYOUT))
        magnitude = row & (ROWS // 2 - 1)
        place = magnitude + gl.where(row < ROWS // 2, 0, MAGNITUDES + 1)
        used = magnitude <= MAGNITUDES
        unit = first_unit + 2 * gl.arange(0, 32, gl.SliceLayout(0, LAYOUT))
        # int64: 390 rows of a million units pass 2^31 bytes
        at = recent + place.to(gl.int64)[:, None] * units + unit[None, :]
        even, odd = word & 0xFFFF, (word >> 16) & 0xFFFF
        even_mask = used[:, None] & (unit < units)[None, :] & (even != 0)
        odd_mask = used[:, None] & (unit + 1 < units)[None, :] & (odd != 0)
        gl.store(at, gl.load(at, even_mask, other=0) + even, even_mask)
        gl.store(at + 1, gl.load(at + 1, odd_mask, other=0) + odd, odd_mask)
