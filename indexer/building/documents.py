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

    referenced: gives the ids that examples point to. Documents without an example are dropped from time to
    time, so memory follows the number of examples and not that of documents.
    """

    def __init__(self, referenced: Callable[[], set[int]]) -> None:
        self._referenced = referenced
        self._characters: dict[int, int] = {}
        self._prune_at = PRUNE_AT

    def add(self, finished: Iterable[tuple[int, int]], *, running: bool = True) -> None:
        """Take in documents that are done with; `running` is whether more are to come.

        finished: (id, characters) of documents whose sequences have all been run, so that what examples point
        to now is what they will ever point to of these.
        """
        self._characters.update(finished)
        if running and len(self._characters) >= self._prune_at:
            self._prune()
            self._prune_at = max(PRUNE_AT, 2 * len(self._characters))

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` takes: the lengths that are still needed, int64 arrays of one size."""
        self._prune()
        count = len(self._characters)
        return {
            "document": np.fromiter(self._characters.keys(), np.int64, count),
            "characters": np.fromiter(self._characters.values(), np.int64, count),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take the lengths of `state` in place of those that are here."""
        pairs = zip(state["document"].tolist(), state["characters"].tolist(), strict=True)
        self._characters = dict(pairs)

    def table(self, corpus: Corpus, referenced: np.ndarray) -> pa.Table:
        """The columns document: int64, source: string, row: int64, characters: int64; in the order of ids.

        referenced: int64, ascending ids of the documents wanted.
        characters is null for a document that --max-tokens cut off before its end.
        """
        ids = referenced.tolist()
        sources = {file.ordinal: file.source for file in corpus.files}
        return pa.table(
            {
                "document": pa.array(ids, pa.int64()),
                "source": pa.array([sources[number >> ROW_BITS] for number in ids], pa.string()),
                "row": pa.array([number & ((1 << ROW_BITS) - 1) for number in ids], pa.int64()),
                "characters": pa.array([self._characters.get(number) for number in ids], pa.int64()),
            }
        )

    def _prune(self) -> None:
        referenced = self._referenced()
        self._characters = {key: value for key, value in self._characters.items() if key in referenced}
