"""Bins of the histogram, and the guarantee of the quantiles read from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from indexer_kernels.histogram import BINS, QUANTILES, ZERO_BIN, bin_edges, bins_between, bins_of, quantiles


def test_edges_meet_and_ascend() -> None:
    lower, upper = bin_edges()
    assert len(lower) == len(upper) == BINS == 389
    assert np.array_equal(upper[:-1], lower[1:])
    assert (np.diff(lower) >= 0).all()
    assert np.array_equal(lower, -upper[::-1])
    assert not np.signbit(lower[ZERO_BIN : ZERO_BIN + 2]).any()
    assert lower[0] == -np.inf
    assert upper[-1] == np.inf
    assert (lower[ZERO_BIN + 2], upper[-2]) == (2.0**-10, 2.0**14)


def test_a_value_lies_in_its_bin() -> None:
    lower, upper = bin_edges()
    random = np.random.default_rng(1)
    values = np.concatenate(
        [
            np.exp(random.normal(0, 6, 20_000)) * random.choice([-1, 1], 20_000),
            lower[np.isfinite(lower)],
            np.nextafter(lower[np.isfinite(lower)], np.float32(np.inf)),
            np.nextafter(upper[np.isfinite(upper)], np.float32(-np.inf)),
            [0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38],
        ]
    ).astype(np.float32)
    number = bins_of(values)
    positive, negative = values > 0, values < 0
    assert (number[values == 0] == ZERO_BIN).all()
    assert (lower[number][positive] <= values[positive]).all()
    assert (values[positive] < upper[number][positive]).all()
    assert (lower[number][negative] < values[negative]).all()
    assert (values[negative] <= upper[number][negative]).all()


def test_edges_tell_their_bin() -> None:
    lower, upper = bin_edges()
    assert np.array_equal(bins_between(lower, upper), np.arange(BINS))
    assert (bins_between(lower[:-2], upper[2:]) == -1).all()
    assert (bins_between(np.nextafter(lower, np.float32(np.inf)), upper) == -1).all()


@pytest.mark.parametrize("values", [1, 2, 99, 10_001])
@pytest.mark.parametrize("shape", ["normal", "gelu", "wide", "zero"])
def test_quantiles_are_within_a_sixteenth(values: int, shape: str) -> None:
    random = np.random.default_rng(values)
    normal = random.normal(size=values)
    sample = {
        "normal": normal,
        "gelu": np.where(normal > 0, normal, 0.05 * normal),
        "wide": np.exp(4 * normal),
        "zero": np.zeros(values),
    }[shape].astype(np.float32)
    histogram = np.bincount(bins_of(sample), minlength=BINS)[None]
    columns = quantiles(histogram, sample.min()[None], sample.max()[None])
    ordered = np.sort(sample)
    for name, share in QUANTILES.items():
        exact = float(ordered[max(math.ceil(values * share / 10_000), 1) - 1])
        found = float(columns[name][0])
        assert columns[name].dtype == np.float32
        assert ordered[0] <= found <= ordered[-1]
        if 2.0**-10 <= abs(exact) < 2.0**14:
            assert abs(found - exact) <= abs(exact) / 16
        elif exact == 0:
            assert found == 0


def test_ranks_of_huge_counts_are_exact() -> None:
    histogram = np.zeros((1, BINS), np.int64)
    # one value more than ninety-nine hundredths of all, by one in 10^16
    histogram[0, ZERO_BIN] = 99 * 10**15 - 1
    histogram[0, ZERO_BIN + 100] = 10**15 + 1
    columns = quantiles(histogram, np.zeros(1, np.float32), np.full(1, 1e9, np.float32))
    assert columns["p90"][0] == 0
    assert columns["p99"][0] > 0


def test_no_value_no_quantile() -> None:
    nothing = np.full(1, np.nan, np.float32)
    columns = quantiles(np.zeros((1, BINS), np.int64), nothing, nothing)
    assert all(np.isnan(column[0]) for column in columns.values())
