"""The ways of small arrays to the GPU and back: copies through page-locked memory that nothing waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# what allocations on a GPU are aligned to at least, as the kernels expect of every array
ALIGNED = 16


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on a device; on the CPU they share the arrays' memory.

    On a GPU they are parts of one allocation, filled in the order of the current stream. The host does not
    wait: the page-locked memory is torch's, which hands it out again when the copy is done.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    places, size = _places(arrays)
    staged = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    _pack(arrays, places, staged.numpy())
    there = staged.to(device, non_blocking=True)
    return _unpacked(arrays, places, there)


@dataclass(frozen=True)
class OnItsWay:
    """A tensor that is being copied to the host; event: when it is there, None where it is there already."""

    tensor: Tensor
    event: torch.cuda.Event | None

    def arrived(self) -> NDArray[Any]:
        """The values, after a wait for what the device was to do before."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensor.numpy()


def to_host(tensor: Tensor) -> OnItsWay:
    """A copy of a tensor on its way to the host, in the order of the current stream; nothing waits for it."""
    if tensor.device.type != "cuda":
        return OnItsWay(tensor.clone(), None)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    with torch.cuda.device(tensor.device):
        host.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
    return OnItsWay(host, event)


def _places(arrays: Sequence[NDArray[Any]]) -> tuple[list[int], int]:
    """Where each array begins, in bytes, and the size of all."""
    sizes = [-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays]
    ends = np.cumsum(sizes).tolist()
    return [end - size for end, size in zip(ends, sizes, strict=True)], ends[-1]


def _pack(arrays: Sequence[NDArray[Any]], places: Sequence[int], into: NDArray[np.uint8]) -> None:
    for array, place in zip(arrays, places, strict=True):
        into[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _unpacked(arrays: Sequence[NDArray[Any]], places: Sequence[int], packed: Tensor) -> list[Tensor]:
    """Views of the packed bytes with the arrays' dtypes and shapes."""
    tensors = []
    for array, place in zip(arrays, places, strict=True):
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        tensors.append(packed[place : place + array.nbytes].view(dtype).view(array.shape))
    return tensors
