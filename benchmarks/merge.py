"""Peak memory and time of merging many partial indexes, beside a plain read of all that is merged.

The merge runs in a process of its own, once over an eighth of the inputs and once over all of them. Inputs
are synthetic, see merge_inputs.py; the merged index is verified in full, and some units against their
examples in every input.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.child import ChildError, Measured, measured
from benchmarks.measure import timed
from benchmarks.merge_inputs import Inputs
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.synthetic import Size
from indexer import open_index
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.read import Index
from indexer.index.restore import LayerFiles
from indexer.names import MLP, Key, Unit

MERGE = """
import sys
from pathlib import Path
from indexer.partials.merge import merge_indexes
merge_indexes([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]))
"""
FEWER = 8
SAMPLED = 24
BIN_COLUMNS = ("lower", "upper", "count")
WINDOWS = ("token_ids", "activations")
ORDER = ("value", "document", "sequence", "position")


@dataclass(frozen=True)
class Options:
    inputs: int = option(64, "indexes to merge", quick=9)
    layers: int = option(32, "layers of each", quick=2)
    units: int = option(14_336, "units of a layer", quick=64)
    top: int = option(20, "examples of a unit at either end", quick=4)
    window: int = option(64, "tokens of an example", quick=8)
    contents: int = option(48, "layers that are written and linked into the inputs", quick=5)
    documents: int = option(20_000, "documents that the examples of such a layer are from", quick=50)
    folder: str | None = option(None, "keeps the inputs for the next run; without it, they are deleted")

    @property
    def size(self) -> Size:
        return Size(1, self.units, self.top, self.top, self.window, documents=self.documents)


def run(options: Options) -> Report:
    """Make or reuse the inputs, merge them, and verify the result."""
    with ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        paths, inputs = _written(Path(folder), options)
        output = Path(folder) / "merged.index"
        runs: dict[int, Measured] = {}
        for count in sorted({max(2, options.inputs // FEWER), options.inputs}):
            shutil.rmtree(output, ignore_errors=True)
            runs[count] = _merged(paths[:count], output)
            say(f"{count} inputs: {runs[count].peak_bytes / 1e6:,.0f} MB, {runs[count].seconds:.1f} s")
        checks = _checked(output, inputs)
        read = _plain_read(inputs)
        merged_bytes = read_manifest(output).bytes
        input_bytes = read_manifest(paths[0]).bytes
        shutil.rmtree(output)
    return _report(options, runs, read, input_bytes, merged_bytes, checks)


def _written(folder: Path, options: Options) -> tuple[list[Path], Inputs]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IndexerError(f"--folder {folder}: {error.strerror}; name another") from error
    inputs = Inputs(folder, options.size, options.layers, options.inputs, options.contents)
    for content in range(options.contents):
        inputs.write_content(content)
    say(f"{options.contents} layers written; linking them into {options.inputs} inputs")
    return [inputs.write_input(number) for number in range(options.inputs)], inputs


def _merged(paths: list[Path], output: Path) -> Measured:
    try:
        return measured([sys.executable, "-c", MERGE, str(output), *map(str, paths)])
    except ChildError as error:
        raise WrongResultError(f"merging {len(paths)} inputs failed: {error}") from error


def _plain_read(inputs: Inputs) -> float:
    """Seconds to read everything of the layers of one input and do nothing with it, times the inputs."""

    def read() -> None:
        for layer in range(inputs.layers):
            path = inputs.content_path(inputs.content(0, layer))
            with LayerFiles(path, read_manifest(path), Key(MLP, 0)) as files:
                for codec in files.codecs:
                    for _ in files.groups(codec.file(files.key), codec.columns):
                        pass

    side = timed(read)
    side()
    return side() * inputs.inputs


def _checked(output: Path, inputs: Inputs) -> list[str]:
    """Raises WrongResultError where the merged index is not what it must be."""
    try:
        with open_index(output) as index:
            index.verify(full=True)
            counts = index.sql("SELECT DISTINCT count FROM units")["count"].to_pylist()
            if counts != [inputs.inputs * inputs.size.count]:
                counted = " or ".join(f"{count:,}" for count in counts)
                raise WrongResultError(f"a unit counts {counted} tokens")
            units = _sample(inputs)
            for unit in units:
                _check_unit(index, unit, inputs)
    except IndexerError as error:
        raise WrongResultError(f"the merged index: {error}") from error
    return [
        "the merged index was verified in full: files, digests, schemas, and the laws of its content",
        f"counted tokens are those of {inputs.inputs} inputs; examples, windows and histograms of "
        f"{len(units)} units are what their rows in all inputs give",
    ]


def _sample(inputs: Inputs) -> list[Unit]:
    random = np.random.default_rng(0)
    last = Unit(MLP, inputs.layers - 1, inputs.size.units - 1)
    drawn = [
        Unit(MLP, int(random.integers(inputs.layers)), int(random.integers(inputs.size.units)))
        for _ in range(SAMPLED)
    ]
    return [Unit(MLP, 0, 0), last, *drawn]


def _check_unit(index: Index, unit: Unit, inputs: Inputs) -> None:
    """A unit's record against those of all inputs, sorted and added in Python."""
    found = index.record(unit)
    rows: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {"top": {}, "bottom": {}}
    bins: dict[float, int] = {}
    for number in range(inputs.inputs):
        with open_index(inputs.content_path(inputs.content(number, unit.layer))) as part:
            record = part.record(Unit(MLP, 0, unit.unit))
        for lower, upper, count in _columns(record.histogram, BIN_COLUMNS):
            bins[lower + upper] = bins.get(lower + upper, 0) + count
        for kind, kept in rows.items():
            for row in getattr(record, kind).to_pylist():
                sign = -1 if kind == "top" else 1
                kept[sign * row["value"], *(row[name] for name in ORDER[1:])] = row
    for kind, kept in rows.items():
        expected = [kept[key] for key in sorted(kept)[: inputs.size.top]]
        for row, wanted in zip(getattr(found, kind).to_pylist(), expected, strict=True):
            for name in (*ORDER, "window_start", *WINDOWS):
                if row[name] != wanted[name]:
                    raise WrongResultError(f"{unit}, {kind} {row['rank']}: {name} is {row[name]}")
    if {lower + upper: count for lower, upper, count in _columns(found.histogram, BIN_COLUMNS)} != bins:
        raise WrongResultError(f"{unit}: its histogram is not the sum of those of the inputs")


