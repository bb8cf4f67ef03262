"""Windows in page-locked memory: the same state bit for bit, in memory that either side sees."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from indexer_kernels import KernelInputError, Statistics, device
from indexer_kernels.device import DeviceTopK
from indexer_kernels.examples import WINDOW_FIELDS
from indexer_kernels.pinned import (
    TYPES,
    ArrayInterface,
    is_same_memory,
    pinned_bytes,
    pinned_on_device,
)
from torch import Tensor

from indexer.names import MLP, Key
from indexer.partials.state import record_of, statistics_of
from tests.kernel_cases import KEEP, assert_equal
from tests.test_statistics import Batches, gathered, some_batches

CPU = torch.device("cpu")


def test_sizes_are_rounded_up_as_torch_does() -> None:
    assert [pinned_bytes(size) for size in (0, 1, 2, 3, 4096, 4097)] == [0, 1, 2, 4, 4096, 8192]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_protocol_describes_the_memory(dtype: torch.dtype) -> None:
    host = torch.arange(12).to(dtype).view(3, 4)
    told = ArrayInterface(host).__cuda_array_interface__
    assert np.dtype(told["typestr"]) == host.numpy().dtype
    assert (told["shape"], told["strides"], told["stream"]) == ((3, 4), None, None)
    assert told["data"] == (host.data_ptr(), False)


def test_a_copy_is_not_the_same_memory() -> None:
    host = torch.zeros(3, 4, dtype=torch.int32)
    waits: list[None] = []
    assert is_same_memory(host, host.view(3, 4), lambda: waits.append(None))
    assert len(waits) == 2
    assert not host.any()
    assert not is_same_memory(host, host.clone(), lambda: None)
    assert not is_same_memory(host, host.view(4, 3), lambda: None)
    assert not is_same_memory(host, host.view(torch.float32), lambda: None)
    # the first half is shared, the end is not
    assert not is_same_memory(host, torch.cat([host[:1], host[1:].clone()]), lambda: None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_that_cannot_says_so() -> None:
    message = "windows in the main memory: cuda:0 cannot use page-locked memory .*; keep fewer examples"
    with pytest.raises(KernelInputError, match=message):
        pinned_on_device((2, 3), torch.int32, torch.device("cuda", 0))


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch, triton_interpreter: None) -> None:
    """Memory of the CPU stands for both sides of page-locked memory."""

    def copied() -> Tensor:
        raise AssertionError("torch cannot copy what only claims to be on a GPU")

    def pinned(shape: tuple[int, ...], dtype: torch.dtype, there: torch.device) -> tuple[Tensor, Tensor]:
        host = torch.zeros(shape, dtype=dtype)
        alias = host.view(shape)
        alias.cpu = copied
        return host, alias

    monkeypatch.setattr(device, "pinned_on_device", pinned)


def with_windows_in_host(units: int, batches: Batches) -> Statistics:
    statistics = Statistics.empty(units, KEEP, kernels="triton")
    statistics.to_device(CPU, windows="host")
    for activations, sequences in batches:
        statistics.update(activations, sequences)
    return statistics


@pytest.mark.slow
@pytest.mark.usefixtures("shared_memory")
def test_the_state_is_the_same_wherever_windows_are() -> None:
    batches = some_batches(600, 3, number=4)
    statistics = with_windows_in_host(3, batches[:1])
    there = statistics._on_device
    for end, state in ((there.top, statistics.top), (there.bottom, statistics.bottom)):
        assert end.shared == WINDOW_FIELDS
        for name in WINDOW_FIELDS:
            # no settling: what kernels write is in the NumPy state
            assert end.arrays[name].data_ptr() == getattr(state, name).ctypes.data
            assert getattr(state, name).any()
            assert any(end.arrays[name] is given for given in end.tensors())
    assert_equal(statistics, gathered(3, batches[:1], "reference", KEEP))
    # reading a state does not move its windows, nor does the next batch
    for activations, sequences in batches[1:]:
        statistics.update(activations, sequences)
    assert statistics._on_device is there
    assert_equal(statistics, gathered(3, batches, "reference", KEEP))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_memory")
def test_windows_move_with_what_they_hold() -> None:
    batches = some_batches(600, 3, number=4)
    expected = gathered(3, batches, "reference", KEEP)
    statistics = Statistics.empty(3, KEEP, kernels="triton")
    for (activations, sequences), windows in zip(batches[:3], ("device", "host", "device"), strict=True):
        statistics.to_device(CPU, windows=windows)
        statistics.update(activations, sequences)
        assert statistics._on_device.top.shared == (WINDOW_FIELDS if windows == "host" else ())
    statistics.update(*batches[3])
    assert_equal(statistics, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_memory")
def test_a_checkpoint_is_taken_while_windows_are_in_the_main_memory() -> None:
    batches = some_batches(600, 3, number=4)
    statistics = with_windows_in_host(3, batches[:2])
    record = copy.deepcopy(record_of(statistics, Key(MLP, 0)))
    for activations, sequences in batches[2:]:
        statistics.update(activations, sequences)
    restored = statistics_of(record, kernels="triton")
    restored.to_device(CPU, windows="host")
    for activations, sequences in batches[2:]:
        restored.update(activations, sequences)
    assert_equal(restored, statistics)
    assert_equal(restored, gathered(3, batches, "reference", KEEP))


def test_other_kernels_have_nothing_on_a_device() -> None:
    statistics = Statistics.empty(3, KEEP, kernels="reference")
    statistics.to_device(CPU, windows="host")
    assert statistics._on_device is None


def test_windows_on_a_device_are_a_copy() -> None:
    top = Statistics.empty(3, KEEP, kernels="reference").top
    there = DeviceTopK.of(top, CPU)
    assert there.arrays["token_ids"].data_ptr() != top.token_ids.ctypes.data
