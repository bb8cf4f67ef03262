"""What the host does for a batch on a GPU, without one: it asks the device for nothing.

The kernels run in Triton's interpreter or not at all, and every operation of torch that would make the host
wait is caught. On a machine with a GPU CUDA itself is asked, in test_gpu_kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels import Keep, Sequences, staging
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from indexer.building.spotcheck import SpotCheck
from indexer.building.states import States
from indexer.models import Runner, adapt
from indexer.sites import Asked, find
from indexer.sites.sae.dictionary import _first_of_equal, _spread
from tests.tiny_batches import TinyBatch, mlps, tiny_batch
from tests.tiny_models import fresh

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
pytestmark = pytest.mark.usefixtures("triton_interpreter", "one_thread")

# What copies to the host when a tensor is on a device, or waits to learn how much there is to copy. `numpy`
# does neither: it is for tensors on the host alone.
WAITING = {
    "cpu", "item", "tolist", "nonzero", "argwhere", "masked_select", "unique", "bincount", "equal",
    "allclose", "__bool__", "__int__", "__float__", "__index__", "__contains__", "is_nonzero",
}  # fmt: skip
WAITING_OPERATORS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::_unique2", "aten::bincount", "aten::repeat_interleave.Tensor", "aten::item",
}  # fmt: skip


class Calls(TorchFunctionMode):
    """Notes calls from Python that wait; what is inside `unseen` is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in WAITING:
            self.waited.append(name)
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Notes operators that wait, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        by_mask = name == "aten::index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in WAITING_OPERATORS:
            self.waited.append(name)
        return function(*args, **(kwargs or {}))


class NoKernel:
    """In the place of a Triton kernel: launched, and nothing is done."""

    def __init__(self) -> None:
        self.launched = 0

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.launched += 1

        return launch


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> NoKernel:
    from indexer_kernels import activations_triton, statistics_triton, topk_triton

    nothing = NoKernel()
    monkeypatch.setattr(statistics_triton, "gather", nothing)
    monkeypatch.setattr(activations_triton, "activate_rows", nothing)
    monkeypatch.setattr(topk_triton, "compete", nothing)
    return nothing


@contextmanager
def watched() -> Iterator[tuple[Calls, Operators]]:
    calls, operators = Calls(), Operators()
    with calls, operators:
        yield calls, operators


