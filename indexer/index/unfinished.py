"""How far an unfinished build is, read from its folder by anyone who looks; the build need not run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from indexer.errors import IndexerError
from indexer.index.schema import LOG, MANIFEST

BUILD_SUFFIX = ".build"
SHARDS_SUFFIX = ".shards"
IDENTITY = "build.json"
_PROGRESS = ("tokens", "share", "tokens_per_second", "seconds_left")
# events after which nobody works on the build
ENDED = ("interrupted", "failed")
_QUIET_SECONDS = 120
_BLOCK_BYTES = 1 << 13
_AGAIN = "the same build commands finish the shards (with --workers or --ray they merge them, too)"


def progress_of(index: Path) -> dict[str, Any] | None:
    """Facts about the unfinished build of `index`; None where there is an index, or nothing at all.

    Raises IndexerError where the folder cannot be read.
    """
    if (index / MANIFEST).exists():
        return None
    try:
        shards = sorted(_below(index.with_name(index.name + SHARDS_SUFFIX)))
        own = index.with_name(index.name + BUILD_SUFFIX)
        if (own / IDENTITY).exists():
            return {"index": str(index), **_build(own)}
        if shards:
            return _shards(index, shards)
    except OSError as error:
        raise IndexerError(f"{index}: its unfinished build cannot be read: {error.strerror}") from None
    return None


def in_short(progress: dict[str, Any]) -> str:
    """One line of what `progress_of` found: its state, and how far it is where that is known."""
    parts = [progress["state"]]
    for name, form in (("tokens", "{:,} tokens"), ("share", "{:.0%} done")):
        if progress.get(name) is not None:
            parts.append(form.format(progress[name]))
    return ", ".join(parts)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a build's log, the latest first; a line cut off by a crash is left out.

    Only what is asked for is read: a log grows as long as its build runs.
    """
    try:
        with open(path, "rb") as file:
            for line in _lines_backwards(file):
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event
    except FileNotFoundError:
        return


def _lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    end, rest = file.seek(0, os.SEEK_END), b""
    while end:
        begin = max(0, end - _BLOCK_BYTES)
        file.seek(begin)
        rest, *lines = (file.read(end - begin) + rest).split(b"\n")
        yield from reversed(lines)
        end = begin
    yield rest


def last_progress(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """The latest event of a build's log that tells how far it is, of one kind or any; empty without one."""
    events = (event for event in read_events(folder / LOG) if "tokens" in event)
    return next((event for event in events if kind in (None, event.get("event"))), {})


def _build(folder: Path) -> dict[str, Any]:
    last = next(read_events(folder / LOG), {})
    return {
        "state": _state(last),
        **{name: value for name, value in last_progress(folder).items() if name in _PROGRESS},
        "last_checkpoint": last_progress(folder, "checkpoint").get("time"),
        "last_event": f"{last.get('time')} {last.get('event')}" if last else None,
        "continues_in": str(folder),
    }


def _state(last: dict[str, Any]) -> str:
    if last.get("event") in ENDED:
        return f"{last['event']}; the same command continues it"
    try:
        silent = (datetime.now(UTC) - datetime.fromisoformat(str(last.get("time")))).total_seconds()
    except ValueError:
        return "begun"
    if silent > _QUIET_SECONDS:
        return f"silent for {silent:.0f} s, perhaps killed; the same command continues it"
    return "running"


def _shards(index: Path, shards: list[Path]) -> dict[str, Any]:
    finished = [path for path in shards if (path / MANIFEST).exists()]
    running = [path for path in shards if path.name.endswith(BUILD_SUFFIX) and (path / IDENTITY).exists()]
    total = next((path.name.split(".")[0].split("-of-")[-1] for path in shards), "?")
    merge = f"neuron-indexer merge {index}{SHARDS_SUFFIX} --output {index}"
    return {
        "index": str(index),
        "state": f"{len(finished)} of {total} shards finished",
        **{path.name.removesuffix(".index" + BUILD_SUFFIX): in_short(_build(path)) for path in running},
        "next": merge if str(len(finished)) == total else f"{_AGAIN}; once all are finished, {merge}",
    }


def _below(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.is_dir() and "-of-" in path.name)
