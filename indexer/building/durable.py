"""Files that are whole or not there, whenever the machine stops.

A file is written under another name, flushed to the disk, renamed, and its folder flushed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from indexer.index.output import flush

# what is being written, and of no use to anybody should the process end
UNFINISHED = ".new"


def write_durably(path: Path, content: bytes) -> None:
    """Put a file at `path`, in place of one that may be there.

    Raises OSError; then the old one stays. Where only the folder cannot be flushed, the new one may be there.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        write_flushed(unfinished, content)
        os.replace(unfinished, path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise
    flush(path.parent)


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file and have the disk hold it."""
    path.write_bytes(content)
    flush(path)


def remove(path: Path) -> None:
    """Remove a folder and all in it; one that cannot be removed does no harm and stays."""
    shutil.rmtree(path, ignore_errors=True)


def digest(content: bytes) -> str:
    """The SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


