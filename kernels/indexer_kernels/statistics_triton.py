"""Kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from indexer_kernels import topk_triton
from indexer_kernels.activations_triton import activate_other_rows, activate_row
from indexer_kernels.histogram_triton import FLUSH_GROUPS, PARTS, RECENT_ROWS, ROWS, clear, count, flush
from indexer_kernels.moments_triton import LIMBS, POWERS, add_exactly, add_powers, is_finite
from indexer_kernels.plan import Plan

UNITS = gl.constexpr(64)
WARPS = gl.constexpr(8)
UNROLLED = gl.constexpr(8)
# Lanes are units: a warp reads 64 adjacent units of one token, and each of the warps has a block of its own.
VALUES = gl.constexpr(gl.BlockedLayout([1, 2], [1, 32], [8, 1], [1, 0]))
WORDS = gl.constexpr(gl.BlockedLayout([1, 1], [1, 32], [8, 1], [1, 0]))
ROW_BY_ROW = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
SUMS = gl.constexpr(gl.BlockedLayout([1, 1], [1, 32], [4, 2], [1, 0]))


@gluon.jit
def add_value(value, mask, counters, sum1, sum2, sum3, sum4, high, low):
    """One value of every lane into histogram, sums and extremes; where mask is None, all of them count."""
    count(counters, value, 1, mask)
    high_value, low_value, summed = value, value, value
    if mask is not None:
        high_value = gl.where(mask, value, float("-inf"))
        low_value = gl.where(mask, value, float("inf"))
        summed = gl.where(mask, value, 0.0)
    sum1, sum2, sum3, sum4 = add_powers(summed, sum1, sum2, sum3, sum4)
    return sum1, sum2, sum3, sum4, gl.maximum(high, high_value), gl.minimum(low, low_value)


@gluon.jit
def read_finite(read, stride, row, span, counted, unit, inside, counters):
    """Sums and extremes of a group again, its non-finite values counted, left out, and taken from the bins."""
    sum1 = gl.full([WARPS, UNITS], 0.0, gl.float32, VALUES)
    sum2, sum3, sum4 = sum1, sum1, sum1
    high = gl.full([WARPS, UNITS], float("-inf"), gl.float32, VALUES)
    low = gl.full([WARPS, UNITS], float("inf"), gl.float32, VALUES)
    nans = gl.full([WARPS, UNITS], 0, gl.int32, VALUES)
    infs = nans
    for token in range(gl.max(span, axis=0)):
        taken = (token < span) & (gl.load(counted + row + token, token < span, other=0) != 0)
        mask = taken[:, None] & inside
        at = read + ((row + token) * stride)[:, None] + unit[None, :]
        value = gl.load(at, mask, other=0.0).to(gl.float32)
        finite = is_finite(value)
        count(counters, value, -1, mask & ~finite)
        is_nan = value != value
        nans += gl.where(mask & is_nan, 1, 0)
        infs += gl.where(mask & ~finite & ~is_nan, 1, 0)
        mask = mask & finite
        high = gl.maximum(high, gl.where(mask, value, float("-inf")))
        low = gl.minimum(low, gl.where(mask, value, float("inf")))
        sum1, sum2, sum3, sum4 = add_powers(gl.where(mask, value, 0.0), sum1, sum2, sum3, sum4)
    return sum1, sum2, sum3, sum4, high, low, nans, infs


@gluon.jit
def add_to_unit(state, addend, mask):
    """Add [WARPS, UNITS] counts, summed over warps, to one number per unit; int64 pointers [UNITS]."""
    gl.store(state, gl.load(state, mask, other=0) + gl.sum(addend, axis=0).to(gl.int64), mask)


@gluon.jit
def gather(
    gate, up, out, gate_stride, up_stride, out_stride, units,
    counted, block_row, block_span, block_document, group_run, groups,
    recent, sums, nan, inf, minimum, maximum, block_maximum, block_minimum,
    top_bar, top_document, bottom_bar, bottom_document, top_hits, bottom_hits,
    FUNCTION: gl.constexpr, GATED: gl.constexpr, WHOLE: gl.constexpr,
):  # fmt: skip
    """doc"""
    parts = gl.allocate_shared_memory(gl.int32, [PARTS, ROWS // PARTS, 32], ROW_BY_ROW)
    counters = parts.reinterpret(gl.int32, [ROWS, 32], ROW_BY_ROW)
    partial = gl.allocate_shared_memory(gl.float32, [POWERS * WARPS, UNITS], ROW_BY_ROW)
    # in 64 bits a step is one addition to each pointer; 32 bits would be widened at every row
    gate_stride, up_stride, out_stride = (
        gl.to_tensor(gate_stride).to(gl.int64), gl.to_tensor(up_stride).to(gl.int64), gl.to_tensor(out_stride).to(gl.int64)
    )
    first_unit = gl.program_id(0) * UNITS
    split = gl.program_id(1).to(gl.int64)
    unit = first_unit + gl.arange(0, UNITS, gl.SliceLayout(0, VALUES))
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, VALUES))
    real = unit < units
    inside = real[None, :]
    top_value = gl.load(top_bar + unit, real, other=float("inf"))[None, :]
    top_last = gl.load(top_document + unit, real, other=-1)[None, :]
    bottom_value = gl.load(bottom_bar + unit, real, other=float("-inf"))[None, :]
    bottom_last = gl.load(bottom_document + unit, real, other=-1)[None, :]
    top_hit = gl.full([WARPS, UNITS], 0, gl.int32, VALUES)
    bottom_hit = gl.full([WARPS, UNITS], 0, gl.int32, VALUES)
    highest = gl.full([WARPS, UNITS], float("-inf"), gl.float32, VALUES)
    lowest = gl.full([WARPS, UNITS], float("inf"), gl.float32, VALUES)
    splits = gl.num_programs(1)
    for first_group in range(gl.program_id(1), groups, splits * FLUSH_GROUPS):
        clear(parts, WORDS)
        for group in range(first_group, gl.minimum(groups, first_group + splits * FLUSH_GROUPS), splits):
            block = group * WARPS + warp
            row = gl.load(block_row + block)
            span = gl.load(block_span + block)
            sum1 = gl.full([WARPS, UNITS], 0.0, gl.float32, VALUES)
            sum2, sum3, sum4 = sum1, sum1, sum1
            high = gl.full([WARPS, UNITS], float("-inf"), gl.float32, VALUES)
            low = gl.full([WARPS, UNITS], float("inf"), gl.float32, VALUES)
            gate_at = gate + (row * gate_stride)[:, None] + unit[None, :]
            up_at = up + (row * up_stride)[:, None] + unit[None, :]
            out_at = out + (row * out_stride)[:, None] + unit[None, :]
            run = 0
            if WHOLE:
                run = gl.load(group_run + group)
                for token in range(0, run, UNROLLED):
                    for ahead in gl.static_range(UNROLLED):
                        value = activate_row(
                            gate_at + ahead * gate_stride, up_at + ahead * up_stride, out_at + ahead * out_stride,
                            None, FUNCTION, GATED,
                        )  # fmt: skip
                        sum1, sum2, sum3, sum4, high, low = add_value(
                            value, None, counters, sum1, sum2, sum3, sum4, high, low
                        )
                    gate_at += UNROLLED * gate_stride
                    up_at += UNROLLED * up_stride
                    out_at += UNROLLED * out_stride
            for token in range(run, gl.max(span, axis=0)):
                taken = (token < span) & (gl.load(counted + row + token, token < span, other=0) != 0)
                mask = taken[:, None] & inside
                value = activate_row(gate_at, up_at, out_at, mask, FUNCTION, GATED)
                sum1, sum2, sum3, sum4, high, low = add_value(
                    value, mask, counters, sum1, sum2, sum3, sum4, high, low
                )
                gate_at += gate_stride
                up_at += up_stride
                out_at += out_stride

            # a NaN or an infinity, and rarely a power beyond float32, shows up in the largest power's sum
            odd = gl.max(gl.max(gl.where(is_finite(sum4), 0, 1), axis=1), axis=0)
            if odd != 0:
                read, stride = (gate, gate_stride) if FUNCTION == "plain" else (out, out_stride)
                sum1, sum2, sum3, sum4, high, low, nans, infs = read_finite(
                    read, stride, row, span, counted, unit, inside, counters
                )
                add_to_unit(nan + split * units + unit, nans, real)
                add_to_unit(inf + split * units + unit, infs, real)

            at = block.to(gl.int64)[:, None] * units + unit[None, :]
            gl.store(block_maximum + at, high, inside)
            gl.store(block_minimum + at, low, inside)
            highest, lowest = gl.maximum(highest, high), gl.minimum(lowest, low)
            document = gl.load(block_document + block)[:, None]
            beats_top = (high > top_value) | ((high == top_value) & (document <= top_last))
            beats_bottom = (low < bottom_value) | ((low == bottom_value) & (document <= bottom_last))
            top_hit = gl.where(beats_top, 1, top_hit)
            bottom_hit = gl.where(beats_bottom, 1, bottom_hit)
            # of the four sums of eight blocks, a thread adds those of one unit and power, block after block
            place = (warp * POWERS)[:, None]
            gl.barrier()
            partial.scatter(sum1, place, axis=0)
            partial.scatter(sum2, place + 1, axis=0)
            partial.scatter(sum3, place + 2, axis=0)
            partial.scatter(sum4, place + 3, axis=0)
            gl.barrier()
            power = gl.arange(0, POWERS, gl.SliceLayout(1, SUMS)).to(gl.int64)
            summed = first_unit + gl.arange(0, UNITS, gl.SliceLayout(0, SUMS))
            limbs = sums + ((split * POWERS + power) * LIMBS * units)[:, None] + summed[None, :]
            for number in gl.static_range(WARPS):
                addend = partial.slice(number * POWERS, POWERS).load(SUMS)
                add_exactly(limbs, addend, units, (summed < units)[None, :])
        flush(parts, recent + split * RECENT_ROWS * units, first_unit, units, WORDS)

    unit_at = split * units + unit
    gl.store(maximum + unit_at, gl.maximum(gl.load(maximum + unit_at, real), gl.max(highest, axis=0)) + 0.0, real)
    gl.store(minimum + unit_at, gl.minimum(gl.load(minimum + unit_at, real), gl.min(lowest, axis=0)) + 0.0, real)
    gl.store(top_hits + unit_at, gl.max(top_hit, axis=0), real)
    gl.store(bottom_hits + unit_at, gl.max(bottom_hit, axis=0), real)


def launch(
    function: str, gate: Tensor, up: Tensor | None, out: Tensor, arrays: Sequence[Tensor],
    bars: Sequence[Tensor], sums: Sequence[Tensor], top: Sequence[Tensor], bottom: Sequence[Tensor],
    window: Sequence[int], by: str,
) -> None:  # fmt: skip
    """Take one batch of one layer in.

    function: a name in activations.FUNCTIONS, or "plain" where `out` holds the activations already.
    gate, up, out: [tokens, units] of one dtype, any row strides. arrays: the tensors of a Plan.
    bars: DeviceStatistics.bars(); sums, top, bottom: the tensors of these states, empty lists for an end that is
        not kept. window: tokens before and after a peak. by: what competes.
    """
    plan = Plan(*arrays)
    units = gate.shape[1]
    if function != "plain":
        activate_other_rows(function, gate, up, out, plan)
    if not plan.blocks:
        return
    splits = sums[0].shape[0]
    extremes = torch.empty(2, plan.blocks, units, device=gate.device)
    hits = torch.empty(2, splits, units, dtype=torch.int32, device=gate.device)
    factor = gate if up is None else up
    gather[(-(-units // UNITS.value), splits)](
        gate, factor, out, gate.stride(0), factor.stride(0), out.stride(0), units,
        plan.counted, plan.block_row, plan.block_span, plan.block_document, plan.group_run, plan.groups,
        *sums, *extremes, *bars, *hits,
        FUNCTION=function, GATED=up is not None, WHOLE=units % UNITS.value == 0,
        num_warps=WARPS.value, enable_fp_fusion=False,
    )  # fmt: skip
    for end, places in enumerate((top, bottom)):
        if places:
            topk_triton.launch(out, plan, extremes[end], hits[end], places, window, by, largest=end == 0)
