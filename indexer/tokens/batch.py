"""Sequences cut from tokens, sorted by length within a bounded look-ahead, packed into padded batches."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.tokens.encode import Encoder
from indexer.tokens.stream import Encoded

if TYPE_CHECKING:
    from indexer_kernels.sequences import Sequences

# the look-ahead that is sorted by length: so many batches, within these limits
WINDOW_BATCHES = 64
FEWEST_WINDOW_TOKENS = 1 << 17
MOST_WINDOW_TOKENS = 1 << 22
MOST_WINDOW_SEQUENCES = 1 << 16
# the first windows are smaller and double, so that the model need not wait for a whole one
FIRST_WINDOW_BATCHES = 16
FIRST_WINDOW_TOKENS = 1 << 18


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length, one per row, padded on the right.

    token_ids: int64 [sequences, width]. length: int64 [sequences], special tokens included.
    document, ordinal: int64 [sequences].
    counted: bool [sequences, width], False for padding and special tokens.
    """

    token_ids: NDArray[np.int64]
    length: NDArray[np.int64]
    document: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    counted: NDArray[np.bool_]

    def sequences(self) -> Sequences:
        """Where the sequences lie in activations of [sequences * width, units]."""
        from indexer_kernels.sequences import Sequences

        rows, width = self.token_ids.shape
        return Sequences(
            start=np.arange(rows, dtype=np.int64) * width,
            length=self.length,
            document=self.document,
            ordinal=self.ordinal,
            token_ids=self.token_ids.astype(np.int32).reshape(-1),
            counted=self.counted.reshape(-1),
        )


@dataclass(frozen=True)
class Layout:
    """How sequences are made: at most `context` tokens in each, `batch_tokens` in a batch with its padding.

    max_tokens: counted tokens after which no further sequence is taken, or None.
    Raises IndexerError where a number leaves no room.
    """

    context: int
    batch_tokens: int
    count_special_tokens: bool = False
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("context", "batch_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise IndexerError(f"--{name.replace('_', '-')} {value}: must be at least 1")

    def body(self, encoder: Encoder) -> int:
        """Tokens of text that one sequence holds."""
        if self.context <= encoder.wrapping:
            raise IndexerError(
                f"--context {self.context}: no room for text, the tokenizer adds {encoder.wrapping} special "
                f"tokens; take at least {encoder.wrapping + 1}"
            )
        return self.context - encoder.wrapping


@dataclass
class _Window:
    """Sequences waiting to be sorted: where each begins in token_ids, its tokens, document and ordinal."""

    token_ids: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    document: NDArray[np.int64]
    ordinal: NDArray[np.int64]

    @classmethod
    def joined(cls, windows: list[_Window]) -> _Window:
        base = np.cumsum([0] + [len(window.token_ids) for window in windows[:-1]])
        starts = [window.start + first for window, first in zip(windows, base, strict=True)]
        return cls(
            np.concatenate([window.token_ids for window in windows]),
            np.concatenate(starts),
            np.concatenate([window.length for window in windows]),
            np.concatenate([window.document for window in windows]),
            np.concatenate([window.ordinal for window in windows]),
        )

    def taken(self, rows: NDArray[np.int64] | slice) -> _Window:
        """Some of the sequences, with the tokens of all."""
        return _Window(
            self.token_ids, self.start[rows], self.length[rows], self.document[rows], self.ordinal[rows]
        )

    def compacted(self) -> _Window:
        """The same sequences without the tokens of others."""
        ends = np.cumsum(self.length)
        index = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
            self.start - (ends - self.length), self.length
        )
        return _Window(self.token_ids[index], ends - self.length, self.length, self.document, self.ordinal)


