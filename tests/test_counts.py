"""What an index counts of whole models is the same whatever computes their activation function."""

from __future__ import annotations

import pytest
import torch
from indexer_kernels._cpp import instruction_sets

from benchmarks.counts import Counters
from indexer.models import Runner, adapt
from tests.tiny_batches import mlps, tiny_batch
from tests.tiny_models import fresh

SCALE = 4

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "modernbert"])
def test_every_kernel_counts_what_torch_computes(name: str, dtype: torch.dtype) -> None:
    model = fresh(name, dtype)
    # so that gates reach where the functions of torch are zero
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "gate_proj" in part or "mlp.Wi" in part:
                weight.mul_(SCALE)
    loaded = adapt(model, name=name)
    counters = Counters(triton_tokens=1)
    with Runner(loaded, mlps(loaded, [1]), counters.take) as runner:
        runner.run(tiny_batch(16, 7, 1))
    for kernel in (*instruction_sets(), "reference", "triton"):
        apart, values = counters.apart(kernel)
        assert values >= 24 * 64
        assert apart == [0, 0, 0, 0], kernel
