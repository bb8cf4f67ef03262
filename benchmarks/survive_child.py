"""Commands that are stopped: reads jobs as JSON lines from stdin, answers each with a line.

A process of its own that has loaded torch and the model, and forks for every job, so that a build takes a
second. A job has `command` (the arguments of neuron-indexer), and how it is stopped: killed `seconds` after
its start, or before or after the `n`-th call of a `point`, one of POINTS; or by a disk that is full from the
call `full` on, or in that one `only`, where tests/native/full_disk.c is loaded; or not at all. The answer:
`status` (of os.waitstatus_to_exitcode), `seconds`, the points that were `passed`, the `calls` that would take
room, and what was `said` on stderr.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from indexer import models
from indexer.building import durable, folder, plan
from indexer.commands import app
from indexer.engines import append, shards
from indexer.index import output, scratch, write
from indexer.partials import merge

# every step that a crash could fall between: module or class, and function
POINTS: dict[str, tuple[Any, str]] = {
    "write a file": (durable, "write_flushed"),
    "rename a file": (os, "replace"),
    "flush a file or its folder": (durable, "flush"),
    "flush a checkpoint's folder": (folder, "flush"),
    "write of a checkpoint's position": (folder, "write_flushed"),
    "exchange of the checkpoint": (folder, "write_durably"),
    "remove a checkpoint": (folder, "remove"),
    "write of a table": (write.IndexWriter, "_write_parquet"),
    "write of a text": (write.IndexWriter, "_write_text"),
    "flush of a file of the index": (write, "flush"),
    "make the hidden folder": (scratch.Scratch, "__init__"),
    "remove the hidden folder": (scratch.Scratch, "close"),
    "rename a folder": (os, "rename"),
    "exchange two folders": (output, "_exchange"),
    "put an index in place": (write, "put_in_place"),
    "put the built index in place": (folder, "put_in_place"),
    "remove a tree": (shutil, "rmtree"),
    "remove the build's folder": (folder.WorkFolder, "remove"),
    "make a checkpoint": (folder.WorkFolder, "save"),
    "take the build's folder": (folder, "taken"),
    "empty the build's folder": (folder, "empty"),
    "give the build's folder back": (folder, "given_back"),
    "take the folder of shards": (shards, "taken"),
    "give the folder of shards back": (shards, "given_back"),
    "remove what is merged": (append, "clear_merged"),
    "merge": (merge, "merged_sections"),
}


def main() -> None:
    """Do the jobs until stdin ends. The first argument is the model's folder."""
    torch.set_num_threads(1)
    loaded = models.load(sys.argv[1], dtype="auto", device="cpu")
    plan.load = lambda *asked, **options: loaded
    # Arrow looks for pandas at the first array of NumPy's, for half a second where it is there
    pa.array(np.zeros(1))
    shim: Any = ctypes.CDLL(None)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), shim)), flush=True)


def _answer(job: dict[str, Any], shim: Any) -> dict[str, Any]:
    """Fork for a job and wait for its end. shim: the process's own symbols, full_disk.c among them or not."""
    read, written = os.pipe()
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.close(read)
            _run(job, shim, said.fileno(), written)
        os.close(written)
        if job.get("seconds") is not None:
            time.sleep(job["seconds"])
            # a command that has ended is still there until it is waited for
            os.kill(child, signal.SIGKILL)
        with os.fdopen(read) as pipe:
            entries = [json.loads(line) for line in pipe]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.perf_counter() - begin
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    return {
        "status": status,
        "seconds": seconds,
        "passed": [entry for entry in entries if isinstance(entry, str)],
        "calls": sum(entry for entry in entries if isinstance(entry, int)),
        "said": text,
    }


def _run(job: dict[str, Any], shim: Any, said: int, passed: int) -> None:
    """In the child: run the command, and leave with its exit status."""
    status = 1
    try:
        for name, (place, function) in POINTS.items():
            setattr(place, function, _watched(name, getattr(place, function), job, passed))
        os.dup2(said, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if "full" in job:
            shim.full_disk_fail(job["full"], int(job.get("only", False)))
        try:
            app(job["command"], prog_name="neuron-indexer")
        except SystemExit as end:
            status = int(end.code or 0)
        if "full" in job:
            _tell(passed, shim.full_disk_calls())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _watched(name: str, original: Callable[..., Any], job: dict[str, Any], passed: int) -> Callable[..., Any]:
    # its calls come from several threads
    numbers = itertools.count(1)

    def watched(*arguments: Any, **names: Any) -> Any:
        here = next(numbers) == job.get("n") and job.get("point") == name
        _tell(passed, name)
        if here and job["before"]:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **names)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return watched


def _tell(pipe: int, value: str | int) -> None:
    # one call per line: what is killed tells whole ones
    os.write(pipe, f"{json.dumps(value)}\n".encode())


if __name__ == "__main__":
    main()
