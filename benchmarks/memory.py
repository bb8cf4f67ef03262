"""Peak memory of a whole build, over a corpus and over one ten times as large, each in a fresh process; and
what the build said that it would take, before it began.

What is run is the command itself, `neuron-indexer build`, with the packaged MiniLM and everything on. The
indexes are verified, every law of their content included.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import ChildError, measured
from benchmarks.measure import ratios, shown_ratio, spread
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from indexer import open_index
from indexer.commands.demo import model_folder, write_corpus
from indexer.config.build import CONTEXT
from indexer.errors import IndexerError

FACTOR = 10
# A token of source code has fewer: the corpus is larger than what is taken of it.
CHARACTERS_PER_TOKEN = 5


@dataclass(frozen=True)
class Options:
    tokens: int = option(50_000, "counted tokens of the smaller corpus", quick=300)
    repeats: int = option(2, "builds over each", quick=1)
    threads: int | None = option(None, "of a build; without it the machine's cores", quick=1)
    dtype: str = option("float32", "of weights and activations", choices=("float32", "bfloat16"))
    layers: str | None = option(None, "layers to index, as 0-5,7; all of them without it", quick="0")


@dataclass(frozen=True)
class Corpus:
    """A folder of texts and how many counted tokens are taken of it."""

    files: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class Run:
    """What one build took and made."""

    peak_bytes: int
    said_bytes: int
    seconds: float
    tokens: int


def run(options: Options) -> Report:
    """Build in turns over both corpora; verify every index."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        small, large = (_corpus(folder / f"{factor}x", factor * options.tokens) for factor in (1, FACTOR))
        runs: dict[str, list[Run]] = {"1x": [], f"{FACTOR}x": []}
        for number in range(1, options.repeats + 1):
            for size, corpus in zip(runs, (small, large), strict=True):
                output = folder / f"{size}.index"
                found = _built(corpus, output, options)
                runs[size].append(found)
                say(f"build {number} of {options.repeats}, {size}: {found.peak_bytes / 1e6:,.0f} MB")
                shutil.rmtree(output)
    return _report(options, runs)


def _corpus(folder: Path, tokens: int) -> Corpus:
    """Texts of the standard library that surely hold so many tokens."""
    wanted = tokens * CHARACTERS_PER_TOKEN
    files = write_corpus(folder, wanted)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if written < wanted:
        most = written // CHARACTERS_PER_TOKEN // FACTOR
        raise IndexerError(f"the standard library has less text than {tokens:,} tokens; use --tokens {most}")
    return Corpus(files, tokens)


def _built(corpus: Corpus, output: Path, options: Options) -> Run:
    """One build in a process of its own, and its index verified; raises WrongResultError."""
    command = [sys.executable, "-m", "indexer", "build", str(model_folder()), *corpus.files]
    command += ["--output", str(output), "--max-tokens", str(corpus.tokens), "--dtype", options.dtype]
    for name, value in (("--threads", options.threads), ("--layers", options.layers)):
        command += [name, str(value)] if value is not None else []
    try:
        taken = measured(command)
    except ChildError as error:
        raise WrongResultError(f"the build of {corpus.tokens:,} tokens failed: {error}") from error
    tokens, said = _verified(corpus, output)
    return Run(taken.peak_bytes, said, taken.seconds, tokens)


def _verified(corpus: Corpus, output: Path) -> tuple[int, int]:
    """Counted tokens and the memory that was said, of a right index; raises WrongResultError for another."""
    try:
        with open_index(output) as index:
            index.verify(full=True)
            totals = index.info()["totals"]
    except IndexerError as error:
        raise WrongResultError(f"the index of {corpus.tokens:,} tokens: {error}") from error
    tokens, context = int(totals["counted_tokens"]), CONTEXT
    # a last sequence that would pass the bound is left out whole
    if not corpus.tokens - context < tokens <= corpus.tokens:
        raise WrongResultError(f"the index has {tokens:,} counted tokens, asked for were {corpus.tokens:,}")
    return tokens, int(totals["peak_memory_planned_bytes"])


def _report(options: Options, runs: dict[str, list[Run]]) -> Report:
    small, large = runs.values()

    def each(found: list[Run], of: Callable[[Run], float]) -> list[float]:
        return [of(one) for one in found]

    results: dict[str, Any] = {
        size: {
            "peak_bytes": spread(each(found, lambda one: one.peak_bytes)),
            "said_bytes": spread(each(found, lambda one: one.said_bytes)),
            "said_of_peak": spread(each(found, lambda one: one.said_bytes / one.peak_bytes)),
            "seconds": spread(each(found, lambda one: one.seconds)),
            "tokens": found[0].tokens,
        }
        for size, found in runs.items()
    }
    peaks = [each(found, lambda one: one.peak_bytes) for found in (large, small)]
    results["ratio"] = ratios(*peaks)
    rows = [
        (
            size,
            f"{found[0].tokens:,}",
            *(f"{results[size]['peak_bytes'][field] / 1e6:,.0f}" for field in ("median", "min", "max")),
            f"{results[size]['said_bytes']['median'] / 1e6:,.0f}",
            " to ".join(f"{results[size]['said_of_peak'][field]:.3f}" for field in ("min", "max")),
            f"{results[size]['seconds']['median']:.1f}",
            shown_ratio(results["ratio"]) if found is large else "",
        )
        for size, found in runs.items()
    ]
    columns = (
        *("corpus", "tokens", "peak MB", "lowest", "highest", "said MB", "of peak"),
        *("seconds", "x the smaller"),
    )
    table = Table("Peak memory of a whole build, the packaged MiniLM", columns, rows)
    checks = ["every index was verified in full: files, digests, schemas, and the laws of its content"]
    return Report(settings_of(options), checks, results, [table])
