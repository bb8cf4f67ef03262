"""Batches: the set of sequences, their packing, special tokens, limits, and the background thread."""

from __future__ import annotations

import gc
import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from indexer.corpus import Corpus, Covered, Document, Mark
from indexer.corpus.policy import Reading
from indexer.errors import IndexerError
from indexer.tokens import Batch, Batches
from tests.tiny_tokenizers import KINDS, library_text, mini_lm_tokenizer, tiny_tokenizer

LINES = [line for line in library_text().splitlines(True) if line.strip()]


class Texts(Corpus):
    """A corpus of given texts, each in pieces of some characters."""

    def __init__(self, texts: list[str], piece: int = 10_000, error: BaseException | None = None) -> None:
        self._reading = Reading()
        self.texts = texts
        self.piece = piece
        self.error = error
        self.closed = threading.Event()
        self.allow_empty = False
        self.read = 0

    def documents(self, pieces: Any = None, start: Any = None) -> Iterator[Document]:
        try:
            for row, text in enumerate(self.texts):
                self.read += 1
                pieces = (text[first : first + self.piece] for first in range(0, len(text), self.piece))
                self.row = row
                yield Document(row, "texts", row, 0, pieces)
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()

    def mark(self) -> Mark:
        return Mark(0, self.row + 1, self.counts, Covered(0, 0, self.row + 1))


def collected(corpus: Corpus, tokenizer: Any, **options: Any) -> tuple[list[Batch], Batches]:
    options = {"context": 32, "batch_tokens": 256} | options
    with Batches(corpus, tokenizer, **options) as batches:
        return list(batches), batches


def rows(found: list[Batch]) -> Counter[tuple[int, int, tuple[int, ...], tuple[bool, ...]]]:
    """Every sequence as (document, ordinal, tokens, counted)."""
    return Counter(
        (int(batch.document[row]), int(batch.ordinal[row]),
         tuple(batch.token_ids[row, :length].tolist()), tuple(batch.counted[row, :length].tolist()))
        for batch in found for row, length in enumerate(batch.length)
    )  # fmt: skip


def plain_rows(texts: list[str], tokenizer: Any, context: int) -> Counter[Any]:
    """The definition: each text's tokens cut into pieces, each wrapped as the tokenizer wraps a text."""
    probe = tokenizer("x")["input_ids"]
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    first = next(place for place in range(len(probe)) if probe[place : place + len(bare)] == bare)
    before, after = probe[:first], probe[first + len(bare) :]
    body = context - len(before) - len(after)
    found: Counter[Any] = Counter()
    for document, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
        for ordinal, start in enumerate(range(0, len(ids), body)):
            piece = ids[start : start + body]
            counted = [False] * len(before) + [True] * len(piece) + [False] * len(after)
            found[document, ordinal, (*before, *piece, *after), tuple(counted)] += 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_the_cut_and_wrapped_tokens_of_each_document(kind: str) -> None:
    texts = ["".join(LINES[first : first + 7]) for first in range(0, 700, 7)]
    found, _ = collected(Texts(texts), tiny_tokenizer(kind))
    assert rows(found) == plain_rows(texts, tiny_tokenizer(kind), 32)


@pytest.mark.parametrize("options", [
    {"batch_tokens": 32}, {"batch_tokens": 1 << 20}, {"batch_tokens": 100},
])  # fmt: skip
def test_the_set_of_sequences_depends_on_corpus_and_context_alone(options: dict[str, int]) -> None:
    texts = [*LINES[:900], library_text() * 3, *LINES[900:1000]]
    expected, _ = collected(Texts(texts), tiny_tokenizer("byte_level"))
    found, _ = collected(Texts(texts, piece=777), tiny_tokenizer("byte_level"), **options)
    assert rows(found) == rows(expected)


