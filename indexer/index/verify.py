"""Checking an index: that its files are those that were written, and that what they say holds together.

Always: every file's size and SHA-256, its schema, its number of rows, the checksum of every page. With `full`
also the laws of the content: bins, NaN and infinities add up to the count; extremes, active values and
quantiles agree with the bins; examples are ranked by the total order, and a window holds its peak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.files import GroupedFile, RowFile
from indexer.index.laws import LayerLaws
from indexer.index.manifest import FileEntry, Manifest, read_manifest, sha256, size_problem
from indexer.index.restore import LayerFiles
from indexer.index.views import views_file
from indexer.index.vocabulary import Vocabulary


def verify_index(path: Path | str, full: bool = False) -> dict[str, Any]:
    """Check an index; returns what was checked: files, bytes, rows, and the kinds of checks.

    Raises IndexerError, one line, with the first problem.
    Cost: reads every byte and decodes every row, with `full` the rows of examples and histograms once more.
    """
    index = Path(path)
    manifest = read_manifest(index)
    expected = expected_files(manifest)
    _check_list(index, manifest, expected)
    for file in manifest.files:
        _check_file(index, file, expected[file.path])
    vocabulary = _vocabulary(index)
    layers = [(entry.site, entry.layer) for entry in manifest.layers]
    if (index / schema.VIEWS).read_text(encoding="utf-8") != views_file(layers, vocabulary.spaced):
        raise IndexerError(f"index {index}: {schema.VIEWS} is not that of the manifest's layers")
    if full:
        _check_laws(index, manifest, vocabulary)
    checked = ["sizes", "SHA-256", "schemas", "rows", "page checksums"]
    return {
        "index": str(index),
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "rows": sum(file.rows or 0 for file in manifest.files),
        "checked": checked + (["laws of the content"] if full else []),
    }


def expected_files(manifest: Manifest) -> dict[str, pa.Schema | None]:
    """The files that an index of these layers has, with their schemas; None for what is not Parquet."""
    files: dict[str, pa.Schema | None] = {
        schema.UNITS_FILE: schema.UNITS,
        schema.DOCUMENTS_FILE: schema.DOCUMENTS,
        schema.VOCABULARY_FILE: schema.VOCABULARY,
        schema.VIEWS: None,
    }
    for entry in manifest.layers:
        files[schema.examples_file(entry.site, entry.layer)] = schema.EXAMPLES_STORED
        files[schema.histograms_file(entry.site, entry.layer)] = schema.HISTOGRAMS
        files[schema.sums_file(entry.site, entry.layer)] = schema.SUMS
    return files


def _check_list(index: Path, manifest: Manifest, expected: Collection[str]) -> None:
    listed = Counter(file.path for file in manifest.files)
    wrong = sorted(path for path in {*listed, *expected} if listed[path] != 1 or path not in expected)
    if wrong:
        raise IndexerError(
            f"index {index}: {schema.MANIFEST} is damaged: its files and layers disagree about {wrong[0]}"
        )


def _check_file(index: Path, file: FileEntry, wanted: pa.Schema | None) -> None:
    problem = size_problem(index, file)
    if problem:
        raise IndexerError(f"index {index}: {problem}")
    path = index / file.path
    same = sha256(path) == file.sha256
    if wanted is not None:
        # before the digest is judged: a damaged page says more than a digest that differs
        rows = _decode(path, wanted)
        if same and rows != file.rows:
            raise IndexerError(
                f"index {index}: {file.path} has {rows} rows where the manifest says {file.rows}"
            )
    if not same:
        raise IndexerError(
            f"index {index}: {file.path} is not the file that was written: its SHA-256 differs"
        )


def _decode(path: Path, wanted: pa.Schema) -> int:
    """Read all rows with their pages' checksums; returns how many there are."""
    file = GroupedFile(path, wanted)
    try:
        for group in range(file.metadata.num_row_groups):
            file.group(group)
        return int(file.metadata.num_rows)
    finally:
        file.close()


def _check_laws(index: Path, manifest: Manifest, vocabulary: Vocabulary) -> None:
    units = _table(index / schema.UNITS_FILE, schema.UNITS)
    documents = _table(index / schema.DOCUMENTS_FILE, schema.DOCUMENTS)["document"].to_numpy()
    first = 0
    for entry in manifest.layers:
        laws = LayerLaws(index, entry, units.slice(first, entry.units), vocabulary, documents)
        first += entry.units
        laws.check_units()
        laws.check_histograms(
            _table(index / schema.histograms_file(entry.site, entry.layer), schema.HISTOGRAMS)
        )
        with LayerFiles(index, manifest, entry.site, entry.layer) as files:
            laws.check_sums(files.sums())
        examples = GroupedFile(index / schema.examples_file(entry.site, entry.layer), schema.EXAMPLES_STORED)
        try:
            for group in range(examples.metadata.num_row_groups):
                laws.check_examples(examples.group(group))
        finally:
            examples.close()
    if first != units.num_rows:
        raise IndexerError(f"index {index}: units.parquet has {units.num_rows} rows for {first} units")


def _vocabulary(index: Path) -> Vocabulary:
    file = RowFile(index / schema.VOCABULARY_FILE, schema.VOCABULARY)
    try:
        return Vocabulary.from_table(file.row(0, schema.VOCABULARY.names))
    finally:
        file.close()


def _table(path: Path, wanted: pa.Schema) -> pa.Table:
    file = GroupedFile(path, wanted)
    try:
        groups = [file.group(group) for group in range(file.metadata.num_row_groups)]
        return pa.concat_tables(groups) if groups else wanted.empty_table()
    finally:
        file.close()
