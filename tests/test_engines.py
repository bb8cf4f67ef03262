"""Several workers, one of which is killed, leave the index of a single process."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from indexer.config.build import BuildConfig
from indexer.config.share import GPU_BUILDS
from indexer.engines import build, processes, ray_engine
from indexer.engines.storage import Storage
from indexer.errors import IndexerError
from indexer.index.unfinished import progress_of, read_events
from tests.real_model import minilm, standard_library
from tests.test_pipeline import tables

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    text = Path(standard_library("argparse.py")[0]).read_text()
    for number in range(8):
        (folder / f"{number}.txt").write_text(text[number * 9000 : number * 9000 + 8000])
    return [str(folder)]


def options(output: Path, corpus: list[str], **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {
        "top": 3, "bottom": 2, "context": 48, "layers": "0", "panel": 6, "batch_tokens": 256, "threads": 1,
        "piece_bytes": 9000, "checkpoint_minutes": 0,
    }  # fmt: skip
    return BuildConfig(model=str(minilm()), corpus=tuple(corpus), output=output, **{**plain, **changes})


@pytest.fixture(scope="module")
def expected(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("index") / "a.index"
    return tables(build(options(output, corpus, checkpoint_minutes=5)))


@contextmanager
def killed(shards: Path, is_worker: Callable[[psutil.Process], bool]) -> Iterator[list[int]]:
    """Kills one worker as soon as a shard has a checkpoint and is not finished; gives what was killed."""
    victims: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not victims:
            if any(shards.glob("*.build/checkpoint.json")):
                workers = filter(is_worker, psutil.Process().children(recursive=True))
                for worker in list(workers)[:1]:
                    os.kill(worker.pid, signal.SIGKILL)
                    victims.append(worker.pid)
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield victims
    finally:
        over.set()
        thread.join()


def _says(process: psutil.Process, word: str) -> bool:
    try:
        return any(word in part for part in process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_processes_one_of_them_killed(corpus: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    config = options(tmp_path / "a.index", corpus, workers=2, threads=2)
    with (
        killed(tmp_path / "a.index.shards", lambda one: _says(one, "indexer.engines.worker")) as victims,
        pytest.raises(IndexerError, match=r"worker [01] of 2: killed by signal 9, .*command continues$"),
    ):
        build(config)
    assert len(victims) == 1
    state = progress_of(config.output)
    assert state is not None
    assert state["state"] == "1 of 2 shards finished"
    with pytest.raises(IndexerError, match="cut into 2, not 3; give the same number"):
        build(config.model_copy(update={"workers": 3, "threads": 3}))
    assert tables(build(config)) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.index"]


@pytest.mark.slow
def test_a_worker_says_what_is_wrong(corpus: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.txt").write_text("good text " * 2000)
    (bad / "b.txt").write_bytes(b"bad \xff text")
    with pytest.raises(IndexerError, match=r"worker 1 of 2: corpus file .*b\.txt.*UTF-8"):
        build(options(tmp_path / "a.index", [str(bad)], workers=2))


@pytest.mark.slow
def test_stopped_workers_say_what_is_kept(
    corpus: list[str],
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = options(tmp_path / "a.index", corpus, workers=2, threads=2)
    shards = tmp_path / "a.index.shards"

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    def interrupted_later(*arguments: Any) -> None:
        while not any(shards.glob("*.build/checkpoint.json")):
            time.sleep(0.05)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(processes, "_watch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(config)
        assert "stopped before there was anything to keep" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
        patched.setattr(processes, "_watch", interrupted_later)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    said = capsys.readouterr().err
    kept = sum(
        max(event["tokens"] for event in read_events(folder / "build.log.jsonl") if "tokens" in event)
        for folder in shards.iterdir()
    )
    assert f"stopped; {kept:,} tokens are kept in {shards}, and the same command continues there" in said
    assert tables(build(config)) == expected


def test_workers_that_have_nothing_to_do(corpus: list[str], tmp_path: Path) -> None:
    def said(workers: int, piece_bytes: int) -> str | None:
        config = options(tmp_path / "a.index", corpus, workers=workers, piece_bytes=piece_bytes)
        return processes.idle_workers(config)

    assert said(3, 9000) is None
    assert said(4, 9000) is None
    found = said(5, 9000)
    assert found is not None
    assert "warning: only 4 of 5 workers have text, for it is in no more pieces; --piece-bytes " in found
    assert said(5, int(found.split("--piece-bytes ")[1].split()[0])) is None
    assert str(said(9, 9000)).endswith("; give it as several files")
    # of a size that is not known
    hub = options(tmp_path / "a.index", [*corpus, "hf://datasets/some/text"], workers=9)
    assert str(processes.idle_workers(hub)).endswith("; give it as several files")


def test_gpus_are_counted_without_a_torch_that_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys; from indexer.engines.processes import _gpus; print(_gpus(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for_cpus = torch.version.cuda is None and torch.version.hip is None
    assert done.stdout.split() == [str(torch.cuda.device_count()), str(not for_cpus)]
    monkeypatch.setattr(processes.runpy, "run_path", lambda path: {"cuda": "13.0", "hip": None})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert processes._gpus() == 3


@pytest.mark.parametrize(
    ("device", "gpus", "visible", "seen"),
    [
        ("auto", 2, None, ["0", "1", "0", "1", "0"]),
        ("cuda", 8, None, ["0", "1", "2", "3", "4"]),
        ("cuda", 1, None, ["0"] * 5),
        # of those that this process sees, by whatever names; what stands behind is not there
        ("auto", 2, "4,7", ["4", "7", "4", "7", "4"]),
        ("auto", 2, "GPU-a,GPU-b,-1,3", ["GPU-a", "GPU-b", "GPU-a", "GPU-b", "GPU-a"]),
        ("spread", 8, None, ["0", "1,2", "3", "4,5", "6,7"]),
        ("spread", 5, "9,8,7,6,5", ["9", "8", "7", "6", "5"]),
        # one that is named, or none
        ("cuda:1", 2, None, [None] * 5),
        ("cpu", 2, None, [None] * 5),
        ("cpu", 2, "1", ["1"] * 5),
        ("auto", 0, None, [None] * 5),
        ("auto", 0, "", [""] * 5),
    ],
)
def test_each_worker_sees_its_own_gpu(
    device: str,
    gpus: int,
    visible: str | None,
    seen: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[dict[str, str]] = []

    def start(command: list[str], *, env: dict[str, str], **options: Any) -> Any:
        started.append(env)
        return SimpleNamespace(stdin=io.BytesIO(), returncode=0)

    monkeypatch.setattr(processes, "_gpus", lambda: gpus)
    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with processes._started(options(tmp_path / "a.index", ["."], workers=5, device=device)):
        pass
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in started] == seen
    assert all(environment["PATH"] == os.environ["PATH"] for environment in started)
    # and how many others see it, too
    names = [environment.get(GPU_BUILDS) for environment in started]
    whole = device == "spread" or gpus == 0
    assert names == [str(seen.count(name)) if not whole else names[0] for name in seen]


def test_more_workers_than_gpus_to_spread_over(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_gpus", lambda: 3)
    message = (
        "--workers 4 with --device spread: each takes one GPU at least, and this machine has 3; use fewer"
    )
    with pytest.raises(IndexerError, match=message):
        build(options(tmp_path / "a.index", corpus, workers=4, device="spread"))


def test_a_worker_on_ray_has_one_gpu(tmp_path: Path) -> None:
    def workers(device: str, **resources: float) -> tuple[int, dict[str, float]]:
        cluster = SimpleNamespace(cluster_resources=lambda: resources)
        return ray_engine._workers(cluster, options(tmp_path / "a.index", ["."], ray="local", device=device))

    for device in ("auto", "cuda"):
        assert workers(device, GPU=3.0, CPU=16.0) == (3, {"num_gpus": 1, "num_cpus": 1})
    assert workers("cpu", GPU=3.0, CPU=16.0) == workers("auto", CPU=16.0) == (16, {"num_cpus": 1})
    with pytest.raises(IndexerError, match="--ray local with --device cuda: the cluster has no GPU"):
        workers("cuda", CPU=16.0)
    for device in ("spread", "cuda:1"):
        with pytest.raises(IndexerError, match=f"--ray with --device {device}: a worker sees the one GPU"):
            workers(device, GPU=3.0)


@pytest.mark.slow
@needs_ray
def test_ray_with_a_worker_killed(corpus: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    config = options(tmp_path / "a.index", corpus, ray="local", shards=4)
    log: list[str] = []

    def is_worker(process: psutil.Process) -> bool:
        found = _says(process, "ray::Worker.build")
        if found and not log:
            paths = (tmp_path / "a.index.shards").glob("*.build/build.log.jsonl")
            log.extend(event["event"] for path in paths for event in read_events(path))
        return found

    with killed(tmp_path / "a.index.shards", is_worker) as victims:
        output = build(config)
    assert len(victims) == 1
    assert "checkpoint" in log
    assert tables(output) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.index"]


@pytest.mark.slow
@needs_ray
def test_ray_with_object_storage(corpus: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    config = options(
        tmp_path / "a.index", corpus, ray="local", shards=2, storage=f"file://{tmp_path}/store",
        checkpoint_minutes=5,
    )  # fmt: skip
    assert tables(build(config)) == expected
    stored = tmp_path / "store" / "0-of-2.index"
    assert (stored / "manifest.json").exists()
    # a shard that is there is not built again, and one that was changed is noticed
    (stored / "units.parquet").write_bytes(b"PAR1")
    with pytest.raises(IndexerError, match=r"units\.parquet is not the file that was put there"):
        build(config.model_copy(update={"overwrite": True}))


@pytest.mark.slow
@needs_ray
def test_a_mistake_on_ray_is_one_line(corpus: list[str], tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match=r"shard 0 of 1: unknown layer|shard 0 of 1: .*layers"):
        build(options(tmp_path / "a.index", corpus, ray="local", shards=1, layers="40"))


def test_storage_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match="--storage nonsense://bucket"):
        Storage("nonsense://bucket")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(IndexerError, match=r"manifest\.json"):
        Storage(f"file://{tmp_path}/store").put(tmp_path / "index")
