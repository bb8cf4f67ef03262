"""The example for Slurm does what it says, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.building.run import build
from tests.real_model import minilm, standard_library
from tests.test_pipeline import tables
from tests.test_resume import options

SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "slurm.sh"
# runs what it is given at once: an array's tasks one after another
SBATCH = """#!/bin/bash
job=$(cat)
for argument in "$@"; do case $argument in --array=0-*) last=${argument#--array=0-} ;; esac; done
echo "$@" >> "$CALLS"
for task in $(seq 0 "${last:-0}"); do
  SLURM_ARRAY_TASK_ID=$task bash -c "$job" >&2 || exit 1
done
echo 4711
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which Slurm's command and ours are found."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "sbatch").write_text(SBATCH)
    (commands / "neuron-indexer").write_text(f'#!/bin/bash\nexec {sys.executable} -m indexer "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    root = str(Path(__file__).parents[1])
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    paths = os.pathsep.join([root, os.path.join(root, "kernels")])
    return {**os.environ, "PATH": path, "CALLS": str(tmp_path / "calls"), "PYTHONPATH": paths}


@pytest.mark.slow
def test_slurm_builds_what_one_process_builds(tmp_path: Path, cluster: dict[str, str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = Path(standard_library("argparse.py")[0]).read_text()
    for number in range(3):
        (corpus / f"{number}.txt").write_text(text[number * 4000 : number * 4000 + 3000])
    wanted = options(tmp_path / "plain.index", [str(corpus)], piece_bytes=3000)
    given = [
        *("--top", "3", "--bottom", "2", "--context", "48", "--layers", "1", "--batch-tokens", "512"),
        *("--threads", "1", "--piece-bytes", "3000", "--panel", "6"),
    ]
    command = ["bash", str(SCRIPT), str(minilm()), str(corpus), str(tmp_path / "a.index"), "2", *given]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    array, merge = (tmp_path / "calls").read_text().splitlines()
    assert "--array=0-1" in array
    assert "--dependency=afterok:4711" in merge
    assert tables(tmp_path / "a.index") == tables(build(wanted))


def test_slurm_says_how_it_is_called(cluster: dict[str, str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT)], env=cluster, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "usage" in done.stderr
