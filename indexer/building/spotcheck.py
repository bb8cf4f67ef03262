"""A few sequences of every build run once more, alone: whether they come out of their batches as they should.

What models.alone asks before a build it asks of random tokens and some lengths; this asks of the text itself.
One sequence is taken of each of the batches 0, 1, 3, 7 and so on, so that the cost fades as a build goes on.
The rows of a few probes are put aside while the batch is run, and compared where they are. Nothing waits for
a GPU; its answers are looked at some batches later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from indexer_kernels.staging import OnItsWay, to_host

from indexer.building.nonfinite import IN_FLIGHT
from indexer.building.states import States
from indexer.errors import IndexerError
from indexer.models import Runner, Values
from indexer.models.alone import Rows, SequenceId, Together, alone, apart, tolerance
from indexer.names import Key

# whose rows are put aside; what is off at one is off at those behind it
PROBES = 4
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

    def run(self, runner: Runner, batch: Any, states: States) -> None:
        """Run one batch, whose runner hands values to the states.

        Raises IndexerError for a sequence of this batch, or of one before it, that comes out otherwise alone.
        """
        number, self._batches = self._batches, self._batches + 1
        if number & (number + 1):
            states.run(runner, batch)
        else:
            self._asked.append(self._run_checked(runner, batch, states, number))
        behind = 0 if runner.loaded.device.type == "cpu" else IN_FLIGHT
        while self._asked and self._asked[0].batch + behind <= number:
            self._look(self._asked.popleft())

    def finish(self) -> None:
        """Look at all answers that are still to come; raises as `run` does."""
        while self._asked:
            self._look(self._asked.popleft())

    def _run_checked(self, runner: Runner, batch: Any, states: States, number: int) -> _Asked:
        chosen = np.random.default_rng(number)
        row = int(chosen.integers(len(batch.length)))
        sequences = batch.sequences()
        sequence = int(sequences.document[row]), int(sequences.ordinal[row])
        keys = [probe.key for probe in runner.probes]
        some = {keys[-1], *(keys[place] for place in chosen.permutation(len(keys))[: PROBES - 1])}
        beside = Rows(self.kernels, some)
        beside.kept = {sequence: {}}

        def take(key: Key, values: Values) -> None:
            states.take(key, values)
            if key in some:
                for part in values.parts():
                    beside.look(key, part)

        with runner.handing_to(take):
            states.run(runner, batch)
        # torch.compile makes a graph of its own for batches of one
        again = alone(batch, row, copies=2 if runner.compiled else 1)
        found = Rows(self.kernels, some).of(runner, again, [sequence])[sequence]
        differences = {
            key: to_host(apart(beside.kept[sequence].get(key, {}), rows)) for key, rows in found.items()
        }
        length, dtype = int(batch.length[row]), runner.loaded.dtype
        return _Asked(number, sequence, length, batch.token_ids.shape, dtype, differences)

    def _look(self, asked: _Asked) -> None:
        key, off = max(
            ((key, float(apart.arrived().max())) for key, apart in asked.apart.items()),
            key=lambda entry: entry[1],
        )
        self.checked += 1
        self.largest = max(self.largest, off)
        if off <= tolerance(asked.dtype):
            return
        document, ordinal = asked.sequence
        shape = " x ".join(map(str, asked.shape))
        raise IndexerError(
            f"document {document}, sequence {ordinal}: its {asked.length} tokens differ by {off:.1%}, at "
            f"{key}, in a batch of {shape} from what they are alone; {WAYS_OUT[self.together]}"
        )


@dataclass(frozen=True)
class _Asked:
    """A sequence whose differences, by probe, are on their way to the host; shape: of its batch."""

    batch: int
    sequence: SequenceId
    length: int
    shape: tuple[int, int]
    dtype: torch.dtype
    apart: dict[Key, OnItsWay]
