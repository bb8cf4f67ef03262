"""The k best examples of every unit of a block, gathered from rows that may come from any number of records.

The winners are those of the kernels' TopK: ranked by value, document, sequence, position; one place for each
competitor; the same example is never held twice. So the result depends neither on order nor on grouping.
"""

from __future__ import annotations

import numpy as np

from indexer.errors import IndexerError
from indexer.index.records import Examples
from indexer.index.rows import PLACES, ExampleRows

# what tells competitors of a unit apart
IDENTITY = {
    "sequence": ("document", "sequence"),
    "token": ("document", "sequence", "position"),
    "document": ("document",),
}


class Places:
    """k places for each of `units` units; windows of up to `width` tokens.

    Places are in rank order. Windows are not moved with them: `_slot` says which window each place has, so
    rows that win nothing cost a comparison, and a winner one copy of its window.
    Memory: 8 bytes for each token of a window, 44 for each place.
    """

    def __init__(self, units: int, k: int, width: int, *, largest: bool, by: str) -> None:
        """No example yet. Raises IndexerError for an unknown competitor."""
        if by not in IDENTITY:
            raise IndexerError(f"competitor {by!r} is unknown; choose one of: {', '.join(IDENTITY)}")
        self.units, self.k, self.largest, self.by = units, k, largest, by
        self._held = Examples.empty(units, k, width)
        self._slot = np.broadcast_to(np.arange(k), (units, k)).copy()

    def offer(self, rows: ExampleRows) -> None:
        """Let rows compete, one of each unit at a time.

        Cost: a comparison for each row, and some operations on its unit's k places for each that may win.
        """
        self._make_room(rows.width)
        chosen = np.arange(len(rows)) if self.k else np.empty(0, np.int64)
        while len(chosen):
            # the unit's rows to come are worse: where one fails, the bar stops them too
            chosen = chosen[self._reaches_bar(rows, chosen)]
            unit = rows.unit[chosen]
            first = np.ones(len(unit), bool)
            first[1:] = unit[1:] != unit[:-1]
            self._insert(rows, chosen[first])
            chosen = chosen[~first]

    def examples(self) -> Examples:
        """The winners in rank order; the places are given up for them."""
        held = self._held
        for values in (held.token_ids, held.activations):
            for unit in range(self.units):
                values[unit] = values[unit, self._slot[unit]]
        self._slot[:] = np.arange(self.k)
        return held

    def _reaches_bar(self, rows: ExampleRows, chosen: np.ndarray) -> np.ndarray:
        unit, value = rows.unit[chosen], rows.value[chosen]
        bar = self._held.value[unit, -1]
        # a tie may be won by its document
        reaches = value >= bar if self.largest else value <= bar
        return reaches | (self._held.filled[unit] < self.k)

    def _insert(self, rows: ExampleRows, chosen: np.ndarray) -> None:
        """Give rows of different units the places they win; chosen: int64, numbers of rows."""
        unit = rows.unit[chosen]
        candidate = {name: getattr(rows, name)[chosen] for name in PLACES}
        held = {name: getattr(self._held, name)[unit] for name in PLACES}  # [chosen, k]
        filled = self._held.filled[unit]
        valid = np.arange(self.k) < filled[:, None]
        ahead = valid & self._not_after(held, candidate)
        rank = ahead.sum(axis=1)
        same = valid.copy()
        for name in IDENTITY[self.by]:
            same &= held[name] == candidate[name][:, None]
        # the place that is given up: that of the same competitor, or the first empty one, or the last
        place = np.where(same.any(axis=1), same.argmax(axis=1), np.minimum(filled, self.k - 1))
        wins = (rank < self.k) & ~(same & ahead).any(axis=1)
        unit, rank, place, chosen = unit[wins], rank[wins], place[wins], chosen[wins]
        slot = self._slot[unit, place]
        number = np.arange(self.k)
        moved = number - ((number > rank[:, None]) & (number <= place[:, None]))
        moved += self.k * np.arange(len(unit))[:, None]
        won = rank + self.k * np.arange(len(unit))
        for name, values in candidate.items():
            places = held[name][wins].reshape(-1)[moved]
            places.reshape(-1)[won] = values[wins]
            getattr(self._held, name)[unit] = places
        slots = self._slot[unit].reshape(-1)[moved]
        slots.reshape(-1)[won] = slot
        self._slot[unit] = slots
        self._held.filled[unit] = np.maximum(self._held.filled[unit], place + 1)
        flat = (self._held.token_ids, self._held.activations)
        rows.put_windows(
            chosen, unit * self.k + slot, *(values.reshape(self.units * self.k, -1) for values in flat)
        )

    def _not_after(self, held: dict[str, np.ndarray], candidate: dict[str, np.ndarray]) -> np.ndarray:
        """Whether each held place ranks before its unit's candidate, or is the same; bool [chosen, k]."""
        value = candidate["value"][:, None]
        better = held["value"] > value if self.largest else held["value"] < value
        tied = held["value"] == value
        if not tied.any():
            return better
        before = np.ones_like(tied)
        # from the last key to the first: a key decides where it differs
        for name in ("position", "sequence", "document"):
            key = candidate[name][:, None]
            before = (held[name] < key) | ((held[name] == key) & before)
        return better | (tied & before)

    def _make_room(self, width: int) -> None:
        more = width - self._held.token_ids.shape[2]
        if more > 0:
            wider = {
                name: np.pad(getattr(self._held, name), ((0, 0), (0, 0), (0, more)))
                for name in ("token_ids", "activations")
            }
            self._held = Examples(**{**vars(self._held), **wider})
