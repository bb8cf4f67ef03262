"""All statistics of a layer over a batch in one read on the GPU, riding on the activation function.

A program takes 64 units and walks over blocks of up to 256 positions, one to each of its eight warps. Lanes
are units, two to a lane, and a warp reads one token's 128 bytes (in 16 bits) at a time: sums and extremes
stay in registers, and every value adds one to a counter in shared memory (histogram_triton). After a block
its sums go to integers (moments_triton), its extremes to memory, and each unit notes whether they reach the
running k-th value; then topk_triton looks at the units for which one did. No number in global memory is
shared between programs, so there are no atomics there: each split of a batch has sums and counters of its
own.

Rows that count without a gap run through a loop without masks, eight tokens to a turn, two 16-bit units to
an instruction where there is one (words_triton); those behind a gap go one by one. Values are not checked
there: NaN and infinities show up in the sum of x^4, and only then is a group read again.

Where units come in parts that meet some tokens each, as experts do, one launch takes all parts: a program's
64 units are of one part, which has a table of blocks of its own (plan.Plan). The loop is the same.

Roofline. H200: 4.3 TB/s copied; 132 multiprocessors issue 29.6e12 lane-instructions/s at an ASSUMED 1.755
GHz. Bytes and instructions per element in bfloat16, the latter counted in the compiled loop for sm_90
(`python -m benchmarks compile`). Times are predicted from these two alone; what an H100 measured stands in
benchmarks/README.md. The statistics are free where memory takes longer than issuing: up to 13.8 instructions
for 2 bytes.

| | bytes | instructions | memory, ps | issue, ps |
|---|---|---|---|---|
| update | 2 | 11.4 | 0.47 | 0.38 |
| ReLU | 4 | 12.4 | 0.93 | 0.42 |
| ReLU^2 | 4 | 12.9 | 0.93 | 0.44 |
| SiLU | 4 | 18.4 | 0.93 | 0.62 |
| GELU (tanh) | 4 | 20.4 | 0.93 | 0.69 |
| GELU (erf) | 4 | 21.0 | 0.93 | 0.71 |
| SwiGLU | 6 | 19.4 | 1.40 | 0.66 |

GPT-2 (12 layers of 3,072): 34 ns a token; Llama-3.1-8B (32 layers of 14,336 gated): 0.64 us a token, of a
forward of at least 17.7 us. Both are the memory traffic of the plain function. Beside the loop, a block
writes 8 bytes of extremes per unit, and a program reads and writes what it counted once per batch, at most
1.6 kB each way per unit: 10% of the read at 16,384 tokens a split, so large batches are cheaper.

What was tried on the way, predicted and then counted, stands in benchmarks/results/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from indexer_kernels import bands_triton, topk_triton
from indexer_kernels.activations_triton import activate_other_rows, activate_row, activated_rows
from indexer_kernels.histogram_triton import FLUSH_GROUPS, RECENT_ROWS, ROWS, clear, count, flush
from indexer_kernels.moments_triton import LIMBS, POWERS, add_exactly, add_powers, is_finite
from indexer_kernels.plan import GROUP_BLOCKS, Plan
from indexer_kernels.plan import UNROLLED_TOKENS as HOST_UNROLLED_TOKENS
from indexer_kernels.words_triton import (
    UNITS,
    VALUES,
    WARPS,
    largest_row,
    row_of,
    smallest_row,
    values_of,
)

UNROLLED_TOKENS = gl.constexpr(HOST_UNROLLED_TOKENS)
# [POWERS, UNITS] sums
SUMS = gl.constexpr(gl.BlockedLayout([1, 1], [1, 32], [GROUP_BLOCKS // 2, 2], [1, 0]))
ROW_BY_ROW = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
FLAT = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def add_masked_row(row, mask, counters, sum1, sum2, sum3, sum4, high, low, DTYPE: gl.constexpr):
    """The values of a row in the mask into histogram, sums and extremes; high, low: float32 [WARPS, 64]."""
    value = values_of(row, DTYPE)
    count(counters, row, value, 1, mask, DTYPE)
    sum1, sum2, sum3, sum4 = add_powers(gl.where(mask, value, 0.0), sum1, sum2, sum3, sum4)
    high = gl.maximum(high, gl.where(mask, value, float("-inf")))
    return sum1, sum2, sum3, sum4, high, gl.minimum(low, gl.where(mask, value, float("inf")))


@gluon.jit
def add_rows(
    gate_at, up_at, out_at, GATE: gl.constexpr, UP: gl.constexpr, OUT: gl.constexpr,
    counters, sum1, sum2, sum3, sum4, high, low,
    ROWS: gl.constexpr, FUNCTION: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Activate ROWS rows, all of whose values count, and take them in; high, low: rows."""
    DTYPE: gl.constexpr = gate_at.dtype.element_ty
    rows = activated_rows(gate_at, up_at, out_at, GATE, UP, OUT, ROWS, FUNCTION, GATED)
    TOGETHER: gl.constexpr = 2 if ROWS > 1 else 1
    for ahead in gl.static_range(0, ROWS, TOGETHER):
        for row in gl.static_range(TOGETHER):
            value = values_of(rows[ahead + row], DTYPE)
            count(counters, rows[ahead + row], value, 1, None, DTYPE)
            sum1, sum2, sum3, sum4 = add_powers(value, sum1, sum2, sum3, sum4)
        high = largest_row(high, rows[ahead], rows[ahead + TOGETHER - 1], DTYPE)
        low = smallest_row(low, rows[ahead], rows[ahead + TOGETHER - 1], DTYPE)
    return sum1, sum2, sum3, sum4, high, low


