"""A text file is one document, read in blocks so that no file is ever held whole."""

from __future__ import annotations

import io
from collections.abc import Iterator

from indexer.corpus.pieces import Run
from indexer.corpus.policy import BadByteError, Reading, Utf8
from indexer.corpus.sources import CorpusFile
from indexer.corpus.streams import BLOCK_BYTES, opened
from indexer.corpus.utf16 import BAD_BYTE
from indexer.errors import IndexerError

# a NUL byte this early marks a binary file, the rule that git uses
HEAD_BYTES = 8192


def read_text(run: Run, reading: Reading) -> Iterator[tuple[int, Iterator[str]]]:
    """The one document of a text file: its row, 0, and its pieces.

    A file that is not text is skipped and counted where it was found in a folder or by a glob.
    Raises IndexerError where such a file was named itself, and for bad UTF-8 where the policy says so.
    """
    file = run.file
    if reading.ids or reading.target_column is not None:
        what = "token ids" if reading.ids else "targets"
        error = f"corpus file {file.source}: a text has no column of {what}; give JSON, Parquet or Arrow"
        reading.leave_out(file, IndexerError(error), True, file.bytes or 0)
        return
    with opened(file, reading) as stream:
        head = stream.read(BLOCK_BYTES)
        if _is_binary(file, head, reading.utf16):
            reading.counts.binary_skipped += 1
            reading.left_out.add(file.ordinal)
            return
        reading.see(file, 0)
        if run.skip:
            # done with before; what is left to be known is its digest
            while stream.read(BLOCK_BYTES):
                pass
            return
        # what was handed out cannot be called back, so a file of several blocks is looked through first
        if reading.on_bad_text == "skip" and _is_bad(file, head):
            reading.counts.bad_text_skipped += 1
            return
        yield 0, _pieces(file, reading, head, stream)


def _is_binary(file: CorpusFile, head: bytes, utf16: bool) -> bool:
    if b"\0" not in head[:HEAD_BYTES]:
        # what only begins as UTF-16 does has a bad pair soon
        return utf16 and not file.named and bytes([BAD_BYTE]) in head[:HEAD_BYTES]
    if not file.named:
        return True
    try:
        Utf8().decode(head)
    except BadByteError:
        raise IndexerError(
            f"corpus file {file.source}: binary, not text; name text, JSON, CSV, Parquet or Arrow files"
        ) from None
    return False


def _is_bad(file: CorpusFile, head: bytes) -> bool:
    try:
        if len(head) < BLOCK_BYTES:
            Utf8().decode(head, final=True)
            return False
        # a reading of its own: this look ahead counts no byte
        decoder = Utf8()
        with opened(file, Reading()) as stream:
            while block := stream.read(BLOCK_BYTES):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except BadByteError:
        return True
    return False


def _pieces(file: CorpusFile, reading: Reading, head: bytes, stream: io.BufferedReader) -> Iterator[str]:
    decoder = Utf8(reading.width)
    errors = "strict"
    block = head
    while True:
        final = not block
        try:
            piece = decoder.decode(block, errors, final)
        except BadByteError as error:
            if reading.on_bad_text != "replace":
                raise reading.bad_text(
                    f"corpus file {file.source}, byte {error.offset}", error.byte
                ) from None
            reading.counts.bad_text_replaced += 1
            errors = "replace"
            piece = decoder.decode(block, errors, final)
        if piece:
            yield piece
        if final:
            return
        block = stream.read(BLOCK_BYTES)
