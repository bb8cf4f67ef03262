"""The corpus: an ordered list of files that is read, once, as a stream of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from indexer.corpus.hub import parse, read_hub
from indexer.corpus.policy import BAD_TEXT_CHOICES, CorpusCounts, Reading
from indexer.corpus.records import read_csv, read_json, read_jsonl
from indexer.corpus.sources import ROW_BITS, CorpusFile, expand
from indexer.corpus.tables import read_parquet
from indexer.corpus.text import read_text
from indexer.errors import IndexerError

READERS: dict[str, Callable[[CorpusFile, Reading], Iterator[tuple[int, str]]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": read_parquet,
    "hub": read_hub,
}


@dataclass(slots=True)
class Document:
    """One text, handed out in pieces so that a huge one is never held whole.

    id: file ordinal << ROW_BITS | row.
    pieces: to be used up before the next document is asked for; their sum is the text.
    """

    id: int
    source: str
    row: int
    pieces: Iterator[str]


class Corpus:
    """Text from files, folders, globs and hub data sets.

    sources: paths, globs and hf://datasets/OWNER/NAME[@REVISION][/CONFIGURATION][:SPLIT], read in this order.
    text_column: the column that holds the text, in files of records.
    on_bad_text: what becomes of a document that is not valid UTF-8: `error`, `replace` (by U+FFFD) or `skip`.
    Raises IndexerError where a source is missing or unreadable; the files are opened by `documents`.
    """

    def __init__(
        self, sources: Sequence[str], *, text_column: str = "text", on_bad_text: str = "error"
    ) -> None:
        if on_bad_text not in BAD_TEXT_CHOICES:
            raise IndexerError(f"--on-bad-text {on_bad_text}: choose one of {', '.join(BAD_TEXT_CHOICES)}")
        self.files: list[CorpusFile] = expand(sources)
        for file in self.files:
            if file.kind == "hub":
                parse(file.source)
        self._text_column = text_column
        self._on_bad_text = on_bad_text
        self._reading = Reading(text_column, on_bad_text)

    @property
    def counts(self) -> CorpusCounts:
        """What the latest pass has met so far."""
        return self._reading.counts

    @property
    def bytes(self) -> int | None:
        """Bytes on disk of all files, to measure `counts.bytes_read` against; None where one is unknown."""
        sizes = [file.bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def digests(self) -> list[dict[str, Any]]:
        """source, bytes and SHA-256 of what the latest pass has read to its end, in the order of the files.

        `bytes` and `sha256` are None for a file of which only a part was read. A hub data set has `revision`
        and `rows` too, and the digest of its texts.
        """
        found = self._reading.digests
        return [found[file.ordinal] for file in self.files if file.ordinal in found]

    def documents(self) -> Iterator[Document]:
        """Every document that is not empty, in order; a new pass with counts from zero.

        Raises IndexerError for what cannot be read, and at the end if there was no text at all.
        """
        reading = self._reading = Reading(self._text_column, self._on_bad_text)
        for file in self.files:
            if file.kind == "text":
                for row, pieces in read_text(file, reading):
                    yield from _streamed(file, reading, row, pieces)
            else:
                yield from _records(file, reading, READERS[file.kind](file, reading))
        if reading.counts.documents == 0:
            raise IndexerError(_no_text(len(self.files), reading.counts))


def _streamed(file: CorpusFile, reading: Reading, row: int, pieces: Iterable[str]) -> Iterator[Document]:
    counts = reading.counts
    pieces = iter(pieces)
    first = next(pieces, None)
    if first is None:
        counts.empty += 1
        return
    counts.documents += 1

    def counted() -> Iterator[str]:
        for piece in chain((first,), pieces):
            counts.characters += len(piece)
            yield piece

    rest = counted()
    yield Document(file.ordinal << ROW_BITS | row, file.source, row, rest)
    # what a caller left unread still has to be checked and hashed
    for _ in rest:
        pass


def _records(file: CorpusFile, reading: Reading, rows: Iterator[tuple[int, str]]) -> Iterator[Document]:
    counts = reading.counts
    source = file.source
    base = file.ordinal << ROW_BITS
    for row, text in rows:
        if text:
            counts.documents += 1
            counts.characters += len(text)
            yield Document(base | row, source, row, iter((text,)))
        else:
            counts.empty += 1


def _no_text(files: int, counts: CorpusCounts) -> str:
    return (
        f"the corpus has no text: {files} file{'s' if files != 1 else ''}, {counts.empty} empty documents, "
        f"{counts.bad_text_skipped} skipped as bad text, {counts.binary_skipped} binary files skipped"
    )