def _columns(table: pa.Table, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def _report(
    options: Options,
    runs: dict[int, Measured],
    read: float,
    input_bytes: int,
    merged_bytes: int,
    checks: list[str],
) -> Report:
    units = options.layers * options.units
    results: dict[str, Any] = {
        "units": units,
        "input_bytes": input_bytes,
        "merged_bytes": merged_bytes,
        "inputs": {
            str(count): {
                "peak_bytes": taken.peak_bytes,
                "seconds": taken.seconds,
                "input_bytes_per_second": count * input_bytes / taken.seconds,
            }
            for count, taken in runs.items()
        },
        "plain_read_seconds": read,
        "against_plain_read": runs[max(runs)].seconds / read,
    }
    rows: list[tuple[str, ...]] = [
        (str(count), f"{taken.peak_bytes / 1e6:,.0f}", f"{taken.seconds:,.1f}",
         f"{1e6 * taken.seconds / (count * units):.1f}")
        for count, taken in runs.items()
    ]  # fmt: skip
    table = Table(
        f"Merging indexes of {units:,} units, {input_bytes / 1e9:.2f} GB each",
        ("inputs", "peak MB", "seconds", "us a unit and input"),
        rows,
    )
    notes = [f"reading all {max(runs)} inputs and doing nothing: {read:,.1f} s, from one of them"]
    return Report(settings_of(options, leave_out=("folder",)), checks, results, [table], notes)
