"""The k best examples of every unit, each with the window of tokens and activations around its peak.

A competitor is a sequence (with its extreme value, at the first position that reaches it), a token, or a
document. Competitors are ranked by a total order - value, then document, sequence and position ascending;
-0.0 is 0.0 - so the k winners do not depend on the order in which they come, nor on how they are grouped: a
state is merged by letting its examples compete again. Non-finite values do not compete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import committed_zeros, sequence_rows
from indexer_kernels.errors import KernelInputError
from indexer_kernels.examples import PLACE_FIELDS, ExampleRows
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
# nearly all of a state's memory, and seldom written
WINDOW_FIELDS = ("token_ids", "activations")


@dataclass
class TopK:
    """Up to k examples per unit, in no order; `ranked` sorts them.

    largest: whether the largest values win (top-k) or the smallest (bottom-k).
    by: what competes: "sequence", "token" or "document".
    before, after: tokens of the window on either side of the peak.
    threshold: float32 [units], value of the worst place once all are filled, -/+infinity before.
    worst: int32 [units], which place that is.
    filled: int32 [units], places taken; places beyond are undefined.
    value: float32, document, sequence: int64, position, window_start, window_length: int32, all [units, k].
    token_ids: int32, activations: float32, both [units, k, before + 1 + after], defined up to window_length.
    """

    largest: bool
    by: str
    before: int
    after: int
    threshold: NDArray[np.float32]
    worst: NDArray[np.int32]
    filled: NDArray[np.int32]
    value: NDArray[np.float32]
    document: NDArray[np.int64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int32]
    window_start: NDArray[np.int32]
    window_length: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    activations: NDArray[np.float32]
    _native: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(
        cls, units: int, k: int, *, largest: bool, by: str = "sequence", window: tuple[int, int] = (48, 15)
    ) -> TopK:
        """No examples yet. Raises KernelInputError for negative sizes and unknown competitors."""
        before, after = window
        if min(k, before, after) < 0:
            raise KernelInputError(f"k is {k} and the window {before},{after}; they start at 0 and 0,0")
        if by not in COMPETITORS:
            raise KernelInputError(f"competitor {by!r} is unknown; choose one of: {', '.join(COMPETITORS)}")
        places, window_shape = (units, k), (units, k, before + 1 + after)
        return cls(
            largest, by, before, after,
            np.full(units, -np.inf if largest else np.inf, np.float32),
            np.zeros(units, np.int32), np.zeros(units, np.int32),
            np.zeros(places, np.float32), np.zeros(places, np.int64), np.zeros(places, np.int64),
            np.zeros(places, np.int32), np.zeros(places, np.int32), np.zeros(places, np.int32),
            committed_zeros(window_shape, np.int32), committed_zeros(window_shape, np.float32),
        )  # fmt: skip

    @property
    def units(self) -> int:
        return self.value.shape[0]

    @property
    def k(self) -> int:
        return self.value.shape[1]

    @property
    def taken(self) -> NDArray[np.bool_]:
        """bool [units, k]: True where a place holds an example."""
        return np.arange(self.k) < self.filled[:, None]

    def update(self, activations: NDArray[np.float32], sequences: Sequences) -> None:
        """Let every counted token of a batch compete; activations: float32 [tokens, units]. The reference."""
        for index in range(len(sequences)):
            self.offer(self._competitors(activations, sequences, index))

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
        taken = self.taken[units]
        keys = self._keys({name: getattr(self, name)[units] for name in PLACE_FIELDS})
        order = np.lexsort((*reversed(keys), ~taken))
        unit = np.arange(len(taken))[:, None]
        return replace(
            self,
            threshold=self.threshold[units].copy(),
            worst=np.full(len(taken), self.k - 1, np.int32),
            filled=self.filled[units].copy(),
            **{name: getattr(self, name)[units][unit, order] for name in (*PLACE_FIELDS, *WINDOW_FIELDS)},
            _native=None,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": None}

    def native(self) -> Any:
        """The compiled kernel's view of this state."""
        if self._native is None:
            from indexer_kernels import _cpp

            self._native = _cpp.TopK(
                self.largest, COMPETITORS.index(self.by), self.before, self.after, self.threshold, self.worst,
                self.filled, self.value, self.document, self.sequence, self.position, self.window_start,
                self.window_length, self.token_ids, self.activations,
            )  # fmt: skip
        return self._native

    def _competitors(self, activations: NDArray[np.float32], sequences: Sequences, index: int) -> ExampleRows:
        """Those of one sequence in every unit; a document's sequences compete one by one for its place."""
        rows = sequence_rows(sequences, index)
        values = activations[rows].T + np.float32(0)  # [units, counted]
        competes = np.isfinite(values)
        if self.by != "token" and len(rows):
            if self.largest:
                peak = np.where(competes, values, -np.inf).argmax(axis=1)
            else:
                peak = np.where(competes, values, np.inf).argmin(axis=1)
            competes &= np.arange(len(rows)) == peak[:, None]
        unit, number = np.nonzero(competes)
        start, length = sequences.start[index], sequences.length[index]
        position = rows[number] - start
        first = np.maximum(position - self.before, 0)
        window_length = np.minimum(position + self.after + 1, length) - first
        offset = np.cumsum(window_length) - window_length
        # the row in the batch of each token of the windows
        token = np.arange(window_length.sum()) + np.repeat(start + first - offset, window_length)
        return ExampleRows(
            unit=unit,
            value=values[unit, number],
            document=np.full(len(unit), sequences.document[index]),
            sequence=np.full(len(unit), sequences.ordinal[index]),
            position=position.astype(np.int32),
            window_start=first.astype(np.int32),
            window_length=window_length.astype(np.int32),
            offset=offset,
            token_ids=sequences.token_ids[token],
            activations=activations[token, np.repeat(unit, window_length)] + np.float32(0),
        )

    def _insert(self, rows: ExampleRows, chosen: NDArray[np.int64]) -> None:
        """Give rows of different units the places they win; chosen: int64, numbers of rows."""
        unit = rows.unit[chosen]
        example = {name: getattr(rows, name)[chosen] for name in PLACE_FIELDS}
        filled = self.filled[unit]
        same = np.arange(self.k) < filled[:, None]  # [chosen, k]
        for name in IDENTITY[self.by]:
            same &= getattr(self, name)[unit] == example[name][:, None]
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
            keys = np.stack([rows.unit, *(getattr(rows, name) for name in IDENTITY[self.by])])
            keys = keys[:, np.lexsort(keys)]
            if (keys[:, 1:] == keys[:, :-1]).all(axis=0).any():
                free[:] = False
            self._put(rows, np.flatnonzero(free), place[free])
        return np.flatnonzero(~free)

    def _put(self, rows: ExampleRows, chosen: NDArray[np.int64], place: NDArray[np.int64]) -> None:
        """Write rows into places of their units, each place once; chosen: int64, numbers of rows."""
        unit = rows.unit[chosen]
        for name in PLACE_FIELDS:
            getattr(self, name)[unit, place] = getattr(rows, name)[chosen]
        flat = (getattr(self, name).reshape(self.units * self.k, -1) for name in WINDOW_FIELDS)
        rows.put_windows(chosen, unit * self.k + place, *flat)
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
