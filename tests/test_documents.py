"""Lengths of documents are known for those that examples point to, and forgotten for the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from indexer.building.documents import Documents
from indexer.corpus import Corpus
from indexer.tokens import Batches
from tests.tiny_tokenizers import library_text, tiny_tokenizer

LINES = [line for line in library_text().splitlines() if line.strip()] * 3
KEPT = 97


def test_what_examples_point_to_is_known_however_far_reading_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.building.documents.PRUNE_AT", 500)
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    corpus = Corpus([str(path)])
    run: set[int] = set()
    # examples come into being with the batch that holds them, as in a build
    documents = Documents(lambda: {document for document in run if document % KEPT == 0})
    largest = 0
    with Batches(corpus, tiny_tokenizer("wordpiece"), context=32, batch_tokens=256) as batches:
        for batch in batches:
            run.update(batch.document.tolist())
            documents.add(batches.finished_documents())
            largest = max(largest, len(documents._characters))
        documents.add(batches.finished_documents(), running=False)
    wanted = np.arange(0, len(LINES), KEPT)
    table = documents.table(corpus, wanted)
    assert table["characters"].to_pylist() == [len(LINES[number]) for number in wanted]
    assert table["source"].to_pylist() == [str(path)] * len(wanted)
    assert table["row"].to_pylist() == wanted.tolist()
    assert largest < len(LINES) / 2


def test_a_document_of_the_second_file_that_was_cut_off(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    corpus = Corpus([str(tmp_path)])
    documents = Documents(set)
    documents.add([(0, 14)])
    assert documents.table(corpus, np.array([0, 1 << 40 | 5])).to_pylist() == [
        {"document": 0, "source": str(tmp_path / "a.txt"), "row": 0, "characters": 14},
        {"document": 1 << 40 | 5, "source": str(tmp_path / "b.jsonl"), "row": 5, "characters": None},
    ]
