"""Special tokens around sequences: of chats, of token ids, left out; and vocabularies of few letters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import indexer
from indexer.config.build import BuildConfig
from indexer.corpus import Corpus
from indexer.engines import build
from indexer.errors import IndexerError
from indexer.tokens import Batches, stream
from indexer.tokens.chat import chat_writer
from tests.tiny_models import saved, tokenizer

PLAIN = "{% for m in messages %}{{ m.content }} {% endfor %}"
WRITES_BOTH = "[BOS] " + PLAIN + "[EOS]"
WRITES_BOS = "[BOS] " + PLAIN
BOS, EOS, MARK = 1, 2, 4


def sequences(corpus: Corpus, tokenizer: Any, context: int = 62, **options: Any) -> list[list[int]]:
    corpus.write_chat, corpus.token_ids = chat_writer(tokenizer), len(tokenizer)
    found = {}
    with Batches(corpus, tokenizer, context=context, batch_tokens=256, **options) as batches:
        for batch in batches:
            for row, length in enumerate(batch.length):
                place = int(batch.document[row]), int(batch.ordinal[row])
                found[place] = batch.token_ids[row, :length].tolist()
    return [found[place] for place in sorted(found)]


def chats(folder: Path, *texts: str) -> Corpus:
    records = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Corpus([str(folder / "a.jsonl")], text_column="messages")


def words(*ids: int) -> str:
    """The text of these token ids of tests.tiny_models.tokenizer."""
    return " ".join(f"w{number - 4}" for number in ids)


@pytest.mark.parametrize("template", [PLAIN, WRITES_BOS, WRITES_BOTH])
def test_what_the_tokenizer_puts_around_a_text_is_not_doubled(template: str, tmp_path: Path) -> None:
    own = tokenizer()
    own.chat_template = template
    corpus = chats(tmp_path, words(10, 11), words(12))
    assert sequences(corpus, own) == [[BOS, 10, 11, EOS], [BOS, 12, EOS]]
    # left out, whoever writes them
    assert sequences(corpus, own, special_tokens=False) == [[10, 11], [12]]
    # pieces of a chat are wrapped as those of any document
    corpus = chats(tmp_path, words(*range(10, 17)))
    assert sequences(corpus, own, 5) == [
        [BOS, 10, 11, 12, EOS], [BOS, 13, 14, 15, EOS], [BOS, 16, EOS],
    ]  # fmt: skip


@pytest.mark.parametrize("template", [PLAIN, WRITES_BOS, WRITES_BOTH])
def test_bos_is_put_or_left_out(template: str, tmp_path: Path) -> None:
    own, corpus = tokenizer(), chats(tmp_path, words(10, 11))
    own.chat_template = template
    assert sequences(corpus, own, bos="yes") == [[BOS, 10, 11, EOS]]
    assert sequences(corpus, own, bos="no") == [[10, 11, EOS]]
    # a tokenizer that puts none by itself
    around = processors.TemplateProcessing("$A [EOS]", special_tokens=[("[EOS]", EOS)])
    own.backend_tokenizer.post_processor = around
    own.bos_token = "[BOS]"
    assert sequences(corpus, own, bos="yes") == [[BOS, 10, 11, EOS]]
    own.bos_token = None
    with pytest.raises(IndexerError, match="has no such token; take --bos tokenizer"):
        sequences(corpus, own, bos="yes")


def test_a_text_that_spells_a_special_token_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("[BOS] " + words(10))
    assert sequences(Corpus([str(tmp_path / "a.txt")]), tokenizer()) == [[BOS, BOS, 10, EOS]]


@pytest.mark.parametrize("characters", [200, 1 << 17])
def test_a_long_chat_has_the_sequences_of_a_short_one(
    characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LONG_CHARACTERS", characters)
    own = tokenizer()
    own.chat_template = WRITES_BOTH
    ids = [4 + number % 90 for number in range(600)]
    for count in range(595, 600):
        body = ids[:count]
        expected = [[BOS, *body[first : first + 5], EOS] for first in range(0, count, 5)]
        assert sequences(chats(tmp_path, words(*body)), own, 7) == expected


def test_a_template_that_writes_the_day_writes_the_same_one(tmp_path: Path) -> None:
    own = tokenizer()
    own.chat_template = (
        "{%- if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif -%}\n"
        "{%- macro head() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro -%}"
        "{{ head() }} {{ day }} {{ messages[0].role }}"
    )
    assert chat_writer(own)([{"role": "user", "content": "x"}]) == "2024-07-26 26 Jul 2024 user"


def test_what_a_template_refuses_is_one_line(tmp_path: Path) -> None:
    own = tokenizer()
    corpus = chats(tmp_path, "w1")
    with pytest.raises(
        IndexerError, match=r"a.jsonl, line 1: .* holds a chat, and the model's tokenizer has no chat"
    ):
        sequences(corpus, own)
    own.chat_template = "{{ raise_exception('Roles must\nalternate') }}"
    with pytest.raises(IndexerError, match=r"line 1: .* refuses it \(Roles must alternate\)"):
        sequences(corpus, own)


def test_token_ids_are_run_as_they_stand(tmp_path: Path) -> None:
    ids = [[BOS, 10, 11, EOS], [12], list(range(10, 17))]
    pq.write_table(pa.table({"ids": ids}), tmp_path / "a.parquet")
    corpus = Corpus([str(tmp_path / "a.parquet")], ids_column="ids")
    assert sequences(corpus, tokenizer(), 5, special_tokens=False) == [
        [BOS, 10, 11, EOS], [12], [10, 11, 12, 13, 14], [15, 16],
    ]  # fmt: skip


def dna() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({"A": 0, "C": 1, "G": 2, "T": 3, "<eos>": 4}, []))
    backend.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 4)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def moves() -> PreTrainedTokenizerFast:
    names = [f"{column}{row}" for column in "bcdefgh" for row in range(1, 9)]
    backend = Tokenizer(
        models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(("make", "text", "expected"), [
    (dna, "ACGT", [0, 1, 2, 3, 4]), (moves, "b1 b2 c1", [0, 1, 8]),
])  # fmt: skip
def test_vocabularies_without_the_letter_a(
    make: Callable[[], Any], text: str, expected: list[int], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert sequences(Corpus([str(tmp_path / "a.txt")]), make()) == [expected]


@pytest.mark.parametrize(("make", "text"), [(dna, "ACGTTGCA"), (moves, "b1 b2 c1 c2")])
def test_a_model_of_such_a_vocabulary_is_indexed(make: Callable[[], Any], text: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    make().save_pretrained(folder)
    (tmp_path / "a.txt").write_text(text)
    with indexer.open_index(built(folder, tmp_path / "a.index", tmp_path / "a.txt")) as index:
        assert index.info()["totals"]["sequences"] >= 1


def test_a_word_that_the_vocabulary_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("b1 zz")
    with pytest.raises(
        IndexerError, match=r"tokenizer: it cannot encode a text of the corpus \(.*\[UNK\]"
    ) as caught:
        sequences(Corpus([str(tmp_path / "a.txt")]), moves())
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "model")


def built(model: Path, output: Path, corpus: Path, **options: Any) -> Path:
    fixed = {
        "model": model,
        "output": output,
        "corpus": [corpus],
        "context": 8,
        "threads": 1,
        "top": 2,
        "bottom": 2,
    }
    return build(BuildConfig(**fixed, **options))


def test_documents_and_configuration_of_an_index_of_token_ids(model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"ids": [[BOS, 10, 11, EOS], [12, 13]]}), tmp_path / "a.parquet")
    output = built(model, tmp_path / "a.index", tmp_path / "a.parquet", ids_column="ids")
    with indexer.open_index(output) as index:
        rows = index.sql("SELECT row, characters FROM documents ORDER BY row").to_pylist()
        assert rows == [{"row": 0, "characters": None}, {"row": 1, "characters": None}]
        texts = index.sql("SELECT DISTINCT text FROM examples WHERE document = 1").to_pylist()
        assert [row["text"].split() for row in texts] == [["w8", "w9"]]
        counted = index.sql("SELECT DISTINCT count FROM units").to_pylist()
        assert counted == [{"count": 4}]


def test_token_ids_that_the_tokenizer_does_not_know_are_refused(tmp_path: Path) -> None:
    wide = saved(tmp_path / "model", vocab_size=128)
    pq.write_table(pa.table({"ids": [[10, 97]]}), tmp_path / "a.parquet")
    with pytest.raises(
        IndexerError, match=r"row 0: token 1 .* is 97, and the model and its tokenizer know token ids 0 to 96"
    ):
        built(wide, tmp_path / "a.index", tmp_path / "a.parquet", ids_column="ids")


def test_special_tokens_left_out_are_other_rows(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(10, 11, 12))
    output = built(model, tmp_path / "a.index", tmp_path / "a.txt", no_special_tokens=True)
    with indexer.open_index(output) as index:
        found = index.sql("SELECT min(position) AS first, max(position) AS last FROM examples").to_pylist()
        assert found == [{"first": 0, "last": 2}]
    with pytest.raises(IndexerError, match="already exists, and differs: --no-special-tokens"):
        built(model, output, tmp_path / "a.txt")


@pytest.mark.parametrize(("options", "message"), [
    ({"ids_column": "ids", "no_special_tokens": True}, "--no-special-tokens does not go with it"),
    ({"ids_column": "ids", "text_column": "body"}, "--text-column does not go with it"),
])  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BuildConfig(model="m", corpus=["c"], output="o", **options)


def test_mistakes_in_columns_are_told_before_the_model_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    for options in ({}, {"workers": 2}, {"shard": (0, 2)}):
        with pytest.raises(IndexerError, match=r'a.jsonl, line 1: no column "text" \(it has: body\)'):
            built(tmp_path / "nowhere", tmp_path / "o.index", tmp_path / "a.jsonl", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
