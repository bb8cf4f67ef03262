"""Sums of powers are exact, kept whole by the index, and all that its moments are computed from."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_kernels import Keep, Statistics, moments

from benchmarks.synthetic import Size, exact_sums, synthetic_records, write_synthetic
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.records import LayerRecord
from indexer.index.restore import read_layer
from indexer.index.sums import pack, unpack
from indexer.index.verify import verify_index
from indexer.names import MLP, Key
from indexer.partials.state import record_of
from tests.index_cases import ragged_record, token_counts, without_examples, write_index
from tests.kernel_cases import some_activations, some_sequences

FLOATS = st.floats(-(2.0**120), 2.0**120, allow_nan=False)


def whole(limbs: np.ndarray) -> int:
    """The integer that limbs stand for, in units of 2^-150."""
    return sum(int(limb) << (16 * place) for place, limb in enumerate(limbs[: moments.OVERFLOWED]))


def kernel_state(seed: int, units: int = 9) -> tuple[Statistics, int]:
    rng = np.random.default_rng(seed)
    statistics = Statistics.empty(units, Keep(top=1, bottom=1), kernels="reference")
    activations = some_activations(700, units, rng, torch.float32)
    activations[:, 0] = torch.nan
    activations[:, 1] = 1e30
    activations[:, 2] = -3
    statistics.update(activations, some_sequences(700, rng))
    statistics.settle()
    return statistics, statistics.count


def test_fused_multiply_add_rounds_once() -> None:
    chosen = np.random.default_rng(0)
    patterns = chosen.integers(0, 2**32, (3, 4000), dtype=np.uint32)
    one, other, addend = (np.where(np.isfinite(row), row, 1) for row in patterns.view(np.float32))
    # sums that nearly cancel, and products half a place beside the sum
    with np.errstate(over="ignore"):
        addend[:1000] = -(one[:1000] * other[:1000])
        addend[1000:2000] = (one[1000:2000] * other[1000:2000]) * np.float32(2.0**24)
    addend = np.where(np.isfinite(addend), addend, 1)
    # half a place beside an odd sum, less what float64 does not hold: rounded twice, it would go up
    small = np.float32(2.0) ** -np.arange(13, 23, dtype=np.float32)
    one[-10:], other[-10:] = (1 + small) * np.float32(2.0**-24), 1 - small
    addend[-10:] = np.float32(1 + 2.0**-23)
    with np.errstate(over="ignore", under="ignore"):
        got = moments.fused_multiply_add(one, other, addend)
    for x, y, z, found in zip(one.tolist(), other.tolist(), addend.tolist(), got, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        # halfway to what would be the next power of two
        if abs(exact) >= (2 - Fraction(1, 2**24)) * 2**127:
            assert np.isinf(found)
            continue
        below, above = np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))
        distance = abs(exact - Fraction(float(found)))
        for neighbour in (below, above):
            if np.isfinite(neighbour):
                assert distance <= abs(exact - Fraction(float(neighbour)))


@given(st.lists(FLOATS, min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_exact_sums_are_exact(values: list[float]) -> None:
    for value, limbs in zip(values, exact_sums(np.array(values)), strict=True):
        wanted = Fraction(value) * 2**150
        # what lies below 2^-150 is cut off, from either part of the mantissa
        assert 0 <= wanted - whole(limbs) < 2
        if wanted.denominator == 1:
            assert whole(limbs) == wanted


@given(st.lists(FLOATS, min_size=2, max_size=9), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_sums_add_up_to_the_same_limbs_in_any_order(values: list[float], random: object) -> None:
    parts = list(exact_sums(np.array(values)))
    expected = None
    for _ in range(3):
        random.shuffle(parts)  # type: ignore[attr-defined]
        total = np.zeros(moments.LIMBS, np.int64)
        for part in parts:
            total += part
            moments.settle_carries(total)
        expected = total if expected is None else expected
        np.testing.assert_array_equal(total, expected)
    assert whole(total) == sum(whole(part) for part in parts)


def test_packing_keeps_every_bit_and_is_the_integer_itself() -> None:
    statistics, _ = kernel_state(0)
    sums = statistics.moments.sums
    assert (sums[..., moments.OVERFLOWED] > 0).any()
    assert (sums[..., moments.OVERFLOWED - 1] < 0).any()
    packed, overflowed = pack(sums)
    np.testing.assert_array_equal(unpack(packed, overflowed), sums)
    for place in np.ndindex(sums.shape[:2]):
        assert int.from_bytes(packed[place].tobytes(), "little", signed=True) == whole(sums[place])


@pytest.mark.parametrize("seed", range(3))
def test_the_summary_is_undefined_where_there_is_no_value_or_no_spread(seed: int) -> None:
    statistics, count = kernel_state(seed)
    found = statistics.moments.summary(count)
    assert np.isnan(found["mean"][0])
    assert found["variance"][2] == 0
    assert np.isnan(found["kurtosis"][1:3]).all()
    assert np.isfinite(found["skewness"][3:]).all()


def refused(record: LayerRecord, tmp_path: Path) -> str:
    """What `verify --full` says of an index of a record."""
    index = write_index(tmp_path / "i", [record])
    with pytest.raises(IndexerError) as error:
        verify_index(index, full=True)
    return str(error.value)


def changed(change: Callable[[np.ndarray], None]) -> LayerRecord:
    """A record with other sums than its values have."""
    record = ragged_record()
    change(record.moments.sums)
    return record


def _move(power: int, by: float) -> Callable[[np.ndarray], None]:
    def change(sums: np.ndarray) -> None:
        sums[3, power - 1] += exact_sums(np.array(by))
        moments.settle_carries(sums)

    return change


def _overflow(sums: np.ndarray) -> None:
    sums[3, 3, moments.OVERFLOWED] = 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((_move(power, 40.0), f"mlp.0.3: its sum of x^{power} is impossible") for power in (1, 2, 3, 4)),
        *((_move(power, -40.0), f"mlp.0.3: its sum of x^{power} is impossible") for power in (1, 2, 3, 4)),
        (_overflow, "mlp.0.3: its sum of x^4 left float32"),
    ],
)
def test_sums_that_the_bins_cannot_have_are_found(
    change: Callable[[np.ndarray], None], said: str, tmp_path: Path
) -> None:
    assert said in refused(changed(change), tmp_path)


def test_moments_that_are_not_those_of_the_sums_are_found(tmp_path: Path) -> None:
    record = changed(_move(1, 2.0**-40))
    vars(record.moments)["summary"] = ragged_record().moments.summary
    assert "mlp.0.3: mean is not that of the sums of powers" in refused(record, tmp_path)


def test_what_the_kernels_sum_obeys_the_laws(tmp_path: Path) -> None:
    statistics, count = kernel_state(5)
    record = record_of(statistics, Key(MLP, 0))
    record = without_examples(record, "top", "bottom")
    assert (record.moments.sums[..., moments.OVERFLOWED] > 0).any()
    counts = np.zeros_like(token_counts())
    counts[0] = count
    verify_index(write_index(tmp_path / "i", [record], counts=counts), full=True)


def test_synthetic_sums_are_kept(tmp_path: Path) -> None:
    size = Size(layers=1, units=40, count=20_000)
    index = write_synthetic(tmp_path / "i", size)
    made = next(synthetic_records(size))
    np.testing.assert_array_equal(
        read_layer(index, read_manifest(index), Key(MLP, 0)).moments.sums, made.moments.sums
    )
    assert np.isfinite(made.moments.summary(made.count)["kurtosis"]).all()
