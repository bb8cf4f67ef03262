"""Merging: the index of one build over everything, from indexes of its parts.

Exact: counts and sums of powers are added as integers, and examples compete under the total order, so any
order and any grouping of the inputs gives the same rows. Out of core: one block of units is held at a time,
and one row group of one input; memory grows neither with the number of inputs nor with the corpus, but for
the ids of documents that examples point to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from indexer_kernels.panel import WINDOW

from indexer.index.codecs import EXAMPLES
from indexer.index.manifest import LayerEntry
from indexer.index.output import check_output
from indexer.index.records import LayerRecord
from indexer.index.restore import LayerFiles, empty_record, read_vocabulary
from indexer.index.scratch import put_right
from indexer.index.write import IndexWriter
from indexer.partials.agreement import Input, checked
from indexer.partials.documents import gathered
from indexer.partials.sections import merged_sections

# of the block of units that is held
BLOCK_BYTES = 48 << 20
_KEPT = "What was to be merged stays as it is; make room there, then run the same command again"


def merge_indexes(
    inputs: Sequence[Path | str],
    output: Path | str,
    *,
    overwrite: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Merge indexes of parts of one corpus into the index of the whole; returns its path.

    progress: called with the share that is done, 0 to 1, now and then.
    `output` may be one of the inputs, with `overwrite`: it is replaced when all is read.
    Raises IndexerError where an input is damaged or not an index that tells what it covers; where they were
    built in different ways, over different lists of files, or overlap; and where the disk fails. The output
    is as it was then.
    Cost: reads every input once; memory of one block of units, and of the ids of documents pointed to.
    """
    target = Path(output)
    put_right(target.resolve())
    check_output(target, overwrite)
    parts = checked([Path(path) for path in inputs])
    layers = parts[0].manifest.layers
    whole, done = sum(entry.units for entry in layers) * len(parts), 0

    def advance(units: int) -> None:
        nonlocal done
        done += units
        if progress is not None:
            progress(done / max(whole, 1))

    vocabulary, token_counts = read_vocabulary(parts[0].path)
    for one in parts[1:]:
        token_counts = token_counts + read_vocabulary(one.path)[1]
    with IndexWriter(target, vocabulary, overwrite=overwrite, kept=_KEPT) as writer:
        for entry in layers:
            layer = MergedLayer(parts, entry, advance)
            writer.add_layer_blocks(entry.key, entry.units, layer.blocks())
        documents = gathered([one.path for one in parts], writer.documents)
        return writer.publish(merged_sections(parts, target), documents, token_counts)


class MergedLayer:
    """One layer of all inputs, merged block by block.

    advance: called with the number of units of one input that were read.
    """

    def __init__(self, parts: Sequence[Input], entry: LayerEntry, advance: Callable[[int], None]) -> None:
        self._parts = parts
        self._entry = entry
        self._advance = advance

    def blocks(self) -> Iterator[LayerRecord]:
        """Records of consecutive blocks of units."""
        size = self._block_units()
        for first in range(0, self._entry.units, size):
            yield self._block(slice(first, min(first + size, self._entry.units)))

    def _block(self, units: slice) -> LayerRecord:
        size = units.stop - units.start
        merged = empty_record(self._entry, units)
        for one in self._parts:
            with self._open(one) as files:
                files.merge_into(merged, units)
            self._advance(size)
        return merged

    def _block_units(self) -> int:
        """Units that fit a block; whole row groups of full examples, so that none is read twice."""
        empty = empty_record(self._entry, slice(0, 0))
        group = EXAMPLES.group_units(empty, self._entry.units)
        keep = self._entry.keep
        of_a_unit = keep.bytes_per_unit() + 4 * WINDOW * keep.panel
        return max(BLOCK_BYTES // (of_a_unit * group), 1) * group

    def _open(self, one: Input) -> LayerFiles:
        return LayerFiles(one.path, one.manifest, self._entry.key)
