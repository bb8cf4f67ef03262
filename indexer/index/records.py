"""What an index says of the units of a layer: their states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from indexer_kernels import Bands, Histogram, Keep, Moments, TopK
from indexer_kernels.blocks import view_of
from indexer_kernels.heads import HeadScores
from indexer_kernels.panel import Panel

from indexer.names import HEADS, PANEL, TARGET_PANEL, Experts, Key, kind_of


@dataclass(frozen=True)
class LayerRecord:
    """The settled states of one layer of one site, or of a block of its units.

    count: int64 [units], counted tokens.
    states: by the names that Keep.states gives them, and a panel and `scores` of heads, which are made after
        a pass. `top`, `bottom` and `samples` are of no places where none are kept.
    experts: of the layer, where its units are those of routed experts.
    """

    key: Key
    count: np.ndarray
    states: Mapping[str, Any]
    experts: Experts | None = None

    @classmethod
    def empty(
        cls, key: Key, units: int, keep: Keep, first: int = 0, experts: Experts | None = None
    ) -> LayerRecord:
        """The states of no tokens; first: which unit of the layer is the first one here."""
        states = keep.states(units, str(key), first)
        if keep.panel:
            # an index has one of them, by its statistics
            states |= {name: Panel.empty(units, keep.panel, keep.seed) for name in (PANEL, TARGET_PANEL)}
        if kind_of(key.site) == HEADS:
            states["scores"] = HeadScores.empty(units, keep.panel)
        return cls(key, np.zeros(units, np.int64), states, experts)

    def part(self, units: slice) -> LayerRecord:
        """The record of some of the units, of the same memory."""
        states = {name: view_of(state, units) for name, state in self.states.items()}
        return replace(self, count=self.count[units], states=states)

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.count)

    @property
    def keep(self) -> Keep:
        """What is kept of every unit."""
        kept = {name: self.states[name] for name in ("top", "bottom", "samples") if name in self.states}
        kept = {name: state for name, state in kept.items() if state.places}
        facts: dict[str, Any] = {"top": 0, "bottom": 0}
        for name, state in kept.items():
            facts["window"] = state.before, state.after
            if name == "samples":
                facts |= {"samples": state.samples, "seed": state.seed}
            else:
                facts |= {name: state.k, "by": state.by, "distinct": state.distinct}
        for panel in (self.states[name] for name in (PANEL, TARGET_PANEL) if name in self.states):
            facts |= {"panel": panel.most, "seed": panel.seed}
        return Keep(**facts)

    @property
    def moments(self) -> Moments:
        """Counts of what is not finite, range and exact sums."""
        return self.states["moments"]

    @property
    def histogram(self) -> Histogram:
        """Counts of values by bin."""
        return self.states["histogram"]

    @property
    def top(self) -> TopK:
        """The places of the largest values."""
        return self.states["top"]

    @property
    def bottom(self) -> TopK:
        """The places of the smallest values."""
        return self.states["bottom"]

    @property
    def samples(self) -> Bands:
        """The places of fair examples."""
        return self.states["samples"]
