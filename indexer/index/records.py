"""What an index says of the units of a layer: their states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from indexer_kernels import Histogram, Keep, Moments, TopK
from indexer_kernels.panel import Panel

from indexer.names import Key


@dataclass(frozen=True)
class LayerRecord:
    """The settled states of one layer of one site, or of a block of its units.

    count: int64 [units], counted tokens.
    states: by the names that Keep.states gives them, and `panel`, which is filled after a pass. `top` and
    `bottom` are of no places where none are kept.
    """

    key: Key
    count: np.ndarray
    states: Mapping[str, Any]

    @classmethod
    def empty(cls, key: Key, units: int, keep: Keep) -> LayerRecord:
        """The states of no tokens."""
        states = keep.states(units, str(key))
        if keep.panel:
            states["panel"] = Panel.empty(units, keep.panel, keep.seed)
        return cls(key, np.zeros(units, np.int64), states)

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.count)

    @property
    def keep(self) -> Keep:
        """What is kept of every unit."""
        ends = [self.states[name] for name in ("top", "bottom") if name in self.states]
        places = {"top" if end.largest else "bottom": end.k for end in ends}
        shape = next((end for end in ends if end.k), None)
        like = {} if shape is None else {"window": (shape.before, shape.after), "by": shape.by}
        panel = self.states.get("panel")
        chosen = {} if panel is None else {"panel": panel.most, "seed": panel.seed}
        return Keep(**{"top": 0, "bottom": 0, **places, **like, **chosen})

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
