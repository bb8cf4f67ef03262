"""Bands on the GPU: sequences whose hash may win compete for their unit's places, one unit a program.

The gathering kernel leaves each block's maximum. `find_hits` hashes each block's sequence with each unit, and
notes whether the band of the maximum may take it (`may_enter`): a sequence enters by the block that holds its
maximum. Most units end there. For the others a program looks at those blocks, leaves out what is not the
first maximum of its whole sequence, and gives it a place, as in topk_triton.

Within the gathering kernel hashes would cost more: its loop of eight rows begins with all of its reads, and
the compiler put those of `up` behind the first half of the arithmetic once hashes followed the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from indexer_kernels import bands
from indexer_kernels.blocks import BLOCK_TOKENS as HOST_BLOCK_TOKENS
from indexer_kernels.plan import Plan
from indexer_kernels.topk_triton import (
    FIRST,
    LOWEST,
    REGISTERS,
    SECOND,
    copy_window,
    position_of,
    sequence_peak,
)

BLOCK_TOKENS = tl.constexpr(HOST_BLOCK_TOKENS)
OCTAVES, BANDS = tl.constexpr(bands.OCTAVES), tl.constexpr(bands.BANDS)
NO_OCTAVE, NO_HASH = tl.constexpr(int(bands.NO_OCTAVE)), tl.constexpr(int(bands.NO_HASH))
RESIDUES, REST_ROW = tl.constexpr(bands.RESIDUES), tl.constexpr(bands.RESIDUES + 1)
# the upper 24 bits of a hash above an octave
UPPER = tl.constexpr(0xFFFFFF00)


@triton.jit
def scrambled(number):
    """The hash of a unit's key xor a sequence's; uint64."""
    number = number * FIRST
    number = (number ^ (number >> 32)) * SECOND
    return (number ^ (number >> 32)) * FIRST


@triton.jit
def octave_of(value):
    """int32, the octave of finite float32 values."""
    return tl.maximum(value.to(tl.int32, bitcast=True) >> 23, 0)


@triton.jit
def may_enter(maximum, key, least, bars, unit, units, mask):
    """Whether the band of a maximum may take its sequence, but for the lower bits of hashes.

    maximum: float32, -infinity for none. key: uint64, of the unit xor the sequence. least: uint32, the least
    octave that has a band. bars: as in Bands.
    """
    octave = octave_of(maximum)
    rest = octave < least.to(tl.int32)
    row = tl.where(rest, REST_ROW, 1 + (octave & (RESIDUES - 1)))
    bar = tl.load(bars + row.to(tl.int64) * units + unit, mask, other=0)
    word = ((scrambled(key) >> 32).to(tl.uint32) & UPPER) | tl.where(rest, 0, octave).to(tl.uint32)
    # a bar of another octave says nothing
    other = ((word ^ bar) & 255) != 0
    return (maximum > float("-inf")) & (other | (word <= bar))


@triton.jit
def find_hits(
    maxima, block_key, blocks, unit_key, bars, bars_stride, units, width, hits,
    UNITS: tl.constexpr, BLOCKS: tl.constexpr, ROUTED: tl.constexpr,
):  # fmt: skip
    """Which units a sequence of the batch may enter. Axes of the grid: UNITS units, split of the blocks.

    ROUTED: units come in parts of `width`, each with a table of blocks of its own.
    """
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    split = tl.program_id(1).to(tl.int64)
    real = unit < units
    key = tl.load(unit_key + unit, real, other=0)[None, :]
    least = tl.load(bars + unit, real, other=0)[None, :]
    hit = tl.full([BLOCKS, UNITS], 0, tl.int32)
    for first_block in range(tl.program_id(1) * BLOCKS, blocks, tl.num_programs(1) * BLOCKS):
        block = first_block + tl.arange(0, BLOCKS)
        there = block < blocks
        mask = there[:, None] & real[None, :]
        at = block.to(tl.int64)[:, None] * units + unit[None, :]
        peaks = tl.load(maxima + at, mask, other=float("-inf"))
        if ROUTED:
            table = (unit // width).to(tl.int64) * blocks
            keys = tl.load(block_key + table[None, :] + block[:, None], mask, other=0) ^ key
        else:
            keys = tl.load(block_key + block, there, other=0)[:, None] ^ key
        enters = may_enter(peaks, keys, least, bars, unit[None, :], bars_stride, mask)
        hit = tl.where(enters, 1, hit)
    tl.store(hits + split * units + unit, tl.max(hit, axis=0), real)


@triton.jit
def last_of(member, hash, document, sequence):
    """Which of the members comes last by hash, document and sequence, as a mask; all [PLACES]."""
    last = member & (hash == tl.max(tl.where(member, hash, 0), axis=0))
    last &= document == tl.max(tl.where(last, document, LOWEST), axis=0)
    return last & (sequence == tl.max(tl.where(last, sequence, LOWEST), axis=0))


@triton.jit
def least_octave(octave, own_octave):
    """The least octave that has a band, of [PLACES] and one more; 0 where it is no octave."""
    least = 256
    for _ in range(OCTAVES):
        next_one = tl.max(tl.where(octave < least, octave, 0), axis=0)
        least = tl.maximum(next_one, tl.where(own_octave < least, own_octave, 0))
    return tl.maximum(least, 1)


@triton.jit
def set_bars(bars, unit, units, held, hash, octave, samples):
    """What `find_hits` asks from now on; see Bands.bars."""
    least = least_octave(octave, 0)
    octave = tl.where(octave < least, 0, octave)
    tl.store(bars + unit, least.to(tl.uint32))
    for row in range(1, REST_ROW + 1):
        # of no residue is the rest
        band = tl.max(tl.where((octave & (RESIDUES - 1)) == row - 1, octave, 0), axis=0)
        member = held & (octave == band)
        worst = tl.max(tl.where(member, hash, 0), axis=0)
        full = tl.sum(member.to(tl.int32), axis=0) == samples
        bar = ((tl.where(full, worst, NO_HASH) >> 32).to(tl.uint32) & UPPER) | band.to(tl.uint32)
        bar = tl.where((band == 0) & (row < REST_ROW), NO_OCTAVE, bar)
        tl.store(bars + row * units + unit, bar)


@triton.jit
def sample(
    values, stride, up, up_stride, units, width, tokens, counted, token_ids, token_of, row_of,
    block_row, block_span, block_sequence, block_key, blocks,
    start, length, document, ordinal, maxima, hits, splits, bars_stride,
    unit_key, bars, place_hash, place_value, place_up, place_document, place_sequence, place_position,
    window_start, window_length, window_tokens, window_values, samples, before, after,
    GATED: tl.constexpr, PLACES: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr,
    BLOCKS: tl.constexpr, ROUTED: tl.constexpr,
):  # fmt: skip
    """Let sequences compete for a unit's places; arguments as `launch` hands them, ROUTED as in `compete`."""
    unit = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    hit = tl.max(tl.load(hits + split.to(tl.int64) * units + unit, split < splits, other=0), axis=0)
    if hit != 0:
        column = unit
        if ROUTED:
            part = unit // width
            column = unit - part * width
            row_of += part * tokens
            block_row += part * blocks
            block_span += part * blocks
            block_sequence += part * blocks
            block_key += part * blocks
        key = tl.load(unit_key + unit)
        maxima += unit
        place = tl.arange(0, PLACES)
        exists = place < BANDS * samples
        at = unit * BANDS * samples + place
        held = tl.load(window_length + at, exists, other=0) > 0
        hash = tl.load(place_hash + at, held, other=0)
        held_document = tl.load(place_document + at, held, other=0)
        held_sequence = tl.load(place_sequence + at, held, other=0)
        octave = tl.where(held, octave_of(tl.load(place_value + at, held, other=0.0)), 0)
        least_before = tl.load(bars + unit)
        token = tl.arange(0, BLOCK_TOKENS)
        for first_block in range(0, blocks, BLOCKS):
            block = first_block + tl.arange(0, BLOCKS)
            there = block < blocks
            peaks = tl.load(maxima + block.to(tl.int64) * units, there, other=float("-inf"))
            keys = tl.load(block_key + block, there, other=0) ^ key
            # the bars are those before the batch, which only lets more through
            passing = there & may_enter(peaks, keys, least_before, bars, unit, bars_stride, there)
            left = tl.sum(passing.to(tl.int32), axis=0)
            while left > 0:
                number = tl.min(tl.where(passing, block, 2147483647), axis=0)
                passing &= block != number
                left -= 1
                own = tl.load(block_sequence + number)
                own_start, own_length = tl.load(start + own), tl.load(length + own)
                row = tl.load(block_row + number)
                peak = tl.load(maxima + number.to(tl.int64) * units)
                highest, first_row = sequence_peak(
                    peak, row, own, own_length, maxima, block_row, block_sequence, blocks, units, 1, BLOCKS
                )
                if (peak == highest) & (row == first_row):
                    own_document, own_ordinal = tl.load(document + own), tl.load(ordinal + own)
                    own_hash = scrambled(tl.load(block_key + number) ^ key)
                    own_octave = octave_of(peak)
                    least = least_octave(octave, own_octave)
                    band = tl.where(octave < least, 0, octave)
                    own_band = tl.where(own_octave < least, 0, own_octave)
                    # an octave that falls out of the highest brings its examples to the rest
                    rest = held & (band == 0)
                    too_many = tl.sum(rest.to(tl.int32), axis=0) - samples
                    while too_many > 0:
                        gone = last_of(rest, hash, held_document, held_sequence)
                        rest &= ~gone
                        held &= ~gone
                        tl.store(window_length + at, 0, gone)
                        too_many -= 1
                    octave = tl.where(held, octave, 0)
                    member = held & (band == own_band)
                    full = tl.sum(member.to(tl.int32), axis=0) == samples
                    later = (held_document > own_document) | (
                        (held_document == own_document) & (held_sequence > own_ordinal)
                    )
                    later = (hash > own_hash) | ((hash == own_hash) & later)
                    loser = last_of(member, hash, held_document, held_sequence) & later
                    free = exists & ~held
                    free &= place == tl.min(tl.where(free, place, PLACES), axis=0)
                    wins = tl.where(full, loser, free)
                    same = held & (held_document == own_document) & (held_sequence == own_ordinal)
                    is_same = tl.max(same.to(tl.int32), axis=0)
                    won = tl.where(is_same == 0, tl.max(tl.where(wins, place, -1), axis=0), -1)
                    if won >= 0:
                        inside = token < tl.load(block_span + number)
                        inside &= tl.load(counted + row + token, inside, other=0) != 0
                        value = tl.load(values + (row + token) * stride + column, inside, other=0.0)
                        reaches = inside & (value.to(tl.float32) == peak)
                        peak_row = row + tl.min(tl.where(reaches, token, BLOCK_TOKENS), axis=0)
                        position = position_of(peak_row, own_start, token_of, ROUTED)
                        first, size = copy_window(
                            values + column, stride, up + column, up_stride, token_ids, row_of,
                            own_start, own_length, position, before, after,
                            unit * BANDS * samples + won, before + 1 + after,
                            place_up, window_tokens, window_values, GATED, WINDOW, ROUTED,
                        )  # fmt: skip
                        tl.store(place_hash + at, own_hash, wins)
                        tl.store(place_value + at, peak + 0.0, wins)
                        tl.store(place_document + at, own_document, wins)
                        tl.store(place_sequence + at, own_ordinal, wins)
                        tl.store(place_position + at, position.to(tl.int32), wins)
                        tl.store(window_start + at, first, wins)
                        tl.store(window_length + at, size, wins)
                        hash = tl.where(wins, own_hash, hash)
                        held_document = tl.where(wins, own_document, held_document)
                        held_sequence = tl.where(wins, own_ordinal, held_sequence)
                        octave = tl.where(wins, own_octave, octave)
                        held |= wins
        set_bars(bars, unit, bars_stride, held, hash, octave, samples)