def test_a_long_document_has_the_sequences_of_the_whole() -> None:
    text = library_text() * 2
    assert len(text) > 1 << 17
    found, batches = collected(Texts([text]), mini_lm_tokenizer(), context=64)
    expected = plain_rows([text], mini_lm_tokenizer(), 64)
    assert rows(found) == expected
    assert batches.finished_documents() == [(0, len(text))]


def test_batch_order_is_reproducible() -> None:
    texts = LINES[:2000]
    first, _ = collected(Texts(texts), tiny_tokenizer("wordpiece"))
    second, _ = collected(Texts(texts), tiny_tokenizer("wordpiece"))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name in ("token_ids", "length", "document", "ordinal", "counted"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def shares(corpus: Corpus, slow: bool = True, **options: Any) -> list[tuple[float | None, float]]:
    """After every batch, the share said and the true one; slow: the reader is as far ahead as it goes."""
    found: list[tuple[float | None, int]] = []
    with Batches(corpus, tiny_tokenizer("wordpiece"), context=32, batch_tokens=256, **options) as batches:
        for _ in batches:
            if slow:
                time.sleep(0.01)
            found.append((batches.share(corpus.bytes or 0), batches.totals.tokens))
    return [(share, tokens / found[-1][1]) for share, tokens in found]


@pytest.mark.parametrize("times", [1, 3])
def test_the_share_is_that_of_tokens_where_the_reader_is_ahead(tmp_path: Path, times: int) -> None:
    # a block of the reader's, and a few
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in LINES * times)
    )
    for share, true in shares(Corpus([str(tmp_path / "corpus.jsonl")])):
        assert share == pytest.approx(true, abs=0.06)


# of a compressed file whole blocks are read ahead, which are a good part of this one
@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".jsonl", 0.06), (".jsonl.gz", 0.25), (".parquet", 0.06)], ids=str
)
def test_the_share_is_that_of_tokens_where_most_text_is_to_come(
    tmp_path: Path, suffix: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"corpus{suffix}"
    texts = [line[:most] for line in LINES * 6 for most in (80, 5, 40)]
    text = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=2000)
    else:
        path.write_bytes(gzip.compress(text.encode()) if suffix == ".jsonl.gz" else text.encode())
    monkeypatch.setattr("indexer.tokens.batches.READY_BATCHES", 2)
    for share, true in shares(Corpus([str(path)]), slow=False):
        assert share == pytest.approx(true, abs=tolerance)


def test_the_share_is_unknown_until_the_end_of_a_corpus_of_unknown_size_is_seen() -> None:
    with Batches(Texts(LINES), tiny_tokenizer("wordpiece"), context=32, batch_tokens=256) as batches:
        said = [batches.share(0) for _ in batches]
    assert said[-1] == pytest.approx(1)
    assert all(share is None or 0 < share <= 1 for share in said)


def test_batches_are_within_bounds_and_dense() -> None:
    found, batches = collected(Texts(LINES * 4), mini_lm_tokenizer(), context=128, batch_tokens=2048)
    for batch in found:
        assert batch.token_ids.dtype == np.int64
        assert batch.token_ids.size <= 2048
        assert batch.token_ids.shape[1] == batch.length.max() <= 128
        assert (
            batch.token_ids[np.arange(128)[: batch.token_ids.shape[1]] >= batch.length[:, None]] == 0
        ).all()
        assert not batch.counted[np.arange(batch.token_ids.shape[1]) >= batch.length[:, None]].any()
    totals = batches.totals
    assert totals.documents == len(LINES) * 4
    assert totals.padding + totals.tokens == sum(batch.token_ids.size for batch in found)
    assert totals.padding < 0.05 * totals.tokens
    assert totals.counted_tokens == sum(int(batch.counted.sum()) for batch in found)
    assert totals.tokens == totals.counted_tokens + 2 * totals.sequences


