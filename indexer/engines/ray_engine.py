"""Ray as the engine: an actor for each GPU or group of cores, shards handed out to whoever is free.

Ray starts dead actors again and repeats their shard; a shard's folder lies on storage that all nodes share,
so it continues from its last checkpoint. With `storage`, an fsspec URL, workers build on their own disk and
put finished shards there; a shard whose node dies then begins anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from indexer.config import BuildConfig
from indexer.engines.shards import (
    build_shard,
    count_of_shards,
    is_finished,
    make_folder,
    merge_parts,
    shard_output,
    shard_progress,
    shards_folder,
    stopped,
)
from indexer.engines.storage import Storage
from indexer.errors import IndexerError
from indexer.index.output import check_output
from indexer.index.scratch import put_right
from indexer.progress import Progress
from indexer.work.durable import remove

LOCAL = "local"
SHARDS_PER_WORKER = 4
# what a worker on CPUs takes where --threads does not say
THREADS = 4
POLL_SECONDS = 1.0


class Worker:
    """What runs in an actor: one shard after the other, on one GPU or some cores."""

    def build(self, options: str, shard: int, shards: int) -> str:
        """Build one shard; returns where its partial index is. options: BuildConfig as JSON."""
        config = BuildConfig.model_validate_json(options).model_copy(
            update={"shard": (shard, shards), "ray": None, "shards": None, "storage": None}
        )
        storage = Storage(BuildConfig.model_validate_json(options).storage)
        if not storage.remote:
            return str(build_shard(config))
        name = shard_output(config.output, shard, shards).name
        if not storage.has(name):
            with tempfile.TemporaryDirectory() as folder:
                here = config.model_copy(update={"output": Path(folder) / config.output.name})
                storage.put(build_shard(here), name)
        return storage.place(name)


def build_on_ray(config: BuildConfig) -> Path:
    """Build on the cluster at `config.ray` and merge here; returns the index.

    Raises IndexerError where Ray is not there, and where a shard fails for a reason that trying again does
    not cure. The same call continues what was done.
    """
    put_right(config.output.resolve())
    if is_finished(config):
        return config.output
    check_output(config.output, config.overwrite)
    folder, storage = shards_folder(config.output), Storage(config.storage)
    progress = Progress()
    with _cluster(config) as ray:
        workers, resources = _workers(ray, config)
        shards = count_of_shards(config) or config.shards or SHARDS_PER_WORKER * workers
        if not storage.remote:
            make_folder(folder)
        progress.say(f"{shards} shards for {workers} workers on Ray")
        try:
            _run(ray, config, shards, workers, resources, progress)
        except KeyboardInterrupt:
            if not storage.remote:
                progress.say(stopped(config.output))
            raise
        finally:
            progress.close()
    with storage.fetched([shard_output(config.output, shard, shards) for shard in range(shards)]) as parts:
        output = merge_parts(parts, config.output, overwrite=config.overwrite)
    remove(folder)
    return output


def _run(
    ray: Any, config: BuildConfig, shards: int, workers: int, resources: dict[str, float], progress: Progress
) -> None:
    """Every shard once, by whoever is free."""
    actor = ray.remote(max_restarts=-1, max_task_retries=-1, **resources)(Worker)
    threads = config.threads or THREADS
    options = config.model_copy(update={"threads": threads, "output": config.output.absolute()})
    text = options.model_dump_json()
    waiting = list(range(shards))
    idle = [actor.remote() for _ in range(min(workers, shards))]
    running: dict[Any, tuple[int, Any]] = {}
    outputs = [shard_output(config.output, shard, shards) for shard in range(shards)]
    finished: set[int] = set()
    progress.start_sum([shard_progress(output) for output in outputs])
    while waiting or running:
        while waiting and idle:
            shard, worker = waiting.pop(0), idle.pop()
            running[worker.build.remote(text, shard, shards)] = (shard, worker)
        done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        for reference in done:
            shard, worker = running.pop(reference)
            _result(ray, reference, shard, shards)
            finished.add(shard)
            idle.append(worker)
        progress.show_sum([shard_progress(outputs[shard], shard in finished) for shard in range(shards)])


def _result(ray: Any, reference: Any, shard: int, shards: int) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        told = str(error.cause) if isinstance(error.cause, IndexerError) else str(error).splitlines()[-1]
        raise IndexerError(f"shard {shard} of {shards}: {told}") from error
    except ray.exceptions.RayError as error:
        raise IndexerError(f"shard {shard} of {shards}: Ray says: {str(error).splitlines()[0]}") from error


@contextmanager
def _cluster(config: BuildConfig) -> Iterator[Any]:
    """Ray, connected; one that was started here is stopped afterwards."""
    try:
        import ray as package
    except ImportError:
        raise IndexerError("--ray needs the package ray: pip install 'ray>=2.55' 'fsspec>=2025.3'") from None
    # its own hints about types are narrower than what it takes
    ray: Any = package
    address = None if config.ray == LOCAL else config.ray
    begun = ray.is_initialized()
    try:
        if not begun:
            own: dict[str, Any] = {} if address else {"include_dashboard": False}
            ray.init(address=address, logging_level="ERROR", log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise IndexerError(
            f"--ray {config.ray}: no cluster answers ({str(error).splitlines()[0]}); start one with "
            "`ray start --head`, or give --ray local"
        ) from error
    try:
        yield ray
    finally:
        if not begun:
            ray.shutdown()


def _workers(ray: Any, config: BuildConfig) -> tuple[int, dict[str, float]]:
    """How many workers the cluster has room for, and what each takes of it."""
    if config.device not in ("auto", "cpu", "cuda"):
        raise IndexerError(
            f"--ray with --device {config.device}: a worker sees the one GPU that Ray gives it; use auto, "
            "cuda or cpu"
        )
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0)) if config.device != "cpu" else 0
    if gpus:
        return gpus, {"num_gpus": 1, "num_cpus": 1}
    if config.device == "cuda":
        raise IndexerError(f"--ray {config.ray} with --device cuda: the cluster has no GPU; use --device cpu")
    threads = config.threads or THREADS
    room = int(total.get("CPU", 0)) // threads
    if room < 1:
        raise IndexerError(
            f"--ray {config.ray}: the cluster has {int(total.get('CPU', 0))} CPUs, and a worker takes "
            f"{threads}; lower --threads"
        )
    return room, {"num_cpus": threads}
