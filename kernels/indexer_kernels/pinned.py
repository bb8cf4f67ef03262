"""Page-locked memory of the host that kernels on a GPU read and write as if it were the GPU's own.

With unified addressing - any 64-bit system with a GPU of the last ten years - page-locked memory has the same
address on both sides, and a kernel's access to it goes over the bus. torch has no such tensors, but takes
foreign memory by `__cuda_array_interface__`, which leaves the device to whoever offers it.
On the GPU's side only kernels may touch it: copies by torch go by the kind of memory that a tensor claims to
have. The host uses the tensor on its own side, after the GPU is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from indexer_kernels.errors import KernelInputError

# as the protocol writes them
TYPES = {torch.int32: "<i4", torch.int64: "<i8", torch.float32: "<f4"}


def pinned_bytes(size: int) -> int:
    """What an array of `size` bytes takes in page-locked memory: torch rounds up to a power of two."""
    return 1 << max(0, size - 1).bit_length() if size else 0


def pinned_on_device(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Zeroed page-locked memory as a tensor on the CPU, and the same memory as one on a GPU.

    shape: of at least one element. dtype: int32, int64 or float32. Either tensor keeps the memory alive.
    Raises KernelInputError where writes on one side are not seen on the other.
    Cost: pinned_bytes of the size; the host waits for the GPU twice.
    """
    try:
        # a model runs in inference mode, and tensors made there could not be changed outside of it
        with torch.inference_mode(False):
            host = torch.zeros(shape, dtype=dtype, pin_memory=True)
            alias = alias_on(host, device)
            same = is_same_memory(host, alias, lambda: torch.cuda.synchronize(device))
    # what a version of torch or a driver refuses, and how, differs
    except (RuntimeError, ValueError, TypeError) as error:
        raise _refused(device, str(error).strip().splitlines()[0]) from error
    if not same:
        raise _refused(device, "it would be a copy")
    return host, alias


class ArrayInterface:
    """Memory of a contiguous tensor on the CPU, offered as a GPU's; keeps the tensor alive."""

    def __init__(self, host: Tensor) -> None:
        self.host = host

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # strides None: C order; stream None: nothing to wait for
        return {
            "shape": tuple(self.host.shape),
            "typestr": TYPES[self.host.dtype],
            "data": (self.host.data_ptr(), False),
            "strides": None,
            "version": 3,
            "stream": None,
        }


def alias_on(host: Tensor, device: torch.device) -> Tensor:
    """A tensor on a GPU over the page-locked memory of `host`."""
    number = torch.cuda.current_device() if device.index is None else device.index
    # with its number: torch then takes our word for it, and does not ask CUDA where the address is
    return torch.as_tensor(ArrayInterface(host), device=torch.device("cuda", number))


def is_same_memory(host: Tensor, alias: Tensor, wait: Callable[[], None]) -> bool:
    """Whether what one side writes is read on the other, at both ends; zero afterwards. wait: for the GPU."""
    same = host.shape == alias.shape and host.dtype == alias.dtype
    for end in (slice(None, 1), slice(-1, None)):
        ours, theirs = host.view(-1)[end], alias.view(-1)[end]
        ours.fill_(3)
        # arithmetic is done by kernels, where a copy would not be
        read = (theirs + 4).cpu()
        theirs.add_(8)
        wait()
        same = same and int(read) == 7 and int(ours) == 11
        ours.zero_()
    return same


def _refused(device: torch.device, reason: str) -> KernelInputError:
    return KernelInputError(
        f"windows in the main memory: {device} cannot use page-locked memory ({reason}); keep fewer "
        "examples, shorter windows or fewer layers, so that all fits the GPU"
    )
