"""The corpus: an ordered list of files that is read, once, as a stream of documents."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.corpus.coverage import Covered
from indexer.corpus.hub import parse, read_hub
from indexer.corpus.pieces import PIECE_BYTES, Piece, Run, pieces_of, runs_of
from indexer.corpus.policy import CorpusCounts, Reading, Wanted
from indexer.corpus.readers import READERS
from indexer.corpus.sources import ROW_BITS, CorpusFile, expand
from indexer.corpus.text import read_text
from indexer.corpus.values import Chat, Content, Pair, Text
from indexer.errors import IndexerError
from indexer.talk import several

if TYPE_CHECKING:
    from indexer.config.build import BuildConfig

# so many files are looked at before the work begins
LOOKED_AT = 64
ROWS_LOOKED_AT = 1000
_READERS: dict[str, Callable[[Run, Reading], Iterator[tuple[int, Any]]]] = {
    "text": read_text, "hub": read_hub, **READERS,
}  # fmt: skip


@dataclass(slots=True)
class Document:
    """One text, handed out in pieces so that a huge one is never held whole; or its token ids.

    id: file ordinal << ROW_BITS | row.
    piece: number of the piece of the corpus that it is in.
    pieces: of the text, to be used up before the next document is asked for; their sum is the text.
    token_ids: int32 [tokens], in place of a text. chat: whether a chat template wrote the text.
    target: what a decoder reads of it, where that is another text or other token ids.
    """

    id: int
    source: str
    row: int
    piece: int
    pieces: Iterator[str]
    token_ids: NDArray[np.int32] | None = None
    chat: bool = False
    target: Text | None = None


@dataclass(frozen=True)
class Mark:
    """Where reading stands between two documents: before row `row` of file `file`.

    counts, covered: what had been met then; counts.bytes_read without the bytes of that file.
    """

    file: int
    row: int
    counts: CorpusCounts
    covered: Covered


class Corpus:
    """Text from files, folders, globs and hub data sets.

    sources: paths, globs and hf://datasets/OWNER/NAME, see indexer.corpus.hub; read in this order.
    first_ordinal: the ordinal of the first file, where others come before it.
    allow_empty: whether there may be no text at all, as in a small part of a corpus.
    wanted: the fields of indexer.corpus.policy.Wanted.
    write_chat: what writes a chat as text, see indexer.tokens.chat. token_ids: how many of them the model
        and its tokenizer know. Both are to be set before chats or token ids are read.
    Raises IndexerError where a source is missing or unreadable; the files are opened by `documents`.
    """

    def __init__(
        self, sources: Sequence[str], *, first_ordinal: int = 0, allow_empty: bool = False, **wanted: Any
    ) -> None:
        self.files: list[CorpusFile] = expand(sources, first_ordinal)
        for file in self.files:
            if file.kind == "hub":
                parse(file.source)
        self.allow_empty = allow_empty
        self.write_chat: Callable[[list[dict[str, Any]]], str] | None = None
        self.token_ids: int | None = None
        self._wanted = Wanted(**wanted)
        self._reading = self._new_reading()
        self._file: CorpusFile | None = None
        self._stamps: dict[int, tuple[int, ...]] = {}

    @classmethod
    def of(cls, config: BuildConfig, **options: Any) -> Corpus:
        """The corpus of a build. options: first_ordinal, allow_empty."""
        wanted = {field.name: getattr(config, field.name) for field in fields(Wanted)}
        return cls(config.corpus, **wanted, **options)

    def _new_reading(self) -> Reading:
        return Reading(**vars(self._wanted), write_chat=self.write_chat, known_ids=self.token_ids)

    def look(self) -> None:
        """Raise what is wrong with the first records, of LOOKED_AT files at most; nothing is consumed.

        Raises IndexerError too where all files were looked at and none has text.
        """
        reading = self._new_reading()
        reading.write_chat = lambda messages: ""
        if reading.on_bad_text == "skip":
            # bad texts would be looked for a good one
            reading.on_bad_text = "replace"
        looked_at = [file for file in self.files if file.named or file.kind != "text"][:LOOKED_AT]
        unknown = sum(file.bytes != 0 for file in self.files) > sum(file.bytes != 0 for file in looked_at)
        # a chat has no text before the tokenizer's template wrote it
        some = [_has_text(file, reading) for file in looked_at]
        if len(reading.left_out) == len(self.files) or not (unknown or self.allow_empty or any(some)):
            raise IndexerError(_no_text(len(self.files), reading))

    @property
    def counts(self) -> CorpusCounts:
        """What the latest pass has met so far."""
        return self._reading.counts

    @property
    def without_column(self) -> str | None:
        """What the latest pass said of the first file that it left out for its columns."""
        return self._reading.without_column

    @property
    def bytes_used(self) -> int:
        """Bytes on disk of what the latest pass has handed out, of compressed files up to a block more."""
        return self._reading.counts.bytes_read - self._reading.bytes_waiting()

    @property
    def bytes(self) -> int | None:
        """Bytes on disk of all files, to measure `counts.bytes_read` against; None where one is unknown."""
        sizes = [file.bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def pieces(self, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
        """The whole corpus in pieces of about so many bytes, see indexer.corpus.pieces."""
        return pieces_of(self.files, piece_bytes)

    def listing(self, before: Iterable[tuple[str, int | None]] = ()) -> str:
        """SHA-256 of the list of files, names and bytes in order; before: those that come before these."""
        digest = hashlib.sha256()
        for entry in chain(before, ((file.source, file.bytes) for file in self.files)):
            digest.update(json.dumps(list(entry)).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def stamps(self) -> list[list[int]]:
        """Ordinal, size and time of change (nanoseconds) of every local file, as it was when it was opened.

        Of all files that were opened so far, in earlier processes of the build too.
        """
        return [[ordinal, *stamp] for ordinal, stamp in list(self._stamps.items())]

    def changed_since(self, stamps: Iterable[Sequence[int]]) -> str | None:
        """Which file is another than it was when it was opened, in words; None where none is.

        stamps: those of an earlier process, which this one continues.
        """
        self._stamps = {ordinal: tuple(stamp) for ordinal, *stamp in stamps}
        for file in self.files:
            if file.ordinal in self._stamps and _stamp(file) != self._stamps[file.ordinal]:
                return f"corpus file {file.source} has changed"
        return None

    def digests(self) -> list[dict[str, Any]]:
        """source, bytes and SHA-256 of what the latest pass has read to its end, in the order of the files.

        `bytes` and `sha256` are None for a file of which only a part was read. A hub data set has `revision`
        and `rows` too, and the digest of its texts.
        """
        found = dict(self._reading.digests)
        return [found[file.ordinal] for file in self.files if file.ordinal in found]

    def coverage(self) -> list[Covered]:
        """The rows that the latest pass has met, by file."""
        covered = dict(self._reading.covered)
        return [replace(covered[ordinal]) for ordinal in sorted(covered)]

    def documents(
        self, pieces: Sequence[Piece] | None = None, start: dict[str, Any] | None = None
    ) -> Iterator[Document]:
        """Every document that is not empty, in order; a new pass with counts from zero.

        pieces: in order, those of one file consecutive; all where not given. start: a state of `state` to
        continue from.
        Raises IndexerError for what cannot be read, and at the end if there was no text at all.
        """
        reading = self._reading = self._new_reading()
        row_of_file, skip = -1, 0
        if start is not None:
            row_of_file, skip = _restored(reading, start)
        for run in runs_of(self.pieces() if pieces is None else pieces):
            file = self._file = run.file
            if file.ordinal < row_of_file:
                continue
            if file.ordinal == row_of_file:
                run = replace(run, skip=skip)
            reading.index, reading.bytes_before = run.first, reading.counts.bytes_read
            if file.kind != "hub" and file.ordinal not in self._stamps:
                self._stamps[file.ordinal] = _stamp(file)
            if file.kind == "text":
                for row, parts in read_text(run, reading):
                    yield from _streamed(run, reading, row, parts)
            else:
                yield from _records(run, reading, _READERS[file.kind](run, reading))
        if reading.counts.documents == 0 and not self.allow_empty:
            raise IndexerError(_no_text(len(self.files), reading))

    def content_at(self, row: int) -> Content | None:
        """What a row of the only file stands for; None where there is nothing, or it is left out.

        `digests` has that of the file afterwards where all of it was read.
        """
        reading = self._reading = self._new_reading()
        [file] = self.files
        rows = _READERS[file.kind](Run(file, 0, 1, 1, (0,), row), reading)
        for number, found in rows:
            if number >= row:
                whole = "".join(found) if isinstance(found, Iterator) else found
                # a file that ends here is read to its end, and its digest known
                next(rows, None)
                return whole if number == row else None
        return None

    def mark(self) -> Mark:
        """Where the pass stands; to be called when a document has been used up and no other was asked for."""
        reading, file = self._reading, self._file
        assert file is not None
        covered = replace(reading.covered[file.ordinal])
        counts = replace(reading.counts, bytes_read=reading.bytes_before)
        return Mark(file.ordinal, covered.end, counts, covered)

    def state(self, mark: Mark) -> dict[str, Any]:
        """What `documents` continues from, as JSON values; the pass may have gone on since the mark."""
        reading = self._reading
        before = [part for number, part in list(reading.covered.items()) if number < mark.file]
        digests = [[number, found] for number, found in list(reading.digests.items()) if number < mark.file]
        return {
            "file": mark.file,
            "row": mark.row,
            "counts": asdict(mark.counts),
            "covered": [asdict(part) for part in (*before, mark.covered)],
            "digests": digests,
            "left_out": sorted(number for number in list(reading.left_out) if number < mark.file),
            "without_column": reading.without_column,
        }


def _restored(reading: Reading, state: dict[str, Any]) -> tuple[int, int]:
    """Set a new reading to a state; returns the file and the row to go on from."""
    reading.counts = CorpusCounts(**state["counts"])
    reading.covered = {part["file"]: Covered(**part) for part in state["covered"]}
    reading.digests = dict(state["digests"])
    reading.left_out = set(state["left_out"])
    reading.without_column = state["without_column"]
    return state["file"], state["row"]


def _stamp(file: CorpusFile) -> tuple[int, ...]:
    try:
        found = os.stat(file.path)
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _streamed(run: Run, reading: Reading, row: int, parts: Iterable[str]) -> Iterator[Document]:
    counts, file = reading.counts, run.file
    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        counts.empty += 1
        return
    document = file.ordinal << ROW_BITS | row
    if not reading.takes(document):
        return
    counts.documents += 1

    def counted() -> Iterator[str]:
        digest, characters = hashlib.sha256(), 0
        for part in chain((first,), parts):
            counts.characters += len(part)
            characters += len(part)
            digest.update(part.encode())
            yield part
        reading.covered[file.ordinal].add(row, characters, digest.digest())

    rest = counted()
    yield Document(document, file.source, row, run.pieces[0], rest)
    # what a caller left unread still has to be checked and hashed
    for _ in rest:
        pass


def _records(run: Run, reading: Reading, rows: Iterator[tuple[int, Content]]) -> Iterator[Document]:
    counts, file, first = reading.counts, run.file, run.first
    source, base, ordinal = file.source, file.ordinal << ROW_BITS, file.ordinal
    for row, content in rows:
        found, target = content if isinstance(content, Pair) else (content, None)
        if not len(found):
            counts.empty += 1
            continue
        if not reading.takes(base | row):
            continue
        counts.documents += 1
        piece = run.pieces[reading.index - first]
        characters, digest = _characters(found), _digest(found)
        if target is not None:
            characters += _characters(target)
            digest = hashlib.sha256(digest + _digest(target)).digest()
        counts.characters += characters
        reading.covered[ordinal].add(row, characters, digest)
        if isinstance(found, str):
            chat = isinstance(found, Chat)
            yield Document(base | row, source, row, piece, iter((found,)), chat=chat, target=target)
        else:
            yield Document(base | row, source, row, piece, iter(()), found, target=target)


def _characters(found: Text) -> int:
    return len(found) if isinstance(found, str) else 0


def _digest(found: Text) -> bytes:
    packed = found.encode() if isinstance(found, str) else found.astype("<i4").tobytes()
    return hashlib.sha256(packed).digest()


def _has_text(file: CorpusFile, reading: Reading) -> bool:
    """Whether one of a file's first ROWS_LOOKED_AT records is not empty, or more of them follow."""
    rows = _READERS[file.kind](Run(file, 0, 1, 1, (0,)), reading)
    try:
        for number, (_, content) in enumerate(rows, 1):
            found = content.source if isinstance(content, Pair) else content
            some = next(found, None) is not None if isinstance(found, Iterator) else len(found) > 0
            if some or isinstance(found, Chat) or number == ROWS_LOOKED_AT:
                return True
            reading.counts.empty += 1
        return False
    finally:
        rows.close()  # type: ignore[attr-defined]


def _no_text(files: int, reading: Reading) -> str:
    counts = reading.counts
    message = (
        f"the corpus has no text: {several(files, 'file')}, {several(counts.empty, 'empty document')}, "
        f"{counts.bad_text_skipped} skipped as bad text, {counts.binary_skipped} binary files skipped"
        + (f", {counts.not_in_share} not in --share {reading.share}" if counts.not_in_share else "")
    )
    if reading.without_column is None:
        return message
    return f"{message}, {counts.no_column_skipped} without the column: {reading.without_column}"
