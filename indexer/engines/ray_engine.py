"""Ray as the engine: an actor for each GPU or group of cores, shards handed out to whoever is free.

A shard whose worker dies is given to another one, until it has died too often without getting any further. A
shard's folder lies on storage that all nodes share, so it continues from its last checkpoint. With `storage`,
an fsspec URL, workers build on their own disk and put finished shards there; a shard whose node dies then
begins anew.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.building.progress import Progress
from indexer.config.build import BuildConfig
from indexer.config.share import MEMORY
from indexer.engines.shards import (
    Standing,
    build_shard,
    count_of_shards,
    held_shards,
    is_finished,
    kept_tokens,
    merge_parts,
    shard_output,
    stopped,
)
from indexer.engines.storage import Storage
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.output import check_output
from indexer.index.scratch import put_right

LOCAL = "local"
SHARDS_PER_WORKER = 4
# what a worker on CPUs takes where --threads does not say
THREADS = 4
POLL_SECONDS = 1.0
# workers that a shard may cost without getting any further
MOST_DEATHS = 3


class Worker:
    """What runs in an actor: one shard after the other, on one GPU or some cores."""

    def build(self, options: str, shard: int, shards: int) -> int:
        """Build one shard; returns its tokens. options: BuildConfig as JSON."""
        asked = BuildConfig.model_validate_json(options)
        os.environ[MEMORY] = str(_part_of_node())
        config = asked.model_copy(
            update={"shard": (shard, shards), "ray": None, "shards": None, "storage": None}
        )
        storage = Storage(asked.storage)
        if not storage.remote:
            return _tokens(build_shard(config))
        with tempfile.TemporaryDirectory() as folder:
            here = config.model_copy(update={"output": Path(folder) / config.output.name})
            with storage.kept(shard_output(here.output, shard, shards)):
                return _tokens(build_shard(here))


def _tokens(index: Path) -> int:
    return int(read_manifest(index).totals["counted_tokens"])


def _part_of_node() -> int:
    """Bytes of its node's memory that a worker may take: as much of that as of the GPUs, or of the CPUs."""
    import ray

    context = ray.get_runtime_context()
    (has,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    takes = context.get_assigned_resources()
    kind = "GPU" if "GPU" in takes else "CPU"
    return int(has["memory"] * takes[kind] / has[kind])


def build_on_ray(config: BuildConfig) -> Path:
    """Build on the cluster at `config.ray` and merge here; returns the index.

    Raises IndexerError where Ray is not there, where a shard fails for a reason that trying again does not
    cure, and where one has cost MOST_DEATHS workers. The same call continues what was done.
    """
    put_right(config.output.resolve())
    if is_finished(config):
        return config.output
    check_output(config.output, config.overwrite)
    storage, progress = Storage(config.storage), Progress()
    try:
        with _cluster(config) as ray, nullcontext() if storage.remote else held_shards(config.output):
            workers, resources = _workers(ray, config)
            shards = count_of_shards(config) or config.shards or SHARDS_PER_WORKER * workers
            progress.say(f"{shards} shards for {workers} workers on Ray")
            outputs = [shard_output(config.output, shard, shards) for shard in range(shards)]
            actor = ray.remote(**resources)(Worker)
            _Run(ray, actor, config, outputs, progress).run(workers)
            progress.close()
            with storage.fetched(outputs) as parts:
                return merge_parts(parts, config.output, overwrite=config.overwrite)
    except KeyboardInterrupt:
        if not storage.remote:
            progress.say(stopped(config.output))
        raise
    finally:
        progress.close()


class _Run:
    """Every shard once, by whoever is free.

    waiting: shards that nobody works on. starting, running: by what Ray calls their results, the workers that
    are not there yet, and the shards at work with their workers. deaths: see `_died`.
    """

    def __init__(
        self, ray: Any, actor: Any, config: BuildConfig, outputs: list[Path], progress: Progress
    ) -> None:
        self.ray, self.actor, self.outputs, self.progress = ray, actor, outputs, progress
        threads = config.threads or THREADS
        options = config.model_copy(update={"threads": threads, "output": config.output.absolute()})
        self.text = options.model_dump_json()
        self.standing = Standing(outputs)
        self.waiting = list(range(len(outputs)))
        self.starting: dict[Any, Any] = {}
        self.running: dict[Any, tuple[int, Any]] = {}
        self.deaths: dict[int | None, _Deaths] = {}

    def run(self, workers: int) -> None:
        """Do it with so many workers."""
        for _ in range(min(workers, len(self.outputs))):
            self._start()
        self.progress.start_sum(self.standing.parts)
        while self.waiting or self.running:
            done, _ = self.ray.wait([*self.running, *self.starting], timeout=POLL_SECONDS)
            for reference in done:
                self._ended(reference)
            self.standing.look(shard for shard, _ in self.running.values())
            self.progress.show_sum(self.standing.parts)

    def _start(self) -> None:
        worker = self.actor.remote()
        # a worker that the cluster has no room for yet is given no shard that another one could build
        self.starting[worker.__ray_ready__.remote()] = worker

    def _ended(self, reference: Any) -> None:
        shard, worker = self.running.pop(reference, None) or (None, self.starting.pop(reference))
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            known = isinstance(error.cause, IndexerError)
            reason = str(error.cause) if known else str(error).splitlines()[-1]
            raise IndexerError(f"{self._named(shard)}: {reason}") from error
        except self.ray.exceptions.RayError as error:
            # one that is only out of reach must not work on what another one does
            self.ray.kill(worker)
            self._died(shard, str(error).splitlines()[0])
            return
        self.deaths.pop(shard, None)
        if shard is not None:
            self.standing.done(shard, result)
        if self.waiting:
            following = self.waiting.pop(0)
            self.running[worker.build.remote(self.text, following, len(self.outputs))] = (following, worker)

    def _died(self, shard: int | None, reason: str) -> None:
        """A worker is gone, with the shard that it worked on, if any; another one takes its place."""
        kept = 0 if shard is None else kept_tokens(self.outputs[shard])
        before = self.deaths.get(shard)
        number = 1 + (before.number if before is not None and before.kept == kept else 0)
        self.deaths[shard] = _Deaths(number, kept)
        if number == MOST_DEATHS:
            alone = (
                "" if shard is None else f", --shard {shard}/{len(self.outputs)} in place of --ray shows why"
            )
            raise IndexerError(
                f"{self._named(shard)}: {number} workers died, one after the other, without getting any "
                f"further; Ray says: {reason} The same command tries again{alone}"
            )
        self.progress.say(f"{self._named(shard)}: a worker died, another one takes over; Ray says: {reason}")
        if shard is not None:
            self.waiting.insert(0, shard)
        self._start()

    def _named(self, shard: int | None) -> str:
        return "the start of a worker" if shard is None else f"shard {shard} of {len(self.outputs)}"


@dataclass(frozen=True)
class _Deaths:
    """Workers that died one after the other when so many tokens of a shard were kept."""

    number: int
    kept: int


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
