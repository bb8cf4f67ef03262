"""Documents to tokens, in the order of the corpus: many short documents at once, long ones in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from indexer.corpus import Corpus, Document
from indexer.tokens.encode import Encoder
from indexer.tokens.long import LongText

# a longer document is encoded in pieces
LONG_CHARACTERS = 1 << 17
# enough to make the cost of one call vanish, little enough to keep the tokenizer's own objects small
CHUNK_CHARACTERS = 1 << 17
CHUNK_DOCUMENTS = 4096


@dataclass(frozen=True)
class Encoded:
    """Tokens of consecutive documents, or of a part of one; special tokens are not among them.

    token_ids: int32 [tokens], part after part. length: int64 [parts].
    document: int64 [parts]. ordinal: int64 [parts], the number of the part's first sequence in its document.
    finished: (document, characters) of the documents that end here.
    """

    token_ids: NDArray[np.int32]
    length: NDArray[np.int64]
    document: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    finished: list[tuple[int, int]]


@dataclass
class _Chunk:
    texts: list[str] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    characters: int = 0

    def add(self, document: int, text: str) -> None:
        self.texts.append(text)
        self.documents.append(document)
        self.characters += len(text)

    @property
    def full(self) -> bool:
        return self.characters >= CHUNK_CHARACTERS or len(self.texts) >= CHUNK_DOCUMENTS


class TokenStream:
    """The tokens of a corpus; iterate once.

    body: tokens of a sequence without the special ones; a document in parts is parted at multiples of it.
    threads: how many chunks are encoded at the same time. The order of the results does not depend on it.
    `forced` counts the places at which a long text had to be cut, see indexer.tokens.long.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder, body: int, threads: int = 1) -> None:
        self._corpus = corpus
        self._encoder = encoder
        self._body = body
        self._threads = threads
        self.forced = 0

    def __iter__(self) -> Iterator[Encoded]:
        if self._threads == 1:
            for item in self._items():
                yield from [self._chunk(item)] if isinstance(item, _Chunk) else self._long(*item)
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="tokens") as pool:
            waiting: deque[Future[Encoded]] = deque()
            for item in self._items():
                if isinstance(item, _Chunk):
                    waiting.append(pool.submit(self._chunk, item))
                    # one more than can run, so that no thread waits for the reader
                    if len(waiting) <= self._threads:
                        continue
                    yield waiting.popleft().result()
                else:
                    while waiting:
                        yield waiting.popleft().result()
                    yield from self._long(*item)
            while waiting:
                yield waiting.popleft().result()

    def _items(self) -> Iterator[_Chunk | tuple[int, Iterator[str]]]:
        """Chunks of whole documents, and long documents as (document, pieces)."""
        chunk = _Chunk()
        for document in self._corpus.documents():
            text, rest = _short(document)
            if rest is None:
                chunk.add(document.id, text)
                if not chunk.full:
                    continue
            if chunk.texts:
                yield chunk
                chunk = _Chunk()
            if rest is not None:
                yield document.id, rest
        if chunk.texts:
            yield chunk

    def _chunk(self, chunk: _Chunk) -> Encoded:
        token_ids, length = self._encoder.token_ids(chunk.texts)
        document = np.array(chunk.documents, dtype=np.int64)
        finished = list(zip(chunk.documents, map(len, chunk.texts), strict=True))
        return Encoded(token_ids, length, document, np.zeros_like(document), finished)

    def _long(self, document: int, pieces: Iterator[str]) -> Iterator[Encoded]:
        text = LongText(self._encoder, pieces)
        ordinal = 0
        held = np.empty(0, dtype=np.int32)
        for token_ids in text:
            held = np.concatenate((held, token_ids))
            whole = len(held) // self._body
            if whole:
                yield _part(document, ordinal, held[: whole * self._body], [])
                ordinal += whole
                held = held[whole * self._body :]
        self.forced += text.forced
        yield _part(document, ordinal, held, [(document, text.characters)])


def _part(
    document: int, ordinal: int, token_ids: NDArray[np.int32], finished: list[tuple[int, int]]
) -> Encoded:
    def column(value: int) -> NDArray[np.int64]:
        return np.array([value], dtype=np.int64)

    return Encoded(token_ids, column(len(token_ids)), column(document), column(ordinal), finished)


def _short(document: Document) -> tuple[str, Iterator[str] | None]:
    """The whole text and None; or, of a long document, an iterator over all its pieces."""
    pieces = document.pieces
    text = next(pieces)
    while len(text) <= LONG_CHARACTERS:
        piece = next(pieces, None)
        if piece is None:
            return text, None
        text += piece
    return "", chain(_sliced(text), pieces)


def _sliced(text: str) -> Iterable[str]:
    return (text[first : first + LONG_CHARACTERS] for first in range(0, len(text), LONG_CHARACTERS))
