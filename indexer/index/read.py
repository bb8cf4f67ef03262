"""Reading an index: a unit's record in a few milliseconds, and SQL. Needs neither torch nor the kernels."""

from __future__ import annotations

import operator
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from indexer_kernels import Keep

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.addons import read_addons
from indexer.index.codecs import EXAMPLES, HEAD_SCORES, HISTOGRAMS, PANELS
from indexer.index.codecs.heads import shown_of
from indexer.index.codecs.panel import SHOWN, WINDOWS, matrix_of, panel_among
from indexer.index.files import (
    DAMAGED,
    DocumentFile,
    GroupedFile,
    RowFile,
    Source,
    UnitFile,
    in_one_line,
    on_disk,
)
from indexer.index.manifest import LayerEntry, Manifest, check_files, read_manifest
from indexer.index.notebook import Shown, examples_html
from indexer.index.opened import OpenFiles
from indexer.index.restore import LayerFiles
from indexer.index.results import (
    EXAMPLES_ROWS,
    HISTOGRAMS_ROWS,
    PANEL_ROWS,
    UNITS_ROWS,
    PanelOfLayer,
    UnitRecord,
    source_name,
    with_names,
)
from indexer.index.spelled import STORED, of_kind, spelled
from indexer.index.vocabulary import Vocabulary
from indexer.names import HEADS, MLP, Key, Unit, by_site, format_layers, kind_of, named_unit, parse_key

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from indexer.index.query import Parameters, Queries

_BINS = ["lower", "upper", "count"]
_READERS = min(4, os.cpu_count() or 1)


def open_index(path: Path | str) -> Index:
    """Open a finished index.

    Checks every bit of the manifest, the size and the end of every file; a footer when its file is first
    used. Its methods check the pages that they read, but `sql` does not: DuckDB reads without checksums.
    `Index.verify` checks everything.
    Of an index that came from elsewhere nothing is executed, and only its own files are read; but
    `Index.document` reads the source that the index names, whatever that is. What a file that was made to
    harm expands to is not bounded: limit the memory of the process where that matters.
    Raises IndexerError where the folder is missing, unfinished, not an index, damaged, or of another format
    version.
    """
    # a Path has lost one of the slashes
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) and not Path(path).exists():
        raise IndexerError(
            f"index {path}: an index is read from a disk, not over the network; copy its folder and open that"
        )
    return Index(Path(path))


