"""Sequences cut from tokens, sorted by length within a bounded look-ahead, packed into padded batches."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.corpus import Mark
from indexer.errors import IndexerError
from indexer.tokens.encode import Encoder
from indexer.tokens.stream import Encoded
from indexer.tokens.window import Window

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
# fixed shapes: so many tokens with their padding, and so many widths
FIXED_TOKENS = 2048
FIXED_WIDTHS = 8


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length, one per row, padded on the right.

    token_ids: int64 [rows, width]; rows beyond the sequences fill up a fixed shape, and belong to none.
    length: int64 [sequences], special tokens included.
    document, ordinal: int64 [sequences].
    counted: bool [rows, width], False for padding and special tokens.
    fixed: whether the shape is one that follows from the length of its sequences alone.
    target: what a decoder reads beside each sequence, where that is another text; row by row the same.
    """

    token_ids: NDArray[np.int64]
    length: NDArray[np.int64]
    document: NDArray[np.int64]
    ordinal: NDArray[np.int64]
    counted: NDArray[np.bool_]
    fixed: bool = False
    target: Batch | None = None

    @property
    def texts(self) -> list[Batch]:
        """This one, and that of targets."""
        return [self] if self.target is None else [self, self.target]

    def sequences(self) -> Sequences:
        """Where the sequences lie in activations of [rows * width, units]."""
        from indexer_kernels.sequences import Sequences

        return Sequences(
            start=np.arange(len(self.length), dtype=np.int64) * self.token_ids.shape[1],
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
    shapes: "tight", as wide as a batch's longest sequence; "fixed", one of a few shapes, which follows from a
        sequence's own length and the context, from nothing else; "equal", sequences of one length without
        padding; "single", one sequence a batch.
    """

    context: int
    batch_tokens: int
    count_special_tokens: bool = False
    max_tokens: int | None = None
    shapes: str = "tight"

    def fixed_width(self, length: NDArray[np.int64]) -> NDArray[np.int64]:
        """The width that sequences of these lengths are padded to where shapes are fixed."""
        step = -(-self.context // (8 * FIXED_WIDTHS)) * 8
        return np.minimum(-(-length // step) * step, self.context)

    def body(self, encoder: Encoder) -> int:
        """Tokens of text that one sequence holds. Raises IndexerError where there is no room for any."""
        if self.context <= encoder.wrapping:
            raise IndexerError(
                f"--context {self.context}: no room for text, the tokenizer adds {encoder.wrapping} special "
                f"tokens; take at least {encoder.wrapping + 1}"
            )
        return self.context - encoder.wrapping


@dataclass(frozen=True)
class Snapshot:
    """A packer between two look-aheads: where its stream stands, and its own state."""

    mark: Mark
    packer: dict[str, Any]


class Packer:
    """Batches from a stream of tokens.

    Which sequences there are follows from the stream and the context alone; which batch one lands in, from
    batch_tokens too. Within a look-ahead of some 64 batches, sequences go from long to short.
    Of a document with a target the beginnings of both texts are one sequence, as much as fits the context.
    full: whether max_tokens ended it. tokens: of the sequences so far, special ones left out.
    cut_off: how many sequences lack an end that did not fit.
    snapshot: the latest state from which the same batches can be made again; None: from the beginning.
    since: batches made since then.
    """

    def __init__(
        self,
        encoder: Encoder,
        layout: Layout,
        start: dict[str, Any] | None = None,
        of_targets: Encoder | None = None,
    ) -> None:
        """start: the state of a Snapshot, for a stream that continues at its mark.

        of_targets: the encoder of what a decoder reads, where there is that.
        """
        self._encoder = encoder
        self._of_targets = of_targets
        self._layout = layout
        self._body = layout.body(encoder)
        self._wrapping = encoder.wrapping + (of_targets.wrapping if of_targets else 0)
        self.cut_off = 0
        self._counted = 0
        self._held: list[Window] = []
        # (document, characters) of those read to their end: with sequences still held, and all packed
        self._read: dict[int, int] = {}
        self._finished: list[tuple[int, int]] = []
        self.full = False
        self.tokens = 0
        self.snapshot: Snapshot | None = None
        self.since = 0
        largest = WINDOW_BATCHES * layout.batch_tokens
        self._largest = min(max(largest, FEWEST_WINDOW_TOKENS), MOST_WINDOW_TOKENS)
        self._smallest = min(FIRST_WINDOW_BATCHES * layout.batch_tokens, FIRST_WINDOW_TOKENS, self._largest)
        self._wanted = self._smallest
        self._piece: int | None = None
        if start is not None:
            self.tokens, self.cut_off = start["tokens"], start["cut_off"]
            self._held = [Window.restored(start["held"])]
            self._wanted, self._counted, self._piece = start["wanted"], start["counted"], start["piece"]
            self._read = dict(start["read"].tolist())
            self._finished = list(map(tuple, start["finished"].tolist()))

    def batches(self, stream: Iterable[Encoded]) -> Generator[Batch, None, None]:
        """Every batch. Stops reading the stream once max_tokens are reached."""
        for batch in self._batches(stream):
            self.since += 1
            yield batch

    def _batches(self, stream: Iterable[Encoded]) -> Generator[Batch, None, None]:
        tokens = sequences = 0
        for encoded in stream:
            if encoded.piece != self._piece:
                yield from self._packed(last=True)
                self._piece, self._wanted = encoded.piece, self._smallest
                tokens = sequences = 0
            whole = self._cut(encoded)
            self.tokens += whole.tokens
            window = self._limited(whole)
            self._held.append(window)
            # what max_tokens cuts off is not read to its end
            cut_off = set(whole.document[len(window.length) :].tolist())
            self._read.update(entry for entry in encoded.finished if entry[0] not in cut_off)
            tokens += window.tokens + self._wrapping * len(window.length)
            sequences += len(window.length)
            if self.full:
                break
            if tokens >= self._wanted or sequences >= MOST_WINDOW_SEQUENCES:
                yield from self._packed(last=False)
                tokens = sequences = 0
                self._wanted = min(2 * self._wanted, self._largest)
                if encoded.mark is not None:
                    self._take_snapshot(encoded.mark, encoded.forced)
        yield from self._packed(last=True)

    def _take_snapshot(self, mark: Mark, forced: int) -> None:
        packer = {
            "tokens": self.tokens,
            "forced": forced,
            "cut_off": self.cut_off,
            "held": self._held[0].state(),
            "wanted": self._wanted,
            "counted": self._counted,
            "piece": self._piece,
            "read": _pairs(self._read.items()),
            "finished": _pairs(self._finished),
        }
        self.snapshot = Snapshot(mark, packer)
        self.since = 0

    def finished_documents(self) -> list[tuple[int, int]]:
        """(document, characters), once for each document read to its end whose sequences are all in the
        batches yielded before this call."""
        finished, self._finished = self._finished, []
        return finished

    def _cut(self, encoded: Encoded) -> Window:
        """Each part cut into sequences of `body` tokens and a shorter rest, or of pairs their beginnings."""
        if encoded.target is not None:
            return self._beginnings(encoded, *encoded.target)
        count = -(-encoded.length // self._body)
        part = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(part)) - np.repeat(np.cumsum(count) - count, count)
        begin = number * self._body
        return Window(
            encoded.token_ids,
            (np.cumsum(encoded.length) - encoded.length)[part] + begin,
            np.minimum(self._body, encoded.length[part] - begin),
            encoded.document[part],
            encoded.ordinal[part] + number,
        )

    def _beginnings(
        self, encoded: Encoded, target_ids: NDArray[np.int32], target_length: NDArray[np.int64]
    ) -> Window:
        """A sequence of each pair of which both texts have a token."""
        assert self._of_targets is not None
        some = (encoded.length > 0) & (target_length > 0)
        long = np.zeros_like(some)

        def begun(token_ids: NDArray[np.int32], length: NDArray[np.int64], body: int) -> Window:
            nonlocal long
            long |= length > body
            document, start = encoded.document[some], (np.cumsum(length) - length)[some]
            kept = np.minimum(body, length[some])
            return Window(token_ids, start, kept, document, np.zeros_like(document)).compacted()

        window = begun(encoded.token_ids, encoded.length, self._body)
        window.target = begun(target_ids, target_length, self._layout.body(self._of_targets))
        self.cut_off += int((long & some).sum())
        return window

    def _limited(self, window: Window) -> Window:
        """The sequences up to max_tokens counted tokens; sets `full` where one is left out."""
        most = self._layout.max_tokens
        if most is None or len(window.length) == 0:
            return window
        counted = self._counted_in(window, self._encoder)
        if window.target is not None and self._of_targets is not None:
            counted = counted + self._counted_in(window.target, self._of_targets)
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

    def _counted_in(self, window: Window, encoder: Encoder) -> NDArray[np.int64]:
        """Counted tokens of each sequence, which lie one behind the other."""
        if self._layout.count_special_tokens:
            return window.length + encoder.wrapping
        ordinary = ~encoder.is_special(window.token_ids)
        return np.add.reduceat(ordinary, window.start, dtype=np.int64)

    def _width(self, window: Window) -> NDArray[np.int64]:
        """int64 [sequences]: with special tokens, of a sequence or of its target if that is longer."""
        width = window.length + self._encoder.wrapping
        if window.target is None or self._of_targets is None:
            return width
        return np.maximum(width, window.target.length + self._of_targets.wrapping)

    def _packed(self, last: bool) -> Generator[Batch, None, None]:
        """What is held, from long to short; the last batch stays held if more sequences may fill it up."""
        if not self._held:
            return
        window = Window.joined(self._held)
        width = self._width(window)
        order = np.argsort(-width, kind="stable")
        width = width[order]
        shaped = {"tight": self._tight, "fixed": self._fixed}.get(self._layout.shapes, self._unpadded)
        left = yield from shaped(window, order, width, last)
        self._held = [window.taken(np.sort(left)).compacted()]
        held = set(window.document[left].tolist())
        self._finished += [entry for entry in self._read.items() if entry[0] not in held]
        self._read = {document: self._read[document] for document in held if document in self._read}

    def _tight(
        self, window: Window, order: NDArray[np.int64], width: NDArray[np.int64], last: bool
    ) -> Generator[Batch, None, NDArray[np.int64]]:
        """Batches as wide as their longest sequence; returns the sequences that stay held."""
        first = 0
        while first < len(order):
            rows = max(1, self._layout.batch_tokens // int(width[first]))
            if first + rows > len(order) and not last:
                break
            yield self._batch(window.taken(order[first : first + rows]))
            first += rows
        return order[first:]

    def _fixed(
        self, window: Window, order: NDArray[np.int64], width: NDArray[np.int64], last: bool
    ) -> Generator[Batch, None, NDArray[np.int64]]:
        """Batches of fixed shapes; returns the sequences that stay held."""
        width = self._layout.fixed_width(width)
        left = []
        for wide in np.unique(width)[::-1].tolist():
            alike = order[width == wide]
            rows = max(1, FIXED_TOKENS // wide)
            whole = len(alike) if last else len(alike) // rows * rows
            for first in range(0, whole, rows):
                yield self._batch(window.taken(alike[first : min(first + rows, whole)]), (rows, wide))
            left.append(alike[whole:])
        return np.concatenate([*left, order[:0]])

    def _unpadded(
        self, window: Window, order: NDArray[np.int64], width: NDArray[np.int64], last: bool
    ) -> Generator[Batch, None, NDArray[np.int64]]:
        """Batches of sequences of one length. None stays held, for there are many lengths to wait for."""
        single = self._layout.shapes == "single"
        length = width
        if window.target is not None:
            # of one length in either text
            place = np.lexsort((-window.target.length[order], -window.length[order], -width))
            order, width = order[place], width[place]
            length = window.length[order] * (self._layout.context + 1) + window.target.length[order]
        for alike in np.split(np.arange(len(order)), 1 + np.flatnonzero(np.diff(length))):
            if len(alike):
                wide, alike = int(width[alike[0]]), order[alike]
                rows = 1 if single else max(1, self._layout.batch_tokens // wide)
                for first in range(0, len(alike), rows):
                    yield self._batch(window.taken(alike[first : first + rows]))
        return order[:0]

    def _batch(self, window: Window, shape: tuple[int, int] | None = None) -> Batch:
        """The sequences as a batch, padded to (rows, width) where a shape is given."""
        batch = self._rows(window, self._encoder, shape)
        if window.target is None or self._of_targets is None:
            return batch
        return replace(batch, target=self._rows(window.target, self._of_targets, shape))

    def _rows(self, window: Window, encoder: Encoder, shape: tuple[int, int] | None) -> Batch:
        prefix, suffix = encoder.prefix, encoder.suffix
        length = window.length + encoder.wrapping
        column = np.arange(shape[1] if shape else int(length.max()))
        # padding reads any token and is overwritten; so do the special tokens' places
        source = window.start[:, None] + (column - len(prefix))
        token_ids = window.token_ids.take(source, mode="clip").astype(np.int64)
        text = (column >= len(prefix)) & (column < length[:, None] - len(suffix))
        inside = column < length[:, None]
        token_ids[~inside] = encoder.padding
        token_ids[:, : len(prefix)] = prefix
        rows = np.arange(len(length))
        for place, token in enumerate(suffix):
            token_ids[rows, length - len(suffix) + place] = token
        counted = inside if self._layout.count_special_tokens else text & ~encoder.is_special(token_ids)
        if shape:
            filler = ((0, shape[0] - len(length)), (0, 0))
            token_ids = np.pad(token_ids, filler, constant_values=encoder.padding)
            counted = np.pad(counted, filler)
        return Batch(token_ids, length, window.document, window.ordinal, counted, shape is not None)


def _pairs(pairs: Collection[tuple[int, int]]) -> NDArray[np.int64]:
    """int64 [pairs, 2]."""
    return np.array(list(pairs), np.int64).reshape(-1, 2)
