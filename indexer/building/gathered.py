"""What a build has gathered so far, and as what of it a checkpoint keeps."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from indexer_kernels import KernelInputError

from indexer.building.documents import Documents
from indexer.building.memory import MainMemory, resident_bytes
from indexer.building.nonfinite import NonFinite
from indexer.building.panel import Chosen
from indexer.building.plan import Plan
from indexer.building.progress import WRITING_SPEED, Course
from indexer.building.spotcheck import SpotCheck
from indexer.building.states import States
from indexer.errors import IndexerError
from indexer.names import panel_of
from indexer.talk import in_bytes
from indexer.tokens import Batch


@dataclass
class Clock:
    """Seconds that a build has taken, those of earlier processes included.

    model: of its passes over the corpus. waited: of these, for text. panel: of filling that, at the end.
    """

    model: float = 0.0
    waited: float = 0.0
    panel: float = 0.0
    before: float = 0.0
    begin: float = 0.0

    @property
    def seconds(self) -> float:
        """Of everything, by now."""
        return self.before + time.perf_counter() - self.begin


class Gathered:
    """The states of all probes, and what a build knows beside them.

    token_counts: int64 [vocabulary], how often each token was counted. course: how far the build is.
    batch_tokens: of a batch; those of the first process, whatever memory is free now.
    tokens_before: counted tokens that earlier processes took in.
    loaded: the main memory that the process had before the states were made. memory: what it will have, on
        the CPU alone, once that was measured.
    """

    memory: MainMemory | None = None

    def __init__(self, plan: Plan, begin: float) -> None:
        """Nothing yet; begin: when this process began, as perf_counter tells it."""
        self.loaded = resident_bytes()
        self.token_counts = np.zeros(len(plan.vocabulary), np.int64)
        self.states = States(plan.probes, kernels=plan.kernels, threads=plan.threads)
        names = {panel_of(probe.key.site, plan.targets) for probe in plan.probes}
        self.panels = {
            name: Chosen(plan.config.panel, plan.config.seed, name, plan.targets) for name in sorted(names)
        }
        self.documents = Documents(self._pointed_to)
        self.spotcheck = SpotCheck(plan.kernels, plan.batching.together)
        self.course = Course(plan.state_bytes / WRITING_SPEED)
        self.clock = Clock(begin=begin)
        self.batch_tokens = plan.memory.batch_tokens
        self.tokens_before = 0

    def put_on_device(self, plan: Plan) -> None:
        """Make room for the states on the GPU, each beside its probe."""
        try:
            for probe in plan.probes:
                self.states.statistics[probe.key].to_device(probe.device, plan.memory.windows)
        except KernelInputError as error:
            raise IndexerError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise IndexerError(
                f"out of memory on {plan.loaded.device} with {in_bytes(plan.memory.device_state)} of "
                "statistics: another program took what was free; try again, or choose fewer --layers"
            ) from error

    def _pointed_to(self) -> np.ndarray:
        found = self.states.documents()
        for panel in self.panels.values():
            found = np.union1d(found, panel.windows.document)
        return found

    def run(self, runner: Any, batch: Batch) -> None:
        """Run one batch and take it in."""
        self.spotcheck.run(runner, batch, self.states)
        for panel in self.panels.values():
            panel.look(batch)
        for text in batch.texts:
            counted = text.token_ids[text.counted]
            self.token_counts += np.bincount(counted, minlength=len(self.token_counts))

    @property
    def count(self) -> int:
        """Counted tokens so far."""
        return int(self.token_counts.sum())

    def finish(self) -> None:
        """Wait for what is queued, so that all of it is of every batch that was run."""
        self.spotcheck.finish()
        self.states.finish()

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps beside its index: JSON values and arrays."""
        met = self.states.first_non_finite
        return {
            "documents": self.documents.state(),
            "panels": {name: panel.state() for name, panel in self.panels.items()},
            "first_non_finite": None if met is None else asdict(met),
            "kernel_seconds": self.states.seconds,
            "checked": self.spotcheck.checked,
            "largest_difference": self.spotcheck.largest,
            "course": [self.course.share, self.course.writing_seconds],
            "clock": [self.clock.model, self.clock.waited, self.clock.seconds],
            "batch_tokens": self.batch_tokens,
        }

    def restore(self, facts: dict[str, Any], token_counts: np.ndarray) -> None:
        """Go on from the facts of a checkpoint, whose states are there already."""
        # what was read cannot be added to
        self.token_counts = token_counts.copy()
        met = facts["first_non_finite"]
        self.states.first_non_finite = None if met is None else NonFinite(**met)
        self.states.seconds = facts["kernel_seconds"]
        self.documents.restore(facts["documents"])
        for name, panel in self.panels.items():
            panel.restore(facts["panels"][name])
        self.spotcheck.checked, self.spotcheck.largest = facts["checked"], facts["largest_difference"]
        self.course.share, self.course.writing_seconds = facts["course"]
        self.clock.model, self.clock.waited, self.clock.before = facts["clock"]
        self.batch_tokens = facts["batch_tokens"]
        self.tokens_before = self.count
