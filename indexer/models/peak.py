"""How much memory a forward pass takes beside the weights, measured by a small batch.

All that is made in between grows with the tokens of a batch, but for what libraries take once and masks that
all sequences share. So the small batch's peak per token tells of large ones, and lies a little above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from indexer_kernels import Sequences
from numpy.typing import NDArray
from torch import Tensor

from indexer.errors import IndexerError
from indexer.models.forward import embedding_rows
from indexer.models.plan import MlpLayer
from indexer.models.runner import Runner

if TYPE_CHECKING:
    from indexer.models.loading import LoadedModel

# of the batch that is measured, at least
PROBE_TOKENS = 1024
# The statistics kernel leaves two float32 extremes per unit and block of a sequence; blocks are hardly ever
# shorter on the average.
EXTREMES_BYTES, SHORT_BLOCK_TOKENS = 8, 16


def forward_bytes(loaded: LoadedModel, layers: Sequence[MlpLayer], context: int) -> dict[torch.device, int]:
    """At most how many bytes a token of a batch takes at the forward's peak, on each device of the model.

    layers: those that are indexed; the forward ends with the last. context: tokens of the longest sequence.
    Raises IndexerError where the small batch, of 1,024 tokens or one sequence, does not fit.
    Cost: two forward passes over it.
    """
    batch = _Probe.of(-(-PROBE_TOKENS // context), context, embedding_rows(loaded.model))
    tokens = batch.token_ids.size
    extremes = EXTREMES_BYTES * max(layer.units for layer in layers) // SHORT_BLOCK_TOKENS
    peaks = dict.fromkeys((weight.device for weight in loaded.model.parameters()), 0)
    # what libraries take once is there with the second
    for _ in range(2):
        runner = Runner(loaded, [layer.layer for layer in layers], _Nothing(), matmul="torch")
        with peak_bytes(peaks), runner:
            runner.run(batch)
        if runner.most_tokens < tokens:
            raise IndexerError(
                f"--context {context}: batches of {tokens:,} tokens do not fit the memory of {loaded.device} "
                "beside the weights; use a shorter --context, --dtype bfloat16, or --device cpu"
            )
    return {device: -(-peak // tokens) + extremes for device, peak in peaks.items()}


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
class _Probe:
    """A batch of sequences of one length; see models.Batch."""

    token_ids: NDArray[np.int64]
    length: NDArray[np.int64]
    fixed: bool = False

    @classmethod
    def of(cls, rows: int, width: int, vocabulary: int) -> _Probe:
        length = np.full(rows, width)
        # with padding, for which some models need a mask
        length[-1] -= 1
        return cls(np.random.default_rng(0).integers(0, vocabulary, (rows, width)), length)

    def sequences(self) -> Sequences:
        rows, width = self.token_ids.shape
        number = np.arange(rows)
        ids = self.token_ids.reshape(-1).astype(np.int32)
        return Sequences(number * width, self.length, number, number, ids, np.ones(ids.shape, np.bool_))


class _Nothing:
    """An observer that takes neither activations nor memory."""

    def update(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        pass

    def activate(
        self, layer: int, function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
    ) -> Tensor:
        return out
