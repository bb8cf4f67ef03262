"""Runs a command and says how much memory it took at most: `python -m benchmarks.child COMMAND...`.

It stands between a benchmark and the command because Linux counts into a process's ru_maxrss the size that
its parent had when it was started. This parent is small, and stays so: it imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """peak_bytes: the largest resident size. seconds: from start to end."""

    peak_bytes: int
    seconds: float


class ChildError(Exception):
    """The command did not end well; the message is the last line it wrote to stderr."""


def measured(command: list[str]) -> Measured:
    """Run a command in a process of its own; raises ChildError where it fails."""
    launcher = [sys.executable, "-m", "benchmarks.child", *command]
    done = subprocess.run(launcher, capture_output=True, text=True)
    if done.returncode:
        raise ChildError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return Measured(**json.loads(done.stdout))


def main(command: list[str]) -> int:
    """Run the command, its output to stderr; write one JSON object to stdout. Returns its exit status."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    # bytes on macOS, kB elsewhere
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak_bytes": peak, "seconds": seconds}))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
