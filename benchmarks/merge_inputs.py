"""Inputs for the merge case: many large partial indexes out of few files.

A layer's content is written once, as an index of its own, and linked into many inputs as one layer or
another: no input is like another in any layer, while there are enough contents. Only units, documents and
manifest are an input's own. (The column `layer` of linked files tells the layer that they were written as;
merging goes by their names.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.synthetic import (
    Size,
    configuration,
    synthetic_documents,
    synthetic_records,
    synthetic_token_counts,
    synthetic_vocabulary,
)
from indexer.index import schema
from indexer.index.codecs import CODECS
from indexer.index.groups import RowGroups
from indexer.index.manifest import FileEntry, Manifest, read_manifest, sha256, sites_of
from indexer.index.write import IndexWriter
from indexer.names import MLP, Key


@dataclass(frozen=True)
class Inputs:
    """`inputs` partial indexes of `layers` layers with `contents` different contents, in one folder."""

    folder: Path
    size: Size
    layers: int
    inputs: int
    contents: int

    def content(self, number: int, layer: int) -> int:
        """Which content is a layer of an input."""
        return (number + layer) % self.contents

    def content_path(self, content: int) -> Path:
        """The index that holds a content as its layer 0."""
        return self.folder / f"content{content}"

    def input_path(self, number: int) -> Path:
        """One of the indexes to merge."""
        return self.folder / f"input{number}"

    def size_of(self, content: int) -> Size:
        """As all of them, with documents of its own."""
        return replace(self.size, layers=1, first_document=content * self.size.documents)

    def write_content(self, content: int) -> None:
        """Write a content, unless it is there."""
        if self.content_path(content).exists():
            return
        size = self.size_of(content)
        with IndexWriter(self.content_path(content), synthetic_vocabulary(size.vocabulary)) as writer:
            for record in synthetic_records(size, seed=content):
                writer.add_layer(record)
            writer.publish(_sections(size, 0), synthetic_documents(size), synthetic_token_counts(size))

    def write_input(self, number: int) -> Path:
        """Link an input together, unless it is there; returns its path."""
        path = self.input_path(number)
        if path.exists():
            return path
        contents = [self.content(number, layer) for layer in range(self.layers)]
        first = self.content_path(contents[0])
        kept = [codec for codec in CODECS if (first / codec.file(Key(MLP, 0))).exists()]
        for codec in kept:
            (path / codec.folder).mkdir(parents=True)
        files = [_linked(first, path, name, name) for name in (schema.VOCABULARY_FILE, schema.VIEWS)]
        for layer, content in enumerate(contents):
            for codec in kept:
                old, new = codec.file(Key(MLP, 0)), codec.file(Key(MLP, layer))
                files.append(_linked(self.content_path(content), path, old, new))
        files.append(self._write_units(path, contents))
        files.append(self._write_documents(path, sorted(set(contents))))
        entry = read_manifest(first).layers[0]
        manifest = Manifest(
            format=schema.FORMAT,
            version=schema.VERSION,
            created="2026-01-01T00:00:00+00:00",
            **_sections(self.size, number),
            sites=sites_of([replace(entry, key=Key(MLP, layer)) for layer in range(self.layers)]),
            files=files,
        )
        (path / schema.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return path

    def _write_units(self, path: Path, contents: list[int]) -> FileEntry:
        rows = schema.rows_per_group(self.size.units * self.layers, schema.UNIT_ROWS)
        with RowGroups(path / schema.UNITS_FILE, schema.UNITS, rows) as groups:
            for layer, content in enumerate(contents):
                table = pq.read_table(self.content_path(content) / schema.UNITS_FILE)
                number = pa.repeat(pa.scalar(layer, pa.int32()), table.num_rows)
                groups.add(table.set_column(1, "layer", number), table.num_rows)
        return _entry(path, schema.UNITS_FILE, groups.rows)

    def _write_documents(self, path: Path, contents: list[int]) -> FileEntry:
        with RowGroups(path / schema.DOCUMENTS_FILE, schema.DOCUMENTS, schema.DOCUMENT_ROWS) as groups:
            for content in contents:
                table = pq.read_table(self.content_path(content) / schema.DOCUMENTS_FILE)
                groups.add(table, table.num_rows)
        return _entry(path, schema.DOCUMENTS_FILE, groups.rows)


def _sections(size: Size, number: int) -> dict[str, Any]:
    """Those of an input that read one row of the one file of the corpus."""
    return {
        "model": {"digest": "synthetic"},
        "tokenizer": {"digest": "synthetic"},
        "corpus": {"listing": "synthetic", "coverage": [{"file": 0, "first": number, "end": number + 1}]},
        "configuration": configuration(size),
        "totals": {"counted_tokens": size.count},
        "software": {},
    }


def _linked(source: Path, target: Path, name: str, new_name: str) -> FileEntry:
    os.link(source / name, target / new_name)
    entry = read_manifest(source).file(name)
    assert entry is not None
    return msgspec.structs.replace(entry, path=new_name)


def _entry(path: Path, name: str, rows: int) -> FileEntry:
    return FileEntry(path=name, rows=rows, bytes=(path / name).stat().st_size, sha256=sha256(path / name))
