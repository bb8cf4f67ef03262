"""From what the user names - files, folders, globs, hub data sets - to an ordered list of files.

The order is the one given; a folder is walked depth first, its entries sorted by name, and the matches
of a glob are sorted by path. A file named twice is read once, at its first place. So a file's ordinal,
and with it every document id, depends on the names alone, never on what the files hold.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from indexer.errors import IndexerError

HUB_PREFIX = "hf://datasets/"
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
}
WAYS = "name a file, a folder, a glob or hf://datasets/OWNER/NAME"
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
# a document id is file ordinal << ROW_BITS | row, and must stay a positive int64
ROW_BITS = 40
MOST_FILES = 1 << (63 - ROW_BITS)


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file, or one hub data set, of the corpus.

    path: what to open; for a hub data set the whole source. source: as shown and stored, always Unicode.
    kind: text, jsonl, json, csv, tsv, parquet, arrow or hub. compression: gzip, bzip2, xz, zstd or None.
    bytes: on disk; None where unknown.
    named: whether the user gave this very path; others were found in a folder or by a glob.
    """

    ordinal: int
    path: str
    source: str
    kind: str
    compression: str | None
    bytes: int | None
    named: bool


def expand(sources: Sequence[str], first_ordinal: int = 0) -> list[CorpusFile]:
    """The files behind the sources, in the order in which they are read; ordinals from first_ordinal on.

    Raises IndexerError where a source is missing or unreadable, and where a glob or folder has no file.
    """
    files: list[CorpusFile] = []
    seen: set[str] = set()
    for source in sources:
        before = len(files)
        repeated = False
        for path, size, named in _paths(os.fspath(source)):
            identity = path if path.startswith(HUB_PREFIX) else os.path.abspath(path)
            if identity in seen:
                repeated = True
                continue
            seen.add(identity)
            files.append(_corpus_file(first_ordinal + len(files), path, size, named))
        if len(files) == before and not repeated:
            raise IndexerError(f"corpus folder {_shown(source)}: no file in it (hidden files are skipped)")
    if first_ordinal + len(files) > MOST_FILES:
        raise IndexerError(f"corpus: {len(files)} files, the most is {MOST_FILES}; pack them into JSONL")
    return files


def _paths(source: str) -> Iterator[tuple[str, int | None, bool]]:
    """(path, bytes on disk, named directly) of every file behind one source."""
    if source.startswith(HUB_PREFIX):
        yield source, None, True
        return
    if re.match(r"[a-z][a-z0-9+.-]+://", source):
        raise IndexerError(
            f"corpus source {source}: no scheme that is known; use a local path or hf://datasets/OWNER/NAME"
        )
    path = os.path.expanduser(source)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        if glob.has_magic(path):
            yield from _glob(path)
            return
        raise IndexerError(f"corpus source {_shown(source)}: {_reason(error)}; {WAYS}") from None
    if stat.S_ISDIR(found.st_mode):
        yield from _folder(path, _above(path))
    elif stat.S_ISREG(found.st_mode):
        yield path, found.st_size, True
    else:
        raise IndexerError(f"corpus source {_shown(source)}: neither a regular file nor a folder")


def _glob(pattern: str) -> Iterator[tuple[str, int | None, bool]]:
    parts = pattern.split(os.sep)
    below = sorted(_below(parts, parts.index("**"))) if "**" in parts else []
    matches = [] if "**" in parts else sorted(glob.iglob(pattern))
    if not (below or matches):
        raise IndexerError(f"corpus source {_shown(pattern)}: no file matches this glob")
    yield from below
    for path in matches:
        if os.path.isdir(path):
            yield from _folder(path, _above(path))
        elif os.path.isfile(path):
            yield path, os.path.getsize(path), False


def _below(parts: list[str], place: int) -> Iterator[tuple[str, int | None, bool]]:
    """Files that fit a glob of these parts, of which the one at `place` is `**`: any number of folders.

    The folders are walked as by `_folder`, since `glob` itself never comes back from links that loop.
    """
    head = os.sep.join(parts[:place])
    for root in filter(os.path.isdir, glob.iglob(head) if head else [os.sep if place else os.curdir]):
        for path, size, named in _folder(root, _above(root)):
            if _fits(os.path.relpath(path, root).split(os.sep), parts[place:]):
                yield path if place else path.removeprefix(f"{os.curdir}{os.sep}"), size, named


def _fits(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_fits(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def _above(path: str) -> tuple[tuple[int, int], ...]:
    """(device, inode) of the folders that a folder lies in: a link back to one of them is a loop."""
    found = [os.stat(parent) for parent in Path(path).resolve().parents]
    return tuple((parent.st_dev, parent.st_ino) for parent in found)


def _folder(path: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int | None, bool]]:
    """Regular files below a folder; `above` are the (device, inode) of the folders that lead to it."""
    try:
        found = os.stat(path)
        with os.scandir(path) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise IndexerError(f"corpus folder {_shown(path)}: {_reason(error)}") from None
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    beside = {entry.name for entry in entries}
    for entry in entries:
        if entry.name.startswith(".") or _describes(entry.name, beside):
            continue
        # a link may dangle, and a file may go away between listing and looking: both are no file any more
        try:
            if entry.is_dir():
                yield from _folder(entry.path, (*above, here))
            elif entry.is_file():
                yield entry.path, entry.stat().st_size, False
        except OSError:
            continue


def kind_of(path: str) -> tuple[str, str | None]:
    """Kind and compression of a file by its name; see CorpusFile."""
    stem, suffix = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(suffix)
    return KINDS.get(os.path.splitext(stem)[1] if compression else suffix, "text"), compression


def _describes(name: str, beside: set[str]) -> bool:
    """Whether a file is not of the data that `save_to_disk` of `datasets` wrote there, but about it.

    beside: the names in its folder.
    """
    if not {"dataset_info.json", "state.json"} <= beside:
        return name == "dataset_dict.json"
    return name in ("dataset_info.json", "state.json") or name.startswith("cache-")


def _corpus_file(ordinal: int, path: str, size: int | None, named: bool) -> CorpusFile:
    if path.startswith(HUB_PREFIX):
        return CorpusFile(ordinal, path, path, "hub", None, None, True)
    kind, compression = kind_of(path)
    if kind in ("parquet", "arrow") and compression:
        form = kind.capitalize()
        raise IndexerError(f"corpus file {_shown(path)}: {form} in {compression} is not read; unpack it")
    return CorpusFile(ordinal, path, _shown(path), kind, compression, size, named)


def _shown(path: str) -> str:
    """The path as Unicode: file names on disk may hold any bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def _reason(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
