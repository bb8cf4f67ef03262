"""Statistics of a layer whose units come in parts, each of which may meet tokens of its own, as experts do.

The states are those of the whole layer. Each part is a `Statistics` over a share of their memory, so that
what is gathered part by part is there as one. On a GPU all parts may also come together, by `routes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer_kernels.blocks import view_of
from indexer_kernels.device import Windows
from indexer_kernels.plan import Plan
from indexer_kernels.routes import Routes
from indexer_kernels.sequences import Sequences
from indexer_kernels.statistics import Statistics


class PartedStatistics(Statistics):
    """The state of one layer in parts, each of which takes in by itself the tokens that it meets.

    parts: in the order of their units, of one width but for the last.
    """

    # of each part the rows that came by routes since the last `settle`, int64 on the device
    _routed: Tensor | None = None

    def __init__(self, units: int, *states: Any, width: int, **options: Any) -> None:
        """width: units of a part. The others: as Statistics takes them."""
        super().__init__(units, *states, **options)
        self.width = width
        firsts = range(0, units, width)
        self.parts = [_Part(self, slice(first, min(first + width, units))) for first in firsts]

    def part(self, first: int) -> Statistics:
        """The part whose first unit is number `first` of the layer."""
        return self.parts[first // self.width]

    def to_device(self, device: torch.device, windows: Windows = "device") -> None:
        """See Statistics.to_device."""
        before = self._on_device
        super().to_device(device, windows)
        if self._on_device is not before:
            for part in self.parts:
                part.share()

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counted tokens of every unit, int64 [units]; on a GPU as of the last `settle`."""
        return np.concatenate([part.counts for part in self.parts])

    @counts.setter
    def counts(self, counts: NDArray[np.int64]) -> None:
        firsts = range(self.width, self.units, self.width)
        for part, of_part in zip(self.parts, np.split(counts, firsts), strict=True):
            part.counts = of_part

    def documents(self) -> Iterator[NDArray[np.int64]]:
        """Ids of the documents that places point to at present, part by part."""
        for part in self.parts:
            yield from part.documents()

    def settle(self) -> None:
        """Bring every state up to date for reading."""
        for part in self.parts:
            part.settle()
        if self._on_device is not None:
            self._on_device.sums.tokens = self._on_device.sums.blocks = 0
        if self._routed is not None:
            for part, rows in zip(self.parts, self._routed.tolist(), strict=True):
                part.count += rows
            self._routed = None

    def _shape(self, sequences: Sequences, routes: Routes | None) -> tuple[int, int]:
        if routes is None:
            return super()._shape(sequences, routes)
        return len(routes.token), self.width

    def _launch(self, *arguments: Any) -> Plan:
        plan = super()._launch(*arguments)
        if plan.routed:
            rows = plan.counted_rows()
            self._routed = rows if self._routed is None else self._routed + rows
        return plan

    def _count(self, sequences: Sequences, routes: Routes | None) -> None:
        if routes is None:
            super()._count(sequences, routes)

    def _update_others(self, activations: Tensor, sequences: Sequences, routes: Routes | None) -> None:
        if self.others and routes is not None:
            for number, rows, at in routes.on_host():
                self.parts[number]._update_others(activations[rows], replace(sequences, at=at), None)


class _Part(Statistics):
    """Some units of a layer, whose states are views of the layer's."""

    def __init__(self, whole: PartedStatistics, of_layer: slice) -> None:
        self.whole, self.of_layer = whole, of_layer
        states = (whole.moments, whole.histogram, whole.top, whole.bottom)
        super().__init__(
            of_layer.stop - of_layer.start,
            *(view_of(state, of_layer) for state in states),
            samples=view_of(whole.samples, of_layer),
            others={name: view_of(state, of_layer) for name, state in whole.others.items()},
            kernels=whole.kernels,
            threads=whole.threads,
        )

    def to_device(self, device: torch.device, windows: Windows = "device") -> None:
        """All parts lie there together."""
        self.whole.to_device(device, self.whole._windows)

    def share(self) -> None:
        """Go on with what the layer has on a device; its windows may lie in other memory than before."""
        whole, units = self.whole, self.of_layer
        self.top, self.bottom, self.samples = (
            view_of(state, units) for state in (whole.top, whole.bottom, whole.samples)
        )
        there = whole._on_device
        assert there is not None
        self._on_device = there.of_units(self.top, self.bottom, self.samples, units)
