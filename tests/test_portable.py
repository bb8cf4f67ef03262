"""The kernels as plain C++: the same bits from every instruction set, and from Arm where emulated."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "native" / "portable.cpp"
HEADERS = Path(__file__).parents[1] / "csrc"
COMMON = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-w", f"-I{HEADERS}"]
AVX2 = ["-DINDEXER_AVX2", "-DINDEXER_ISA=avx2", "-mavx2", "-mfma", "-mf16c"]
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


def digests(folder: Path, compiler: str, flags: list[str], runner: list[str]) -> str:
    program = folder / "portable"
    subprocess.run([compiler, *COMMON, *flags, str(SOURCE), "-o", str(program)], check=True, timeout=300)
    run = subprocess.run([*runner, str(program)], check=True, capture_output=True, text=True, timeout=300)
    return run.stdout


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return digests(tmp_path_factory.mktemp("baseline"), "c++", [], [])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is of x86")
def test_avx2_gives_the_bits_of_the_baseline(baseline: str, tmp_path: Path) -> None:
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this machine has no AVX2")
    assert digests(tmp_path, "c++", AVX2, []) == baseline


def test_arm_gives_the_bits_of_the_baseline(baseline: str, tmp_path: Path) -> None:
    if not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)):
        pytest.skip(f"needs {ARM_COMPILER} and {ARM_EMULATOR}")
    assert digests(tmp_path, ARM_COMPILER, ["-static"], [ARM_EMULATOR]) == baseline