def launch(
    values: Tensor, up: Tensor | None, plan: Plan, maxima: Tensor, splits: int, places: Sequence[Tensor],
    window: Sequence[int],
) -> None:  # fmt: skip
    """Bring the samples up to date with a batch.

    values, up: [rows, units of a part], the activations and their factor. maxima: float32 [blocks, units].
    splits: programs that share the blocks of the same units, see device.splits_of.
    places: DeviceBands.tensors(). window: tokens before and after the peak.
    """
    units, width = maxima.shape[1], values.shape[1]
    samples = places[3].shape[1] // bands.BANDS
    factor = values if up is None else up
    bars_stride = places[1].stride(0)
    hits = torch.empty(splits, units, dtype=torch.int32, device=values.device)
    find_hits[(triton.cdiv(units, 64), splits)](
        maxima, plan.block_key, plan.blocks, places[0], places[1], bars_stride, units, width, hits,
        UNITS=64, BLOCKS=16, ROUTED=plan.routed, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    sample[(units,)](
        values, values.stride(0), factor, factor.stride(0), units, width, len(plan.token_ids),
        plan.counted, plan.token_ids, plan.token, plan.row,
        plan.block_row, plan.block_span, plan.block_sequence, plan.block_key, plan.blocks,
        plan.start, plan.length, plan.document, plan.ordinal, maxima, hits, splits, bars_stride,
        *places, samples, *window,
        GATED=up is not None, PLACES=triton.next_power_of_2(bands.BANDS * samples),
        WINDOW=triton.next_power_of_2(sum(window) + 1),
        SPLITS=triton.next_power_of_2(splits), BLOCKS=32, ROUTED=plan.routed,
        num_warps=1, maxnreg=REGISTERS, enable_fp_fusion=False,
    )  # fmt: skip
