"""Top-k on the GPU: the blocks that may hold a better example compete for their unit's places, one unit a
program.

The gathering kernel leaves each block's extremes, and whether any of a unit's blocks reaches the threshold.
Most units end there. For the others a program looks at the blocks that do reach it: finds the peak,
compares it with the places under the total order, and copies the window of whoever takes a place, while the
activations are still in memory. The buffer between the two kernels has room for every block of the batch,
so nothing can overflow it; a threshold that is one batch old only lets more blocks through.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from indexer_kernels import hashes
from indexer_kernels.blocks import BLOCK_TOKENS as HOST_BLOCK_TOKENS
from indexer_kernels.examples import PASSAGE_TOKENS as HOST_PASSAGE_TOKENS
from indexer_kernels.plan import Plan

BLOCK_TOKENS = tl.constexpr(HOST_BLOCK_TOKENS)
PASSAGE_TOKENS = tl.constexpr(HOST_PASSAGE_TOKENS)
FIRST, SECOND = tl.constexpr(int(hashes.FIRST)), tl.constexpr(int(hashes.SECOND))
GOLDEN = tl.constexpr(int(hashes.GOLDEN))
LOWEST = tl.constexpr(-(2**63))
# of a thread, at most, for all but the plainest forms: left to itself the compiler aims at 64 to 80 for some
# GPUs, and spills
REGISTERS = 128
COMPETITORS = {"document": 1, "sequence": 2, "token": 3}


@triton.jit
def ranks_before(key, document, sequence, position, held_key, held_document, held_sequence, held_position):
    """Total order: key descending, then document, sequence and position ascending."""
    later = (sequence < held_sequence) | ((sequence == held_sequence) & (position < held_position))
    before = (document < held_document) | ((document == held_document) & later)
    return (key > held_key) | ((key == held_key) & before)


@triton.jit
def worst_of(held, key, document, sequence, position):
    """Which of the held places ranks last, as a mask; all [PLACES]."""
    last = held & (key == tl.min(tl.where(held, key, float("inf")), axis=0))
    last &= document == tl.max(tl.where(last, document, LOWEST), axis=0)
    last &= sequence == tl.max(tl.where(last, sequence, LOWEST), axis=0)
    return last & (position == tl.max(tl.where(last, position, -1), axis=0))


@triton.jit
def sequence_peak(
    peak, row, sequence, length, extremes, block_row, block_sequence, blocks, units,
    SIGN: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A sequence's peak, times SIGN, and the row of the first block that reaches it.

    peak, row: of one of its blocks. extremes: pointer to the unit's extreme of the first block.
    """
    # of one block there is nothing to look for
    others = tl.where(length > BLOCK_TOKENS, blocks, 0)
    for first_block in range(0, others, BLOCKS):
        block = first_block + tl.arange(0, BLOCKS)
        own = (block < blocks) & (tl.load(block_sequence + block, block < blocks, other=-1) == sequence)
        theirs = tl.load(extremes + block.to(tl.int64) * units, own, other=float("-inf") * SIGN)
        if SIGN < 0:
            theirs = -theirs
        best = tl.max(theirs, axis=0)
        begins = tl.load(block_row + block, own, other=0)
        begins = tl.min(tl.where(own & (theirs == best), begins, 0x7FFFFFFFFFFFFFFF), axis=0)
        row = tl.where(best > peak, begins, tl.where(best == peak, tl.minimum(begins, row), row))
        peak = tl.maximum(best, peak)
    return peak, row


@triton.jit
def passage_hash(token_ids, position, before):
    """uint64, the hash of the last tokens of a peak's window up to the peak; see hashes.py.

    token_ids: pointer to the sequence's first token.
    """
    first = tl.maximum(position - tl.minimum(before, PASSAGE_TOKENS - 1), 0)
    hash = tl.full([], 0, tl.uint64)
    for place in range(first, position + 1):
        hash += (tl.load(token_ids + place).to(tl.uint64) + 1) * GOLDEN
        hash = (hash ^ (hash >> 30)) * FIRST
        hash = (hash ^ (hash >> 27)) * SECOND
        hash = hash ^ (hash >> 31)
    return hash


@triton.jit
def position_of(row, start, token_of, ROUTED: tl.constexpr):
    """The position of a row of a sequence that begins at token `start`."""
    if ROUTED:
        return tl.load(token_of + row) - start
    else:
        return row - start


