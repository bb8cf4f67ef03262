"""What every reader shares: counters, the text column, and what becomes of text that is not valid UTF-8."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from indexer.corpus.coverage import Covered
from indexer.corpus.sources import CorpusFile
from indexer.errors import IndexerError

BAD_TEXT_CHOICES = ("error", "replace", "skip")
SURROGATES = re.compile("[\ud800-\udfff]")
# all but those that stand for raw bytes in text decoded as `surrogateescape`
OTHER_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass
class CorpusCounts:
    """What reading has met so far.

    documents: those handed out, with so many `characters`. empty: those without a character; skipped.
    bad_text_replaced: documents in which U+FFFD stands for bytes that are not UTF-8.
    bad_text_skipped: documents left out because of such bytes.
    binary_skipped: files, found in a folder or by a glob, that are not text.
    bytes_read: on disk, compressed as they are.
    """

    documents: int = 0
    empty: int = 0
    bad_text_replaced: int = 0
    bad_text_skipped: int = 0
    binary_skipped: int = 0
    bytes_read: int = 0
    characters: int = 0


@dataclass
class Reading:
    """The state of one pass over the corpus.

    digests: what was read of each file, by ordinal; see `note_digest`.
    left_out: ordinals of files that are not part of the corpus after all.
    covered: the rows that were met, by file ordinal. index: the slice of the file that the present row is in.
    bytes_before: counts.bytes_read when the present file was opened.
    """

    text_column: str
    on_bad_text: str
    counts: CorpusCounts = field(default_factory=CorpusCounts)
    digests: dict[int, dict[str, Any]] = field(default_factory=dict)
    left_out: set[int] = field(default_factory=set)
    covered: dict[int, Covered] = field(default_factory=dict)
    index: int = 0
    bytes_before: int = 0

    def see(self, file: CorpusFile, row: int) -> None:
        """A row of a file was met, whatever becomes of it."""
        covered = self.covered.get(file.ordinal)
        if covered is None:
            self.covered[file.ordinal] = Covered(file.ordinal, row, row + 1)
        else:
            covered.end = row + 1

    def note_digest(self, file: CorpusFile, size: int | None, sha256: str | None, **more: Any) -> None:
        """What was read of a file, for the manifest; size and sha256 are None where it was not all of it."""
        if file.ordinal not in self.left_out:
            self.digests[file.ordinal] = {"source": file.source, "bytes": size, "sha256": sha256, **more}

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
            return self._settle(lambda: _repaired(text, escaped), place, None)
        return text

    def _settle(self, repaired: Callable[[], str], place: str, byte: int | None) -> str | None:
        if self.on_bad_text == "error":
            raise bad_text(place, byte)
        if self.on_bad_text == "skip":
            self.counts.bad_text_skipped += 1
            return None
        self.counts.bad_text_replaced += 1
        return repaired()

    def no_column(self, place: str, columns: Iterable[str]) -> IndexerError:
        """The error for a file or record without the text column."""
        has = ", ".join(str(column) for column in columns) or "none"
        return IndexerError(
            f'{place}: no column "{self.text_column}" (it has: {has}). '
            "Name the one to index with --text-column"
        )

    def not_text(self, place: str, kind: object) -> IndexerError:
        """The error for a text column that holds values of another kind."""
        return IndexerError(
            f'{place}: column "{self.text_column}" holds {kind}, not text. '
            "Name the one to index with --text-column"
        )


def bad_text(place: str, byte: int | None) -> IndexerError:
    """The error for text that is not valid UTF-8; byte: the first bad one, None for a lone surrogate."""
    what = "a lone surrogate" if byte is None else f"0x{byte:02x}"
    return IndexerError(
        f"{place}: not valid UTF-8 ({what}). Use --on-bad-text replace or skip, or convert the file"
    )


class Utf8:
    """A UTF-8 decoder that knows at which byte of its stream it stands, and drops a byte order mark."""

    def __init__(self) -> None:
        self._pending = b""
        # where in the stream the pending bytes begin
        self._offset = 0

    def decode(self, block: bytes, errors: str = "strict", final: bool = False) -> str:
        """Raises BadByteError with the offset within the stream."""
        data = self._pending + block
        try:
            text, used = codecs.utf_8_decode(data, errors, final)
        except UnicodeDecodeError as error:
            raise BadByteError(self._offset + error.start, data[error.start]) from None
        if self._offset == 0 and text.startswith("\ufeff"):
            text = text[1:]
        self._pending = data[used:]
        self._offset += used
        return text


class BadByteError(Exception):
    """A byte of a stream that is not UTF-8."""

    def __init__(self, offset: int, byte: int) -> None:
        super().__init__(offset, byte)
        self.offset = offset
        self.byte = byte


def _repaired(text: str, escaped: bool) -> str:
    if not escaped:
        return SURROGATES.sub("\ufffd", text)
    return OTHER_SURROGATES.sub("\ufffd", text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
