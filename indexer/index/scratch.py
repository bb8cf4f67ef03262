"""The hidden folder beside an output into which an index is written, and what becomes of one that was left.

    .NAME.XXXXXXXX.partial/lock        held by the process that writes, as long as it lives
    .NAME.XXXXXXXX.partial/index       what it writes
    .NAME.XXXXXXXX.partial/index.old   what that replaces, for a moment, where two folders cannot be exchanged

So whoever comes after a process that was killed tells what it left from what another one is still writing.
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

_LOCK, _INDEX = "lock", "index"


class Scratch:
    """A folder for one index that is being written; `index` is where, and is not made yet."""

    def __init__(self, target: Path) -> None:
        """Make the folder beside `target`. Raises OSError where the disk fails; then there is none."""
        self._target = target
        while not self._made(target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")):
            pass
        self.index = self._folder / _INDEX

    def close(self) -> None:
        """Remove the folder and all in it; what cannot be removed does no harm."""
        _clear(self._folder, self._target)
        self._lock.close()

    def _made(self, folder: Path) -> bool:
        """Whether the folder was made and is ours: another process may take it for one that was left."""
        folder.mkdir()
        try:
            lock = open(folder / _LOCK, "xb")  # noqa: SIM115 - open as long as the folder is there
        except (FileNotFoundError, FileExistsError):
            return False
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if locked(lock) is False or not os.fstat(lock.fileno()).st_nlink:
            lock.close()
            return False
        self._folder, self._lock = folder, lock
        return True


def put_right(target: Path) -> None:
    """Clear away what killed processes left beside `target`; an index that one had put aside goes back there.

    What a living process writes stays, and everything where the file system has no locks to tell.
    """
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.partial")
    # what cannot be cleared away now does no harm, and the next one may be able to
    with suppress(OSError):
        for folder in [path for path in target.parent.iterdir() if name.fullmatch(path.name)]:
            if folder.is_dir() and not folder.is_symlink():
                with suppress(OSError), open(folder / _LOCK, "ab") as lock:
                    if locked(lock):
                        _clear(folder, target)


def put_back(index: Path, target: Path) -> bool:
    """Where `target` was put aside and nothing came in its place, let it be there again.

    index: what was to come in its place. Returns whether nothing that was at `target` is aside any more.
    """
    aside = put_aside(index)
    if aside.is_dir() and not os.path.lexists(target):
        os.rename(aside, target)
        flush(target.parent)
    return os.path.lexists(target) or not aside.exists()


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


def _clear(folder: Path, target: Path) -> None:
    with suppress(OSError):
        if put_back(folder / _INDEX, target):
            shutil.rmtree(folder, ignore_errors=True)