def test_sequences_of_a_batch_describe_its_flattened_rows() -> None:
    batch = collected(Texts(LINES[:50]), tiny_tokenizer("wordpiece"))[0][0]
    sequences = batch.sequences()
    count, width = batch.token_ids.shape
    assert sequences.start.tolist() == [row * width for row in range(count)]
    assert sequences.length.tolist() == batch.length.tolist()
    assert sequences.token_ids.tolist() == batch.token_ids.ravel().tolist()
    assert sequences.counted.tolist() == batch.counted.ravel().tolist()
    assert sequences.token_ids.dtype == np.int32


def test_special_tokens_in_the_text_count_only_if_asked_for() -> None:
    tokenizer = tiny_tokenizer("byte_level")
    texts = ["one<|endoftext|>two<|marker|>three"]
    special = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|marker|>"])
    (batch,), _ = collected(Texts(texts), tokenizer)
    assert (~batch.counted).sum() == 2
    assert batch.token_ids[~batch.counted].tolist() == special
    (batch,), _ = collected(Texts(texts), tokenizer, count_special_tokens=True)
    assert batch.counted.all()


def test_an_unknown_word_is_text() -> None:
    tokenizer = tiny_tokenizer("wordpiece")
    (batch,), _ = collected(Texts(["the " + "x" * 200 + " end"]), tokenizer)
    assert tokenizer.unk_token_id in batch.token_ids[batch.counted]


@pytest.mark.parametrize("most", [30, 1000, 1001, 5000, 10**9])
def test_max_tokens_takes_the_first_sequences_that_fit(most: int) -> None:
    texts = LINES[:1500]
    tokenizer = tiny_tokenizer("wordpiece")
    found, batches = collected(Texts(texts), tokenizer, max_tokens=most)
    whole = sorted(rows(collected(Texts(texts), tokenizer)[0]))
    taken, total = 0, 0
    while taken < len(whole) and total + sum(whole[taken][3]) <= most:
        total += sum(whole[taken][3])
        taken += 1
    assert sorted(rows(found)) == whole[:taken]
    assert batches.totals.counted_tokens == total <= most


def test_max_tokens_stops_reading() -> None:
    corpus = Texts(LINES * 100)
    collected(corpus, tiny_tokenizer("wordpiece"), max_tokens=1000)
    assert corpus.read < 5000
    assert corpus.closed.is_set()


@pytest.mark.parametrize(("options", "message"), [
    ({"max_tokens": 3}, "--max-tokens 3: less than the first sequence"),
    ({"context": 2}, "--context 2: no room for text, the tokenizer adds 2 special tokens; take at least 3"),
])  # fmt: skip
def test_numbers_that_leave_no_room(options: dict[str, int], message: str) -> None:
    with pytest.raises(IndexerError, match=message):
        collected(Texts(["def function(): pass\n" * 10]), tiny_tokenizer("wordpiece"), **options)


def test_text_that_the_tokenizer_drops_is_no_corpus() -> None:
    with pytest.raises(IndexerError, match="no token"):
        collected(Texts([" \n ", "\t"]), tiny_tokenizer("wordpiece"))


def test_batches_of_one_sequence_each_leave_none_to_wait() -> None:
    found, _ = collected(Texts(["def function(): pass\n" * 10]), tiny_tokenizer("wordpiece"), batch_tokens=1)
    assert {len(batch.length) for batch in found} == {1}


def test_a_tokenizer_without_a_vocabulary_is_refused() -> None:
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(IndexerError, match="it makes no token of text"):
        collected(Texts(["x"]), empty)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(IndexerError, match="not a fast tokenizer"):
        collected(Texts(["x"]), object())


