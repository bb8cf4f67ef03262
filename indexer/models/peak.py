"""How much memory a forward pass takes beside the weights, measured by a small batch.

All that is made in between grows with the tokens of a batch, but for what libraries take once and masks that
all sequences share. So the small batch's peak per token tells of large ones, and lies a little above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from indexer_kernels import Sequences
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.models.forward import embedding_rows
from indexer.models.loading import LoadedModel
from indexer.models.probe import Probe, Values
from indexer.models.runner import Runner
from indexer.names import Key

# of the batch that is measured, at least
SMALL_BATCH_TOKENS = 1024
# The statistics kernel leaves two float32 extremes per unit and block of a sequence; blocks are hardly ever
# shorter on the average.
EXTREMES_BYTES, SHORT_BLOCK_TOKENS = 8, 16


def forward_bytes(loaded: LoadedModel, probes: Sequence[Probe], context: int) -> dict[torch.device, int]:
    """At most how many bytes a token of a batch takes at the forward's peak, on each device of the model.

    probes: those that are indexed; the forward ends with the last. context: tokens of the longest sequence.
    Raises IndexerError where the small batch, of 1,024 tokens or one sequence, does not fit.
    Cost: two forward passes over it.
    """
    batch = FullBatch.of(-(-SMALL_BATCH_TOKENS // context), context, embedding_rows(loaded.model))
    tokens = batch.token_ids.size
    extremes = EXTREMES_BYTES * max(map(_units_together, probes)) // SHORT_BLOCK_TOKENS
    peaks = dict.fromkeys((weight.device for weight in loaded.model.parameters()), 0)
    # what libraries take once is there with the second
    for _ in range(2):
        runner = Runner(loaded, probes, leave, matmul="torch")
        with peak_bytes(peaks), runner:
            runner.run(batch)
        if runner.most_tokens < tokens:
            raise IndexerError(
                f"--context {context}: batches of {tokens:,} tokens do not fit the memory of {loaded.device} "
                "beside the weights; use a shorter --context, --dtype bfloat16, or --device cpu"
            )
    return {device: -(-peak // tokens) + extremes for device, peak in peaks.items()}


def _units_together(probe: Probe) -> int:
    """Units whose statistics are taken by one kernel."""
    return probe.units if probe.experts or probe.width is None else min(probe.units, probe.width)


@contextmanager
def peak_bytes(peaks: dict[torch.device, int]) -> Iterator[None]:
    """Sets the most bytes that torch held on each GPU within the block, over those before it."""
    before = {}
    for device in peaks:
        torch.cuda.reset_peak_memory_stats(device)
        before[device] = torch.cuda.memory_allocated(device)
    yield
    for device in peaks:
        peaks[device] = torch.cuda.max_memory_allocated(device) - before[device]


@dataclass(frozen=True)
class FullBatch:
    """A batch of sequences of one length; see models.Batch."""

    token_ids: NDArray[np.int64]
    length: NDArray[np.int64]
    fixed: bool = False
    target: None = None

    @classmethod
    def of(cls, rows: int, width: int, vocabulary: int) -> FullBatch:
        length = np.full(rows, width)
        # with padding, for which some models need a mask
        length[-1] -= 1
        return cls(np.random.default_rng(0).integers(0, vocabulary, (rows, width)), length)

    def sequences(self) -> Sequences:
        rows, width = self.token_ids.shape
        number = np.arange(rows)
        ids = self.token_ids.reshape(-1).astype(np.int32)
        return Sequences(number * width, self.length, number, number, ids, np.ones(ids.shape, np.bool_))


def leave(key: Key, values: Values) -> None:
    """Takes neither values nor memory."""
    values.leave()
