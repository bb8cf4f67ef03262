"""What a notebook shows of a unit and of its examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pyarrow as pa
import pytest

import indexer
from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index.notebook import examples_html
from indexer.index.read import Index

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</td></table>", "&amp;", "\u202e",
    "\x00", "'",
]  # fmt: skip


class Parsed(HTMLParser):
    """Tags, attributes and text of a page; whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    path = tmp_path_factory.mktemp("notebook") / "my.index"
    with indexer.open_index(write_synthetic(path, Size(units=4, top=6, bottom=4))) as opened:
        yield opened


def test_a_unit_is_shown_with_its_numbers_and_texts(index: Index) -> None:
    shown = index.show("mlp.1.3", k=2)
    page, record = Parsed(shown._repr_html_()), index.record("mlp.1.3", k=2)
    assert page.open == []
    assert f"{record.statistics['count'][0].as_py():,}" in page.text
    for table in (record.top, record.samples, record.bottom):
        for row in table.to_pylist():
            assert row["text"].replace("\n", "↵") in page.text
    assert page.tags.count("rect") == record.histogram.num_rows
    assert repr(shown) == "<unit mlp.1.3; a notebook shows it as HTML>"
    assert Parsed(record._repr_html_()).open == []


def test_a_table_of_examples_is_shown(index: Index) -> None:
    table = index.top("mlp.0.1", k=3)
    page = Parsed(index.show(table)._repr_html_())
    source = index.documents(table["document"].to_pylist()).to_pylist()[0]["source"]
    assert source.split("/")[-1] in page.text
    # the peaks alone are marked
    assert index.show(table).html.count("outline:1px") == 3
    with pytest.raises(IndexerError, match="no column"):
        index.show(index.histogram("mlp.0.1"))
    with pytest.raises(IndexerError, match="not in index"):
        index.show("mlp.0.99")
    assert "<table" in index.show(table.slice(0, 0)).html


def test_text_of_a_corpus_is_only_text(index: Index) -> None:
    row = index.top("mlp.0.1", k=1).to_pylist()[0]
    tags = set(Parsed(index.show("mlp.0.1").html).tags)
    for text in HOSTILE:
        tokens = [text, "peak"]
        made = row | {
            "tokens": tokens, "text": "".join(tokens), "activations": [float("nan"), -2.0], "position": 1,
            "window_start": 0, "kind": text,
        }  # fmt: skip
        html = examples_html(pa.Table.from_pylist([made]), {row["document"]: text})
        page = Parsed(html)
        assert set(page.tags) <= tags
        assert set(page.attributes) <= {"style", "title", "colspan", "dir"}
        assert not re.search("[\u202e\x00]", html)
        if text.isprintable():
            assert page.text.count(text) == 3
    assert "script" not in tags
    assert not re.search("https?:", html)
