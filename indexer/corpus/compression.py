"""The bytes inside compressed files: gzip, bzip2, xz and Zstandard, one stream after another."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from indexer.errors import package

FORMS = {"gzip": "gzip", "bzip2": "bzip2", "xz": "xz", "zstd": "Zstandard"}
# Zstandard's decoder gives out all that a read block makes, up to 8,000 times as much
PACKED_BYTES = 1 << 14
# what a decoder of the standard library gives out at a time
MOST_BYTES = 1 << 20


class Blocks(io.RawIOBase):
    """The bytes of an iterator's blocks, which may be empty; what it raises, reading raises."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """True: it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; returns how many bytes, 0 at the end."""
        while not self._ready:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._ready = memoryview(block)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def unpacked(raw: io.RawIOBase, compression: str) -> io.BufferedIOBase | io.RawIOBase:
    """The decompressed bytes of a stream. raw: a file on disk.

    Reading raises an error of `errors()` where the data is damaged, is cut off, or is followed by anything
    but more of the kind or the zeros that tapes fill up with. Zstandard's windows may be as large as
    `--long=31` makes them, and take as much memory.
    """
    if compression == "gzip":
        return gzip.GzipFile(fileobj=io.BufferedReader(raw, 1 << 16), mode="rb")
    decoders = {"bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor, "zstd": _Zstandard}
    return Blocks(_blocks(raw, decoders[compression]))


def errors() -> tuple[type[Exception], ...]:
    """What the decoders raise, each in its own way."""
    zstandard = sys.modules.get("zstandard")
    of_zstandard = () if zstandard is None else (zstandard.ZstdError,)
    return (OSError, EOFError, zlib.error, lzma.LZMAError, *of_zstandard)


class _Zstandard:
    """Zstandard's decoder of one frame, as those of the standard library are used."""

    needs_input = True

    def __init__(self) -> None:
        zstandard = package("zstandard", "compressed with Zstandard")
        self._decoder = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def decompress(self, packed: bytes, most: int) -> bytes:
        return self._decoder.decompress(packed)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data


def _blocks(raw: io.RawIOBase, decoder_of: Callable[[], Any]) -> Iterator[bytes]:
    """What streams hold that follow one another, each by a decoder of its own.

    The classes of the standard library take data that is damaged where a stream begins for the end.
    """
    decoder, waiting = decoder_of(), b""
    while True:
        if decoder.eof:
            packed = decoder.unused_data.lstrip(b"\0")
            while not packed:
                block = raw.read(PACKED_BYTES)
                if not block:
                    return
                packed = block.lstrip(b"\0")
            decoder, waiting = decoder_of(), packed
        if decoder.needs_input and not waiting:
            waiting = raw.read(PACKED_BYTES) or b""
            if not waiting:
                raise EOFError("truncated")
        packed, waiting = waiting, b""
        yield decoder.decompress(packed, MOST_BYTES)
