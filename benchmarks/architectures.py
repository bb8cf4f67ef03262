"""Which architectures are indexed right: every model type of transformers that takes text, made small.

Random weights and biases, saved as the checkpoint people have, with its head; indexed over a few documents of
different lengths; compared with plain pre-hooks, each sequence run alone.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.architectures_check import Verdict, judged
from benchmarks.architectures_small import DATA
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, say
from indexer.errors import IndexerError

VERDICTS = ("RIGHT", "PARTIAL", "WRONG", "CRASH", "REFUSED", "NOT MADE")
KEPT = "architectures.jsonl"


@dataclass(frozen=True)
class Options:
    only: str | None = option(None, "model types, as bert,gpt2; all without it", quick="bert,llama,mixtral")
    processes: int = option(2, "that share the work", quick=1)
    folder: str | None = option(None, "verdicts are kept here, and those that lie here are not sought again")


def run(options: Options) -> Report:
    """Judge the model types, two at a time."""
    names = _chosen(options.only)
    with tempfile.TemporaryDirectory(prefix="architectures-") as scratch:
        folder = Path(options.folder or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = _kept(folder / KEPT) if options.only is None else {}
        missing = [name for name in names if name not in found]
        with (folder / KEPT).open("a", encoding="utf-8") as kept:
            for verdict in _judged(missing, Path(scratch), options.processes):
                found[verdict.name] = verdict
                print(json.dumps(verdict.plain()), file=kept, flush=True)
                note = f": {verdict.note}" if verdict.note else ""
                say(f"{len(found)} of {len(names)}: {verdict.name} {verdict.verdict}{note}")
    before = len(names) - len(missing)
    notes = [f"{before} of {len(names)} verdicts were kept from earlier runs"] if before else []
    return _report(options, [found[name] for name in names], notes)


def _chosen(only: str | None) -> list[str]:
    everything = [name for names in DATA["sorts"].values() for name in names]
    if only is None:
        return everything
    names = only.split(",")
    unknown = [name for name in names if name not in everything]
    if unknown:
        raise IndexerError(f"--only {unknown[0]}: not in benchmarks/architectures.toml")
    return names


def _kept(path: Path) -> dict[str, Verdict]:
    if not path.exists():
        return {}
    found = (Verdict(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    return {verdict.name: verdict for verdict in found}


def _judged(names: Iterable[str], scratch: Path, processes: int) -> Iterator[Verdict]:
    # a model that fails in a process must not meet what the one before it has left of threads
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running = [pool.submit(judged, name, scratch / name) for name in names]
        for done in as_completed(running):
            yield done.result()


def _report(options: Options, found: list[Verdict], notes: list[str]) -> Report:
    by_name = {verdict.name: verdict for verdict in found}
    counts: dict[str, Counter[str]] = {}
    for sort, names in DATA["sorts"].items():
        here = Counter(by_name[name].verdict for name in names if name in by_name)
        if here:
            counts[sort] = here
    counts["all but parts"] = sum(
        (count for sort, count in counts.items() if sort != "text part"), Counter[str]()
    )
    rows = [(sort, *(f"{count[verdict] or ''}" for verdict in VERDICTS)) for sort, count in counts.items()]
    bad: list[tuple[str, ...]] = [
        (verdict.name, verdict.verdict, verdict.note)
        for verdict in found
        if verdict.verdict in ("PARTIAL", "WRONG", "CRASH")
    ]
    tables = [Table("Architectures", ("", *VERDICTS), rows)]
    if bad:
        tables.append(Table("Not right, nor refused", ("", "", ""), bad))
    results = {
        "counts": {sort: dict(count) for sort, count in counts.items()},
        "verdicts": [verdict.plain() for verdict in found],
    }
    checks = [
        "of every unit count, maximum, minimum and mean, and the value at its first example's place, against "
        "plain pre-hooks on transformers' model with each sequence run alone"
    ]
    return Report(settings_of(options, leave_out=("processes", "folder")), checks, results, tables, notes)