class Index:
    """An open index; a context manager. Safe for use by several threads.

    Tables have the columns of the SQL views of the same name, in their order.
    """

    def __init__(self, path: Path, source: Source = on_disk) -> None:
        """source: what opens its Parquet files; the manifest is read from the disk."""
        self.path = path
        self._stamp = _stamp(path)
        self.manifest: Manifest = read_manifest(path)
        check_files(path, self.manifest)
        self._folder = path.resolve()
        self._files = OpenFiles(self._folder, source, self._check_unchanged)
        self._vocabulary: Vocabulary | None = None
        self._queries: Queries | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.RLock()
        layers = self.manifest.layers
        units = np.array([0, *(entry.units for entry in layers)], np.int64)
        # where each layer's rows begin in units.parquet
        self._first_row = dict(zip([entry.key for entry in layers], np.cumsum(units).tolist(), strict=False))

    def __repr__(self) -> str:
        info = self.info()
        layers = ", ".join(f"{site} of layers {numbers}" for site, numbers in info["layers"].items())
        tokens = info["totals"].get("counted_tokens")
        counted = f", {tokens:,} tokens" if isinstance(tokens, int) else ""
        return f"<Index {self.path}: {info['model'].get('name')}, {layers}, {info['units']:,} units{counted}>"

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; tables read before stay valid."""
        with self._lock:
            self._files.close()
            if self._threads is not None:
                self._threads.shutdown(wait=False)
                self._threads = None
            if self._queries is not None:
                self._queries.close()
                self._queries = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's tokens by id, and the texts they make up."""
        with self._lock:
            if self._vocabulary is None:
                file = self._files.get(schema.VOCABULARY_FILE, RowFile, schema.VOCABULARY)
                row = file.row(0, schema.SPELLING)
                with in_one_line(file.path):
                    self._vocabulary = Vocabulary.from_table(row)
            return self._vocabulary

    def unit(self, unit: str | Unit | int, number: int | None = None) -> pa.Table:
        """The unit's row of `units`: counts, moments and quantiles.

        unit: its name, or the layer of an mlp neuron, whose number within the layer is then `number`; so it
            is in all methods that ask for one.
        `variance` is that of the population (divided by the count), `kurtosis` is Pearson's (3 for a normal
        distribution).
        Raises IndexerError for a unit it has not.
        """
        found = self._find(unit, number)
        file = self._files.get(schema.UNITS_FILE, RowFile, schema.UNITS)
        row = file.row(self._first_row[found.key] + found.unit, schema.UNITS.names)
        if row.num_rows != 1 or Unit(*(row[name][0].as_py() for name in ("site", "layer", "unit"))) != found:
            raise IndexerError(f"{file.path}: the row of {found} is not in its place; {DAMAGED}")
        return pa.Table.from_arrays(row.columns, schema=UNITS_ROWS)

    def histogram(self, unit: str | Unit | int, number: int | None = None) -> pa.Table:
        """The unit's rows of `histograms`, ascending by value: bins with a count above 0."""
        found = self._find(unit, number)
        path = HISTOGRAMS.file(found.key)
        rows = self._files.get(path, UnitFile, HISTOGRAMS.columns).rows(found.unit, _BINS)
        return with_names(found, {name: rows[name] for name in _BINS}, HISTOGRAMS_ROWS)

    def top(self, unit: str | Unit | int, number: int | None = None, *, k: int | None = None) -> pa.Table:
        """The unit's k strongest examples, best first; all that the index has without k."""
        return of_kind(self._examples(self._find(unit, number)), "top", k)

    def bottom(self, unit: str | Unit | int, number: int | None = None, *, k: int | None = None) -> pa.Table:
        """The unit's k lowest examples, lowest first; all that the index has without k."""
        return of_kind(self._examples(self._find(unit, number)), "bottom", k)

    def samples(self, unit: str | Unit | int, number: int | None = None, *, k: int | None = None) -> pa.Table:
        """Fair examples of the unit, k of each band; all that the index has without k.

        Of the sequences whose maximum lies in one octave, or in none of the six highest, each had the same
        chance. The highest band comes first; within one they stand in the order of their hashes.
        """
        return of_kind(self._examples(self._find(unit, number)), "sample", k)

    def head(self, unit: str | Unit) -> pa.Table:
        """The row of `heads` of an attention head, such as heads.3.5: what it looks at.

        Raises IndexerError for a unit that is no head, or that the index has not.
        """
        found = self._find(unit, None)
        if kind_of(found.site) != HEADS:
            raise IndexerError(f'unit "{found}": no attention head; name one, for example heads.3.5')
        file = self._files.get(HEAD_SCORES.file(found.key), UnitFile, HEAD_SCORES.columns)
        return shown_of(found, file.rows(found.unit, HEAD_SCORES.columns.names), file.path)

    def keep(self, unit: str | Unit | int, number: int | None = None) -> Keep:
        """What is kept of the unit: how many examples of each kind, and their windows."""
        entry = self.manifest.layer(self._find(unit, number).key)
        assert entry is not None
        return entry.keep

    def record(
        self, unit: str | Unit | int, number: int | None = None, *, k: int | None = None
    ) -> UnitRecord:
        """All of a unit at once: its row, its histogram, its k examples at either end and of each band."""
        found = self._find(unit, number)
        examples = self._examples(found)
        return UnitRecord(
            unit=found,
            statistics=self.unit(found),
            histogram=self.histogram(found),
            top=of_kind(examples, "top", k),
            bottom=of_kind(examples, "bottom", k),
            samples=of_kind(examples, "sample", k),
            head=self.head(found) if kind_of(found.site) == HEADS else None,
        )

    def show(self, what: str | Unit | pa.Table, *, k: int | None = 5) -> Shown:
        """A unit, or a table of its examples as `top` returns one, as a notebook displays it.

        k: how many examples of each kind and band; all with None. Of a table all rows are shown.
        Raises IndexerError for a unit that the index has not, and for a table of something else.
        """
        if isinstance(what, pa.Table):
            told = self._sources(what["document"].to_pylist() if "document" in what.column_names else [])
            return Shown(examples_html(what, told), f"{what.num_rows} examples")
        record = self.record(what, k=k)
        tables = (record.top, record.samples, record.bottom)
        documents = [one for table in tables for one in table["document"].to_pylist()]
        return record.shown(self._sources(documents))

    def _sources(self, documents: list[int]) -> dict[int, str]:
        """What to call some documents: the last two parts of their source, and the place in it."""
        return {
            row["document"]: "/".join(source_name(row["source"], row["row"]).split("/")[-2:])
            for row in self.documents(documents).to_pylist()
        }

    def panel(self, layer: str | Key | int) -> PanelOfLayer:
        """The panel's windows, and the activations of all units of a layer on them.

        layer: its name, as mlp.5, or the number of an mlp layer.
        Raises IndexerError for a layer that it has not, and where no panel was kept.
        Cost: reads the layer's file; memory of its activations, and of a few row groups.
        """
        key = parse_key(layer) if isinstance(layer, str) else layer
        key = key if isinstance(key, Key) else Key(MLP, operator.index(key))
        file, windows, tokens = self._panel(key, f'layer "{key}"')
        rows = [0, *np.cumsum(file.group_rows).tolist()]
        found = np.empty((rows[-1], tokens), np.float32)

        def read(group: int) -> None:
            units = range(rows[group], rows[group + 1])
            rows_of_group = file.group(group, threads=False)
            found[units.start : units.stop] = matrix_of(rows_of_group, units, tokens, file.path)

        list(self._pool().map(read, range(len(file.group_rows))))
        return PanelOfLayer(windows, found.T)

    def panel_row(self, unit: str | Unit | int, number: int | None = None) -> np.ndarray:
        """What one unit does on the panel: float32 [tokens], as a column of `panel`; read alone."""
        found = self._find(unit, number)
        file, _, tokens = self._panel(found.key, f'unit "{found}"')
        row = file.rows(found.unit, ["unit", "activations"])
        return matrix_of(row, range(found.unit, found.unit + 1), tokens, file.path)[0]

    def documents(self, documents: Iterable[int]) -> pa.Table:
        """The rows of `documents` of some ids, ascending; ids that it does not know have none."""
        return self._files.get(schema.DOCUMENTS_FILE, DocumentFile, schema.DOCUMENTS).rows(documents)

    def document(self, document: int, *, target: bool = False) -> str:
        """The text of a document that an example points to, read from its source again.

        target: what the decoder reads of it, where that is a column of its own.
        Of a corpus of token ids, their tokens one after another.
        Raises IndexerError where no example points to it, and where its source is out of reach or has changed
        in size, digest or the document's length. For the cost see corpus.again.
        """
        # imported here: no other question needs what reads a corpus
        from indexer.corpus.again import read_again

        rows = self.documents([document]).to_pylist()
        if not rows:
            raise IndexerError(f"index {self.path}: no example points to a document {document}")
        found = read_again(rows[0], self.manifest.corpus, self.manifest.configuration, target)
        return found if isinstance(found, str) else self.vocabulary.text(found)

    def sql(self, query: str, parameters: Parameters = None) -> pa.Table:
        """The result of one SELECT over the views of the index and of its add-ons.

        parameters: values for ? (a list) or $name (a mapping) in the query.
        Checksums of pages are not checked on this way; `verify` does. Neither the time nor the size of the
        result is limited: the query is the caller's own, and nothing is written where memory runs out.
        Raises IndexerError, one line, for a mistake in the query or one that does anything but read this
        index.
        """
        return self._open_queries().run(query, parameters)

    def register(self, name: str, table: Any) -> None:
        """Let `sql` read a table of yours under a name, for joins; the same name again replaces it.

        table: a pyarrow.Table or what pyarrow.table takes: a DataFrame of pandas or polars, columns by name.
        Raises IndexerError for a name that is no plain word or one of the views', and for what is no table.
        """
        self._open_queries().register(name, table)

    def _open_queries(self) -> Queries:
        from indexer.index.query import Queries

        self._check_unchanged()
        with self._lock:
            if self._queries is None:
                self._queries = Queries(self._folder, self.manifest)
            return self._queries

    def info(self) -> dict[str, Any]:
        """What the index holds and how it was made, as plain values."""
        manifest = self.manifest
        return {
            "index": str(self.path),
            "format_version": manifest.version,
            "digest": manifest.sha256,
            "created": manifest.created,
            "layers": by_site(entry.key for entry in manifest.layers),
            "experts": {str(entry.key): self._experts(entry) for entry in manifest.layers if entry.experts},
            "units": sum(entry.units for entry in manifest.layers),
            "examples": sum(
                file.rows or 0 for file in manifest.files if file.path.startswith(f"{EXAMPLES.folder}/")
            ),
            "panel_windows": max(getattr(manifest.file(panel.windows_file), "rows", 0) for panel in PANELS),
            "bytes": manifest.bytes,
            "model": manifest.model,
            "tokenizer": manifest.tokenizer,
            "corpus": manifest.corpus,
            "configuration": manifest.configuration,
            "totals": manifest.totals,
            "software": manifest.software,
            "addons": {addon.name: addon.tables for addon in read_addons(self._folder)},
        }

    def _experts(self, entry: LayerEntry) -> dict[str, Any]:
        """Of a layer of experts how many there are and a token passes, and the share of tokens of each."""
        assert entry.experts is not None
        number, tokens = entry.experts.number, self.manifest.totals.get("counted_tokens") or 0
        with LayerFiles(self.path, self.manifest, entry.key) as files:
            count = files.of_units(slice(0, entry.units), ["count"])["count"].to_numpy()
        load = count[:: entry.units // number] / max(tokens, 1)
        return {"number": number, "per_token": entry.experts.per_token, "load": load.round(6).tolist()}

    def verify(self, full: bool = False) -> dict[str, Any]:
        """Check sizes, SHA-256, schemas and page checksums of all files; with `full` the laws of the content.

        Returns what was checked. Raises IndexerError with the first problem.
        """
        from indexer.index.verify import verify_index

        return verify_index(self.path, full)

    def _pool(self) -> ThreadPoolExecutor:
        # imported here: it takes a few milliseconds, and most questions need none
        from concurrent.futures import ThreadPoolExecutor

        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_READERS, "index")
            return self._threads

    def _examples(self, unit: Unit) -> pa.Table:
        """All examples of a unit, with tokens and text from the vocabulary."""
        path = EXAMPLES.file(unit.key)
        file = self._files.get(path, UnitFile, EXAMPLES.columns)
        vocabulary = self.vocabulary
        with in_one_line(file.path):
            columns = spelled(file.rows(unit.unit, STORED).combine_chunks(), vocabulary, file.path)
        return with_names(unit, columns, EXAMPLES_ROWS)

    def _find(self, unit: str | Unit | int, number: int | None = None) -> Unit:
        """The unit, if the index has it; else IndexerError saying what it has."""
        named = named_unit(unit, number)
        entry = self._entry(named.key, f'unit "{named}"')
        found = named.of_layer(entry.units, entry.experts)
        if not 0 <= found.unit < entry.units:
            raise IndexerError(
                f'unit "{found}": not in index {self.path}; layer {found.layer} has units 0-{entry.units - 1}'
            )
        return found

    def _entry(self, key: Key, asked: str) -> LayerEntry:
        """That of a layer, if the index has it; else IndexerError saying what it has. asked: for what."""
        entry = self.manifest.layer(key)
        if entry is None:
            of_site = [entry.key.layer for entry in self.manifest.layers if entry.key.site == key.site]
            sites = ", ".join(site.site for site in self.manifest.sites)
            has = (
                f"layers {format_layers(of_site)} of site {key.site}"
                if of_site
                else f"site {sites or '(none)'}"
            )
            raise IndexerError(f"{asked}: not in index {self.path}, which has {has}")
        return entry

    def _panel(self, key: Key, asked: str) -> tuple[UnitFile, pa.Table, int]:
        """A layer's file of the panel, the panel's windows, and how many tokens they have."""
        entry = self._entry(key, asked)
        panel = panel_among(entry.statistics)
        if panel is None:
            raise IndexerError(f"{asked}: index {self.path} was built without a panel; build it with --panel")
        file = self._files.get(panel.windows_file, GroupedFile, WINDOWS)
        groups = (file.group(group) for group in range(file.metadata.num_row_groups))
        table = pa.concat_tables([WINDOWS.empty_table(), *groups]).combine_chunks()
        ids = table["token_ids"].combine_chunks()
        with in_one_line(file.path):
            tokens = pa.ListArray.from_arrays(ids.offsets, self.vocabulary.token_strings(ids.flatten()))
        columns = {**{name: table[name] for name in WINDOWS.names}, "tokens": tokens}
        windows = pa.table([columns[name] for name in SHOWN.names], schema=PANEL_ROWS)
        rows = self._files.get(panel.file(key), UnitFile, panel.columns)
        if sum(rows.group_rows) != entry.units:
            raise IndexerError(f"{rows.path}: it has not a row for each of {entry.units} units; {DAMAGED}")
        return rows, windows, len(ids.flatten())

    def _check_unchanged(self) -> None:
        """Raise IndexerError where another index was put in this one's place: both must not be mixed."""
        if _stamp(self.path) != self._stamp:
            raise IndexerError(f"index {self.path}: it was replaced after it had been opened; open it again")


def _stamp(index: Path) -> tuple[int, int, int] | None:
    """What tells one manifest on the disk from another; None where there is none."""
    try:
        found = os.stat(index / schema.MANIFEST)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
