"""Of several builds on one machine each takes its own part of the memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from indexer_kernels import Keep

from indexer.config import share
from indexer.config.build import BuildConfig
from indexer.engines import processes
from indexer.errors import IndexerError
from indexer.models import adapt, memory
from indexer.models.placement import free_memory
from tests.tiny_batches import mlps
from tests.tiny_models import fresh

KEEP = Keep(top=3, bottom=2, window=(4, 3))


def test_workers_take_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 24_000_000_001
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    config = BuildConfig(model="m", corpus=("c",), output=Path("a.index"), workers=5, device="cpu")
    parts = [int(processes.worker_environment(config, shard, {})[share.MEMORY]) for shard in range(5)]
    assert sum(parts) <= free < sum(parts) + 5


def test_what_a_build_holds_already_is_part_of_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(share.MEMORY, raising=False)
    available = psutil.virtual_memory().available
    assert share.free_main_memory() == pytest.approx(available, rel=0.2)
    held = psutil.Process().memory_full_info().uss
    monkeypatch.setenv(share.MEMORY, str(held + 100_000_000))
    assert share.free_main_memory() == pytest.approx(100_000_000, abs=20_000_000)
    block = bytearray(b"x" * 60_000_000)
    assert share.free_main_memory() == pytest.approx(40_000_000, abs=20_000_000)
    del block
    monkeypatch.setenv(share.MEMORY, str(held // 2))
    assert share.free_main_memory() == 0
    # others may have taken more than their parts
    monkeypatch.setenv(share.MEMORY, str(1 << 60))
    assert share.free_main_memory() <= 1.2 * available


def test_statistics_that_do_not_fit_a_part_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = adapt(fresh("llama"), None)
    probes = mlps(loaded, keep=KEEP)
    needed = memory.state_bytes(probes, lambda units: 1).host

    def plan() -> memory.MemoryPlan:
        return memory.plan_memory(loaded, probes, context=16, batch_tokens=None)

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * needed))
    assert plan().free == 3 * needed
    monkeypatch.setenv(share.MEMORY, str(3 * needed // 4))
    with pytest.raises(
        IndexerError,
        match="0 bytes of memory are free for each build on this machine; choose fewer --workers",
    ):
        plan()


def test_builds_on_one_gpu_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    free, total, reserved, allocated = 70 << 30, 80 << 30, 6 << 30, 5 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    gpu = torch.device("cuda", 0)
    monkeypatch.delenv(share.GPU_BUILDS, raising=False)
    assert free_memory(gpu) == free + reserved - allocated
    monkeypatch.setenv(share.GPU_BUILDS, "2")
    assert free_memory(gpu) == total // 2 - allocated
    # what another program holds is free for none of them
    free = 10 << 30
    assert free_memory(gpu) == free + reserved - allocated
