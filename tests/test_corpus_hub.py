"""Data sets through the `datasets` library; a folder on this machine stands in for the hub."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import ParquetConfig

from indexer.corpus import Corpus
from indexer.errors import IndexerError

TEXTS = [f"text number {number} é" for number in range(2500)]


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/name, configurations `parts` (it has a test split) and `other`; and owner/lines, JSON lines."""
    folder = tmp_path / "owner" / "name"
    (folder / "parts").mkdir(parents=True)
    for part, texts in enumerate((TEXTS[:1500], TEXTS[1500:])):
        table = pa.table({"text": texts, "label": [1] * len(texts)})
        pq.write_table(table, folder / "parts" / f"train-{part}.parquet")
    pq.write_table(pa.table({"text": ["a test"], "label": [1]}), folder / "parts" / "test-0.parquet")
    pq.write_table(pa.table({"body": ["x", "", "y"]}), folder / "other.parquet")
    (tmp_path / "owner" / "lines").mkdir()
    lines = "".join(json.dumps({"text": text, "list": [1]}) + "\n" for text in TEXTS)
    (tmp_path / "owner" / "lines" / "data.jsonl").write_text(lines)
    configurations = (
        "---\nconfigs:\n- config_name: parts\n  default: true\n  data_files:\n"
        "  - split: train\n    path: parts/train-*.parquet\n  - split: test\n    path: parts/test-*.parquet\n"
        "- config_name: other\n  data_files: other.parquet\n---\n"
    )
    (folder / "README.md").write_text(configurations)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    return folder


def texts(source: str, column: str = "text") -> tuple[list[tuple[int, str]], Corpus]:
    corpus = Corpus([f"hf://datasets/{source}"], text_column=column)
    return [(document.row, "".join(document.pieces)) for document in corpus.documents()], corpus


@pytest.mark.usefixtures("data_set")
def test_a_data_set_is_streamed_in_order() -> None:
    found, corpus = texts("owner/name/parts")
    assert found == list(enumerate(TEXTS))
    assert corpus.bytes is None
    digest = hashlib.sha256("".join(text + "\0" for text in TEXTS).encode()).hexdigest()
    expected = {"source": "hf://datasets/owner/name/parts", "bytes": None, "sha256": digest}
    assert corpus.digests() == [expected | {"revision": None, "rows": 2500}]


@pytest.mark.usefixtures("data_set")
def test_the_split_and_the_configuration_are_chosen() -> None:
    assert texts("owner/name:test")[0] == [(0, "a test")]
    found, corpus = texts("owner/name/other", "body")
    assert found == [(0, "x"), (2, "y")]
    assert corpus.counts.empty == 1
    assert texts("owner/lines")[0] == list(enumerate(TEXTS))


@pytest.mark.usefixtures("data_set")
def test_a_data_set_read_in_part_is_recorded_with_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.corpus.hub._commit", lambda source: "c" * 40)
    corpus = Corpus(["hf://datasets/owner/name"])
    documents = corpus.documents()
    next(documents)
    documents.close()  # type: ignore[attr-defined]
    expected = {"source": "hf://datasets/owner/name", "bytes": None, "sha256": None}
    assert corpus.digests() == [expected | {"revision": "c" * 40, "rows": None}]


