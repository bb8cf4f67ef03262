"""The law of long texts: in pieces or whole, the same tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from indexer.tokens.encode import Encoder
from indexer.tokens.long import WINDOW_CHARACTERS, LongText
from tests.tiny_tokenizers import KINDS, hard_texts, library_text, mini_lm_tokenizer, tiny_tokenizer

TEXTS = hard_texts(20_000)


def in_pieces(text: str, largest: int, seed: int = 0) -> Iterator[str]:
    chance = random.Random(seed)
    position = 0
    while position < len(text):
        length = chance.randint(1, largest)
        yield text[position : position + length]
        position += length


def encoded_long(
    encoder: Encoder, text: str, window: int, solid: int = 1 << 20
) -> tuple[list[int], LongText]:
    long = LongText(encoder, in_pieces(text, window * 2), window=window, solid=solid, overlaps=(32, 256))
    return np.concatenate(list(long)).tolist(), long


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_in_pieces_are_those_of_the_whole(kind: str, name: str) -> None:
    encoder = Encoder(tiny_tokenizer(kind))
    text = TEXTS[name]
    whole, _ = encoder.token_ids([text])
    for window in (700, 2048, 6001):
        tokens, long = encoded_long(encoder, text, window)
        assert tokens == whole.tolist()
        assert long.forced == 0
        assert long.characters == len(text)


def test_a_word_longer_than_can_be_held_is_cut_and_counted() -> None:
    encoder = Encoder(tiny_tokenizer("wordpiece"))
    text = "before " + "a" * 9000 + " after"
    tokens, long = encoded_long(encoder, text, window=700, solid=4000)
    assert long.forced > 0
    whole, _ = encoder.token_ids(["before", "after"])
    assert [tokens[0], tokens[-1]] == [whole[0], whole[-1]]


@pytest.mark.parametrize("size", [699, 700, 701, 1400, 1401])
def test_texts_about_as_long_as_a_window(size: int) -> None:
    encoder = Encoder(tiny_tokenizer("byte_level"))
    text = library_text()[:size]
    tokens, long = encoded_long(encoder, text, window=700)
    assert tokens == encoder.token_ids([text])[0].tolist()
    assert long.characters == size


def test_default_windows_on_a_real_tokenizer() -> None:
    encoder = Encoder(mini_lm_tokenizer())
    text = library_text(("argparse", "datetime", "decimal", "inspect", "typing", "turtle", "_pydecimal"))
    assert len(text) > 3 * WINDOW_CHARACTERS
    long = LongText(encoder, in_pieces(text, 50_000))
    assert np.array_equal(np.concatenate(list(long)), encoder.token_ids([text])[0])
    assert long.forced == 0
