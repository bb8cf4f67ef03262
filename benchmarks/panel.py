"""What the panel costs: its filling beside the pass over the corpus, its files beside the rest, its reading.

A build of the packaged MiniLM tells the first two. The matrix is that of a synthetic layer, read in turns
with a plain file of the same bytes; both are warm.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import ChildError, measured
from benchmarks.measure import interleaved, ratios, shown_ratio, spread, timed
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.synthetic import Size, write_synthetic
from indexer import open_index
from indexer.commands.demo import model_folder, write_corpus
from indexer.index.manifest import Manifest
from indexer.index.read import Index

# of a synthetic panel every other window is of 64 tokens, the others of 32
TOKENS_OF_TWO = 96
SAMPLED = 16


@dataclass(frozen=True)
class Options:
    tokens: int = option(300_000, "counted tokens of the build", quick=300)
    dtype: str = option("float32", "of weights and activations", choices=("float32", "bfloat16"))
    layers: str | None = option(None, "layers to index, as 0-5,7; all of them without it", quick="0")
    units: int = option(2_048, "of the layer that is read as a matrix", quick=40)
    panel: int = option(4_096, "tokens of that layer's panel, about", quick=200)
    rounds: int = option(15, "times that the matrix and the plain file are read", quick=2)


def run(options: Options) -> Report:
    """Build, look at what it says of itself, and read."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        results = {"build": _build(folder, options), "read": _read(folder, options)}
    build, read = results["build"], results["read"]
    rows: list[tuple[str, ...]] = [
        ("pass over the corpus, s", f"{build['pass_seconds']:.1f}"),
        ("filling the panel, s", f"{build['panel_seconds']:.1f} ({build['of_the_pass']:.1%})"),
        ("sequences, tokens filled", f"{build['sequences']}, {build['panel_tokens']:,}"),
        ("index without the panel, MB", f"{build['other_bytes'] / 1e6:,.1f}"),
        ("panel, MB", f"{build['panel_bytes'] / 1e6:,.1f} ({build['of_the_rest']:.1%})"),
        ("panel, bytes a unit", f"{build['bytes_a_unit']:,.0f}"),
    ]
    sides = {"matrix": "as a matrix", "plain": "a plain file of its bytes", "unit": "a unit alone"}
    times: list[tuple[str, ...]] = [
        (what, *(f"{1e3 * read[name][field]:.1f}" for field in ("median", "min", "max")))
        for name, what in sides.items()
    ]
    of_plain = shown_ratio(read["ratio"])
    tables = [
        Table(f"MiniLM, {options.dtype}, {build['tokens']:,} tokens", ("", "figure"), rows),
        Table(
            f"reading {options.units:,} units of {read['tokens']:,} tokens, {of_plain} of the plain file",
            ("", "median ms", "lowest", "highest"),
            times,
        ),
    ]
    checks = [
        "the index was verified in full, the panel's hashes and windows included",
        f"{SAMPLED} units read alone are columns of the matrix",
    ]
    return Report(settings_of(options), checks, results, tables)


def _build(folder: Path, options: Options) -> dict[str, Any]:
    """Seconds and bytes of a build in a process of its own."""
    output = folder / "minilm.index"
    files = write_corpus(folder / "corpus", 5 * options.tokens)
    command = [sys.executable, "-m", "indexer", "build", str(model_folder()), *files]
    command += ["--output", str(output), "--max-tokens", str(options.tokens), "--dtype", options.dtype]
    command += ["--layers", options.layers] if options.layers else []
    say("building")
    try:
        measured(command)
    except ChildError as error:
        raise WrongResultError(f"the build failed: {error}") from error
    with open_index(output) as index:
        index.verify(full=True)
        totals, units = index.manifest.totals, sum(entry.units for entry in index.manifest.layers)
        windows = index.panel(index.manifest.layers[0].key).windows
    panel, other = _bytes(index.manifest)
    places = zip(windows["document"].to_pylist(), windows["sequence"].to_pylist(), strict=True)
    return {
        "tokens": totals["counted_tokens"],
        "seconds": totals["seconds"],
        "pass_seconds": totals["model_seconds"],
        "panel_seconds": totals["panel_seconds"],
        "of_the_pass": totals["panel_seconds"] / totals["model_seconds"],
        "sequences": len({*places}),
        "panel_tokens": sum(map(len, windows["token_ids"].to_pylist())),
        "panel_bytes": panel,
        "other_bytes": other,
        "of_the_rest": panel / other,
        "bytes_a_unit": panel / units,
    }


def _bytes(manifest: Manifest) -> tuple[int, int]:
    """Of the panel's files, and of all others."""
    panel = sum(file.bytes for file in manifest.files if file.path.startswith("panel/"))
    return panel, manifest.bytes - panel


def _read(folder: Path, options: Options) -> dict[str, Any]:
    """Seconds of a layer's matrix, of a plain file of as many bytes, and of one unit."""
    panel = max(2 * options.panel // TOKENS_OF_TWO, 1)
    size = Size(layers=1, units=options.units, top=1, bottom=1, window=4, panel=panel)
    path = write_synthetic(folder / "synthetic.index", size)
    with open_index(path) as index:
        matrix = index.panel(0).activations
        np.save(folder / "plain.npy", matrix.T)
        units = np.random.default_rng(0).integers(0, options.units, SAMPLED).tolist()
        if any((index.panel_row(0, unit) != matrix[:, unit]).any() for unit in units):
            raise WrongResultError("a unit read alone is not a column of the matrix")
        sides = {
            "matrix": timed(lambda: index.panel(0)),
            "plain": timed(lambda: np.load(folder / "plain.npy")),
            "unit": timed(lambda: _one(index, units)),
        }
        seconds = interleaved(sides, options.rounds)
        seconds["unit"] = [one / SAMPLED for one in seconds["unit"]]
    found: dict[str, Any] = {name: spread(values) for name, values in seconds.items()}
    bytes_of_file = (path / "panel" / "mlp.0.parquet").stat().st_size
    facts = {"tokens": len(matrix), "bytes": matrix.nbytes, "file_bytes": bytes_of_file}
    return found | facts | {"ratio": ratios(seconds["matrix"], seconds["plain"])}


def _one(index: Index, units: list[int]) -> None:
    for unit in units:
        index.panel_row(0, unit)
