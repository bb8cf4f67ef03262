"""Commands killed with SIGKILL, at random and at named points, leave the index of one that was not; a few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.report import WrongResultError
from benchmarks.survive_scenes import APPEND, BUILD, MERGE, OUTPUT, REPLACE, Scene, Server
from benchmarks.synthetic import Size, write_synthetic

SIZE = Size(layers=1, units=8, top=3, bottom=3, vocabulary=50, documents=20, count=100)


@pytest.mark.slow
def test_killed_commands_are_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["survive", "--quick", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["points_of"] == dict.fromkeys((BUILD, REPLACE, APPEND, MERGE), 2)
    assert results["equal"] == results["builds"] + results["points"] == 10
    assert results["kills"] >= results["builds"]
    # looked at after each of them
    assert sum(results["left"].values()) >= results["kills"] + results["points"]


class Copying(Server):
    """In place of the process: every command puts an index there, and does to it what it is told."""

    def __init__(self, index: Path, here: Path) -> None:
        self.index, self.here = index, here

    def run(self, command: Any, **stopped: Any) -> dict[str, Any]:
        """The answer of a command that nothing happened to."""
        shutil.rmtree(self.here / OUTPUT, ignore_errors=True)
        shutil.copytree(self.index, self.here / OUTPUT)
        return {"status": 0, "seconds": 0.0, "passed": [], "calls": 0, "said": ""}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    index = write_synthetic(tmp_path / "one.index", SIZE)
    (tmp_path / "found").mkdir()
    server = Copying(index, tmp_path / "here")
    return Scene("copy", server, tmp_path / "here", ["copy"], tmp_path / "found")


def test_what_is_not_right_is_noticed(scene: Scene, tmp_path: Path) -> None:
    scene.fresh()
    assert scene.left("first") == "nothing"
    scene.finish("first")
    assert scene.left("first") == "index in place"
    (scene.here / "litter").touch()
    with pytest.raises(WrongResultError, match=r"there lie a\.index, litter, and not a\.index"):
        scene.finish("littered")
    scene.fresh()
    (scene.here / f"{OUTPUT}.build").mkdir()
    assert scene.left("begun") == "folder without checkpoint"
    shutil.rmtree(tmp_path / "one.index")
    write_synthetic(tmp_path / "one.index", SIZE, seed=1)
    scene.fresh()
    with pytest.raises(WrongResultError, match="units differ from those of the undisturbed"):
        scene.finish("another")
    content = bytearray((scene.here / OUTPUT / "units.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (scene.here / OUTPUT / "units.parquet").write_bytes(content)
    with pytest.raises(WrongResultError, match=r"units\.parquet"):
        scene.left("damaged")


def test_an_index_that_is_lost_is_noticed(tmp_path: Path) -> None:
    index = write_synthetic(tmp_path / "one.index", SIZE)
    shutil.copytree(index, tmp_path / "found" / OUTPUT)
    scene = Scene("copy", Copying(index, tmp_path / "here"), tmp_path / "here", ["copy"], tmp_path / "found")
    shutil.rmtree(scene.here / OUTPUT)
    with pytest.raises(WrongResultError, match="the index that was there is gone"):
        scene.left("lost")
