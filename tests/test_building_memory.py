"""The memory that a build says it will take, before it begins."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import indexer
from benchmarks.child import measured
from indexer.building import memory
from indexer.building.memory import MainMemory, resident_bytes
from indexer.commands.demo import model_folder
from indexer.errors import IndexerError
from tests.test_sites import build
from tests.tiny_models import saved, word_files
from tests.tiny_tokenizers import library_text


def test_the_plan_is_one_line() -> None:
    line = MainMemory(600_000_000, 300_000_000, 130_000_000, 4096, 6_000_000_000).line()
    assert line == (
        "memory: 600 MB model and program + 130 MB for batches of 4,096 tokens + 300 MB statistics + "
        "50.3 MB for reading and writing = 1.08 GB of 6 GB free"
    )


def test_memory_that_was_given_back_was_taken() -> None:
    before = resident_bytes()
    with memory._resident_peak() as peak:
        for _ in range(20):
            np.ones(26_000_000)
    assert 200_000_000 < peak[0] - before < 260_000_000
    assert resident_bytes() - before < 100_000_000


def test_what_a_build_takes_is_said_before_it_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts = saved(tmp_path / "model"), word_files(tmp_path, (50, 20))
    output = build(model, texts, tmp_path / "index")
    said = capsys.readouterr().err.splitlines()
    (line,) = (line for line in said if line.startswith("memory: "))
    assert said.index(line) == 1 + next(n for n, line in enumerate(said) if line.startswith("indexing "))
    with indexer.open_index(output) as index:
        totals = index.info()["totals"]
    assert totals["peak_memory_planned_bytes"] > 50_000_000
    monkeypatch.setattr(memory, "free_main_memory", lambda: -1)
    with pytest.raises(IndexerError, match=r"^batches of 4,096 tokens take .* are free; use a smaller"):
        build(model, texts, tmp_path / "other")


@pytest.mark.slow
def test_it_is_within_a_tenth_of_the_peak(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(library_text())
    output = tmp_path / "index"
    command = [sys.executable, "-m", "indexer", "build", str(model_folder()), str(tmp_path / "text.txt")]
    taken = measured([*command, "--output", str(output), "--max-tokens", "13000", "--threads", "1"])
    with indexer.open_index(output) as index:
        said = index.info()["totals"]["peak_memory_planned_bytes"]
    assert 0.9 < said / taken.peak_bytes < 1.1
