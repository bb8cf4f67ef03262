"""Records of layers read back from an index: the exact inverse of writing them.

An index is its own state: what it stores of a layer can be written, merged or continued like the record it
was written from. Blocks of units are read from the row groups that hold them, so each costs its share.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.codecs import codecs_of
from indexer.index.files import RowFile, in_one_line
from indexer.index.manifest import LayerEntry, Manifest
from indexer.index.records import LayerRecord
from indexer.index.rows import LayerRows
from indexer.index.vocabulary import Vocabulary, token_counts_of
from indexer.names import Key


def empty_record(entry: LayerEntry, units: slice) -> LayerRecord:
    """A record of no tokens, of a block of a layer's units, with the states of its statistics alone."""
    record = LayerRecord.empty(
        entry.key, units.stop - units.start, entry.keep, units.start, entry.experts
    )
    names = {name for codec in codecs_of(entry.statistics) for name in codec.states}
    return replace(record, states={name: record.states[name] for name in record.states if name in names})


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
        with in_one_line(file.path):
            return Vocabulary.from_table(row), token_counts_of(row)


class LayerFiles(LayerRows):
    """The files of one layer, as its record or as records of blocks of its units; a context manager."""

    def __init__(self, index: Path, manifest: Manifest, key: Key) -> None:
        entry = manifest.layer(key)
        if entry is None:
            raise IndexerError(f"index {index}: it has no layer {key}")
        before = manifest.layers[: manifest.layers.index(entry)]
        first_row = sum(other.units for other in before)
        super().__init__(index, key, entry.units, first_row, entry.keep, entry.statistics)
        self.entry = entry
        self.codecs = codecs_of(entry.statistics)

    def __enter__(self) -> LayerFiles:
        return self

    def record(self, units: slice | None = None) -> LayerRecord:
        """All of a block of units."""
        block = self.bounds(units)
        record = empty_record(self.entry, block)
        self.merge_into(record, block)
        return record

    def merge_into(self, record: LayerRecord, units: slice) -> None:
        """Merge what is known of a block of units into a record of as many."""
        record.count[:] += self.of_units(units, ["count"])["count"].to_numpy()
        for codec in self.codecs:
            codec.merge_into(record, self, units)
