"""The k best examples of every unit, each with the window of tokens and activations around its peak.

A competitor is a sequence (with its extreme value, at the first position that reaches it), a token, or a
document. Competitors are ranked by a total order - value, then document, sequence and position ascending;
-0.0 is 0.0 - so the k winners do not depend on the order in which they come, nor on how they are grouped: a
state is merged by letting its examples compete again. Non-finite values do not compete.

Where places are distinct, only the best of the examples that show the same passage competes (see
ExampleRows.passage). The k winners still do not depend on the order: whoever is not held misses the worst
place, and places only get better, so a passage that was dropped returns with a better example or not at all.
With documents as competitors there is no such state. Let document D show passage A at 5 and B at 4, and
document E show A at 6. Where D is met first it holds 5, E puts that aside, and nothing of D is left. Where E
is met first, D's 5 leaves no trace, and its 4, met last, takes a place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import view_of
from indexer_kernels.errors import KernelInputError
from indexer_kernels.examples import PLACE_FIELDS, ExampleRows
from indexer_kernels.places import Places, no_places
from indexer_kernels.sequences import Sequences

# what tells the competitors of a unit apart; the order is that of csrc/job.hpp
IDENTITY = {
    "sequence": ("document", "sequence"),
    "token": ("document", "sequence", "position"),
    "document": ("document",),
}
COMPETITORS = tuple(IDENTITY)
# what decides between equal values, the first that differs; the smaller wins
TIES = ("document", "sequence", "position")


@dataclass(kw_only=True)
class TopK(Places):
    """Up to k examples per unit, in no order; `ranked` sorts them.

    largest: whether the largest values win (top-k) or the smallest (bottom-k).
    by: what competes: "sequence", "token" or "document". distinct: whether each passage has one place at
        most; not with "document".
    threshold: float32 [units], value of the worst place once all are filled, -/+infinity before.
    worst: int32 [units], which place that is.
    filled: int32 [units], places taken; places beyond are undefined.
    passage: uint64 [units, k], hash of what each place shows; [units, 0] where places are not distinct.
    """

    largest: bool
    by: str
    threshold: NDArray[np.float32]
    worst: NDArray[np.int32]
    filled: NDArray[np.int32]
    distinct: bool
    passage: NDArray[np.uint64]

    @classmethod
    def empty(
        cls, units: int, k: int, *, largest: bool, by: str = "sequence", distinct: bool = False,
        window: tuple[int, int] = (48, 15),
    ) -> TopK:  # fmt: skip
        """No examples yet. Raises KernelInputError for negative sizes and unknown competitors."""
        if by not in COMPETITORS:
            raise KernelInputError(f"competitor {by!r} is unknown; choose one of: {', '.join(COMPETITORS)}")
        if distinct and by == "document":
            raise KernelInputError("distinct examples are by sequence or token; see topk.py for the reason")
        return cls(
            largest=largest,
            by=by,
            threshold=np.full(units, -np.inf if largest else np.inf, np.float32),
            worst=np.zeros(units, np.int32),
            filled=np.zeros(units, np.int32),
            distinct=distinct,
            passage=np.zeros((units, k if distinct else 0), np.uint64),
            **no_places(units, k, window),
        )

    @property
    def k(self) -> int:
        return self.value.shape[1]

    @property
    def identity(self) -> tuple[str, ...]:
        """What those have in common that share one place."""
        return ("passage",) if self.distinct else IDENTITY[self.by]

    @property
    def taken(self) -> NDArray[np.bool_]:
        """bool [units, k]: True where a place holds an example."""
        return np.arange(self.k) < self.filled[:, None]

    def update(
        self, activations: NDArray[np.float32], sequences: Sequences, up: NDArray[np.float32] | None = None
    ) -> None:
        """Let every counted token of a batch compete. The reference.

        activations, up: float32 [tokens, units]; up: what they were multiplied by, where that is known.
        """
        for index in range(len(sequences)):
            self.offer(
                ExampleRows.of_sequence(
                    activations, sequences, index, (self.before, self.after),
                    largest=self.largest, every_token=self.by == "token", up=up,
                )
            )  # fmt: skip

    def offer(self, rows: ExampleRows) -> None:
        """Let examples compete, of other tokens or of the same ones: an example is never held twice.

        rows: their windows are no longer than those here.
        Cost: a comparison for each row, and some operations on its unit's k places for each that may win.
        """
        chosen = self._fill(rows) if self.k else np.empty(0, np.int64)
        while len(chosen):
            # of each unit one at a time; those that miss its threshold now will miss it later
            unit, value = rows.unit[chosen], rows.value[chosen]
            bar = self.threshold[unit]
            chosen = chosen[value >= bar if self.largest else value <= bar]
            unit = rows.unit[chosen]
            first = np.ones(len(unit), bool)
            first[1:] = unit[1:] != unit[:-1]
            self._insert(rows, chosen[first])
            chosen = chosen[~first]

    def ranked(self, units: slice = slice(None)) -> TopK:
        """A copy of some units, with places in rank order, best first; undefined places come last."""
        some = view_of(self, units)
        keys = some._keys({name: getattr(some, name) for name in PLACE_FIELDS})
        order, passage = np.lexsort((*reversed(keys), ~some.taken)), some.passage
        return replace(
            some,
            threshold=some.threshold.copy(),
            worst=np.full(some.units, self.k - 1, np.int32),
            filled=some.filled.copy(),
            passage=np.take_along_axis(passage, order, axis=1) if self.distinct else passage.copy(),
            **some.reordered(order),
            _native=None,
        )

    def _native_of(self, places: Any) -> Any:
        from indexer_kernels import _cpp

        by = COMPETITORS.index(self.by)
        arrays = self.threshold, self.worst, self.filled, self.passage
        return _cpp.TopK(places, self.largest, by, self.distinct, *arrays)

    def _insert(self, rows: ExampleRows, chosen: NDArray[np.int64]) -> None:
        """Give rows of different units the places they win; chosen: int64, numbers of rows."""
        unit = rows.unit[chosen]
        example = {name: getattr(rows, name)[chosen] for name in PLACE_FIELDS}
        filled = self.filled[unit]
        same = np.arange(self.k) < filled[:, None]  # [chosen, k]
        for name in self.identity:
            same &= getattr(self, name)[unit] == getattr(rows, name)[chosen][:, None]
        held = same.any(axis=1)
        # the place to win: that of the same competitor, or the first that is free, or the worst
        full = filled == self.k
        place = np.where(held, same.argmax(axis=1), np.where(full, self.worst[unit], filled))
        holder = {name: getattr(self, name)[unit, place] for name in PLACE_FIELDS}
        wins = ~(held | full) | ranks_before(self._keys(example), self._keys(holder))
        self._put(rows, chosen[wins], place[wins])

    def _fill(self, rows: ExampleRows) -> NDArray[np.int64]:
        """Give units without an example their first k rows at once; returns the numbers of the other rows.

        It does what `_insert` would, and nothing where a competitor comes twice.
        """
        place = np.arange(len(rows)) - np.searchsorted(rows.unit, rows.unit)
        free = (self.filled[rows.unit] == 0) & (place < self.k)
        if free.any():
            names = ("unit", *self.identity)
            keys = np.stack([getattr(rows, name).astype(np.uint64) for name in names])
            keys = keys[:, np.lexsort(keys)]
            if (keys[:, 1:] == keys[:, :-1]).all(axis=0).any():
                free[:] = False
            self._put(rows, np.flatnonzero(free), place[free])
        return np.flatnonzero(~free)

    def _put(self, rows: ExampleRows, chosen: NDArray[np.int64], place: NDArray[np.int64]) -> None:
        """Write rows, and find the worst places of units that are full; arguments as in `write`."""
        unit = rows.unit[chosen]
        self.write(rows, chosen, place)
        if self.distinct:
            self.passage[unit, place] = rows.passage[chosen]
        np.maximum.at(self.filled, unit, (place + 1).astype(np.int32))
        self._find_worst(np.unique(unit[self.filled[unit] == self.k]))

    def _find_worst(self, unit: NDArray[np.int64]) -> None:
        """Set `worst` and `threshold` of some units whose places are all taken."""
        value = self.value[unit]
        bar = value.min(axis=1) if self.largest else value.max(axis=1)
        worst = value == bar[:, None]  # [chosen, k]
        for name in TIES:
            if (worst.sum(axis=1) == 1).all():
                break
            key = getattr(self, name)[unit]
            worst &= key == np.where(worst, key, np.iinfo(key.dtype).min).max(axis=1)[:, None]
        self.worst[unit] = worst.argmax(axis=1)
        self.threshold[unit] = bar

    def _keys(self, places: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        value = places["value"]
        return [-value if self.largest else value, *(places[name] for name in TIES)]


def ranks_before(one: Sequence[NDArray[Any]], other: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Whether the one is before the other in the total order, bool of their shape.

    Of each the value, negated where the largest wins, document, sequence and position.
    """
    before = np.zeros(one[0].shape, bool)
    # from the last key to the first: a key decides where it differs, and leaves ties to those after it
    for left, right in zip(reversed(one), reversed(other), strict=True):
        before = (left < right) | ((left == right) & before)
    return before
