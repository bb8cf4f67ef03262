"""The laws that hold between the columns of an index, whatever wrote it.

Each check takes whole columns and raises IndexerError for the first unit that breaks a law.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from indexer_kernels import Moments
from indexer_kernels.histogram import BINS, active, bin_edges, bins_between, bins_of, positive, quantiles
from indexer_kernels.moments import OVERFLOWED, POWERS
from indexer_kernels.topk import TIES, ranks_before

from indexer.errors import IndexerError
from indexer.index.manifest import LayerEntry
from indexer.index.tables import EXTREMES
from indexer.index.vocabulary import Vocabulary

# a sum of n tokens is within this share of the sum of |x|^p: float32 sums of up to 256 positions
_SUM_ERROR = 256 * 2.0**-24
# where |x|^p is below, no sum over 256 positions can leave float32
_SAFE = 2.0**119
_UNITS_AT_ONCE = 1_024


class LayerLaws:
    """The laws of one layer.

    units: the layer's rows of units.parquet. documents: int64, ascending, the ids in documents.parquet.
    """

    def __init__(
        self, index: Path, entry: LayerEntry, units: pa.Table, vocabulary: Vocabulary, documents: np.ndarray
    ) -> None:
        self._where = f"index {index}: {entry.key}"
        self._entry = entry
        self._units = units
        self._vocabulary = vocabulary
        self._documents = documents
        self._last = (-1, -1, -1)
        self._minimum, self._maximum = (
            units[name].to_numpy(zero_copy_only=False).astype(np.float32) for name in ("minimum", "maximum")
        )

    def check_units(self) -> None:
        """The layer's rows are its units in order, with its count."""
        numbers = self._units["unit"].to_numpy()
        if not np.array_equal(numbers, np.arange(self._entry.units)):
            raise IndexerError(
                f"{self._where}: units.parquet does not have units 0-{self._entry.units - 1} in order"
            )
        place = pc.all(
            pc.and_(
                pc.equal(self._units["site"], self._entry.site),
                pc.equal(self._units["layer"], self._entry.layer),
            )
        ).as_py()
        if place is False:
            raise IndexerError(f"{self._where}: units.parquet has other layers in its place")
        self._require(
            self._units["count"].to_numpy() == self._entry.count, numbers, "its count is not the layer's"
        )

    def check_token_counts(self, counts: np.ndarray) -> None:
        """Every counted token is one of the vocabulary's; counts: int64 [vocabulary]."""
        if counts.min(initial=0) < 0 or counts.sum() != self._entry.count:
            raise IndexerError(
                f"{self._where}: the counts in the vocabulary do not add up to its {self._entry.count} tokens"
            )

    def check_histograms(self, table: pa.Table) -> None:
        """Bins are those of the format, in order, and agree with counts, extremes and quantiles.

        table: the whole histograms file of the layer.
        """
        histogram = self._histogram = self._dense(table)
        number = np.arange(self._entry.units)
        column = {
            name: self._units[name].to_numpy() for name in ("count", "positive", "active", "nan", "inf")
        }
        finite = histogram.sum(axis=1)
        total = finite + column["nan"] + column["inf"]
        self._require(total == column["count"], number, "bins, nan and inf do not add up to count")
        for name, wanted, bins in (
            ("positive", positive(histogram), "bins above zero"),
            ("active", active(histogram), "bins from 2^-10 on"),
        ):
            self._require(column[name] == wanted, number, f"{name} is not the sum of the {bins}")
        seen = finite > 0
        lowest = (histogram > 0).argmax(axis=1)
        highest = BINS - 1 - (histogram[:, ::-1] > 0).argmax(axis=1)
        for name, extreme, filled in (
            ("minimum", self._minimum, lowest),
            ("maximum", self._maximum, highest),
        ):
            self._require(
                np.isnan(extreme) == ~seen, number, f"{name} is known without a value or the other way round"
            )
            self._require(
                ~seen | (bins_of(extreme) == filled), number, f"{name} is not in the outermost filled bin"
            )
        for name, quantile in quantiles(histogram, self._minimum, self._maximum).items():
            found = self._units[name].to_numpy(zero_copy_only=False).astype(np.float32)
            self._require(
                (found == quantile) | (np.isnan(found) & np.isnan(quantile)),
                number,
                f"{name} is not that of the bins",
            )

    def check_sums(self, moments: Moments) -> None:
        """The moments are those of the exact sums, and each sum is one that values in these bins can have.

        To be called after `check_histograms`.
        """
        number = np.arange(self._entry.units)
        for name, wanted in moments.summary(self._entry.count).items():
            found = self._units[name].to_numpy(zero_copy_only=False)
            same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
            self._require(same, number, f"{name} is not that of the sums of powers")
        totals, lost = moments.sums_of_powers(), moments.sums[..., OVERFLOWED]
        for first in range(0, self._entry.units, _UNITS_AT_ONCE):
            units = slice(first, first + _UNITS_AT_ONCE)
            self._check_range_of_sums(totals[units], lost[units], units)

    def _check_range_of_sums(self, totals: np.ndarray, overflowed: np.ndarray, units: slice) -> None:
        """Between the sums of the lowest and of the highest value that each bin can have held.

        totals: float64 [chosen, POWERS]. overflowed: int64 of that shape, partial sums that left float32.
        """
        counts = self._histogram[units]
        number = np.arange(self._entry.units)[units]
        # the bins of a unit without a value are empty
        extremes = [np.nan_to_num(values[units])[:, None] for values in (self._minimum, self._maximum)]
        edges = [np.clip(edge, *extremes).astype(np.float64) for edge in bin_edges()]
        ends = [np.ones(1), np.ones(1)]
        for power in range(1, POWERS + 1):
            ends = [end * edge for end, edge in zip(ends, edges, strict=True)]
            largest = np.maximum(*map(np.abs, ends))
            lowest, highest = ((counts * end(*ends)).sum(axis=1) for end in (np.minimum, np.maximum))
            # beside the share of it, what each tiny value loses to underflow
            slack = _SUM_ERROR * (counts * largest).sum(axis=1) + counts.sum(axis=1) * 2.0**-149
            found, lost = totals[:, power - 1], overflowed[:, power - 1]
            self._require(
                (lost >= 0) & ((lost == 0) | (largest.max(axis=1) >= _SAFE)),
                number,
                f"its sum of x^{power} left float32, and its range is too small for that",
            )
            self._require(
                (lost > 0) | ((found >= lowest - slack) & (found <= highest + slack)),
                number,
                f"its sum of x^{power} is impossible for values in its bins",
            )

    def check_examples(self, table: pa.Table) -> None:
        """Examples are ranked by the total order, lie within the extremes, and their windows hold the peaks.

        table: one row group of the layer's examples file, which are to be given in order.
        """
        columns = {
            name: table[name].to_numpy()
            for name in (
                "unit",
                "rank",
                "value",
                "document",
                "sequence",
                "position",
                "token_id",
                "window_start",
            )
        }
        unit = columns["unit"]
        if len(unit) and (unit.min() < 0 or unit.max() >= self._entry.units):
            raise IndexerError(f"{self._where}: examples of a unit the layer has not")
        extreme = pc.index_in(table["extreme"], pa.array(EXTREMES)).to_numpy(zero_copy_only=False)
        self._check_order(columns, extreme)
        value, first = columns["value"], columns["rank"] == 1
        self._require(np.isfinite(value), unit, "an example's value is not finite")
        best = np.where(extreme == EXTREMES.index("top"), self._maximum[unit], self._minimum[unit])
        self._require(~first | (value == best), unit, "its first example is not its minimum or maximum")
        known = np.isin(columns["document"], self._documents)
        self._require(known, unit, "an example points to a document that documents.parquet has not")
        self._check_windows(table, columns)

    def _check_order(self, columns: dict[str, np.ndarray], extreme: np.ndarray) -> None:
        """Rows ascend by unit, extreme, rank; ranks count from 1; places ascend by the total order."""
        unit, rank = columns["unit"], columns["rank"]
        if not len(unit):
            return
        before = [
            np.concatenate([[last], now[:-1]])
            for last, now in zip(self._last, (unit, extreme, rank), strict=True)
        ]
        same = (unit == before[0]) & (extreme == before[1])
        ascends = (unit > before[0]) | ((unit == before[0]) & (extreme > before[1])) | same
        self._require(ascends, unit, "examples are not sorted by unit and extreme")
        self._require(rank == np.where(same, before[2] + 1, 1), unit, "ranks do not count from 1")
        self._last = (int(unit[-1]), int(extreme[-1]), int(rank[-1]))
        value = np.where(extreme == EXTREMES.index("top"), -columns["value"], columns["value"])
        keys = [value, *(columns[name] for name in TIES)]
        ordered = ranks_before([key[:-1] for key in keys], [key[1:] for key in keys])
        self._require(
            np.concatenate([[True], ordered | ~same[1:]]), unit, "examples are not in the total order"
        )

    def _check_windows(self, table: pa.Table, columns: dict[str, np.ndarray]) -> None:
        ids, activations = (table[name].combine_chunks() for name in ("token_ids", "activations"))
        length = pc.list_value_length(ids).to_numpy()
        unit = columns["unit"]
        self._require(
            length == pc.list_value_length(activations).to_numpy(), unit, "windows of unequal length"
        )
        inside = columns["position"] - columns["window_start"]
        self._require((inside >= 0) & (inside < length), unit, "a window does not hold its peak")
        peak = np.cumsum(length) - length + inside
        at_peak = ids.flatten().to_numpy()[peak]
        self._require(at_peak == columns["token_id"], unit, "a window has another token at its peak")
        self._require(
            activations.flatten().to_numpy()[peak] == columns["value"],
            unit,
            "a window has another value at its peak",
        )
        spelled = pc.equal(self._vocabulary.token_strings(at_peak), table["token"].combine_chunks())
        self._require(spelled.to_numpy(zero_copy_only=False), unit, "a token is not that of its id")
        texts = pc.equal(self._vocabulary.texts(ids.values, ids.offsets), table["text"].combine_chunks())
        self._require(texts.to_numpy(zero_copy_only=False), unit, "a text is not that of its token ids")

    def _dense(self, table: pa.Table) -> np.ndarray:
        """int64 [units, BINS] from rows, which must be bins of the format in ascending order."""
        columns: dict[str, Any] = {
            name: table[name].to_numpy() for name in ("unit", "lower", "upper", "count")
        }
        unit = columns["unit"]
        if len(unit) and (unit.min() < 0 or unit.max() >= self._entry.units):
            raise IndexerError(f"{self._where}: bins of a unit the layer has not")
        number = bins_between(columns["lower"], columns["upper"])
        self._require(number >= 0, unit, "a bin has edges that are not the format's")
        key = unit.astype(np.int64) * BINS + number
        self._require(np.concatenate([[True], np.diff(key) > 0])[: len(key)], unit, "bins are not in order")
        self._require(columns["count"] > 0, unit, "an empty bin")
        histogram = np.zeros(self._entry.units * BINS, np.int64)
        histogram[key] = columns["count"]
        return histogram.reshape(self._entry.units, BINS)

    def _require(self, holds: np.ndarray, unit: np.ndarray, broken: str) -> None:
        if not np.all(holds):
            raise IndexerError(f"{self._where}.{int(unit[np.argmin(holds)])}: {broken}")
