"""A document is read back from its source, or it is said why not."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import indexer
from indexer.corpus.sources import ROW_BITS
from indexer.engines import build
from indexer.errors import IndexerError
from tests.test_resume import options


def texts(name: str) -> list[str]:
    """Four documents that no other file has, the first of them empty."""
    return ["", f"the first of {name}, from row one", f"über {name}\n, two lines", f"and a last one, {name}"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = {name: [{"text": text} for text in texts(name)] for name in "abde"}
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows["a"]))
    (folder / "b.json.gz").write_bytes(gzip.compress(json.dumps(rows["b"]).encode()))
    (folder / "c[1].txt").write_text(texts("c")[2], encoding="utf-16")
    pq.write_table(pa.Table.from_pylist(rows["d"]), folder / "d.parquet", row_group_size=2)
    with (folder / "e.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *([1, row["text"]] for row in rows["e"])])
    return folder


def test_every_kind_of_source(folder: Path) -> None:
    output = build(options(folder.parent / "a.index", ["corpus"]))
    with indexer.open_index(output) as index:
        listed = index.sql("SELECT document, row, source FROM documents").to_pylist()
        assert len(listed) == 3 * 4 + 1
        for one in listed:
            name = one["source"].removeprefix("corpus/")[0]
            assert index.document(one["document"]) == texts(name)[2 if name == "c" else one["row"]]


def test_token_ids_are_spelled(folder: Path) -> None:
    pq.write_table(pa.table({"ids": [[101, 2023, 2003, 102]]}), folder.parent / "ids.parquet")
    output = build(options(folder.parent / "a.index", ["ids.parquet"], ids_column="ids"))
    with indexer.open_index(output) as index:
        assert index.document(0) == index.vocabulary.text([101, 2023, 2003, 102])


def shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def other_letter(path: Path) -> None:
    path.write_text(path.read_text().replace("last", "lost"))


def longer_document(path: Path) -> None:
    path.write_text(path.read_text().replace("and a", "an").replace("the first", "the fi   rst"))


def moved_rows(path: Path) -> None:
    path.write_text(" " * (path.stat().st_size - 20) + '\n{"text": "no more"}')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (os.remove, "its source corpus/a.jsonl is not there"),
        (shorter, "has changed: 117 bytes, and it had 120"),
        (other_letter, "has changed: its SHA-256 is another"),
        (longer_document, "has changed: 14 characters in row 3, and it had 17"),
        (moved_rows, "has changed: there is no document in row 3"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_source_that_changed_is_told(change: Callable[[Path], None], said: str, folder: Path) -> None:
    output = build(options(folder.parent / "a.index", ["corpus"]))
    change(folder / "a.jsonl")
    with indexer.open_index(output) as index:
        with pytest.raises(IndexerError) as error:
            index.document(3)
        assert said in str(error.value)
        with pytest.raises(IndexerError, match="no example points to a document 12345"):
            index.document(12345)
        assert index.document((1 << ROW_BITS) + 3) == texts("b")[3]
