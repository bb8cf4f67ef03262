"""Every benchmark case runs, reports one JSON object, and reports nothing where a result is wrong."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels import Statistics

from benchmarks import workers
from benchmarks.__main__ import CASES, main
from benchmarks.browser import CHROMIUM
from benchmarks.child import ChildError, Measured, measured
from benchmarks.counts import TORCH
from benchmarks.measure import interleaved, percentile, ratios
from benchmarks.peers import UnitHistograms
from benchmarks.synthetic import Size, write_synthetic
from indexer.building.states import States
from indexer.index.read import Index, UnitRecord
from indexer.index.records import LayerRecord
from indexer.names import Key

SPREAD = {"median", "min", "max", "all"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(capsys: pytest.CaptureFixture[str], case: str, *options: str) -> dict[str, Any]:
    """A quick run of a case: its JSON object, with the parts that every case has checked."""
    assert main([case, "--quick", "--json", *options]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert set(whole) == {"case", "settings", "checks", "results", "notes", "record"}
    assert whole["case"] == case
    assert whole["checks"]
    record = whole["record"]
    assert set(record) == {"machine", "versions", "commit", "kernels"}
    assert record["machine"]["processor"]
    assert record["machine"]["memory_bytes"] > 0
    assert set(record["versions"]) == {"python", "torch", "transformers", "numpy", "pyarrow", "duckdb"}
    assert all(record["versions"].values())
    assert set(record["commit"]) == {"id", "dirty"}
    assert record["kernels"]["instruction_set"] in record["kernels"]["available"]
    return dict(whole)


def refused(capsys: pytest.CaptureFixture[str], case: str, *options: str) -> str:
    """What a case says that refuses to report."""
    assert main([case, "--quick", "--json", *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"{case}: no figures, for a result is wrong: ")
    return str(last)


def test_without_a_case_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CASES)


def test_a_mistake_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed"]) == 2
    assert "overhead" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["update", "--tokens", "0"])
    assert "1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [(), pytest.param(("--model", "gpt2", "--dtype", "bfloat16"), marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_overhead(capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    results = run(capsys, "overhead", "--threads", "1", *options)["results"]
    sides = results["sides"]
    assert {"bare", "build without writing", "build", "peer: histograms"} <= set(sides)
    for side in sides.values():
        assert set(side["seconds"]) == SPREAD
        assert side["tokens_per_second"] == pytest.approx(results["tokens"] / side["seconds"]["median"])
        assert set(side["against_bare"]) == {"of_medians", "pairs"}
    assert sides["bare"]["against_bare"]["of_medians"] == 1
    assert sides["build"]["seconds"]["median"] > sides["build without writing"]["seconds"]["median"]
    assert 0 < results["writing_share"]["median"] < 1
    assert 0 <= results["waited_share"] < 1


@pytest.mark.slow
def test_overhead_refuses_a_wrong_index(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = States.record

    def wrong(self: States, key: Key, **options: bool) -> LayerRecord:
        record = right(self, key, **options)
        if key.layer == 3:
            record.top.sequence[:, 1] += 1
        return record

    monkeypatch.setattr(States, "record", wrong)
    assert "mlp.3." in refused(capsys, "overhead", "--threads", "1", "--no-peers")


@pytest.mark.slow
def test_overhead_refuses_a_wrong_peer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = UnitHistograms.update

    def wrong(self: UnitHistograms, activations: torch.Tensor, counted: torch.Tensor) -> None:
        right(self, activations * 1.01, counted)

    monkeypatch.setattr(UnitHistograms, "update", wrong)
    assert "histogram" in refused(capsys, "overhead", "--threads", "1")


def test_counts(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
    results = run(capsys, "counts", "--tokens", "30", "--triton-tokens", "1", "--no-builds")["results"]
    assert results["builds"] == []
    assert {row["dtype"] for row in results["kernels"]} == {"float32", "bfloat16", "float16"}
    assert {"reference", "triton", "baseline"} <= {row["kernel"] for row in results["kernels"]}
    assert all(row["nan"] == row["inf"] == 0 < row["values"] for row in results["kernels"])


@pytest.mark.slow
def test_counts_refuses_a_function_that_is_not_the_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
    monkeypatch.setitem(TORCH, "gelu", torch.abs)
    said = refused(capsys, "counts", "--tokens", "30", "--triton-tokens", "1", "--no-builds")
    assert "float32, baseline: apart from torch's function by positive" in said


def test_update(capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(capsys, "update")
    rows = whole["results"]["rows"]
    for dtype in ("float32", "bfloat16"):
        there = {(row["operation"], row["implementation"]) for row in rows if row["dtype"] == dtype}
        sets = whole["record"]["kernels"]["available"]
        assert {("plain read", ""), ("update", "reference")} <= there
        assert {("update", f"cpp {name}") for name in sets} <= there
        for function in ("gelu", "gelu_tanh", "silu", "relu"):
            assert {(function, "torch"), *((function, f"cpp {name}") for name in sets)} <= there
    for row in rows:
        assert set(row["ns_per_element"]) == SPREAD
        assert row["gb_per_second"] > 0
        assert ("against_torch" in row) == (row["operation"] not in ("plain read", "update"))


@pytest.mark.parametrize("fused", [False, True], ids=["update", "activate"])
def test_update_refuses_a_wrong_state(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    right = Statistics._process

    def wrong(self: Statistics, function: int, *rest: Any) -> None:
        right(self, function, *rest)
        if (function > 0) == fused:
            self.histogram.low[0, 100] += 1  # type: ignore[union-attr]

    monkeypatch.setattr(Statistics, "_process", wrong)
    assert "histogram low[0, 100]" in refused(capsys, "update")


def test_query(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = run(capsys, "query", "--folder", str(tmp_path))
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    again = run(capsys, "query", "--folder", str(tmp_path))
    assert kept.stat().st_mtime_ns == written
    for results in (first["results"], again["results"]):
        assert results["units"] == 128
        # 20 at either end, and 2 in each of 7 bands
        assert results["examples"] == 128 * (40 + 14)
        assert {"record of a unit", "token search", "scan of all units"} <= set(results["milliseconds"])
        for row in results["milliseconds"].values():
            assert 0 < row["min"] <= row["p50"] <= row["p95"] <= row["max"]
        warm = results["ranges"]["warm"]
        assert 0 < warm["requests of a file, most"] <= 4
        assert 0 < warm["bytes, p50"] < results["ranges"]["first"]["bytes, p50"]


def test_query_refuses_wrong_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Index.record

    def wrong(self: Index, unit: str) -> UnitRecord:
        record = right(self, unit)
        return dataclasses.replace(record, bottom=record.bottom.take(np.arange(20)[::-1]))

    monkeypatch.setattr(Index, "record", wrong)
    assert "bottom" in refused(capsys, "query")


@pytest.mark.slow
def test_samples(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(capsys, "samples")["results"]
    assert 1 < results["index"] < 1.6
    assert 1 < results["state"] < 1.35
    assert 2 <= results["samples_a_unit"] <= 14
    monkeypatch.setattr("benchmarks.samples.SHARED", ["SELECT count(*) FROM examples"])
    assert "samples change what else" in refused(capsys, "samples")


@pytest.mark.slow
def test_features(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(capsys, "features")["results"]
    assert len(results["seconds"]) == 3
    assert results["re_encoding_against_ours"]["of_medians"] > 0
    assert 2 < results["active"] < 50
    monkeypatch.setattr("benchmarks.features.K", 19)
    monkeypatch.setattr("benchmarks.features.TopSequences.values", lambda top: -top.peak.T)
    assert "the best values of features differ by" in refused(capsys, "features")


@pytest.mark.slow
def test_experts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(capsys, "experts", "--layers", "1")["results"]
    assert (results["tokens"], results["units"]) == (32, 64 * 16 + 64)
    assert results["kernel_seconds"]["median"] < results["seconds"]["a pass with statistics"]["median"]
    monkeypatch.setattr("benchmarks.experts._counting", lambda counts: lambda module, given: None)
    assert "tokens are counted by another expert" in refused(capsys, "experts", "--layers", "1")


@pytest.mark.slow
def test_panel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(capsys, "panel")["results"]
    assert results["build"]["panel_tokens"] == results["build"]["tokens"] > 200
    assert results["build"]["panel_bytes"] > 4 * results["build"]["tokens"]
    assert results["read"]["tokens"] == 2 * 96
    right = Index.panel_row
    monkeypatch.setattr(Index, "panel_row", lambda index, *unit: right(index, *unit) + 1)
    assert "not a column of the matrix" in refused(capsys, "panel")


@pytest.mark.slow
def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    results = run(capsys, "memory")["results"]
    assert results["10x"]["tokens"] > 9 * results["1x"]["tokens"]
    assert results["1x"]["peak_bytes"]["median"] > 1e8
    assert results["ratio"]["pairs"]["median"] == pytest.approx(
        results["10x"]["peak_bytes"]["median"] / results["1x"]["peak_bytes"]["median"]
    )


@pytest.mark.parametrize("damage", [False, True], ids=["too few tokens", "damaged"])
def test_memory_refuses_a_wrong_index(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    def build(command: list[str]) -> Measured:
        output = Path(command[command.index("--output") + 1])
        write_synthetic(output, Size(layers=1, units=8, top=3, bottom=3, count=300 if damage else 30))
        if damage:
            file = output / "examples" / "mlp.0.parquet"
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        return Measured(1, 1.0)

    monkeypatch.setattr("benchmarks.memory.measured", build)
    assert ("mlp.0.parquet" if damage else "counted tokens") in refused(capsys, "memory")


@pytest.mark.slow
def test_workers(capsys: pytest.CaptureFixture[str]) -> None:
    results = run(capsys, "workers")["results"]
    assert results["1"]["tokens"] == results["2"]["tokens"] > 1000
    assert results["times_as_fast"]["pairs"]["median"] == pytest.approx(
        results["1"]["seconds"]["median"] / results["2"]["seconds"]["median"]
    )


@pytest.mark.parametrize(
    ("counts", "bins", "said"),
    [([5, 4], [7, 2], "do not hold the same tokens"), ([5, 5], [8, 2], "10.00% of all values are in other")],
)
def test_workers_refuses_a_wrong_index(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    counts: list[int],
    bins: list[int],
    said: str,
) -> None:
    good = workers.Run(2.0, 1.0, 5, np.array([5, 5]), np.array([7, 3]))
    bad = dataclasses.replace(good, counts=np.array(counts), bins=np.array(bins))
    monkeypatch.setattr(workers, "_built", lambda corpus, output, by, options: bad if by > 1 else good)
    assert said in refused(capsys, "workers")


def test_a_child_is_measured_without_its_parent() -> None:
    ballast = np.ones(40_000_000)
    peak = measured([sys.executable, "-c", "print('hello')"]).peak_bytes
    assert peak < ballast.nbytes / 2
    with pytest.raises(ChildError, match="no such thing"):
        measured([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_sides_take_turns_after_a_warm_up() -> None:
    calls = []

    def side(name: str, seconds: float) -> Any:
        def run_once() -> float:
            calls.append(name)
            return seconds + len(calls)

        return run_once

    seconds = interleaved({"a": side("a", 0), "b": side("b", 10)}, 2)
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [3, 5], "b": [14, 16]}
    ratio = ratios(seconds["b"], seconds["a"])
    assert ratio["of_medians"] == 15 / 4
    assert ratio["pairs"]["all"] == [14 / 3, 16 / 5]


def test_percentile_is_a_value_that_was_seen() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.0, 0.2, 0.5, 0.95, 1.0)] == [1, 1, 3, 5, 5]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_web(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("playwright")
    results = run(capsys, "web")["results"]
    assert len(results["milliseconds"]) == 4
    for row in results["milliseconds"].values():
        assert 0 < row["p50"] <= row["p95"]
        assert row["asked"] >= 3
    sizes = results["sizes"]
    assert 1 <= sizes["static, a unit, cold: requests"] <= 12
    assert 0 < sizes["static, a unit, cold: bytes"] <= 1_000_000
    server, static = (sizes[f"the app of {whose}, compressed"] for whose in ("the server", "a static site"))
    assert 0 < server <= 60_000
    assert server < static <= 150_000


def test_web_without_a_browser(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.web.CHROMIUM", None)
    assert main(["web", "--quick"]) == 2
    assert "needs chromium" in capsys.readouterr().err
