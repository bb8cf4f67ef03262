"""What must hold before the GPU pipeline reports: statistics gathered on the way equal the reference's."""

from __future__ import annotations

import numpy as np
import torch
from indexer_kernels import Keep, Sequences, Statistics
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu_kernels import some_units
from benchmarks.report import WrongResultError
from benchmarks.states import first_difference
from indexer.building.observer import StatisticsObserver
from indexer.models import LoadedModel, Runner
from indexer.tokens import Batch

SAMPLED = 4


class Columns:
    """An observer that hands on to another one, and keeps what it saw of a few units.

    units: int64 [SAMPLED] of every layer. seen: by layer, activations [tokens, SAMPLED] on the CPU, and
    sequences.
    """

    def __init__(self, observer: StatisticsObserver, units: dict[int, NDArray[np.int64]]) -> None:
        self.observer, self.units = observer, units
        self.seen: dict[int, tuple[Tensor, Sequences]] = {}

    def update(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        """Hand on, and keep."""
        self.observer.update(layer, activations, sequences)
        self._keep(layer, activations, sequences)

    def activate(
        self, layer: int, function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
    ) -> Tensor:
        """Hand on, and keep what came of it."""
        result = self.observer.activate(layer, function, gate, up, sequences, out)
        self._keep(layer, result, sequences)
        return result

    def _keep(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        columns = torch.from_numpy(self.units[layer]).to(activations.device)
        self.seen[layer] = (activations[:, columns].cpu(), sequences)


def checked_columns(loaded: LoadedModel, layers: list[int], batch: Batch, keep: Keep) -> str:
    """Run a batch for some layers alone, and compare a few units with the reference, bit for bit.

    Returns what was checked, in words. Raises WrongResultError.
    """
    random = np.random.default_rng(0)
    every = {layer.layer: layer.units for layer in loaded.select(layers)}
    units = {layer: np.sort(random.choice(count, SAMPLED, replace=False)) for layer, count in every.items()}
    observer = StatisticsObserver(every, keep, kernels="triton", threads=1)
    columns = Columns(observer, units)
    with Runner(loaded, list(every), columns) as runner:
        runner.run(batch)
    for layer, (activations, sequences) in columns.seen.items():
        reference = Statistics.empty(SAMPLED, keep, kernels="reference")
        reference.update(activations, sequences)
        found = first_difference(some_units(observer.statistics[layer], units[layer]), reference)
        if found is not None:
            raise WrongResultError(f"layer {layer}, units {units[layer].tolist()}: {found}")
    named = ", ".join(f"mlp.{layer}.{unit}" for layer, chosen in units.items() for unit in chosen)
    return f"statistics on the way equal the reference on the same activations, bit for bit, for {named}"


def check_sums(observer: StatisticsObserver) -> str:
    """Every value of the first, middle and last layer is in a bin, or not finite; else WrongResultError."""
    layers = sorted(observer.statistics)
    chosen = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    for layer in chosen:
        state = observer.statistics[layer]
        state.settle()
        assert state.histogram is not None
        assert state.moments is not None
        held = state.histogram.counts.sum(axis=1) + state.moments.nan + state.moments.inf
        if not (held == state.count).all():
            raise WrongResultError(
                f"layer {layer}: bins hold {held.min()} to {held.max()} of {state.count} values"
            )
    return f"after all rounds, bins + nan + inf = counted tokens for every unit of layers {chosen}"
