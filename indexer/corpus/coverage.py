"""What has been read, row by row: so that nothing is counted twice, and everything can be continued."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

EMPTY_DIGEST = "0" * 64


@dataclass
class Covered:
    """Rows first to end - 1 of a file.

    end: rows that were met, those without text too. documents, characters: of those handed out;
    token ids have no characters.
    digest: SHA-256 chained over the documents in order - of the digest before, the row as an int64 (little
    endian), and the SHA-256 of the text in UTF-8, or of the token ids as int32 (little endian) - so that it
    can be continued from here. Of a text with a target it is the SHA-256 of both of theirs.
    """

    file: int
    first: int
    end: int
    documents: int = 0
    characters: int = 0
    digest: str = EMPTY_DIGEST

    def add(self, row: int, characters: int, text_digest: bytes) -> None:
        """Take a document in."""
        self.documents += 1
        self.characters += characters
        chained = bytes.fromhex(self.digest) + row.to_bytes(8, "little") + text_digest
        self.digest = hashlib.sha256(chained).hexdigest()
