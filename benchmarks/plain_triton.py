"""What the fused kernel is measured against on a GPU: itself without statistics, and shared memory alone.

`activate_groups` is `gather` of statistics_triton less all statistics: the same programs take the same rows
in the same order, through the same functions. `add_in_shared` does nothing but count in shared memory.
"""

from __future__ import annotations

import torch
from indexer_kernels.activations_triton import activate_other_rows, activate_row
from indexer_kernels.histogram_triton import ROWS, clear
from indexer_kernels.plan import Plan
from indexer_kernels.statistics_triton import FLAT, UNROLLED_TOKENS, activated_rows
from indexer_kernels.words_triton import UNITS, VALUES, WARPS, WORDS
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Atomics of a thread in one step of `add_in_shared`
PLACES = gl.constexpr(8)


@gluon.jit
def activate_groups(
    gate, up, out, gate_stride: gl.constexpr, up_stride: gl.constexpr, out_stride: gl.constexpr, units,
    counted, block_row, block_span, group_run, groups,
    FUNCTION: gl.constexpr, GATED: gl.constexpr, WHOLE: gl.constexpr,
):  # fmt: skip
    """Activate the blocks of a split, 64 units of them; arguments and grid are those of `gather`."""
    unit = gl.program_id(0) * UNITS + gl.arange(0, UNITS, gl.SliceLayout(0, VALUES))
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, VALUES))
    inside = (unit < units)[None, :]
    for group in range(gl.program_id(1), groups, gl.num_programs(1)):
        row = gl.load(block_row + group * WARPS + warp)
        span = gl.load(block_span + group * WARPS + warp)
        gate_at = gate + (row * gate_stride)[:, None] + unit[None, :]
        up_at = up + (row * up_stride)[:, None] + unit[None, :]
        out_at = out + (row * out_stride)[:, None] + unit[None, :]
        run = 0
        if WHOLE:
            run = gl.load(group_run + group)
            for _ in range(0, run, UNROLLED_TOKENS):
                activated_rows(
                    gate_at, up_at, out_at, gate_stride, up_stride, out_stride,
                    UNROLLED_TOKENS, FUNCTION, GATED,
                )  # fmt: skip
                gate_at += UNROLLED_TOKENS * gate_stride
                up_at += UNROLLED_TOKENS * up_stride
                out_at += UNROLLED_TOKENS * out_stride
        for token in range(run, gl.max(span, axis=0)):
            taken = (token < span) & (gl.load(counted + row + token, token < span, other=0) != 0)
            activate_row(gate_at, up_at, out_at, taken[:, None] & inside, FUNCTION, GATED)
            gate_at += gate_stride
            up_at += up_stride
            out_at += out_stride


def activate_plain(
    function: str, gate: Tensor, up: Tensor | None, out: Tensor, plan: Plan, splits: int
) -> None:
    """Write f(gate), or f(gate) * up, to `out`; all rows are written, padding too.

    gate, up, out: [tokens, units] of one 16-bit dtype, any row strides. splits: as many as the statistics
    that this is compared with have.
    """
    units = gate.shape[1]
    activate_other_rows(function, gate, up, out, plan)
    factor = gate if up is None else up
    activate_groups[(-(-units // UNITS.value), splits)](
        gate, factor, out, gate.stride(0), factor.stride(0), out.stride(0), units,
        plan.counted, plan.block_row, plan.block_span, plan.group_run, plan.groups,
        FUNCTION=function, GATED=up is not None, WHOLE=units % UNITS.value == 0,
        num_warps=WARPS.value, enable_fp_fusion=False,
    )  # fmt: skip


@gluon.jit
def add_in_shared(row, total, steps):
    """Count in PLACES places per thread and step, as `count` does: lanes are columns, counters half words.

    row: int32 [PLACES, 8, 32], which row of the counters each thread's places stand in. total: int32
    [programs], the sum of all 16-bit counters.
    """
    counters = gl.allocate_shared_memory(gl.int32, [ROWS * UNITS // 2], FLAT)
    clear(counters)
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, WORDS))[:, None]
    lane = gl.arange(0, UNITS // 2, gl.SliceLayout(0, WORDS))[None, :]
    places = ()
    for number in gl.static_range(PLACES):
        own = gl.load(row + (number * WARPS + warp) * (UNITS // 2) + lane)
        places = places + (gl.reshape(own * (UNITS // 2) + lane, [WARPS * UNITS // 2]),)
    for _ in range(steps):
        for number in gl.static_range(PLACES):
            added = 1 if number % 2 == 0 else 65536
            counters.atomic_scatter_add(gl.full_like(places[number], added), places[number], axis=0)
    gl.barrier()
    counted = gl.to_tensor(0)
    for part in range(ROWS // WARPS):
        place = part * WARPS * (UNITS // 2) + warp * (UNITS // 2) + lane
        word = counters.gather(gl.reshape(place, [WARPS * UNITS // 2]), axis=0)
        counted += gl.sum((word & 0xFFFF) + ((word >> 16) & 0xFFFF), axis=0)
    gl.store(total + gl.program_id(0), counted)


def count_in_shared(programs: int, steps: int, row: Tensor) -> Tensor:
    """Every thread of `programs` programs of 256 adds to 8 shared 16-bit counters, `steps` times.

    row: int32 [8, 8, 32] below 512. steps: so few that no counter passes 65,535. Returns int32 [programs],
    how much each program counted.
    """
    total = torch.empty(programs, dtype=torch.int32, device=row.device)
    add_in_shared[(programs,)](row, total, steps, num_warps=WARPS.value)
    return total
