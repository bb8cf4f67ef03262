"""A few sequences of every build run once more, alone: whether they come out of their batches as they should.

What models.alone asks before a build it asks of random tokens and some lengths; this asks of the text itself.
One sequence is taken of each of the batches 0, 1, 3, 7 and so on, so that the cost fades as a build goes on.
The rows of a few layers are put aside while the batch is run, and compared where they are. Nothing waits for
a GPU; its answers are looked at some batches later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from indexer_kernels import Sequences
from indexer_kernels.staging import OnItsWay, to_host
from torch import Tensor

from indexer.building.nonfinite import IN_FLIGHT
from indexer.building.observer import StatisticsObserver
from indexer.errors import IndexerError
from indexer.models import Runner
from indexer.models.alone import Key, Plain, Together, alone, difference, rows_of, tolerance

# whose rows are put aside; what is off in one layer is off in those behind it
LAYERS = 4
WAYS_OUT: dict[Together, str] = {
    "padded": "index this model with --padding never",
    "equal": "index this model with --batch-tokens 1",
    "single": "the model is random, or remembers earlier sequences; it cannot be indexed",
}


class SpotCheck:
    """Runs the batches of a build, and some of their sequences again.

    checked: sequences so far, earlier processes of the build included. largest: their largest difference, see
    models.alone.difference. Both are known on a GPU after `finish`.
    """

    def __init__(self, kernels: str, together: Together) -> None:
        """together: which sequences lie in one batch."""
        self.kernels = kernels
        self.together = together
        self.checked = 0
        self.largest = 0.0
        self._batches = 0
        self._asked: deque[_Asked] = deque()

    def run(self, runner: Runner, batch: Any, observer: StatisticsObserver) -> None:
        """Run one batch, whose runner calls the observer.

        Raises IndexerError for a sequence of this batch, or of one before it, that comes out otherwise alone.
        """
        number, self._batches = self._batches, self._batches + 1
        if number & (number + 1):
            observer.run(runner, batch)
        else:
            self._asked.append(self._run_checked(runner, batch, observer, number))
        behind = 0 if runner.loaded.device.type == "cpu" else IN_FLIGHT
        while self._asked and self._asked[0].batch + behind <= number:
            self._look(self._asked.popleft())

    def finish(self) -> None:
        """Look at all answers that are still to come; raises as `run` does."""
        while self._asked:
            self._look(self._asked.popleft())

    def _run_checked(self, runner: Runner, batch: Any, observer: StatisticsObserver, number: int) -> _Asked:
        chosen = np.random.default_rng(number)
        row = int(chosen.integers(len(batch.length)))
        sequences = batch.sequences()
        key = int(sequences.document[row]), int(sequences.ordinal[row])
        layers = [layer.layer for layer in runner.layers]
        some = {layers[-1], *chosen.permutation(layers)[: LAYERS - 1].tolist()}
        tap = _Tap(observer, key, some)
        with runner.observed_by(tap):
            observer.run(runner, batch)
        comparison = _Comparison(self.kernels, key, tap.kept)
        # torch.compile makes a graph of its own for batches of one
        runner.run_for(alone(batch, row, copies=2 if runner.compiled else 1), comparison)
        length, dtype = int(batch.length[row]), runner.loaded.dtype
        return _Asked(number, key, length, batch.token_ids.shape, dtype, comparison.apart)

    def _look(self, asked: _Asked) -> None:
        layer, off = max(
            ((layer, float(apart.arrived().max())) for layer, apart in asked.apart.items()),
            key=lambda entry: entry[1],
        )
        self.checked += 1
        self.largest = max(self.largest, off)
        if off <= tolerance(asked.dtype):
            return
        document, ordinal = asked.key
        shape = " x ".join(map(str, asked.shape))
        raise IndexerError(
            f"document {document}, sequence {ordinal}: its {asked.length} tokens differ by {off:.1%}, in "
            f"layer {layer}, in a batch of {shape} from what they are alone; {WAYS_OUT[self.together]}"
        )


@dataclass(frozen=True)
class _Asked:
    """A sequence whose differences, by layer, are on their way to the host; shape: of its batch."""

    batch: int
    key: Key
    length: int
    shape: tuple[int, int]
    dtype: torch.dtype
    apart: dict[int, OnItsWay]


@dataclass
class _Tap:
    """An observer that hands all on to another, and keeps the rows of one sequence in some layers."""

    observer: StatisticsObserver
    key: Key
    layers: set[int]
    kept: dict[int, Tensor] = field(default_factory=dict)

    def update(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        self.observer.update(layer, activations, sequences)
        self._keep(layer, activations, sequences)

    def activate(
        self, layer: int, function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
    ) -> Tensor:
        result = self.observer.activate(layer, function, gate, up, sequences, out)
        self._keep(layer, result, sequences)
        return result

    def _keep(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        rows = rows_of(self.key, activations, sequences) if layer in self.layers else None
        if rows is not None:
            self.kept[layer] = rows.clone()


class _Comparison(Plain):
    """An observer of one sequence alone, that compares it with its rows in a batch."""

    def __init__(self, kernels: str, key: Key, beside: dict[int, Tensor]) -> None:
        super().__init__(kernels)
        self.key, self.beside = key, beside
        self.apart: dict[int, OnItsWay] = {}

    def update(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        beside, rows = self.beside.pop(layer, None), rows_of(self.key, activations, sequences)
        if beside is not None and rows is not None:
            self.apart[layer] = to_host(difference(beside, rows))
