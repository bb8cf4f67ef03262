"""Builds killed with SIGKILL at random moments, and at every named point, then repeated until they are done.

A killed build is started again by the same command, and may be killed again; what it leaves at last must be,
row for row, the index of a build that nothing happened to, verified in full, with nothing beside it.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.survive_child import POINTS
from indexer import open_index
from indexer.demo import model_folder, write_corpus
from indexer.errors import IndexerError

ORDERS = {
    "units": "site, layer, unit",
    "examples": "site, layer, unit, extreme, rank",
    "histograms": "site, layer, unit, lower, upper",
    "documents": "document",
}
MOST_KILLS = 4


@dataclass(frozen=True)
class Options:
    builds: int = option(100, "builds killed at random moments", quick=3)
    points: int = option(1_000, "at most so many builds killed at named points", quick=4)
    tokens: int = option(3_000, "characters of the corpus, in thousands of a token's four", quick=2_000)


class Builder:
    """The forking child, and the folder in which it builds."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.folder = folder
        corpus = write_corpus(folder / "corpus", 4 * tokens)
        self.config: dict[str, Any] = {
            "model": str(model_folder()), "corpus": list(corpus), "output": str(folder / "here" / "a.index"),
            "layers": "0", "top": 3, "bottom": 2, "context": 48, "batch_tokens": 512, "threads": 1,
            "piece_bytes": 4 * tokens // 3, "checkpoint_minutes": 0,
        }  # fmt: skip
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.survive_child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def close(self) -> None:
        """End the child."""
        self._pipe(self.child.stdin).close()
        self.child.wait()

    def build(self, **killed: Any) -> dict[str, Any]:
        """One build, killed or not; returns the child's answer."""
        self._pipe(self.child.stdin).write(json.dumps({"config": self.config, **killed}) + "\n")
        self._pipe(self.child.stdin).flush()
        line = self._pipe(self.child.stdout).readline()
        if not line:
            raise WrongResultError("the process that builds ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def fresh(self) -> None:
        """An empty folder for the next build."""
        shutil.rmtree(self.folder / "here", ignore_errors=True)
        (self.folder / "here").mkdir()

    def left(self) -> str:
        """What a killed build left: an index, a checkpoint, a folder, nothing."""
        here = self.folder / "here"
        if (here / "a.index" / "manifest.json").exists():
            return "index in place"
        if (here / "a.index.build" / "checkpoint.json").exists():
            return "checkpoint"
        return "folder without checkpoint" if any(here.iterdir()) else "nothing"

    def rows(self) -> dict[str, pa.Table]:
        """Every row of the index, verified in full. Raises WrongResultError where it is not alone."""
        here = self.folder / "here"
        beside = sorted(path.name for path in here.iterdir() if path.name != "a.index")
        if beside:
            raise WrongResultError(f"beside the index lies {beside[0]}")
        with open_index(here / "a.index") as index:
            index.verify(full=True)
            return {
                name: index.sql(f"SELECT * FROM {name} ORDER BY {order}") for name, order in ORDERS.items()
            }

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def run(options: Options) -> Report:
    """Kill, repeat, compare. Raises WrongResultError for the first index that is not as it should be."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        builder = Builder(folder, options.tokens)
        stack.callback(builder.close)
        builder.fresh()
        builder.build()
        builder.fresh()
        undisturbed = builder.build()
        wanted = builder.rows()
        states: Counter[str] = Counter()
        kills = _at_random(builder, options.builds, undisturbed["seconds"], wanted, states)
        points = _points(undisturbed["passed"], options.points)
        for number, (point, n, before) in enumerate(points, 1):
            builder.fresh()
            answer = builder.build(point=point, n=n, before=before)
            if answer["status"] == 0:
                raise WrongResultError(f"{point}, call {n}, was not reached")
            states[builder.left()] += 1
            _finish(builder, wanted, f"killed {'before' if before else 'after'} call {n} of: {point}")
            say(f"point {number} of {len(points)}: equal")
    return _report(options, undisturbed["seconds"], kills, len(points), states)


def _at_random(
    builder: Builder, builds: int, seconds: float, wanted: dict[str, pa.Table], states: Counter[str]
) -> int:
    chosen, kills = random.Random(0), 0
    for number in range(1, builds + 1):
        builder.fresh()
        times = chosen.randint(1, MOST_KILLS)
        for _ in range(times):
            kills += builder.build(seconds=chosen.uniform(0, 1.1 * seconds))["status"] < 0
            states[builder.left()] += 1
        _finish(builder, wanted, f"killed at random moments, build {number}")
        say(f"build {number} of {builds}, up to {times} times killed: equal")
    return kills


def _finish(builder: Builder, wanted: dict[str, pa.Table], what: str) -> None:
    answer = builder.build()
    if answer["status"] != 0:
        raise WrongResultError(f"{what}: the build that follows ends with status {answer['status']}")
    try:
        found = builder.rows()
    except IndexerError as error:
        raise WrongResultError(f"{what}: {error}") from error
    differing = [name for name in wanted if not found[name].equals(wanted[name])]
    if differing:
        raise WrongResultError(f"{what}: {differing[0]} differ from those of the undisturbed build")


def _points(passed: list[str], most: int) -> list[tuple[str, int, bool]]:
    """Every call of every point, before and after; evenly chosen where there are more than `most`."""
    counts = Counter(passed)
    every = [
        (point, n, before)
        for point in POINTS
        for n in range(1, counts[point] + 1)
        for before in (True, False)
    ]
    step = max(1.0, len(every) / most)
    return [every[int(number * step)] for number in range(int(len(every) / step))]


def _report(options: Options, seconds: float, kills: int, points: int, states: Counter[str]) -> Report:
    results = {
        "builds": options.builds,
        "kills": kills,
        "points": points,
        "equal": options.builds + points,
        "undisturbed_seconds": seconds,
        "left": dict(states),
    }
    rows: list[tuple[str, ...]] = [
        ("builds killed at random moments", f"{options.builds}", f"{options.builds}"),
        ("builds killed at named points", f"{points}", f"{points}"),
    ]
    table = Table("Killed builds, repeated until done", ("", "builds", "equal"), rows)
    notes = [f"{kills} kills at random; a kill left: " + ", ".join(f"{k} {v}" for k, v in states.items())]
    checks = [
        "every row of every table equals that of an undisturbed build, every index passes verify --full, and "
        "nothing is left beside it"
    ]
    return Report(settings_of(options), checks, results, [table], notes)
