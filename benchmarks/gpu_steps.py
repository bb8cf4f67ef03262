"""The steps of benchmarks/on_gpu.sh: each a process with a time limit, its results kept whatever it comes to.

    python benchmarks/gpu_steps.py FOLDER [--dry-run] [--commit ID] [--seconds N]

Writes FOLDER/results.json anew after every step, and adds all that steps print to FOLDER/log.txt. A step that
fails, crashes or takes too long has its exit status and the end of what it printed on record, and what it had
measured by then; the next one runs all the same. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOG, RESULTS = "log.txt", "results.json"
# Of what a step printed that did not end well, in results.json
KEPT_CHARACTERS = 6000
# Of all steps; what is unpacked before them takes 10 more
SECONDS = 520
# as in record.py
COMMIT = "NEURON_INDEXER_COMMIT"
# A step is not begun for less
LEAST_SECONDS = 5
# Times as much for a dry run, which says nothing of time and may share its machine
DRY_PATIENCE = 5
# Between SIGABRT, at which Python says where it was, and SIGKILL
LAST_SECONDS = 5


@dataclass(frozen=True)
class Step:
    """arguments: of Python. seconds: at most."""

    name: str
    arguments: tuple[str, ...]
    seconds: int


def steps(dry: bool, parts: Path) -> list[Step]:
    """Those of a run, the most important first. parts: a folder for their figures."""

    def part(name: str, seconds: int) -> Step:
        options = ("--part", name, "--file", str(parts / f"{name}.json"), *(("--dry",) if dry else ()))
        return Step(name, ("-m", "benchmarks", "gpu", *options), seconds)

    # pytest's plugin for several processes, where it is: most of the time goes into compiling kernels
    spread = ("-n", "6") if importlib.util.find_spec("xdist") and not dry else ()
    # tests/conftest.py is left out, for it has Triton interpret kernels
    options = ("--noconftest", "-p", "no:cacheprovider", "-vv", "-rfE", *spread)
    tests = ("tests/test_gpu_kernels.py", "tests/test_gpu_memory.py", "tests/test_gpu_parts.py", *options)
    return [
        Step("extension", ("setup.py", "build_ext", "--inplace"), 100),
        part("machine", 60),
        Step("tests", ("-m", "pytest", *tests), 130),
        part("kernels", 120),
        part("gpt2", 90),
        part("features", 80),
        part("llama", 190),
        part("pythia", 130),
    ]


def main() -> int:
    """Returns the exit status: 0 where every step ended well."""
    parser = argparse.ArgumentParser(description="The steps of benchmarks/on_gpu.sh")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--commit")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    if options.commit:
        os.environ[COMMIT] = options.commit
    patience = DRY_PATIENCE if options.dry_run else 1
    begin = time.monotonic()
    whole: dict[str, Any] = {
        "dry": options.dry_run,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": options.commit,
        "steps": {},
    }
    with tempfile.TemporaryDirectory() as parts:
        for step in steps(options.dry_run, Path(parts)):
            left = patience * options.seconds - (time.monotonic() - begin)
            ended = _run(step, min(patience * step.seconds, left), options.folder / LOG)
            ended["results"] = _figures(Path(parts) / f"{step.name}.json")
            if ended["status"] == "done" and '_failure":' in json.dumps(ended["results"]):
                ended["status"] = "failed in part"
            whole["steps"][step.name] = ended
            _write(options.folder / RESULTS, whole)
    endings = [f"{name}: {step['status']}" for name, step in whole["steps"].items()]
    print(f"{options.folder / RESULTS}; {', '.join(endings)}")
    return 0 if all(step["status"] == "done" for step in whole["steps"].values()) else 1


def _run(step: Step, seconds: float, log: Path) -> dict[str, Any]:
    """Run a step for so long at most; what came of it."""
    if seconds < LEAST_SECONDS:
        return {"status": "no time left", "seconds": 0.0}
    print(f"{step.name}: at most {seconds:.0f} s", flush=True)
    begin = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n=== {step.name}\n".encode())
        output.flush()
        first = output.tell()
        process = subprocess.Popen(
            [sys.executable, *step.arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        in_time = _wait(process, seconds)
    printed = log.read_bytes()[first:].decode(errors="replace")
    print(printed[-KEPT_CHARACTERS // 4 :], flush=True)
    ended = {
        "status": "time is up" if not in_time else "done" if process.returncode == 0 else "failed",
        "exit": process.returncode,
        "seconds": round(time.monotonic() - begin, 1),
    }
    return ended if ended["status"] == "done" else {**ended, "printed": printed[-KEPT_CHARACTERS:]}


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ends in time; either way, nothing it started outlives this call."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        # it alone: a second signal, to its group, would end it before it has said where it was
        process.send_signal(signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LAST_SECONDS)
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def _figures(file: Path) -> Any:
    """What a step has measured, if anything."""
    return json.loads(file.read_text()) if file.exists() else None


def _write(file: Path, whole: dict[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(whole, indent=1))
    os.replace(new, file)


if __name__ == "__main__":
    # told to end, it ends the step that runs as well
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
