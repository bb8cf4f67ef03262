"""How the rows of a batch are handed to the GPU: blocks of at most 256 positions, in groups of eight.

A block is what a warp takes: the counted tokens of one run of 256 positions of one sequence, whose sums are
formed in float32. Blocks are sorted by how many of their rows count without a gap, so that those of a group
need no mask for about as many rows. Made once for a batch, and used by all layers; it goes to the GPU in one
copy.

Where units come in parts that meet some tokens each, every part has a table of blocks of its own: of the same
positions, with the rows that it has there. The device makes them of the batch's plan.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer_kernels.blocks import BLOCK_TOKENS
from indexer_kernels.hashes import sequence_keys
from indexer_kernels.routes import Routes
from indexer_kernels.sequences import Sequences
from indexer_kernels.staging import to_device

GROUP_BLOCKS = 8
UNROLLED_TOKENS = 8


@dataclass(frozen=True)
class Plan:
    """A batch on one device.

    In a plan of parts, blocks and groups have one more axis in front, the parts'.

    block_row: int64 [blocks], row of the first counted token; block_span: int32 [blocks], rows from there to
        the last one, at most 256; 0 for the blocks that fill the last group.
    block_sequence: int64 [blocks], block_document: int64 [blocks], that sequence's document, and block_key:
        uint64 [blocks], its key, see hashes.sequence_keys.
    group_run: int32 [groups], rows of all blocks of a group that count without a gap, a multiple of 8.
    start, length, document, ordinal: int64 [sequences]; token_ids: int32, counted: uint8 [tokens].
    other_rows: int64, rows that do not count.
    token: int64 [rows], the token that each is of; row: int32 [parts, tokens], the row of each token, -1 for
        none. Both are empty where every token has a row.
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
    token: Tensor
    row: Tensor

    def tensors(self) -> list[Tensor]:
        """In the order of the fields."""
        return [getattr(self, one.name) for one in fields(self)]

    @property
    def blocks(self) -> int:
        return self.block_row.shape[-1]

    @property
    def groups(self) -> int:
        return self.group_run.shape[-1]

    @property
    def parts(self) -> int:
        return self.row.shape[0] if self.routed else 1

    @property
    def routed(self) -> bool:
        """Whether rows are those of some tokens."""
        return self.row.ndim > 1

    @classmethod
    def of(cls, sequences: Sequences, device: torch.device, routes: Routes | None = None) -> Plan:
        """The plan of a batch, made at the first call for each device and kept with it.

        routes: what the rows are, where they are those of some tokens; for these it is made anew.
        """
        plans = sequences.__dict__.setdefault("_plans", {})
        if device not in plans:
            plans[device] = cls._made(sequences, device)
        return plans[device] if routes is None else plans[device]._of_parts(routes)

    def counted_rows(self) -> Tensor:
        """int64 [parts], or [] for one: how many rows of each enter the statistics."""
        before = torch.nn.functional.pad(self.counted.cumsum(0), (1, 0))
        return (before[self.block_row + self.block_span] - before[self.block_row]).sum(-1)

    def _of_parts(self, routes: Routes) -> Plan:
        tokens, rows, device = len(self.counted), len(routes.token), self.counted.device
        number, parts = torch.arange(rows, device=device), torch.arange(routes.parts, device=device)[:, None]
        # ascending, so that a block's rows are found by the tokens that it begins and ends with
        place = routes.part * tokens + routes.token
        begin = torch.searchsorted(place, parts * tokens + self.block_row)
        end = torch.searchsorted(place, parts * tokens + self.block_row + self.block_span)
        counted = self.counted[routes.token]
        # from each row on, the first one that does not count
        gap = torch.where(counted == 0, number, rows).flip(0).cummin(0).values.flip(0)
        gap = torch.nn.functional.pad(gap, (0, 1), value=rows)
        run, order = (torch.minimum(gap[begin], end) - begin).sort(dim=1, descending=True, stable=True)
        group_run = run.view(routes.parts, -1, GROUP_BLOCKS).amin(2) // UNROLLED_TOKENS * UNROLLED_TOKENS
        row = torch.full(((routes.parts + 1) * tokens,), -1, dtype=torch.int32, device=device)
        row = row.scatter_(0, place, number.int()).view(-1, tokens)[:-1]
        return replace(
            self,
            block_row=begin.gather(1, order),
            block_span=(end - begin).gather(1, order).int(),
            block_sequence=self.block_sequence[order],
            block_document=self.block_document[order],
            # there is no indexing of unsigned numbers on every device
            block_key=self.block_key.view(torch.int64)[order].view(torch.uint64),
            group_run=group_run.int(),
            counted=counted,
            other_rows=routes.row[self.other_rows].reshape(-1),
            token=routes.token,
            row=row,
        )

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
            np.zeros(0, np.int64), np.zeros(0, np.int32),
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