@triton.jit
def copy_window(
    values, stride, up, up_stride, token_ids, row_of, start, length, position, before, after, place, width,
    place_up, window_tokens, window_values, GATED: tl.constexpr, WINDOW: tl.constexpr, ROUTED: tl.constexpr,
):  # fmt: skip
    """Tokens and activations around a peak, and `up` at it, to a place; returns where they begin, how many.

    values, up: pointers to one unit's first row. row_of: where ROUTED, to its part's row of the first token.
    """
    first = tl.maximum(position - before, 0)
    last = tl.minimum(position + after, length - 1)
    offset = tl.arange(0, WINDOW)
    row = start + first + offset
    mask = offset <= last - first
    tl.store(window_tokens + place * width + offset, tl.load(token_ids + row, mask, other=0), mask)
    there = mask
    if ROUTED:
        row = tl.load(row_of + row, mask, other=-1).to(tl.int64)
        there = mask & (row >= 0)
    value = tl.load(values + row * stride, there, other=0.0).to(tl.float32)
    tl.store(window_values + place * width + offset, value + 0.0, mask)
    factor = float("nan")
    if GATED:
        peak_row = start + position
        if ROUTED:
            peak_row = tl.load(row_of + peak_row).to(tl.int64)
        factor = tl.load(up + peak_row * up_stride).to(tl.float32) + 0.0
    tl.store(place_up + place, factor)
    return first.to(tl.int32), (last + 1 - first).to(tl.int32)


