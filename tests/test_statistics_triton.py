"""Laws of the states, and parity with the reference, for the Triton kernels in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import importlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels import Keep, KernelInputError, Sequences, Statistics, dispatch
from indexer_kernels.histogram import magnitude_edges

from indexer.building.states import States
from indexer.models import Values
from indexer.names import MLP, Key
from tests.kernel_cases import DTYPES, KEEP, assert_equal, merged_statistics, some_activations
from tests.test_statistics import Batches, gathered, pieces, reference, some_batches
from tests.tiny_batches import places

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
pytestmark = pytest.mark.usefixtures("triton_interpreter")

COMPETITORS = ["sequence", "token", "document"]
# one unit, a part of a warp's units, sequences over several blocks; the interpreter is slow, so that only the
# second meets every dtype with every competitor
SHAPES = [(1, 1), (63, 7), (600, 3)]
CASES = [
    (shape, dtype, by)
    for shape in SHAPES
    for number, dtype in enumerate(DTYPES)
    for place, by in enumerate(COMPETITORS)
    if shape == (63, 7) or number == place
]


def whole_batch(units: int, dtype: torch.dtype, tokens: int) -> Batches:
    """Nine sequences that count without a gap but for their first token, as most of a corpus does."""
    rng = np.random.default_rng(units)
    counted = np.ones((9, tokens), bool)
    counted[:, 0] = False
    rows = Sequences.from_offsets(
        np.arange(10) * tokens, np.arange(9), np.zeros(9), rng.integers(0, 30000, 9 * tokens),
        counted.reshape(-1),
    )  # fmt: skip
    return [(some_activations(rows.tokens, units, rng, dtype), rows)]


@pytest.mark.parametrize(("shape", "dtype", "by"), CASES, ids=str)
def test_kernel_equals_reference(shape: tuple[int, int], dtype: torch.dtype, by: str) -> None:
    batches, expected = reference(shape, dtype, by)
    statistics = gathered(shape[1], batches, "triton", dataclasses.replace(KEEP, by=by))
    assert_equal(statistics, expected)
    bins = statistics.histogram.counts.sum(axis=1)
    np.testing.assert_array_equal(bins + statistics.moments.nan + statistics.moments.inf, statistics.count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loop_without_masks_equals_reference(dtype: torch.dtype) -> None:
    # the peaks of 64 units are slow to look for
    keep = Keep(top=1 if dtype == torch.bfloat16 else 0, bottom=0, window=(3, 2))
    # 25 rows count: two turns of the loop, one of that for what is left, and one row with a mask
    batches = whole_batch(64, dtype, tokens=26)
    assert_equal(gathered(64, batches, "triton", keep), gathered(64, batches, "reference", keep))


def eight_sequences_of(values: torch.Tensor) -> Batches:
    """One to each warp, so that the loop without masks takes all but the last rows."""
    edges = np.linspace(0, len(values), 9).astype(np.int64)
    return [(values, Sequences.from_offsets(edges, np.arange(8), np.zeros(8), np.zeros(len(values))))]


@pytest.mark.parametrize("finite", [True, False], ids=["finite", "all"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_is_taken_in_as_the_reference_does(dtype: torch.dtype, finite: bool) -> None:
    patterns = np.random.default_rng(0).permutation(65536).astype(np.uint16)
    values = torch.from_numpy(patterns).view(dtype).reshape(1024, 64)
    if finite:
        values = torch.where(values.isfinite(), values, values.new_tensor(-0.0))
    batches = eight_sequences_of(values)
    keep = Keep(top=0, bottom=0)
    assert_equal(gathered(64, batches, "triton", keep), gathered(64, batches, "reference", keep))


def test_float32_beside_every_edge_of_a_bin_falls_on_its_side() -> None:
    edges = magnitude_edges()[1:-1].astype(np.float32)
    sizes = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, np.inf), [0, 1e-45, 3e38]])
    values = np.zeros((64, 64), np.float32)
    values.reshape(-1)[: 2 * len(sizes)] = np.concatenate([sizes, -sizes])
    batches = eight_sequences_of(torch.from_numpy(np.random.default_rng(0).permutation(values)))
    keep = Keep(top=0, bottom=0)
    assert_equal(gathered(64, batches, "triton", keep), gathered(64, batches, "reference", keep))


@pytest.mark.parametrize("by", COMPETITORS)
def test_any_order_and_any_split_give_the_same_bits(by: str) -> None:
    batches = some_batches(150, 3, number=2)
    keep = dataclasses.replace(KEEP, by=by)
    alone = pieces(batches)
    random.Random(1).shuffle(alone)
    assert_equal(gathered(3, alone, "triton", keep), gathered(3, batches, "reference", keep))


@pytest.mark.parametrize("by", COMPETITORS)
def test_merge_is_the_whole(by: str) -> None:
    batches = some_batches(100, 3, number=3)
    keep = dataclasses.replace(KEEP, by=by)
    whole = gathered(3, batches, "reference", keep)
    parts = [gathered(3, [batch], "triton", keep) for batch in batches]
    assert_equal(merged_statistics(parts[::-1], "triton"), whole)
    # a state goes on after a merge
    two = merged_statistics(parts[:2], "triton")
    two.update(*batches[2])
    assert_equal(two, whole)


def test_settling_in_between_changes_nothing() -> None:
    batches = some_batches(63, 3, number=3)
    statistics = Statistics.empty(3, KEEP, kernels="triton")
    for batch in batches:
        # as a model runs, and as an index is written
        with torch.inference_mode():
            statistics.update(*batch)
        statistics.settle()
    assert_equal(statistics, gathered(3, batches, "reference"))


@pytest.mark.slow
def test_more_blocks_than_one_look_and_one_flush_take() -> None:
    # every block in a group of its own program: 33 groups, where counters are flushed after 31
    tokens = 8 * 66
    rng = np.random.default_rng(0)
    sequences = Sequences.from_offsets(
        np.arange(tokens + 1), np.arange(tokens) // 2, np.arange(tokens) % 2, np.arange(tokens)
    )
    batches = [(some_activations(tokens, 1, rng, torch.float32), sequences)]
    keep = Keep(top=2, bottom=0, window=(1, 1))
    assert_equal(gathered(1, batches, "triton", keep), gathered(1, batches, "reference", keep))


def test_counters_cannot_wrap_before_they_are_flushed() -> None:
    from indexer_kernels.blocks import BLOCK_TOKENS
    from indexer_kernels.histogram_triton import FLUSH_GROUPS
    from indexer_kernels.plan import GROUP_BLOCKS

    assert FLUSH_GROUPS.value * GROUP_BLOCKS * BLOCK_TOKENS <= 65535


def test_full_counters_and_limbs_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer_kernels.statistics.MOST_RECENT", 100)
    monkeypatch.setattr("indexer_kernels.statistics.MOST_PENDING", 10)
    batches = some_batches(63, 3, number=3)
    assert_equal(gathered(3, batches, "triton"), gathered(3, batches, "reference"))


def test_ties_go_to_the_earlier_document() -> None:
    keep = Keep(top=2, bottom=2, window=(1, 1))
    batches = [
        (
            torch.zeros(6, 2),
            Sequences.from_offsets(np.array([0, 3, 6]), np.array(ids), np.zeros(2), np.zeros(6)),
        )
        for ids in ([4, 9], [2, 7], [1, 8])
    ]  # fmt: skip
    statistics = gathered(2, batches, "triton", keep)
    assert_equal(statistics, gathered(2, batches, "reference", keep))
    assert statistics.top.ranked().document.tolist() == [[1, 2], [1, 2]]


def test_one_end_or_none_may_be_kept() -> None:
    batches = some_batches(63, 3)
    for keep in (Keep(top=0, bottom=3, window=(2, 2)), Keep(top=0, bottom=0)):
        assert_equal(gathered(3, batches, "triton", keep), gathered(3, batches, "reference", keep))


def test_powers_beyond_float32_leave_that_moment_undefined() -> None:
    activations = torch.full((4, 3), 1e12)
    activations[0] = -1e12
    sequences = Sequences.from_offsets(np.array([0, 4]), np.array([0]), np.array([0]), np.zeros(4))
    batches = [(activations, sequences)]
    assert_equal(gathered(3, batches, "triton"), gathered(3, batches, "reference"))


def test_no_tokens_leave_the_empty_state() -> None:
    nothing = Sequences(*[np.zeros(0, np.int64)] * 4, np.zeros(0, np.int32), np.zeros(0, bool))
    assert_equal(gathered(3, [(torch.zeros(0, 3), nothing)], "triton"), Statistics.empty(3, KEEP))


def test_states_see_what_the_device_holds() -> None:
    batches, key = some_batches(63, 3, number=2), Key(MLP, 0)
    both = []
    for kernels in ("triton", "reference"):
        states = States(places([3], KEEP), kernels=kernels, threads=1)
        for batch in batches:
            states.take(key, Values(*batch))
        states.finish()
        seen = (states.documents().tolist(), states.non_finite, states.first_non_finite)
        both.append((seen, states.record(key)))
    (ours, record), (theirs, expected) = both
    assert ours == theirs
    np.testing.assert_array_equal(record.histogram.counts, expected.histogram.counts)
    np.testing.assert_array_equal(record.moments.sums, expected.moments.sums)
    np.testing.assert_array_equal(record.top.ranked().document, expected.top.ranked().document)


def test_older_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "version", lambda package: "3.7.1")
    with pytest.raises(KernelInputError, match=r"need Triton 3\.8 or newer, and this is 3\.7\.1"):
        Statistics.empty(3, kernels="triton")


def test_auto_takes_triton_on_a_gpu_and_cpp_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.choose("auto", "cpu") == "cpp"
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dispatch.choose("auto", "cuda") == "triton"
    with pytest.raises(KernelInputError, match="run on cuda, not on 'cpu'"):
        dispatch.choose("triton", "cpu")
    with pytest.raises(KernelInputError, match="run on cpu, not on 'cuda'"):
        dispatch.choose("cpp", "cuda")


def test_kernels_are_launched_as_they_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compile case compiles them without fused multiply-adds of the compiler's own."""
    launched: dict[str, dict[str, Any]] = {}

    class Noted:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            def launch(*arguments: Any, **options: Any) -> None:
                launched[self.name] = options
                self.kernel[grid](*arguments, **options)

            return launch

    kernels = {"gather": "statistics", "compete": "topk", "sample": "bands", "activate_rows": "activations"}
    for name, module in kernels.items():
        place = importlib.import_module(f"indexer_kernels.{module}_triton")
        monkeypatch.setattr(place, name, Noted(name, getattr(place, name)))
    [(gate, sequences)] = some_batches(63, 7, number=1)
    keep = dataclasses.replace(KEEP, samples=1)
    statistics = Statistics.empty(7, keep, layer="mlp.0", kernels="triton")
    statistics.activate("relu", gate, None, sequences, torch.empty_like(gate))
    assert {name: options["enable_fp_fusion"] for name, options in launched.items()} == dict.fromkeys(
        kernels, False
    )
