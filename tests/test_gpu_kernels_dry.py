"""The measurements of the GPU kernels in Triton's interpreter: they run, and refuse what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")

from indexer_kernels import FUNCTIONS, Keep, Sequences, Statistics
from indexer_kernels.plan import Plan

from benchmarks import gpu_kernels, plain_triton
from benchmarks.gpu_kernels import CASES, measure
from indexer.errors import IndexerError
from tests.gluon_interpreter import KERNELS, interpreting
from tests.kernel_cases import some_sequences
from tests.test_activations import pre_activations

CPU = torch.device("cpu")
PLAIN = {**KERNELS, "benchmarks.plain_triton": ("activate_groups",)}


def dry_run() -> dict[str, object]:
    return measure(CPU, tokens=24, units=2, rounds=1, dry=True)


def test_every_part_has_its_figures() -> None:
    figures = dry_run()
    assert not [name for name in figures if name.endswith("_failure")], figures
    numbers = {name: value for name, value in figures.items() if name not in ("tokens", "units", "rounds")}
    assert all(isinstance(value, int | float) and value > 0 for value in numbers.values())
    for case in CASES:
        for side in ("statistics", "plain_kernel", "torch"):
            assert figures[f"{case.name}_{side}_seconds"]
        assert figures[f"{case.name}_statistics_per_plain_kernel"]
    assert figures["update_share_of_copy_bandwidth"]
    assert figures["shared_atomics_per_second"]
    assert figures["matmul_bfloat16_flop_per_second"]


def test_a_wrong_result_has_no_figures_and_the_others_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    right = plain_triton.activate_plain

    def wrong(function: str, gate: Tensor, up: Tensor | None, out: Tensor, *arguments: object) -> None:
        right(function, gate, up, out, *arguments)
        out[-1, -1] += function == "gelu"

    monkeypatch.setattr(plain_triton, "activate_plain", wrong)
    monkeypatch.setattr(plain_triton, "count_in_shared", lambda *_: torch.zeros(2))
    monkeypatch.setattr(gpu_kernels, "CASES", CASES[1:])
    figures = dry_run()
    failures = {name: str(value) for name, value in figures.items() if name.endswith("_failure")}
    assert list(failures) == ["hardware_failure", "gelu_failure"]
    assert "shared counters hold [0.0, 0.0]" in failures["hardware_failure"]
    assert "activations differ with and without statistics" in failures["gelu_failure"]
    assert "gelu_statistics_seconds" not in figures
    assert figures["gelu_tanh_statistics_seconds"]


def test_a_device_that_does_not_fit_is_refused() -> None:
    with pytest.raises(IndexerError, match=r"on cpu: give a CUDA device, or dry=True"):
        measure(CPU, tokens=40, units=3, rounds=1, dry=False)


@pytest.mark.parametrize("units", [pytest.param(64, marks=pytest.mark.slow), 3], ids=["whole", "part"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_kernel_without_statistics_writes_the_same(
    function: str, gated: bool, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if units == 64:
        sequences = Sequences.from_offsets(np.arange(9) * 10, np.arange(8), np.zeros(8), np.zeros(80))
    else:
        sequences = some_sequences(80, np.random.default_rng(7))
    gate = pre_activations(80, units, torch.bfloat16)
    up = pre_activations(80, units, torch.bfloat16, seed=1) if gated else None
    out = torch.full_like(gate, torch.nan)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with interpreting(PLAIN):
        plain_triton.activate_plain(function, gate, up, out, Plan.of(sequences, CPU), splits=2)
        statistics = Statistics.empty(units, Keep(top=0, bottom=0), kernels="triton")
        expected = statistics.activate(function, gate, up, sequences)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
