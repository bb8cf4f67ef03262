"""Samples on a real GPU: the Triton kernels against the reference, bit for bit.

Run as tests/test_gpu_kernels.py is: `python -m pytest --noconftest tests/test_gpu_bands.py`.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from indexer_kernels import Bands, Keep, Statistics
from indexer_kernels.hashes import unit_keys

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")

from indexer_kernels import bands_triton
from triton.runtime.interpreter import InterpretedFunction

from tests.kernel_cases import DTYPES, assert_equal, assert_same_places, some_sequences
from tests.sample_cases import KEEP, LAYER, one_token_each, sampled, some_maxima
from tests.test_activations import pre_activations
from tests.test_gpu_kernels import GPU, long_sequences, moved, on_gpu
from tests.test_statistics import pieces, some_batches

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.skipif(
        isinstance(bands_triton.sample, InterpretedFunction), reason="kernels are interpreted: --noconftest"
    ),
]
ALONE = dataclasses.replace(KEEP, top=0, bottom=0)
# a part of a warp's units; a multiple of 64, in a loop without masks; more than one program's units
CASES = [
    ((63, 7), torch.float32, 2),
    *(((600, 64), dtype, 2) for dtype in DTYPES),
    ((600, 64), torch.float32, 1),
    ((600, 64), torch.float32, 5),
    ((3000, 130), torch.bfloat16, 2),
]


@pytest.mark.parametrize(("shape", "dtype", "samples"), CASES, ids=str)
def test_update_equals_reference(shape: tuple[int, int], dtype: torch.dtype, samples: int) -> None:
    keep = dataclasses.replace(ALONE, samples=samples)
    batches = some_batches(*shape, dtype, number=3)
    expected = sampled(shape[1], batches, "reference", keep)
    assert_equal(sampled(shape[1], on_gpu(batches), "triton", keep), expected)


def test_both_ends_and_samples_of_the_same_batches() -> None:
    batches = some_batches(600, 64)
    assert_equal(sampled(64, on_gpu(batches), "triton"), sampled(64, batches, "reference"))


def test_ties_between_the_blocks_of_a_sequence_go_to_the_first() -> None:
    rng = np.random.default_rng(3)
    batches = []
    for number in range(3):
        sequences = some_sequences(5000, rng, first_document=100 * number)
        values = torch.from_numpy(rng.integers(-6, 3, (5000, 64)).astype(np.float32)).exp2()
        batches.append((values.bfloat16(), sequences))
    assert_equal(sampled(64, on_gpu(batches), "triton", ALONE), sampled(64, batches, "reference", ALONE))


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("together", [1, 37, 1000], ids=str)
def test_octaves_that_come_and_go(order: str, together: int) -> None:
    batches = one_token_each(some_maxima(1000, 70, order), together)
    assert_equal(sampled(70, on_gpu(batches), "triton", ALONE), sampled(70, batches, "reference", ALONE))


@pytest.mark.parametrize(
    ("function", "gated", "dtype"),
    [("silu", True, torch.bfloat16), ("silu", True, torch.float32), ("gelu", False, torch.float16)],
    ids=str,
)
def test_fused_is_activation_then_update(function: str, gated: bool, dtype: torch.dtype) -> None:
    tokens, units = 1500, 128
    sequences = some_sequences(tokens, np.random.default_rng(7))
    gate = moved(pre_activations(tokens, units, dtype))
    up = moved(pre_activations(tokens, units, dtype, seed=1)) if gated else None
    fused = Statistics.empty(units, ALONE, layer=LAYER, kernels="triton")
    out = fused.activate(function, gate, up, sequences, out=gate)
    then = Statistics.empty(units, ALONE, layer=LAYER, kernels="reference")
    then.update(out.cpu(), sequences, None if up is None else up.cpu())
    assert_equal(fused, then)


@pytest.mark.parametrize("windows", ["device", "host"])
def test_any_split_and_any_order_give_the_same_bits(windows: str) -> None:
    batches = some_batches(600, 33, number=3)
    whole = sampled(33, batches, "reference", ALONE)
    alone = on_gpu(pieces(batches))
    random.Random(1).shuffle(alone)
    statistics = Statistics.empty(33, ALONE, layer=LAYER, kernels="triton")
    statistics.to_device(GPU, windows)
    for batch in alone:
        statistics.update(*batch)
    assert_equal(statistics, whole)


def test_many_batches_at_the_size_of_a_large_model() -> None:
    units, tokens = 14_336, 4096
    chosen = np.array([0, 63, 64, 7001, units - 65, units - 1])
    statistics = Statistics.empty(units, Keep(top=0, bottom=0, samples=2), layer=LAYER, kernels="triton")
    reference = Bands.empty(unit_keys(0, LAYER, units)[chosen], 2)
    generator = torch.Generator(GPU).manual_seed(0)
    for number in range(8):
        sequences = long_sequences(tokens, 64)
        sequences = dataclasses.replace(sequences, document=sequences.document + 1000 * number)
        values = torch.empty(tokens, units, dtype=torch.bfloat16, device=GPU)
        values.normal_(-2, 1.2, generator=generator)
        values = torch.nn.functional.gelu(values)
        statistics.update(values, sequences)
        reference.update(values[:, torch.from_numpy(chosen).to(GPU)].float().cpu().numpy(), sequences)
    statistics.settle()
    samples = statistics.samples
    assert samples is not None
    np.testing.assert_array_equal(samples.bars[:, chosen], reference.bars)
    names = ("value", "document", "sequence", "position", "window_start", "window_length", "token_ids")
    part = {name: getattr(samples, name)[chosen] for name in (*names, "activations", "hash", "key")}
    some = dataclasses.replace(samples, **part, bars=samples.bars[:, chosen], _native=None)
    assert_same_places(some, reference)


def test_the_same_input_gives_the_same_samples_ten_times() -> None:
    sequences = long_sequences(16_384, 512)
    generator = torch.Generator(GPU).manual_seed(0)
    gate, up = (
        torch.randn(sequences.tokens, 1024, device=GPU, generator=generator).bfloat16() for _ in range(2)
    )
    first: Statistics | None = None
    for _ in range(10):
        statistics = Statistics.empty(1024, ALONE, layer=LAYER, kernels="triton")
        statistics.activate("silu", gate, up, sequences)
        first = first or statistics
        assert_equal(statistics, first)
