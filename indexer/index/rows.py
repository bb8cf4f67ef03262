"""Examples as rows, one after the other, with their windows in one array: as files hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from indexer.index.records import Examples

# what a place has beside its window
PLACES = ("value", "document", "sequence", "position", "window_start", "window_length")


@dataclass(frozen=True)
class ExampleRows:
    """Examples of one extreme of a block of units, sorted by unit and rank."""

    unit: np.ndarray  # int64 [rows], within the block
    value: np.ndarray  # float32 [rows]
    document: np.ndarray  # int64 [rows]
    sequence: np.ndarray  # int64 [rows]
    position: np.ndarray  # int32 [rows]
    window_start: np.ndarray  # int32 [rows]
    window_length: np.ndarray  # int32 [rows]
    offset: np.ndarray  # int64 [rows], where a row's window begins in the next two
    token_ids: np.ndarray  # int32 [tokens]
    activations: np.ndarray  # float32 [tokens]

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def width(self) -> int:
        """Tokens of the longest window."""
        return int(self.window_length.max(initial=0))

    def put_windows(
        self, rows: np.ndarray, at: np.ndarray, token_ids: np.ndarray, activations: np.ndarray
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


def rows_of(examples: Examples) -> ExampleRows:
    """The filled places of a record, in their order; windows are not copied where memory is contiguous."""
    _, places, width = examples.token_ids.shape
    valid = examples.valid
    unit, place = np.nonzero(valid)
    return ExampleRows(
        unit=unit,
        **{name: getattr(examples, name)[valid] for name in PLACES},
        offset=(unit * places + place) * width,
        token_ids=examples.token_ids.reshape(-1),
        activations=examples.activations.reshape(-1),
    )
