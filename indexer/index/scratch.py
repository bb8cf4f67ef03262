"""The hidden folder beside an output into which an index is written, and what becomes of one that was left.

    .NAME.XXXXXXXX.partial/lock        held by the process that writes, as long as it lives
    .NAME.XXXXXXXX.partial/index       what it writes
    .NAME.XXXXXXXX.partial/index.old   what that replaces, for a moment, where two folders cannot be exchanged

So a later process can tell what a dead writer left from the files of a writer that still runs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

from indexer.index.output import flush, put_aside

LOCK = "lock"
_INDEX = "index"


class Scratch:
    """A folder for one index that is being written; `index` is where, and is not made yet."""

    def __init__(self, target: Path) -> None:
        """Make the folder beside `target`. Raises OSError where the disk fails; then there is none."""
        self._target = target
        lock = None
        # another process may take it for one that was left, and clear it away
        while lock is None:
            self._folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
            lock = taken(self._folder)
        self._lock = lock
        self.index = self._folder / _INDEX

    def close(self) -> None:
        """Remove the folder and all in it; what cannot be removed does no harm."""
        _clear(self._folder, self._target, self._lock)


def put_right(target: Path) -> None:
    """Clear away what killed processes left beside `target`; an index that one had put aside goes back there.

    What a living process writes stays, and everything where the file system has no locks to tell.
    """
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.partial")
    # what cannot be cleared away now does no harm, and the next one may be able to
    with suppress(OSError):
        for folder in [path for path in target.parent.iterdir() if name.fullmatch(path.name)]:
            if folder.is_dir() and not folder.is_symlink():
                with suppress(OSError), open(folder / LOCK, "ab") as lock:
                    if locked(lock):
                        _clear(folder, target, lock)


def put_back(index: Path, target: Path) -> bool:
    """Where `target` was put aside and nothing came in its place, let it be there again.

    index: what was to come in its place. Returns whether nothing that was at `target` is aside any more.
    """
    aside = put_aside(index)
    if aside.is_dir() and not os.path.lexists(target):
        os.rename(aside, target)
        flush(target.parent)
    return os.path.lexists(target) or not aside.exists()


def taken(folder: Path) -> IO[bytes] | None:
    """Make a folder, or enter one that is there, and hold its lock for as long as the file is open.

    Returns None where another process holds it. Raises OSError; a folder with nothing in it is gone then.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = open(folder / LOCK, "ab")  # noqa: SIM115 - open for as long as the folder is held
        except FileNotFoundError:
            # removed in between, by the process that held it
            continue
        except OSError:
            with suppress(OSError):
                folder.rmdir()
            raise
        try:
            if locked(lock) is False:
                lock.close()
                return None
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK)):
                return lock
        except FileNotFoundError:
            # the lock of a folder that was removed keeps nobody out of the one that comes after it
            pass
        lock.close()


def empty(folder: Path) -> None:
    """Remove all in a folder but its lock. Raises OSError."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def given_back(folder: Path, lock: IO[bytes]) -> None:
    """Let go of a folder that this process holds, and remove it where nothing is in it."""
    with suppress(OSError):
        # for as long as this lock is held, nobody else holds what is at this path
        (folder / LOCK).unlink()
        folder.rmdir()
    lock.close()


def locked(file: IO[bytes]) -> bool | None:
    """Take a file's lock, to be held as long as it is open.

    Returns False where another process holds it, None where the file system has no locks. Raises OSError.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        # some network file systems
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            return None
        raise
    return True


def _clear(folder: Path, target: Path, lock: IO[bytes]) -> None:
    with suppress(OSError):
        if put_back(folder / _INDEX, target):
            empty(folder)
    given_back(folder, lock)
