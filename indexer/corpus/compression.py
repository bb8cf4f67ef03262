"""The bytes inside compressed files: gzip, bzip2, xz and Zstandard, one stream after another."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any

from indexer.errors import package

FORMS = {"gzip": "gzip", "bzip2": "bzip2", "xz": "xz", "zstd": "Zstandard"}
# Zstandard's decoder gives out all that a read block makes, up to 8,000 times as much
PACKED_BYTES = 1 << 14
# what a decoder of the standard library gives out at a time
MOST_BYTES = 1 << 20


def unpacked(raw: io.RawIOBase, compression: str) -> io.BufferedIOBase | io.RawIOBase:
    """The decompressed bytes of a stream. raw: a file on disk.

    Reading raises an error of `errors()` where the data is damaged, is cut off, or is followed by anything
    but more of the kind or the zeros that tapes fill up with. Zstandard's windows may be as large as
    `--long=31` makes them, and take as much memory.
    """
    if compression == "gzip":
        return gzip.GzipFile(fileobj=io.BufferedReader(raw, 1 << 16), mode="rb")
    return _Unpacked(
        raw, {"bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor, "zstd": _Zstandard}[compression]
    )


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


class _Unpacked(io.RawIOBase):
    """Streams one after another; `decoder` makes what decodes one of them.

    The classes of the standard library take data that is damaged where a stream begins for the end.
    """

    def __init__(self, raw: io.RawIOBase, decoder: Callable[[], Any]) -> None:
        self._raw = raw
        self._new = decoder
        self._decoder = decoder()
        self._waiting = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ready:
            self._ready = memoryview(self._next())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next(self) -> bytes:
        """Some bytes, none at the end."""
        while True:
            if self._decoder.eof:
                packed = self._decoder.unused_data.lstrip(b"\0")
                while not packed:
                    block = self._raw.read(PACKED_BYTES)
                    if not block:
                        return b""
                    packed = block.lstrip(b"\0")
                self._decoder, self._waiting = self._new(), packed
            if self._decoder.needs_input and not self._waiting:
                self._waiting = self._raw.read(PACKED_BYTES) or b""
                if not self._waiting:
                    raise EOFError("truncated")
            packed, self._waiting = self._waiting, b""
            found = self._decoder.decompress(packed, MOST_BYTES)
            if found:
                return bytes(found)
