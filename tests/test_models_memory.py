"""The plan of memory against what is taken: a forward's measured peak, and the tensors of the states."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from indexer_kernels import Keep, Statistics
from indexer_kernels.device import DevicePlaces, DeviceStatistics
from indexer_kernels.pinned import pinned_bytes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from indexer.errors import IndexerError
from indexer.models import LoadedModel, Runner, adapt, memory, peak
from indexer.models.memory import MemoryPlan, plan_memory, state_bytes
from indexer.models.peak import forward_bytes
from indexer.sites.hook import Hook
from indexer.talk import in_bytes
from tests.tiny_batches import TinyBatch, mlps, places
from tests.tiny_models import FUSED, HOOKED, VOCABULARY, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
GB = 10**9
# how far above a large batch's peak the estimate may lie
LOOSEST = 1.15

_adapted: dict[tuple[str, torch.dtype], LoadedModel] = {}


def adapted(name: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    if (name, dtype) not in _adapted:
        _adapted[name, dtype] = adapt(tiny(name, dtype), name=name)
    return _adapted[name, dtype]


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, made within the block; views count once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known | given:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.live)
        return made

    def _freed(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.live -= size


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch keeps count of on a GPU, counted on the CPU."""

    @contextmanager
    def counted(peaks: dict[torch.device, int]) -> Iterator[None]:
        with Peak() as peak:
            yield
        peaks[torch.device("cpu")] = peak.most

    monkeypatch.setattr(peak, "peak_bytes", counted)


def measured(loaded: LoadedModel, layers: list[int] | None, rows: int, width: int) -> float:
    """Peak bytes per token of a forward as a GPU runs it: all rows at once, torch's own products."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, size=(rows, width))
    length = np.full(rows, width)
    length[rows // 2 :] -= 1
    with Runner(loaded, mlps(loaded, layers), peak.leave, matmul="torch") as runner, Peak() as counted:
        runner.run(TinyBatch(ids, length))
    return counted.most / (rows * width)


@pytest.mark.parametrize("layers", [None, [2]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUSED + HOOKED)
@pytest.mark.usefixtures("on_cpu")
def test_the_forward_takes_what_a_small_batch_tells(
    name: str, dtype: torch.dtype, layers: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the statistics kernel's own arrays are not made here, and tiny layers make them look large
    monkeypatch.setattr(peak, "EXTREMES_BYTES", 0)
    monkeypatch.setattr(peak, "SMALL_BATCH_TOKENS", 128)
    loaded = adapted(name, dtype)
    for width in (16, 64):
        estimate = forward_bytes(loaded, mlps(loaded, layers), width)[torch.device("cpu")]
        taken = measured(loaded, layers, 512 // width, width)
        assert taken <= estimate <= LOOSEST * taken, (width, taken, estimate)


def test_the_peak_is_measured_from_live_tensors() -> None:
    with Peak() as counted:
        kept = torch.zeros(1000, dtype=torch.uint8)
        view = kept[10:].view(-1)
        del kept
        torch.zeros(5000, dtype=torch.uint8)
        torch.zeros(3000, dtype=torch.uint8)
    assert view.numel() == 990
    assert (counted.most, counted.live) == (6000, 1000)


KEEPS = [
    Keep(),
    Keep(top=3, bottom=0, window=(2, 1), by="token"),
    Keep(top=0, bottom=7, window=(0, 0)),
    Keep(top=1, bottom=100, window=(48, 15), by="document"),
    Keep(samples=2),
    Keep(top=0, bottom=0, samples=3, window=(5, 0)),
]


@pytest.mark.parametrize("splits", [2, 5])
@pytest.mark.parametrize("units", [[80], [1, 63, 300]], ids=str)
@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_states_take_what_is_stated(
    keep: Keep, units: list[int], splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer_kernels.device.splits_of", lambda units, device: splits)
    device, windows, pinned, host = 0, 0, 0, 0
    for count in units:
        statistics = Statistics.empty(count, keep, layer="mlp.0", kernels="reference")
        host += host_bytes(statistics)
        kept = statistics.top, statistics.bottom, statistics.samples
        there = DeviceStatistics.of(count, *kept, torch.device("cpu"))
        held = [state.arrays for state in there.places]
        sizes = [arrays[name].nbytes for arrays in held for name in ("token_ids", "activations")]
        windows += sum(sizes)
        pinned += sum(map(pinned_bytes, sizes))
        device += device_bytes(there) - sum(sizes)
    stated = state_bytes(places(units, keep), lambda count: splits)
    assert (stated.device, stated.windows, stated.pinned, stated.host) == (device, windows, pinned, host)


def host_bytes(statistics: Statistics) -> int:
    places = (statistics.top, statistics.bottom, statistics.samples)
    states = (statistics.moments, statistics.histogram, *places)
    there = [(state, one) for state in states if state is not None for one in fields(state)]
    # what is seldom written to takes no memory, and is not stated
    arrays = [getattr(state, one.name) for state, one in there if "seldom" not in one.metadata]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def device_bytes(value: Any) -> int:
    """Bytes of all tensors that a state holds, each storage once."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storages[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        elif isinstance(value, DevicePlaces):
            visit(list(value.arrays.values()))
        elif isinstance(value, list):
            for one in value:
                visit(one)
        elif hasattr(value, "__dataclass_fields__"):
            for one in fields(value):
                visit(getattr(value, one.name))

    visit(value)
    return sum(storages.values())


