"""Examples as rows, one after the other, their windows in one array: as batches give and files hold them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.blocks import sequence_rows
from indexer_kernels.hashes import passage_hashes
from indexer_kernels.sequences import Sequences

# what an example has beside its unit and the tokens of its window
PLACE_FIELDS = ("value", "up", "document", "sequence", "position", "window_start", "window_length")
# nearly all of a state's memory, and seldom written
WINDOW_FIELDS = ("token_ids", "activations")
# of the passage that an example shows: tokens up to and with the peak
PASSAGE_TOKENS = 8


@dataclass(frozen=True)
class ExampleRows:
    """Examples of one kind of a block of units, those of a unit together.

    unit: int64 [rows], within the block, ascending.
    value, up: float32, document, sequence: int64, position, window_start, window_length: int32, all [rows].
        up: what the activation function's result was multiplied by at the peak; NaN where that is not known.
    offset: int64 [rows], where a row's window begins in the next two.
    token_ids: int32, activations: float32, both [tokens].
    """

    unit: NDArray[np.int64]
    value: NDArray[np.float32]
    up: NDArray[np.float32]
    document: NDArray[np.int64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int32]
    window_start: NDArray[np.int32]
    window_length: NDArray[np.int32]
    offset: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    activations: NDArray[np.float32]

    @classmethod
    def of_sequence(
        cls, activations: NDArray[np.float32], sequences: Sequences, index: int, window: tuple[int, int],
        *, largest: bool, every_token: bool = False, up: NDArray[np.float32] | None = None,
    ) -> ExampleRows:  # fmt: skip
        """A sequence's extreme value in every unit, at the first position that reaches it.

        activations, up: float32 [tokens, units]. largest: whether the maximum or the minimum. every_token:
            all counted tokens instead. What is not finite is left out.
        """
        rows = sequence_rows(sequences, index)
        values = activations[rows].T + np.float32(0)  # [units, counted]
        taken = np.isfinite(values)
        if not every_token and len(rows):
            if largest:
                peak = np.where(taken, values, -np.inf).argmax(axis=1)
            else:
                peak = np.where(taken, values, np.inf).argmin(axis=1)
            taken &= np.arange(len(rows)) == peak[:, None]
        unit, number = np.nonzero(taken)
        factor = np.full(len(unit), np.nan, np.float32)
        if up is not None:
            factor = up[rows[number], unit] + np.float32(0)
        before, after = window
        start, length = sequences.start[index], sequences.length[index]
        position = rows[number] - start
        first = np.maximum(position - before, 0)
        window_length = np.minimum(position + after + 1, length) - first
        offset = np.cumsum(window_length) - window_length
        # the row in the batch of each token of the windows
        token = np.arange(window_length.sum()) + np.repeat(start + first - offset, window_length)
        return cls(
            unit=unit,
            value=values[unit, number],
            up=factor,
            document=np.full(len(unit), sequences.document[index]),
            sequence=np.full(len(unit), sequences.ordinal[index]),
            position=position.astype(np.int32),
            window_start=first.astype(np.int32),
            window_length=window_length.astype(np.int32),
            offset=offset,
            token_ids=sequences.token_ids[token],
            activations=activations[token, np.repeat(unit, window_length)] + np.float32(0),
        )

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def width(self) -> int:
        """Tokens of the longest window."""
        return int(self.window_length.max(initial=0))

    @cached_property
    def passage(self) -> NDArray[np.uint64]:
        """uint64 [rows], hash of each row's passage: the last eight tokens of its window up to the peak."""
        return passages_of(self.token_ids, self.offset, self.position - self.window_start)

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


def passages_of(
    token_ids: NDArray[np.int32], offset: NDArray[np.int64], peak: NDArray[np.int32]
) -> NDArray[np.uint64]:
    """uint64 [windows], the hash of what each window shows up to its peak, at most eight tokens.

    token_ids: int32 [tokens], of all windows. offset: int64 [windows], where each begins; peak: int32
    [windows], where in it the peak is.
    """
    ahead = np.arange(PASSAGE_TOKENS - 1, -1, -1)
    # of a window with fewer the first ones are not looked at
    token = (offset + peak)[:, None] - np.minimum(ahead, peak[:, None])
    return passage_hashes(token_ids[token], np.minimum(peak + 1, PASSAGE_TOKENS))
