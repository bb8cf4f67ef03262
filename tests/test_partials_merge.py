"""Merging records is one pass over all that they hold, in any order and grouping."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_kernels import Keep, Sequences, Statistics

from indexer.errors import IndexerError
from indexer.index.records import Examples, LayerRecord
from indexer.index.rows import ExampleRows, rows_of
from indexer.partials.merge import merge_records
from indexer.partials.places import Places
from indexer.partials.state import record_of, statistics_of
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
    assert_same(merge_records(alone, by=by), expected)
    assert_same(in_a_tree(alone, lambda group: merge_records(group, by=by), seed), expected)


def test_merging_is_commutative_and_associative() -> None:
    alone = [record([part]) for part in some_parts(3, seed=9)]
    expected = merge_records(alone, by="sequence")
    for first, second, third in itertools.permutations(alone):
        assert_same(merge_records([first, second, third], by="sequence"), expected)
        right = merge_records([second, third], by="sequence")
        assert_same(merge_records([first, right], by="sequence"), expected)


@pytest.mark.parametrize("by", BY)
def test_merging_one_or_none_changes_nothing(by: str) -> None:
    keep = dataclasses.replace(KEEP, by=by)
    one, nothing = record(some_parts(1), keep), record([], keep)
    assert_same(merge_records([one], by=by), one)
    assert_same(merge_records([nothing, one, nothing], by=by), one)
    assert_same(merge_records([nothing, nothing], by=by), nothing)


@pytest.mark.parametrize("by", BY)
def test_examples_that_several_hold_are_held_once(by: str) -> None:
    keep = dataclasses.replace(KEEP, by=by)
    parts = some_parts(3, seed=2)
    left, right = record(parts[:2], keep), record(parts[1:], keep)
    merged, expected = merge_records([left, right, left], by=by), record(parts, keep)
    for extreme in ("top", "bottom"):
        pair = [
            dataclasses.replace(expected, top=getattr(one, extreme), bottom=Examples.empty(expected.units))
            for one in (merged, expected)
        ]
        assert_same(*pair)


def test_the_kernels_merge_to_the_same() -> None:
    alone = [record([part]) for part in some_parts(4, seed=3)]
    merged = statistics_of(alone[0], KEEP, kernels="cpp", threads=1)
    for one in alone[1:]:
        merged.merge(statistics_of(one, KEEP, kernels="cpp", threads=1))
    assert_same(record_of(merged, "mlp", 0, copy=False), merge_records(alone, by="sequence"))


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
    places = Places(2, k, 1, largest=largest, by=by)
    best: dict[tuple[int, ...], tuple[float, int, int, int]] = {}
    for rows in offered:
        places.offer(_rows(rows))
        for value, *rest in rows:
            key = (-value if largest else value, *rest)
            best[tuple(rest[:identity])] = min(best.get(tuple(rest[:identity]), key), key)
    expected = sorted(best.values())[:k]
    found = places.examples()
    assert found.filled.tolist() == [0, len(expected)]
    for place, (value, document, sequence, position) in enumerate(expected):
        assert found.value[1, place] == (-value if largest else value)
        assert found.document[1, place] == document
        assert found.sequence[1, place] == sequence
        assert found.position[1, place] == position
        # the window came along
        assert found.token_ids[1, place, 0] == _token(found.value[1, place], document, sequence, position)


def _token(value: float, document: int, sequence: int, position: int) -> int:
    return int(value * 2) * 64 + document * 16 + sequence * 4 + position


def _rows(places: list[tuple[float, int, int, int]]) -> ExampleRows:
    """All of unit 1, each with a window of one token that tells whose it is."""
    value, document, sequence, position = zip(*places, strict=True) if places else [()] * 4
    return ExampleRows(
        unit=np.ones(len(places), np.int64),
        value=np.array(value, np.float32),
        document=np.array(document, np.int64),
        sequence=np.array(sequence, np.int64),
        position=np.array(position, np.int32),
        window_start=np.array(position, np.int32),
        window_length=np.ones(len(places), np.int32),
        offset=np.arange(len(places)),
        token_ids=np.array([_token(*place) for place in places], np.int32),
        activations=np.array(value, np.float32),
    )


def test_windows_of_any_width_keep_theirs() -> None:
    parts = some_parts(2, seed=5)
    narrow = record(parts[:1], Keep(top=5, bottom=3, window=(1, 0)))
    wide = record(parts[1:], KEEP)
    merged = merge_records([narrow, wide], by="sequence")
    assert _lengths(merged) <= _lengths(narrow) | _lengths(wide)
    assert {length for *_, length in _lengths(merged)} >= {2, 10}


def _lengths(one: LayerRecord) -> set[tuple[int, int, int]]:
    """Of unit 3, whose values differ."""
    top = one.top
    names = ("document", "sequence", "window_length")
    columns = [getattr(top, name)[3, : top.filled[3]].tolist() for name in names]
    return set(zip(*columns, strict=True))


def test_rows_of_a_record_are_its_places() -> None:
    one = record(some_parts(2))
    rows = rows_of(one.top)
    assert len(rows) == one.top.filled.sum()
    again = Examples.empty(one.units, one.top.places, one.top.token_ids.shape[2])
    place = np.concatenate([np.arange(filled) for filled in one.top.filled])
    flat = (again.token_ids.reshape(-1, rows.width), again.activations.reshape(-1, rows.width))
    rows.put_windows(np.arange(len(rows)), rows.unit * one.top.places + place, *flat)
    for name in ("value", "document", "sequence", "position", "window_start", "window_length"):
        getattr(again, name)[rows.unit, place] = getattr(rows, name)
    again.filled[:] = one.top.filled
    assert_same(dataclasses.replace(one, top=again), one)


def test_moments_and_counts_are_those_of_all_values() -> None:
    values = np.random.default_rng(0).normal(size=(900, 4)).astype(np.float32)
    parts = []
    for first in range(0, 900, 300):
        sequences = Sequences.from_offsets(
            np.array([0, 300]), np.array([first]), np.array([0]), np.zeros(300, np.int32)
        )
        parts.append((torch.from_numpy(values[first : first + 300]), sequences))
    merged = merge_records([record([part]) for part in parts], by="sequence")
    assert merged.count == 900
    np.testing.assert_allclose(merged.summary["mean"], values.mean(axis=0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(merged.summary["variance"], values.astype(np.float64).var(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(merged.maximum, values.max(axis=0))
    np.testing.assert_array_equal(merged.histogram.sum(axis=1), 900)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda one: dataclasses.replace(one, layer=4), "records do not merge: mlp.0 of 12 units, 5 top "
         "and 3 bottom places, and mlp.4 of 12 units, 5 top and 3 bottom places"),
        (lambda one: record(some_parts(1, units=13)), "and mlp.0 of 13 units"),
        (lambda one: record(some_parts(1), Keep(top=6, bottom=3)), "6 top and 3 bottom places"),
        (lambda one: dataclasses.replace(one, nan=one.nan.astype(np.int32)), "nan: int32"),
    ],
)  # fmt: skip
def test_records_of_other_layers_are_refused(other: object, said: str) -> None:
    one = record(some_parts(1))
    with pytest.raises(IndexerError, match=re.escape(said)):
        merge_records([one, other(one)], by="sequence")  # type: ignore[operator]


def test_nothing_and_unknown_competitors_are_refused() -> None:
    with pytest.raises(IndexerError, match="nothing to merge"):
        merge_records([], by="sequence")
    with pytest.raises(IndexerError, match="'word' is unknown; choose one of: sequence, token, document"):
        merge_records([record(some_parts(1))], by="word")


def test_inputs_are_left_as_they_were() -> None:
    alone = [record([part]) for part in some_parts(3)]
    again = [record([part]) for part in some_parts(3)]
    merge_records(alone, by="sequence")
    for one, before in zip(alone, again, strict=True):
        assert_same(one, before)


def test_no_place_at_either_end() -> None:
    keep = Keep(top=0, bottom=0)
    parts = some_parts(3)
    assert_same(merge_records([record([part], keep) for part in parts], by="token"), record(parts, keep))


def test_statistics_that_hold_a_merge_continue() -> None:
    parts = some_parts(4, seed=6)
    merged = merge_records([record(parts[:1]), record(parts[1:2])], by="sequence")
    restored: Statistics = statistics_of(merged, KEEP, kernels="cpp", threads=1)
    for part in parts[2:]:
        restored.update(*part)
    assert_same(record_of(restored, "mlp", 0, copy=False), record(parts))