PER_TOKEN = 1000
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, int]:
    """Free bytes of GPUs that hold the first two layers of three, and the third; kernels split by three."""
    free = {FIRST: 10 * GB}
    monkeypatch.setattr(memory, "splits_of", lambda units, device: 3)
    monkeypatch.setattr(memory, "free_memory", free.__getitem__)
    monkeypatch.setattr(memory, "forward_bytes", lambda *_: dict.fromkeys(free, PER_TOKEN))
    weights = {FIRST: 3 * GB, SECOND: GB}
    monkeypatch.setattr(memory, "_weights", lambda loaded: {device: weights[device] for device in free})
    place = property(lambda probe: SECOND if probe.key.layer == 2 and len(free) > 1 else FIRST)
    monkeypatch.setattr(Hook, "device", place)
    return free


@pytest.fixture
def main_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the bytes of main memory that are free."""

    def has(free: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))

    has(10 * GB)
    return has


def planned(*, context: int = 64, batch_tokens: int | None = None) -> MemoryPlan:
    loaded = replace(adapted("llama"), device=FIRST)
    return plan_memory(loaded, mlps(adapted("llama")), context=context, batch_tokens=batch_tokens)


STATE = state_bytes(places([80, 80, 80], Keep()), lambda units: 3)


def room_for(wanted: int) -> int:
    """The least that has to be free so that `wanted` bytes fit with a tenth left unplanned."""
    return -(-wanted * 10 // 9) + 2


@pytest.mark.usefixtures("main_memory")
def test_a_plan_adds_up(gpus: dict[torch.device, int]) -> None:
    assert planned() == MemoryPlan(
        batch_tokens=65_536,
        weights=3 * GB,
        forward=65_536 * PER_TOKEN,
        device_state=STATE.device + STATE.windows,
        host_state=STATE.host,
        windows="device",
        free=13 * GB,
        gpus=1,
    )


@pytest.mark.usefixtures("main_memory")
def test_batches_are_the_largest_power_of_two_that_fits(gpus: dict[torch.device, int]) -> None:
    state = STATE.device + STATE.windows
    gpus[FIRST] = room_for(state + 16_384 * PER_TOKEN)
    assert planned().batch_tokens == 16_384
    gpus[FIRST] -= 10 * PER_TOKEN
    assert planned().batch_tokens == 8192
    # one sequence at least, which need be no power of two
    assert planned(context=10_000).batch_tokens == 10_000
    assert planned(context=10_000, batch_tokens=10).forward == 10_000 * PER_TOKEN
    assert planned(batch_tokens=1000).batch_tokens == 1000
    with pytest.raises(IndexerError) as caught:
        planned(batch_tokens=10_000_000)
    assert str(caught.value).startswith("--batch-tokens 10000000: such batches take 10 GB in the model")
    # the windows leave the GPU for such a batch, in vain
    assert str(caught.value).endswith("use --batch-tokens 16384")


def test_windows_leave_a_gpu_that_is_too_small(
    gpus: dict[torch.device, int], main_memory: Callable[[int], None]
) -> None:
    gpus[FIRST] = room_for(STATE.device + STATE.windows + 4096 * PER_TOKEN)
    assert planned().windows == "device"
    gpus[FIRST] -= 10
    plan = planned()
    # with them gone there is room for more tokens
    assert (plan.windows, plan.batch_tokens) == ("host", 8192)
    assert plan.device_state == STATE.device
    # page-locked memory is main memory too, and stands for the NumPy states' own
    assert plan.host_state == STATE.host - STATE.windows + STATE.pinned > STATE.host
    assert ", windows in the main memory = " in plan.line()
    # a larger batch than was needed, where it was asked for
    gpus[FIRST] += 20
    assert planned(batch_tokens=4097).windows == "host"
    main_memory(plan.host_state)
    planned(batch_tokens=4097)
    main_memory(plan.host_state - 1)
    with pytest.raises(IndexerError, match="of memory are free; choose fewer --layers, a smaller --top"):
        planned(batch_tokens=4097)
    assert planned().windows == "device"


@pytest.mark.usefixtures("main_memory")
def test_what_cannot_fit_is_refused_with_figures(gpus: dict[torch.device, int]) -> None:
    message = (
        "a GPU has {} free beside 3 GB of weights; the statistics take {}, even with their windows in the "
        "main memory, and one sequence of --context 64 takes 64 kB. Choose fewer --layers, a shorter "
        "--context, or --device cpu"
    )
    for free in (0, STATE.device, room_for(STATE.device + 64 * PER_TOKEN) - 10):
        gpus[FIRST] = free
        with pytest.raises(IndexerError) as caught:
            planned()
        assert str(caught.value) == message.format(in_bytes(free), in_bytes(STATE.device))
    gpus[FIRST] += 10
    assert planned().batch_tokens == 64


@pytest.mark.usefixtures("main_memory")
def test_each_gpu_has_room_for_its_own_layers(gpus: dict[torch.device, int]) -> None:
    gpus[SECOND] = 10 * GB
    two, one = (state_bytes(places([80] * layers, Keep()), lambda units: 3) for layers in (2, 1))
    plan = planned()
    assert (plan.gpus, plan.weights, plan.free) == (2, 4 * GB, 24 * GB)
    assert plan.device_state == two.device + two.windows + one.device + one.windows
    assert plan.forward == 2 * 65_536 * PER_TOKEN
    assert plan.line().startswith("memory of 2 GPUs: 4 GB weights + ")
    # the one with less room decides for both
    gpus[SECOND] = room_for(one.device + one.windows + 4096 * PER_TOKEN)
    assert (planned().batch_tokens, planned().windows) == (4096, "device")
    gpus[SECOND] = room_for(one.device + 2048 * PER_TOKEN)
    assert (planned().batch_tokens, planned().windows) == (2048, "host")


def test_a_plan_is_one_line() -> None:
    plan = MemoryPlan(32_768, 16_060_000_000, 3_210_000_000, 9_400_000_000, 0, "device", 139 * GB, 1)
    assert plan.line() == (
        "GPU memory: 16.1 GB weights + 3.21 GB for batches of 32,768 tokens + 9.4 GB statistics = 28.7 GB of "
        "139 GB free"
    )


def test_on_the_cpu_the_states_have_to_fit(main_memory: Callable[[int], None]) -> None:
    loaded = adapted("llama")

    def plan(batch_tokens: int | None = None) -> MemoryPlan:
        return plan_memory(loaded, mlps(adapted("llama")), context=64, batch_tokens=batch_tokens)

    main_memory(STATE.host)
    assert plan() == MemoryPlan(4096, 0, 0, 0, STATE.host, "device", STATE.host, 0)
    assert plan(7).batch_tokens == 7
    main_memory(STATE.host - 1)
    message = (
        r"the statistics of 240 units take 5\.96 MB, and 5\.96 MB of memory are free; choose fewer --layers, "
        "a smaller --top, --bottom or --samples, or a shorter --window"
    )
    with pytest.raises(IndexerError, match=message):
        plan()
