"""The states of all probes that are indexed, fed by the running model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from indexer_kernels import Statistics

from indexer.building.nonfinite import NonFinite, Watch, earlier, first_in
from indexer.index.ids import Ids
from indexer.index.records import LayerRecord
from indexer.models import Probe, Runner, Values
from indexer.names import Key
from indexer.partials.state import record_of, statistics_of


class States:
    """Takes the values of every probe into a `Statistics` of its own; `take` is for a Runner.

    seconds: time spent in the kernels so far, the activation functions included; on a GPU the time that it
        took to queue them.
    first_non_finite: the first place where a value was NaN or infinite, or None. On a GPU it is known after
        `finish`, and only where `run` runs the batches.
    """

    def __init__(self, probes: Sequence[Probe], *, kernels: str, threads: int) -> None:
        self.statistics: dict[Key, Statistics] = {
            probe.key: statistics_of(
                LayerRecord.empty(probe.key, probe.units, probe.keep, experts=probe.experts),
                kernels=kernels,
                threads=threads,
                width=probe.width,
            )
            for probe in probes
        }
        self.experts = {probe.key: probe.experts for probe in probes}
        self.kernels = kernels
        self.seconds = 0.0
        self.first_non_finite: NonFinite | None = None
        self._non_finite = dict.fromkeys(self.statistics, 0)
        self._watch: Watch | None = None

    def run(self, runner: Runner, batch: Any) -> None:
        """Run one batch, whose runner hands values to `take`; on a GPU it is queued, see `finish`."""
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
            self._non_finite = {key: state.non_finite() for key, state in self.statistics.items()}

    def take(self, key: Key, values: Values) -> None:
        """Take in a probe's values, computed in the same read where they are yet to be."""
        begin = time.perf_counter()
        if self.kernels == "triton":
            values.into(self.statistics[key])
        else:
            for some in values.parts():
                part = self.statistics[key].part(some.first)
                before = part.non_finite()
                some.into(self.statistics[key])
                self._look_for_non_finite(key, some, part.non_finite() - before)
            values.leave()
        self.seconds += time.perf_counter() - begin

    @property
    def non_finite(self) -> int:
        """Values so far that were NaN or infinite, over all units; on a GPU as of the last `finish`."""
        return sum(self._non_finite.values())

    def documents(self) -> np.ndarray:
        """Ids of the documents that examples point to at present: int64, ascending."""
        found = Ids()
        for statistics in self.statistics.values():
            for documents in statistics.documents():
                found.add(documents)
        return found.sorted()

    def restore(self, key: Key, statistics: Statistics) -> None:
        """Go on with an earlier state of a probe."""
        self.statistics[key] = statistics
        self._non_finite[key] = statistics.non_finite()

    def record(self, key: Key, last: bool = False) -> LayerRecord:
        """The states of one probe as they are now. last: nobody asks for them again, so they are let go."""
        statistics = self.statistics.pop(key) if last else self.statistics[key]
        return record_of(statistics, key, self.experts[key])

    def _look_for_non_finite(self, key: Key, values: Values, met: int) -> None:
        """met: how many there are among the values."""
        if met:
            self._non_finite[key] += met
            self.first_non_finite = earlier(self.first_non_finite, first_in(key, values))
