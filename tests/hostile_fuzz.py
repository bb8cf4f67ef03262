"""Asks a damaged index everything, many times; run as a program, so that a crash ends no test run.

python -m tests.hostile_fuzz INDEX TRIALS SEED: for each Parquet file, TRIALS times, a few bytes are changed;
every other time the manifest is made to agree, as in an index made to harm. Prints how many changes were
told, how many read as before, and the memory that it took. Ends with status 1 and a line where anything but
an IndexerError was raised; where `verify` missed a change that the manifest does not agree with; and where
rows differed then.
"""

from __future__ import annotations

import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

import indexer
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.index.schema import MANIFEST
from tests.hostile_cases import sign

UNITS = ("mlp.0.0", "mlp.0.7", "mlp.0.19")
QUERIES = (
    "FROM units ORDER BY ALL",
    "FROM examples ORDER BY ALL",
    "FROM histograms ORDER BY ALL",
    "FROM documents ORDER BY ALL",
    "SELECT count(token) FROM vocabulary",
    "FROM panel ORDER BY ALL",
    "FROM panel_activations ORDER BY ALL",
    "FROM top(0, 7)",
)
# address space, not memory: allocators reserve far more than they use
MOST_BYTES = 32 << 30
# reads a page without its checksum, so rows may differ
UNCHECKED = frozenset(QUERIES)


def questions() -> dict[str, Callable[[Index], Any]]:
    """Everything that can be asked, by name."""
    asked: dict[str, Callable[[Index], Any]] = {}
    for unit in UNITS:
        for method in ("unit", "top", "bottom", "histogram"):
            asked[f"{method} {unit}"] = lambda index, m=method, u=unit: getattr(index, m)(u)
    asked["panel"] = lambda index: pa.table({"a": index.panel("mlp.0").activations.tolist()})
    asked["panel row"] = lambda index: pa.table({"a": index.panel_row("mlp.0.7")})
    for query in QUERIES:
        asked[query] = lambda index, q=query: index.sql(q)
    return asked


def answers(path: Path) -> dict[str, Any]:
    """The answer to each question, or the line that it ended in."""
    found: dict[str, Any] = {}
    try:
        with indexer.open_index(path) as index:
            for name, ask in questions().items():
                try:
                    found[name] = ask(index).to_pylist()
                except IndexerError as error:
                    found[name] = error
            try:
                index.verify(full=True)
            except IndexerError as error:
                found["verify"] = error
    except IndexerError as error:
        found["open"] = error
    for error in found.values():
        assert not isinstance(error, IndexerError) or str(error).isprintable(), error
    return found


def changed(content: bytes, chosen: random.Random) -> bytes:
    """The bytes with some of them changed; half the time near the end, where the footer is."""
    damaged = bytearray(content)
    first = max(len(content) - 3_000, 0) if chosen.random() < 0.5 else 0
    for _ in range(chosen.choice((1, 1, 2, 8))):
        damaged[chosen.randrange(first, len(content))] = chosen.choice((0, 0xFF, 0x7F, chosen.randrange(256)))
    return bytes(damaged)


def check(found: dict[str, Any], whole: dict[str, Any], trial: str) -> None:
    """The answers of an index that does not agree with its manifest: none, or those of the whole one."""
    assert "verify" in found or "open" in found, f"{trial}: verify found nothing"
    for name, answer in found.items():
        differs = not isinstance(answer, IndexerError) and repr(answer) != repr(whole[name])
        assert not differs or name in UNCHECKED, f"{trial}: {name} has other rows"


def main(path: Path, trials: int, seed: int) -> None:
    """Damage each file in turn."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    chosen = random.Random(seed)
    whole = answers(path)
    assert not any(isinstance(answer, IndexerError) for answer in whole.values())
    manifest = (path / MANIFEST).read_bytes()
    told = same = 0
    for file in sorted(path.rglob("*.parquet")):
        content = file.read_bytes()
        for trial in range(trials):
            damaged = changed(content, chosen)
            if damaged == content:
                continue
            file.write_bytes(damaged)
            print(f"{file.name} {trial} {_peak()} MiB", file=sys.stderr, flush=True)
            if trial % 2:
                sign(path)
            found = answers(path)
            if not trial % 2:
                check(found, whole, f"{file.name} {trial}")
            (path / MANIFEST).write_bytes(manifest)
            told += any(isinstance(found[name], IndexerError) for name in found if name != "verify")
            same += all(not isinstance(found[name], IndexerError) for name in found if name != "verify")
        file.write_bytes(content)
    print(f"told {told}, read as before {same}, {_peak()} MiB")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
