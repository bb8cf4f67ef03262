"""Several processes with a core each against one process with one core, the same corpus, `--workers` and all.

What is run is the command itself, `neuron-indexer build --workers N --threads 1`, with the packaged MiniLM.
Each worker loads the model and writes its part, and the parts are merged in the end: that is in the whole,
and not in the pass over the corpus.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.child import ChildError, measured
from benchmarks.measure import ratios, shown_ratio, spread
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from indexer import open_index
from indexer.commands.demo import model_folder, write_corpus
from indexer.errors import IndexerError


@dataclass(frozen=True)
class Options:
    workers: int = option(2, "processes, a core each")
    characters: int = option(6_000_000, "of the corpus; a token has some 3.5", quick=20_000)
    repeats: int = option(3, "builds by one and by several, in turns", quick=1)
    layers: str | None = option(None, "layers to index, as 0-5,7; all of them without it", quick="0")


@dataclass(frozen=True)
class Run:
    """Seconds of a build, whole and of the pass over the corpus alone, and what its index holds.

    counts: int64 [layers * units], counted tokens. bins: int64, values in each bin, of all units together.
    """

    seconds: float
    pass_seconds: float
    tokens: int
    counts: NDArray[np.int64]
    bins: NDArray[np.int64]


def run(options: Options) -> Report:
    """Build in turns; raises WrongResultError where the indexes do not hold the same tokens."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        corpus = write_corpus(folder / "corpus", options.characters)
        runs: dict[int, list[Run]] = {1: [], options.workers: []}
        for number in range(options.repeats):
            for workers, found in runs.items():
                found.append(_built(corpus, folder / "an.index", workers, options))
                say(
                    f"round {number + 1} of {options.repeats}: {workers} at work took "
                    f"{found[-1].seconds:.1f} s, {found[-1].pass_seconds:.1f} s of them in the corpus"
                )
    difference = _compared([one for found in runs.values() for one in found])
    return _report(options, runs, difference)


def _built(corpus: tuple[str, ...], output: Path, workers: int, options: Options) -> Run:
    """One build in processes of its own, and its index verified; raises WrongResultError."""
    command = [sys.executable, "-m", "indexer", "build", str(model_folder()), *corpus]
    command += ["--output", str(output), "--workers", str(workers), "--threads", "1"]
    # as many pieces as can be shared out evenly
    command += ["--piece-bytes", str(max(1, options.characters // (8 * options.workers)))]
    command += ["--layers", options.layers] if options.layers is not None else []
    try:
        taken = measured(command)
        with open_index(output) as index:
            index.verify(full=True)
            totals = index.info()["totals"]
            units = index.sql("SELECT count FROM units ORDER BY site, layer, unit")
            bins = index.sql("SELECT sum(count)::BIGINT AS n FROM histograms GROUP BY lower ORDER BY lower")
    except (ChildError, IndexerError) as error:
        raise WrongResultError(f"the build by {workers}: {error}") from error
    shutil.rmtree(output)
    return Run(
        taken.seconds,
        totals["model_seconds"] / workers,
        int(totals["counted_tokens"]),
        units["count"].to_numpy(),
        bins["n"].to_numpy(),
    )


def _compared(runs: list[Run]) -> float:
    """The largest share of values that fell into another bin; raises WrongResultError where tokens differ."""
    first, *others = runs
    if any(not np.array_equal(one.counts, first.counts) for one in others):
        raise WrongResultError("the indexes do not hold the same tokens")
    moved = 0
    for one in others:
        if one.bins.shape != first.bins.shape:
            raise WrongResultError("the indexes do not have the same bins")
        # a value that moved is missing in one bin and too many in another
        moved = max(moved, int(np.abs(one.bins - first.bins).sum()) // 2)
    share = moved / int(first.bins.sum())
    # batches are cut in other places, which rounds activations otherwise
    if share > 1e-4:
        raise WrongResultError(f"{share:.2%} of all values are in other bins")
    return share


def _report(options: Options, runs: dict[int, list[Run]], moved: float) -> Report:
    alone, together = runs[1], runs[options.workers]
    results: dict[str, Any] = {
        str(workers): {
            "seconds": spread([one.seconds for one in found]),
            "pass_seconds": spread([one.pass_seconds for one in found]),
            "tokens": found[0].tokens,
        }
        for workers, found in runs.items()
    }
    results["times_as_fast"] = ratios([one.seconds for one in alone], [one.seconds for one in together])
    results["times_as_fast_in_the_corpus"] = ratios(
        [one.pass_seconds for one in alone], [one.pass_seconds for one in together]
    )
    results["values_in_other_bins"] = moved
    rows: list[tuple[str, ...]] = [
        (
            str(workers),
            f"{found[0].tokens:,}",
            f"{results[str(workers)]['seconds']['median']:.1f}",
            f"{results[str(workers)]['pass_seconds']['median']:.1f}",
            shown_ratio(results["times_as_fast"]) if found is together else "",
            shown_ratio(results["times_as_fast_in_the_corpus"]) if found is together else "",
        )
        for workers, found in runs.items()
    ]
    columns = ("workers", "tokens", "seconds", "in the corpus", "x one", "x one, in the corpus")
    checks = [
        "every index was verified in full, and all hold the same tokens",
        f"{moved:.1e} of all values at most fell into another bin, as batches are cut in other places",
    ]
    table = Table("Processes with a core each, the packaged MiniLM", columns, rows)
    return Report(settings_of(options), checks, results, [table])
