"""The panel: the same windows of text for all units of all sites, and what every unit does there.

A window is 64 counted tokens of one sequence, from a multiple of 64 on as they are counted there; the last
one of a sequence may be shorter. The panel has the windows with the smallest hashes: those of samples, with
`panel` for the layer and the window's number within its sequence for the unit. Of equal hashes the smaller
document comes first, then the smaller sequence and start. Nothing here depends on activations, so the same
corpus and tokenizer give the same windows for every model; and the smallest of all parts are the whole's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.hashes import scrambled, sequence_keys, unit_keys

WINDOW = 64


def windows_in(counted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All windows of some sequences: the row of its sequence, and its start, int64 [windows] both.

    counted: int64 [sequences], how many counted tokens each has.
    """
    number = -(-counted // WINDOW)
    row = np.repeat(np.arange(len(counted)), number)
    return row, WINDOW * (np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number))


def window_hashes(
    seed: int, document: NDArray[np.int64], sequence: NDArray[np.int64], start: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """uint64 [windows]; document, sequence, start: int64 [windows]."""
    number = start // WINDOW
    keys = unit_keys(seed, "panel", int(number.max(initial=0)) + 1)
    return scrambled(keys[number] ^ sequence_keys(document, sequence))


@dataclass(frozen=True)
class Windows:
    """Some windows of text, and their tokens one after another.

    hash: uint64 [windows]. document, sequence, start: int64 [windows]. length: int64 [windows], 1 to 64.
    token_ids: int32 [tokens].
    """

    hash: NDArray[np.uint64]
    document: NDArray[np.int64]
    sequence: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    token_ids: NDArray[np.int32]

    @classmethod
    def none(cls) -> Windows:
        """No windows."""
        empty = np.zeros(0, np.int64)
        return cls(empty.astype(np.uint64), empty, empty, empty, empty, empty.astype(np.int32))

    def __len__(self) -> int:
        return len(self.hash)

    @property
    def first(self) -> NDArray[np.int64]:
        """int64 [windows]: where in token_ids each one begins."""
        return np.cumsum(self.length) - self.length

    def joined(self, other: Windows) -> Windows:
        """These, and behind them others."""
        return Windows(
            **{name: np.concatenate([value, getattr(other, name)]) for name, value in vars(self).items()}
        )

    def order(self) -> NDArray[np.int64]:
        """int64 [windows]: the places of the windows, the smallest hash first."""
        return np.lexsort((self.start, self.sequence, self.document, self.hash))

    def places(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [tokens]: where in token_ids the tokens of some windows are, window by window."""
        length = self.length[chosen]
        begin = self.first[chosen] - (np.cumsum(length) - length)
        return np.arange(length.sum()) + np.repeat(begin, length)

    def taken(self, chosen: NDArray[np.int64]) -> Windows:
        """Some of the windows, by their places."""
        of_windows = {name: value[chosen] for name, value in vars(self).items() if name != "token_ids"}
        return Windows(**of_windows, token_ids=self.token_ids[self.places(chosen)])


@dataclass
class Panel:
    """What some units do on the windows.

    most, seed: how many windows there may be, and what they are chosen by. windows: in their order.
    activations: float32 [units, tokens], any strides; the columns are those of windows.token_ids. Or, to be
        written, what gives such of a slice of units.
    """

    most: int
    seed: int
    windows: Windows
    activations: Any

    @classmethod
    def empty(cls, units: int, most: int, seed: int) -> Panel:
        """Of no tokens."""
        return cls(most, seed, Windows.none(), np.zeros((units, 0), np.float32))

    def merge(self, other: Panel) -> None:
        """Take in the panel of other tokens: the windows of both with the smallest hashes are kept."""
        windows = self.windows.joined(other.windows)
        chosen = windows.order()[: self.most]
        activations = np.concatenate([self.activations, other.activations], axis=1)
        self.activations = activations.take(windows.places(chosen), axis=1)
        self.windows = windows.taken(chosen)
