"""Data sets through the `datasets` library; a folder on this machine stands in for the hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

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


def test_the_revision_is_resolved_to_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def dataset_info(api: Any, name: str, revision: str | None) -> Any:
        asked.append((name, revision))
        return SimpleNamespace(sha="c" * 40)

    def load_dataset(name: str, configuration: str | None, **options: Any) -> Any:
        asked.append((name, configuration, options))
        return Dataset.from_dict({"text": ["one", "two"]}).to_iterable_dataset()

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found, corpus = texts("far/away@v2/en:test")
    assert found == [(0, "one"), (1, "two")]
    assert asked[0] == ("far/away", "v2")
    assert asked[1] == ("far/away", "en", {"split": "test", "streaming": True, "revision": "c" * 40})
    assert corpus.digests()[0]["revision"] == "c" * 40


@pytest.mark.usefixtures("data_set")
@pytest.mark.parametrize(("source", "message"), [
    ("owner/name@v1", "revision v1 is for data sets of the hub; this is the folder owner/name here"),
    ("owner/name:dev", "owner/name:dev: cannot be read .*dev"),
    ("owner/name/third", "owner/name/third: cannot be read .*third"),
    ("owner/name/other", r'no column "text" \(it has: body\)'),
])  # fmt: skip
def test_what_a_data_set_does_not_have(source: str, message: str) -> None:
    with pytest.raises(IndexerError, match=message) as caught:
        texts(source)
    assert "\n" not in str(caught.value)
