"""Merging records is one pass over all that they hold, in any order and grouping."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_kernels import Keep, KernelInputError, Sequences, Statistics, TopK
from indexer_kernels.examples import ExampleRows

from indexer.names import MLP, Key
from indexer.partials.state import record_of, statistics_of
from tests.index_cases import with_states
from tests.kernel_cases import merged, rows_of
from tests.partial_cases import KEEP, in_a_tree, record, some_parts
from tests.test_restore import assert_same

BY = ["sequence", "token", "document"]


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("seed", range(4))
def test_any_tree_is_one_pass(by: str, seed: int) -> None:
    keep = dataclasses.replace(KEEP, by=by)
    parts = some_parts(6, seed=seed)
    expected = record(parts, keep)
    alone = [record([part], keep) for part in parts]
    assert_same(merged(alone), expected)
    assert_same(in_a_tree(alone, merged, seed), expected)


def test_merging_is_commutative_and_associative() -> None:
    alone = [record([part]) for part in some_parts(3, seed=9)]
    expected = merged(alone)
    for first, second, third in itertools.permutations(alone):
        assert_same(merged([first, second, third]), expected)
        right = merged([second, third])
        assert_same(merged([first, right]), expected)


@pytest.mark.parametrize("by", BY)
def test_merging_one_or_none_changes_nothing(by: str) -> None:
    keep = dataclasses.replace(KEEP, by=by)
    one, nothing = record(some_parts(1), keep), record([], keep)
    assert_same(merged([one]), one)
    assert_same(merged([nothing, one, nothing]), one)
    assert_same(merged([nothing, nothing]), nothing)


@pytest.mark.parametrize("by", BY)
def test_examples_that_several_hold_are_held_once(by: str) -> None:
    keep = dataclasses.replace(KEEP, by=by)
    parts = some_parts(3, seed=2)
    left, right = record(parts[:2], keep), record(parts[1:], keep)
    found, expected = merged([left, right, left]), record(parts, keep)
    examples = {name: found.states[name] for name in ("top", "bottom", "samples")}
    assert_same(with_states(expected, **examples), expected)


SMALL = st.integers(0, 3)
PLACE = st.tuples(st.sampled_from([-1.0, 0.0, -0.0, 1.0, 2.5]), SMALL, SMALL, SMALL)


OFFERED = st.lists(st.lists(PLACE, max_size=6), max_size=5)


@given(st.sampled_from(BY), st.booleans(), st.integers(1, 4), OFFERED)
@settings(max_examples=300, deadline=None)
def test_winners_are_the_best_of_each_competitor(
    by: str, largest: bool, k: int, offered: list[list[tuple[float, int, int, int]]]
) -> None:
    """Against a sorted list: whatever comes in whatever order, ties and repetitions too."""
    identity = {"document": 1, "sequence": 2, "token": 3}[by]
    places = TopK.empty(2, k, largest=largest, by=by, window=(0, 0))
    best: dict[tuple[int, ...], tuple[float, int, int, int]] = {}
    for rows in offered:
        places.offer(_rows(rows))
        for value, *rest in rows:
            key = (-value if largest else value, *rest)
            best[tuple(rest[:identity])] = min(best.get(tuple(rest[:identity]), key), key)
    expected = sorted(best.values())[:k]
    found = places.ranked()
    assert found.filled.tolist() == [0, len(expected)]
    for place, (value, document, sequence, position) in enumerate(expected):
        assert found.value[1, place] == (-value if largest else value)
        assert found.document[1, place] == document
        assert found.sequence[1, place] == sequence
        assert found.position[1, place] == position
        # the window came along, and the other factor
        assert found.up[1, place] == found.value[1, place] - 1
        assert found.token_ids[1, place, 0] == _token(found.value[1, place], document, sequence, position)


def _token(value: float, document: int, sequence: int, position: int) -> int:
    return int(value * 2) * 64 + document * 16 + sequence * 4 + position


def _rows(places: list[tuple[float, int, int, int]]) -> ExampleRows:
    """All of unit 1, each with a window of one token that tells whose it is."""
    value, document, sequence, position = zip(*places, strict=True) if places else [()] * 4
    return ExampleRows(
        unit=np.ones(len(places), np.int64),
        value=np.array(value, np.float32),
        up=np.array(value, np.float32) - 1,
        document=np.array(document, np.int64),
        sequence=np.array(sequence, np.int64),
        position=np.array(position, np.int32),
        window_start=np.array(position, np.int32),
        window_length=np.ones(len(places), np.int32),
        offset=np.arange(len(places)),
        token_ids=np.array([_token(*place) for place in places], np.int32),
        activations=np.array(value, np.float32),
    )


def test_a_state_is_its_rows() -> None:
    one = record(some_parts(2))
    again = TopK.empty(one.units, one.top.k, largest=True, window=KEEP.window)
    again.offer(rows_of(one.top))
    assert_same(with_states(one, top=again), one)
    # what the kernels compare with is as they left it
    ranked, expected = again.ranked(), one.top.ranked()
    np.testing.assert_array_equal(ranked.threshold, expected.threshold)
    unit = np.flatnonzero(again.filled == again.k)
    assert len(unit)
    np.testing.assert_array_equal(again.position[unit, again.worst[unit]], expected.position[unit, -1])


def test_moments_and_counts_are_those_of_all_values() -> None:
    values = np.random.default_rng(0).normal(size=(900, 4)).astype(np.float32)
    parts = []
    for first in range(0, 900, 300):
        sequences = Sequences.from_offsets(
            np.array([0, 300]), np.array([first]), np.array([0]), np.zeros(300, np.int32)
        )
        parts.append((torch.from_numpy(values[first : first + 300]), sequences))
    found = merged([record([part]) for part in parts])
    assert found.count.tolist() == [900] * 4
    summary = found.moments.summary(found.count)
    np.testing.assert_allclose(summary["mean"], values.mean(axis=0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(summary["variance"], values.astype(np.float64).var(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.moments.maximum, values.max(axis=0))
    np.testing.assert_array_equal(found.histogram.counts.sum(axis=1), 900)


def test_unknown_competitors_are_refused() -> None:
    with pytest.raises(KernelInputError, match="'word' is unknown; choose one of: sequence, token, document"):
        TopK.empty(1, 1, largest=True, by="word")


def test_inputs_are_left_as_they_were() -> None:
    alone = [record([part]) for part in some_parts(3)]
    again = [record([part]) for part in some_parts(3)]
    merged(alone)
    for one, before in zip(alone, again, strict=True):
        assert_same(one, before)


def test_no_place_at_either_end() -> None:
    keep = Keep(top=0, bottom=0)
    parts = some_parts(3)
    assert_same(merged([record([part], keep) for part in parts]), record(parts, keep))


def test_statistics_that_hold_a_merge_continue() -> None:
    parts = some_parts(4, seed=6)
    half = merged([record(parts[:1]), record(parts[1:2])])
    restored: Statistics = statistics_of(half, kernels="cpp", threads=1)
    for part in parts[2:]:
        restored.update(*part)
    assert_same(record_of(restored, Key(MLP, 0)), record(parts))
