"""Lengths of documents are known for those that examples point to, and forgotten for the others."""

from __future__ import annotations

import json
import tracemalloc
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
    documents = Documents(lambda: np.array([document for document in run if document % KEPT == 0]))
    largest = 0
    with Batches(corpus, tiny_tokenizer("wordpiece"), context=32, batch_tokens=256) as batches:
        for batch in batches:
            run.update(batch.document.tolist())
            documents.add(batches.finished_documents())
            largest = max(largest, len(documents))
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
    documents = Documents(lambda: np.empty(0, np.int64))
    documents.add([(0, 14)])
    assert documents.table(corpus, np.array([0, 1 << 40 | 5])).to_pylist() == [
        {"document": 0, "source": str(tmp_path / "a.txt"), "row": 0, "characters": 14},
        {"document": 1 << 40 | 5, "source": str(tmp_path / "b.jsonl"), "row": 5, "characters": None},
    ]


def test_a_short_document_that_is_cut_off_has_no_length(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    text = " ".join(LINES[:9])
    path.write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(3)))
    for most in (1, 2, 3):
        finished = []
        options = {"context": 32, "batch_tokens": 256}
        with Batches(Corpus([str(path)]), tiny_tokenizer("wordpiece"), **options) as batches:
            tokens = sum(int(batch.counted[batch.document == 0].sum()) for batch in batches)
        # the last sequence of the last document is left out
        options["max_tokens"] = most * tokens - 1
        with Batches(Corpus([str(path)]), tiny_tokenizer("wordpiece"), **options) as batches:
            met = set()
            for batch in batches:
                met.update(batch.document.tolist())
                finished += batches.finished_documents()
            finished += batches.finished_documents()
        assert met == set(range(most))
        assert sorted(finished) == [(document, len(text)) for document in range(most - 1)]


def test_memory_is_that_of_the_documents_with_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.building.documents.PRUNE_AT", 1000)
    kept = np.arange(0, 400_000, 2)
    tracemalloc.start()
    documents = Documents(lambda: kept)
    for first in range(0, 400_000, 100):
        documents.add((number, number % 7) for number in range(first, first + 100))
    state = documents.state()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    np.testing.assert_array_equal(state["document"], kept)
    np.testing.assert_array_equal(state["characters"], kept % 7)
    assert held < 20 * len(kept)
