"""Batches for the models of tiny_models, and an observer in plain torch that keeps all it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from indexer_kernels import activate
from indexer_kernels.sequences import Sequences
from numpy.typing import NDArray
from torch import Tensor

from tests.tiny_models import VOCABULARY


@dataclass
class TinyBatch:
    """token_ids: int64 [sequences, width], padded on the right; length: int64 [sequences]."""

    token_ids: NDArray[np.int64]
    length: NDArray[np.int64]
    fixed: bool = False

    def sequences(self) -> Sequences:
        count, width = self.token_ids.shape
        first = np.arange(count) * width
        counted = (np.arange(width) < self.length[:, None]).reshape(-1)
        ids = self.token_ids.reshape(-1).astype(np.int32)
        return Sequences(first, self.length, np.arange(count), np.zeros(count, np.int64), ids, counted)

    def alone(self, sequence: int) -> TinyBatch:
        """One of the sequences, without padding."""
        length = int(self.length[sequence])
        return TinyBatch(self.token_ids[sequence : sequence + 1, :length].copy(), np.array([length]))


def tiny_batch(*lengths: int, seed: int = 0) -> TinyBatch:
    """Random token ids, in the padding too: what stands there must not matter. None is 0 or 1."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(2, VOCABULARY, size=(len(lengths), max(lengths)))
    return TinyBatch(ids, np.array(lengths))


@dataclass
class Keeper:
    """An observer that computes activations in plain torch and keeps a copy of them, by layer."""

    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    shown: list[Sequences] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def update(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        self._keep(f"update {layer}", layer, activations, sequences)

    def activate(
        self, layer: int, function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
    ) -> Tensor:
        assert out.data_ptr() == gate.data_ptr(), "the activation function has to work in place"
        out.copy_(activate(function, gate, up))
        self._keep(f"activate {layer}", layer, out, sequences)
        return out

    def _keep(self, call: str, layer: int, activations: Tensor, sequences: Sequences) -> None:
        assert activations.ndim == 2
        assert activations.stride(1) == 1
        assert activations.shape[0] == sequences.tokens
        self.calls.append(call)
        self.shown.append(sequences)
        self.kept.setdefault(layer, []).append(activations.clone())

    def layer(self, layer: int) -> Tensor:
        """All rows seen of a layer: [tokens, units]."""
        return torch.cat(self.kept[layer])
