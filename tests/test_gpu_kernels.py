"""The kernels and the build on a real GPU: laws, parity with the reference, sizes beyond 32 bits, races.

Run as benchmarks/on_gpu.sh does: `python -m pytest --noconftest tests/test_gpu_kernels.py`, for conftest.py
has Triton interpret kernels.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from indexer_kernels import FUNCTIONS, Keep, Sequences, Statistics
from torch import Tensor

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")

from indexer_kernels import topk_triton
from triton.runtime.interpreter import InterpretedFunction

import indexer
from benchmarks.gpu_check import checked_columns
from benchmarks.gpu_kernels import some_units
from benchmarks.states import first_difference
from indexer.building.states import States
from indexer.index.verify import verify_index
from indexer.models import Runner, adapt
from indexer.tokens import Batch
from tests.kernel_cases import DTYPES, KEEP, assert_equal, merged_statistics, repetitive, some_sequences
from tests.test_activations import further_than_rounding, pre_activations
from tests.test_statistics import Batches, gathered, pieces, some_batches
from tests.tiny_batches import mlps
from tests.tiny_models import VOCABULARY, fresh, saved

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.skipif(
        isinstance(topk_triton.compete, InterpretedFunction), reason="kernels are interpreted: --noconftest"
    ),
]
GPU = torch.device("cuda")
COMPETITORS = ["sequence", "token", "document"]
# of a part of a warp's units; a multiple of 64, in a loop without masks; more than one program's units
SHAPES = [(63, 7), (600, 64), (1500, 130)]


def moved(matrix: Tensor) -> Tensor:
    """The same on the GPU, in a wider matrix full of NaN."""
    tokens, units = matrix.shape
    wide = torch.full((tokens, units + 8), torch.nan, dtype=matrix.dtype, device=GPU)
    wide[:, 4 : units + 4] = matrix.to(GPU)
    return wide[:, 4 : units + 4]


def on_gpu(batches: Batches) -> Batches:
    return [(moved(activations), sequences) for activations, sequences in batches]


def long_sequences(tokens: int, length: int) -> Sequences:
    """Documents of `length` tokens, of which all but the first count."""
    edges = np.arange(0, tokens + 1, length)
    counted = np.ones(tokens, bool)
    counted[edges[:-1]] = False
    number = np.arange(len(edges) - 1)
    ids = np.random.default_rng(0).integers(0, 30_000, tokens)
    return Sequences.from_offsets(edges, number, np.zeros_like(number), ids, counted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by", COMPETITORS)
def test_update_equals_reference(shape: tuple[int, int], dtype: torch.dtype, by: str) -> None:
    keep = dataclasses.replace(KEEP, by=by)
    batches = some_batches(*shape, dtype)
    statistics = gathered(shape[1], on_gpu(batches), "triton", keep)
    assert_equal(statistics, gathered(shape[1], batches, "reference", keep))
    bins = statistics.histogram.counts.sum(axis=1)
    np.testing.assert_array_equal(bins + statistics.moments.nan + statistics.moments.inf, statistics.count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by", ["sequence", "token"])
def test_distinct_examples_equal_the_reference(dtype: torch.dtype, by: str) -> None:
    keep = dataclasses.replace(KEEP, by=by, distinct=True)
    batches = repetitive(some_batches(1500, 130, dtype, number=3))
    statistics = gathered(130, on_gpu(batches), "triton", keep)
    assert_equal(statistics, gathered(130, batches, "reference", keep))


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_fused_is_activation_then_update(function: str, dtype: torch.dtype, gated: bool) -> None:
    tokens, units = 500, 64
    sequences = some_sequences(tokens, np.random.default_rng(7))
    gate = pre_activations(tokens, units, dtype)
    up = pre_activations(tokens, units, dtype, seed=1) if gated else None
    fused, there = Statistics.empty(units, KEEP, kernels="triton"), moved(gate)
    out = fused.activate(function, there, None if up is None else moved(up), sequences, out=there).cpu()
    then = Statistics.empty(units, KEEP, kernels="reference")
    then.update(out, sequences, up)
    assert_equal(fused, then)
    far = further_than_rounding(function, gate, up, out, triton=True)
    assert not far.any(), (gate[far], out[far])


@pytest.mark.parametrize("by", COMPETITORS)
def test_any_split_any_order_and_merging_give_the_same_bits(by: str) -> None:
    keep = dataclasses.replace(KEEP, by=by)
    batches = some_batches(300, 33, number=3)
    whole = gathered(33, batches, "reference", keep)
    alone = pieces(batches)
    random.Random(1).shuffle(alone)
    assert_equal(gathered(33, on_gpu(alone), "triton", keep), whole)
    parts = [gathered(33, on_gpu([batch]), "triton", keep) for batch in batches]
    assert_equal(merged_statistics(parts, "triton"), whole)


def test_a_flag_tells_of_the_first_value_that_is_not_finite() -> None:
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    statistics = Statistics.empty(64, KEEP, kernels="triton")
    for value, met in ((0.0, 0), (torch.inf, 1)):
        values[9, 9] = value
        statistics.update(values.to(GPU), long_sequences(64, 8))
        assert statistics.met_non_finite is not None
        assert statistics.met_non_finite.item() == met


def test_the_same_input_gives_the_same_state_twenty_times() -> None:
    sequences = long_sequences(16_384, 512)
    generator = torch.Generator(GPU).manual_seed(0)
    gate, up = (
        torch.randn(sequences.tokens, 1024, device=GPU, generator=generator).bfloat16() for _ in range(2)
    )
    first: Statistics | None = None
    for _ in range(20):
        statistics = Statistics.empty(1024, KEEP, kernels="triton")
        out = statistics.activate("silu", gate, up, sequences)
        statistics.update(out, sequences)
        if first is None:
            first = statistics
        assert first_difference(statistics, first) is None


@pytest.mark.parametrize(
    ("tokens", "units"), [(40_960, 53_248), (64, 1_048_576)], ids=["more than 2^31 values", "a million units"]
)
def test_sizes_beyond_32_bits(tokens: int, units: int) -> None:
    sequences = long_sequences(tokens, 32)
    generator = torch.Generator(GPU).manual_seed(0)
    values = torch.empty(tokens, units, dtype=torch.bfloat16, device=GPU).normal_(generator=generator)
    keep = Keep(top=2, bottom=1, window=(3, 2))
    statistics = Statistics.empty(units, keep, kernels="triton")
    statistics.update(values, sequences)
    chosen = np.array([0, 63, 64, units // 2, units - 65, units - 1])
    reference = Statistics.empty(len(chosen), keep, kernels="reference")
    reference.update(values[:, torch.from_numpy(chosen).to(GPU)].cpu(), sequences)
    assert first_difference(some_units(statistics, chosen), reference) is None
    np.testing.assert_array_equal(statistics.histogram.counts.sum(axis=1), statistics.count)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3", "bert"])
def test_statistics_taken_on_the_way_through_a_model_equal_the_reference(name: str) -> None:
    rng = np.random.default_rng(0)
    length = np.array([40, 33, 7, 1])
    inside = np.arange(40) < length[:, None]
    ids = rng.integers(2, VOCABULARY, inside.shape)
    batch = Batch(ids, length, np.arange(4), np.zeros(4, np.int64), inside)
    loaded = adapt(fresh(name, torch.bfloat16).to(GPU), name=name)
    assert "bit for bit" in checked_columns(loaded, mlps(loaded, keep=KEEP), batch)


def test_a_value_that_is_not_finite_is_found_in_a_model() -> None:
    model = fresh("gpt2").to(GPU)
    # of a model that is damaged from the start no MLP would be recognised
    loaded = adapt(model, name="gpt2")
    probes = mlps(loaded, keep=KEEP)
    with torch.no_grad():
        model.h[1].mlp.c_fc.bias[5] = torch.nan
    states = States(probes, kernels="triton", threads=1)
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (2, 9))
    batch = Batch(ids, np.array([9, 9]), np.array([3, 4]), np.zeros(2, np.int64), np.ones((2, 9), bool))
    with Runner(loaded, probes, states.take) as runner:
        states.run(runner, batch)
        states.finish()
    assert str(states.first_non_finite).startswith("nan at mlp.1.5, document 3, sequence 0, position 0")


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_a_build_on_the_gpu_is_that_of_the_cpu_but_for_rounding(compiled: bool, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    words = np.random.default_rng(0).integers(0, 90, (200, 60))
    lines = (" ".join(f"w{word}" for word in line[: 1 + number % 60]) for number, line in enumerate(words))
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    asked = {"model": str(model), "corpus": (str(tmp_path / "corpus.txt"),), "context": 48}
    units = []
    for device, options in (("cuda", {"compile": compiled}), ("cpu", {"kernels": "reference"})):
        output = indexer.build(**asked, **options, device=device, dtype="float32", output=tmp_path / device)
        verify_index(output, full=True)
        with indexer.open_index(output) as index:
            names = [f"mlp.{layer}.{unit}" for layer in range(3) for unit in range(80)]
            units.append([index.unit(name).to_pylist()[0] for name in names])
    for name in ("count", "active", "maximum", "minimum", "mean", "variance"):
        on_device, expected = (np.array([unit[name] for unit in side], np.float64) for side in units)
        np.testing.assert_allclose(on_device, expected, rtol=2e-2, atol=2e-2 * np.abs(expected).max())
