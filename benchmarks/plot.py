"""Pictures of what was measured, from the records in benchmarks/results: nothing else is drawn.

* overhead.svg: a build against the bare forward and algorithms in use elsewhere, on a CPU.
* NAME-models.svg, NAME-cost.svg: models and kernels on a GPU, for a record NAME.json of benchmarks/on_gpu.sh.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar, Chart, Group, to_svg
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table
from indexer.errors import IndexerError
from indexer.names import MLP

RESULTS = Path(__file__).parent / "results"
# By model, bar and aim on one H200: build / forward, and tokens/s where there is one
COST = {"gpt2": (1.06, 1.03), "pythia": (1.04, 1.02), "llama": (1.02, 1.01)}
SPEED = {"gpt2": (1.0e6, 1.7e6), "llama": (30_000, 41_000)}
FUSED = (1.25, 1.05)
SIDES = {
    "build": ("build, all statistics", "ours"),
    "compiled_build": ("build, --compile", "ours"),
    "forward": ("our forward, no statistics", "base"),
    "plain": ("transformers' forward", "base"),
}
FUNCTIONS = {"swiglu": "SwiGLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)"}


@dataclass(frozen=True)
class Options:
    folder: str = option(str(RESULTS), "where the records are, and the pictures go")


def run(options: Options) -> Report:
    """Draw all that there are records of. Raises IndexerError where there are none."""
    folder = Path(options.folder)
    records = {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}
    charts = dict(_charts(records))
    if not charts:
        raise IndexerError(f"--folder {folder}: no record that is drawn; run overhead --json, or on_gpu.sh")
    for name, chart in charts.items():
        (folder / f"{name}.svg").write_text(to_svg(chart), encoding="utf-8")
    bars = {name: sum(len(group.bars) for group in chart.groups) for name, chart in charts.items()}
    rows: list[tuple[str, ...]] = [(f"{name}.svg", str(number)) for name, number in bars.items()]
    checks = ["every bar is a figure of a record in the folder, and no record is of a dry run"]
    return Report(settings_of(options), checks, bars, [Table("pictures", ("file", "bars"), rows)])


def _of_mlps(record: dict[str, Any]) -> bool:
    return bool(record["settings"].get("sites", MLP) == MLP)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IndexerError(f"{path}: no record of a benchmark: {error}") from error


def _charts(records: dict[str, Any]) -> Iterator[tuple[str, Chart]]:
    # the picture is of neurons alone
    overhead = [
        record for record in records.values() if record.get("case") == "overhead" and _of_mlps(record)
    ]
    if overhead:
        yield "overhead", _overhead(overhead)
    for name, record in records.items():
        if "steps" in record and not record["dry"]:
            yield from _gpu(name, record)


def _gpu(name: str, record: Any) -> Iterator[tuple[str, Chart]]:
    """Pictures of one run of benchmarks/on_gpu.sh."""
    steps = {step: ended["results"] or {} for step, ended in record["steps"].items()}
    machine = steps["machine"]
    if not machine or not record["commit"]:
        raise IndexerError(f"{name}.json: it does not say on what machine, or of what commit, it is")
    made = f"{machine['gpu']}, driver {machine['driver']}, torch {machine['versions']['torch']}"
    made += f", commit {record['commit'][:8]}, {record['date'][:10]}"
    for kind, groups, title, unit in (
        ("models", _models(steps), "Speed of a whole model on a GPU", "Share of the roofline"),
        ("cost", _costs(steps), "What the statistics cost on a GPU", "Time on top"),
    ):
        if groups:
            yield f"{name}-{kind}", Chart(title, groups, [f"{unit}. {made}"])


def _overhead(records: list[Any]) -> Chart:
    groups = []
    for record in records:
        settings, bars = record["settings"], []
        for name, side in record["results"]["sides"].items():
            ratio = side["against_bare"]["pairs"]["median"]
            kind = "ours" if name.startswith("build") else "peer" if name.startswith("peer") else "base"
            bars.append(Bar(name.removeprefix("peer: "), ratio, f"{ratio:.2f}", kind))
        name = f"{'MiniLM' if settings['model'] == 'minilm' else 'GPT-2 small'}, {settings['dtype']}"
        groups.append(Group(f"{name}, {settings['tokens']:,} tokens", bars, [("bare", 1.0)]))
    first = records[0]["record"]
    commits = sorted({record["record"]["commit"]["id"][:8] for record in records})
    return Chart(
        "Time of a build against the bare forward pass",
        groups,
        [
            "Blue: ours. Grey: transformers' forward. Orange: algorithms in use elsewhere, for less.",
            f"{first['machine']['processor']}, {first['machine']['cores']} cores, torch "
            f"{first['versions']['torch']}, commits {', '.join(commits)}",
        ],
    )


def _models(steps: dict[str, Any]) -> list[Group]:
    groups = []
    for model in COST:
        figures = steps.get(model, {})
        if "build_tokens_per_second" not in figures:
            continue
        most = figures["roofline_tokens_per_second"]
        bars = [
            Bar(label, speed / most, f"{_amount(speed)} tokens/s", kind)
            for side, (label, kind) in SIDES.items()
            if (speed := figures.get(f"{side}_tokens_per_second")) is not None
        ]
        peer = figures.get("peer_tokens_per_second_extrapolated")
        if peer is not None:
            bars.append(
                Bar("concatenate + topk + gather", peer / most, f"{_amount(peer)} (extrapolated)", "peer")
            )
        lines = [(f"{name} {_amount(speed)}", speed / most) for name, speed in _lines(SPEED.get(model))]
        groups.append(
            Group(f"{figures['shape']}, {figures['sequence_tokens']:,}-token sequences", bars, lines)
        )
    return groups


def _costs(steps: dict[str, Any]) -> list[Group]:
    groups = []
    for model, aims in COST.items():
        figures = steps.get(model, {})
        if "build_per_forward" in figures:
            bars = [_cost("build / our forward", figures, "build_per_forward")]
            groups.append(Group(figures["shape"], bars, _percent(aims)))
    for shape, figures in steps.get("kernels", {}).items():
        bars = [
            _cost(f"{name} / the same kernel without", figures, f"{function}_statistics_per_plain_kernel")
            for function, name in FUNCTIONS.items()
            if f"{function}_statistics_per_plain_kernel" in figures
        ]
        if bars:
            groups.append(Group(f"Fused kernels, {shape}", bars, _percent(FUSED)))
    return groups


def _cost(label: str, figures: dict[str, Any], ratio: str) -> Bar:
    low, middle, high = (100 * (figures[ratio + end] - 1) for end in ("_min", "", "_max"))
    return Bar(label, max(0.0, middle), f"{middle:.1f} % ({low:.1f} to {high:.1f})", "ours")


def _percent(aims: tuple[float, float]) -> list[tuple[str, float]]:
    return [(f"{name} {100 * (ratio - 1):.0f} %", 100 * (ratio - 1)) for name, ratio in _lines(aims)]


def _lines(aims: tuple[float, float] | None) -> list[tuple[str, float]]:
    """Bar and aim by name."""
    return [] if aims is None else list(zip(("bar", "aim"), aims, strict=True))


def _amount(number: float) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"
