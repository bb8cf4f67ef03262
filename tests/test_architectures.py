"""The survey of architectures tells a right index from a wrong one, a refusal and a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from indexer_kernels import Sequences
from torch import Tensor

import indexer
from benchmarks import architectures_check
from benchmarks.__main__ import main
from benchmarks.architectures_check import judged
from benchmarks.architectures_small import DATA, small_config
from indexer.errors import IndexerError
from indexer.models import Values


@pytest.mark.slow
def test_a_run_of_some_is_kept_and_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["architectures", "--json", "--processes", "1", "--folder", str(tmp_path)]
    assert main([*command, "--only", "bert,mixtral,mamba"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["counts"] == {
        "decoder": {"REFUSED": 1, "RIGHT": 1}, "encoder": {"RIGHT": 1},
        "all but parts": {"REFUSED": 1, "RIGHT": 2},
    }  # fmt: skip
    assert [verdict["name"] for verdict in results["verdicts"]] == ["bert", "mixtral", "mamba"]
    lines = (tmp_path / "architectures.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["RIGHT", "RIGHT", "REFUSED"]
    assert main([*command, "--only", "bertt"]) == 2
    assert "--only bertt" in capsys.readouterr().err


def test_activations_of_another_place_are_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(matrix: Tensor, sequences: Sequences) -> Values:
        return Values(matrix.roll(1, -1), sequences)

    monkeypatch.setattr("indexer.sites.hook.Values", wrong)
    assert judged("esm", tmp_path / "made").verdict == "WRONG"
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_activations_of_another_neuron_of_an_expert_are_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(matrix: Tensor, *others: Any, **options: Any) -> Values:
        return Values(matrix.roll(1, -1), *others, **options)

    monkeypatch.setattr("indexer.sites.experts.Values", wrong)
    found = judged("gpt_oss", tmp_path / "made")
    assert (found.verdict, found.note[:9]) == ("WRONG", "experts.0")


@pytest.mark.parametrize(("error", "verdict"), [(IndexerError, "REFUSED"), (KeyError, "CRASH")])
def test_what_a_build_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[Exception], verdict: str
) -> None:
    def build(**settings: Any) -> None:
        raise error("no such thing")

    monkeypatch.setattr(indexer, "build", build)
    found = judged("gpt2", tmp_path / "made")
    assert (found.verdict, "no such thing" in found.note) == (verdict, True)


@pytest.mark.slow
def test_a_model_that_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(architectures_check, "SECONDS", 1)
    monkeypatch.setattr(indexer, "build", lambda **settings: sum(range(10**9)))
    assert "TimeoutError: not done in 1 s" in judged("gpt2", tmp_path / "made").note


def test_every_listed_name_is_a_model_type() -> None:
    from transformers import CONFIG_MAPPING

    names = [name for names in DATA["sorts"].values() for name in names]
    assert len(names) == len(set(names))
    assert not set(names) - set(CONFIG_MAPPING.keys())
    assert not set(DATA["settings"]) - set(names)


def test_parts_are_small_too() -> None:
    config = small_config("llava")
    assert (config.text_config.hidden_size, config.text_config.intermediate_size) == (64, 176)
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (32, 2)
