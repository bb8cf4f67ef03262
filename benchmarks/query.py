"""How long questions take on a large index: one unit's full record, a token search, a scan of the units.

The index is synthetic: the rows of a real one, with made-up numbers. Warm: its files are open and were read
once. Every unit asked for is another one, in another layer than the one before; asked again, its rows were
read before as well. And what one unit's record takes where files are read over HTTP by ranges: requests of a
file, and bytes of all files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import percentile, timed
from benchmarks.options import option, settings_of
from benchmarks.query_check import check_records, check_scan, check_search
from benchmarks.questions import SCAN, SEARCH, four_calls, in_sql
from benchmarks.ranges import remote
from benchmarks.report import Report, Table, say
from benchmarks.synthetic import Size, write_synthetic
from indexer import open_index
from indexer.errors import IndexerError
from indexer.index.read import Index

SEED = 0
SAMPLED = 32


@dataclass(frozen=True)
class Options:
    layers: int = option(32, "layers of the index", quick=2)
    units: int = option(14_336, "units of a layer", quick=64)
    top: int = option(20, "examples of a unit at either end")
    window: int = option(64, "tokens of an example")
    records: int = option(500, "units asked for", quick=8)
    scans: int = option(20, "searches, and scans", quick=3)
    folder: str | None = option(None, "keeps the index for the next run; without it, it is deleted")

    @property
    def size(self) -> Size:
        return Size(self.layers, self.units, self.top, self.top, self.window)


def run(options: Options) -> Report:
    """Make or reuse the index, verify its answers, and time them."""
    with ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        index = stack.enter_context(_opened(Path(folder), options.size))
        units = _units(options)
        tokens = _tokens(index, 1 + options.scans)
        checks = [
            check_records(index, [*units[:SAMPLED], "mlp.0.0"], options.size, SEED),
            check_search(index, tokens[0]),
            check_scan(index),
        ]
        say("answers checked; measuring")
        seconds = _measured(index, units, tokens, options)
        facts = index.info()
        ranges = _ranges(index.path, units, options.layers)
    results = {
        "units": facts["units"],
        "examples": facts["examples"],
        "bytes": facts["bytes"],
        "milliseconds": {name: _summary(taken) for name, taken in seconds.items()},
        "ranges": ranges,
    }
    tables = [_table(results), _ranges_table(ranges)]
    return Report(settings_of(options, leave_out=("folder",)), checks, results, tables)


def _opened(folder: Path, size: Size) -> Index:
    """The synthetic index of this size in the folder, written where it is not there."""
    path = folder / f"synthetic-{size.layers}x{size.units}-k{size.top}-w{size.window}-seed{SEED}.index"
    if path.exists():
        say(f"using {path}")
    else:
        say(f"writing a synthetic index of {size.layers * size.units:,} units")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IndexerError(f"--folder {folder}: {error.strerror}; name another") from error
        write_synthetic(path, size, seed=SEED)
    return open_index(path)


def _units(options: Options) -> list[str]:
    """Names of units, one after the other in another layer; the first ones, one of each layer, to warm up."""
    random = np.random.default_rng(1)
    drawn = random.integers(options.units, size=options.layers + options.records)
    return [f"mlp.{number % options.layers}.{unit}" for number, unit in enumerate(drawn)]


def _tokens(index: Index, count: int) -> list[str]:
    """Tokens at some peaks: some frequent, most rare."""
    query = "SELECT DISTINCT token FROM top(0, 0) UNION SELECT DISTINCT token FROM top(0, 1) ORDER BY token"
    found = index.sql(query)["token"].to_pylist()
    return [found[number % len(found)] for number in range(count)]


def _measured(
    index: Index, units: Sequence[str], tokens: Sequence[str], options: Options
) -> dict[str, list[float]]:
    """Seconds of every question but the first ones of a kind, which open the files."""
    warm = options.layers
    return {
        "record of a unit": _asked(index.record, units, warm),
        "record of a unit, asked again": _asked(index.record, units[warm:], 0),
        "record of a unit in four calls": _asked(lambda unit: four_calls(index, unit), units, warm),
        "record of a unit in SQL": _asked(lambda unit: in_sql(index, unit), units, warm),
        "token search": _asked(lambda token: index.sql(SEARCH, {"token": token}), tokens, 1),
        "scan of all units": _asked(lambda _: index.sql(SCAN), range(1 + options.scans), 1),
    }


def _ranges(path: Path, units: Sequence[str], warm: int) -> dict[str, dict[str, float]]:
    """Requests of the file that is asked most, and bytes of all, of one record over HTTP; p50 and most.

    first: with opening the files of a layer. warm: the files of all layers are open.
    """
    records: list[tuple[int, int]] = []
    with remote(path) as (index, asked):
        for unit in units:
            index.record(unit)
            records.append((max(asked.requests.values()), sum(asked.bytes.values())))
            asked.clear()
    found = {}
    for name, part in (("first", records[:warm]), ("warm", records[warm:])):
        requests, size = (sorted(column) for column in zip(*part, strict=True))
        found[name] = {
            "requests of a file, p50": percentile(requests, 0.5), "requests of a file, most": requests[-1],
            "bytes, p50": percentile(size, 0.5), "bytes, most": size[-1],
        }  # fmt: skip
    return found


def _asked(ask: Callable[[Any], object], questions: Sequence[Any], warm: int) -> list[float]:
    for question in questions[:warm]:
        ask(question)
    return [timed(partial(ask, question))() for question in questions[warm:]]


def _summary(seconds: list[float]) -> dict[str, float | int]:
    return {
        "p50": 1e3 * percentile(seconds, 0.5),
        "p95": 1e3 * percentile(seconds, 0.95),
        "min": 1e3 * min(seconds),
        "max": 1e3 * max(seconds),
        "asked": len(seconds),
    }


def _ranges_table(ranges: dict[str, dict[str, float]]) -> Table:
    heads = list(ranges["warm"])
    rows = [(name, *(f"{row[head]:,.0f}" for head in heads)) for name, row in ranges.items()]
    return Table("record of a unit over HTTP ranges", ("", *heads), rows)


def _table(results: dict[str, Any]) -> Table:
    title = f"{results['units']:,} units, {results['examples']:,} examples, {results['bytes'] / 1e9:.2f} GB"
    rows = [
        (name, *(f"{row[field]:.2f}" for field in ("p50", "p95", "min", "max")), str(row["asked"]))
        for name, row in results["milliseconds"].items()
    ]
    return Table(title, ("question", "p50 ms", "p95 ms", "lowest", "highest", "asked"), rows)
