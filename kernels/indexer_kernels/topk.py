"""The k best examples of every unit, each with the window of tokens and activations around its peak.

A competitor is a sequence (with its extreme value, at the first position that reaches it), a token, or a
document. Competitors are ranked by a total order - value, then document, sequence and position ascending;
-0.0 is 0.0 - so the k winners do not depend on the order in which they come. Non-finite values do not
compete.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import committed_zeros, sequence_rows
from indexer_kernels.errors import KernelInputError
from indexer_kernels.sequences import Sequences

COMPETITORS = ("sequence", "token", "document")
PLACE_FIELDS = ("value", "document", "sequence", "position", "window_start", "window_length")


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
        """No examples yet. Raises KernelInputError for k below 1 and unknown competitors."""
        before, after = window
        if k < 1 or before < 0 or after < 0:
            raise KernelInputError(
                f"k is {k} and the window {before},{after}; k starts at 1 and the window at 0,0"
            )
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

    def update(self, activations: NDArray[np.float32], sequences: Sequences) -> None:
        """Let every counted token of a batch compete; activations: float32 [tokens, units]. The reference."""
        for unit in range(self.units):
            for index, row in self._competitors(activations[:, unit], sequences):
                start, length = int(sequences.start[index]), int(sequences.length[index])
                position = row - start
                first, last = max(0, position - self.before), min(length - 1, position + self.after)
                window = slice(start + first, start + last + 1)
                self._offer(
                    unit,
                    (activations[row, unit] + np.float32(0), sequences.document[index],
                    sequences.ordinal[index],
                     position, first, last + 1 - first),
                    sequences.token_ids[window],
                    activations[window, unit] + np.float32(0),
                )  # fmt: skip

    def merge(self, other: TopK) -> None:
        """Let the examples of `other` compete. Idempotent: an example is never held twice."""
        for unit in range(self.units):
            for place in range(other.filled[unit]):
                length = other.window_length[unit, place]
                self._offer(
                    unit,
                    tuple(getattr(other, name)[unit, place] for name in PLACE_FIELDS),
                    other.token_ids[unit, place, :length],
                    other.activations[unit, place, :length],
                )

    def ranked(self) -> TopK:
        """A copy whose places are in rank order, best first; undefined places come last."""
        undefined = np.arange(self.k) >= self.filled[:, None]
        key = -self.value if self.largest else self.value
        order = np.lexsort((self.position, self.sequence, self.document, key, undefined))
        unit = np.arange(self.units)[:, None]
        places = {
            name: getattr(self, name)[unit, order] for name in (*PLACE_FIELDS, "token_ids", "activations")
        }
        worst = np.full(self.units, self.k - 1, np.int32)
        return TopK(
            self.largest,
            self.by,
            self.before,
            self.after,
            self.threshold.copy(),
            worst,
            self.filled.copy(),
            **places,
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

    def _competitors(self, column: NDArray[np.float32], sequences: Sequences) -> Iterator[tuple[int, int]]:
        """(sequence, row) of each competitor; a document's sequences compete one by one for its place."""
        for index in range(len(sequences)):
            rows = sequence_rows(sequences, index)
            rows = rows[np.isfinite(column[rows])]
            if not len(rows):
                continue
            if self.by == "token":
                yield from ((index, int(row)) for row in rows)
            else:
                peak = np.argmax(column[rows]) if self.largest else np.argmin(column[rows])
                yield index, int(rows[peak])

    def _key(self, place: tuple[Any, ...]) -> tuple[float, int, int, int]:
        """Ascending in rank."""
        value, document, sequence, position = place[:4]
        return (-float(value) if self.largest else float(value)), int(document), int(sequence), int(position)

    def _offer(
        self, unit: int, example: tuple[Any, ...], tokens: NDArray[np.int32], window: NDArray[np.float32]
    ) -> None:
        """Give the example a place if it ranks before the worst, one place per competitor."""
        held = [
            tuple(getattr(self, name)[unit, place] for name in PLACE_FIELDS)
            for place in range(self.filled[unit])
        ]
        identity = {"document": 1, "sequence": 2, "token": 3}[self.by]
        same = [
            place
            for place, other in enumerate(held)
            if self._key(other)[1 : 1 + identity] == self._key(example)[1 : 1 + identity]
        ]
        if same or len(held) == self.k:
            place = same[0] if same else max(range(self.k), key=lambda place: self._key(held[place]))
            if self._key(example) >= self._key(held[place]):
                return
        else:
            place = len(held)
            self.filled[unit] += 1
        for name, number in zip(PLACE_FIELDS, example, strict=True):
            getattr(self, name)[unit, place] = number
        self.token_ids[unit, place, : len(tokens)] = tokens
        self.activations[unit, place, : len(window)] = window
        if self.filled[unit] == self.k:
            keys = [
                self._key(tuple(getattr(self, name)[unit, place] for name in PLACE_FIELDS))
                for place in range(self.k)
            ]
            self.worst[unit] = max(range(self.k), key=keys.__getitem__)
            self.threshold[unit] = self.value[unit, self.worst[unit]]
