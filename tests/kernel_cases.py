"""Batches and comparisons that the kernel tests share."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from indexer_kernels import Bands, Keep, Sequences, Statistics, TopK
from indexer_kernels.examples import PLACE_FIELDS, WINDOW_FIELDS

from benchmarks.states import rows_of
from indexer.index.records import LayerRecord
from indexer.names import MLP, Key
from indexer.partials.state import record_of, statistics_of

KEEP = Keep(top=5, bottom=4, window=(6, 3))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def kinds(values: torch.Tensor) -> torch.Tensor:
    """What an index counts a value as: 0 neither, 1 positive, 2 active too, 3 NaN, 4 infinite."""
    positive = (values > 0).int() + (values.double() >= 2.0**-10).int()
    return torch.where(values.isnan(), 3, torch.where(values.isinf(), 4, positive))


def every_16_bit_value(dtype: torch.dtype) -> torch.Tensor:
    """NaN and infinities too; [1024, 64]."""
    return torch.from_numpy(np.arange(65536).astype(np.uint16)).view(dtype).reshape(-1, 64)


def float32_near(*places: float) -> torch.Tensor:
    """Some thousand float32 on either side of each place and of its negative, and odd ones; [rows, 64]."""
    found = [torch.tensor([np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0, -0.0, 1e-42, -1e-42])]
    for place in places:
        middle = torch.tensor(place).view(torch.int32)
        near = (middle + torch.arange(-2000, 2000, dtype=torch.int32)).view(torch.float32)
        found += [near, -near]
    values = torch.cat(found)
    return torch.cat([values, values.new_zeros(-len(values) % 64)]).reshape(-1, 64)


def some_sequences(
    tokens: int, rng: np.random.Generator, *, padding: bool = True, first_document: int = 0
) -> Sequences:
    """Ragged sequences with gaps between them, several to a document, and random tokens that do not count."""
    start, length, row = [], [], 0
    while row < tokens:
        size = int(min(rng.choice([0, 1, 2, 31, 32, 33, 90, 256, 300, 520]), tokens - row))
        start.append(row)
        length.append(size)
        row += size + (int(rng.integers(0, 40)) if padding else 0) + (size == 0)
    number = np.arange(len(start))
    counted = rng.random(tokens) < 0.9
    return Sequences(
        np.array(start), np.array(length), (first_document + number // 3) << 40, number % 3,
        rng.integers(0, 30000, tokens), counted,
    )  # fmt: skip


def repetitive(batches: Sequence[tuple[torch.Tensor, Sequences]]) -> list[tuple[torch.Tensor, Sequences]]:
    """The same, of nearly one word alone, so that passages come again and again."""
    return [
        (values, dataclasses.replace(sequences, token_ids=sequences.token_ids // 27_000))
        for values, sequences in batches
    ]


def some_activations(tokens: int, units: int, rng: np.random.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Values of every size and sign, with ties, signed zeros, subnormals, and a few non-finite ones."""
    values = rng.standard_normal((tokens, units)) * 10.0 ** rng.integers(-4, 4, (tokens, units))
    values = np.where(
        rng.random(values.shape) < 0.2,
        rng.choice([0.0, -0.0, 1.0, -1.0, 0.125, 1e-42, -1e-42], values.shape),
        values,
    )
    special = rng.choice([np.nan, np.inf, -np.inf], values.shape)
    values = np.where(rng.random(values.shape) < 0.002, special, values)
    # the rows are part of a wider matrix: the stride is not the number of units
    wide = torch.zeros(tokens, units + 5, dtype=dtype)
    wide[:, 2 : units + 2] = torch.from_numpy(values).to(dtype)
    return wide[:, 2 : units + 2]


def assert_equal(left: Statistics, right: Statistics) -> None:
    """Every number of two statistics, bit for bit."""
    left.settle()
    right.settle()
    assert left.count == right.count
    for one, other in ((left.moments, right.moments), (left.histogram, right.histogram)):
        one.settle()
        other.settle()
        for field in dataclasses.fields(one):
            if field.compare:
                np.testing.assert_array_equal(
                    getattr(one, field.name), getattr(other, field.name), err_msg=field.name
                )
    for name in ("top", "bottom", "samples"):
        one, other = getattr(left, name), getattr(right, name)
        if one is None and other is None:
            continue
        assert_same_places(one, other)
        if isinstance(one, TopK):
            np.testing.assert_array_equal(one.filled, other.filled)
            full = one.filled == one.k
            np.testing.assert_array_equal(one.threshold[full], other.threshold[full])
        else:
            np.testing.assert_array_equal(one.bars, other.bars)
            hashes = (state.hash[state.taken] for state in (one.ranked(), other.ranked()))
            np.testing.assert_array_equal(*hashes)


def assert_same_places(one: TopK | Bands, other: TopK | Bands) -> None:
    """Every example of two states, bit for bit, in rank order."""
    one, other = one.ranked(), other.ranked()
    taken = one.taken
    np.testing.assert_array_equal(taken, other.taken)
    for name in PLACE_FIELDS:
        np.testing.assert_array_equal(getattr(one, name)[taken], getattr(other, name)[taken], err_msg=name)
    inside = taken[:, :, None] & (np.arange(one.before + 1 + one.after) < one.window_length[:, :, None])
    for name in WINDOW_FIELDS:
        np.testing.assert_array_equal(getattr(one, name)[inside], getattr(other, name)[inside], err_msg=name)


def set_up(statistics: Statistics, up: torch.Tensor, sequences: Sequences) -> None:
    """Give the examples of one batch the other factor at their peaks, one by one."""
    places = zip(sequences.document, sequences.ordinal, strict=True)
    start = dict(zip(places, sequences.start, strict=True))
    for state in (statistics.top, statistics.bottom, statistics.samples):
        if state is None:
            continue
        for unit, place in zip(*np.nonzero(state.taken), strict=True):
            begin = start.get((state.document[unit, place], state.sequence[unit, place]))
            if begin is not None:
                row = int(begin + state.position[unit, place])
                state.up[unit, place] = float(up[row, unit]) + 0.0


def merged(records: Sequence[LayerRecord]) -> LayerRecord:
    """The states of one record after the other merged into those of no tokens."""
    first = records[0]
    whole = LayerRecord.empty(first.key, first.units, first.keep)
    for record in records:
        whole.count[:] += record.count
        whole.moments.merge(record.moments)
        whole.histogram.add(..., record.histogram.counts)
        for name in ("top", "bottom", "samples"):
            whole.states[name].offer(rows_of(record.states[name]))
    return whole


def merged_statistics(parts: Sequence[Statistics], kernels: str) -> Statistics:
    """Statistics that go on where all parts together stopped."""
    records = [copy.deepcopy(record_of(part, Key(MLP, 0))) for part in parts]
    return statistics_of(merged(records), kernels=kernels)