@gluon.jit
def add_run(
    gate_at, up_at, out_at, GATE: gl.constexpr, UP: gl.constexpr, OUT: gl.constexpr,
    run, counters, sum1, sum2, sum3, sum4, high, low, FUNCTION: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Activate the first `run` rows of every block, and take them in; all of their values count.

    gate_at, up_at, out_at: pointers [WARPS, 64] to the first rows; GATE, UP, OUT: from row to row.
    """
    DTYPE: gl.constexpr = gate_at.dtype.element_ty
    # the functions in float32 are so long that eight rows at a time would take too many registers
    LONG: gl.constexpr = FUNCTION == "gelu" or FUNCTION == "gelu_tanh" or FUNCTION == "silu"
    FEW: gl.constexpr = 1 if GATED else 2
    ROWS: gl.constexpr = FEW if DTYPE == gl.float32 and LONG else UNROLLED_TOKENS
    # twice to a loop: what the loop itself costs is then a half; of "plain" all reads would come first
    TURNS: gl.constexpr = 1 if DTYPE == gl.float32 or FUNCTION == "plain" else 2
    high, low = row_of(high.to(DTYPE), DTYPE), row_of(low.to(DTYPE), DTYPE)
    for _ in range(0, run // (TURNS * ROWS)):
        for turn in gl.static_range(TURNS):
            sum1, sum2, sum3, sum4, high, low = add_rows(
                gate_at + turn * ROWS * GATE, up_at + turn * ROWS * UP, out_at + turn * ROWS * OUT,
                GATE, UP, OUT, counters, sum1, sum2, sum3, sum4, high, low, ROWS, FUNCTION, GATED,
            )  # fmt: skip
        gate_at += TURNS * ROWS * GATE
        up_at += TURNS * ROWS * UP
        out_at += TURNS * ROWS * OUT
    if TURNS == 2:
        for _ in range(0, run % (TURNS * ROWS), ROWS):
            sum1, sum2, sum3, sum4, high, low = add_rows(
                gate_at, up_at, out_at, GATE, UP, OUT,
                counters, sum1, sum2, sum3, sum4, high, low, ROWS, FUNCTION, GATED,
            )  # fmt: skip
    return sum1, sum2, sum3, sum4, values_of(high, DTYPE), values_of(low, DTYPE)


@gluon.jit
def read_finite(read, stride, row, span, counted, unit, inside, counters):
    """Sums and extremes of a group again; non-finite values are counted, and taken out of the bins."""
    DTYPE: gl.constexpr = read.dtype.element_ty
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
        one = row_of(gl.load(at, mask, other=0.0), DTYPE)
        value = values_of(one, DTYPE)
        finite = is_finite(value)
        count(counters, one, value, -1, mask & ~finite, DTYPE)
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
    # every warp has the sum; the first one adds it
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, VALUES))[:, None]
    at, mask = state[None, :] + 0 * warp, mask[None, :] & (warp == 0)
    number = gl.sum(addend, axis=0).to(gl.int64)[None, :]
    gl.store(at, gl.load(at, mask, other=0) + number, mask)


@gluon.jit
def add_sums(partial, sum1, sum2, sum3, sum4, warp, first_unit, end, sums, units):
    """Add a group's sums to the integers; a thread takes one unit and power, block after block.

    partial: shared float32 [32, 64], scratch. sums: int64 [4, 17, units].
    """
    place = (warp * POWERS)[:, None]
    gl.barrier()
    partial.scatter(sum1, place, axis=0)
    partial.scatter(sum2, place + 1, axis=0)
    partial.scatter(sum3, place + 2, axis=0)
    partial.scatter(sum4, place + 3, axis=0)
    gl.barrier()
    power = gl.arange(0, POWERS, gl.SliceLayout(1, SUMS)).to(gl.int64)
    unit = first_unit + gl.arange(0, UNITS, gl.SliceLayout(0, SUMS))
    limbs = sums + (power * LIMBS * units)[:, None] + unit[None, :]
    for number in gl.static_range(WARPS):
        add_exactly(limbs, partial.slice(number * POWERS, POWERS).load(SUMS), units, (unit < end)[None, :])


@gluon.jit
def gather(
    gate, up, out, gate_stride: gl.constexpr, up_stride: gl.constexpr, out_stride: gl.constexpr, units, width,
    counted, block_row, block_span, block_document, group_run, groups,
    recent, sums, nan, inf, minimum, maximum, met, block_maximum, block_minimum,
    top_bar, top_document, bottom_bar, bottom_document, top_hits, bottom_hits,
    FUNCTION: gl.constexpr, GATED: gl.constexpr, WHOLE: gl.constexpr, ROUTED: gl.constexpr,
):  # fmt: skip
    """Take the blocks of a split into the states of 64 units; arguments as `launch` hands them.

    Axes of the grid: 64 units, split. WHOLE: units of a part are a multiple of 64, so that none needs a mask.
    ROUTED: there are several parts; each has its own rows, and its own table of blocks.
    """
    DTYPE: gl.constexpr = gate.dtype.element_ty
    counters = gl.allocate_shared_memory(gl.int32, [ROWS * UNITS // 2], FLAT)
    partial = gl.allocate_shared_memory(gl.float32, [POWERS * WARPS, UNITS], ROW_BY_ROW)
    split = gl.program_id(1).to(gl.int64)
    first_unit = gl.program_id(0) * UNITS
    end, columns = width, width
    if ROUTED:
        tiles = (width + UNITS - 1) // UNITS
        part = gl.program_id(0) // tiles
        first_unit -= part * (tiles * UNITS - width)
        end, columns = (part + 1) * width, units
        # a unit's number is not its column here
        gate, up, out = gate - part * width, up - part * width, out - part * width
        table = part.to(gl.int64) * groups
        block_row, block_span = block_row + table * WARPS, block_span + table * WARPS
        block_document, group_run = block_document + table * WARPS, group_run + table
    unit = first_unit + gl.arange(0, UNITS, gl.SliceLayout(0, VALUES))
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, VALUES))
    real = unit < end
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
        clear(counters)
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
                sum1, sum2, sum3, sum4, high, low = add_run(
                    gate_at, up_at, out_at, gate_stride, up_stride, out_stride,
                    run, counters, sum1, sum2, sum3, sum4, high, low, FUNCTION, GATED,
                )  # fmt: skip
                # int64: 256 strides may pass 2^31
                passed = run.to(gl.int64)
                gate_at += passed * gate_stride
                up_at += passed * up_stride
                out_at += passed * out_stride
            for token in range(run, gl.max(span, axis=0)):
                taken = (token < span) & (gl.load(counted + row + token, token < span, other=0) != 0)
                mask = taken[:, None] & inside
                one = activate_row(gate_at, up_at, out_at, mask, FUNCTION, GATED)
                sum1, sum2, sum3, sum4, high, low = add_masked_row(
                    one, mask, counters, sum1, sum2, sum3, sum4, high, low, DTYPE
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
                # every program writes the same
                gl.store(met, 1, gl.max(gl.max(nans + infs, axis=1), axis=0) > 0)

            at = block.to(gl.int64)[:, None] * columns + unit[None, :]
            gl.store(block_maximum + at, high, inside)
            gl.store(block_minimum + at, low, inside)
            highest, lowest = gl.maximum(highest, high), gl.minimum(lowest, low)
            document = gl.load(block_document + block)[:, None]
            beats_top = (high > top_value) | ((high == top_value) & (document <= top_last))
            beats_bottom = (low < bottom_value) | ((low == bottom_value) & (document <= bottom_last))
            top_hit = gl.where(beats_top, 1, top_hit)
            bottom_hit = gl.where(beats_bottom, 1, bottom_hit)
            add_sums(
                partial,
                sum1,
                sum2,
                sum3,
                sum4,
                warp,
                first_unit,
                end,
                sums + split * POWERS * LIMBS * units,
                units,
            )
        flush(counters, recent + split * RECENT_ROWS * units, first_unit, end, units)

    unit_at = split * units + unit
    # + 0.0 turns -0.0 into 0.0
    highest_yet = gl.maximum(gl.load(maximum + unit_at, real, other=0.0), gl.max(highest, axis=0))
    lowest_yet = gl.minimum(gl.load(minimum + unit_at, real, other=0.0), gl.min(lowest, axis=0))
    gl.store(maximum + unit_at, highest_yet + 0.0, real)
    gl.store(minimum + unit_at, lowest_yet + 0.0, real)
    hit_at = split * columns + unit
    gl.store(top_hits + hit_at, gl.max(top_hit, axis=0), real)
    gl.store(bottom_hits + hit_at, gl.max(bottom_hit, axis=0), real)


def launch(
    function: str, gate: Tensor, up: Tensor | None, out: Tensor, arrays: Sequence[Tensor],
    bars: Sequence[Tensor], sums: Sequence[Tensor], top: Sequence[Tensor], bottom: Sequence[Tensor],
    samples: Sequence[Tensor], window: Sequence[int], by: str,
) -> None:  # fmt: skip
    """Take one batch of one layer in. Strides are compiled in: a new one costs a compilation, 1 to 3 s.

    function: a name in activations.FUNCTIONS, or "plain" where `out` holds the activations already; `up` is
        for the examples alone then.
    gate, up, out: [rows, units of a part] of one dtype, any row strides. arrays: the tensors of a Plan.
    bars: DeviceStatistics.bars; sums, top, bottom, samples: the tensors of these states, empty lists for what
        is not kept; they may be those of some units among more. window: tokens before and after a peak.
        by: what competes for the ends.
    """
    with torch.cuda.device_of(gate):
        _launch(function, gate, up, out, Plan(*arrays), bars, sums, top, bottom, samples, window, by)


def _launch(
    function: str, gate: Tensor, up: Tensor | None, out: Tensor, plan: Plan,
    bars: Sequence[Tensor], sums: Sequence[Tensor], top: Sequence[Tensor], bottom: Sequence[Tensor],
    samples: Sequence[Tensor], window: Sequence[int], by: str,
) -> None:  # fmt: skip
    """`launch` on the present device."""
    if function != "plain":
        activate_other_rows(function, gate, up, out, plan)
    if not plan.blocks:
        return
    width, recent = gate.shape[1], sums[0]
    splits, _, units = recent.shape
    extremes = torch.empty(2, plan.blocks, units, device=gate.device)
    hits = torch.empty(2, splits, units, dtype=torch.int32, device=gate.device)
    gated = up is not None and function != "plain"
    factor = up if up is not None and gated else gate
    gather[(plan.parts * -(-width // UNITS.value), splits)](
        gate, factor, out, gate.stride(0), factor.stride(0), out.stride(0), recent.stride(1), width,
        plan.counted, plan.block_row, plan.block_span, plan.block_document, plan.group_run,
        plan.groups, *sums, *extremes, *bars, *hits,
        FUNCTION=function, GATED=gated, WHOLE=width % UNITS.value == 0, ROUTED=plan.routed,
        num_warps=WARPS.value, enable_fp_fusion=False,
    )  # fmt: skip
    for end, places in enumerate((top, bottom)):
        if places:
            topk_triton.launch(out, up, plan, extremes[end], hits[end], places, window, by, largest=end == 0)
    if samples:
        bands_triton.launch(out, up, plan, extremes[0], splits, samples, window)
