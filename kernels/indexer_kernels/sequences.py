"""Where each sequence of a batch lies in the rows of an activation matrix, and which of its tokens count.

Every kernel takes activations as [tokens, units]; a `Sequences` says what the rows are. Rows that belong to
no sequence (padding) may lie between sequences: they are activated, but enter no statistic and no window.

A matrix may have rows of some tokens alone, as of those routed to an expert. Then these alone are counted,
and in a window the others have activation 0: what `spread` would make of the matrix is what it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer_kernels.errors import KernelInputError


@dataclass(frozen=True)
class Sequences:
    """The sequences of one batch, in rows of [tokens, units].

    start: int64 [sequences], each sequence's first token, ascending; sequences do not overlap.
    length: int64 [sequences], tokens in each, padding not counted.
    document: int64 [sequences], id of the document each is cut from.
    ordinal: int64 [sequences], its number within that document.
    token_ids: int32 [tokens], for the windows.
    counted: bool [tokens], False for padding and special tokens.
    at: int64 [rows], the token that each row of the matrix is of, ascending; None where every one has a row.
    Raises KernelInputError where shapes disagree or a sequence leaves the rows.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    document: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    counted: NDArray[np.bool_]
    at: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for name, dtype in (
            ("start", np.int64), ("length", np.int64), ("document", np.int64),
            ("ordinal", np.int64), ("token_ids", np.int32), ("counted", np.bool_),
        ):  # fmt: skip
            array = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            if array.ndim != 1:
                raise KernelInputError(f"sequences: {name} has {array.ndim} dimensions; it takes one")
            object.__setattr__(self, name, array)
        shapes = {len(self.start), len(self.length), len(self.document), len(self.ordinal)}
        if len(shapes) != 1:
            raise KernelInputError(
                "sequences: start, length, document and ordinal have "
                f"{len(self.start)}, {len(self.length)}, {len(self.document)}, {len(self.ordinal)} entries; "
                "they take one per sequence"
            )
        if len(self.token_ids) != len(self.counted):
            raise KernelInputError(
                f"sequences: {len(self.token_ids)} token ids but {len(self.counted)} counted flags; "
                "they take one of each per row"
            )
        end = self.start + self.length
        inside = (self.start >= 0) & (self.length >= 0) & (end <= len(self.counted))
        if not inside.all():
            bad = int(np.argmin(inside))
            raise KernelInputError(
                f"sequences: sequence {bad} takes rows {self.start[bad]} to {end[bad]} of {len(self.counted)}"
            )
        if (self.start[1:] < end[:-1]).any():
            raise KernelInputError(
                "sequences: sequences overlap or are not in ascending order of their first row"
            )
        if self.at is not None:
            at = np.ascontiguousarray(self.at, np.int64)
            object.__setattr__(self, "at", at)
            if len(at) and (at[0] < 0 or at[-1] >= len(self.counted) or (at[1:] <= at[:-1]).any()):
                raise KernelInputError(
                    f"sequences: rows of tokens {at.min()} to {at.max()} of {len(self.counted)}; they are "
                    "ascending, each once"
                )

    @classmethod
    def from_offsets(
        cls,
        offsets: NDArray[np.int64],
        document: NDArray[np.int64],
        ordinal: NDArray[np.int64],
        token_ids: NDArray[np.int32],
        counted: NDArray[np.bool_] | None = None,
    ) -> Sequences:
        """Sequences without padding; offsets: int64 [sequences + 1], rows where they begin and end."""
        offsets = np.asarray(offsets, dtype=np.int64)
        if counted is None:
            counted = np.ones(len(token_ids), dtype=np.bool_)
        return cls(offsets[:-1], np.diff(offsets), document, ordinal, token_ids, counted)

    @classmethod
    def none(cls, tokens: int) -> Sequences:
        """Rows of which none belongs to a sequence: they are activated, and enter no statistic."""
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, empty, empty, np.zeros(tokens, np.int32), np.zeros(tokens, np.bool_))

    @property
    def tokens(self) -> int:
        """Of the batch, padding included."""
        return len(self.counted)

    @property
    def matrix_rows(self) -> int:
        """Rows of the matrix."""
        return self.tokens if self.at is None else len(self.at)

    @cached_property
    def held(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """What `start`, `length` and `counted` are in rows of the matrix."""
        if self.at is None:
            return self.start, self.length, self.counted
        first, end = np.searchsorted(self.at, [self.start, self.start + self.length])
        return first, end - first, self.counted[self.at]

    @property
    def counted_tokens(self) -> int:
        """How many tokens enter the statistics."""
        start, length, counted = self.held
        before = np.cumsum(np.concatenate([[0], counted]))
        return int((before[start + length] - before[start]).sum())

    def spread(self) -> Sequences:
        """The same with a row for every token, of which those that have one now are counted."""
        if self.at is None:
            return self
        counted = np.zeros_like(self.counted)
        counted[self.at] = self.counted[self.at]
        return replace(self, counted=counted, at=None)

    def native(self) -> Any:
        """The compiled kernel's view of these arrays, made once."""
        if "_native" not in self.__dict__:
            from indexer_kernels import _cpp

            start, length, counted = self.held
            names = self.document, self.ordinal, self.token_ids
            view = _cpp.Batch(start, length, *names, counted, self.start, self.length, self.at)
            object.__setattr__(self, "_native", view)
        return self.__dict__["_native"]

    def __len__(self) -> int:
        return len(self.start)

    def rows(self, first: int, last: int) -> Sequences:
        """Sequences first to last - 1 alone, in rows counted from the first row of sequence `first`.

        Rows before the very first sequence are among them if it is.
        """
        begin = int(self.start[first]) if first else 0
        end = int(self.start[last]) if last < len(self) else self.tokens
        return Sequences(
            self.start[first:last] - begin,
            self.length[first:last],
            self.document[first:last],
            self.ordinal[first:last],
            self.token_ids[begin:end],
            self.counted[begin:end],
        )
