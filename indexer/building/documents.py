"""The documents that examples point to: how long each is, kept only as long as an example needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from indexer.corpus import Corpus
from indexer.corpus.sources import ROW_BITS

PRUNE_AT = 200_000


class Documents:
    """Lengths of documents by id.

    referenced: gives the ids that examples point to, int64. Documents without an example are dropped from
    time to time, so memory follows the number of examples and not that of documents: 16 bytes for each one
    that is referenced, and as much again between two times.
    """

    def __init__(self, referenced: Callable[[], np.ndarray]) -> None:
        self._referenced = referenced
        # ids and characters, int64 [2, documents]
        self._known = np.empty((2, 0), np.int64)
        self._new: list[tuple[int, int]] = []
        self._prune_at = PRUNE_AT

    def __len__(self) -> int:
        return self._known.shape[1] + len(self._new)

    def add(self, finished: Iterable[tuple[int, int]], *, running: bool = True) -> None:
        """Take in documents that are done with; `running` is whether more are to come.

        finished: (id, characters) of documents whose sequences have all been run, so that what examples point
        to now is what they will ever point to of these.
        """
        self._new.extend(finished)
        if len(self._new) >= PRUNE_AT:
            self._join()
        if running and len(self) >= self._prune_at:
            self._prune()
            self._prune_at = max(PRUNE_AT, 2 * len(self))

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` takes: the lengths that are still needed, int64 arrays of one size."""
        self._prune()
        return {"document": self._known[0], "characters": self._known[1]}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take the lengths of `state` in place of those that are here."""
        self._known, self._new = np.stack([state["document"], state["characters"]]), []

    def table(self, corpus: Corpus, referenced: np.ndarray) -> pa.Table:
        """The columns document: int64, source: string, row: int64, characters: int64; in the order of ids.

        referenced: int64, ascending ids of the documents wanted.
        characters is null for a document that --max-tokens cut off before its end.
        """
        self._join()
        order = np.argsort(self._known[0])
        ids, characters = self._known[:, order]
        place = np.searchsorted(ids, referenced)
        there = np.isin(referenced, ids)
        names = pa.array([file.source for file in corpus.files], pa.string())
        first = corpus.files[0].ordinal
        return pa.table(
            {
                "document": referenced,
                "source": names.take(pa.array((referenced >> ROW_BITS) - first)),
                "row": referenced & ((1 << ROW_BITS) - 1),
                "characters": pa.array(np.append(characters, 0)[place], mask=~there),
            }
        )

    def _join(self) -> None:
        """Put the new ones to those that are known."""
        self._known = np.concatenate([self._known, np.array(self._new, np.int64).reshape(-1, 2).T], axis=1)
        self._new = []

    def _prune(self) -> None:
        self._join()
        self._known = self._known[:, np.isin(self._known[0], self._referenced())]
