"""A set of document ids that may be as large as an index has examples."""

from __future__ import annotations

import numpy as np

# below this many ids there is nothing to save
_FEW = 1 << 20
_SLICE = 1 << 18


class Ids:
    """Distinct int64 ids. Memory: 8 bytes an id that is held twice at most, and little beside it."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._size = 0
        self._limit = _FEW

    def add(self, ids: np.ndarray) -> None:
        """Take in ids, in any order, repeated or not."""
        part = np.unique(ids)
        self._parts.append(part)
        self._size += len(part)
        if self._size > self._limit:
            self._limit = max(_FEW, 2 * len(self.sorted()))

    def sorted(self) -> np.ndarray:
        """All of them, ascending; not to be changed."""
        if len(self._parts) != 1:
            joined = np.empty(self._size, np.int64)
            end = self._size
            while self._parts:
                # let go of a part as soon as it is copied
                part = self._parts.pop()
                joined[end - len(part) : end] = part
                end -= len(part)
            joined.sort()
            self._parts = [_distinct(joined)]
            self._size = len(self._parts[0])
        return self._parts[0]


def _distinct(ascending: np.ndarray) -> np.ndarray:
    """The ids without repetitions, in the same memory."""
    written, last = 0, None
    for first in range(0, len(ascending), _SLICE):
        part = ascending[first : first + _SLICE].copy()
        new = np.ones(len(part), bool)
        new[1:] = part[1:] != part[:-1]
        new[0] = part[0] != last
        last = part[-1]
        part = part[new]
        ascending[written : written + len(part)] = part
        written += len(part)
    # give back what is beyond; nothing else refers to this array
    ascending.resize(written, refcheck=False)
    return ascending
