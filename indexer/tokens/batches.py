"""Batches of token ids, read and encoded in the background while the model works."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from indexer.corpus import Corpus, Piece
from indexer.errors import IndexerError
from indexer.tokens.batch import Batch, Layout, Packer, Snapshot
from indexer.tokens.encode import Encoder, in_target_mode
from indexer.tokens.stream import Encoded, TokenStream

PARALLELISM = "TOKENIZERS_PARALLELISM"
# batches ready ahead of the model: as many as the packer makes while it looks ahead once
READY_BATCHES = 64
# a thread that waits for the network cannot be told to stop; it ends with the process
CLOSE_SECONDS = 10.0


@dataclass
class TokenTotals:
    """What has been handed out so far.

    documents: those of which the first sequence was handed out. tokens: special tokens included, padding not.
    padding: tokens that fill up rows.
    forced_cuts: places where a text without any word boundary was too long to encode in one.
    target_counted_tokens: of counted_tokens those of what a decoder reads, where that is another text.
    pairs_cut_off: pairs of texts of which one or both were longer than a sequence, and end with it.
    """

    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    counted_tokens: int = 0
    padding: int = 0
    forced_cuts: int = 0
    target_counted_tokens: int = 0
    pairs_cut_off: int = 0


# where a Batches stands between two batches, as plain values and NumPy arrays
Position = dict[str, Any]


class Batches:
    """Iterator of Batch over a corpus; a context manager, and used once.

    corpus, tokenizer: read and used by a background thread from now on.
    context, batch_tokens, count_special_tokens, max_tokens: see Layout.
    special_tokens: whether sequences get the special tokens that the tokenizer puts around a text; not where
        the corpus holds token ids, which are taken as they are.
    targets: whether the corpus has a text of its own for a decoder.
    pieces: the consecutive pieces of the corpus to be read, all where not given.
    start: a Position to continue from, of the same corpus, tokenizer, numbers and pieces.
    totals: what was handed out. waited: seconds spent in waiting for it.
    Call `finished_documents` now and then: it holds an entry per document until then.
    Raises IndexerError at once where --context leaves no room, later whatever reading the corpus raises.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        *,
        context: int,
        batch_tokens: int,
        count_special_tokens: bool = False,
        max_tokens: int | None = None,
        shapes: str = "tight",
        special_tokens: bool = True,
        targets: bool = False,
        bos: str = "tokenizer",
        pieces: Sequence[Piece] | None = None,
        start: Position | None = None,
    ) -> None:
        layout = Layout(context, batch_tokens, count_special_tokens, max_tokens, shapes)
        encoders = [Encoder(tokenizer, special_tokens, bos)]
        if targets:
            with in_target_mode(tokenizer):
                encoders.append(Encoder(tokenizer, special_tokens, bos))
        self._wrapping = sum(encoder.wrapping for encoder in encoders)
        self.totals = TokenTotals() if start is None else TokenTotals(**start["totals"])
        self.waited = 0.0
        self._background = _Background(corpus, encoders, layout, pieces, start)
        # stops the thread when this object is forgotten, and at exit before the interpreter goes
        self._stop = weakref.finalize(self, self._background.stop)
        self._background.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        batch = self._background.take()
        self.waited += time.perf_counter() - begin
        if batch is None:
            self.close()
            raise StopIteration
        totals = self.totals
        totals.documents += int((batch.ordinal == 0).sum())
        totals.sequences += len(batch.length)
        for text in batch.texts:
            tokens, counted = int(text.length.sum()), int(text.counted.sum())
            totals.tokens += tokens
            totals.padding += text.token_ids.size - tokens
            totals.counted_tokens += counted
            totals.target_counted_tokens += counted if text is batch.target else 0
        totals.forced_cuts, totals.pairs_cut_off = self._background.cuts
        return batch

    def share(self, corpus_bytes: int) -> float | None:
        """Of all the text's tokens those handed out, 0 to 1; None while nothing tells how many there are.

        corpus_bytes: on disk, of all that is to be read; 0 where that is not known. Exact once the reader,
        who is ahead, is at the end; before, text to come is taken to have as many tokens a byte as that read.
        """
        tokens = self._background.tokens_expected(corpus_bytes)
        handed_out = self.totals.tokens - self._wrapping * self.totals.sequences
        return min(1.0, handed_out / tokens) if tokens else None

    def finished_documents(self) -> list[tuple[int, int]]:
        """(document, characters) of the documents that are done with since the last call.

        All sequences of such a document came before the latest batch, or there are no more batches.
        """
        return self._background.finished()

    def position(self) -> Position:
        """Where to continue after the latest batch; its finished documents are to have been asked for."""
        return {"totals": asdict(self.totals), **self._background.state()}

    def close(self) -> None:
        """Stop the background thread; called again, it does nothing."""
        self._stop()

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Background:
    """The thread that fills a bounded queue of batches. Holds no reference to the Batches it serves."""

    def __init__(
        self,
        corpus: Corpus,
        encoders: Sequence[Encoder],
        layout: Layout,
        pieces: Sequence[Piece] | None,
        start: Position | None,
    ) -> None:
        """encoders: of the text, and of targets where there are some."""
        state = start or {}
        reading, packed = state.get("reading"), state.get("packer")
        encoder, of_targets = (*encoders, None)[:2]
        assert encoder is not None
        self._stream = TokenStream(corpus, encoder, layout.body(encoder), pieces, reading, of_targets)
        self._packer = Packer(encoder, layout, packed, of_targets)
        self._stream.forced = packed["forced"] if packed else 0
        # batches that were handed out before, to be made again and left out
        self._skip = state.get("skip", 0)
        # what the state below is where the packer has taken no snapshot of its own yet
        self._before = {"reading": reading, "packer": packed}
        self._snapshot: Snapshot | None = None
        self._since = self._skip
        # a batch, None for the end; the documents finished before it; where the packer stood behind it
        self._ready: deque[tuple[Batch | None, list[tuple[int, int]], Snapshot | None, int]] = deque()
        self._finished: list[tuple[int, int]] = []
        # tokens encoded, the bytes on disk that held them, and whether these are all
        self._encoded = (self._packer.tokens, 0, False)
        self._corpus = corpus
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = False
        # a daemon, for a thread that waits for the network must not keep the process from ending
        self._thread = threading.Thread(target=self._run, name="tokens", daemon=True)

    @property
    def cuts(self) -> tuple[int, int]:
        """Long texts cut by force, and pairs of texts cut off, so far."""
        return self._stream.forced, self._packer.cut_off

    def start(self) -> None:
        _serial_tokenizers.enter()
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        _serial_tokenizers.leave()

    def take(self) -> Batch | None:
        """The next batch, or None at the end. Raises the thread's error, once, as soon as there is one."""
        with self._changed:
            while not (self._ready or self._stopped or self._error):
                self._changed.wait()
            if self._error is not None:
                error, self._error = self._error, None
                self._stopped = True
                raise error
            if not self._ready:
                return None
            self._changed.notify_all()
            batch, finished, self._snapshot, self._since = self._ready.popleft()
            self._finished += finished
            return batch

    def state(self) -> dict[str, Any]:
        """Where to continue behind what was taken."""
        snapshot = self._snapshot
        if snapshot is None:
            return {**self._before, "skip": self._since}
        reading = self._corpus.state(snapshot.mark)
        return {"reading": reading, "packer": snapshot.packer, "skip": self._since}

    def finished(self) -> list[tuple[int, int]]:
        with self._changed:
            documents, self._finished = self._finished, []
        return documents

    def tokens_expected(self, corpus_bytes: int) -> float | None:
        """How many tokens the text has in all, see Batches.share."""
        tokens, read, all_of_them = self._encoded
        if all_of_them:
            return tokens
        return tokens * max(1.0, corpus_bytes / read) if corpus_bytes and read else None

    def _run(self) -> None:
        try:
            empty = True
            with contextlib.closing(self._packer.batches(self._noted())) as batches:
                for number, batch in enumerate(batches):
                    empty = False
                    if number < self._skip:
                        self._packer.finished_documents()
                    elif not self._put(batch):
                        return
            if empty and not self._corpus.allow_empty and not self._before["packer"]:
                raise IndexerError("the corpus has no token: its text is all such as the tokenizer drops")
            self._put(None)
        except BaseException as error:
            with self._changed:
                # what goes wrong after the stop is nobody's concern any more
                self._error = None if self._stopped else error
                self._changed.notify_all()

    def _noted(self) -> Iterator[Encoded]:
        for encoded in self._stream:
            if self._stopped:
                return
            tokens = self._packer.tokens + encoded.tokens
            self._encoded = (tokens, self._corpus.bytes_used, False)
            yield encoded
        self._encoded = (self._packer.tokens, self._corpus.bytes_used, True)

    def _put(self, batch: Batch | None) -> bool:
        """Queue a batch, or the end; False where nobody waits for it any more."""
        finished = self._packer.finished_documents()
        entry = (batch, finished, self._packer.snapshot, self._packer.since)
        with self._changed:
            while len(self._ready) >= READY_BATCHES and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return False
            self._ready.append(entry)
            self._changed.notify_all()
            return True


class _SerialTokenizers:
    """While in use, keeps the tokenizers library from taking a thread per core, which the model needs.

    The setting is the process's. One that the user made is left alone; ours is taken back by its last user.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._ours = False

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1 and PARALLELISM not in os.environ:
                os.environ[PARALLELISM] = "false"
                self._ours = True

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._ours:
                os.environ.pop(PARALLELISM, None)
                self._ours = False


_serial_tokenizers = _SerialTokenizers()
