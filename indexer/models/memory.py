"""What a build takes of a GPU's and the main memory, known before it starts: weights, batches, statistics.

The states are counted exactly, by the arrays of those of one unit. What a forward pass takes beside the
weights is measured, by running a small batch, and grows with a batch's tokens. A tenth of a GPU's free memory
stays unplanned, for what its libraries take and for gaps between blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from indexer_kernels import Keep
from indexer_kernels.device import DeviceBands, DeviceSums, DeviceTopK, Windows, splits_of
from indexer_kernels.examples import WINDOW_FIELDS
from indexer_kernels.pinned import pinned_bytes

from indexer.config.share import free_main_memory, is_shared
from indexer.errors import IndexerError
from indexer.models.loading import LoadedModel
from indexer.models.peak import forward_bytes
from indexer.models.placement import free_memory
from indexer.models.probe import Probe
from indexer.names import SAE
from indexer.talk import in_bytes

CPU_BATCH_TOKENS = 4096
# On a GPU; with fewer its kernels wait for one another, with more it is no faster.
LEAST_BATCH_TOKENS, MOST_BATCH_TOKENS = 4096, 65_536
UNPLANNED_SHARE = 10


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the states of some probes.

    device: of what is always on the GPU. windows: of the places' token ids and activations there; pinned: of
    the page-locked memory that can hold these instead. host: of the NumPy states, with windows of their own.
    """

    device: int
    windows: int
    pinned: int
    host: int


@dataclass(frozen=True)
class MemoryPlan:
    """What goes where, in bytes.

    batch_tokens: of a batch, with its padding. weights, forward, device_state: on the GPUs, 0 on the CPU.
    host_state: in the main memory. windows: where those of the GPUs' places are, see Statistics.to_device.
    free: what all of it has to fit: on all GPUs, the weights being there already, or in the main memory.
    gpus: 0 for the CPU.
    """

    batch_tokens: int
    weights: int
    forward: int
    device_state: int
    host_state: int
    windows: Windows
    free: int
    gpus: int

    def line(self) -> str:
        """The plan of GPUs as one line for people."""
        where = "GPU memory" if self.gpus == 1 else f"memory of {self.gpus} GPUs"
        away = "" if self.windows == "device" else ", windows in the main memory"
        return (
            f"{where}: {in_bytes(self.weights)} weights + {in_bytes(self.forward)} for batches of "
            f"{self.batch_tokens:,} tokens + {in_bytes(self.device_state)} statistics{away} = "
            f"{in_bytes(self.weights + self.forward + self.device_state)} of {in_bytes(self.free)} free"
        )


