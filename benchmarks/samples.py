"""What fair samples cost: in a pass over a corpus, in an index, and in the states of a unit.

The same model builds over the same text with and without them, in turns; neither keeps a panel. Samples are
taken in the kernels, so what they cost is also told by these alone: how much longer they run, as a share of
the pass without samples. That is steadier than the passes, of which the model's own products are most.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from indexer_kernels import Keep

from benchmarks.measure import interleaved, ratios, shown_ratio, spread
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.subject import Subject, prepare
from indexer import open_index
from indexer.building.run import build
from indexer.index.read import Index

WITH, WITHOUT = "with samples", "without"
# what both indexes have is told by these
SHARED = (
    "FROM units ORDER BY layer, unit",
    "FROM histograms ORDER BY layer, unit, lower, upper",
    "SELECT layer, unit, kind, rank, value, document, sequence, position FROM examples "
    "WHERE kind <> 'sample' ORDER BY layer, unit, kind, rank",
)


@dataclass(frozen=True)
class Options:
    tokens: int = option(100_000, "counted tokens of a build", quick=300)
    dtype: str = option("float32", "of weights and activations", choices=("float32", "bfloat16"))
    samples: int = option(2, "of each band")
    repeats: int = option(5, "builds of either side", quick=1)
    layers: str | None = option(None, "layers to index, as 0-5,7; all of them without it", quick="0")


def run(options: Options) -> Report:
    """Build in turns, then compare what was built."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        subject = prepare("minilm", options.dtype, options.tokens, folder, layers=options.layers, panel=0)
        kept = {WITH: options.samples, WITHOUT: 0}
        outputs = {side: folder / f"{samples}.index" for side, samples in kept.items()}
        kernels: dict[str, list[float]] = {side: [] for side in kept}
        sides = {
            side: lambda side=side: _pass(subject, outputs[side], kept[side], kernels[side]) for side in kept
        }
        seconds = interleaved(sides, options.repeats, announce=say)
        with open_index(outputs[WITH]) as one, open_index(outputs[WITHOUT]) as other:
            checks = _checks(one, other)
            sizes = {WITH: one.manifest.bytes, WITHOUT: other.manifest.bytes}
            rows = one.sql("SELECT count(*) AS n FROM examples WHERE kind = 'sample'")["n"][0].as_py()
            units = sum(entry.units for entry in one.manifest.layers)
    # the first is that of the warm-up
    longer = [one - other for one, other in zip(kernels[WITH][1:], kernels[WITHOUT][1:], strict=True)]
    state = {side: Keep(samples=samples).bytes_per_unit() for side, samples in kept.items()}
    results: dict[str, Any] = {
        "pass_seconds": {side: spread(taken) for side, taken in seconds.items()},
        "pass": ratios(seconds[WITH], seconds[WITHOUT]),
        "fastest_pass": min(seconds[WITH]) / min(seconds[WITHOUT]),
        "kernel_seconds": {side: spread(taken[1:]) for side, taken in kernels.items()},
        "kernels_longer_by_share_of_the_pass": ratios(longer, seconds[WITHOUT]),
        "index_bytes": sizes,
        "index": sizes[WITH] / sizes[WITHOUT],
        "state_bytes_a_unit": state,
        "state": state[WITH] / state[WITHOUT],
        "samples_a_unit": rows / units,
    }
    fastest = (f"{min(seconds[side]):.2f}" for side in kept)
    table = [
        ("pass, s", *(f"{results['pass_seconds'][side]['median']:.2f}" for side in kept),
         shown_ratio(results["pass"])),
        ("kernels, s", *(f"{results['kernel_seconds'][side]['median']:.3f}" for side in kept),
         "longer by " + shown_ratio(results["kernels_longer_by_share_of_the_pass"]) + " of the pass"),
        ("fastest pass, s", *fastest, f"{results['fastest_pass']:.3f}"),
        ("index, MB", *(f"{sizes[side] / 1e6:.1f}" for side in kept), f"{results['index']:.3f}"),
        ("state of a unit, bytes", *(f"{state[side]:,}" for side in kept), f"{results['state']:.3f}"),
    ]  # fmt: skip
    title = f"MiniLM, {options.dtype}, {options.tokens:,} tokens, {rows / units:.1f} samples a unit"
    return Report(settings_of(options), checks, results, [Table(title, ("", *kept, "ratio"), table)])


def _pass(subject: Subject, output: Path, samples: int, kernels: list[float]) -> float:
    """Build; the seconds of the pass over the corpus. Those of its kernels are appended to `kernels`."""
    config = subject.config.model_copy(update={"output": output, "samples": samples})
    with patch("indexer.building.plan.load", return_value=subject.loaded):
        build(config)
    with open_index(output) as index:
        kernels.append(float(index.manifest.totals["kernel_seconds"]))
        return float(index.manifest.totals["model_seconds"])


def _checks(one: Index, other: Index) -> list[str]:
    """What was verified; raises WrongResultError."""
    for index in (one, other):
        index.verify(full=True)
    for query in SHARED:
        if not one.sql(query).equals(other.sql(query)):
            raise WrongResultError(f"samples change what else is in the index: {query}")
    return ["both indexes were verified in full", "units, histograms and extreme examples are equal in them"]
