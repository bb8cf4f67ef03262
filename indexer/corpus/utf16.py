"""UTF-16 as UTF-8, so that all readers see one encoding; and where in the file a byte of that UTF-8 lies.

What is not valid UTF-16 - half of a surrogate pair, an odd byte at the end - becomes the byte 0xFF, which no
UTF-8 has, so that readers meet it as they meet any bad byte.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

import numpy as np

from indexer.corpus.compression import Blocks

MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
BAD_BYTE = 0xFF
BLOCK_BYTES = 1 << 16


def is_utf16(head: bytes) -> bool:
    """Whether a file that begins with these bytes, four where it has as many, is marked as UTF-16."""
    return head[:2] in MARKS and head != codecs.BOM_UTF32_LE


def width(text: bytes) -> int:
    """How many bytes of UTF-16 became `text`, whole characters of `as_utf8`."""
    units = np.frombuffer(text, np.uint8)
    lead = np.count_nonzero((units & 0xC0) != 0x80)
    # four bytes of UTF-8 were a surrogate pair
    return 2 * int(lead + np.count_nonzero((units & 0xF8) == 0xF0))


def as_utf8(stream: io.BufferedReader) -> Blocks:
    """A stream that begins with a byte order mark, as UTF-8 with that mark."""
    decoder = codecs.getincrementaldecoder(MARKS[stream.peek(2)[:2]])(_MARKED)

    def blocks() -> Iterator[bytes]:
        ended = False
        while not ended:
            block = stream.read(BLOCK_BYTES)
            ended = not block
            yield decoder.decode(block, ended).encode("utf-8", "surrogateescape")

    return Blocks(blocks())


def _marked(error: UnicodeError) -> tuple[str, int]:
    """Decoding goes on behind what is not UTF-16, with the surrogate that stands for BAD_BYTE."""
    assert isinstance(error, UnicodeDecodeError)
    return chr(0xDC00 + BAD_BYTE), error.end


_MARKED = "indexer-marked"
codecs.register_error(_MARKED, _marked)
