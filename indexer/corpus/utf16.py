"""UTF-16 as UTF-8, so that all readers see one encoding; and where in the file a byte of that UTF-8 lies.

What is not valid UTF-16 - half of a surrogate pair, an odd byte at the end - becomes the byte 0xFF, which no
UTF-8 has, so that readers meet it as they meet any bad byte.
"""

from __future__ import annotations

import codecs
import io
from typing import Any

import numpy as np

MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
BAD_BYTE = 0xFF
BLOCK_BYTES = 1 << 16


def is_utf16(head: bytes) -> bool:
    """Whether a file that begins with these bytes, four where it has as many, is marked as UTF-16."""
    return head[:2] in MARKS and head != codecs.BOM_UTF32_LE


def width(text: bytes) -> int:
    """How many bytes of UTF-16 became `text`, whole characters of Utf16Reader's."""
    units = np.frombuffer(text, np.uint8)
    lead = np.count_nonzero((units & 0xC0) != 0x80)
    # four bytes of UTF-8 were a surrogate pair
    return 2 * int(lead + np.count_nonzero((units & 0xF8) == 0xF0))


class Utf16Reader(io.RawIOBase):
    """A stream that begins with a byte order mark, as UTF-8 with that mark."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        encoding = MARKS[stream.peek(2)[:2]]
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARKED)
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """True: it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; returns how many bytes, 0 at the end."""
        while not self._ready and not self._ended:
            block = self._stream.read(BLOCK_BYTES)
            self._ended = not block
            self._ready = memoryview(
                self._decoder.decode(block, self._ended).encode("utf-8", "surrogateescape")
            )
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _marked(error: UnicodeError) -> tuple[str, int]:
    """Decoding goes on behind what is not UTF-16, with the surrogate that stands for BAD_BYTE."""
    assert isinstance(error, UnicodeDecodeError)
    return chr(0xDC00 + BAD_BYTE), error.end


_MARKED = "indexer-marked"
codecs.register_error(_MARKED, _marked)
