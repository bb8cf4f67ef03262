"""Builds killed with SIGKILL, at random and at named points, leave the index of one that was not; a few."""

from __future__ import annotations

import json

import pytest

from benchmarks import survive
from benchmarks.__main__ import main


def test_killed_builds_are_continued(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["survive", "--quick", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["equal"] == results["builds"] + results["points"] == 7
    assert sum(results["left"].values()) >= 7


def test_what_is_left_beside_the_index_is_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = survive.Builder.build

    def littering(self: survive.Builder, **killed: object) -> dict[str, object]:
        answer = right(self, **killed)
        (self.folder / "here" / "a.index.build").mkdir(exist_ok=True)
        return answer

    monkeypatch.setattr(survive.Builder, "build", littering)
    assert main(["survive", "--quick", "--json"]) == 1
    assert "beside the index lies a.index.build" in capsys.readouterr().err
