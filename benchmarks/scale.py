"""A plan for a large corpus: what checkpoints, failures, partial indexes and their merge cost, by simulation.

Seconds and bytes per unit of writing and merging partial indexes are measured in the same run, on a small
synthetic one. Tokens/s of a worker and its failures are inputs, and assumptions until measured. A worker
writes a checkpoint of c seconds after every interval of work, fails at random times (exponential), and then
loses what it did since its last checkpoint and the time of a restart. The mean time of an interval is known
in closed form, M e^(R/M) (e^((I + c)/M) - 1) with mean time between failures M and restart R (J. T. Daly,
2006), and the simulation must agree with it where failures are frequent.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.merge_inputs import Inputs
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.synthetic import Size, write_synthetic
from indexer import open_index
from indexer.building.pace import LEAST_RATIO
from indexer.index.manifest import read_manifest
from indexer.partials.merge import merge_indexes
from indexer.talk import in_bytes, in_time

DAY = 86_400.0
INPUTS = 4
# as many standard errors as a right simulation passes but once in millions
STANDARD_ERRORS = 5.0
CHECKED = 2000


@dataclass(frozen=True)
class Model:
    """units: neurons. tokens_per_second: of one worker, assumed."""

    name: str
    units: int
    tokens_per_second: float


MODELS = (Model("GPT-2 small", 36_864, 1.0e6), Model("Llama-3.1-8B", 458_752, 30_000.0))
CORPORA = ((1e9, 1), (1e10, 8), (1e11, 64), (1e12, 512))


@dataclass(frozen=True)
class Options:
    units: int = option(8_192, "units of the partial index that is measured", quick=512)
    trials: int = option(400, "simulated workers of each plan", quick=60)
    days_between_failures: int = option(30, "mean time between the failures of one worker, assumed")
    restart_seconds: int = option(300, "from a failure until the worker works again, assumed")
    minutes: int = option(5, "least minutes between checkpoints, as in --checkpoint-minutes")


@dataclass(frozen=True)
class Constants:
    """Measured, per unit: seconds to write a partial index and its bytes, seconds to merge it."""

    write_seconds: float
    bytes: float
    merge_seconds: float


@dataclass(frozen=True)
class Plan:
    """One worker's part of a build: seconds of work, and how checkpoints and failures interrupt it."""

    work: float
    interval: float
    checkpoint: float
    between_failures: float
    restart: float

    def expected(self) -> float:
        """Mean seconds until the work is done, in closed form."""
        mean, rest = self.between_failures, self.work % self.interval
        whole = int(self.work // self.interval)

        def segment(work: float) -> float:
            took = work + self.checkpoint
            return mean * math.exp(self.restart / mean) * math.expm1(took / mean)

        return whole * segment(self.interval) + (segment(rest) if rest else 0.0)

    def simulated(self, random: np.random.Generator) -> float:
        """Seconds until the work is done, once. Failures come during restarts too."""
        elapsed, done = 0.0, 0.0
        failure = random.exponential(self.between_failures)
        while done < self.work:
            part = min(self.interval, self.work - done)
            end = elapsed + part + self.checkpoint
            if end <= failure:
                elapsed, done = end, done + part
                continue
            elapsed = failure
            while True:
                failure = elapsed + random.exponential(self.between_failures)
                if failure > elapsed + self.restart:
                    elapsed += self.restart
                    break
                elapsed = failure
        return elapsed


def run(options: Options) -> Report:
    """Measure the constants, simulate every plan, and compare each with its expectation."""
    constants = _measured(options)
    rows = []
    for model in MODELS:
        for tokens, workers in CORPORA:
            rows.append(_plan(model, tokens, workers, constants, options))
            say(f"{model.name}, {tokens:.0e} tokens: simulated")
    checks = [
        f"with failures every other interval, the mean of {CHECKED} simulated workers of every plan lies "
        f"within {STANDARD_ERRORS:.0f} standard errors of its closed form",
        f"the merge of {INPUTS} indexes that was timed counts the tokens of all, and verifies in full",
    ]
    notes = [
        "tokens/s, failures and restarts are assumptions, and inputs of this case; seconds and bytes per "
        "unit were measured in this run"
    ]
    results = {"constants": asdict(constants), "plans": rows}
    return Report(settings_of(options), checks, results, [_table(rows)], notes)


def _measured(options: Options) -> Constants:
    """Write a partial index, and merge some, in a folder of their own. Raises WrongResultError."""
    size = Size(1, options.units, documents=20_000)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        write_synthetic(folder / "once.index", size)
        begin = time.perf_counter()
        write_synthetic(folder / "again.index", size)
        written = time.perf_counter() - begin
        (folder / "inputs").mkdir()
        inputs = Inputs(folder / "inputs", size, 1, INPUTS, INPUTS)
        for content in range(INPUTS):
            inputs.write_content(content)
        paths = [inputs.write_input(number) for number in range(INPUTS)]
        begin = time.perf_counter()
        merge_indexes(paths, folder / "merged.index")
        merged = time.perf_counter() - begin
        with open_index(folder / "merged.index") as index:
            index.verify(full=True)
            count = index.unit(0, 0)["count"][0].as_py()
        if count != INPUTS * size.count:
            raise WrongResultError(f"the merged index counts {count:,} tokens, not {INPUTS * size.count:,}")
        size_on_disk = read_manifest(folder / "again.index").bytes
    return Constants(written / options.units, size_on_disk / options.units, merged / options.units / INPUTS)


def _plan(
    model: Model, tokens: float, workers: int, constants: Constants, options: Options
) -> dict[str, Any]:
    checkpoint = constants.write_seconds * model.units
    mean = options.days_between_failures * DAY
    interval = max(options.minutes * 60.0, LEAST_RATIO * checkpoint)
    work = tokens / workers / model.tokens_per_second
    plan = Plan(work, min(interval, work), checkpoint, mean, float(options.restart_seconds))
    random = np.random.default_rng(0)
    taken = np.array([plan.simulated(random) for _ in range(options.trials)])
    expected, found = plan.expected(), float(taken.mean())
    _check(replace(plan, work=20 * plan.interval, between_failures=2 * plan.interval))
    return {
        "model": model.name,
        "tokens": tokens,
        "workers": workers,
        "tokens_per_second": model.tokens_per_second,
        "work_seconds": work,
        "checkpoint_seconds": checkpoint,
        "interval_seconds": plan.interval,
        "best_interval_seconds": math.sqrt(2 * checkpoint * mean),
        "checkpoints_share": checkpoint / plan.interval,
        "failures_share": expected / (work + checkpoint * math.ceil(work / plan.interval)) - 1,
        "expected_seconds": expected,
        "simulated_seconds": found,
        "slowest_seconds": float(np.quantile(taken, 1 - 1 / max(2, workers))),
        "partial_bytes": constants.bytes * model.units,
        "storage_bytes": constants.bytes * model.units * workers,
        "merge_seconds": constants.merge_seconds * model.units * workers,
    }


def _check(plan: Plan) -> None:
    """Raises WrongResultError where simulation and closed form disagree."""
    random = np.random.default_rng(1)
    taken = np.array([plan.simulated(random) for _ in range(CHECKED)])
    error = float(taken.std()) / math.sqrt(CHECKED)
    if abs(taken.mean() - plan.expected()) > STANDARD_ERRORS * error:
        raise WrongResultError(
            f"simulated {taken.mean():.0f} s, in closed form {plan.expected():.0f} s: {plan}"
        )


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = (
        "plan", "workers", "work", "every", "checkpoints", "failures", "done in", "partials", "merge"
    )  # fmt: skip
    cells: list[tuple[str, ...]] = [
        (
            f"{row['model']}, {row['tokens']:.0e} tokens",
            str(row["workers"]),
            in_time(row["work_seconds"]),
            in_time(row["interval_seconds"]),
            f"{row['checkpoints_share']:.2%}",
            f"{row['failures_share']:.2%}",
            in_time(row["slowest_seconds"]),
            in_bytes(row["storage_bytes"]),
            in_time(row["merge_seconds"]),
        )
        for row in rows
    ]
    return Table("Large corpora: time, failures, storage, merge by one process", columns, cells)
