"""Bytes of a corpus file: counted and hashed as they are read from disk, then decompressed, then UTF-8."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa

from indexer.corpus.compression import FORMS, errors, unpacked
from indexer.corpus.policy import Reading
from indexer.corpus.sources import CorpusFile
from indexer.corpus.utf16 import as_utf8, is_utf16
from indexer.errors import IndexerError

BLOCK_BYTES = 1 << 18


class HashedFile(io.RawIOBase):
    """A file on disk, or on the hub, that counts and hashes what is read of it.

    The SHA-256 is that of the bytes on disk, compressed as they are; it stands for the whole file only
    once `complete` is True. start: the byte to begin at. hashed: whether a digest is wanted.
    """

    def __init__(self, path: str, reading: Reading, start: int = 0, hashed: bool = True) -> None:
        self._file: BinaryIO = _opened(path)
        self._file.seek(start)
        self._hash = hashlib.sha256() if hashed else None
        self._reading = reading
        self.size = 0
        self.complete = False

    def readable(self) -> bool:
        """True: it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and take what was read into account; returns how many bytes, 0 at the end."""
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        if count:
            if self._hash is not None:
                self._hash.update(memoryview(buffer)[:count])
            self.size += count
            self._reading.counts.bytes_read += count
        else:
            self.complete = True
        return count or 0

    def tell(self) -> int:
        """How many bytes were read, those before `start` not among them."""
        return self.size

    def sha256(self) -> str | None:
        """The digest in hexadecimal, None before the end of the file."""
        return self._hash.hexdigest() if self.complete and self._hash is not None else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


@contextmanager
def opened(
    file: CorpusFile, reading: Reading, whole: bool = True, start: int = 0
) -> Iterator[io.BufferedReader]:
    """The decompressed bytes of a file, in UTF-8; its digest is noted in `reading` once all is read.

    A file that begins with the byte order mark of UTF-16 is converted, see indexer.corpus.utf16.
    whole: whether it is wanted to its end, so that a file that is left early is done with.
    start: the byte to begin at, of a file that is neither packed nor UTF-16; the bytes before it are no
        matter of this reading.
    Raises IndexerError, also from within the block, where the file cannot be read or decompressed.
    """
    try:
        raw = HashedFile(file.path, reading, start, hashed=whole and start == 0)
    except OSError as error:
        raise unreadable(file, error) from None
    with raw:
        try:
            packed = raw if file.compression is None else unpacked(raw, file.compression)
            with io.BufferedReader(packed, BLOCK_BYTES) as buffer:
                if file.compression is None:
                    reading.bytes_waiting = lambda: raw.size - buffer.tell()
                reading.utf16 = is_utf16(buffer.peek(4)[:4])
                stream = buffer
                if reading.utf16:
                    stream = io.BufferedReader(as_utf8(buffer), BLOCK_BYTES)  # type: ignore[arg-type]
                yield stream  # type: ignore[misc]
        except Exception as error:
            if not isinstance(error, errors()):
                raise
            raise unreadable(file, error) from None
        finally:
            reading.bytes_waiting = lambda: 0
            sha256 = raw.sha256()
            reading.note_digest(file, raw.size if sha256 else None, sha256)
        # a file that was left early, being binary or bad, is done with all the same
        if whole:
            reading.counts.bytes_read += max(0, (file.bytes or 0) - start - raw.size)


@contextmanager
def seekable(file: CorpusFile, memory_map: bool = False) -> Iterator[pa.NativeFile]:
    """A file on disk, or on the hub, for random access. memory_map: read what is touched alone."""
    if _is_url(file.path):
        with _opened(file.path) as stream, pa.PythonFile(stream, mode="r") as wrapped:
            yield wrapped
        return
    with pa.memory_map(file.path) if memory_map else pa.OSFile(file.path) as found:
        yield found


def unreadable(file: CorpusFile, error: Exception) -> IndexerError:
    """One line for a file that the operating system or a decoder refuses to read."""
    # an error of the operating system has a number, one of a decoder has none
    number = getattr(error, "errno", None)
    if number:
        return IndexerError(f"corpus file {file.source}: cannot be read ({os.strerror(number).lower()})")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, EOFError):
        reason = "truncated"
    form = FORMS.get(file.compression or "", file.kind)
    return IndexerError(
        f"corpus file {file.source}: broken {form} data ({reason}); restore the file or leave it out"
    )


def _is_url(path: str) -> bool:
    return "://" in path


def _opened(path: str) -> BinaryIO:
    if not _is_url(path):
        return open(path, "rb", buffering=0)
    import fsspec

    return fsspec.open(path, "rb").open()
