"""Tokens as people read them, and the texts that they make up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders

from indexer.errors import IndexerError
from indexer.index.vocabulary import Vocabulary, decode_pieces
from tests.tiny_tokenizers import KINDS, tiny_tokenizer

TEXT = "Größe naïve 東京は 100%25 of 5% 👩‍👩‍👧 the cat's hat\n\tprint('x')  # done"

METASPACE = decoders.Metaspace(replacement="▁", prepend_scheme="always")
DECODERS = {
    "wordpiece": decoders.WordPiece(prefix="##", cleanup=False),
    "byte_level": decoders.ByteLevel(),
    "digits_by_three": decoders.ByteLevel(),
    "llama_2": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "metaspace_first": METASPACE,
    "unigram": METASPACE,
}


def _backend(kind: str) -> Tokenizer:
    """A tokenizer of its own, that cuts and pads nothing."""
    backend = Tokenizer.from_str(tiny_tokenizer(kind).backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _one_by_one(vocabulary: Vocabulary, windows: list[list[int]]) -> list[str]:
    """The texts by their definition."""
    pieces = vocabulary.pieces.to_pylist()
    texts = [decode_pieces("".join(pieces[number] for number in window)) for window in windows]
    return [text.lstrip(" ") if vocabulary.spaced else text for text in texts]


def _all_at_once(vocabulary: Vocabulary, windows: list[list[int]]) -> list[str]:
    """The texts of windows that lie among others, which must not matter."""
    around = [[0], *windows, [0, 0]]
    offsets = np.cumsum([0, *map(len, around)])
    texts = vocabulary.texts(
        np.array([number for window in around for number in window], np.int32), offsets[1:-1]
    )
    assert texts.validate(full=True) is None
    return list(texts.to_pylist())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_text_is_what_the_tokenizer_decodes(kind: str) -> None:
    backend = _backend(kind)
    backend.decoder = DECODERS[kind]
    vocabulary = Vocabulary.from_tokenizer(backend)
    ids = backend.encode(TEXT, add_special_tokens=False).ids
    decoded = backend.decode(ids, skip_special_tokens=False)
    # the tokenizer's own clean-up of spaces before punctuation is no part of the text
    squeezed: Callable[[str], str] = (lambda text: "".join(text.split())) if vocabulary.spaced else str.lstrip
    assert squeezed(vocabulary.text(ids)) == squeezed(decoded)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_tokenizer_without_a_decoder_reads_the_same(kind: str) -> None:
    with_decoder, without = _backend(kind), _backend(kind)
    with_decoder.decoder = DECODERS[kind]
    if kind not in ("byte_level", "digits_by_three"):
        without.decoder = None
    first, second = Vocabulary.from_tokenizer(with_decoder), Vocabulary.from_tokenizer(without)
    assert first.spaced == second.spaced
    assert first.tokens.equals(second.tokens)
    assert first.pieces.equals(second.pieces)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_texts_at_once_are_those_one_by_one(kind: str) -> None:
    vocabulary = Vocabulary.from_tokenizer(tiny_tokenizer(kind))
    ids = _backend(kind).encode(TEXT).ids
    random = np.random.default_rng(0)
    # every cut of a text, which splits characters at either end, and tokens that were never side by side
    windows = [ids[first : first + 9] for first in range(len(ids))]
    windows += [random.integers(0, len(vocabulary), 8).tolist() for _ in range(400)]
    windows += [[], *([number] for number in range(len(vocabulary))), []]
    assert _all_at_once(vocabulary, windows) == _one_by_one(vocabulary, windows)


def test_every_run_of_bytes_reads_the_same_at_once() -> None:
    alphabet = Vocabulary.from_tokenizer(tiny_tokenizer("byte_level"))
    lone = [number for number, piece in enumerate(alphabet.pieces.to_pylist()) if piece.startswith("%")]
    assert len(lone) >= 64
    random = np.random.default_rng(2)
    tokens = alphabet.tokens.to_pylist()
    plain = [tokens.index("a"), tokens.index("%"), tokens.index("2")]
    windows = [
        random.choice([*lone, *plain, *plain], size).tolist()
        for size in (0, 1, 2, 3, 4, 7)
        for _ in range(400)
    ]
    assert _all_at_once(alphabet, windows) == _one_by_one(alphabet, windows)


def test_a_character_cut_by_the_edge_is_one_mark() -> None:
    assert decode_pieces("%9D%86 is %E2%82") == "\ufffd is \ufffd"
    assert decode_pieces("%E2%82%AC") == "€"
    assert decode_pieces("100%25") == "100%"
    # bytes that make no character within the text: one mark per run
    assert decode_pieces("a%E2%82b%25c") == "a\ufffdb%c"


def test_tokens_are_written_as_people_read_them() -> None:
    byte_level = Vocabulary.from_tokenizer(tiny_tokenizer("byte_level")).tokens.to_pylist()
    assert " the" in byte_level
    assert "Ġthe" not in byte_level
    assert "<|marker|>" in byte_level
    wordpiece = Vocabulary.from_tokenizer(tiny_tokenizer("wordpiece"))
    assert wordpiece.spaced
    glued = next(token for token in wordpiece.tokens.to_pylist() if token.startswith("##"))
    number = wordpiece.tokens.to_pylist().index(glued)
    assert wordpiece.text([number, number]) == glued[2:] * 2
    marked = Vocabulary.from_tokenizer(tiny_tokenizer("llama_2")).tokens.to_pylist()
    assert not any("▁" in token for token in marked)
    assert "\n" in marked


def test_ids_outside_get_one_line() -> None:
    with pytest.raises(IndexerError, match="token id 9 is outside its 2 tokens"):
        Vocabulary(["a", "b"]).token_strings(np.array([0, 9], np.int32))
    with pytest.raises(IndexerError, match="outside"):
        Vocabulary(["a", "b"]).texts(np.array([-1], np.int32), [0, 1])


def test_a_table_holds_all_of_it() -> None:
    vocabulary = Vocabulary(["a", " b"], ["a", "%E2"], spaced=True)
    again = Vocabulary.from_table(vocabulary.to_table(np.zeros(len(vocabulary), np.int64)))
    assert again.tokens.equals(vocabulary.tokens)
    assert again.pieces.equals(vocabulary.pieces)
    assert again.spaced
    assert Vocabulary([]).texts(np.empty(0, np.int32), [0, 0]).to_pylist() == [""]
