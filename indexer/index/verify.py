"""Checking an index: that its files are those that were written, and that what they say holds together.

Always: that the manifest is as it was written, that nothing lies in the folder that it does not list; every
file's size and SHA-256, its schema, its number of rows, the checksum of every page. With `full`
also the laws of the content: bins, NaN and infinities add up to the count, and so do the counts of tokens;
extremes, positive and active values and quantiles agree with the bins; examples are ranked by the total
order, and a window holds its peak; hashes of the panel are those of its windows, and no unit lacks a token.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.addons import FOLDER, read_addons
from indexer.index.files import GroupedFile, in_one_line
from indexer.index.laws import LayerLaws
from indexer.index.manifest import (
    FileEntry,
    Manifest,
    expected_files,
    file_problem,
    read_manifest,
    sha256,
)
from indexer.index.restore import LayerFiles, read_vocabulary
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
    addons = read_addons(index)
    _check_foreign(index, [*expected, *(path for addon in addons for path in addon.paths())])
    for file in manifest.files:
        _check_file(index, file, expected[file.path])
    for addon in addons:
        for file in addon.files:
            folder = index / FOLDER / addon.name
            with in_one_line(folder / file.path):
                wanted = pq.read_schema(folder / file.path) if file.path.endswith(".parquet") else None
            _check_file(folder, file, wanted)
    vocabulary, token_counts = read_vocabulary(index)
    if (index / schema.VIEWS).read_bytes() != views_file(manifest.layers).encode("utf-8"):
        raise IndexerError(f"index {index}: {schema.VIEWS} is not that of the manifest's layers")
    if full:
        _check_laws(index, manifest, vocabulary, token_counts)
    checked = ["manifest", "no other files", "sizes", "SHA-256", "schemas", "rows", "page checksums"]
    return {
        "index": str(index),
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "rows": sum(file.rows or 0 for file in manifest.files),
        "addons": [addon.name for addon in addons],
        "checked": checked + (["laws of the content"] if full else []),
    }


def _check_foreign(index: Path, expected: Collection[str]) -> None:
    """Raise IndexerError naming the first file or folder that is not of the index.

    Nothing reads it, but what lies in an index is taken for part of it.
    """
    inside = sorted({parent.as_posix() for path in expected for parent in PurePosixPath(path).parents[:-1]})
    known = {schema.MANIFEST, *expected, *inside}
    places = [index / folder for folder in inside]
    linked = [place for place in places if place.is_symlink()]
    try:
        found = [Path(entry.path) for place in (index, *places) for entry in os.scandir(place)]
    except OSError as error:
        raise IndexerError(f"index {index}: {error.filename} cannot be listed: {error.strerror}") from None
    paths = (path.relative_to(index).as_posix() for path in found)
    foreign = sorted(path for path in paths if path not in known or index / path in linked)
    if foreign:
        # its name may be anything that a disk takes
        name = foreign[0] if foreign[0].isprintable() else ascii(foreign[0])
        raise IndexerError(f"index {index}: {name} is not of this index; put it elsewhere")


def _check_file(index: Path, file: FileEntry, wanted: pa.Schema | None) -> None:
    problem = file_problem(index, file)
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


def _check_laws(index: Path, manifest: Manifest, vocabulary: Vocabulary, token_counts: np.ndarray) -> None:
    units = _table(index / schema.UNITS_FILE, schema.UNITS)
    documents = _table(index / schema.DOCUMENTS_FILE, schema.DOCUMENTS)["document"].to_numpy()
    first, of_targets = 0, manifest.totals.get("target_counted_tokens", 0)
    for entry in manifest.layers:
        with LayerFiles(index, manifest, entry.key) as files:
            laws = LayerLaws(index, files, units.slice(first, entry.units), vocabulary, documents)
            laws.check_units()
            laws.check_token_counts(token_counts, entry.experts, of_targets)
            for codec in files.codecs:
                codec.check(laws)
        first += entry.units
    if first != units.num_rows:
        raise IndexerError(f"index {index}: units.parquet has {units.num_rows} rows for {first} units")


def _table(path: Path, wanted: pa.Schema) -> pa.Table:
    file = GroupedFile(path, wanted)
    try:
        groups = [file.group(group) for group in range(file.metadata.num_row_groups)]
        return pa.concat_tables(groups) if groups else wanted.empty_table()
    finally:
        file.close()
