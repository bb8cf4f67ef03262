"""What every reader shares: counters, the column that is wanted, and what becomes of invalid text."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from indexer.corpus.coverage import Covered
from indexer.corpus.sources import CorpusFile
from indexer.corpus.utf16 import width
from indexer.errors import IndexerError

# an error names so many columns
MOST_NAMES = 40
SURROGATES = re.compile("[\ud800-\udfff]")
# all but those that stand for raw bytes in text decoded as `surrogateescape`
OTHER_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass
class CorpusCounts:
    """What reading has met so far.

    documents: those handed out, with so many `characters`. empty: those without a character; skipped.
    bad_text_replaced: documents in which U+FFFD stands for bytes that are not UTF-8.
    bad_text_skipped: documents left out because of such bytes.
    not_in_share: documents left out by `share`.
    binary_skipped: files, found in a folder or by a glob, that are not text.
    no_column_skipped: files, found in a folder or by a glob, whose records do not have the column.
    bytes_read: on disk, compressed as they are.
    """

    documents: int = 0
    empty: int = 0
    bad_text_replaced: int = 0
    bad_text_skipped: int = 0
    not_in_share: int = 0
    binary_skipped: int = 0
    no_column_skipped: int = 0
    bytes_read: int = 0
    characters: int = 0


@dataclass(frozen=True)
class Column:
    """A column that is wanted, and the option that names it."""

    name: str
    option: str


@dataclass
class Wanted:
    """What is wanted of a corpus; the options of `build` by the same names.

    text_column: the column that holds the text, in files of records; `a.b` is column b within a.
    ids_column: the column that holds token ids, in place of a text.
    target_column: the column of what a decoder reads, which is of the same kind; the encoder reads the other.
    on_bad_text: what becomes of a document that is not valid UTF-8: `error`, `replace` (by U+FFFD) or `skip`.
    quoting: of CSV and TSV: `standard`, or `none` where quotes are text.
    share: the part of the documents to be read, above 0 and at most 1; seed: which part, see Reading.takes.
    """

    text_column: str = "text"
    ids_column: str | None = None
    target_column: str | None = None
    on_bad_text: str = "error"
    quoting: str = "standard"
    share: float = 1.0
    seed: int = 0


@dataclass
class Reading(Wanted):
    """The state of one pass over the corpus.

    write_chat: messages to text, by the tokenizer's template; see indexer.tokens.chat.
    known_ids: how many token ids the model and its tokenizer know; None before they are loaded.
    digests: what was read of each file, by ordinal; see `note_digest`.
    left_out: ordinals of files that are not part of the corpus after all.
    covered: the rows that were met, by file ordinal. index: the slice of the file that the present row is in.
    bytes_before: counts.bytes_read when the present file was opened.
    utf16: whether the present file was UTF-16.
    without_column: what the first file said that was left out for its columns.
    bytes_waiting: tells how many of counts.bytes_read wait in the present file's buffer.
    """

    write_chat: Callable[[list[dict[str, Any]]], str] | None = None
    known_ids: int | None = None
    counts: CorpusCounts = field(default_factory=CorpusCounts)
    digests: dict[int, dict[str, Any]] = field(default_factory=dict)
    left_out: set[int] = field(default_factory=set)
    covered: dict[int, Covered] = field(default_factory=dict)
    index: int = 0
    bytes_before: int = 0
    utf16: bool = False
    without_column: str | None = None
    bytes_waiting: Callable[[], int] = lambda: 0

    @property
    def ids(self) -> bool:
        """Whether token ids are wanted, and no text."""
        return self.ids_column is not None

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns that are wanted: that of texts or token ids, and that of targets if there are some."""
        text = Column(self.text_column, "--text-column")
        own = text if self.ids_column is None else Column(self.ids_column, "--ids-column")
        return (own,) if self.target_column is None else (own, Column(self.target_column, "--target-column"))

    def takes(self, document: int) -> bool:
        """Whether a document belongs to the fair part of the corpus that is wanted, and count it where not.

        It does where the first eight bytes of the SHA-256 of "SEED document ID", big-endian, are below
        share * 2^64: whatever else is in the corpus, and whoever reads which part of it.
        """
        if self.share == 1:
            return True
        digest = hashlib.sha256(f"{self.seed} document {document}".encode()).digest()
        taken = int.from_bytes(digest[:8], "big") < self.share * 2**64
        self.counts.not_in_share += not taken
        return taken

    def see(self, file: CorpusFile, row: int) -> None:
        """A row of a file was met, whatever becomes of it."""
        covered = self.covered.get(file.ordinal)
        if covered is None:
            self.covered[file.ordinal] = Covered(file.ordinal, row, row + 1)
        else:
            covered.end = max(covered.end, row + 1)

    def note_digest(self, file: CorpusFile, size: int | None, sha256: str | None, **more: Any) -> None:
        """What was read of a file, for the manifest; size and sha256 are None where it was not all of it."""
        if file.ordinal not in self.left_out:
            self.digests[file.ordinal] = {"source": file.source, "bytes": size, "sha256": sha256, **more}

    def width(self, text: bytes) -> int:
        """How many bytes these take in the present file, decompressed."""
        return width(text) if self.utf16 else len(text)

    def leave_out(self, file: CorpusFile, error: IndexerError, first: bool, unread: int = 0) -> None:
        """A file lacks the column: the error where it was named, else it is no part of the corpus.

        first: whether its beginning is being read, so that it is counted once, whoever reads the rest.
        unread: bytes of it that will not be read.
        """
        if file.named:
            raise error
        self.left_out.add(file.ordinal)
        self.digests.pop(file.ordinal, None)
        self.covered.pop(file.ordinal, None)
        self.counts.no_column_skipped += first
        self.counts.bytes_read += unread
        self.without_column = self.without_column or str(error)

    def decode(self, raw: bytes, place: Callable[[int], str]) -> str | None:
        """The text of one whole document, or None where the policy leaves it out.

        place: names where byte number n of `raw` lies, for the error.
        """
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            return self._settle(lambda: raw.decode("utf-8", "replace"), place(error.start), raw[error.start])

    def checked(self, text: str, place: str, escaped: bool = False) -> str | None:
        """Text that may hold lone surrogates, from JSON escapes or from bytes decoded as `surrogateescape`.

        escaped: lone surrogates U+DC80..U+DCFF stand for raw bytes.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return self._settle(lambda: type(text)(_repaired(text, escaped)), place, None)
        return text

    def _settle(self, repaired: Callable[[], str], place: str, byte: int | None) -> str | None:
        if self.on_bad_text == "error":
            raise self.bad_text(place, byte)
        if self.on_bad_text == "skip":
            self.counts.bad_text_skipped += 1
            return None
        self.counts.bad_text_replaced += 1
        return repaired()

    def bad_text(self, place: str, byte: int | None) -> IndexerError:
        """The error for text that is not valid; byte: the first bad one, None for a lone surrogate."""
        what = "UTF-16" if self.utf16 and byte is not None else "UTF-8"
        which = "" if what == "UTF-16" else " (a lone surrogate)" if byte is None else f" (0x{byte:02x})"
        return IndexerError(
            f"{place}: not valid {what}{which}. Use --on-bad-text replace or skip, or convert the file"
        )

    def no_column(self, place: str, has: Iterable[str], column: Column) -> IndexerError:
        """The error for a file or record without a column. has: the names of those that it has."""
        names = [str(name) for name in has]
        shown = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "") or "none"
        return IndexerError(
            f'{place}: no column "{column.name}" (it has: {shown}). '
            f"Name the one to index with {column.option}"
        )

    def not_wanted(
        self, place: str, kind: object, column: Column, may_be_ids: bool = False
    ) -> IndexerError:
        """The error for a column that holds values of another kind."""
        wanted = "token ids" if self.ids else "text"
        ids = ", token ids with --ids-column" if may_be_ids else ""
        return IndexerError(
            f'{place}: column "{column.name}" holds {kind}, not {wanted}. '
            f"Name the one to index with {column.option}{ids}"
        )


class Utf8:
    """A UTF-8 decoder that knows at which byte of its stream it stands, and drops a byte order mark.

    width: how many bytes some of the stream take in the file.
    """

    def __init__(self, width: Callable[[bytes], int] = len) -> None:
        self._width = width
        self._pending = b""
        # where in the stream the pending bytes begin
        self._offset = 0

    def decode(self, block: bytes, errors: str = "strict", final: bool = False) -> str:
        """Raises BadByteError with the offset within the stream."""
        data = self._pending + block
        try:
            text, used = codecs.utf_8_decode(data, errors, final)
        except UnicodeDecodeError as error:
            offset = self._offset + self._width(data[: error.start])
            raise BadByteError(offset, data[error.start]) from None
        if self._offset == 0 and text.startswith("\ufeff"):
            text = text[1:]
        self._pending = data[used:]
        self._offset += self._width(data[:used])
        return text


class BadByteError(Exception):
    """A byte of a stream that is not UTF-8; its offset is that in the file."""

    def __init__(self, offset: int, byte: int) -> None:
        super().__init__(offset, byte)
        self.offset = offset
        self.byte = byte


def _repaired(text: str, escaped: bool) -> str:
    if not escaped:
        return SURROGATES.sub("\ufffd", text)
    return OTHER_SURROGATES.sub("\ufffd", text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
