"""Documents to tokens, in the order of the corpus: many short documents at once, long ones in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.corpus import Corpus, Document, Mark, Piece
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
    piece: number of the piece of the corpus that they are in.
    mark: where reading stands behind them, None where it cannot be continued from there.
    forced: places of the stream so far at which a long text had to be cut.
    """

    token_ids: NDArray[np.int32]
    length: NDArray[np.int64]
    document: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    finished: list[tuple[int, int]]
    piece: int = 0
    mark: Mark | None = None
    forced: int = 0


@dataclass
class _Chunk:
    piece: int
    texts: list[str] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    characters: int = 0
    mark: Mark | None = None

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
    pieces, start: see Corpus.documents.
    `forced` counts the places at which a long text had to be cut, see indexer.tokens.long.
    """

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder,
        body: int,
        threads: int = 1,
        pieces: Sequence[Piece] | None = None,
        start: dict[str, Any] | None = None,
    ) -> None:
        self._corpus = corpus
        self._pieces = pieces
        self._start = start
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

    def _items(self) -> Iterator[_Chunk | tuple[int, int, Iterator[str]]]:
        """Chunks of whole documents of one piece, and long documents as (document, piece, parts)."""
        chunk = _Chunk(0)
        for document in self._corpus.documents(self._pieces, self._start):
            if document.piece != chunk.piece:
                if chunk.texts:
                    yield chunk
                chunk = _Chunk(document.piece)
            text, rest = _short(document)
            if rest is None:
                chunk.add(document.id, text)
                if not chunk.full:
                    continue
                # the document is used up, and no other was asked for
                chunk.mark = self._corpus.mark()
            if chunk.texts:
                yield chunk
                chunk = _Chunk(document.piece)
            if rest is not None:
                yield document.id, document.piece, rest
        if chunk.texts:
            yield chunk

    def _chunk(self, chunk: _Chunk) -> Encoded:
        token_ids, length = self._encoder.token_ids(chunk.texts)
        document = np.array(chunk.documents, dtype=np.int64)
        finished = list(zip(chunk.documents, map(len, chunk.texts), strict=True))
        first = np.zeros_like(document)
        return Encoded(token_ids, length, document, first, finished, chunk.piece, chunk.mark, self.forced)

    def _long(self, document: int, piece: int, pieces: Iterator[str]) -> Iterator[Encoded]:
        text = LongText(self._encoder, pieces)
        ordinal = 0
        held = np.empty(0, dtype=np.int32)
        for token_ids in text:
            held = np.concatenate((held, token_ids))
            whole = len(held) // self._body
            if whole:
                yield _part(document, ordinal, held[: whole * self._body], [], piece)
                ordinal += whole
                held = held[whole * self._body :]
        self.forced += text.forced
        last = _part(document, ordinal, held, [(document, text.characters)], piece)
        yield replace(last, mark=self._corpus.mark(), forced=self.forced)


def _part(
    document: int,
    ordinal: int,
    token_ids: NDArray[np.int32],
    finished: list[tuple[int, int]],
    piece: int,
) -> Encoded:
    def column(value: int) -> NDArray[np.int64]:
        return np.array([value], dtype=np.int64)

    return Encoded(token_ids, column(len(token_ids)), column(document), column(ordinal), finished, piece)


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
