"""Writing an index: whole, or not at all.

Everything is written into a folder beside the output, flushed to the disk, and the manifest last; then that
folder is renamed to the output. A crash at any moment leaves either what was there before or the finished
index, and at worst a folder `.NAME.*.partial` beside it. With `overwrite` the old index is exchanged for
the new one in one step.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.encoding import parquet_options
from indexer.index.manifest import SECTIONS, FileEntry, LayerEntry, Manifest, sha256
from indexer.index.output import check_output, flush, put_in_place
from indexer.index.records import LayerRecord
from indexer.index.tables import example_tables, histogram_tables, unit_table
from indexer.index.views import views_file
from indexer.index.vocabulary import Vocabulary
from indexer.units import check_site

_MOST_THREADS = 4


class IndexWriter:
    """Takes the layers of an index one by one and publishes it; `published` tells whether it is in place.

    Layers are written in the background by up to four threads; their arrays must not change until `publish`
    or the end of the `with` block. Memory: the records of as many layers as there are threads.
    """

    def __init__(self, output: Path | str, vocabulary: Vocabulary, *, overwrite: bool = False) -> None:
        """Check that `output` can be written; nothing is created before the `with` block is entered.

        Raises IndexerError if it exists and `overwrite` is off, if it exists and is not an index, or if its
        folder is missing or not writable.
        """
        self.output = Path(output)
        self.vocabulary = vocabulary
        self.overwrite = overwrite
        check_output(self.output, overwrite)
        # beside what a symbolic link points to: only there can a folder be renamed to it
        self._target = Path(os.path.realpath(self.output))
        self.published = False
        self._folder: Path | None = None
        self._units: dict[tuple[str, int], pa.Table] = {}
        self._layers: list[LayerEntry] = []
        self._documents = np.empty(0, np.int64)
        self._files: list[FileEntry] = []
        self._lock = threading.Lock()
        self._pending: list[Future[None]] = []

    def __enter__(self) -> IndexWriter:
        folder = self._target.parent / f".{self._target.name}.{secrets.token_hex(4)}.partial"
        with self._told():
            for part in (folder, folder / schema.EXAMPLES_FOLDER, folder / schema.HISTOGRAMS_FOLDER):
                part.mkdir()
                self._folder = folder
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
        if self._folder is not None:
            # the error that led here matters more than what cannot be removed
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def documents(self) -> np.ndarray:
        """int64, ascending: the documents that the examples added so far point to."""
        return self._documents

    def add_layer(self, record: LayerRecord) -> None:
        """Write one layer, in the background; layers may come in any order.

        Raises IndexerError where the record is not as documented or its layer was added before, or where
        writing an earlier layer failed.
        """
        check_site(record.site)
        record.check()
        key = (record.site, record.layer)
        if key in self._units:
            raise IndexerError(f"index {self.output}: layer {record.site}.{record.layer} was added twice")
        self._units[key] = unit_table(record)
        self._layers.append(
            LayerEntry(site=record.site, layer=record.layer, units=record.units, count=record.count)
        )
        for examples in (record.top, record.bottom):
            self._documents = np.union1d(self._documents, examples.document[examples.valid])
        self._room.acquire()
        self._later(self._pool.submit(self._write_layer, record))
        self._settle(wait=False)

    def publish(self, manifest: Mapping[str, Any], documents: pa.Table) -> Path:
        """Finish the index and put it in place; returns the path of the output.

        manifest: the sections model, tokenizer, corpus, configuration, totals, software, as JSON values.
        documents: columns document, source, row, characters of at least `self.documents`; more are left out.
        Raises IndexerError where something is missing or the disk fails; then the output is as it was.
        """
        self._settle(wait=True)
        folder = self._open_folder()
        if not self._layers:
            raise IndexerError(f"index {self.output}: no layer was added")
        self._layers.sort(key=lambda entry: (entry.site, entry.layer))
        keys = [(entry.site, entry.layer) for entry in self._layers]
        with self._told():
            self._write_parquet(
                schema.UNITS_FILE, schema.UNITS, _unit_groups([self._units[key] for key in keys])
            )
            self._write_parquet(schema.DOCUMENTS_FILE, schema.DOCUMENTS, [self._pointed_to(documents)])
            self._write_parquet(schema.VOCABULARY_FILE, schema.VOCABULARY, [self.vocabulary.to_table()])
            self._write_text(schema.VIEWS, views_file(keys, self.vocabulary.spaced))
            self._files.append(_entry(folder, schema.VIEWS, None))
            self._write_text(schema.MANIFEST, self._complete(manifest).to_json())
            self._settle(wait=True)
            for part in (folder / schema.EXAMPLES_FOLDER, folder / schema.HISTOGRAMS_FOLDER, folder):
                flush(part)
            check_output(self.output, self.overwrite)
            old = put_in_place(folder, self._target)
            self.published = True
        self._folder = None
        if old is not None:
            # the new index is in place; what cannot be removed of the old one does no harm
            shutil.rmtree(old, ignore_errors=True)
        return self.output

    def _write_layer(self, record: LayerRecord) -> None:
        try:
            examples = schema.examples_file(record.site, record.layer)
            tables = example_tables(record, self.vocabulary, schema.EXAMPLE_ROWS)
            self._write_parquet(examples, schema.EXAMPLES_STORED, tables)
            histograms = schema.histograms_file(record.site, record.layer)
            self._write_parquet(
                histograms, schema.HISTOGRAMS, histogram_tables(record, schema.HISTOGRAM_ROWS)
            )
        finally:
            self._room.release()

    def _settle(self, wait: bool) -> None:
        """Raise what failed in the background; with `wait`, after all of it has ended."""
        with self._told():
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
        """Write one row group per table, have the file flushed, and note its rows, bytes and digest."""
        folder = self._open_folder()
        rows = 0
        with pq.ParquetWriter(folder / path, wanted, **parquet_options(wanted)) as writer:
            for group in groups:
                writer.write_table(group.cast(wanted), row_group_size=max(group.num_rows, 1))
                rows += group.num_rows
        self._later(self._flushers.submit(flush, folder / path))
        entry = _entry(folder, path, rows)
        with self._lock:
            self._files.append(entry)

    def _write_text(self, path: str, text: str) -> None:
        file = self._open_folder() / path
        file.write_text(text, encoding="utf-8", newline="\n")
        self._later(self._flushers.submit(flush, file))

    def _pointed_to(self, documents: pa.Table) -> pa.Table:
        missing = [name for name in schema.DOCUMENTS.names if name not in documents.column_names]
        if missing:
            raise IndexerError(f"index {self.output}: the table of documents has no column {missing[0]}")
        table = documents.select(schema.DOCUMENTS.names).cast(schema.DOCUMENTS)
        table = table.filter(pc.is_in(table["document"], pa.array(self._documents))).sort_by("document")
        if not np.array_equal(table["document"].to_numpy(), self._documents):
            raise IndexerError(
                f"index {self.output}: examples point to {len(self._documents)} documents, "
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
            layers=self._layers,
            files=sorted(self._files, key=lambda file: file.path),
        )

    def _open_folder(self) -> Path:
        if self._folder is None:
            raise IndexerError(f"index {self.output}: the writer is closed")
        return self._folder

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the disk says into one line.

        Arrow raises OSError too, with its own words in place of strerror.
        """
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise IndexerError(
                f"index {self.output}: cannot write into {self._target.parent}: {reason}. "
                "Nothing was kept; make room there or choose another --output"
            ) from error


def _entry(folder: Path, path: str, rows: int | None) -> FileEntry:
    return FileEntry(path=path, rows=rows, bytes=(folder / path).stat().st_size, sha256=sha256(folder / path))


def _unit_groups(layers: list[pa.Table]) -> Iterator[pa.Table]:
    """Row groups of units.parquet; its rows are found by their number, so a group may cut a layer."""
    if not layers:
        return
    table = pa.concat_tables([layer.cast(schema.UNITS) for layer in layers])
    rows = schema.rows_per_group(table.num_rows, schema.UNIT_ROWS)
    for first in range(0, table.num_rows, rows):
        yield table.slice(first, rows)
