"""Writing an index: whole, or not at all.

Everything is written into a folder beside the output, flushed to the disk, and the manifest last; then that
folder is renamed to the output. A crash at any moment leaves either what was there before or the finished
index, and at worst a folder `.NAME.*.partial` beside it, which the next one to write there clears away. With
`overwrite` the old index is exchanged for the new one in one step.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.codecs import codecs_for
from indexer.index.groups import RowGroups
from indexer.index.ids import Ids
from indexer.index.manifest import SECTIONS, FileEntry, LayerEntry, Manifest, file_entry, sites_of
from indexer.index.output import check_output, flush, in_one_line, put_in_place
from indexer.index.records import LayerRecord
from indexer.index.scratch import Scratch, put_right
from indexer.index.units import UnitTables, unit_groups, unit_table
from indexer.index.views import views_file
from indexer.index.vocabulary import Vocabulary
from indexer.names import Key, check_site

_MOST_THREADS = 4
# whose numbers are made together
_UNITS_AT_ONCE = 1_024


class IndexWriter:
    """Takes the layers of an index one by one and publishes it; `published` tells whether it is in place.

    layers_written: those whose files are complete.

    Layers are written in the background by up to four threads; their arrays must not change until `publish`
    or the end of the `with` block. Memory: the records of as many layers as there are threads, of each the
    rows of a row group, and 8 bytes for every document that examples point to.
    """

    def __init__(
        self,
        output: Path | str,
        vocabulary: Vocabulary,
        *,
        overwrite: bool = False,
        kept: str = "Nothing was kept; make room there and run it again, or choose another --output",
    ) -> None:
        """Check that `output` can be written; nothing is created before the `with` block is entered.

        kept: what is left where the disk fails, and the way out, for the line that tells of it.
        Raises IndexerError if it exists and `overwrite` is off, if it exists and is not an index, or if its
        folder is missing or not writable.
        """
        self.output = Path(output)
        self.vocabulary = vocabulary
        self.overwrite = overwrite
        self._kept = kept
        check_output(self.output, overwrite)
        # beside what a symbolic link points to: only there can a folder be renamed to it
        self._target = Path(os.path.realpath(self.output))
        self.published = False
        self.layers_written = 0
        self._scratch: Scratch | None = None
        # where the rows of each layer are among those of all units
        self._units: dict[Key, list[int]] = {}
        self._unit_tables: UnitTables | None = None
        self._layers: list[LayerEntry] = []
        self._documents = Ids()
        self._files: list[FileEntry] = []
        # of the files that a statistic has once for all layers
        self._common: dict[str, pa.Table] = {}
        self._lock = threading.Lock()
        self._pending: list[Future[None]] = []

    def __enter__(self) -> IndexWriter:
        try:
            with self._in_one_line():
                self._make_folder()
        except BaseException:
            self._remove_folder()
            raise
        threads = max(1, min(_MOST_THREADS, os.cpu_count() or 1))
        self._room = threading.Semaphore(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="index-writer")
        # waiting for the disk takes no processor, so it gets threads of its own
        self._flushers = ThreadPoolExecutor(threads, thread_name_prefix="index-flusher")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._flushers.shutdown(wait=True, cancel_futures=True)
        self._remove_folder()

    @property
    def documents(self) -> np.ndarray:
        """int64, ascending: the documents that the examples added so far point to."""
        return self._documents.sorted()

    def add_layer(self, record: LayerRecord) -> None:
        """Write one layer, in the background; layers may come in any order.

        Raises IndexerError where its layer was added before, or where writing an earlier layer failed.
        """
        with self._in_one_line():
            self._new_layer(record, record.units)
            self._note(record, 0)

        def write() -> None:
            try:
                with ExitStack() as stack:
                    self._layer_files(stack, record, record.units)(record, 0)
                with self._lock:
                    self.layers_written += 1
            finally:
                self._room.release()

        self._room.acquire()
        self._later(self._pool.submit(write))
        self._settle(wait=False)

    def add_layer_blocks(self, key: Key, units: int, blocks: Iterable[LayerRecord]) -> None:
        """Write one layer out of records of consecutive blocks of its units, while they come.

        units: of the whole layer. Memory: one block, and what `blocks` itself holds.
        Raises IndexerError as `add_layer` does, and where the blocks are not those of the layer.
        """
        first = 0
        with self._in_one_line(), ExitStack() as stack:
            write: Callable[[LayerRecord, int], None] | None = None
            for block in blocks:
                if block.key != key:
                    raise IndexerError(f"index {self.output}: a block of {block.key} among those of {key}")
                if write is None:
                    self._new_layer(block, units)
                    write = self._layer_files(stack, block, units)
                self._note(block, first)
                write(block, first)
                first += block.units
                # the next one is made without this one in memory
                del block
            if first != units:
                raise IndexerError(
                    f"index {self.output}: blocks of {first} units are not the {units} of {key}"
                )
        self._settle(wait=False)

    def publish(
        self,
        manifest: Mapping[str, Any],
        documents: pa.Table | Iterable[pa.Table],
        token_counts: np.ndarray,
        log: str | None = None,
    ) -> Path:
        """Finish the index and put it in place; returns the path of the output.

        manifest: the sections model, tokenizer, corpus, configuration, totals, software, as JSON values.
        documents: columns document, source, row, characters of at least `self.documents`; more are left out.
            Or tables of them, one after the other, of exactly `self.documents` in ascending order.
        token_counts: int64 [vocabulary], how often each token was counted.
        log: what happened during the build, for the file build.log.jsonl.
        Raises IndexerError where something is missing or the disk fails; then the output is as it was.
        """
        self._settle(wait=True)
        folder = self._open_folder()
        if not self._layers:
            raise IndexerError(f"index {self.output}: no layer was added")
        self._layers.sort(key=lambda entry: entry.key)
        with self._in_one_line():
            assert self._unit_tables is not None
            places = (place for entry in self._layers for place in self._units[entry.key])
            units = self._unit_tables.read(places)
            self._write_parquet(schema.UNITS_FILE, schema.UNITS, unit_groups(units))
            for path, table in self._common.items():
                self._write_parquet(path, table.schema, [table])
            self._write_documents(documents)
            vocabulary = self.vocabulary.to_table(token_counts)
            self._write_parquet(schema.VOCABULARY_FILE, schema.VOCABULARY, [vocabulary])
            self._write_text(schema.VIEWS, views_file(self._layers))
            self._files.append(file_entry(folder, schema.VIEWS))
            if log is not None:
                self._write_text(schema.LOG, log)
                self._files.append(file_entry(folder, schema.LOG))
            self._write_text(schema.MANIFEST, self._complete(manifest).to_json())
            self._settle(wait=True)
            for part in (*(path for path in folder.iterdir() if path.is_dir()), folder):
                flush(part)
            check_output(self.output, self.overwrite)
            put_in_place(folder, self._target)
            self.published = True
        self._remove_folder()
        return self.output

    def _make_folder(self) -> None:
        put_right(self._target)
        self._scratch = Scratch(self._target)
        self._scratch.index.mkdir()
        self._unit_tables = UnitTables(self._scratch.index.parent)

    def _remove_folder(self) -> None:
        # what is in it: an index that was not finished, or the one that a new one has replaced
        for made in (self._unit_tables, self._scratch):
            if made is not None:
                made.close()
        self._unit_tables = self._scratch = None

    def _new_layer(self, record: LayerRecord, units: int) -> None:
        """Note a layer of so many units; record: any block of it."""
        key = record.key
        check_site(key.site)
        if key in self._units:
            raise IndexerError(f"index {self.output}: layer {key} was added twice")
        self._units[key] = []
        statistics = tuple(codec.name for codec in codecs_for(record.states))
        self._layers.append(LayerEntry(key, units, statistics, record.keep, record.experts))

    def _note(self, record: LayerRecord, first: int) -> None:
        """Keep what goes into the files that all layers share."""
        assert self._unit_tables is not None
        codecs = codecs_for(record.states)
        for codec in codecs:
            if not self._common.keys() >= codec.common.keys():
                self._common |= codec.common_tables(record)
        for start in range(0, record.units, _UNITS_AT_ONCE):
            part = record.part(slice(start, start + _UNITS_AT_ONCE))
            self._units[record.key].append(self._unit_tables.add(unit_table(part, first + start)))
            for codec in codecs:
                self._documents.add(codec.documents(part))

    def _layer_files(
        self, stack: ExitStack, record: LayerRecord, units: int
    ) -> Callable[[LayerRecord, int], None]:
        """Open the files of a layer of so many units; returns what writes a record of some of them there.

        record: any of the layer. The files are whole when the stack is unwound.
        """
        files = []
        for codec in codecs_for(record.states):
            group, path = codec.group_units(record, units), codec.file(record.key)
            file = self._file(path, codec.columns, group, codec.page_values(record))
            files.append((codec, codec.table_units(record, units), stack.enter_context(file)))

        def write(block: LayerRecord, first: int) -> None:
            for codec, at_once, file in files:
                for start in range(0, block.units, at_once):
                    chosen = slice(start, min(start + at_once, block.units))
                    file.add(codec.table(block, chosen, first, self.vocabulary), chosen.stop - chosen.start)

        return write

    def _settle(self, wait: bool) -> None:
        """Raise what failed in the background; with `wait`, after all of it has ended."""
        with self._in_one_line():
            while True:
                with self._lock:
                    ended = [future for future in self._pending if wait or future.done()]
                    self._pending = [future for future in self._pending if future not in ended]
                # what ran may have left more to wait for: a file that is written is yet to be flushed
                if not ended:
                    return
                for future in ended:
                    future.result()

    def _later(self, future: Future[None]) -> None:
        with self._lock:
            self._pending.append(future)

    def _write_parquet(self, path: str, wanted: pa.Schema, groups: Iterable[pa.Table]) -> None:
        """Write one row group per table."""
        with self._file(path, wanted) as file:
            for group in groups:
                file.add(group)

    @contextmanager
    def _file(
        self, path: str, wanted: pa.Schema, units: int = 1, page_values: int | None = None
    ) -> Iterator[RowGroups]:
        """A file of the index to add rows to; at the end it is flushed, its rows, bytes and digest noted."""
        folder = self._open_folder()
        (folder / path).parent.mkdir(exist_ok=True)
        with RowGroups(folder / path, wanted, units, page_values) as file:
            yield file
        self._later(self._flushers.submit(flush, folder / path))
        entry = file_entry(folder, path, file.rows)
        with self._lock:
            self._files.append(entry)

    def _write_text(self, path: str, text: str) -> None:
        file = self._open_folder() / path
        file.write_text(text, encoding="utf-8", newline="\n")
        self._later(self._flushers.submit(flush, file))

    def _write_documents(self, documents: pa.Table | Iterable[pa.Table]) -> None:
        wanted = self.documents
        tables = [self._pointed_to(documents)] if isinstance(documents, pa.Table) else documents
        described = 0
        rows = schema.rows_per_group(len(wanted), schema.DOCUMENT_ROWS)
        with self._file(schema.DOCUMENTS_FILE, schema.DOCUMENTS) as file:
            for table in tables:
                ids = table["document"].to_numpy()
                if not np.array_equal(ids, wanted[described : described + len(ids)]):
                    raise IndexerError(
                        f"index {self.output}: the documents are not those that examples point to, in "
                        "ascending order"
                    )
                described += len(ids)
                for first in range(0, len(ids), rows):
                    file.add(table.slice(first, rows))
        if described != len(wanted):
            raise IndexerError(
                f"index {self.output}: examples point to {len(wanted)} documents, {described} of which are "
                "described"
            )

    def _pointed_to(self, documents: pa.Table) -> pa.Table:
        """Those that examples point to, in the order of their ids."""
        missing = [name for name in schema.DOCUMENTS.names if name not in documents.column_names]
        if missing:
            raise IndexerError(f"index {self.output}: the table of documents has no column {missing[0]}")
        table = documents.select(schema.DOCUMENTS.names).cast(schema.DOCUMENTS)
        table = table.filter(pc.is_in(table["document"], pa.array(self.documents))).sort_by("document")
        if table.num_rows != len(self.documents):
            raise IndexerError(
                f"index {self.output}: examples point to {len(self.documents)} documents, "
                f"{table.num_rows} of which are described"
            )
        return table.combine_chunks()

    def _complete(self, sections: Mapping[str, Any]) -> Manifest:
        wrong = set(SECTIONS) ^ set(sections)
        if wrong:
            raise IndexerError(
                f"index {self.output}: the manifest's sections are {', '.join(SECTIONS)}; "
                f"missing or unknown: {', '.join(sorted(wrong))}"
            )
        return Manifest(
            format=schema.FORMAT,
            version=schema.VERSION,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            **sections,
            sites=sites_of(self._layers),
            files=sorted(self._files, key=lambda file: file.path),
        )

    def _open_folder(self) -> Path:
        if self._scratch is None:
            raise IndexerError(f"index {self.output}: the writer is closed")
        return self._scratch.index

    def _in_one_line(self) -> AbstractContextManager[None]:
        """Around all that the disk may refuse."""
        return in_one_line(f"index {self.output}: cannot write into {self._target.parent}", self._kept)
