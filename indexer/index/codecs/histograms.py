"""Histograms: one row for every bin that holds a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from indexer_kernels.histogram import BINS, active, bin_edges, bins_between, bins_of, positive, quantiles

from indexer.errors import IndexerError
from indexer.index import schema, sql
from indexer.index.codecs.codec import Codec, as_table, constants
from indexer.index.laws import LayerLaws
from indexer.index.records import LayerRecord
from indexer.index.rows import LayerRows
from indexer.index.schema import column
from indexer.index.vocabulary import Vocabulary
from indexer.names import MLP, Key

_COLUMNS = ("unit", "lower", "upper", "count")
# of a bin, if all of a unit's had values
_ROW_BYTES = 40


class Histograms(Codec):
    """Bins with edges and counts, of which `positive`, `active` and the quantiles of `units` follow."""

    name = folder = view = "histograms"
    states = ("histogram", "moments")
    macros = ("histogram",)
    columns = pa.schema(
        [
            *schema.UNIT,
            column("lower", pa.float32(), "dictionary"),
            column("upper", pa.float32(), "dictionary"),
            column("count", pa.int64(), "dictionary"),
        ]
    )

    def unit_bytes(self, record: LayerRecord) -> int:
        return BINS * _ROW_BYTES

    def unit_columns(self, record: LayerRecord) -> dict[str, np.ndarray]:
        counts, moments = record.histogram.counts, record.moments
        found = {"positive": positive(counts), "active": active(counts)}
        return found | quantiles(counts, moments.minimum + np.float32(0), moments.maximum + np.float32(0))

    def table(self, record: LayerRecord, units: slice, first: int, vocabulary: Vocabulary) -> pa.Table:
        counts = record.histogram.of(units)
        unit, number = np.nonzero(counts)
        lower, upper = (pa.array(edges) for edges in bin_edges())
        columns = constants(record, unit + (first + units.start)) | {
            "lower": lower.take(pa.array(number)),
            "upper": upper.take(pa.array(number)),
            "count": pa.array(counts[unit, number]),
        }
        return as_table(columns, self.columns)

    def merge_into(self, record: LayerRecord, rows: LayerRows, units: slice) -> None:
        path = self.file(rows.key)
        end = -1
        for table in rows.of_block(path, self.columns, units, _COLUMNS):
            number = bins_between(table["lower"].to_numpy(), table["upper"].to_numpy())
            key = (table["unit"].to_numpy() - units.start).astype(np.int64) * BINS + number
            # ascending, so that no bin is there twice and adding by index adds them all
            ascends = bool((np.diff(key, prepend=end) > 0).all())
            found = table["count"].to_numpy()
            rows.must_be(path, ascends and bool((number >= 0).all()) and bool((found > 0).all()))
            record.histogram.add(np.divmod(key, BINS), found)
            end = int(key[-1])

    def check(self, laws: LayerLaws) -> None:
        """Counts, extremes and quantiles are those of the bins."""
        tables = [self.columns.empty_table(), *laws.rows.groups(self.file(laws.key), self.columns)]
        histogram = self._dense(laws, pa.concat_tables(tables))
        laws.histogram = histogram
        finite = histogram.sum(axis=1)
        total = finite + laws.integers("nan") + laws.integers("inf")
        laws.require(total == laws.integers("count"), "bins, nan and inf do not add up to count")
        for name, wanted, bins in (
            ("positive", positive(histogram), "bins above zero"),
            ("active", active(histogram), "bins from 2^-10 on"),
        ):
            laws.require(laws.integers(name) == wanted, f"{name} is not the sum of the {bins}")
        seen = finite > 0
        lowest = (histogram > 0).argmax(axis=1)
        highest = BINS - 1 - (histogram[:, ::-1] > 0).argmax(axis=1)
        for name, extreme, filled in (
            ("minimum", laws.minimum, lowest),
            ("maximum", laws.maximum, highest),
        ):
            laws.require(
                np.isnan(extreme) == ~seen, f"{name} is known without a value or the other way round"
            )
            laws.require(~seen | (bins_of(extreme) == filled), f"{name} is not in the outermost filled bin")
        for name, quantile in quantiles(histogram, laws.minimum, laws.maximum).items():
            laws.require_equal(name, quantile, "that of the bins")

    def views(self, place: sql.Place, layers: Sequence[Key]) -> Iterator[str]:
        yield from super().views(place, layers)
        here = [key.layer for key in layers if key.site == MLP]
        file = sql.path_of_layer(place(f"{self.folder}/{MLP}."), here)
        yield (
            "CREATE OR REPLACE MACRO histogram(layer, unit) AS TABLE "
            f"SELECT h.* FROM {sql.read(file)} AS h WHERE h.unit = unit ORDER BY h.lower, h.upper"
        )

    def _dense(self, laws: LayerLaws, table: pa.Table) -> np.ndarray:
        """int64 [units, BINS] from rows, which must be bins of the format in ascending order."""
        unit, lower, upper, count = (table[name].to_numpy() for name in _COLUMNS)
        if len(unit) and (unit.min() < 0 or unit.max() >= laws.units):
            raise IndexerError(f"{laws.where}: bins of a unit the layer has not")
        number = bins_between(lower, upper)
        laws.require(number >= 0, "a bin has edges that are not the format's", unit)
        key = unit.astype(np.int64) * BINS + number
        laws.require(np.concatenate([[True], np.diff(key) > 0])[: len(key)], "bins are not in order", unit)
        laws.require(count > 0, "an empty bin", unit)
        histogram = np.zeros(laws.units * BINS, np.int64)
        histogram[key] = count
        return histogram.reshape(laws.units, BINS)
