"""The folder OUTPUT.build beside an index that is being built: what the build is, and its last checkpoint.

    build.json        what decides the index; another model, corpus or option does not continue this build
    checkpoint.json   which checkpoint holds, and its digests; exchanged in one step, and all that is believed
    checkpoint-N/     an index of all that was read so far, and where reading stands
    build.log.jsonl   one line per event

A process that is killed at any moment leaves the checkpoint before, or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any

from indexer.building.durable import digest, remove, write_durably, write_flushed
from indexer.building.events import EventLog
from indexer.building.identity import differences, reconciled
from indexer.building.plain import packed, unpacked
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest, sha256, size_problem
from indexer.index.output import check_output, flush, in_one_line, put_aside, put_in_place
from indexer.index.schema import LOG, MANIFEST
from indexer.index.scratch import empty, given_back, put_back, taken
from indexer.index.unfinished import BUILD_SUFFIX, ENDED, IDENTITY

CURRENT = "checkpoint.json"
INDEX = "index"
POSITION, ARRAYS = "position.json", "position.npz"


@dataclass(frozen=True)
class Checkpoint:
    """All that a build had done: an index of it, and plain values and arrays about where it stood."""

    index: Path
    position: dict[str, Any]


class WorkFolder:
    """One build's folder; a context manager, within which no other process works in it.

    Left without a checkpoint, the folder is removed. published: whether the index is in its place.
    """

    def __init__(self, output: Path) -> None:
        """output: where the index goes; the folder lies beside what a symbolic link there points to."""
        self.output = output
        self._target = Path(os.path.realpath(output))
        self.path = self._target.with_name(self._target.name + BUILD_SUFFIX)
        self._lock: IO[bytes] | None = None
        self.published = False
        self._begun = False

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.note("interrupted")
        elif isinstance(error, IndexerError):
            self.note("failed", message=str(error))
        if self._lock is not None:
            if not (self.path / CURRENT).exists():
                # nothing was done that could be continued
                with suppress(OSError):
                    self._clear()
            given_back(self.path, self._lock)
        self._lock, self._begun = None, False

    @property
    def log(self) -> EventLog:
        """The log of this build."""
        return EventLog(self.path / LOG)

    @property
    def kept(self) -> str:
        """What is left where the work ends now, and the way on: the end of a line about the disk."""
        if (self.path / CURRENT).exists():
            return "The last checkpoint holds; make room, then run the same command to continue"
        return "Nothing was kept; make room, then run the same command again, or choose another --output"

    def note(self, event: str, **facts: Any) -> None:
        """A line in the log, from when the build has begun until it is removed.

        Raises IndexerError where the disk fails; not for news of the end, which another error has brought.
        """
        with suppress(OSError) if event in ENDED else self._in_one_line():
            if self._begun:
                self.log.write(event, **facts)

    def begin(self, identity: Mapping[str, Any], *, overwrite: bool) -> Checkpoint | None:
        """Make the folder, or continue in it; returns the last checkpoint, None where there is none.

        identity: what decides the index, JSON values by the name a person knows them by.
        Raises IndexerError where it holds a build of another identity, unless `overwrite`, which discards
        that; where another process works in it; and where its checkpoint is damaged.
        """
        with self._in_one_line():
            self._lock = taken(self.path)
            if self._lock is None:
                raise IndexerError(
                    f"{self.path}: another process is building {self.output}; wait for it or stop it"
                )
            found = self._identity()
            differing = differences(found or identity, reconciled(identity, found or identity))
            if differing and not overwrite:
                raise IndexerError(
                    f"{self.path}: an unfinished build of {self.output} that differs: {differing}. Give the "
                    "same options to continue it, or --overwrite to discard it"
                )
            if differing:
                self._clear()
            if found != identity:
                write_durably(self.path / IDENTITY, json.dumps(dict(identity), indent=2).encode())
            self._begun = True
            return self._checkpoint()

    @contextmanager
    def scratch_file(self) -> Iterator[IO[bytes]]:
        """A file without a name, on the disk of the index. Raises IndexerError where that disk fails."""
        with self._in_one_line(), TemporaryFile(dir=self.path) as file:
            yield file

    def save(self, write_index: Callable[[Path], object], position: dict[str, Any]) -> None:
        """Make a checkpoint the one that holds. Raises IndexerError where the disk fails; the last one stays.

        write_index: writes an index to the path it is given, durably.
        """
        with self._in_one_line():
            number = 1 + max((int(path.name.split("-")[1]) for path in self._checkpoints()), default=0)
            folder = self.path / f"checkpoint-{number}"
            folder.mkdir()
            try:
                self._write(folder, write_index, position)
            except BaseException:
                # as much room as there was before; but what may be believed already stays beside the last one
                if (self._json(CURRENT) or {}).get("checkpoint") != folder.name:
                    remove(folder)
                raise
            for other in self._checkpoints():
                if other != folder:
                    remove(other)

    def publish(self, *, overwrite: bool) -> None:
        """Put the index of the checkpoint in its place, and remove the folder.

        Raises IndexerError where the disk fails, and where something else lies in that place; the checkpoint
        holds then.
        """
        if not self.published:
            current = self._json(CURRENT)
            assert current is not None
            check_output(self.output, overwrite)
            with self._in_one_line():
                put_in_place(self.path / current["checkpoint"] / INDEX, self._target)
            self.published = True
        self.remove()

    def remove(self) -> None:
        """Remove the folder, where it is there: the index is in place. What cannot be removed stays.

        So does the folder of another process, which may have begun the next build meanwhile.
        """
        with suppress(OSError):
            lock = self._lock or (taken(self.path) if self.path.is_dir() else None)
            if lock is not None:
                with suppress(OSError):
                    self._clear()
                given_back(self.path, lock)
        self._lock, self._begun = None, False

    def _in_one_line(self) -> AbstractContextManager[bool | None]:
        """Around all that the disk may refuse."""
        return in_one_line(f"{self.path}: cannot be written", self.kept)

    def _write(self, folder: Path, write_index: Callable[[Path], object], position: dict[str, Any]) -> None:
        write_index(folder / INDEX)
        text, arrays = packed(position)
        write_flushed(folder / POSITION, text)
        write_flushed(folder / ARRAYS, arrays)
        flush(folder)
        current = {
            "checkpoint": folder.name,
            POSITION: digest(text),
            ARRAYS: digest(arrays),
            "manifest": sha256(folder / INDEX / MANIFEST),
        }
        write_durably(self.path / CURRENT, json.dumps(current, indent=2).encode())

    def _checkpoint(self) -> Checkpoint | None:
        """The checkpoint that holds, all its digests checked; what lies beside it is cleared away."""
        current = self._json(CURRENT)
        name = "" if current is None else str(current.get("checkpoint"))
        for other in self._checkpoints():
            if other.name != name:
                remove(other)
        if current is None:
            return None
        folder = self.path / name
        index = folder / INDEX
        try:
            if put_back(index, self._target):
                remove(put_aside(index))
            # a process may have been killed between putting the index in its place and removing this folder
            if _has_digest(self._target, current["manifest"]):
                self.published, index = True, self._target
            text, arrays = ((folder / part).read_bytes() for part in (POSITION, ARRAYS))
            whole = digest(text) == current[POSITION] and digest(arrays) == current[ARRAYS]
            whole = whole and _has_digest(index, current["manifest"])
            position = unpacked(text, arrays) if whole else {}
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(f"{name}: {error}") from error
        if not whole:
            raise self._damaged(f"{name}: its digests differ")
        self._check_index(index)
        return Checkpoint(index, position)

    def _check_index(self, index: Path) -> None:
        for file in read_manifest(index).files:
            problem = size_problem(index, file)
            if problem is None and sha256(index / file.path) != file.sha256:
                problem = f"{file.path} is not the file that was written"
            if problem:
                raise self._damaged(problem)

    def _damaged(self, problem: str) -> IndexerError:
        return IndexerError(
            f"{self.path}: its checkpoint is damaged ({problem}); restore the folder, or remove it to "
            "begin anew"
        )

    def _identity(self) -> dict[str, Any] | None:
        return self._json(IDENTITY)

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"{name} is not JSON") from error
        if not isinstance(content, dict):
            raise self._damaged(f"{name} is not an object")
        return content

    def _checkpoints(self) -> list[Path]:
        return [path for path in self.path.glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]

    def _clear(self) -> None:
        self._disbelieve()
        empty(self.path)

    def _disbelieve(self) -> None:
        # what is believed goes first, so that a crash in between leaves nothing half believed
        for name in (CURRENT, IDENTITY):
            (self.path / name).unlink(missing_ok=True)


def _has_digest(index: Path, manifest: str) -> bool:
    """Whether there is an index with the manifest of this SHA-256."""
    path = index / MANIFEST
    return path.is_file() and sha256(path) == manifest
