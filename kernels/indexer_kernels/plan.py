"""How the rows of a batch are handed to the GPU: blocks of at most 256 positions, in groups of eight.

A block is what a warp takes: the counted tokens of one run of 256 positions of one sequence, whose sums are
formed in float32. Blocks are sorted by how many of their rows count without a gap, so that those of a group
need no mask for about as many rows. Made once for a batch, and used by all layers; it goes to the GPU in one
copy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer_kernels.blocks import BLOCK_TOKENS
from indexer_kernels.hashes import sequence_keys
from indexer_kernels.sequences import Sequences
from indexer_kernels.staging import to_device

GROUP_BLOCKS = 8
UNROLLED_TOKENS = 8


@dataclass(frozen=True)
class Plan:
    """A batch on one device.

    block_row: int64 [blocks], row of the first counted token; block_span: int32 [blocks], rows from there to
        the last one, at most 256; 0 for the blocks that fill the last group.
    block_sequence: int64 [blocks], block_document: int64 [blocks], that sequence's document, and block_key:
        uint64 [blocks], its key, see hashes.sequence_keys.
    group_run: int32 [groups], rows of all blocks of a group that count without a gap, a multiple of 8.
    start, length, document, ordinal: int64 [sequences]; token_ids: int32, counted: uint8 [tokens].
    other_rows: int64, rows that do not count.
    """

    block_row: Tensor
    block_span: Tensor
    block_sequence: Tensor
    block_document: Tensor
    block_key: Tensor
    group_run: Tensor
    start: Tensor
    length: Tensor
    document: Tensor
    ordinal: Tensor
    token_ids: Tensor
    counted: Tensor
    other_rows: Tensor

    def tensors(self) -> list[Tensor]:
        """In the order of the fields."""
        return [getattr(self, one.name) for one in fields(self)]

    @property
    def blocks(self) -> int:
        return self.block_row.shape[0]

    @property
    def groups(self) -> int:
        return self.group_run.shape[0]

    @classmethod
    def of(cls, sequences: Sequences, device: torch.device) -> Plan:
        """The plan of a batch, made at the first call for each device and kept with it."""
        plans = sequences.__dict__.setdefault("_plans", {})
        if device not in plans:
            plans[device] = cls._made(sequences, device)
        return plans[device]

    @classmethod
    def _made(cls, sequences: Sequences, device: torch.device) -> Plan:
        row, span, run, sequence = _blocks(sequences)
        order = np.argsort(-run, kind="stable")
        missing = -len(order) % GROUP_BLOCKS
        row, span, run, sequence = (
            np.concatenate([array[order], np.zeros(missing, np.int64)])
            for array in (row, span, run, sequence)
        )
        group_run = run.reshape(-1, GROUP_BLOCKS).min(axis=1) // UNROLLED_TOKENS * UNROLLED_TOKENS
        document, ordinal = (
            identity[sequence] if len(sequence) else sequence
            for identity in (sequences.document, sequences.ordinal)
        )
        arrays = (
            row, span.astype(np.int32), sequence, document, sequence_keys(document, ordinal),
            group_run.astype(np.int32),
            sequences.start, sequences.length, sequences.document, sequences.ordinal, sequences.token_ids,
            sequences.counted.view(np.uint8), np.flatnonzero(~_inside(sequences)),
        )  # fmt: skip
        return cls(*to_device(arrays, device))


def _inside(sequences: Sequences) -> NDArray[np.bool_]:
    """bool [tokens], rows of a sequence that count."""
    edges = np.zeros(sequences.tokens + 1, np.int64)
    np.add.at(edges, sequences.start, 1)
    np.add.at(edges, sequences.start + sequences.length, -1)
    return (np.cumsum(edges)[:-1] > 0) & sequences.counted


def _blocks(sequences: Sequences) -> tuple[NDArray[np.int64], ...]:
    """Row of the first counted token, span, rows before the first gap, and sequence of every block."""
    number = -(-sequences.length // BLOCK_TOKENS)
    sequence = np.repeat(np.arange(len(sequences)), number)
    place = np.arange(len(sequence)) - np.repeat(np.cumsum(number) - number, number)
    begin = sequences.start[sequence] + place * BLOCK_TOKENS
    end = np.minimum(begin + BLOCK_TOKENS, (sequences.start + sequences.length)[sequence])
    # one row more than there are, to look up what lies behind the last
    counted = np.concatenate([np.flatnonzero(sequences.counted), [sequences.tokens]])
    first = counted[np.searchsorted(counted, begin)]
    last = counted[np.searchsorted(counted, end) - 1]
    some = first < end
    begin, end, first, last, sequence = (array[some] for array in (begin, end, first, last, sequence))
    gaps = np.concatenate([np.flatnonzero(~sequences.counted), [sequences.tokens]])
    gap = gaps[np.searchsorted(gaps, first)]
    return first, last + 1 - first, np.minimum(gap, last + 1) - first, sequence
