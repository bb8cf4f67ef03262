"""Finds the first NaN or infinite activation without making the GPU wait.

On the CPU a state is asked as soon as it has taken a batch. Kernels on a GPU raise a flag instead; the flags
of a batch are copied to the host behind its work and looked at a few batches later. Where one is raised, the
batch is run once more for the place alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from indexer_kernels import Sequences
from indexer_kernels.staging import OnItsWay, to_host
from torch import Tensor

from indexer.models import Values
from indexer.models.alone import Plain
from indexer.names import Key, Unit

# Batches that the device may be behind: enough to keep it busy, few enough that stopping does not take long.
IN_FLIGHT = 2


@dataclass(frozen=True, order=True)
class NonFinite:
    """Where a value that is not a number, or infinite, was met; ordered as documents are."""

    document: int
    sequence: int
    position: int
    layer: int
    site: str
    unit: int
    value: str

    def __str__(self) -> str:
        return (
            f"{self.value} at {Unit(self.site, self.layer, self.unit)}, document {self.document}, "
            f"sequence {self.sequence}, position {self.position}"
        )


def earlier(one: NonFinite | None, other: NonFinite | None) -> NonFinite | None:
    """The first of two places, either of which may not be there."""
    return min((place for place in (one, other) if place is not None), default=None)


def first_in(key: Key, values: Values) -> NonFinite | None:
    """The first place in a probe's values, or None; padding does not matter."""
    # one look at all of them, and rows one by one only where something was found
    activations, sequences = values.made(), values.sequences
    rows = torch.nonzero(~activations.isfinite().all(dim=1)).flatten().cpu().numpy()
    if not len(rows):
        return None
    start, length, counted = sequences.held
    for index in np.lexsort((sequences.ordinal, sequences.document)):
        mine = rows[(rows >= start[index]) & (rows < start[index] + length[index])]
        mine = mine[counted[mine]]
        if len(mine):
            row = int(mine[0])
            found = activations[row].float().cpu().numpy()
            unit = int(np.argmin(np.isfinite(found)))
            return NonFinite(
                int(sequences.document[index]),
                int(sequences.ordinal[index]),
                int((row if sequences.at is None else sequences.at[row]) - sequences.start[index]),
                key.layer,
                key.site,
                values.first + unit,
                str(found[unit]),
            )
    return None


class Locator(Plain):
    """Keeps the first place and nothing else.

    kernels: those that met it, since others might round it to a number.
    """

    def __init__(self, kernels: str) -> None:
        super().__init__(kernels)
        self.first: NonFinite | None = None

    def look(self, key: Key, values: Values) -> None:
        """Look through a probe's values."""
        self.first = earlier(self.first, first_in(key, values))


@dataclass
class _Asked:
    """A batch whose flags are on their way to the host, int32."""

    batch: Any
    flags: list[OnItsWay]

    def wait(self) -> bool:
        """Whether any flag was raised when the batch was done."""
        arrived = [flags.arrived() for flags in self.flags]
        return any(flags.any() for flags in arrived)


class Watch:
    """Asks the flags of all states after every batch, and looks at the answers later.

    run_again(batch, take): runs a batch for its values to be handed to `take`.
    found: called with the first place of a batch that has one.
    """

    def __init__(self, run_again: Callable[[Any, Any], None], kernels: str) -> None:
        self.run_again = run_again
        self.kernels = kernels
        self.first: NonFinite | None = None
        self._asked: deque[_Asked] = deque()
        self._raised: Iterable[Tensor] = ()

    def batch_done(self, batch: Any, raised: Iterable[Tensor]) -> None:
        """Ask for a batch that was queued; raised: int32 [1] of every state, see Statistics.met_non_finite.

        Looks at the answer for the batch that is IN_FLIGHT batches back, which waits for that one's work.
        """
        self._raised = list(raised)
        self._asked.append(_asked(batch, self._raised))
        if len(self._asked) > IN_FLIGHT:
            self._look(self._asked.popleft())

    def finish(self) -> None:
        """Look at all answers that are still to come."""
        while self._asked:
            self._look(self._asked.popleft())

    def _look(self, asked: _Asked) -> None:
        if not asked.wait():
            return
        for flag in self._raised:
            flag.zero_()
        # a flag stays set until the host reads it, so later batches in flight report a hit, too
        if self.first is None or _begins_before(asked.batch.sequences(), self.first):
            locator = Locator(self.kernels)
            self.run_again(asked.batch, locator.take)
            self.first = earlier(self.first, locator.first)


def _asked(batch: Any, raised: list[Tensor]) -> _Asked:
    """Begins the copies of all flags, one for each device."""
    devices = dict.fromkeys(flag.device for flag in raised)
    together = [torch.cat([flag for flag in raised if flag.device == device]) for device in devices]
    return _Asked(batch, [to_host(flags) for flags in together])


def _begins_before(sequences: Sequences, place: NonFinite) -> bool:
    """Whether any sequence may hold a place before this one."""
    before = (sequences.document < place.document) | (
        (sequences.document == place.document) & (sequences.ordinal <= place.sequence)
    )
    return bool(before.any())
