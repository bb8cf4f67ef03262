"""Sequences that wait to be packed into batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Window:
    """Sequences waiting to be sorted: where each begins in token_ids, its tokens, document and ordinal.

    target: what a decoder reads beside each, where that is another text.
    """

    token_ids: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    document: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    target: Window | None = None

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Window:
        """That of which `state` was taken."""
        target = state["target"]
        return cls(**{**state, "target": None if target is None else cls.restored(target)})

    def state(self) -> dict[str, Any]:
        """Its fields, with those of the targets in a dictionary of their own."""
        return {**vars(self), "target": None if self.target is None else self.target.state()}

    @property
    def tokens(self) -> int:
        """Of all sequences and their targets."""
        return int(self.length.sum()) + (0 if self.target is None else self.target.tokens)

    @classmethod
    def joined(cls, windows: list[Window]) -> Window:
        """The sequences of several, one after the other."""
        targets = [window.target for window in windows if window.target is not None]
        base = np.cumsum([0] + [len(window.token_ids) for window in windows[:-1]])
        starts = [window.start + first for window, first in zip(windows, base, strict=True)]
        return cls(
            np.concatenate([window.token_ids for window in windows]),
            np.concatenate(starts),
            np.concatenate([window.length for window in windows]),
            np.concatenate([window.document for window in windows]),
            np.concatenate([window.ordinal for window in windows]),
            cls.joined(targets) if targets else None,
        )

    def taken(self, rows: NDArray[np.int64] | slice) -> Window:
        """Some of the sequences, with the tokens of all."""
        return Window(
            self.token_ids,
            self.start[rows],
            self.length[rows],
            self.document[rows],
            self.ordinal[rows],
            None if self.target is None else self.target.taken(rows),
        )

    def compacted(self) -> Window:
        """The same sequences without the tokens of others."""
        ends = np.cumsum(self.length)
        index = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
            self.start - (ends - self.length), self.length
        )
        target = None if self.target is None else self.target.compacted()
        start = ends - self.length
        return Window(self.token_ids[index], start, self.length, self.document, self.ordinal, target)