@dataclass(frozen=True)
class _Room:
    """One GPU: what is on it, what will be, and what is free for that."""

    weights: int
    free: int
    per_token: int
    state: StateBytes

    def on_device(self, windows: Windows) -> int:
        """Bytes of the states."""
        return self.state.device + (self.state.windows if windows == "device" else 0)

    def tokens(self, windows: Windows) -> int:
        """Of the largest batch; negative where there is no room for the states."""
        return (self.free - self.free // UNPLANNED_SHARE - self.on_device(windows)) // self.per_token


def plan_memory(
    loaded: LoadedModel, probes: Sequence[Probe], *, context: int, batch_tokens: int | None
) -> MemoryPlan:
    """What indexing takes, and how large batches can be.

    context: tokens of the longest sequence. batch_tokens: None for 4096 on the CPU, and on a GPU for the
        largest power of two that fits, at most 65,536.
    Raises IndexerError with the figures where the states, or a sequence beside them, or batches of the size
    that was asked for do not fit.
    Cost: on a GPU two forward passes over 1,024 tokens, or one sequence.
    """
    if loaded.device.type == "cpu":
        host = state_bytes(probes, lambda units: 1).host
        free = _check_host(probes, host)
        return MemoryPlan(batch_tokens or CPU_BATCH_TOKENS, 0, 0, 0, host, "device", free, 0)
    rooms = _rooms(loaded, probes, context)
    enough = max(batch_tokens or LEAST_BATCH_TOKENS, context)
    windows: Windows = "device" if all(room.tokens("device") >= enough for room in rooms) else "host"
    tightest = min(rooms, key=lambda room: room.tokens(windows))
    tokens = _batch_tokens(batch_tokens, tightest, windows, context)
    host = sum(room.state.host for room in rooms)
    if windows == "host":
        # page-locked memory takes the place of the NumPy states' own
        host += sum(room.state.pinned - room.state.windows for room in rooms)
    _check_host(probes, host)
    return MemoryPlan(
        batch_tokens=tokens,
        weights=sum(room.weights for room in rooms),
        forward=sum(max(tokens, context) * room.per_token for room in rooms),
        device_state=sum(room.on_device(windows) for room in rooms),
        host_state=host,
        windows=windows,
        free=sum(room.weights + room.free for room in rooms),
        gpus=len(rooms),
    )


def state_bytes(probes: Iterable[Probe], splits: Callable[[int], int]) -> StateBytes:
    """The bytes of the states of some probes, exactly.

    splits: how many sums a GPU keeps for a probe of so many units, see splits_of.
    """
    device, windows, pinned, host = 0, 0, 0, 0
    for probe in probes:
        others, sizes = _end_bytes(probe.keep)
        sums = DeviceSums.empty(probe.units, splits(probe.units), torch.device("meta"))
        device += probe.units * others + sum(tensor.nbytes for tensor in sums.tensors())
        windows += probe.units * sum(sizes)
        pinned += sum(pinned_bytes(probe.units * size) for size in sizes)
        host += probe.units * probe.keep.bytes_per_unit()
    return StateBytes(device, windows, pinned, host)


def _end_bytes(keep: Keep) -> tuple[int, list[int]]:
    """Of the places of one unit on a GPU: bytes of all but the windows' arrays, and of each of these."""
    ends = [end for end in keep.ends(1) if end.k]
    meta = torch.device("meta")
    places = [DeviceTopK.of(end, meta).arrays for end in ends]
    if keep.samples:
        places.append(DeviceBands.of(keep.bands(1, ""), meta).arrays)
    windows = [arrays[name].nbytes for arrays in places for name in WINDOW_FIELDS]
    others = sum(tensor.nbytes for arrays in places for tensor in arrays.values()) - sum(windows)
    # an end that is not kept has a threshold all the same, float32 and int64
    return others + (2 - len(ends)) * 12, windows


def _rooms(loaded: LoadedModel, probes: Sequence[Probe], context: int) -> list[_Room]:
    """The GPUs that hold the model, each with the states of the probes that are on it."""
    per_token = forward_bytes(loaded, probes, context)
    return [
        _Room(
            weights,
            free_memory(device),
            per_token[device],
            state_bytes(
                [probe for probe in probes if probe.device == device], partial(splits_of, device=device)
            ),
        )
        for device, weights in _weights(loaded).items()
    ]


def _batch_tokens(asked: int | None, room: _Room, windows: Windows, context: int) -> int:
    """What was asked for, if it fits, or what fits the GPU with the least room."""
    most = room.tokens(windows)
    if most < context:
        raise IndexerError(
            f"a GPU has {in_bytes(room.free)} free beside {in_bytes(room.weights)} of weights; the statistics"
            f" take {in_bytes(room.on_device(windows))}, even with their windows in the main memory, and one "
            f"sequence of --context {context} takes {in_bytes(context * room.per_token)}. Choose fewer "
            "--layers, a shorter --context, or --device cpu"
        )
    fitting = max(context, min(MOST_BATCH_TOKENS, 1 << (most.bit_length() - 1)))
    if asked is not None and asked > most:
        raise IndexerError(
            f"--batch-tokens {asked}: such batches take {in_bytes(asked * room.per_token)} in the model, and "
            f"beside weights and statistics there is room for {most} tokens; use --batch-tokens {fitting}"
        )
    return fitting if asked is None else asked


def _check_host(probes: Sequence[Probe], state: int) -> int:
    """Bytes of main memory that are free; raises IndexerError where the states take more."""
    free = free_main_memory()
    if state > free:
        part = "--sae-units, " if any(probe.key.site.startswith(f"{SAE}.") for probe in probes) else ""
        where, fewer = (" for each build on this machine", "--workers, ") if is_shared() else ("", "")
        raise IndexerError(
            f"the statistics of {sum(probe.units for probe in probes):,} units take {in_bytes(state)}, and "
            f"{in_bytes(free)} of memory are free{where}; choose fewer {part}{fewer}--layers, a smaller "
            "--top, --bottom or --samples, or a shorter --window"
        )
    return free


def _weights(loaded: LoadedModel) -> dict[torch.device, int]:
    """Bytes of weights on each device of the model; memory that is shared counts once."""
    sizes: dict[torch.device, dict[int, int]] = {}
    for weight in loaded.model.parameters():
        storage = weight.untyped_storage()
        sizes.setdefault(weight.device, {})[storage.data_ptr()] = storage.nbytes()
    return {device: sum(storages.values()) for device, storages in sizes.items()}
