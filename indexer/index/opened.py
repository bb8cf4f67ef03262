"""Files of an index, each opened when it is first asked for, and open until all are closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from indexer.index.files import GroupedFile, Source, on_disk

Opened = TypeVar("Opened", bound=GroupedFile)


class OpenFiles:
    """Safe for use by several threads."""

    def __init__(
        self, folder: Path, source: Source = on_disk, check: Callable[[], None] = lambda: None
    ) -> None:
        """folder: of the index. source: what opens a path. check: called before a file is opened."""
        self._folder, self._source, self._check = folder, source, check
        self._files: dict[str, GroupedFile] = {}
        self._lock = threading.Lock()

    def get(self, path: str, kind: Callable[[Path, pa.Schema, Source], Opened], wanted: pa.Schema) -> Opened:
        """The file of a path within the index. Raises what `kind` and the check do."""
        with self._lock:
            file = self._files.get(path)
            if file is None:
                self._check()
                file = self._files[path] = kind(self._folder / path, wanted, self._source)
            return file  # type: ignore[return-value]

    def close(self) -> None:
        """Close all; one that is asked for later is opened anew."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
