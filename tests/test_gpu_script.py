"""The script for a machine with a GPU: a dry run of all of it, and what it does where something fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")

from benchmarks import gpu_steps, wheels
from benchmarks.gpu_steps import Step

ROOT = Path(__file__).parents[1]


def script(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    environment.pop("TRITON_INTERPRET", None)
    command = ["bash", str(ROOT / "benchmarks" / "on_gpu.sh"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_dry_run_has_every_figure(tmp_path: Path) -> None:
    ended = script("--dry-run", "--out", str(tmp_path), "--commit", "abc")
    whole = json.loads((tmp_path / "results.json").read_text())
    assert {name: step["status"] for name, step in whole["steps"].items()} == dict.fromkeys(
        ["extension", "machine", "tests", "kernels", "gpt2", "features", "llama", "pythia"], "done"
    ), (tmp_path / "log.txt").read_text()
    assert ended.returncode == 0
    assert whole["dry"]
    assert whole["commit"] == "abc"
    results = {name: step["results"] for name, step in whole["steps"].items()}
    assert results["machine"]["versions"]["torch"]
    assert results["kernels"]["24 x 2"]["update_share_of_copy_bandwidth"] > 0
    for form in ("relu", "jumprelu", "gated", "topk"):
        figures = results["features"][form]
        for side in ("build", "forward", "plain"):
            assert figures[f"{side}_tokens_per_second"] > 0
        assert figures["build_per_forward_min"] <= figures["build_per_forward"]
    assert len(results["features"]["checks"]) == 8
    for model in ("gpt2", "llama", "pythia"):
        figures = results[model]
        assert len(figures["checks"]) == 3
        for side in ("build", "forward", "plain", "compiled_build", "compiled_forward"):
            assert figures[f"{side}_tokens_per_second"] > 0
        for name in ("build_per_forward", "build_per_plain", "compiled_build_per_compiled_forward"):
            assert figures[f"{name}_min"] <= figures[name] <= figures[f"{name}_max"]
        assert figures["roofline_tokens_per_second"] > 0
        assert figures["peer_per_build_extrapolated"] > 0
        assert figures["synchronisations_per_batch"] is None


def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    for options, told in (
        (["--wet"], "--wet: no such option"),
        (["--out"], "--out: what?"),
        (["--wheels", str(tmp_path / "none")], "no such folder"),
    ):
        ended = script(*options)
        assert ended.returncode == 2
        assert told in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def steps_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], seconds: int = 300
) -> dict[str, Any]:
    """What is on record of some programs that run as steps; FILE in them is where figures go."""

    def steps(dry: bool, parts: Path) -> list[Step]:
        # on a busy machine Python takes seconds to begin
        return [
            Step(
                name,
                ("-c", text.replace("FILE", repr(str(parts / f"{name}.json")))),
                8 if "hang" in name else 60,
            )
            for name, text in programs.items()
        ]

    monkeypatch.setattr(gpu_steps, "steps", steps)
    monkeypatch.setattr(sys, "argv", ["gpu_steps.py", str(folder), "--seconds", str(seconds)])
    monkeypatch.setattr(gpu_steps, "LEAST_SECONDS", 0)
    assert gpu_steps.main() == 1
    return dict(json.loads((folder / "results.json").read_text())["steps"])


@pytest.mark.slow
def test_whatever_a_step_comes_to_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = "open(FILE, 'w').write('{\"%s\": 1}')"
    ended = steps_of(tmp_path, monkeypatch, {
        "fails": f"{save % 'half'}; raise ValueError('no such luck')",
        "hangs": f"{save % 'early'}; import time; time.sleep(600)",
        "hangs on": "import signal, time; signal.signal(signal.SIGABRT, signal.SIG_IGN); time.sleep(600)",
        "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "partly": save % "loop_failure",
        "works": save % "all",
    })  # fmt: skip
    assert [(name, step["status"]) for name, step in ended.items()] == [
        ("fails", "failed"),
        ("hangs", "time is up"),
        ("hangs on", "time is up"),
        ("crashes", "failed"),
        ("partly", "failed in part"),
        ("works", "done"),
    ]
    assert ended["fails"]["results"] == {"half": 1}
    assert "ValueError: no such luck" in ended["fails"]["printed"]
    assert ended["hangs"]["results"] == {"early": 1}
    # where it was
    assert 'File "<string>", line 1' in ended["hangs"]["printed"]
    assert ended["crashes"]["results"] is None


def test_nothing_a_step_started_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    child = f"import subprocess, sys; child = subprocess.Popen({sleep})"
    start = f"{child}; open(FILE, 'w').write(str(child.pid))"
    ended = steps_of(tmp_path, monkeypatch, {"ends": start, "hangs": f"{start}; child.wait()"})
    assert [step["status"] for step in ended.values()] == ["done", "time is up"]
    assert all(is_gone(step["results"]) for step in ended.values())


def is_gone(process: int) -> bool:
    """Within ten seconds: a signal takes a while to arrive."""
    for _ in range(100):
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_steps_that_there_is_no_time_for_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_steps, "LEAST_SECONDS", 0)
    ended = steps_of(tmp_path, monkeypatch, {"late": "print()"}, seconds=-1)
    assert ended["late"]["status"] == "no time left"


def test_steps_end_in_time() -> None:
    # what comes first takes long at most, and what comes last need not run; a limit of its own bounds it all
    assert gpu_steps.SECONDS <= 525
    assert sum(step.seconds for step in gpu_steps.steps(False, Path())[:5]) < gpu_steps.SECONDS


def wheel(folder: Path, name: str, version: str, *needs: str, extra: str = "") -> None:
    listing = f"{name}-{version}.dist-info"
    metadata = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{listing}/METADATA", f"Name: {name}\nVersion: {version}\n{metadata}")
        archive.writestr(f"{listing}/RECORD", "")
        if extra:
            archive.writestr(f"{name}-{version}.data/{extra}", "")


def test_wheels_are_unpacked_where_they_are_missing_or_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"numpy": "2.4", "triton": "3.6.0+git", "tqdm": "4.70", "needed": "1.0"}
    monkeypatch.setattr(wheels, "_installed", installed.get)
    for name, version in (("triton", "3.9.0"), ("tqdm", "4.80"), ("needed", "2.1"), ("idle", "1")):
        wheel(tmp_path, name, version, *(("needed>=2",) if name == "triton" else ()))
    taken = wheels.unpack(tmp_path, tmp_path / "site")
    assert taken == {
        "triton": {"unpacked": "3.9.0", "found": "3.6.0+git"},
        "idle": {"unpacked": "1", "found": None},
        "needed": {"unpacked": "2.1", "found": "1.0"},
    }
    assert sorted(path.name for path in (tmp_path / "site").glob("*.py")) == [
        "idle.py", "needed.py", "triton.py",
    ]  # fmt: skip
    wheel(tmp_path, "odd", "1", extra="scripts/odd")
    with pytest.raises(ValueError, match=r"odd-1-py3-none-any\.whl has a \.data folder"):
        wheels.unpack(tmp_path, tmp_path / "site")


def test_a_slim_wheel_leaves_out_what_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_stripped", lambda library, scratch: library[:3])
    kept = {
        "triton/__init__.py": b"1",
        "triton/_C/libtriton.so": b"12345",
        "triton/backends/nvidia/bin/ptxas-blackwell": b"2",
    }
    left = [
        "triton/FileCheck",
        "triton/backends/nvidia/bin/ptxas",
        "triton/_C/libproton.so",
        "triton/backends/amd/lib/a.bc",
        "triton/include/a.h",
    ]
    whole = tmp_path / "triton-3.9.0-cp312-none-any.whl"
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in [*kept.items(), *((name, b"3") for name in left)]:
            archive.writestr(name, content)
        archive.writestr("triton-3.9.0.dist-info/RECORD", "old")
    with zipfile.ZipFile(wheels.slim(whole, tmp_path / "slim")) as archive:
        assert set(archive.namelist()) == {*kept, "triton-3.9.0.dist-info/RECORD"}
        assert archive.read("triton/_C/libtriton.so") == b"123"
        assert b"triton/_C/libtriton.so,sha256=" in archive.read("triton-3.9.0.dist-info/RECORD")
