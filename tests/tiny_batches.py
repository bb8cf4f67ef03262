"""Batches for the models of tiny_models, their probes, and who keeps all that is handed over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from indexer_kernels import Keep, Sequences
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.models import LoadedModel, Probe, Values
from indexer.names import MLP, Key
from indexer.sites import Asked, find
from indexer.sites.hook import Hook
from tests.tiny_models import VOCABULARY


@dataclass
class TinyBatch:
    """token_ids: int64 [sequences, width], padded on the right; length: int64 [sequences]."""

    token_ids: NDArray[np.int64]
    length: NDArray[np.int64]
    fixed: bool = False
    target: TinyBatch | None = None

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


def mlps(loaded: LoadedModel, layers: Iterable[int] | None = None, **asked: Any) -> list[Probe]:
    """The probes of some layers' MLPs, or of all."""
    found = find(loaded, asked=Asked(**asked))
    return found if layers is None else [probe for probe in found if probe.key.layer in layers]


def places(units: Iterable[int], keep: Keep) -> list[Probe]:
    """Probes of no model: of so many units each, for what asks no more of them."""
    return [
        Hook(key=Key(MLP, layer), units=count, keep=keep, place=f"{layer}.down", module=nn.Identity())
        for layer, count in enumerate(units)
    ]


@dataclass
class Keeper:
    """Computes values in plain torch and keeps a copy of them, by layer; `take` is for a Runner."""

    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    shown: list[Sequences] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def take(self, key: Key, values: Values) -> None:
        assert key.site == MLP
        call = "read" if values.function is None else "made"
        self._keep(f"{call} {key.layer}", key.layer, values.made(), values.sequences)

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
