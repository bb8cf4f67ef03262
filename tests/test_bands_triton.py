"""The samples' laws, and parity with the reference, for the Triton kernels in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from indexer_kernels import Keep, Statistics

from tests.kernel_cases import assert_equal, some_sequences
from tests.sample_cases import KEEP, of_equal_hash, one_token_each, sampled, some_maxima
from tests.test_statistics import pieces, some_batches

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
pytestmark = pytest.mark.usefixtures("triton_interpreter")

ALONE = dataclasses.replace(KEEP, top=0, bottom=0)


CASES = [
    ((63, 3), torch.float32, KEEP),
    ((600, 2), torch.bfloat16, ALONE),
    ((63, 2), torch.float16, dataclasses.replace(ALONE, samples=1)),
]


@pytest.mark.parametrize(("shape", "dtype", "keep"), CASES, ids=str)
def test_kernel_equals_reference(shape: tuple[int, int], dtype: torch.dtype, keep: Keep) -> None:
    batches = some_batches(*shape, dtype)
    assert_equal(sampled(shape[1], batches, "triton", keep), sampled(shape[1], batches, "reference", keep))


def test_a_factor_that_is_given_with_the_activations_is_kept() -> None:
    found, wanted = (
        Statistics.empty(3, KEEP, layer="mlp.1", kernels=kernels) for kernels in ("triton", "reference")
    )
    for number, (activations, sequences) in enumerate(some_batches(63, 3, number=2)):
        up = None if number else activations.flip(0)
        found.update(activations, sequences, up)
        wanted.update(activations, sequences, up)
    assert_equal(found, wanted)


@pytest.mark.parametrize("order", ["ascending", "random"])
def test_octaves_that_come_and_go(order: str) -> None:
    batches = one_token_each(some_maxima(60, 1, order), 20)
    assert_equal(sampled(1, batches, "triton", ALONE), sampled(1, batches, "reference", ALONE))


def test_of_equal_hashes_the_smaller_document_stays() -> None:
    batches, first = of_equal_hash()
    keep = dataclasses.replace(ALONE, samples=1)
    for order in (batches, batches[::-1]):
        state = sampled(2, order, "triton", keep).samples
        assert state is not None
        assert state.document[state.taken].tolist() == [first, first]


def test_ties_between_the_blocks_of_a_sequence_go_to_the_first() -> None:
    rng = np.random.default_rng(3)
    sequences = some_sequences(1600, rng)
    values = torch.from_numpy(rng.integers(-6, 3, (1600, 2)).astype(np.float32)).exp2()
    batches = [(values, sequences)]
    assert_equal(sampled(2, batches, "triton", ALONE), sampled(2, batches, "reference", ALONE))


def test_any_order_and_any_split_give_the_same_bits() -> None:
    batches = some_batches(150, 2, number=2)
    alone = pieces(batches)
    random.Random(1).shuffle(alone)
    keep = Keep(top=0, bottom=1, window=(2, 1), samples=1, seed=1)
    assert_equal(sampled(2, alone, "triton", keep), sampled(2, batches, "reference", keep))
