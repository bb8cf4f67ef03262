"""Units in parts that meet some tokens each, and parts that come one after the other: in Triton's interpreter
what they are part by part in the reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels import Keep, KernelInputError, PartedStatistics, Sequences, Statistics
from indexer_kernels.routes import Routes
from torch import Tensor

from indexer.building.states import States
from indexer.models import Runner, adapt
from indexer.names import Key
from indexer.sites import Asked, find
from indexer.sites.sae.dictionary import Dictionary, Jump, Relu, TopK
from indexer.sites.sae.probe import Features
from tests.kernel_cases import assert_equal, some_activations, some_sequences
from tests.test_activations import pre_activations
from tests.tiny_batches import tiny_batch
from tests.tiny_models import fresh

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
pytestmark = pytest.mark.usefixtures("triton_interpreter")

JUMP = Jump(torch.tensor([0.5, -1.0, 0.0, 1.0, 0.1]))
KEEP = Keep(top=2, bottom=1, window=(4, 2), samples=1)


def empty(parts: int, width: int, keep: Keep, kernels: str) -> PartedStatistics:
    return PartedStatistics.empty(parts * width, keep, layer="experts.0", width=width, kernels=kernels)


def routed(sequences: Sequences, parts: int, seed: int = 0, per_token: int = 2) -> Routes:
    """Every token to some parts: now and then to none, or twice to the same; the last part meets few."""
    random = np.random.default_rng(seed)
    index = np.minimum(random.integers(0, 2 * parts, (sequences.tokens, per_token)), parts)
    return Routes.of(torch.from_numpy(np.where(index == parts, index % 3 * parts // 2, index)), parts)


def part_by_part(
    whole: PartedStatistics, values: Tensor, sequences: Sequences, routes: Routes, up: Tensor | None = None
) -> None:
    for part, rows, at in routes.on_host():
        own = dataclasses.replace(sequences, at=at)
        whole.part(part * whole.width).update(values[rows], own, None if up is None else up[rows])


def assert_same(one: PartedStatistics, other: PartedStatistics) -> None:
    assert_equal(one, other)
    np.testing.assert_array_equal(one.counts, other.counts)
    mine, theirs = ({*np.concatenate([[], *of.documents()])} for of in (one, other))
    assert mine == theirs


def batches(parts: int, width: int, tokens: int, dtype: torch.dtype, number: int = 2) -> list[Any]:
    """Values, sequences and routes; documents go on from batch to batch."""
    random = np.random.default_rng(tokens)
    found = []
    for first in range(number):
        sequences = some_sequences(tokens, random, first_document=100 * first)
        routes = routed(sequences, parts, first)
        found.append((some_activations(len(routes.token), width, random, dtype), sequences, routes))
    return found


def test_routes_of_an_index() -> None:
    routes = Routes.of(torch.tensor([[2, 0], [1, 1], [0, 3], [-1, 2]]), 3)
    assert routes.part.tolist() == [0, 0, 1, 2, 2, 3, 3, 3]
    assert routes.token.tolist() == [0, 2, 1, 0, 3, 1, 2, 3]
    assert routes.row.tolist() == [[3, 0], [2, 5], [1, 6], [7, 4]]
    assert routes.ends.tolist() == [2, 3, 5]
    found = [(part, rows, at.tolist()) for part, rows, at in routes.on_host()]
    assert found == [(0, slice(0, 2), [0, 2]), (1, slice(2, 3), [1]), (2, slice(3, 5), [0, 3])]


@pytest.mark.parametrize(
    ("parts", "width", "tokens", "dtype", "by"),
    [
        (3, 2, 60, torch.float32, "sequence"),
        (2, 2, 40, torch.bfloat16, "token"),
        (3, 1, 60, torch.float16, "document"),
        pytest.param(3, 1, 700, torch.bfloat16, "sequence", marks=pytest.mark.slow),
        pytest.param(2, 66, 30, torch.bfloat16, "sequence", marks=pytest.mark.slow),
        pytest.param(3, 2, 90, torch.float32, "token", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_parts_together_are_what_they_are_alone(
    parts: int, width: int, tokens: int, dtype: torch.dtype, by: str
) -> None:
    keep = dataclasses.replace(KEEP, by=by)
    ours, theirs = empty(parts, width, keep, "triton"), empty(parts, width, keep, "reference")
    for values, sequences, routes in batches(parts, width, tokens, dtype):
        ours.update(values, sequences, routes=routes)
        part_by_part(theirs, values, sequences, routes)
    assert_same(ours, theirs)


def test_the_loop_without_masks_takes_rows_of_parts() -> None:
    # of each of eight sequences 20 tokens of 26 go to the first part, all but two of which count
    sequences = Sequences.from_offsets(
        np.arange(9) * 26, np.arange(8), np.zeros(8), np.arange(208), np.arange(208) % 26 < 18
    )
    index = torch.where(torch.arange(208) % 26 < 20, 0, 1)[:, None]
    routes = Routes.of(index, 2)
    keep = Keep(top=0, bottom=0)
    ours, theirs = empty(2, 64, keep, "triton"), empty(2, 64, keep, "reference")
    gate = pre_activations(208, 64, torch.bfloat16)
    values = ours.activate("relu", gate, None, sequences, routes=routes)
    # of no statistic, and written all the same
    assert torch.equal(values, gate.relu())
    part_by_part(theirs, values, sequences, routes)
    assert_same(ours, theirs)
    assert ours.counts[[0, 64]].tolist() == [8 * 18, 0]


@pytest.mark.parametrize(
    "distinct", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["any", "distinct"]
)
def test_examples_of_gated_parts_hold_up(distinct: bool) -> None:
    keep = dataclasses.replace(KEEP, distinct=distinct)
    ours, theirs = empty(2, 1, keep, "triton"), empty(2, 1, keep, "reference")
    sequences = some_sequences(40, np.random.default_rng(1))
    routes = routed(sequences, 2)
    both = pre_activations(len(routes.token), 2, torch.float32)
    gate, up = both.chunk(2, dim=1)
    values = ours.activate("silu", gate, up, sequences, gate, routes)
    part_by_part(theirs, values, sequences, routes, up)
    assert_same(ours, theirs)


def test_parts_that_come_one_after_the_other_share_the_memory_of_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pinned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        memory = torch.zeros(shape, dtype=dtype)
        return memory, memory

    monkeypatch.setattr("indexer_kernels.device.pinned_on_device", pinned)
    ours, theirs = empty(3, 1, KEEP, "triton"), empty(3, 1, KEEP, "reference")
    random = np.random.default_rng(0)
    for number in range(2):
        sequences = some_sequences(40, random, first_document=100 * number)
        values = some_activations(40, 3, random, torch.float32)
        values[5:9, 1] = torch.nan
        for whole in (ours, theirs):
            for first in range(3):
                whole.part(first).update(values[:, first : first + 1], sequences)
        if not number:
            # windows go to other memory, and all goes on from there
            ours.to_device(torch.device("cpu"), "host")
    assert ours.non_finite() == theirs.non_finite() > 0
    assert ours.met_non_finite is not None
    assert ours.met_non_finite.item() == 1
    assert_same(ours, theirs)


class Counted:
    """A statistic that no kernel knows: tokens that are positive, int64 [units]."""

    def __init__(self, units: int) -> None:
        self.positive = np.zeros(units, np.int64)

    def update(self, values: Any, sequences: Sequences) -> None:
        self.positive += (values[sequences.counted] > 0).sum(axis=0)


def test_other_statistics_are_of_each_parts_own_tokens() -> None:
    states = Keep(top=0, bottom=0).states(4) | {"positive": Counted(4)}
    ours = PartedStatistics.of(4, states, width=2, kernels="triton")
    [(values, sequences, routes)] = batches(2, 2, 60, torch.float32, number=1)
    ours.update(values, sequences, routes=routes)
    wanted = np.zeros(4)
    for part, rows, at in routes.on_host():
        wanted[2 * part : 2 * part + 2] = (values[rows][sequences.counted[at]] > 0).sum(dim=0)
    assert wanted.all()
    np.testing.assert_array_equal(ours.others["positive"].positive, wanted)


def test_routes_are_for_parts() -> None:
    [(values, sequences, routes)] = batches(2, 2, 60, torch.float32, number=1)
    statistics = Statistics.empty(2, Keep(top=0, bottom=0), kernels="triton")
    with pytest.raises(KernelInputError, match="units that are not in parts meet all tokens"):
        statistics.update(values, sequences, routes=routes)


@pytest.mark.parametrize("activation", [Relu(), JUMP, TopK(2)], ids=["relu", "jump", "top-k"])
def test_features_of_a_model(activation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.sites.sae.probe.BLOCK_UNITS", 2)
    loaded: Any = adapt(fresh("llama"))
    weight, bias = torch.randn(5, 33, generator=torch.Generator().manual_seed(0)).split([32, 1], dim=1)
    dictionary = Dictionary(
        files=(Path("made"),), form="made", point="", layer=None, weight=weight.contiguous(),
        bias=bias.flatten(), activation=activation,
    )  # fmt: skip
    probe = Features(
        key=Key("sae.made", 0), units=5, keep=Keep(top=1, bottom=0, window=(2, 1), samples=1), place="made",
        module=loaded.model.layers[0], returned=True, dictionary=dictionary,
    )  # fmt: skip
    both = [States([probe], kernels=kernels, threads=1) for kernels in ("triton", "reference")]
    for states in both:
        with Runner(loaded, [probe], states.take) as runner:
            states.run(runner, tiny_batch(7, 4, 5))
            states.finish()
    ours, theirs = (states.statistics[probe.key] for states in both)
    assert_same(ours, theirs)  # type: ignore[arg-type]
    assert ours.counts.tolist() == [16] * 5


def test_a_dictionary_goes_to_a_device_as_a_whole() -> None:
    weight, bias = torch.ones(5, 3), torch.ones(5)
    dictionary = Dictionary(
        files=(), form="", point="", layer=0, weight=weight, bias=bias, activation=JUMP, subtracted=bias[:3],
        scale=bias,
    ).on(torch.device("meta"))  # fmt: skip
    moved = dictionary, dictionary.activation
    tensors = [value for state in moved for value in vars(state).values() if isinstance(value, Tensor)]
    assert len(tensors) == 5
    assert all(tensor.is_meta for tensor in tensors)


def test_experts_of_a_model() -> None:
    # of ReLU nothing is rounded otherwise
    loaded = adapt(fresh("qwen3_moe", moe_intermediate_size=4, hidden_act="relu"))
    found: Any = find(loaded, ("experts",), Asked(Keep(top=1, window=(2, 1), samples=1)))
    probes = [dataclasses.replace(probe, grouped=True) for probe in found[:1]]
    ours, theirs = (States(probes, kernels=kernels, threads=1) for kernels in ("triton", "reference"))
    for states in (ours, theirs):
        with Runner(loaded, probes, states.take) as runner:
            states.run(runner, tiny_batch(7, 4, 5))
            states.finish()
    assert_same(*(states.statistics[probes[0].key] for states in (ours, theirs)))  # type: ignore[arg-type]
