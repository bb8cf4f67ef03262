"""The log of a build: one JSON line per event, for people and programs that look on from outside."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class EventLog:
    """Appends to one file; what was written before, by this process or an earlier one, stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _end_last_line(path)

    def write(self, event: str, **facts: Any) -> None:
        """One line: the time in UTC, the event's name, its facts as JSON values. Raises OSError."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **facts}, ensure_ascii=True, allow_nan=False)
        rest = memoryview(f"{line}\n".encode("ascii"))
        # one write call per line, so that a process that is killed leaves whole lines; more on a full disk
        with open(self.path, "ab", buffering=0) as file:
            while rest:
                rest = rest[file.write(rest) :]


def _end_last_line(path: Path) -> None:
    """A line that a crash cut off gets its end, so that the next event has a line of its own."""
    try:
        with open(path, "rb+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
    except FileNotFoundError:
        return