def test_the_revision_is_resolved_to_a_commit(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    file = data_set / "parts" / "test-0.parquet"

    def dataset_info(api: Any, name: str, revision: str | None) -> Any:
        asked.append((name, revision))
        return SimpleNamespace(sha="c" * 40)

    def load_dataset_builder(name: str, configuration: str | None, **options: Any) -> Any:
        asked.append((name, configuration, options))
        config = ParquetConfig()
        config.data_files = {"test": [str(file)]}
        return SimpleNamespace(config=config)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr("datasets.load_dataset_builder", load_dataset_builder)
    found, corpus = texts("far/away@v2/en:test")
    assert found == [(0, "a test")]
    assert asked == [("far/away", "v2"), ("far/away", "en", {"revision": "c" * 40})]
    assert corpus.digests()[0]["revision"] == "c" * 40


def test_one_file_is_opened_at_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read from its URL, compressed or not, and a table of it by parts."""
    table, lines = io.BytesIO(), gzip.compress(b'{"text": "three"}\n')
    pq.write_table(pa.table({"text": ["one", "two"], "label": [1, 2]}), table)
    stored = {"a.parquet": table.getvalue(), "b.jsonl.gz": lines}

    def opened(path: str, mode: str) -> Any:
        folder, name = path.rsplit("/", 1)
        assert folder == f"hf://datasets/far/away@{'c' * 40}/deep"
        return SimpleNamespace(open=lambda: io.BytesIO(stored[name]))

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha="c" * 40))
    monkeypatch.setattr("fsspec.open", opened)
    assert texts("far/away/deep/a.parquet")[0] == [(0, "one"), (1, "two")]
    assert texts("far/away/deep/b.jsonl.gz")[0] == [(0, "three")]


@pytest.fixture
def parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/parted: two files of train with different other columns, 10 and 5 rows, and 4 of test."""
    folder = tmp_path / "owner" / "parted"
    folder.mkdir(parents=True)
    for name, count, extra in (("train-0", 10, 1), ("train-1", 5, "high"), ("test-0", 4, {"k": [1]})):
        records = [json.dumps({"text": f"{name} {row}", "score": extra}) for row in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(records))
    monkeypatch.chdir(tmp_path)
    return folder


TRAIN = [*(f"train-0 {row}" for row in range(10)), *(f"train-1 {row}" for row in range(5))]
TEST = [f"test-0 {row}" for row in range(4)]


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize(("splits", "expected"), [
    ("", TRAIN),
    (":train+test", [*TRAIN, *TEST]),
    (":test+train", [*TEST, *TRAIN]),
    (":train[:3]", TRAIN[:3]),
    (":train[8:12]", TRAIN[8:12]),
    (":train[12:]", TRAIN[12:]),
    (":train[8:12]+test[1:3]+train[:2]", [*TRAIN[8:12], *TEST[1:3], *TRAIN[:2]]),
    (":train[10:99]+test", [*TRAIN[10:], *TEST]),
    (":train[20:30]+test", TEST),
    (":train[3:3]+test", TEST),
    ("/train-1.jsonl", TRAIN[10:]),
])  # fmt: skip
def test_parts_of_splits_are_read_in_the_order_named(splits: str, expected: list[str]) -> None:
    found, corpus = texts(f"owner/parted{splits}")
    assert found == list(enumerate(expected))
    assert corpus.digests()[0]["rows"] == len(expected)
    # continued after any document, the same come, with the same coverage in the end
    for stop in range(1, len(expected)):
        first = Corpus([f"hf://datasets/owner/parted{splits}"])
        documents = first.documents()
        for _ in range(stop):
            "".join(next(documents).pieces)
        state = first.state(first.mark())
        rest = Corpus([f"hf://datasets/owner/parted{splits}"], allow_empty=True)
        assert [(one.row, "".join(one.pieces)) for one in rest.documents(start=state)] == found[stop:]
        assert rest.coverage() == corpus.coverage()


def test_a_data_set_that_says_how_it_is_read_is_read_by_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "owner" / "tabs"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("text;label\none, two;1\nthree;2\n")
    (folder / "README.md").write_text(
        '---\nconfigs:\n- config_name: default\n  data_files: a.csv\n  sep: ";"\n---\n'
    )
    (tmp_path / "owner" / "plain").mkdir()
    (tmp_path / "owner" / "plain" / "a.txt").write_text("one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    assert texts("owner/tabs")[0] == [(0, "one, two"), (1, "three")]
    assert texts("owner/tabs:train[1:]")[0] == [(0, "three")]
    assert texts("owner/plain")[0] == [(0, "one"), (1, "two")]


@pytest.mark.usefixtures("data_set")
@pytest.mark.parametrize(("source", "message"), [
    ("owner/name@v1", "revision v1 is for data sets of the hub; this is the folder owner/name here"),
    ("owner/name:dev", r"owner/name: no split dev \(it has: train, test\)"),
    ("owner/name/third", "owner/name/third: cannot be read .*third"),
    ("owner/name/other", r'owner/name/other.parquet: no column "text" \(it has: body\)'),
    ("owner/name/gone.parquet", "owner/name/gone.parquet: cannot be read"),
])  # fmt: skip
def test_what_a_data_set_does_not_have(source: str, message: str) -> None:
    with pytest.raises(IndexerError, match=message) as caught:
        texts(source)
    assert "\n" not in str(caught.value)
