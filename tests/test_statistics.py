"""Laws of the states, and parity of the compiled kernels with the reference."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from indexer_kernels import Keep, KernelInputError, Sequences, Statistics
from indexer_kernels.histogram import bins_of, magnitude_edges

from tests.kernel_cases import DTYPES, KEEP, assert_equal, merged_statistics, some_activations, some_sequences

SHAPES = [(1, 1), (63, 7), (300, 33), (70, 130), (600, 64)]


def gathered(units: int, batches: list, kernels: str, keep: Keep = KEEP, threads: int = 1) -> Statistics:
    statistics = Statistics.empty(units, keep, kernels=kernels, threads=threads)
    for activations, sequences in batches:
        statistics.update(activations, sequences)
    return statistics


Batches = list[tuple[torch.Tensor, Sequences]]


def some_batches(tokens: int, units: int, dtype: torch.dtype = torch.float32, number: int = 2) -> Batches:
    rng = np.random.default_rng(tokens * units)
    return [
        (some_activations(tokens, units, rng, dtype), some_sequences(tokens, rng, first_document=100 * batch))
        for batch in range(number)
    ]


@functools.cache
def reference(shape: tuple[int, int], dtype: torch.dtype, by: str) -> tuple[Batches, Statistics]:
    batches = some_batches(*shape, dtype)
    return batches, gathered(shape[1], batches, "reference", dataclasses.replace(KEEP, by=by))


@pytest.mark.parametrize("ends", [(0, 0), (3, 0), (0, 3)], ids=str)
def test_an_end_that_is_not_kept_changes_nothing_else(ends: tuple[int, int], instruction_set: str) -> None:
    batches = some_batches(300, 33)
    kept = gathered(33, batches, "reference", Keep(top=3, bottom=3, window=(6, 3)))
    kept.top, kept.bottom = (
        state if k else None for state, k in zip((kept.top, kept.bottom), ends, strict=True)
    )
    keep = Keep(top=ends[0], bottom=ends[1], window=(6, 3))
    for kernels in ("reference", "cpp"):
        assert_equal(gathered(33, batches, kernels, keep), kept)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by", ["sequence", "token", "document"])
def test_kernel_equals_reference(
    shape: tuple[int, int], dtype: torch.dtype, by: str, instruction_set: str
) -> None:
    batches, expected = reference(shape, dtype, by)
    statistics = gathered(shape[1], batches, "cpp", dataclasses.replace(KEEP, by=by), threads=2)
    assert_equal(statistics, expected)
    bins = statistics.histogram.counts.sum(axis=1)
    np.testing.assert_array_equal(bins + statistics.moments.nan + statistics.moments.inf, statistics.count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.002, 0.03, 0.1])
def test_few_values_among_zeros(share: float, dtype: torch.dtype, instruction_set: str) -> None:
    """NaN, infinities and minus zeros too, and a unit without a zero."""
    keep, rng = dataclasses.replace(KEEP, samples=2), np.random.default_rng(3)
    batches = []
    for number, tokens in enumerate((600, 300, 0, 33)):
        activations = some_activations(tokens, 130, rng, dtype)
        activations[torch.from_numpy(rng.random((tokens, 130)) >= share)] = 0.0
        activations[:, 1] = torch.from_numpy(rng.standard_normal(tokens)).to(dtype)
        activations[: tokens // 2, 70] = -0.0
        batches.append((activations, some_sequences(tokens, rng, first_document=100 * number)))
    fast, slow = (
        Statistics.empty(130, keep, layer="mlp.0", kernels=kernels, threads=2)
        for kernels in ("cpp", "reference")
    )
    for activations, sequences in batches:
        for statistics in (fast, slow):
            statistics.update(activations, sequences)
    assert_equal(fast, slow)
    fused, read = (Statistics.empty(130, keep, layer="mlp.0", kernels="cpp") for _ in range(2))
    for activations, sequences in batches:
        read.update(fused.activate("relu", activations, None, sequences), sequences)
    assert_equal(fused, read)


def pieces(batches: Batches) -> Batches:
    """The same sequences, each a batch of its own."""
    return [
        (activations[sequences.start[index] :][: one.tokens], one)
        for activations, sequences in batches
        for index in range(len(sequences))
        for one in [sequences.rows(index, index + 1)]
    ]


@pytest.mark.parametrize("by", ["sequence", "token", "document"])
@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_any_order_and_any_split_give_the_same_bits(by: str, kernels: str) -> None:
    batches = some_batches(300, 33, number=3)
    keep = dataclasses.replace(KEEP, by=by)
    whole = gathered(33, batches, kernels, keep)
    alone = pieces(batches)
    random.Random(1).shuffle(alone)
    assert_equal(gathered(33, alone, kernels, keep, threads=2), whole)


@pytest.mark.parametrize("by", ["sequence", "token", "document"])
@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_merge_is_the_whole(by: str, kernels: str) -> None:
    batches = some_batches(300, 33, number=3)
    keep = dataclasses.replace(KEEP, by=by)
    whole = gathered(33, batches, kernels, keep)
    parts = [gathered(33, [batch], kernels, keep) for batch in batches]
    for order in ((0, 1, 2), (2, 0, 1)):
        assert_equal(merged_statistics([parts[index] for index in order], kernels), whole)
    right = merged_statistics(parts[1:], kernels)
    assert_equal(merged_statistics([parts[0], right], kernels), whole)
    # a state goes on after a merge
    left = merged_statistics(parts[:2], kernels)
    left.update(*batches[2])
    assert_equal(left, whole)


@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_merging_examples_twice_changes_nothing(kernels: str) -> None:
    batches = some_batches(300, 33)
    once = gathered(33, batches, kernels)
    twice = merged_statistics([once, once], kernels).top.ranked()
    for name in ("value", "document", "sequence", "position"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(once.top.ranked(), name))


def test_no_tokens_leave_the_empty_state(instruction_set: str) -> None:
    nothing = Sequences(*[np.zeros(0, np.int64)] * 4, np.zeros(0, np.int32), np.zeros(0, bool))
    assert_equal(gathered(33, [(torch.zeros(0, 33), nothing)], "cpp"), Statistics.empty(33, KEEP))


# wrapped by no settling of counters, by that of the compiled kernel, and by the last one
@pytest.mark.parametrize("before", [0, 2**32 - 5, 2**32 - 139_999])
def test_counters_survive_more_tokens_than_their_bits_count(before: int, instruction_set: str) -> None:
    tokens = 70_000
    sequences = Sequences.from_offsets(
        np.array([0, tokens]), np.array([5]), np.array([0]), np.zeros(tokens, np.int32)
    )
    activations = torch.full((tokens, 70), 0.25)
    activations[-1] = 0.5
    statistics = Statistics.empty(70, KEEP)
    statistics.histogram.low[:] = before
    for _ in range(2):
        statistics.update(activations, sequences)
    statistics.settle()
    quarter = bins_of(np.array([0.25], np.float32))[0]
    assert (statistics.histogram.counts[:, quarter] == before + 2 * (tokens - 1)).all()
    assert (statistics.histogram.counts[:, quarter - 1] == before).all()
    summary = statistics.moments.summary(statistics.count)
    np.testing.assert_allclose(summary["mean"], (0.25 * (tokens - 1) + 0.5) / tokens, rtol=1e-12)
    assert (statistics.top.position[:, 0] == tokens - 1).all()


def test_powers_beyond_float32_leave_that_moment_undefined(instruction_set: str) -> None:
    activations = torch.full((4, 3), 1e12)
    activations[0] = -1e12
    statistics = Statistics.empty(3, KEEP)
    statistics.update(
        activations, Sequences.from_offsets(np.array([0, 4]), np.array([0]), np.array([0]), np.zeros(4))
    )
    summary = statistics.moments.summary(4)
    np.testing.assert_allclose(summary["mean"], 5e11, rtol=1e-6)
    assert np.isfinite(summary["variance"]).all()
    assert np.isnan(summary["kurtosis"]).all()


def test_threads_of_our_own_give_the_same_bits() -> None:
    program = (
        "import hashlib, sys\n"
        "from tests.test_statistics import KEEP, gathered, some_batches\n"
        "state = gathered(130, some_batches(300, 130), 'cpp', KEEP, threads=3)\n"
        "state.settle()\n"
        "arrays = (state.histogram.counts, state.moments.sums, state.top.value, state.bottom.token_ids)\n"
        "print(hashlib.sha256(b''.join(array.tobytes() for array in arrays)).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for environment in ({}, {"NEURON_INDEXER_OWN_THREADS": "1"})
    }
    assert len(digests) == 1


def test_moments_keep_their_bound() -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, 3.0, (4096, 64)).astype(np.float32)
    sequences = Sequences.from_offsets(np.arange(0, 4097, 512), np.arange(8), np.zeros(8), np.zeros(4096))
    statistics = Statistics.empty(64, KEEP)
    statistics.update(torch.from_numpy(values), sequences)
    exact = values.astype(np.float64)
    for power, total in enumerate(statistics.moments.sums_of_powers().T, start=1):
        bound = 256 * 2.0**-24 * (np.abs(exact) ** power).sum(axis=0)
        assert (np.abs(total - (exact**power).sum(axis=0)) <= bound).all()
    summary = statistics.moments.summary(4096)
    centred = exact - exact.mean(axis=0)
    np.testing.assert_allclose(summary["variance"], (centred**2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        summary["skewness"], (centred**3).mean(axis=0) / (centred**2).mean(axis=0) ** 1.5, rtol=1e-4
    )
    np.testing.assert_allclose(
        summary["kurtosis"], (centred**4).mean(axis=0) / (centred**2).mean(axis=0) ** 2, rtol=1e-4
    )


def test_bins_tile_the_line_and_bound_quantiles() -> None:
    edges = magnitude_edges()
    assert len(edges) == 195
    assert (np.diff(edges[:-1]) > 0).all()
    inside = edges[1:-1]
    middle = (inside[1:] + inside[:-1]) / 2
    assert (np.maximum(inside[1:] / middle, middle / inside[:-1]) - 1).max() <= 1 / 16 + 1e-12
    values = np.concatenate([inside, np.nextafter(inside.astype(np.float32), np.float32(0))]).astype(
        np.float32
    )
    expected = np.concatenate([np.arange(2, 195), np.arange(1, 194)]) + 194
    np.testing.assert_array_equal(bins_of(values), expected)
    np.testing.assert_array_equal(bins_of(-values), 388 - expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, :5], "shape"),
        (lambda a: a.double(), "float64"),
        (lambda a: a.t().contiguous().t(), "adjacent"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    ((activations, sequences),) = some_batches(63, 7, number=1)
    with pytest.raises(KernelInputError, match=message):
        Statistics.empty(7, KEEP).update(change(activations), sequences)


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelInputError, match="triton"):
        Statistics.empty(7, kernels="triton")
    with pytest.raises(KernelInputError, match="choose one of"):
        Statistics.empty(7, kernels="fast")
    monkeypatch.setenv("NEURON_INDEXER_ISA", "mmx")
    with pytest.raises(KernelInputError, match="baseline"):
        Statistics.empty(7, kernels="cpp")