class Packer:
    """Batches from a stream of tokens.

    Which sequences there are follows from the stream and the context alone; which batch one lands in, from
    batch_tokens too. Within a look-ahead of some 64 batches, sequences go from long to short.
    full: whether max_tokens ended it.
    """

    def __init__(self, encoder: Encoder, layout: Layout) -> None:
        self._encoder = encoder
        self._layout = layout
        self._body = layout.body(encoder)
        self._counted = 0
        self._held: list[_Window] = []
        # (document, characters) of those read to their end: with sequences still held, and all packed
        self._read: dict[int, int] = {}
        self._finished: list[tuple[int, int]] = []
        self.full = False

    def batches(self, stream: Iterable[Encoded]) -> Generator[Batch, None, None]:
        """Every batch. Stops reading the stream once max_tokens are reached."""
        largest = WINDOW_BATCHES * self._layout.batch_tokens
        largest = min(max(largest, FEWEST_WINDOW_TOKENS), MOST_WINDOW_TOKENS)
        wanted = min(FIRST_WINDOW_BATCHES * self._layout.batch_tokens, FIRST_WINDOW_TOKENS, largest)
        tokens = sequences = 0
        for encoded in stream:
            window = self._limited(self._cut(encoded))
            self._held.append(window)
            self._read.update(encoded.finished)
            tokens += int(window.length.sum()) + self._encoder.wrapping * len(window.length)
            sequences += len(window.length)
            if self.full:
                break
            if tokens >= wanted or sequences >= MOST_WINDOW_SEQUENCES:
                yield from self._packed(last=False)
                tokens = sequences = 0
                wanted = min(2 * wanted, largest)
        yield from self._packed(last=True)

    def finished_documents(self) -> list[tuple[int, int]]:
        """(document, characters), once for each document read to its end whose sequences are all in the
        batches yielded before this call."""
        finished, self._finished = self._finished, []
        return finished

    def _cut(self, encoded: Encoded) -> _Window:
        """Each part cut into sequences of `body` tokens and a shorter rest."""
        count = -(-encoded.length // self._body)
        part = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(part)) - np.repeat(np.cumsum(count) - count, count)
        begin = number * self._body
        return _Window(
            encoded.token_ids,
            (np.cumsum(encoded.length) - encoded.length)[part] + begin,
            np.minimum(self._body, encoded.length[part] - begin),
            encoded.document[part],
            encoded.ordinal[part] + number,
        )

    def _limited(self, window: _Window) -> _Window:
        """The sequences up to max_tokens counted tokens; sets `full` where one is left out."""
        most = self._layout.max_tokens
        if most is None or len(window.length) == 0:
            return window
        if self._layout.count_special_tokens:
            counted = window.length + self._encoder.wrapping
        else:
            ordinary = ~self._encoder.is_special(window.token_ids)
            counted = np.add.reduceat(ordinary, window.start, dtype=np.int64)
        total = self._counted + np.cumsum(counted)
        taken = int(np.searchsorted(total, most, side="right"))
        if taken < len(total):
            if self._counted == 0 and taken == 0:
                raise IndexerError(
                    f"--max-tokens {most}: less than the first sequence, which has {total[0]}; "
                    "raise it or lower --context"
                )
            self.full = True
        self._counted = int(total[taken - 1]) if taken else self._counted
        return window.taken(slice(0, taken))

    def _packed(self, last: bool) -> Generator[Batch, None, None]:
        """What is held, from long to short; the last batch stays held if more sequences may fill it up."""
        window = _Window.joined(self._held)
        order = np.argsort(-window.length, kind="stable")
        width = window.length[order] + self._encoder.wrapping
        first = 0
        while first < len(order):
            rows = max(1, self._layout.batch_tokens // int(width[first]))
            if first + rows > len(order) and not last:
                break
            yield self._batch(window.taken(order[first : first + rows]))
            first += rows
        self._held = [window.taken(np.sort(order[first:])).compacted()]
        held = set(window.document[order[first:]].tolist())
        self._finished += [entry for entry in self._read.items() if entry[0] not in held]
        self._read = {document: self._read[document] for document in held if document in self._read}

    def _batch(self, window: _Window) -> Batch:
        prefix, suffix = self._encoder.prefix, self._encoder.suffix
        length = window.length + self._encoder.wrapping
        column = np.arange(int(length.max()))
        # padding reads any token and is overwritten; so do the special tokens' places
        source = window.start[:, None] + (column - len(prefix))
        token_ids = window.token_ids.take(source, mode="clip").astype(np.int64)
        text = (column >= len(prefix)) & (column < length[:, None] - len(suffix))
        inside = column < length[:, None]
        token_ids[~inside] = self._encoder.padding
        token_ids[:, : len(prefix)] = prefix
        rows = np.arange(len(length))
        for place, token in enumerate(suffix):
            token_ids[rows, length - len(suffix) + place] = token
        counted = inside if self._layout.count_special_tokens else text & ~self._encoder.is_special(token_ids)
        return Batch(token_ids, length, window.document, window.ordinal, counted)
