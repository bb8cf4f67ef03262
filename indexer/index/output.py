"""Putting a finished folder where it belongs, in one step and for good."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from indexer.errors import IndexerError
from indexer.index import schema


def check_output(output: Path, overwrite: bool) -> None:
    """Raise IndexerError unless an index may be put at `output`: only an index is ever replaced."""
    try:
        target = Path(os.path.realpath(output))
        # Arrow's writer takes no other names
        os.fspath(target).encode("utf-8")
    except ValueError:
        raise IndexerError(
            f"output {output}: a path that is not UTF-8, or holds a NUL byte; choose another --output"
        ) from None
    parent = target.parent
    if not parent.is_dir():
        raise IndexerError(
            f"output {output}: the folder {parent} does not exist; create it or choose another --output"
        )
    # `missing/..` does not exist as it is written, but what it leads to does
    if os.path.lexists(output) or os.path.lexists(target):
        if not overwrite:
            raise IndexerError(
                f"output {output}: already exists; choose another --output, or replace it with --overwrite"
            )
        if not (_is_index(target) or _is_empty_folder(target)):
            raise IndexerError(
                f"output {output}: exists and is not an index, so it is not replaced; choose another --output"
            )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise IndexerError(f"output {output}: the folder {parent} is not writable; choose another --output")


@contextmanager
def in_one_line(what: str, way_out: str) -> Iterator[None]:
    """Turn the OSError of a disk into an IndexerError: what could not be done, the reason, the way out."""
    try:
        yield
    except OSError as error:
        # Arrow's has its own words in place of strerror
        reason = error.strerror or str(error).splitlines()[0]
        raise IndexerError(f"{what}: {reason}. {way_out}") from error


def put_in_place(folder: Path, target: Path) -> Path | None:
    """Rename a finished folder to `target`, which may hold an index; returns where that one went.

    Both are exchanged in one step where the system can. Where it cannot, the old one is put aside first:
    for a moment there is no index at `target`, but both are on the disk.
    Raises OSError where the disk fails; then `target` is as it was, as far as the disk lets it.
    """
    aside = None
    with ExitStack() as undo:
        if not target.exists():
            _rename(folder, target, undo)
        elif _exchange(folder, target):
            undo.callback(_exchange, folder, target)
            aside = folder
        else:
            aside = put_aside(folder)
            _rename(target, aside, undo)
            _rename(folder, target, undo)
        flush(target.parent)
        undo.pop_all()
    return aside


def put_aside(folder: Path) -> Path:
    """Where an index is for the moment in which `folder` comes in its place."""
    return folder.with_name(f"{folder.name}.old")


def flush(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_index(path: Path) -> bool:
    manifest = path / schema.MANIFEST
    try:
        # a pipe would be read forever
        if not manifest.is_file():
            return False
        content = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == schema.FORMAT


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _rename(source: Path, target: Path, undo: ExitStack) -> None:
    os.rename(source, target)
    undo.callback(os.rename, target, source)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step, by Linux's renameat2; False where there is no such thing."""
    try:
        rename: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2
    return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
