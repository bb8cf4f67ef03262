"""What an index says of the units of a layer: their states."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from indexer_kernels import Histogram, Keep, Moments, TopK

from indexer.names import Key


@dataclass(frozen=True)
class LayerRecord:
    """The settled states of one layer of one site, or of a block of its units.

    count: counted tokens, the same for every unit. top, bottom: of no places where none are kept.
    """

    key: Key
    count: int
    moments: Moments
    histogram: Histogram
    top: TopK
    bottom: TopK

    @classmethod
    def empty(cls, key: Key, count: int, units: int, keep: Keep) -> LayerRecord:
        """The states of no tokens; `count` is of those that are to be merged into it."""
        return cls(key, count, Moments.empty(units), Histogram.empty(units), *keep.ends(units))

    @property
    def units(self) -> int:
        """How many units there are."""
        return self.moments.nan.shape[0]

    @cached_property
    def summary(self) -> dict[str, np.ndarray]:
        """mean, variance (of the population), skewness, kurtosis: float64 [units], NaN where undefined."""
        return self.moments.summary(self.count)
