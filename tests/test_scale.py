"""The simulation behind the plan for large corpora agrees with what is known, or says so and gives none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.scale import CORPORA, MODELS, Plan


def test_without_failures_there_are_checkpoints_alone() -> None:
    plan = Plan(work=1000, interval=300, checkpoint=5, between_failures=1e12, restart=60)
    assert plan.expected() == pytest.approx(1000 + 4 * 5)
    assert plan.simulated(np.random.default_rng(0)) == 1000 + 4 * 5


def test_a_failure_costs_what_was_not_kept() -> None:
    class Failing(np.random.Generator):
        """Fails after 450 s, and then no more."""

        def __init__(self) -> None:
            super().__init__(np.random.PCG64(0))
            self.times = [450.0, 1e12]

        def exponential(self, *arguments: object, **names: object) -> float:  # type: ignore[override]
            return self.times.pop(0)

    plan = Plan(work=900, interval=300, checkpoint=10, between_failures=1.0, restart=60)
    # the first interval is kept at 310 s; 140 s of the second are lost, and the restart
    assert plan.simulated(Failing()) == 450 + 60 + 2 * 310


def test_the_case_reports_every_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--quick", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results["plans"]) == len(MODELS) * len(CORPORA)
    assert all(0 < value < 1e6 for value in results["constants"].values())
    for row in results["plans"]:
        assert row["expected_seconds"] > row["work_seconds"]
        assert row["simulated_seconds"] == pytest.approx(row["expected_seconds"], rel=0.2)


def test_a_wrong_simulation_gives_no_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Plan.simulated
    monkeypatch.setattr(Plan, "simulated", lambda self, random: 1.2 * right(self, random))
    assert main(["scale", "--quick", "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "in closed form" in said.err