def test_the_callers_tokenizer_is_left_as_it_is() -> None:
    tokenizer = tiny_tokenizer("llama_2")
    tokenizer.backend_tokenizer.enable_truncation(9)
    before = tokenizer.backend_tokenizer.to_str()
    collected(Texts(LINES[:10]), tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_errors_of_the_background_reach_the_caller_as_they_were() -> None:
    error = IndexerError("corpus file x: broken")
    corpus = Texts(LINES[:10], error=error)
    with Batches(corpus, tiny_tokenizer("wordpiece"), context=32, batch_tokens=64) as batches:
        with pytest.raises(IndexerError) as caught:
            list(batches)
        assert caught.value is error
        with pytest.raises(StopIteration):
            next(batches)
    assert not background_threads()


def background_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tokens")]


def test_close_stops_the_thread_and_closes_the_corpus() -> None:
    corpus = Texts(LINES * 1000)
    batches = Batches(corpus, tiny_tokenizer("wordpiece"), context=32, batch_tokens=64)
    next(batches)
    assert background_threads()
    batches.close()
    batches.close()
    assert not background_threads()
    assert corpus.closed.is_set()
    with pytest.raises(StopIteration):
        next(batches)


def test_reading_ahead_is_bounded() -> None:
    corpus = Texts(LINES * 1000)
    with Batches(corpus, tiny_tokenizer("wordpiece"), context=32, batch_tokens=64) as batches:
        next(batches)
        read = -1
        # until it stays the same, however busy the machine
        while read < corpus.read < len(LINES) * 100:
            read = corpus.read
            time.sleep(0.7)
        assert corpus.read == read < len(LINES) * 100


def test_forgotten_batches_stop_their_thread() -> None:
    batches = Batches(Texts(LINES * 1000), tiny_tokenizer("wordpiece"), context=32, batch_tokens=64)
    next(batches)
    del batches
    gc.collect()
    assert not background_threads()


def test_the_tokenizers_setting_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    with Batches(Texts(LINES), tiny_tokenizer("wordpiece"), context=32, batch_tokens=64):
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with Batches(Texts(LINES), tiny_tokenizer("wordpiece"), context=32, batch_tokens=64):
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


LEFT_OPEN = """
import sys, types, tokenizers
from indexer.corpus import Corpus
from indexer.tokens import Batches
corpus, tokenizer = sys.argv[1:]
fast = types.SimpleNamespace(backend_tokenizer=tokenizers.Tokenizer.from_file(tokenizer), all_special_ids=[])
batches = Batches(Corpus([corpus]), fast, context=32, batch_tokens=64)
next(batches)
"""


@pytest.mark.parametrize(("ending", "status"), [("", 0), ("sys.exit(3)", 3), ("raise KeyboardInterrupt", -2)])
def test_the_interpreter_ends_with_batches_left_open(tmp_path: Path, ending: str, status: int) -> None:
    corpus, tokenizer = tmp_path / "corpus.jsonl", tmp_path / "tokenizer.json"
    corpus.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES * 50))
    tiny_tokenizer("wordpiece").backend_tokenizer.save(str(tokenizer))
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"}
    command = [sys.executable, "-c", LEFT_OPEN + ending, str(corpus), str(tokenizer)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert "Fatal" not in done.stderr
    assert "panicked" not in done.stderr


@pytest.mark.parametrize("most", [None, 90_000])
def test_documents_are_told_as_finished_once_and_when_all_of_them_was_handed_out(most: int | None) -> None:
    texts = [*LINES[:9000], library_text(), *LINES[:9000]]
    known: dict[int, int] = {}
    early = 0
    options: dict[str, Any] = {"context": 16, "batch_tokens": 128, "max_tokens": most}
    with Batches(Texts(texts), tiny_tokenizer("byte_level"), **options) as batches:
        for batch in batches:
            finished = dict(batches.finished_documents())
            assert not known.keys() & finished.keys()
            known |= finished
            # nothing of a finished document comes any more, not even in this batch
            assert not known.keys() & set(batch.document.tolist())
            early = len(known)
        last = dict(batches.finished_documents())
    assert early > 1000
    assert not known.keys() & last.keys()
    known |= last
    assert known.items() <= dict(enumerate(map(len, texts))).items()
    if most is None:
        assert len(known) == len(texts)


def test_closing_before_the_first_batch_ends_the_iteration() -> None:
    batches = Batches(Texts(LINES * 10), tiny_tokenizer("wordpiece"), context=32, batch_tokens=64)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)
