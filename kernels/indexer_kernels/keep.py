"""What is kept of the units of a layer."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from indexer_kernels.histogram import Histogram
from indexer_kernels.moments import Moments
from indexer_kernels.topk import TopK


@dataclass(frozen=True)
class Keep:
    """What is kept of every unit: k at either end (0: none), the window around a peak, what competes."""

    top: int = 20
    bottom: int = 20
    window: tuple[int, int] = (48, 15)
    by: str = "sequence"

    def empty_states(self, units: int) -> tuple[Moments, Histogram, TopK | None, TopK | None]:
        """The states of no tokens: moments, histogram, top-k and bottom-k, None where it is not kept."""
        top, bottom = (
            TopK.empty(units, k, largest=largest, by=self.by, window=self.window) if k else None
            for k, largest in ((self.top, True), (self.bottom, False))
        )
        return Moments.empty(units), Histogram.empty(units), top, bottom

    def bytes_per_unit(self) -> int:
        """Main memory of one unit's states, in bytes."""
        values = (
            getattr(state, one.name) for state in self.empty_states(1) if state for one in fields(state)
        )
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
