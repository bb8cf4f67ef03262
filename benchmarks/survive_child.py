"""Builds that are killed: reads jobs as JSON lines from stdin, answers each with a line.

A process of its own that has loaded torch and forks for every job, so that a build takes a second. A job has
`config` (BuildConfig), and how it is killed: `seconds` after its start, or before or after the `n`-th call
of a `point`, one of POINTS; or not at all. The answer: `status` (of os.waitstatus_to_exitcode), `seconds`,
and the points that were passed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from indexer.config import BuildConfig
from indexer.errors import IndexerError
from indexer.index import write
from indexer.pipeline import build
from indexer.work import durable, folder

# every step that a crash could fall between: module or class, and function
POINTS: dict[str, tuple[Any, str]] = {
    "write a file": (durable, "write_flushed"),
    "rename a file": (durable, "rename"),
    "flush a folder": (durable, "flush_folder"),
    "write of a checkpoint's position": (folder, "write_flushed"),
    "exchange of the checkpoint": (folder, "write_durably"),
    "remove a checkpoint": (folder, "remove"),
    "write of a table": (write.IndexWriter, "_write_parquet"),
    "write of a text": (write.IndexWriter, "_write_text"),
    "flush of a file of the index": (write, "flush"),
    "put the index in place": (write, "put_in_place"),
    "remove the build's folder": (folder.WorkFolder, "remove"),
    "make a checkpoint": (folder.WorkFolder, "save"),
}


def main() -> None:
    """Do the jobs until stdin ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        begin = time.perf_counter()
        status, passed = _forked(job)
        answer = {"status": status, "seconds": time.perf_counter() - begin, "passed": passed}
        print(json.dumps(answer), flush=True)


def _forked(job: dict[str, Any]) -> tuple[int, list[str]]:
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _build(job, written)
    os.close(written)
    if job.get("seconds") is not None:
        time.sleep(job["seconds"])
        # a build that has ended is still there until it is waited for
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        passed = pipe.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), passed


def _build(job: dict[str, Any], passed: int) -> None:
    """In the child: build, and leave with status 0, or 2 for a mistake."""
    status = 1
    try:
        for name, (place, function) in POINTS.items():
            setattr(place, function, _watched(name, getattr(place, function), job, passed))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        build(BuildConfig.model_validate(job["config"]))
        status = 0
    except IndexerError:
        status = 2
    finally:
        os._exit(status)


def _watched(
    name: str, original: Callable[..., Any], job: dict[str, Any], passed: int
) -> Callable[..., Any]:
    calls = 0

    def watched(*arguments: Any, **names: Any) -> Any:
        nonlocal calls
        calls += 1
        os.write(passed, f"{name}\n".encode())
        here = job.get("point") == name and job.get("n") == calls
        if here and job["before"]:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **names)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return watched


if __name__ == "__main__":
    main()
