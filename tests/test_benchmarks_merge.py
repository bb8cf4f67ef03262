"""The merge case runs, keeps its inputs, and reports nothing where the merged index is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexer_kernels import TopK

from benchmarks import merge
from benchmarks.__main__ import main
from benchmarks.child import Measured
from indexer.index.manifest import read_manifest
from indexer.partials.merge import merge_indexes


@pytest.mark.slow
def test_merge(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["merge", "--quick", "--json", "--folder", str(tmp_path)]) == 0
    whole = json.loads(capsys.readouterr().out)
    results = whole["results"]
    assert whole["case"] == "merge"
    assert len(whole["checks"]) == 2
    assert results["units"] == 128
    assert set(results["inputs"]) == {"2", "9"}
    for taken in results["inputs"].values():
        assert taken["peak_bytes"] > 1e7
        assert taken["input_bytes_per_second"] > 0
    assert results["against_plain_read"] > 0
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == sorted([*(f"content{n}" for n in range(5)), *(f"input{n}" for n in range(9))])
    written = (tmp_path / "input3" / "manifest.json").stat().st_mtime_ns
    assert main(["merge", "--quick", "--json", "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "input3" / "manifest.json").stat().st_mtime_ns == written


def test_inputs_differ_and_share_their_files(tmp_path: Path) -> None:
    inputs = merge.Inputs(tmp_path, merge.Size(1, 16, 3, 3, 4, documents=9), layers=3, inputs=4, contents=4)
    for content in range(4):
        inputs.write_content(content)
    paths = [inputs.write_input(number) for number in range(4)]
    files = [path / "examples" / "mlp.1.parquet" for path in paths]
    assert len({file.stat().st_ino for file in files}) == 4
    assert {file.stat().st_nlink for file in files} == {1 + 3}
    coverage = [read_manifest(path).corpus["coverage"][0]["first"] for path in paths]  # type: ignore[call-overload]
    assert coverage == [0, 1, 2, 3]


def _missing(paths: list[Path], output: Path) -> None:
    """One input is left out."""
    merge_indexes(paths[:-1], output)


def _damaged(paths: list[Path], output: Path) -> None:
    merge_indexes(paths, output)
    file = output / "examples" / "mlp.0.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(_missing, "counts 8,000,000 tokens"), (_damaged, "mlp.0.parquet")],
    ids=["an input too few", "damaged"],
)
def test_merge_refuses_a_wrong_index(
    wrong: Any, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def child(command: list[str]) -> Measured:
        output, *paths = map(Path, command[3:])
        wrong(paths, output)
        return Measured(1, 1.0)

    monkeypatch.setattr("benchmarks.merge.measured", child)
    assert main(["merge", "--quick", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err.splitlines()[-1]


def test_merge_refuses_other_winners(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge that is lawful in itself, but gives a place to none but a new first example."""
    right = TopK._insert

    def too_high(self: TopK, rows: Any, chosen: np.ndarray) -> None:
        unit = rows.unit[chosen]
        first = rows.value[chosen] < self.value[unit].min(axis=1)
        right(self, rows, chosen[self.largest | first | (self.filled[unit] < self.k)])

    monkeypatch.setattr(TopK, "_insert", too_high)

    def child(command: list[str]) -> Measured:
        output, *paths = map(Path, command[3:])
        merge_indexes(paths, output)
        return Measured(1, 1.0)

    monkeypatch.setattr("benchmarks.merge.measured", child)
    assert main(["merge", "--quick", "--json"]) == 1
    assert "bottom" in capsys.readouterr().err.splitlines()[-1]
