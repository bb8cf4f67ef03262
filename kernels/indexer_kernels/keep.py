"""What is kept of the units of a layer."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from indexer_kernels.bands import Bands
from indexer_kernels.errors import KernelInputError
from indexer_kernels.hashes import unit_keys
from indexer_kernels.histogram import Histogram
from indexer_kernels.moments import Moments
from indexer_kernels.topk import TopK


@dataclass(frozen=True)
class Keep:
    """What is kept of every unit.

    top, bottom: examples at either end; 0: none. window: tokens before and after a peak. by: what competes
    for the ends. distinct: whether no two examples of an end show the same passage. samples: examples of each
    band; 0: none. panel: windows of the panel; 0: none. seed: of the hashes that these are chosen by.
    """

    top: int = 20
    bottom: int = 20
    window: tuple[int, int] = (48, 15)
    by: str = "sequence"
    distinct: bool = False
    samples: int = 0
    seed: int = 0
    panel: int = 0

    def within(self, context: int) -> Keep:
        """For sequences of at most `context` tokens, beyond which no window reaches."""
        before, after = (min(tokens, context - 1) for tokens in self.window)
        return replace(self, window=(before, after))

    def ends(self, units: int) -> tuple[TopK, TopK]:
        """Top-k and bottom-k of no tokens; of no places where none are kept."""
        top, bottom = (
            TopK.empty(units, k, largest=largest, by=self.by, distinct=self.distinct, window=self.window)
            for k, largest in ((self.top, True), (self.bottom, False))
        )
        return top, bottom

    def states(self, units: int, layer: str | None = None, first: int = 0) -> dict[str, Any]:
        """All states of no tokens, by name: what a new statistic is added to.

        layer: site and number, such as "mlp.5", on which samples depend. first: which of its units is the
        first one here. Raises KernelInputError where samples are kept and the layer is not given, for all
        layers would have the same ones.
        """
        top, bottom = self.ends(units)
        return {
            "moments": Moments.empty(units),
            "histogram": Histogram.empty(units),
            "top": top,
            "bottom": bottom,
            "samples": self.bands(units, layer, first),
        }

    def bands(self, units: int, layer: str | None = None, first: int = 0) -> Bands:
        """Samples of no tokens; of no places where none are kept. layer, first: see `states`."""
        if layer is None and self.samples:
            raise KernelInputError("samples differ between layers; name the layer, such as layer='mlp.5'")
        key = unit_keys(self.seed, layer or "", first + units)[first:]
        return Bands.empty(key, self.samples, window=self.window, seed=self.seed)

    def bytes_per_unit(self) -> int:
        """Main memory of one unit's states, in bytes, but for what is seldom written to."""
        states = (state for state in self.states(1, "").values() if getattr(state, "places", True))
        arrays = ((state, one) for state in states for one in fields(state) if "seldom" not in one.metadata)
        values = (getattr(state, one.name) for state, one in arrays)
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
