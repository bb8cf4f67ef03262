"""A disk that is full at any call: one clear line, the last checkpoint holds, repeating heals it.

The disk is tests/native/full_disk.c, loaded into the process that runs the commands; what fails is a sample
of all calls that take room. `python -m tests.test_full_disk` has every one of them fail.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.report import WrongResultError
from benchmarks.survive_scenes import APPEND, BUILD, MERGE, OUTPUT, REPLACE, Scene, Server, scenes
from indexer import open_index
from tests.tiny_models import saved, words

SHIM = Path(__file__).parent / "native" / "full_disk.c"
SAMPLE = {BUILD: 10, REPLACE: 4, APPEND: 6, MERGE: 4}


def compiled(folder: Path) -> Path:
    """The shim, for LD_PRELOAD; the test is skipped where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not os.path.isdir("/proc/self/fd"):
        pytest.skip("no C compiler, or no /proc, for a disk that is full")
    library = folder / "full_disk.so"
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"]
    subprocess.run([*command, str(library), str(SHIM), "-ldl", "-lpthread"], check=True)
    return library


@contextmanager
def staged(folder: Path) -> Iterator[dict[str, Scene]]:
    """The commands over a tiny model and text, on a disk that can be full."""
    chosen = random.Random(0)
    model = saved(folder / "model", "bert")
    texts = [" ".join(chosen.choices(words(), k=150)) for _ in range(3)]
    (folder / "corpus").mkdir()
    for number, text in enumerate(texts):
        (folder / "corpus" / f"{number}.txt").write_text(text)
    more = folder / "more.txt"
    more.write_text(texts[0][:200])
    environment = {"LD_PRELOAD": str(compiled(folder)), "FULL_DISK_FOLDER": str(folder / "here")}
    server = Server(model, {**os.environ, **environment})
    try:
        yield scenes(server, folder, [str(folder / "corpus")], more, len(texts[0]) + len(texts[1]))
    finally:
        server.close()


def every_call(scene: Scene) -> list[tuple[int, bool]]:
    """All that can fail: the number of the call, and whether that one alone."""
    scene.fresh()
    calls = scene.run(full=0)["calls"]
    return [(call, only) for call in range(1, calls + 1) for only in (False, True)]


def check(scene: Scene, call: int, only: bool) -> None:
    """Run the command on a disk that is full at a call, then on one that is not."""
    what = f"{scene.name}, disk full {'in' if only else 'from'} call {call}"
    scene.fresh()
    answer = scene.run(full=call, only=only)
    # two folders that cannot be exchanged are renamed one after the other
    if not (only and answer["status"] == 0 and scene.name in (REPLACE, APPEND)):
        assert answer["status"] == 2, f"{what}: {answer}"
        lines = [line for line in answer["said"].splitlines() if "rror" in line or "Trace" in line]
        assert len(lines) == 1, f"{what}: {answer['said']}"
        assert lines[0].startswith("error: "), f"{what}: {lines[0]}"
        for part in ("No space left on device", "make room", "run the same command"):
            assert part in lines[0], f"{what}: {lines[0]}"
    scene.left(what)
    _check_left(scene, what, "The last checkpoint holds" in answer["said"])
    scene.finish(what)


def _check_left(scene: Scene, what: str, held: bool) -> None:
    """There lies what was there, and unfinished builds that can go on; each checkpoint is an index."""
    lying = {path.name for path in scene.here.iterdir()}
    assert lying <= {OUTPUT, f"{OUTPUT}.build", f"{OUTPUT}.shards"}, f"{what}: left {lying}"
    builds = list(scene.here.rglob("*.build"))
    assert bool(builds) >= held, f"{what}: no checkpoint is there"
    for build in builds:
        assert (build / "checkpoint.json").exists(), f"{what}: {build.name} cannot be continued"
    half = [path.name for path in scene.here.rglob("*") if path.name.endswith((".new", ".partial", ".old"))]
    assert not [*half, *scene.here.rglob("publishing")], f"{what}: {half}"
    for index in scene.here.rglob("checkpoint-*/index"):
        with open_index(index) as opened:
            opened.verify(full=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scene]]:
    with staged(tmp_path_factory.mktemp("disk").resolve()) as scenes_found:
        yield scenes_found


@pytest.mark.parametrize("name", SAMPLE)
def test_a_full_disk_is_told_and_harms_nothing(name: str, found: dict[str, Scene]) -> None:
    for call, only in random.Random(0).sample(every_call(found[name]), SAMPLE[name]):
        check(found[name], call, only)


def main() -> None:
    """Every call of every command; prints what goes wrong, and how many did not."""
    right: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, staged(Path(folder).resolve()) as found:
        for name, scene in found.items():
            calls = every_call(scene)
            for call, only in calls:
                try:
                    check(scene, call, only)
                    right[name] += 1
                except (AssertionError, WrongResultError) as error:
                    print(error, flush=True)
            print(f"{name}: {right[name]} of {len(calls)} as they should be", flush=True)


if __name__ == "__main__":
    main()
