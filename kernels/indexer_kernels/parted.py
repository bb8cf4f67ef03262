"""Statistics of a layer whose units come in parts, each of which may meet tokens of its own, as experts do.

The states are those of the whole layer. Each part is a `Statistics` over a share of their memory, so that
what is gathered part by part is there as one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import view_of
from indexer_kernels.statistics import Statistics


class PartedStatistics(Statistics):
    """The state of one layer in parts, each of which takes in by itself the tokens that it meets.

    parts: in the order of their units, of one width but for the last. They are on the CPU.
    """

    def __init__(self, units: int, *states: Any, width: int, **options: Any) -> None:
        """width: units of a part. The others: as Statistics takes them."""
        super().__init__(units, *states, **options)
        self.width = width
        firsts = range(0, units, width)
        self.parts = [self._part(slice(first, min(first + width, units))) for first in firsts]

    def part(self, first: int) -> Statistics:
        """The part whose first unit is number `first` of the layer."""
        return self.parts[first // self.width]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counted tokens of every unit, int64 [units]."""
        return np.concatenate([part.counts for part in self.parts])

    @counts.setter
    def counts(self, counts: NDArray[np.int64]) -> None:
        firsts = range(self.width, self.units, self.width)
        for part, of_part in zip(self.parts, np.split(counts, firsts), strict=True):
            part.counts = of_part

    def documents(self) -> NDArray[np.int64]:
        """Ids of the documents that places point to at present, ascending, each once."""
        return np.unique(np.concatenate([part.documents() for part in self.parts]))

    def settle(self) -> None:
        """Bring every state up to date for reading."""
        for part in self.parts:
            part.settle()

    def _part(self, units: slice) -> Statistics:
        states = (self.moments, self.histogram, self.top, self.bottom)
        return Statistics(
            units.stop - units.start,
            *(view_of(state, units) for state in states),
            samples=view_of(self.samples, units),
            others={name: view_of(state, units) for name, state in self.others.items()},
            kernels=self.kernels,
            threads=self.threads,
        )
