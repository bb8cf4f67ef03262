"""Records of layers read back from an index: the exact inverse of writing them.

An index is its own state: what it stores of a layer can be written, merged or continued like the record it
was written from. Blocks of units are read from the row groups that hold them, so each costs its share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from indexer_kernels import Keep, Moments
from indexer_kernels.examples import PLACE_FIELDS, ExampleRows
from indexer_kernels.histogram import BINS, bins_between
from indexer_kernels.moments import POWERS
from indexer_kernels.topk import COMPETITORS

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.files import DAMAGED, GroupedFile, RowFile, UnitFile, told
from indexer.index.manifest import Manifest
from indexer.index.records import LayerRecord
from indexer.index.sums import PACKED, unpack
from indexer.index.vocabulary import Vocabulary, token_counts_of
from indexer.names import Key

Opened = TypeVar("Opened", bound=GroupedFile)

_STATISTICS = ("nan", "inf", "minimum", "maximum")
_EXAMPLES = (
    "unit", "extreme", "rank", "value", "document", "sequence", "position", "window_start", "token_ids",
    "activations",
)  # fmt: skip
_BIN_COLUMNS = ("unit", "lower", "upper", "count")


def keep_of(configuration: Mapping[str, Any]) -> Keep | None:
    """What a build kept, from its configuration; None where that does not tell."""
    try:
        before, after = map(int, configuration["window"])
        top, bottom, by = int(configuration["top"]), int(configuration["bottom"]), configuration["by"]
        keep = Keep(top, bottom, (before, after), by).within(int(configuration["context"]))
    except (KeyError, TypeError, ValueError):
        return None
    return keep if min(top, bottom, *keep.window) >= 0 and by in COMPETITORS else None


def kept(index: Path, manifest: Manifest) -> Keep:
    """What was kept of each unit. Raises IndexerError where the manifest does not tell."""
    keep = keep_of(manifest.configuration)
    if keep is None:
        raise IndexerError(
            f"index {index}: its configuration does not tell what was kept of a unit (top, bottom, by, "
            f"window, context); {DAMAGED}"
        )
    return keep


def read_layer(index: Path, manifest: Manifest, key: Key, units: slice | None = None) -> LayerRecord:
    """The record of a layer, or of a block of its units.

    units: first and last + 1, with step 1; all of them without it.
    Raises IndexerError for a layer or units the index has not, and where a file is damaged.
    Cost: reads the row groups that hold the units; memory of the record and of one row group.
    """
    with LayerFiles(index, manifest, key) as files:
        return files.record(units)


def read_vocabulary(index: Path) -> tuple[Vocabulary, np.ndarray]:
    """The vocabulary of an index, and how often each of its tokens was counted: int64 [vocabulary]."""
    with closing(RowFile(index / schema.VOCABULARY_FILE, schema.VOCABULARY)) as file:
        row = file.row(0, schema.VOCABULARY.names)
        with told(file.path):
            return Vocabulary.from_table(row), token_counts_of(row)


class LayerFiles:
    """The files of one layer, opened as they are needed; a context manager. Blocks as in `read_layer`."""

    def __init__(self, index: Path, manifest: Manifest, key: Key) -> None:
        entry = manifest.layer(key)
        if entry is None:
            raise IndexerError(f"index {index}: it has no layer {key}")
        self.entry = entry
        self._index = index
        self._keep = kept(index, manifest)
        before = manifest.layers[: manifest.layers.index(entry)]
        self._first_row = sum(other.units for other in before)
        self._files: dict[str, GroupedFile] = {}

    def __enter__(self) -> LayerFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def record(self, units: slice | None = None) -> LayerRecord:
        """All of a block of units."""
        first, last = self._bounds(units)
        entry = self.entry
        record = LayerRecord.empty(entry.key, entry.count, last - first, self._keep)
        self.merge_into(record, slice(first, last))
        return record

    def merge_into(self, record: LayerRecord, units: slice) -> None:
        """Merge the states of a block of units into those of a record of as many."""
        record.moments.merge(self.moments(units))
        self.add_histogram(units, record.histogram.counts)
        for extreme, rows in self.examples(units):
            getattr(record, extreme).offer(rows)

    def moments(self, units: slice | None = None) -> Moments:
        """Counts of what is not finite, range and exact sums, settled."""
        first, last = self._bounds(units)
        values = self.statistics(units)
        return Moments(**values, sums=self.sums(units), pending=np.zeros(last - first, np.int32))

    def statistics(self, units: slice | None = None) -> dict[str, np.ndarray]:
        """nan, inf: int64, minimum, maximum: float32, all [units]; as in `Moments`."""
        first, last = self._bounds(units)
        file = self._open(schema.UNITS_FILE, GroupedFile, schema.UNITS)
        table = _numbered_rows(file, self._first_row + first, self._first_row + last, ("unit", *_STATISTICS))
        self._must_be(file, table.num_rows == last - first)
        self._must_be(file, np.array_equal(table["unit"].to_numpy(), np.arange(first, last)))
        found = {name: table[name].to_numpy().astype(_dtype(schema.UNITS, name)) for name in _STATISTICS}
        for name, none in (("minimum", np.inf), ("maximum", -np.inf)):
            found[name][np.isnan(found[name])] = none
        return found

    def sums(self, units: slice | None = None) -> np.ndarray:
        """Exact sums of powers, settled, int64 [units, POWERS, LIMBS]."""
        first, last = self._bounds(units)
        file = self._open(schema.sums_file(self.entry.key), UnitFile, schema.SUMS)
        columns = ("unit", *schema.SUM_NAMES, *schema.OVERFLOWED_NAMES)
        tables = list(_unit_rows(file, first, last, columns))
        table = pa.concat_tables(tables) if tables else file.empty(columns)
        self._must_be(file, np.array_equal(table["unit"].to_numpy(), np.arange(first, last)))
        packed = np.empty((last - first, POWERS, PACKED), np.uint8)
        for power, name in enumerate(schema.SUM_NAMES):
            packed[:, power] = _fixed_bytes(table[name])
        overflowed = np.stack([table[name].to_numpy() for name in schema.OVERFLOWED_NAMES], axis=1)
        self._must_be(file, bool((overflowed >= 0).all()))
        return unpack(packed, overflowed)

    def add_histogram(self, units: slice | None, counts: np.ndarray) -> None:
        """Add the counts of a block to int64 [units, BINS]."""
        first, last = self._bounds(units)
        path = schema.histograms_file(self.entry.key)
        file = self._open(path, UnitFile, schema.HISTOGRAMS)
        flat = counts.reshape(-1)
        end = -1
        for table in _unit_rows(file, first, last, _BIN_COLUMNS):
            number = bins_between(table["lower"].to_numpy(), table["upper"].to_numpy())
            key = (table["unit"].to_numpy() - first).astype(np.int64) * BINS + number
            # ascending, so that no bin is there twice and adding by index adds them all
            ascends = bool((np.diff(key, prepend=end) > 0).all())
            found = table["count"].to_numpy()
            self._must_be(file, ascends and bool((number >= 0).all()) and bool((found > 0).all()))
            flat[key] += found
            end = int(key[-1])

    def examples(self, units: slice | None = None) -> Iterator[tuple[str, ExampleRows]]:
        """(extreme, its rows) of a block, row group after row group; of whole units."""
        first, last = self._bounds(units)
        path = schema.examples_file(self.entry.key)
        file = self._open(path, UnitFile, schema.EXAMPLES_STORED)
        # each unit's rows are in one row group, and come once
        ended = {"bottom": -1, "top": -1}
        widest = sum(self._keep.window) + 1
        for table in _unit_rows(file, first, last, _EXAMPLES):
            ids, activations = (table[name].combine_chunks() for name in ("token_ids", "activations"))
            length = pc.list_value_length(ids).to_numpy()
            self._must_be(file, np.array_equal(length, pc.list_value_length(activations).to_numpy()))
            rows = {name: table[name].to_numpy() for name in PLACE_FIELDS if name != "window_length"}
            rows |= {"unit": table["unit"].to_numpy().astype(np.int64) - first, "window_length": length}
            rows["offset"] = np.cumsum(length, dtype=np.int64) - length
            tokens = {"token_ids": ids.flatten().to_numpy(), "activations": activations.flatten().to_numpy()}
            rank = table["rank"].to_numpy()
            for extreme in ("bottom", "top"):
                chosen = pc.equal(table["extreme"], extreme).to_numpy()
                part = ExampleRows(**{name: values[chosen] for name, values in rows.items()}, **tokens)
                if not len(part):
                    continue
                inside = ended[extreme] < part.unit[0] and part.unit[-1] < last - first
                self._must_be(file, inside and bool((np.diff(part.unit) >= 0).all()))
                self._must_be(file, np.array_equal(rank[chosen], _places(part.unit) + 1))
                fits = rank[chosen].max() <= getattr(self._keep, extreme) and part.width <= widest
                self._must_be(file, bool(fits))
                ended[extreme] = int(part.unit[-1])
                yield extreme, part

    def _bounds(self, units: slice | None) -> tuple[int, int]:
        if units is None:
            return 0, self.entry.units
        if not 0 <= units.start <= units.stop <= self.entry.units or units.step not in (None, 1):
            raise IndexerError(
                f"index {self._index}: units {units.start} to {units.stop - 1} of {self.entry.key}: it has "
                f"units 0 to {self.entry.units - 1}"
            )
        return units.start, units.stop

    def _open(self, path: str, kind: Callable[[Path, pa.Schema], Opened], wanted: pa.Schema) -> Opened:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = kind(self._index / path, wanted)
        return file  # type: ignore[return-value]

    def _must_be(self, file: GroupedFile, right: bool) -> None:
        if not right:
            raise IndexerError(f"{file.path}: its rows are not those of {self._layer}; {DAMAGED}")

    @property
    def _layer(self) -> str:
        return f"layer {self.entry.key}"


def _numbered_rows(file: GroupedFile, first: int, last: int, columns: Sequence[str]) -> pa.Table:
    """Rows first to last - 1 of a file, as far as it has them."""
    tables, before = [file.empty(columns)], 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        start, end = max(first - before, 0), min(last - before, rows)
        if start < end:
            tables.append(_group(file, group, columns).slice(start, end - start))
        before += rows
    return pa.concat_tables(tables)


def _unit_rows(file: GroupedFile, first: int, last: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of units first to last - 1, one table for each row group that has some."""
    place = file.schema.get_field_index("unit")
    for group in range(file.metadata.num_row_groups):
        with told(file.path):
            held = file.metadata.row_group(group).column(place).statistics
        if held is None or not held.has_min_max or held.max < first or held.min >= last:
            continue
        table = _group(file, group, columns)
        unit = table["unit"].to_numpy()
        start, end = (int(place) for place in np.searchsorted(unit, [first, last]))
        if start < end:
            yield table.slice(start, end - start)


def _group(file: GroupedFile, group: int, columns: Sequence[str]) -> pa.Table:
    with told(file.path):
        return file.reader().read_row_group(group, columns=list(columns)).select(list(columns))


def _fixed_bytes(column: pa.ChunkedArray) -> np.ndarray:
    """uint8 [rows, PACKED] of a column of fixed-size binary without nulls."""
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * PACKED, chunk.offset * PACKED)
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([*parts, np.empty(0, np.uint8)]).reshape(-1, PACKED)


def _dtype(wanted: pa.Schema, name: str) -> np.dtype[Any]:
    return np.dtype(wanted.field(name).type.to_pandas_dtype())


def _places(unit: np.ndarray) -> np.ndarray:
    """Of each row, how many rows of the same unit are before it; unit: ascending."""
    return np.arange(len(unit)) - np.searchsorted(unit, unit)
