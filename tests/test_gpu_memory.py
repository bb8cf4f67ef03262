"""Memory on a real GPU: what was planned is what is taken, and page-locked memory is written from there.

Run without conftest.py, as tests/test_gpu_kernels.py is.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from indexer_kernels import Statistics
from indexer_kernels.pinned import TYPES, pinned_on_device

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")

from indexer_kernels import topk_triton
from triton.runtime.interpreter import InterpretedFunction

from indexer.models import LoadedModel, Probe, Runner, adapt
from indexer.models.memory import MemoryPlan, plan_memory
from indexer.models.peak import leave, peak_bytes
from tests.kernel_cases import KEEP, assert_equal
from tests.test_statistics import gathered, some_batches
from tests.tiny_batches import TinyBatch, mlps
from tests.tiny_models import VOCABULARY, fresh

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.skipif(
        isinstance(topk_triton.compete, InterpretedFunction), reason="kernels are interpreted: --noconftest"
    ),
]
GPU = torch.device("cuda", 0)
# how far above what is taken the plan may lie
LOOSEST = 1.3


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_page_locked_memory_is_the_same_on_both_sides(dtype: torch.dtype) -> None:
    host, there = pinned_on_device((300, 7), dtype, GPU)
    assert there.device == GPU
    host.copy_(torch.arange(2100).view(300, 7))
    assert int((there * 2).sum()) == 2099 * 2100
    there += 1
    torch.cuda.synchronize()
    assert int(host.sum()) == 2099 * 2100 // 2 + 2100


def test_windows_in_the_main_memory() -> None:
    batches = [(rows.to(GPU), sequences) for rows, sequences in some_batches(600, 130, torch.bfloat16)]
    statistics = Statistics.empty(130, KEEP, kernels="triton")
    statistics.to_device(GPU, windows="host")
    for activations, sequences in batches:
        statistics.update(activations, sequences)
    assert_equal(statistics, gathered(130, batches, "reference", KEEP))


def planned() -> tuple[LoadedModel, list[Probe], MemoryPlan]:
    model = fresh("llama", torch.bfloat16, hidden_size=512, intermediate_size=2048)
    loaded = adapt(model.to(GPU))
    probes = mlps(loaded)
    return loaded, probes, plan_memory(loaded, probes, context=64, batch_tokens=8192)


def test_states_take_what_was_planned() -> None:
    _, probes, plan = planned()
    statistics = [Statistics.empty(probe.units, probe.keep, kernels="triton") for probe in probes]
    # what the planning or another test has left in circles would go in between
    gc.collect()
    before = torch.cuda.memory_allocated(GPU)
    for one in statistics:
        one.to_device(GPU, plan.windows)
    # each tensor is rounded up to 512 bytes
    assert plan.device_state <= torch.cuda.memory_allocated(GPU) - before <= 1.05 * plan.device_state


def test_the_forward_takes_what_was_planned() -> None:
    loaded, probes, plan = planned()
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (128, 64))
    peaks = {GPU: 0}
    with Runner(loaded, probes, leave) as runner, peak_bytes(peaks):
        runner.run(TinyBatch(ids, np.full(128, 64)))
    # two float32 extremes per unit, and blocks of 16 tokens, belong to the kernel
    extremes = 8192 * 2048 * 8 // 16
    assert peaks[GPU] <= plan.forward <= LOOSEST * peaks[GPU] + extremes
