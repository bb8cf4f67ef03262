"""The states of all layers that are indexed, fed by the running model."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from indexer_kernels import Keep, Sequences, Statistics
from indexer_kernels.topk import TopK
from torch import Tensor

from indexer.index.records import LayerRecord
from indexer.partials.state import record_of
from indexer.units import Unit

MLP = "mlp"


@dataclass(frozen=True, order=True)
class NonFinite:
    """Where a value that is not a number, or infinite, was met; ordered as documents are."""

    document: int
    sequence: int
    position: int
    layer: int
    unit: int
    value: str

    def __str__(self) -> str:
        return (
            f"{self.value} at {Unit(MLP, self.layer, self.unit)}, document {self.document}, "
            f"sequence {self.sequence}, position {self.position}"
        )


class StatisticsObserver:
    """Takes activations layer by layer (see models.Observer) into one `Statistics` each.

    units: how many units each layer has, by layer.
    seconds: time spent in the kernels so far, the activation functions included.
    """

    def __init__(self, units: dict[int, int], keep: Keep, *, kernels: str, threads: int) -> None:
        self.statistics = {
            layer: Statistics.empty(count, keep, kernels=kernels, threads=threads)
            for layer, count in units.items()
        }
        self.seconds = 0.0
        self.first_non_finite: NonFinite | None = None
        self._non_finite = dict.fromkeys(units, 0)

    def update(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        """Take activations that the model computed; [tokens, units]."""
        begin = time.perf_counter()
        self.statistics[layer].update(activations, sequences)
        self._look_for_non_finite(layer, activations, sequences)
        self.seconds += time.perf_counter() - begin

    def activate(
        self, layer: int, function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
    ) -> Tensor:
        """Compute the activations and take them in the same read; [tokens, units]."""
        begin = time.perf_counter()
        self.statistics[layer].activate(function, gate, up, sequences, out)
        self._look_for_non_finite(layer, out, sequences)
        self.seconds += time.perf_counter() - begin
        return out

    @property
    def count(self) -> int:
        """Counted tokens so far."""
        return next(iter(self.statistics.values())).count

    @property
    def non_finite(self) -> int:
        """Values so far that were NaN or infinite, over all units."""
        return sum(self._non_finite.values())

    def documents(self) -> set[int]:
        """Ids of the documents that examples point to at present."""
        found: set[int] = set()
        for statistics in self.statistics.values():
            statistics.settle()
            for state in (statistics.top, statistics.bottom):
                if state is not None:
                    found.update(np.unique(state.document[_taken(state)]).tolist())
        return found

    def restore(self, layer: int, statistics: Statistics) -> None:
        """Go on with an earlier state of a layer."""
        self.statistics[layer] = statistics
        self._non_finite[layer] = statistics.non_finite()

    def take_record(self, layer: int) -> LayerRecord:
        """The finished numbers of one layer, whose state is given up for them."""
        statistics = self.statistics.pop(layer)
        return record_of(statistics, MLP, layer, copy=False)

    def _look_for_non_finite(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        total = self.statistics[layer].non_finite()
        if total == self._non_finite[layer]:
            return
        self._non_finite[layer] = total
        met = _first_non_finite(layer, activations, sequences)
        if met is not None and (self.first_non_finite is None or met < self.first_non_finite):
            self.first_non_finite = met


def _first_non_finite(layer: int, activations: Tensor, sequences: Sequences) -> NonFinite | None:
    order = np.lexsort((sequences.ordinal, sequences.document))
    for index in order:
        rows = np.arange(sequences.start[index], sequences.start[index] + sequences.length[index])
        rows = rows[sequences.counted[rows]]
        values = activations[rows].float().cpu().numpy()
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, unit = bad[0]
            return NonFinite(
                int(sequences.document[index]),
                int(sequences.ordinal[index]),
                int(rows[row] - sequences.start[index]),
                layer,
                int(unit),
                str(values[row, unit]),
            )
    return None


def _taken(state: TopK) -> np.ndarray:
    return np.arange(state.k) < state.filled[:, None]