# causal ones padded on the right, which take no mask; an encoder without padding
@pytest.mark.parametrize(
    ("name", "lengths"),
    [("gpt2", (9, 4)), ("gpt_neox", (9, 4)), ("llama", (9, 4)), ("bert", (9, 9)), ("qwen3_moe", (9, 4))],
)
def test_a_batch_in_the_steady_state_waits_for_nothing(
    name: str, lengths: tuple[int, ...], no_kernels: NoKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.sites.experts.is_grouped", lambda module: True)
    loaded = adapt(fresh(name), name=name)
    sites = ("experts",) if name == "qwen3_moe" else ("mlp",)
    probes = find(loaded, sites, Asked(Keep(top=2, bottom=1, window=(3, 2))))
    states = States(probes, kernels="triton", threads=1)
    with Runner(loaded, probes, states.take) as runner:
        for seed in range(4):
            states.run(runner, tiny_batch(*lengths, seed=seed))
        before = no_kernels.launched
        with watched() as (calls, operators):
            states.run(runner, tiny_batch(*lengths, seed=5))
    # both ends, and the gathering itself
    assert no_kernels.launched - before >= 3 * len(probes)
    assert calls.waited == []
    assert operators.waited == []


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_sequence_that_is_run_again_is_waited_for_later(name: str, no_kernels: NoKernel) -> None:
    loaded = adapt(fresh(name), name=name)
    probes = mlps(loaded, keep=Keep(top=2, bottom=1))
    states = States(probes, kernels="triton", threads=1)
    spotcheck = SpotCheck("triton", "padded")
    with Runner(loaded, probes, states.take) as runner:
        states.run(runner, tiny_batch(9, 4))
        with watched() as (calls, operators):
            spotcheck.run(runner, tiny_batch(9, 4, seed=1), states)
    assert spotcheck.checked == 1
    assert calls.waited == []
    assert operators.waited == []


def test_the_largest_of_a_token_are_chosen_without_waiting() -> None:
    values = torch.randint(0, 4, (20, 30), generator=torch.Generator().manual_seed(0)).float()
    top, column = values.topk(7, dim=1)
    with watched() as (calls, operators):
        column = _first_of_equal(values, top, column)
        spread = _spread(values.gather(1, column), column + 5, slice(10, 25))
    assert calls.waited == operators.waited == []
    wanted = values.sort(dim=1, descending=True, stable=True).indices[:, :7].sort(dim=1).values
    assert torch.equal(column.sort(dim=1).values, wanted)
    whole = torch.zeros(20, 40).scatter_(1, wanted + 5, values.gather(1, wanted))
    assert torch.equal(spread, whole[:, 10:25])


@pytest.mark.parametrize("ask", [lambda x: bool((x > 0).any()), lambda x: x.cpu(), lambda x: x[x > 0]])
def test_what_waits_is_noticed(ask: Callable[[Tensor], object]) -> None:
    with watched() as (calls, operators):
        ask(torch.ones(3))
    assert calls.waited or operators.waited


@dataclass
class Numbered(TinyBatch):
    """A batch whose documents are numbered from `first` on."""

    first: int = 0

    def sequences(self) -> Sequences:
        plain = super().sequences()
        return replace(plain, document=plain.document + self.first)


BAD = 5


def batches_with_bad_tokens(places: dict[tuple[int, int], int]) -> list[Numbered]:
    """Four batches of two sequences; places: where the bad token stands, by batch and sequence."""
    made = []
    for number in range(4):
        batch = tiny_batch(5, 4, seed=number)
        batch.token_ids[batch.token_ids == BAD] = BAD + 1
        for sequence in range(2):
            if (number, sequence) in places:
                batch.token_ids[sequence, places[number, sequence]] = BAD
        # later batches hold earlier documents, as sorting by length may do
        made.append(Numbered(batch.token_ids, batch.length, first=10 * (3 - number)))
    return made


@pytest.mark.parametrize(
    ("places", "most_tokens"),
    [({}, 99), ({(0, 0): 4, (2, 1): 2, (3, 0): 3}, 99), ({(1, 1): 3, (2, 0): 4, (2, 1): 1}, 5)],
    ids=["none", "in three batches", "halved"],
)
def test_the_first_that_is_not_finite_is_the_same_when_asked_later(
    places: dict[tuple[int, int], int], most_tokens: int
) -> None:
    model = fresh("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = torch.inf
    loaded = adapt(model, name="llama")
    probes = mlps(loaded, [0, 1], keep=Keep(top=0, bottom=0))
    found = []
    for kernels in ("cpp", "triton"):
        states = States(probes, kernels=kernels, threads=1)
        with Runner(loaded, probes, states.take) as runner:
            runner.most_tokens = most_tokens
            for batch in batches_with_bad_tokens(places):
                states.run(runner, batch)
            states.finish()
        counts = [statistics.count for statistics in states.statistics.values()]
        found.append((states.non_finite, states.first_non_finite, counts))
    assert found[0] == found[1]
    assert (found[0][1] is None) == (not places)


def test_arrays_packed_for_one_copy_come_out_as_they_were() -> None:
    arrays = [
        np.arange(5, dtype=np.int32), np.zeros(0, np.int64), np.arange(12, dtype=np.int64).reshape(3, 4).T,
        np.array([1, 0, 1], np.uint8), np.array([1.5, np.inf], np.float32),
    ]  # fmt: skip
    places, size = staging._places(arrays)
    assert all(place % staging.ALIGNED == 0 for place in places)
    packed = torch.full((size,), 255, dtype=torch.uint8)
    staging._pack(arrays, places, packed.numpy())
    for array, tensor in zip(arrays, staging._unpacked(arrays, places, packed), strict=True):
        assert tensor.shape == array.shape
        assert tensor.dtype == torch.from_numpy(array.copy()).dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
