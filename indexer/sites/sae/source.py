"""From what --sae names to dictionaries: which library's files they are, and a name for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from indexer.errors import IndexerError
from indexer.sites.sae import saelens
from indexer.sites.sae.dictionary import Dictionary

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
# by the library's name: whether a folder, or a file, is one of its own, and what reads it
FORMATS = {"SAELens": (saelens.is_one, saelens.read)}


def named(asked: str) -> tuple[Path, str]:
    """SOURCE[=NAME] as a path and the name that its units go by; without one that of the folder.

    Raises IndexerError where there is no such file or folder, or where a name can be no part of a site's.
    """
    source, equals, name = asked.rpartition("=")
    if not equals or Path(asked).expanduser().exists():
        source, name = asked, ""
    path = Path(source).expanduser()
    if not path.exists():
        raise IndexerError(f"--sae {asked}: there is no such folder or file: {source}")
    if equals and not _NAME.fullmatch(name or "?") and source != asked:
        raise IndexerError(
            f'--sae {asked}: the name "{name}" may have letters, digits, - and _, and dots between'
        )
    return path, name or re.sub(r"[^A-Za-z0-9_]+", "_", path.resolve().name).strip("_") or "dictionary"


def read(path: Path) -> Iterator[Dictionary]:
    """The dictionaries of a folder or file, of those in its folders where it is none by itself.

    Raises IndexerError where there are none, or one cannot be read for certain.
    """
    folders = [path, *sorted(inner for inner in path.rglob("*") if inner.is_dir())]
    found = [(folder, reads) for folder in folders for is_one, reads in FORMATS.values() if is_one(folder)]
    if not found:
        raise IndexerError(
            f"--sae {path}: there is no dictionary in a form that is read: {', '.join(FORMATS)}"
        )
    for folder, reads in found:
        yield reads(folder)
