"""Documents to tokens, in the order of the corpus: many short documents at once, long ones in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.corpus import Corpus, Document, Mark, Piece
from indexer.corpus.values import Chat, Text
from indexer.tokens.encode import Encoder
from indexer.tokens.long import LongText

# a longer document is encoded in pieces
LONG_CHARACTERS = 1 << 17
# enough to make the cost of one call vanish, little enough to keep the tokenizer's own objects small
CHUNK_CHARACTERS = 1 << 17
CHUNK_DOCUMENTS = 4096


# token ids, int32, one document after another, and how many each has, int64
Tokens = tuple[NDArray[np.int32], NDArray[np.int64]]


@dataclass(frozen=True)
class Encoded:
    """Tokens of consecutive documents, or of a part of one; special tokens are not among them.

    token_ids: int32 [tokens], part after part. length: int64 [parts].
    document: int64 [parts]. ordinal: int64 [parts], the number of the part's first sequence in its document.
    target: what a decoder reads of each part, where that is something else: its token ids, int32, and how
        many each has, int64 [parts]. A document with a target is in one part.
    finished: (document, characters) of the documents that end here, but for those given as token ids.
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
    target: Tokens | None = None

    @property
    def tokens(self) -> int:
        """How many there are, those of targets included."""
        return len(self.token_ids) + (0 if self.target is None else len(self.target[0]))


@dataclass
class _Chunk:
    piece: int
    texts: list[Text] = field(default_factory=list)
    targets: list[Text] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    size: int = 0
    mark: Mark | None = None

    def add(self, document: Document, text: str) -> None:
        found: Text = text if document.token_ids is None else document.token_ids
        self.documents.append(document.id)
        self.texts.append(Chat(found) if document.chat else found)
        self.size += len(found)
        if document.target is not None:
            self.targets.append(document.target)
            self.size += len(document.target)

    @property
    def full(self) -> bool:
        return self.size >= CHUNK_CHARACTERS or len(self.documents) >= CHUNK_DOCUMENTS


class TokenStream:
    """The tokens of a corpus; iterate once.

    body: tokens of a sequence without the special ones; a document in parts is parted at multiples of it.
    pieces, start: see Corpus.documents. of_targets: the encoder of what a decoder reads, where there is that.
    `forced` counts the places at which a long text had to be cut, see indexer.tokens.long.
    """

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder,
        body: int,
        pieces: Sequence[Piece] | None = None,
        start: dict[str, Any] | None = None,
        of_targets: Encoder | None = None,
    ) -> None:
        self._corpus = corpus
        self._of_targets = of_targets
        self._pieces = pieces
        self._start = start
        self._encoder = encoder
        self._body = body
        self.forced = 0

    def __iter__(self) -> Iterator[Encoded]:
        chunk = _Chunk(0)
        for document in self._corpus.documents(self._pieces, self._start):
            if document.piece != chunk.piece:
                if chunk.documents:
                    yield self._chunk(chunk)
                chunk = _Chunk(document.piece)
            text, rest = _short(document)
            if rest is None:
                chunk.add(document, text)
                if not chunk.full:
                    continue
                # the document is used up, and no other was asked for
                chunk.mark = self._corpus.mark()
            if chunk.documents:
                yield self._chunk(chunk)
                chunk = _Chunk(document.piece)
            if rest is not None:
                yield from self._long(document, rest)
        if chunk.documents:
            yield self._chunk(chunk)

    def _chunk(self, chunk: _Chunk) -> Encoded:
        document = np.array(chunk.documents, dtype=np.int64)
        token_ids, length = _encoded(chunk.texts, self._encoder)
        target = _encoded(chunk.targets, self._of_targets) if self._of_targets else None
        texts = zip(chunk.documents, chunk.texts, strict=True)
        finished = [(document, len(text)) for document, text in texts if isinstance(text, str)]
        return Encoded(
            token_ids,
            length,
            document,
            np.zeros_like(document),
            finished,
            chunk.piece,
            chunk.mark,
            self.forced,
            target,
        )

    def _long(self, document: Document, pieces: Iterator[str]) -> Iterator[Encoded]:
        text = LongText(self._encoder, pieces)
        ordinal = 0
        held = np.empty(0, dtype=np.int32)
        begun = not document.chat
        for token_ids in text:
            held = np.concatenate((held, token_ids))
            if not begun:
                held, begun = held[self._encoder.begins_wrapped(held) :], True
            # what the template wrote at the end of a chat is not known to be that before the end
            whole = max(0, len(held) - (self._encoder.own_wrapping if document.chat else 0)) // self._body
            if whole:
                yield _part(document, ordinal, held[: whole * self._body], [])
                ordinal += whole
                held = held[whole * self._body :]
        self.forced += text.forced
        if document.chat:
            held = held[: len(held) - self._encoder.ends_wrapped(held)]
        last = _part(document, ordinal, held, [(document.id, text.characters)])
        yield replace(last, mark=self._corpus.mark(), forced=self.forced)


def _encoded(texts: Sequence[Text], encoder: Encoder) -> Tokens:
    """The tokens of whole texts, or token ids as they are."""
    written = [text for text in texts if isinstance(text, str)]
    if len(written) < len(texts):
        parts = [text for text in texts if not isinstance(text, str)]
    else:
        token_ids, length = encoder.token_ids(written)
        chats = [number for number, text in enumerate(written) if isinstance(text, Chat)]
        if not chats:
            return token_ids, length
        parts = np.split(token_ids, np.cumsum(length)[:-1])
        for number in chats:
            # a template may write the special tokens that the tokenizer puts there itself
            part = parts[number]
            part = part[encoder.begins_wrapped(part) :]
            parts[number] = part[: len(part) - encoder.ends_wrapped(part)]
    return np.concatenate(parts), np.array([len(part) for part in parts], dtype=np.int64)


def _part(
    document: Document, ordinal: int, token_ids: NDArray[np.int32], finished: list[tuple[int, int]]
) -> Encoded:
    def column(value: int) -> NDArray[np.int64]:
        return np.array([value], dtype=np.int64)

    return Encoded(
        token_ids, column(len(token_ids)), column(document.id), column(ordinal), finished, document.piece
    )


def _short(document: Document) -> tuple[str, Iterator[str] | None]:
    """The whole text and None; or, of a long document, an iterator over all its pieces."""
    if document.token_ids is not None:
        return "", None
    pieces = document.pieces
    if document.target is not None:
        return "".join(pieces), None
    text = next(pieces)
    while len(text) <= LONG_CHARACTERS:
        piece = next(pieces, None)
        if piece is None:
            return text, None
        text += piece
    return "", chain(_sliced(text), pieces)


def _sliced(text: str) -> Iterable[str]:
    return (text[first : first + LONG_CHARACTERS] for first in range(0, len(text), LONG_CHARACTERS))
