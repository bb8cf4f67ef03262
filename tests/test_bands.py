"""Laws of the samples, and parity of the compiled kernels with the reference."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_kernels import Bands, Keep, KernelInputError, Statistics
from indexer_kernels.bands import BANDS, OCTAVES
from indexer_kernels.hashes import scrambled, sequence_keys, unit_keys

from tests.kernel_cases import DTYPES, assert_equal, assert_same_places, rows_of
from tests.sample_cases import KEEP, LAYER, of_equal_hash, one_token_each, sampled, some_maxima
from tests.test_statistics import Batches, pieces, some_batches

SHAPES = [(1, 1), (63, 7), (600, 64), (3000, 130)]


def hash_of_the_page() -> Callable[[int, str, int, int, int], int]:
    """What docs/format.md has readers compute, number by number."""
    section = PAGE.split("\n## The hash of samples\n")[1].split("\n## ")[0]
    names: dict[str, Any] = {}
    exec(section.split("```python\n")[1].split("```")[0], names)
    given = re.search(r"`sample_hash\((.*?)\)` is (0x[0-9A-F]{16})", section.replace("\n", " "))
    assert given is not None
    assert eval(f"sample_hash({given[1]})", names) == int(given[2], 16)
    return names["sample_hash"]


PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
hashed = hash_of_the_page()
Sample = tuple[float, int, int, int]


def brute_force(maxima: list[Sample], samples: int) -> list[Sample]:
    """Of all (maximum, hash, document, sequence) of a unit those that are kept, in rank order."""

    def octave(sample: Sample) -> int:
        # the smallest octave is that of 2^-126
        return math.frexp(sample[0])[1] if sample[0] >= 2.0**-126 else -1000

    highest = sorted({octave(sample) for sample in maxima} - {-1000})[-OCTAVES:]
    kept = []

    def rank(sample: Sample) -> int:
        return -octave(sample) if octave(sample) in highest else 2000

    for _, band in groupby(sorted(maxima, key=lambda sample: (rank(sample), *sample[1:])), rank):
        kept += list(band)[:samples]
    return kept


def held(state: Bands, unit: int) -> list[Sample]:
    ranked = state.ranked(slice(unit, unit + 1))
    number = int(ranked.taken.sum())
    names = ("value", "hash", "document", "sequence")
    return list(zip(*(getattr(ranked, name)[0, :number].tolist() for name in names), strict=True))


def maxima_of(batches: Batches, unit: int, keep: Keep) -> list[Sample]:
    """Of every sequence that has a finite counted value."""
    found = []
    for activations, sequences in batches:
        for index in range(len(sequences)):
            rows = slice(sequences.start[index], sequences.start[index] + sequences.length[index])
            values = activations[rows, unit].float().numpy()[sequences.counted[rows]]
            values = values[np.isfinite(values)]
            if len(values):
                ids = int(sequences.document[index]), int(sequences.ordinal[index])
                found.append((float(values.max()) + 0.0, hashed(keep.seed, LAYER, unit, *ids), *ids))
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_what_brute_force_finds(shape: tuple[int, int]) -> None:
    batches = some_batches(*shape, number=3)
    statistics = sampled(shape[1], batches, "reference")
    assert statistics.samples is not None
    for unit in range(min(shape[1], 9)):
        assert held(statistics.samples, unit) == brute_force(maxima_of(batches, unit, KEEP), 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_equals_reference(shape: tuple[int, int], dtype: torch.dtype, instruction_set: str) -> None:
    batches = some_batches(*shape, dtype, number=3)
    assert_equal(sampled(shape[1], batches, "cpp", threads=2), sampled(shape[1], batches, "reference"))


@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_of_equal_hashes_the_smaller_document_stays(kernels: str) -> None:
    batches, first = of_equal_hash()
    keep = Keep(top=0, bottom=0, window=(0, 0), samples=1)
    for order in (batches, batches[::-1]):
        state = sampled(2, order, kernels, keep).samples
        assert state is not None
        assert [held(state, unit)[0][2] for unit in range(2)] == [first, first]


@pytest.mark.parametrize("kernels", ["cpp", "reference"])
@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_octaves_that_come_and_go(order: str, kernels: str) -> None:
    batches = one_token_each(some_maxima(600, 3, order), 50)
    keep = Keep(top=0, bottom=0, window=(0, 0), samples=2)
    state = sampled(3, batches, kernels, keep).samples
    assert state is not None
    for unit in range(3):
        assert held(state, unit) == brute_force(maxima_of(batches, unit, keep), 2)


# values that lie close together, at octaves' edges, beside zero, and beyond what is normal
MAXIMA = st.one_of(
    st.integers(-8, 8).map(lambda power: 2.0**power),
    st.floats(-4, 300, width=32),
    st.sampled_from([0.0, -0.0, -1.0, 1e-42, 2.0**-126, 3e38, math.nextafter(2.0, 0), math.inf, math.nan]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(MAXIMA, max_size=40), st.integers(1, 3), st.randoms(use_true_random=False))
def test_any_order_any_split_and_any_tree_of_merges_keep_the_same(
    maxima: list[float], samples: int, random: random.Random
) -> None:
    keep = Keep(top=0, bottom=0, window=(1, 1), samples=samples)
    batches = one_token_each(np.array(maxima, np.float32).reshape(-1, 1), 1)
    expected = brute_force(maxima_of(batches, 0, keep), samples)
    random.shuffle(batches)
    parts = []
    while batches:
        size = random.randint(1, len(batches))
        parts.append(sampled(1, batches[:size], random.choice(["cpp", "reference"]), keep).samples)
        batches = batches[size:]
    parts.append(keep.bands(1, LAYER))
    while len(parts) > 1:
        random.shuffle(parts)
        one, other = parts.pop(), parts.pop()
        one.offer(rows_of(other))
        parts.append(one)
    assert held(parts[0], 0) == expected


@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_any_order_and_any_split_give_the_same_bits(kernels: str) -> None:
    batches = some_batches(600, 33, number=3)
    alone = pieces(batches)
    random.Random(1).shuffle(alone)
    assert_equal(sampled(33, alone, kernels), sampled(33, batches, "reference"))


def test_a_state_goes_on_after_a_merge_and_holds_no_example_twice() -> None:
    batches = some_batches(600, 33, number=3)
    whole = sampled(33, batches, "cpp").samples
    state = sampled(33, batches[:1], "cpp").samples
    assert state is not None
    assert whole is not None
    for part in (sampled(33, batches[1:2], "cpp").samples, copy.deepcopy(state)):
        state.offer(rows_of(part))
    statistics = Statistics(33, None, None, None, None, samples=state, kernels="cpp", threads=1)
    for _ in range(2):
        statistics.update(*batches[2])
    np.testing.assert_array_equal(state.bars, whole.bars)
    assert_same_places(state, whole)


def test_a_part_of_the_units_has_the_samples_of_the_whole() -> None:
    batches = some_batches(600, 33)
    whole = sampled(33, batches, "cpp").samples
    assert whole is not None
    part = Bands.empty(unit_keys(KEEP.seed, LAYER, 33)[10:20], 2, window=KEEP.window)
    for activations, sequences in batches:
        part.update(activations[:, 10:20].float().numpy(), sequences)
    assert_same_places(part, whole.ranked(slice(10, 20)))


def test_hashes_are_those_of_the_page() -> None:
    ids = [(0, 0), (1, 0), (0, 1), (3 << 40 | 17, 250), (-5, 2)]
    document, sequence = np.array(ids).T
    for seed, layer in ((0, "mlp.0"), (7, "encoder.mlp.11")):
        keys = unit_keys(seed, layer, 70)[:, None] ^ sequence_keys(document, sequence)
        expected = [[hashed(seed, layer, unit, *one) for one in ids] for unit in range(70)]
        assert scrambled(keys).tolist() == expected


def test_layers_and_seeds_have_samples_of_their_own() -> None:
    keys = [unit_keys(seed, layer, 100) for seed in (0, 1) for layer in ("mlp.1", "mlp.11", "attn.1")]
    assert len(np.unique(np.concatenate(keys))) == 600
    with pytest.raises(KernelInputError, match="name the layer"):
        Statistics.empty(3, KEEP)


def test_every_sequence_of_a_band_is_chosen_equally_often_and_units_apart() -> None:
    # over a thousand seeds; 31 and 961 degrees of freedom, p > 0.001
    number = 32
    document, sequence = np.arange(number) // 4, np.arange(number) % 4
    keys = np.stack([unit_keys(seed, "mlp.3", 30) for seed in range(1000)])
    first = scrambled(keys[..., None] ^ sequence_keys(document, sequence)).argmin(axis=-1)
    for unit in range(2):
        chosen = np.bincount(first[:, unit], minlength=number)
        assert ((chosen - 1000 / number) ** 2 / (1000 / number)).sum() < 61.1
    pairs = np.bincount((first[:, :-1] * number + first[:, 1:]).reshape(-1), minlength=number**2)
    expected = pairs.sum() / number**2
    assert ((pairs - expected) ** 2 / expected).sum() < 1168


def test_no_samples_are_no_state_and_no_places() -> None:
    assert Statistics.empty(3, Keep()).samples is None
    assert Keep(samples=0).bands(3, LAYER).value.shape == (3, 0)
    with pytest.raises(KernelInputError, match="-1 samples"):
        Keep(samples=-1).bands(3, LAYER)


def test_what_samples_take_is_a_third_of_the_rest_at_most() -> None:
    plain, more = Keep().bytes_per_unit(), Keep(samples=2).bytes_per_unit()
    assert 1 < more / plain < 1.35
    assert Keep(samples=2).bands(1, LAYER).value.shape == (1, 2 * BANDS)
