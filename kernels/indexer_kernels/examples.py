"""Examples as rows, one after the other, their windows in one array: as batches give and files hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# what an example has beside its unit and the tokens of its window
PLACE_FIELDS = ("value", "document", "sequence", "position", "window_start", "window_length")


@dataclass(frozen=True)
class ExampleRows:
    """Examples of one end of a block of units, those of a unit together.

    unit: int64 [rows], within the block, ascending.
    value: float32, document, sequence: int64, position, window_start, window_length: int32, all [rows].
    offset: int64 [rows], where a row's window begins in the next two.
    token_ids: int32, activations: float32, both [tokens].
    """

    unit: NDArray[np.int64]
    value: NDArray[np.float32]
    document: NDArray[np.int64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int32]
    window_start: NDArray[np.int32]
    window_length: NDArray[np.int32]
    offset: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    activations: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def width(self) -> int:
        """Tokens of the longest window."""
        return int(self.window_length.max(initial=0))

    def put_windows(
        self,
        rows: NDArray[np.int64],
        at: NDArray[np.int64],
        token_ids: NDArray[np.int32],
        activations: NDArray[np.float32],
    ) -> None:
        """Copy the windows of some rows to the rows `at` of arrays [n, width]; what is beyond is left alone.

        rows, at: int64 [chosen]. token_ids: int32, activations: float32, at least `width` wide.
        """
        length = self.window_length[rows]
        longest = int(length.max(initial=0))
        token = np.arange(longest)
        source = self.offset[rows][:, None] + token
        targets = ((self.token_ids, token_ids), (self.activations, activations))
        if (length == longest).all():
            for values, into in targets:
                into[at, :longest] = values[source]
            return
        inside = token < length[:, None]
        row, column = np.nonzero(inside)
        for values, into in targets:
            into[at[row], column] = values[source[inside]]
