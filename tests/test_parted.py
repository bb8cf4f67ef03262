"""Rows of some tokens alone, as of those routed to an expert: the same as a row for every token, of which
these alone are counted. And a layer of parts that each meet tokens of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from indexer_kernels import FUNCTIONS, Keep, KernelInputError, PartedStatistics, Sequences, Statistics

from tests.kernel_cases import DTYPES, assert_equal, some_activations, some_sequences

KEEP = Keep(top=5, bottom=4, window=(6, 3), samples=2, seed=3)
TOKENS, UNITS = 600, 70


def routed(sequences: Sequences, share: float, rng: np.random.Generator) -> Sequences:
    """Some of the tokens; of a share of 0 none."""
    at = np.flatnonzero(rng.random(sequences.tokens) < share)
    return Sequences(*(getattr(sequences, name) for name in FIELDS), at=at)


FIELDS = ("start", "length", "document", "ordinal", "token_ids", "counted")


def empty(kernels: str, by: str = "sequence") -> Statistics:
    keep = Keep(**{**vars(KEEP), "by": by, "distinct": by == "token"})
    return Statistics.empty(UNITS, keep, layer="experts.1", kernels=kernels, threads=2)


@pytest.mark.parametrize("by", ["sequence", "token", "document"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_some_tokens_are_a_matrix_with_zeros(
    by: str, dtype: torch.dtype, instruction_set: str
) -> None:
    rng = np.random.default_rng(0)
    fast, reference, dense = empty("cpp", by), empty("reference", by), empty("cpp", by)
    for number, share in enumerate((0.6, 0.02, 0.0, 1.0)):
        sequences = routed(some_sequences(TOKENS, rng, first_document=100 * number), share, rng)
        activations = some_activations(sequences.matrix_rows, UNITS, rng, dtype)
        for statistics in (fast, reference):
            statistics.update(activations, sequences)
        whole = torch.zeros(TOKENS, UNITS, dtype=dtype)
        whole[sequences.at] = activations
        dense.update(whole, sequences.spread())
    assert 0 < fast.count == dense.count < 4 * TOKENS
    assert_equal(fast, reference)
    assert_equal(fast, dense)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_is_applied_to_all_rows(function: str, instruction_set: str) -> None:
    rng = np.random.default_rng(1)
    sequences = routed(some_sequences(TOKENS, rng), 0.4, rng)
    packed = torch.from_numpy(rng.standard_normal((sequences.matrix_rows, 2 * UNITS)).astype(np.float32))
    gate, up = packed.clone().chunk(2, dim=1)
    fused, read = empty("cpp"), empty("cpp")
    made = fused.activate(function, gate, up, sequences, gate)
    plain = Statistics.empty(UNITS, Keep(top=0, bottom=0))
    expected = plain.activate(function, *packed.chunk(2, dim=1), Sequences.none(len(packed)))
    assert torch.equal(made, expected)
    read.update(made, sequences, up)
    assert_equal(fused, read)
    taken = fused.top.taken
    assert taken.any()
    assert np.isfinite(fused.top.up[taken]).all()


def test_parts_meet_tokens_of_their_own() -> None:
    parts, rng = 3, np.random.default_rng(2)
    layer = PartedStatistics.empty(parts * UNITS, KEEP, layer="experts.1", width=UNITS)
    keys = Statistics.empty(parts * UNITS, KEEP, layer="experts.1").samples.key
    alone = [Statistics.empty(UNITS, KEEP, layer="experts.1") for _ in range(parts)]
    for part, statistics in enumerate(alone):
        statistics.samples.key[:] = keys[part * UNITS :][:UNITS]
    for number in range(3):
        sequences = some_sequences(TOKENS, rng, first_document=100 * number)
        for part, statistics in enumerate(alone):
            # the last one is never met
            some = routed(sequences, 0.3 * (part < parts - 1), rng)
            activations = some_activations(some.matrix_rows, UNITS, rng, torch.float32)
            statistics.update(activations, some)
            layer.part(part * UNITS).update(activations, some)
    counts = [statistics.count for statistics in alone]
    assert counts[0] != counts[1]
    assert counts[2] == 0
    np.testing.assert_array_equal(layer.counts, np.repeat(counts, UNITS))
    documents = np.unique(np.concatenate([ids for statistics in alone for ids in statistics.documents()]))
    np.testing.assert_array_equal(np.unique(np.concatenate(list(layer.documents()))), documents)
    assert layer.non_finite() == sum(statistics.non_finite() for statistics in alone) > 0
    layer.settle()
    for part, statistics in enumerate(alone):
        assert_equal(layer.parts[part], statistics)
        units = slice(part * UNITS, (part + 1) * UNITS)
        np.testing.assert_array_equal(layer.histogram.counts[units], statistics.histogram.counts)
        np.testing.assert_array_equal(layer.samples.ranked(units).value, statistics.samples.ranked().value)


def test_what_rows_there_cannot_be() -> None:
    sequences = some_sequences(40, np.random.default_rng(0))
    for at in ([3, 3], [5, 4], [-1, 2], [2, 40]):
        with pytest.raises(KernelInputError, match="ascending, each once"):
            Sequences(*(getattr(sequences, name) for name in FIELDS), at=np.array(at))
    some = routed(sequences, 0.5, np.random.default_rng(0))
    with pytest.raises(KernelInputError, match=r"takes? \(\d+, 70\)"):
        empty("cpp").update(torch.zeros(40, UNITS), some)
