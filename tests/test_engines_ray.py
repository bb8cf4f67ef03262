"""What the engine makes of Ray's news: workers that die, shards that kill them, shards that are stored."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from indexer.building.progress import Progress
from indexer.config.build import BuildConfig
from indexer.config.share import MEMORY
from indexer.engines import build, ray_engine
from indexer.engines.shards import shard_output
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.schema import LOG, MANIFEST
from tests.test_engines_stopped import corpus, model, options
from tests.test_pipeline import tables

__all__ = ["corpus", "model"]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"
)


class FakeRay:
    """A cluster in this process. results: of the builds of a shard, one after the other; then 10 tokens."""

    exceptions = SimpleNamespace(
        RayError=type("RayError", (Exception,), {}), RayTaskError=type("Never", (Exception,), {})
    )

    def __init__(self, results: dict[int, list[Any]], starts: list[Any]) -> None:
        self.results, self.starts = results, starts
        self.started = 0
        self.built: list[int] = []
        self.killed: list[Any] = []

    def actor(self) -> Any:
        self.started += 1
        outcome = self.starts.pop(0) if self.starts else None

        def build(text: str, shard: int, shards: int) -> Any:
            self.built.append(shard)
            waiting = self.results.get(shard)
            return (shard, waiting.pop(0) if waiting else 10)

        return SimpleNamespace(
            build=SimpleNamespace(remote=build),
            __ray_ready__=SimpleNamespace(remote=lambda number=self.started: ("ready", number, outcome)),
        )

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        result = reference[-1]() if callable(reference[-1]) else reference[-1]
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self, worker: Any) -> None:
        self.killed.append(worker)


def dead(tokens: int | None = None, folder: Path | None = None) -> Any:
    """A worker that dies, after a checkpoint of so many tokens."""

    def die() -> Exception:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / LOG, "a") as file:
                file.write(json.dumps({"event": "checkpoint", "tokens": tokens, "share": 0.1}) + "\n")
        return FakeRay.exceptions.RayError("The actor died unexpectedly.\n\tclass_name: Worker")

    return die


def run(
    output: Path, results: dict[int, list[Any]], starts: list[Any] | None = None, shards: int = 3
) -> tuple[FakeRay, ray_engine._Run, str]:
    ray, stream = FakeRay(results, starts or []), io.StringIO()
    config = BuildConfig(model="m", corpus=("c",), output=output, ray="local")
    outputs = [shard_output(output, shard, shards) for shard in range(shards)]
    whole = ray_engine._Run(ray, SimpleNamespace(remote=ray.actor), config, outputs, Progress(stream))
    try:
        whole.run(2)
    finally:
        said = stream.getvalue()
    return ray, whole, said


def test_a_worker_that_dies_is_replaced_and_that_is_said(tmp_path: Path) -> None:
    ray, whole, said = run(tmp_path / "a.index", {1: [dead(), dead()], 2: [dead()]})
    assert sorted(ray.built) == [0, 1, 1, 1, 2, 2]
    assert ray.started == 5
    assert len(ray.killed) == 3
    assert whole.standing.parts == [(1.0, 10)] * 3
    line = "shard 1 of 3: a worker died, another one takes over; Ray says: The actor died unexpectedly.\n"
    assert said.count(line) == 2


def test_a_shard_that_always_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(
        IndexerError,
        match=r"shard 1 of 3: 3 workers died, .* without getting any further; Ray says: The actor died "
        r"unexpectedly\. The same command tries again, --shard 1/3 in place of --ray shows why",
    ):
        run(tmp_path / "a.index", {1: [dead()] * 9})


def test_a_shard_that_gets_on_is_not_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "a.index.shards" / "0-of-3.index.build"
    deaths = [dead(100, folder), dead(100, folder), dead(250, folder), dead(250, folder), dead(300, folder)]
    ray, _, said = run(tmp_path / "a.index", {0: [*deaths]})
    assert ray.built.count(0) == 6
    assert said.count("shard 0 of 3: a worker died") == 5
    with pytest.raises(IndexerError, match="shard 0 of 3: 3 workers died"):
        run(tmp_path / "a.index", {0: [*deaths[:2], dead(100, folder)]})


def test_workers_that_never_start_are_given_up(tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match="the start of a worker: 3 workers died"):
        run(tmp_path / "a.index", {}, [dead()] * 5)
    # but not where others start in between
    ray, _, said = run(tmp_path / "a.index", {}, [dead(), dead(), None, dead()])
    assert said.count("the start of a worker: a worker died, another one takes over") == 3
    assert sorted(ray.built) == [0, 1, 2]


def stored(model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> int:
    monkeypatch.setattr(ray_engine, "_part_of_node", lambda: 1 << 40)
    # set by the worker in what is a process of its own elsewhere
    monkeypatch.setenv(MEMORY, "0")
    config = options(
        model, corpus, tmp_path / "a.index", ray="local", storage=f"file://{tmp_path}/store", **changes
    )
    return ray_engine.Worker().build(config.model_dump_json(), 0, 2)


def test_a_stored_shard_is_that_of_the_build_that_is_asked_for(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "store" / "0-of-2.index"
    tokens = stored(model, corpus, tmp_path, monkeypatch)
    assert tokens == read_manifest(index).totals["counted_tokens"]
    before = (index / MANIFEST).read_bytes()
    # one that is there is not built again, whatever is to be overwritten
    for overwrite in (False, True):
        assert stored(model, corpus, tmp_path, monkeypatch, overwrite=overwrite) == tokens
        assert (index / MANIFEST).read_bytes() == before
    with pytest.raises(
        IndexerError, match=r"output file://.*store/0-of-2\.index: already .*--top was 3 and is 4"
    ):
        stored(model, corpus, tmp_path, monkeypatch, top=4)
    assert (index / MANIFEST).read_bytes() == before
    stored(model, corpus, tmp_path, monkeypatch, top=4, overwrite=True)
    assert read_manifest(index).configuration["top"] == 4


@pytest.mark.slow
@needs_ray
def test_ray_gives_a_deadly_shard_up(
    model: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Deadly(ray_engine.Worker):
        def build(self, options: str, shard: int, shards: int) -> int:
            if shard == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().build(options, shard, shards)

    config = options(model, corpus, tmp_path / "a.index", ray="local", shards=3)
    with monkeypatch.context() as patched:
        patched.setattr(ray_engine, "Worker", Deadly)
        with pytest.raises(IndexerError, match=r"shard 1 of 3: 3 workers died"):
            build(config)
    assert capsys.readouterr().err.count("shard 1 of 3: a worker died, another one takes over") == 2
    expected = tables(build(options(model, corpus, tmp_path / "b.index")))
    assert tables(build(config)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.index", "b.index"]
