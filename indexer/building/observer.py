"""The states of all layers that are indexed, fed by the running model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from indexer_kernels import Keep, Sequences, Statistics
from torch import Tensor

from indexer.building.nonfinite import NonFinite, Watch, earlier, first_in
from indexer.index.records import LayerRecord
from indexer.models import Runner
from indexer.names import MLP, Key
from indexer.partials.state import record_of


class StatisticsObserver:
    """Takes activations layer by layer (see models.Observer) into one `Statistics` each.

    units: how many units each layer has, by layer.
    seconds: time spent in the kernels so far, the activation functions included; on a GPU the time that it
        took to queue them.
    first_non_finite: the first place where a value was NaN or infinite, or None. On a GPU it is known after
        `finish`, and only where `run` runs the batches.
    """

    def __init__(self, units: dict[int, int], keep: Keep, *, kernels: str, threads: int) -> None:
        self.statistics = {
            layer: Statistics.empty(count, keep, kernels=kernels, threads=threads)
            for layer, count in units.items()
        }
        self.kernels = kernels
        self.seconds = 0.0
        self.first_non_finite: NonFinite | None = None
        self._non_finite = dict.fromkeys(units, 0)
        self._watch: Watch | None = None

    def run(self, runner: Runner, batch: Any) -> None:
        """Run one batch, whose runner calls this observer; on a GPU it is queued, see `finish`."""
        runner.run(batch)
        if self.kernels == "triton":
            if self._watch is None:
                self._watch = Watch(runner.run_for, self.kernels)
            states = self.statistics.values()
            self._watch.batch_done(batch, [s.met_non_finite for s in states if s.met_non_finite is not None])

    def finish(self) -> None:
        """Wait for what is queued; counts and the first place are those of all batches then."""
        if self._watch is not None:
            self._watch.finish()
            self.first_non_finite = earlier(self.first_non_finite, self._watch.first)
        if self.kernels == "triton":
            self._non_finite = {layer: state.non_finite() for layer, state in self.statistics.items()}

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
        """Values so far that were NaN or infinite, over all units; on a GPU as of the last `finish`."""
        return sum(self._non_finite.values())

    def documents(self) -> np.ndarray:
        """Ids of the documents that examples point to at present: int64, ascending."""
        found = np.empty(0, np.int64)
        for statistics in self.statistics.values():
            found = np.union1d(found, statistics.documents())
        return found

    def restore(self, layer: int, statistics: Statistics) -> None:
        """Go on with an earlier state of a layer."""
        self.statistics[layer] = statistics
        self._non_finite[layer] = statistics.non_finite()

    def record(self, layer: int, last: bool = False) -> LayerRecord:
        """The states of one layer as they are now. last: nobody asks for them again, so they are let go."""
        statistics = self.statistics.pop(layer) if last else self.statistics[layer]
        return record_of(statistics, Key(MLP, layer))

    def _look_for_non_finite(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        if self.kernels == "triton":
            return
        total = self.statistics[layer].non_finite()
        if total == self._non_finite[layer]:
            return
        self._non_finite[layer] = total
        self.first_non_finite = earlier(self.first_non_finite, first_in(layer, activations, sequences))
