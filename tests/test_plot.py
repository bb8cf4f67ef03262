"""Pictures show what records hold, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import main
from benchmarks.bars import WIDTH, Bar, Chart, Group, to_svg
from benchmarks.plot import COST, FUNCTIONS, RESULTS

SVG = "{http://www.w3.org/2000/svg}"


def texts(file: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(file).iter(f"{SVG}text")]


def gpu_record(dry: bool = False) -> dict[str, Any]:
    """As benchmarks/on_gpu.sh writes it, with made-up figures."""

    def ratio(name: str, value: float) -> dict[str, float]:
        return {name: value, f"{name}_min": value - 0.01, f"{name}_max": value + 0.01}

    model = {
        "shape": "A model", "sequence_tokens": 2048, "roofline_tokens_per_second": 50_000.0,
        "build_tokens_per_second": 40_000.0, "forward_tokens_per_second": 41_000.0,
        "peer_tokens_per_second_extrapolated": 1_300.0, **ratio("build_per_forward", 1.02),
    }  # fmt: skip
    kernels: dict[str, float] = {}
    for name in FUNCTIONS:
        kernels |= ratio(f"{name}_statistics_per_plain_kernel", 1.04)
    machine = {"gpu": "A GPU", "driver": "1.2", "versions": {"torch": "2.11"}}
    results = {
        "machine": machine,
        "tests": None,
        "kernels": {"8 x 64": kernels},
        **dict.fromkeys(COST, model),
    }
    steps = {name: {"status": "done", "results": figures} for name, figures in results.items()}
    return {"dry": dry, "date": "2026-11-21T08:00:00+00:00", "commit": "0123456789", "steps": steps}


def test_pictures_in_the_tree_are_those_of_its_records(tmp_path: Path) -> None:
    for record in RESULTS.glob("*.json"):
        shutil.copy(record, tmp_path)
    assert main(["plot", "--json", "--folder", str(tmp_path)]) == 0
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name: path.read_text() for path in RESULTS.glob("*.svg")}
    assert "overhead.svg" in drawn


def test_a_run_on_a_gpu_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(gpu_record()))
    assert main(["plot", "--json", "--folder", str(tmp_path)]) == 0
    speeds, costs = (texts(tmp_path / f"gpu-{name}.svg") for name in ("models", "cost"))
    assert "40.0 k tokens/s" in speeds
    assert "1.3 k (extrapolated)" in speeds
    assert "bar 30.0 k, aim 41.0 k" in speeds
    assert costs.count("2.0 % (1.0 to 3.0)") == len(COST)
    assert costs.count("4.0 % (3.0 to 5.0)") == len(FUNCTIONS)
    assert "aim 5 %, bar 25 %" in costs
    for told in (speeds, costs):
        assert told[-1].endswith("A GPU, driver 1.2, torch 2.11, commit 01234567, 2026-11-21")


def test_what_is_not_a_measurement_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(gpu_record(dry=True)))
    assert main(["plot", "--folder", str(tmp_path)]) == 2
    assert "no record that is drawn" in capsys.readouterr().err
    (tmp_path / "gpu.json").write_text(json.dumps({**gpu_record(), "commit": None}))
    assert main(["plot", "--folder", str(tmp_path)]) == 2
    assert "gpu.json: it does not say" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text("{")
    assert main(["plot", "--folder", str(tmp_path)]) == 2
    assert "broken.json: no record of a benchmark" in capsys.readouterr().err


def test_bars_are_as_long_as_their_values() -> None:
    bars = [Bar("one", 2.0, "2", "ours"), Bar("other", 0.5, "1/2", "base"), Bar("<third>", 0.0, "0", "peer")]
    svg = to_svg(Chart("Title", [Group("group", bars, [("most", 4.0)])], ["note"]))
    root = ElementTree.fromstring(svg)
    widths = {bar.get("class"): float(bar.get("width", 0)) for bar in root.iter(f"{SVG}rect")}
    assert widths.pop("card") == WIDTH - 1
    assert widths["ours"] == pytest.approx(4 * widths["base"], abs=0.2)
    assert widths["peer"] == 1
    (line,) = root.iter(f"{SVG}line")
    left = min(float(bar.get("x", 0)) for bar in root.iter(f"{SVG}rect") if bar.get("class") != "card")
    assert float(line.get("x1", 0)) - left == pytest.approx(2 * widths["ours"], abs=0.2)
