"""The GPU kernels compile for every architecture, and keep to what they may take of it; no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compile import Variant, _check
from benchmarks.disassembly import Machine, _hot_loop
from benchmarks.report import WrongResultError

ROOT = Path(__file__).parents[1]
MACHINE = Machine(
    registers=96, stack_bytes=0, shared_bytes=75776, instructions=1500, spills=0, global_atomics=0,
    loop_elements=16, loop={"FADD": 170, "ATOMS": 16}, reads_first=16,
)  # fmt: skip
CONSTANTS = {"FUNCTION": "plain", "GATED": False, "WHOLE": True, "ROUTED": False}


@pytest.mark.slow
def test_kernels_keep_to_their_limits(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "kernels")}
    command = [sys.executable, "-m", "benchmarks", "compile", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["results"]["rows"]
    assert {row["architecture"] for row in rows} == {80, 90, 100}
    assert {row["kernel"] for row in rows} == {"gather", "activate_rows", "compete", "find_hits", "sample"}
    for row in rows:
        assert row["stack_bytes"] == row["spills"] == row["global_atomics"] == 0
        if row["kernel"] == "gather" and row["constants"]["WHOLE"]:
            # two blocks of 256 threads share 65,536 registers
            assert row["registers"] <= 128
            assert row["loop"]["ATOMS"] == row["loop_elements"] >= 8
            assert "BAR" not in row["loop"]
            # eight rows are read before the first of them is needed
            assert row["reads_first"] >= 8 * (1 + row["constants"]["GATED"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stack_bytes": 8}, "8 bytes of stack"),
        ({"spills": 3}, "3 spills"),
        ({"shared_bytes": 90_000}, "90000 bytes of shared memory"),
        ({"registers": 129}, "129 registers; at most 128"),
        ({"global_atomics": 1}, "1 atomics"),
        ({"loop": {"FADD": 800, "ATOMS": 16}}, "51.0 instructions per element"),
        ({"loop": {}, "loop_elements": 0}, "0.0 instructions per element"),
    ],
)
def test_a_kernel_beyond_its_limits_is_refused(changes: dict[str, object], message: str) -> None:
    variant = Variant("gather", 80, "bfloat16", CONSTANTS)
    _check(variant, MACHINE)
    with pytest.raises(WrongResultError, match=message):
        _check(variant, Machine(**{**MACHINE.__dict__, **changes}))


def test_later_architectures_have_a_smaller_budget() -> None:
    machine = Machine(**{**MACHINE.__dict__, "loop": {"FADD": 175, "ATOMS": 16}})
    _check(Variant("gather", 80, "bfloat16", CONSTANTS), machine)
    with pytest.raises(WrongResultError, match=r"11\.94 instructions per element; at most 11\.5"):
        _check(Variant("gather", 90, "bfloat16", CONSTANTS), machine)


def test_the_hot_loop_is_the_innermost_one() -> None:
    lines = [
        "MOV R0, R1",
        "ATOMS.ADD RZ, [R1], R2",
        "FADD R1, R2, R3",
        "@P0 BRA 0x10",
        "EXIT",
        "@!P1 BRA 0x0",
    ]
    assert _hot_loop(list(enumerate(lines))) == []
    code = [(16 * number, line) for number, line in enumerate(lines)]
    assert _hot_loop(code) == ["ATOMS", "FADD", "BRA"]
