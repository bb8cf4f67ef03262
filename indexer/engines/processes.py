"""Several processes of one machine, each with a shard of the corpus: one for each GPU, or for some cores."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from indexer.building.progress import Progress
from indexer.building.signals import StopRequest
from indexer.config.build import BuildConfig
from indexer.config.share import GPU_BUILDS, MEMORY
from indexer.corpus import Corpus
from indexer.engines.shards import (
    Standing,
    count_of_shards,
    held_shards,
    is_finished,
    merge_parts,
    shard_output,
    stopped,
)
from indexer.errors import IndexerError
from indexer.index.output import check_output
from indexer.index.scratch import put_right

POLL_SECONDS = 0.5
# GPUs by number or name, as CUDA reads them when a process first asks
VISIBLE = "CUDA_VISIBLE_DEVICES"
_MISTAKE = "error: "


@dataclass
class Worker:
    """One process at work on one shard."""

    shard: int
    output: Path
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def message(self) -> str:
        """What it ended with, in one line."""
        self.said.seek(0)
        lines = [line for line in self.said.read().decode("utf-8", "replace").splitlines() if line.strip()]
        mistakes = [line for line in lines if line.startswith(_MISTAKE)]
        status = self.process.returncode
        if mistakes:
            return mistakes[-1].removeprefix(_MISTAKE)
        if status < 0:
            # no last words of its own; the lines before tell of progress
            return f"killed by signal {-status}, perhaps for want of memory; the same command continues"
        return f"exit status {status}{': ' if lines else ''}{''.join(lines[-1:])}"


def build_in_processes(config: BuildConfig) -> Path:
    """Build with `config.workers` processes and merge; returns the index.

    Raises IndexerError where a worker fails, after the others are done; the same call continues their work.
    """
    put_right(config.output.resolve())
    if is_finished(config):
        return config.output
    check_output(config.output, config.overwrite)
    progress = Progress()
    try:
        with held_shards(config.output):
            count_of_shards(config)
            idle = idle_workers(config)
            if idle is not None:
                progress.say(idle)
            with StopRequest() as stop, _started(config) as workers:
                _watch(workers, progress, stop)
            progress.close()
            failed = [worker for worker in workers if worker.process.returncode]
            if failed:
                raise IndexerError(f"worker {failed[0].shard} of {len(workers)}: {failed[0].message()}")
            parts = [worker.output for worker in workers]
            return merge_parts(parts, config.output, overwrite=config.overwrite)
    except KeyboardInterrupt:
        progress.say(stopped(config.output))
        raise
    finally:
        progress.close()


def idle_workers(config: BuildConfig) -> str | None:
    """What to say where there are more workers than pieces of the corpus; None where there are not.

    Raises IndexerError where a source is missing.
    """
    corpus = Corpus.of(config)
    pieces, workers = len(corpus.pieces(config.piece_bytes)), config.workers
    if pieces >= workers:
        return None
    finer = (corpus.bytes or 0) // (8 * workers)
    cut = finer > 0 and len(corpus.pieces(finer)) >= workers
    way_out = f"--piece-bytes {finer} cuts it finer" if cut else "give it as several files"
    return f"warning: only {pieces} of {workers} workers have text, for it is in no more pieces; {way_out}"


@contextmanager
def _started(config: BuildConfig) -> Iterator[list[Worker]]:
    """The workers; told to stop, with their work kept, where the block is left early."""
    environments = [worker_environment(config, shard, os.environ) for shard in range(config.workers)]
    workers: list[Worker] = []
    try:
        for shard in range(config.workers):
            workers.append(_start(config, shard, environments[shard]))
        yield workers
    except BaseException:
        _end([worker.process for worker in workers])
        raise
    finally:
        for worker in workers:
            # a message may still be asked for, and the operating system takes the file away afterwards
            if worker.process.returncode == 0:
                worker.said.close()


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Have them keep their work and end; where Ctrl-C comes once more, end at once."""
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
            process.wait()
        raise


def _start(config: BuildConfig, shard: int, environment: Mapping[str, str]) -> Worker:
    share = shard_config(config, shard, config.workers)
    said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    process = subprocess.Popen(
        [sys.executable, "-m", "indexer.engines.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(share.model_dump_json().encode())
    process.stdin.close()
    return Worker(shard, shard_output(config.output, shard, config.workers), process, said)


def shard_config(config: BuildConfig, shard: int, shards: int) -> BuildConfig:
    """The configuration of one shard, with its part of this machine's cores."""
    cores = config.threads or psutil.cpu_count(logical=False) or 1
    return config.model_copy(
        update={
            "shard": (shard, shards),
            "threads": max(1, cores // config.workers),
            "workers": 1,
            "ray": None,
            "shards": None,
        }
    )


def worker_environment(config: BuildConfig, shard: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of one worker, who sees its own GPUs alone: one, or with device spread its share.

    It also says which part of the memory is the worker's, see indexer.config.share.
    environment: of this process; GPUs that it does not see are left to others.
    Raises IndexerError where there are not as many GPUs as workers that want several.
    """
    count, workers = 0 if config.device == "cpu" else _gpus(), config.workers
    shared = {**environment, MEMORY: str(psutil.virtual_memory().available // workers)}
    listed = environment.get(VISIBLE)
    gpus = [str(number) for number in range(count)] if listed is None else listed.split(",")[:count]
    if config.device == "spread":
        if count < workers:
            raise IndexerError(
                f"--workers {workers} with --device spread: each takes one GPU at least, and "
                f"this machine has {count}; use fewer workers, or --device cpu"
            )
        gpus = gpus[shard * count // workers : (shard + 1) * count // workers]
        return {**shared, VISIBLE: ",".join(gpus)}
    if config.device in ("auto", "cuda") and gpus:
        on_it = len(range(shard % count, workers, count))
        return {**shared, VISIBLE: gpus[shard % count], GPU_BUILDS: str(on_it)}
    # none, or one that was named, which all share
    return {**shared, GPU_BUILDS: str(workers)}


def _gpus() -> int:
    """GPUs that torch sees."""
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version is not None and version.is_file():
        # what torch is built for, without its import, which takes seconds while no worker has begun
        built_for = runpy.run_path(str(version))
        if built_for.get("cuda") is None and built_for.get("hip") is None:
            return 0
    import torch

    return torch.cuda.device_count()


def _watch(workers: list[Worker], progress: Progress, stop: StopRequest) -> None:
    """Show how far they are until all have ended. Raises KeyboardInterrupt where a stop is requested."""
    progress.say(f"{len(workers)} workers, each with a shard of the corpus")
    standing = Standing([worker.output for worker in workers])
    progress.start_sum(standing.parts)
    # what merges their parts is loaded while they work
    importlib.import_module("indexer.partials.merge")
    while any(worker.process.poll() is None for worker in workers):
        time.sleep(POLL_SECONDS)
        if stop.requested:
            raise KeyboardInterrupt
        standing.look(range(len(workers)))
        progress.show_sum(standing.parts)
