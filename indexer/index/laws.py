"""The laws that hold between the columns of an index, whatever wrote it: what all statistics have in common.

Each check takes whole columns and raises IndexerError for the first unit that breaks a law. The laws of one
statistic stand with its codec.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from indexer.errors import IndexerError
from indexer.index.rows import LayerRows
from indexer.index.vocabulary import Vocabulary
from indexer.names import DECODER, Experts, stack_of


class LayerLaws:
    """One layer, for its codecs to check.

    rows: its files. table: its rows of units.parquet. documents: int64, ascending, the ids in
    documents.parquet. minimum, maximum: float32 [units], NaN where there is none.
    histogram: int64 [units, BINS], from the codec of histograms on, which is the first.
    """

    histogram: np.ndarray

    def __init__(
        self, index: Path, rows: LayerRows, table: pa.Table, vocabulary: Vocabulary, documents: np.ndarray
    ) -> None:
        self.where = f"index {index}: {rows.key}"
        self.rows, self.units, self.key = rows, rows.units, rows.key
        self.vocabulary, self.documents = vocabulary, documents
        self._table = table
        self.minimum, self.maximum = map(self.floats, ("minimum", "maximum"))

    def integers(self, name: str) -> np.ndarray:
        """A column of units.parquet without nulls, int64 [units]."""
        return self._table[name].to_numpy()

    def floats(self, name: str) -> np.ndarray:
        """A column of units.parquet with NaN for null, [units]."""
        return (
            self._table[name]
            .to_numpy(zero_copy_only=False)
            .astype(self._table.schema.field(name).type.to_pandas_dtype())
        )

    def check_units(self) -> None:
        """The layer's rows are its units in order."""
        import pyarrow.compute as pc

        if not np.array_equal(self.integers("unit"), np.arange(self.units)):
            raise IndexerError(f"{self.where}: units.parquet does not have units 0-{self.units - 1} in order")
        site, layer = self.key
        same = pc.and_(pc.equal(self._table["site"], site), pc.equal(self._table["layer"], layer))
        if pc.all(same).as_py() is False:
            raise IndexerError(f"{self.where}: units.parquet has other layers in its place")

    def check_token_counts(self, counts: np.ndarray, experts: Experts | None, of_targets: int) -> None:
        """Every counted token is one of the vocabulary's; counts: int64 [vocabulary].

        of_targets: how many of these a decoder alone reads; the encoder reads the others, or both read all.
        Of experts each counts the same in all of its units, and all together as often as tokens pass them.
        """
        count, total = self.integers("count"), counts.sum()
        if of_targets:
            total = of_targets if stack_of(self.key.site) == DECODER else total - of_targets
        if counts.min(initial=0) < 0:
            raise IndexerError(f"{self.where}: the counts in the vocabulary go below 0")
        if experts is None:
            self.require(
                count == total, "the counts in the vocabulary do not add up to its count of tokens"
            )
            return
        self.require((count >= 0) & (count <= total), "it counts more tokens than the vocabulary")
        by_expert = count.reshape(experts.number, -1)
        same = by_expert == by_expert[:, :1]
        self.require(same.reshape(-1), "it counts other tokens than the first neuron of its expert")
        if by_expert[:, 0].sum() > experts.per_token * total:
            raise IndexerError(
                f"{self.where}: its experts count more than {experts.per_token} times the tokens of the "
                "vocabulary"
            )

    def require(self, holds: np.ndarray, broken: str, unit: np.ndarray | None = None) -> None:
        """Raise IndexerError for the first row that does not hold; unit: of each row, else its number."""
        if not np.all(holds):
            first = int(np.argmin(holds))
            raise IndexerError(f"{self.where}.{first if unit is None else int(unit[first])}: {broken}")

    def require_equal(self, name: str, wanted: np.ndarray, whose: str) -> None:
        """A column of units.parquet is what it follows from; NaN where that is unknown."""
        found = self.floats(name)
        same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
        self.require(same, f"{name} is not {whose}")
