"""Where a model goes: the CPU, one GPU, or all of them, each with a share of its layers.

Known before the weights are read, from the headers of their files and the GPUs' free memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import prod

import torch

from indexer.config.share import part_of_gpu
from indexer.errors import IndexerError
from indexer.models.weights import Stored
from indexer.talk import in_bytes

# a tenth of the weights is the least that batches and statistics want beside them
ROOM_SHARE = 10
# bytes of a weight that is no floating-point number, by what safetensors calls it
OTHER_BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class Placement:
    """device: of the whole model, or of its first layers.

    most: bytes of weights that each GPU may take, by its number; empty where the model is on one device.
    """

    device: torch.device
    most: dict[int, int] = field(default_factory=dict)


def device_type(device: str) -> str:
    """ "cpu" or "cuda", for any name that --device takes. Raises IndexerError for others, and without GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    if device == "cpu":
        return "cpu"
    single = device == "cuda" or (device.startswith("cuda:") and device[5:].isdecimal())
    if not single and device != "spread":
        raise IndexerError(f"device {device}: choose among auto, cpu, cuda, cuda:N, spread")
    if (int(device[5:] or 0) if single else 0) >= count:
        raise IndexerError(f"device {device}: this machine has {count} GPUs for torch; take --device cpu")
    return "cuda"


def placement(name: str, device: str, weights: int, dtype: torch.dtype) -> Placement:
    """The place of a model of so many bytes. Raises IndexerError with the figures where there is none.

    name: of the model, for errors. device: as --device takes it.
    """
    if device_type(device) == "cpu":
        return Placement(torch.device("cpu"))
    wanted = weights + weights // ROOM_SHARE
    all_gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    free: dict[int, int] = {}
    if device != "spread":
        # asking a GPU takes memory on it: no more of them than needed
        for gpu in all_gpus if device == "auto" else [torch.device("cuda", int(device[5:] or 0))]:
            free[gpu.index] = free_memory(gpu)
            if free[gpu.index] >= wanted:
                return Placement(gpu)
    takes = f"model {name}: its weights take {in_bytes(weights)} in {str(dtype).removeprefix('torch.')}"
    if device.startswith("cuda"):
        (number,) = free
        way_out = "--device spread, or --device cpu" if len(all_gpus) > 1 else "--device cpu"
        raise IndexerError(
            f"{takes}, and batches a tenth more at least, but cuda:{number} has {in_bytes(free[number])} "
            f"free; take {way_out}"
        )
    free = {gpu.index: free.get(gpu.index) or free_memory(gpu) for gpu in all_gpus}
    if sum(free.values()) < wanted:
        raise IndexerError(
            f"{takes}, and batches a tenth more at least, but the {len(free)} GPUs in sight have "
            f"{in_bytes(sum(free.values()))} free; take --device cpu, or a machine with more"
        )
    return Placement(all_gpus[0]) if len(free) == 1 else _spread(name, free)


def weight_bytes(stored: Mapping[str, Stored], dtype: torch.dtype) -> int:
    """Bytes of the weights that headers tell of, once those in floating point are `dtype`."""
    return sum(
        prod(tensor.shape)
        * (dtype.itemsize if tensor.dtype.startswith(("F", "BF")) else OTHER_BYTES.get(tensor.dtype, 1))
        for tensor in stored.values()
    )


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that can still be taken: what it has free, and what torch holds unused.

    Where other builds share the GPU, its own part of that.
    """
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    return min(free, part_of_gpu(total) - held) + held - torch.cuda.memory_allocated(device)


def _spread(name: str, free: dict[int, int]) -> Placement:
    if find_spec("accelerate") is None:
        raise IndexerError(
            f"model {name}: spreading it over {len(free)} GPUs needs the package accelerate; install it "
            "with: pip install accelerate"
        )
    first = min(free)
    return Placement(
        torch.device("cuda", first),
        {number: size * ROOM_SHARE // (ROOM_SHARE + 1) for number, size in free.items()},
    )