@triton.jit
def compete(
    values, stride, up, up_stride, units, width, tokens, counted, token_ids, token_of, row_of,
    block_row, block_span, block_sequence, blocks,
    start, length, document, ordinal, extremes, hits, splits,
    threshold, threshold_document, worst, filled, place_passage,
    place_value, place_up, place_document, place_sequence, place_position,
    window_start, window_length, window_tokens, window_values, k, before, after,
    GATED: tl.constexpr, SIGN: tl.constexpr, IDENTITY: tl.constexpr, DISTINCT: tl.constexpr,
    PLACES: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr, BLOCKS: tl.constexpr,
    ROUTED: tl.constexpr,
):  # fmt: skip
    """Let a unit's blocks compete for its k places. SIGN: 1 for the largest values, -1 for the smallest.

    IDENTITY: who holds at most one place: 1 a document, 2 a sequence, 3 a token.
    DISTINCT: a passage does, instead.
    ROUTED: units come in parts of `width`, each with its own rows, table of blocks, and `row_of` all tokens.
    """
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
        place = tl.arange(0, PLACES)
        at = unit * k + place
        taken = tl.load(filled + unit)
        held = place < taken
        key = SIGN * tl.load(place_value + at, held, other=0.0)
        held_document = tl.load(place_document + at, held, other=0)
        held_sequence = tl.load(place_sequence + at, held, other=0)
        held_position = tl.load(place_position + at, held, other=0)
        bar, bar_document = SIGN * tl.load(threshold + unit), tl.load(threshold_document + unit)
        token = tl.arange(0, BLOCK_TOKENS)
        for first_block in range(0, blocks, BLOCKS):
            block = first_block + tl.arange(0, BLOCKS)
            there = block < blocks
            peak = SIGN * tl.load(extremes + block.to(tl.int64) * units + unit, there, other=0.0)
            their_document = tl.load(
                document + tl.load(block_sequence + block, there, other=0), there, other=0
            )
            passing = there & ((peak > bar) | ((peak == bar) & (their_document <= bar_document)))
            left = tl.sum(passing.to(tl.int32), axis=0)
            while left > 0:
                number = tl.min(tl.where(passing, block, 2147483647), axis=0)
                passing &= block != number
                left -= 1
                sequence = tl.load(block_sequence + number)
                first_row = tl.load(block_row + number)
                own_start, own_length = tl.load(start + sequence), tl.load(length + sequence)
                own_document, own_ordinal = tl.load(document + sequence), tl.load(ordinal + sequence)
                inside = token < tl.load(block_span + number)
                inside &= tl.load(counted + first_row + token, inside, other=0) != 0
                value = tl.load(values + (first_row + token) * stride + column, inside, other=0.0).to(
                    tl.float32
                )
                inside &= (value.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000
                tokens_left = tl.sum(inside.to(tl.int32), axis=0)
                if DISTINCT and IDENTITY == 2:
                    # what is not the peak of its whole sequence would show another passage
                    reached = SIGN * tl.load(extremes + number.to(tl.int64) * units + unit)
                    highest, peak_row = sequence_peak(
                        reached, first_row, sequence, own_length, extremes + unit,
                        block_row, block_sequence, blocks, units, SIGN, BLOCKS,
                    )  # fmt: skip
                    is_peak = (reached == highest) & (first_row == peak_row)
                    tokens_left = tl.where(is_peak, tokens_left, 0)
                while tokens_left > 0:
                    best = tl.max(tl.where(inside, SIGN * value, float("-inf")), axis=0)
                    peak_token = tl.min(
                        tl.where(inside & (SIGN * value == best), token, BLOCK_TOKENS), axis=0
                    )
                    inside &= token != peak_token
                    position = position_of(first_row + peak_token, own_start, token_of, ROUTED)
                    if DISTINCT:
                        own_passage = passage_hash(token_ids + own_start, position, before)
                        same = held & (tl.load(place_passage + at, held, other=0) == own_passage)
                    else:
                        same = held & (held_document == own_document)
                        if IDENTITY > 1:
                            same &= held_sequence == own_ordinal
                        if IDENTITY > 2:
                            same &= held_position == position
                    is_same = tl.max(same.to(tl.int32), axis=0)
                    if is_same == 0:
                        if taken == k:
                            same = worst_of(held, key, held_document, held_sequence, held_position)
                        else:
                            same = place == taken
                    wins = (same & ~held) | (same & ranks_before(
                        best, own_document, own_ordinal, position,
                        key, held_document, held_sequence, held_position,
                    ))  # fmt: skip
                    won = tl.max(tl.where(wins, place, -1), axis=0)
                    if won >= 0:
                        taken = tl.maximum(taken, won + 1)
                        held = place < taken
                        key = tl.where(wins, best + 0.0, key)
                        held_document = tl.where(wins, own_document, held_document)
                        held_sequence = tl.where(wins, own_ordinal, held_sequence)
                        held_position = tl.where(wins, position.to(tl.int32), held_position)
                        if DISTINCT:
                            tl.store(place_passage + at, own_passage, wins)
                        first, size = copy_window(
                            values + column, stride, up + column, up_stride, token_ids, row_of,
                            own_start, own_length, position, before, after, unit * k + won,
                            before + 1 + after, place_up, window_tokens, window_values,
                            GATED, WINDOW, ROUTED,
                        )  # fmt: skip
                        tl.store(window_start + unit * k + won, first)
                        tl.store(window_length + unit * k + won, size)
                    # a block's next best token can win only where this one did, or is held already
                    if IDENTITY == 3:
                        tokens_left = tl.where((won >= 0) | (is_same != 0), tokens_left - 1, 0)
                    else:
                        tokens_left = 0
        tl.store(place_value + at, SIGN * key + 0.0, held)
        tl.store(place_document + at, held_document, held)
        tl.store(place_sequence + at, held_sequence, held)
        tl.store(place_position + at, held_position, held)
        tl.store(filled + unit, taken)
        if taken == k:
            last = worst_of(held, key, held_document, held_sequence, held_position)
            tl.store(worst + unit, tl.max(tl.where(last, place, -1), axis=0))
            tl.store(threshold + unit, tl.max(tl.where(last, SIGN * key, float("-inf")), axis=0) + 0.0)
            tl.store(threshold_document + unit, tl.max(tl.where(last, held_document, LOWEST), axis=0))


def launch(
    values: Tensor, up: Tensor | None, plan: Plan, extremes: Tensor, hits: Tensor, places: Sequence[Tensor],
    window: Sequence[int], by: str, *, largest: bool,
) -> None:  # fmt: skip
    """Bring one end's places up to date with a batch.

    values, up: [rows, units of a part], the activations and their factor. extremes: float32 [blocks, units];
    hits: int32 [splits, units].
    places: DeviceTopK.tensors(). window: tokens before and after the peak.
    """
    units = hits.shape[1]
    k, distinct = places[5].shape[1], places[4].shape[1] > 0
    factor = values if up is None else up
    compete[(units,)](
        values, values.stride(0), factor, factor.stride(0), units, values.shape[1], len(plan.token_ids),
        plan.counted, plan.token_ids, plan.token, plan.row,
        plan.block_row, plan.block_span, plan.block_sequence, plan.blocks,
        plan.start, plan.length, plan.document, plan.ordinal, extremes, hits, hits.shape[0],
        *places, k, *window,
        GATED=up is not None, SIGN=1 if largest else -1, IDENTITY=COMPETITORS[by],
        DISTINCT=distinct, PLACES=triton.next_power_of_2(k),
        WINDOW=triton.next_power_of_2(sum(window) + 1), SPLITS=triton.next_power_of_2(hits.shape[0]),
        BLOCKS=64, ROUTED=plan.routed, num_warps=1,
        maxnreg=REGISTERS if distinct or plan.routed or by == "token" else None, enable_fp_fusion=False,
    )  # fmt: skip
