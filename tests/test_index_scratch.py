"""What a killed writer left is cleared away by the next; not what a living one writes, nor an old index."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from indexer.index import output as output_module
from indexer.index import scratch
from indexer.index.scratch import Scratch, put_back, put_right
from tests.index_cases import ragged_record, write_index


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ROOT = Path(__file__).parents[1]
HOLDING = """
import sys, time
from pathlib import Path
from indexer.index.scratch import Scratch

mine = Scratch(Path(sys.argv[1]))
mine.index.mkdir()
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def _started(program: str, target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that runs a program with an output; it ends with the block."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-c", program, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    target = tmp_path / "a.index"
    with _started(HOLDING, target) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        (left,) = tmp_path.glob(".a.index.*.partial")
        # an index of the same name is written meanwhile
        write_index(target, [ragged_record(0)])
        assert _left(tmp_path) == [left.name, "a.index"]
        assert _left(left) == ["index", "lock"]
    put_right(target)
    assert _left(tmp_path) == ["a.index"]


def test_only_what_is_ours_is_cleared_away(tmp_path: Path) -> None:
    target = tmp_path / "a.index"
    kept = [".a.index.0123456g.partial", ".a.index.01234567.partially", ".b.index.01234567.partial"]
    for name in [*kept, ".a.index.01234567.partial"]:
        (tmp_path / name / "index").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".a.index.89abcdef.partial").symlink_to(elsewhere)
    put_right(target)
    assert _left(tmp_path) == sorted([*kept, ".a.index.89abcdef.partial", "elsewhere"])
    assert _left(elsewhere) == []
    put_right(tmp_path / "missing" / "a.index")


# the system that runs this may exchange two folders in one step; this is what others do, killed in between
REPLACED = """
import os, signal, sys
from pathlib import Path
from indexer.index import output
from tests.index_cases import ragged_record, write_index

rename = os.rename
def killed(source, target):
    rename(source, target)
    if str(target).endswith(".old"):
        os.kill(os.getpid(), signal.SIGKILL)

output._exchange = lambda first, second: False
os.rename = killed
write_index(Path(sys.argv[1]), [ragged_record(1)], overwrite=True)
"""


def test_an_index_that_was_put_aside_comes_back(tmp_path: Path) -> None:
    target = write_index(tmp_path / "a.index", [ragged_record(0)])
    before = (target / "manifest.json").read_bytes()
    with _started(REPLACED, target) as other:
        assert other.wait(60) == -signal.SIGKILL
    assert not target.exists()
    put_right(target)
    assert _left(tmp_path) == ["a.index"]
    assert (target / "manifest.json").read_bytes() == before


def test_nothing_is_put_over_what_came_in_its_place(tmp_path: Path) -> None:
    target, index = tmp_path / "a.index", tmp_path / "work" / "index"
    for folder in (target, index.with_name("index.old")):
        folder.mkdir(parents=True)
    (target / "new").touch()
    assert put_back(index, target)
    assert _left(target) == ["new"]


def test_without_locks_nothing_is_taken_for_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "locked", lambda file: None)
    mine = Scratch(tmp_path / "a.index")
    put_right(tmp_path / "a.index")
    assert len(_left(tmp_path)) == 1
    mine.close()
    assert _left(tmp_path) == []


@pytest.mark.parametrize("one_step", [True, False])
def test_a_replacement_that_cannot_be_flushed_is_undone(
    one_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, folder = tmp_path / "target", tmp_path / "folder"
    for path in (target, folder):
        path.mkdir()
        (path / path.name).touch()

    def full(path: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(output_module, "flush", full)
    if not one_step:
        monkeypatch.setattr(output_module, "_exchange", lambda first, second: False)
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            output_module.put_in_place(folder, target)
        assert _left(folder) == ["folder"]
        assert not target.exists() or _left(target) == ["target"]
        # and the same where there is none to replace
        shutil.rmtree(target, ignore_errors=True)
