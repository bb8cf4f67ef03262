"""The states of a layer in the memory of a GPU: what the kernels write, and its way back into the NumPy
states.

Sums and counts are increments over the NumPy states, and `settle` moves them there. Places of the top-k are
a copy, which `settle` writes back. Each split of a batch has sums and counters of its own: one program owns
them and adds to them without atomics, and since integers add up in any order it does not matter which split
took what.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer_kernels.bands import Bands
from indexer_kernels.blocks import some_units
from indexer_kernels.examples import PLACE_FIELDS, WINDOW_FIELDS
from indexer_kernels.histogram import BINS, MAGNITUDES, Histogram
from indexer_kernels.moments import LIMBS, POWERS, Moments, settle_carries
from indexer_kernels.pinned import pinned_on_device
from indexer_kernels.topk import TopK

PROGRAM_UNITS = 64
# What 32-bit counters and 64-bit limbs hold for certain; see csrc/exact_sum.hpp
MOST_RECENT = 2**31 - 1
MOST_PENDING = 2**22
NO_DOCUMENT = -(2**63)
PLACES = (*PLACE_FIELDS, *WINDOW_FIELDS)
Windows = Literal["device", "host"]


@dataclass
class DeviceSums:
    """What is new in histogram and moments.

    recent: int32 [splits, 390, units]; bins 0 and above of magnitude 0 to 194, then the negative ones.
    sums: int64 [splits, 4, 17, units], limbs as in Moments. nan, inf: int64, minimum, maximum: float32, all
        [splits, units].
    met: int32 [1], 1 once a NaN or an infinity was met since it was set to 0; for asking without a sum over
        nan and inf.
    tokens, blocks: what entered since counters and carries were settled, at most.
    """

    recent: Tensor
    sums: Tensor
    nan: Tensor
    inf: Tensor
    minimum: Tensor
    maximum: Tensor
    met: Tensor
    tokens: int = 0
    blocks: int = 0

    @classmethod
    def empty(cls, units: int, splits: int, device: torch.device) -> DeviceSums:
        """Nothing new."""
        return cls(
            torch.zeros(splits, 2 * (MAGNITUDES + 1), units, dtype=torch.int32, device=device),
            torch.zeros(splits, POWERS, LIMBS, units, dtype=torch.int64, device=device),
            torch.zeros(splits, units, dtype=torch.int64, device=device),
            torch.zeros(splits, units, dtype=torch.int64, device=device),
            torch.full((splits, units), torch.inf, device=device),
            torch.full((splits, units), -torch.inf, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
        )

    def tensors(self) -> list[Tensor]:
        """In the order that the kernel takes them."""
        return [self.recent, self.sums, self.nan, self.inf, self.minimum, self.maximum, self.met]

    def settle_carries(self) -> None:
        """Carry between limbs; every one but the highest is below 2^16 then."""
        settle_carries(self.sums.movedim(2, -1))
        self.blocks = 0

    def of_units(self, units: slice) -> DeviceSums:
        """Those of some units, in the same memory."""
        recent, sums, *others, met = self.tensors()
        nan, inf, minimum, maximum = (tensor[..., units] for tensor in others)
        return DeviceSums(recent[..., units], sums[..., units], nan, inf, minimum, maximum, met)

    def into(self, histogram: Histogram | None, moments: Moments | None) -> None:
        """Add what is new to the NumPy states; nothing is new then."""
        if histogram is not None:
            recent = self.recent.sum(dim=0).cpu().numpy()  # int64 [390, units]
            positive, negative = recent[: MAGNITUDES + 1], recent[MAGNITUDES + 1 :]
            histogram.add((slice(None), slice(MAGNITUDES, BINS)), positive.T)
            histogram.add((slice(None), slice(MAGNITUDES, None, -1)), negative.T)
        if moments is not None:
            self.settle_carries()
            moments.nan += self.nan.sum(dim=0).cpu().numpy()
            moments.inf += self.inf.sum(dim=0).cpu().numpy()
            np.minimum(moments.minimum, self.minimum.amin(dim=0).cpu().numpy(), out=moments.minimum)
            np.maximum(moments.maximum, self.maximum.amax(dim=0).cpu().numpy(), out=moments.maximum)
            moments.sums += self.sums.sum(dim=0).permute(2, 0, 1).cpu().numpy()
        for state in (self.recent, self.sums, self.nan, self.inf):
            state.zero_()
        self.minimum.fill_(torch.inf)
        self.maximum.fill_(-torch.inf)
        self.tokens = 0


@dataclass
class DevicePlaces:
    """The places of one state of examples, its other arrays, and what a subclass adds, by name.

    shared: the arrays whose memory is that of the NumPy state.
    """

    host: TopK | Bands
    arrays: dict[str, Tensor] = field(default_factory=dict)
    shared: tuple[str, ...] = ()

    # the NumPy state's arrays beside those of places
    OTHERS: ClassVar[tuple[str, ...]]

    @classmethod
    def of(cls, host: TopK | Bands, device: torch.device, windows: Windows = "device") -> Self:
        """A copy of the state.

        windows: with "host", token ids and activations stay in the main memory, where kernels on the GPU
            write them: the NumPy state's arrays become page-locked ones.
        Raises KernelInputError where the device cannot do so.
        """
        there = cls(host, shared=WINDOW_FIELDS if windows == "host" else ())
        for name in (*cls.OTHERS, *PLACES):
            array = torch.from_numpy(getattr(host, name))
            if name in there.shared:
                pinned, there.arrays[name] = pinned_on_device(tuple(array.shape), array.dtype, device)
                setattr(host, name, pinned.copy_(array).numpy())
            else:
                there.arrays[name] = array.to(device, copy=True)
        return there

    def of_units(self, host: TopK | Bands | None, units: slice) -> Self:
        """Those of some units, in the same memory; host: these units of the NumPy state."""
        assert host is not None
        arrays = {name: some_units(name, array, units) for name, array in self.arrays.items()}
        return type(self)(host, arrays, self.shared)

    def tensors(self) -> list[Tensor]:
        """In the order that the kernel takes them."""
        return [self.arrays[name] for name in (*self.OTHERS, *PLACES)]

    def taken(self) -> NDArray[np.bool_]:
        """bool [units, places]: True where a place holds an example."""
        raise NotImplementedError

    def documents(self) -> NDArray[np.int64]:
        """Documents of the places that are taken, int64; copies little more than these."""
        return self.arrays["document"].cpu().numpy()[self.taken()]

    def into_host(self) -> None:
        """Write the state back."""
        for name in (*self.OTHERS, *PLACES):
            # what is shared is there when the copies of the others are, which wait for the kernels
            if name not in self.shared:
                getattr(self.host, name)[...] = self.arrays[name].cpu().numpy()


@dataclass
class DeviceTopK(DevicePlaces):
    """Those of one end, and the document of the worst place, int64 [units].

    Where not all places are taken, threshold is -/+infinity and threshold_document the smallest integer.
    """

    OTHERS = ("threshold", "worst", "filled", "passage")

    @classmethod
    def of(cls, host: TopK | Bands, device: torch.device, windows: Windows = "device") -> Self:
        """See DevicePlaces.of."""
        assert isinstance(host, TopK)
        there = super().of(host, device, windows)
        worst = host.document[np.arange(host.units), host.worst]
        documents = np.where(host.filled == host.k, worst, NO_DOCUMENT)
        there.arrays["threshold_document"] = torch.from_numpy(documents).to(device)
        return there

    @property
    def bar(self) -> list[Tensor]:
        """What a value has to reach: threshold, and the document that wins a tie."""
        return [self.arrays["threshold"], self.arrays["threshold_document"]]

    def tensors(self) -> list[Tensor]:
        """In the order that the kernel takes them."""
        threshold, *others = super().tensors()
        return [threshold, self.arrays["threshold_document"], *others]

    def taken(self) -> NDArray[np.bool_]:
        """bool [units, places]: True where a place holds an example."""
        return np.arange(self.arrays["value"].shape[1]) < self.arrays["filled"].cpu().numpy()[:, None]


@dataclass
class DeviceBands(DevicePlaces):
    """The samples of a layer; arrays as in Bands."""

    OTHERS = ("key", "bars", "hash")

    def taken(self) -> NDArray[np.bool_]:
        """bool [units, places]: True where a place holds an example."""
        return self.arrays["window_length"].cpu().numpy() > 0


@dataclass
class DeviceStatistics:
    """One layer's states on one device.

    bars: thresholds of both ends, with their documents; see DeviceTopK.bar.
    """

    device: torch.device
    splits: int
    sums: DeviceSums
    top: DeviceTopK | None
    bottom: DeviceTopK | None
    samples: DeviceBands | None
    bars: list[Tensor]

    @classmethod
    def of(
        cls,
        units: int,
        top: TopK | None,
        bottom: TopK | None,
        samples: Bands | None,
        device: torch.device,
        windows: Windows = "device",
    ) -> DeviceStatistics:
        """Empty sums, and the places that are there. windows: see DevicePlaces.of."""
        splits = splits_of(units, device)
        # a model runs in inference mode, and tensors made there could not be changed outside of it
        with torch.inference_mode(False):
            sums = DeviceSums.empty(units, splits, device)
            on_top = None if top is None else DeviceTopK.of(top, device, windows)
            on_bottom = None if bottom is None else DeviceTopK.of(bottom, device, windows)
            sampled = None if samples is None else DeviceBands.of(samples, device, windows)
            bars = [*_bar(on_top, torch.inf, units, device), *_bar(on_bottom, -torch.inf, units, device)]
        return cls(device, splits, sums, on_top, on_bottom, sampled, bars)

    def of_units(
        self, top: TopK | None, bottom: TopK | None, samples: Bands | None, units: slice
    ) -> DeviceStatistics:
        """Those of some units, in the same memory; the states: these units of the NumPy ones."""
        return DeviceStatistics(
            self.device,
            self.splits,
            self.sums.of_units(units),
            None if self.top is None else self.top.of_units(top, units),
            None if self.bottom is None else self.bottom.of_units(bottom, units),
            None if self.samples is None else self.samples.of_units(samples, units),
            [bar[units] for bar in self.bars],
        )

    @property
    def places(self) -> list[DevicePlaces]:
        """Every state of examples that is kept."""
        return [state for state in (self.top, self.bottom, self.samples) if state is not None]

    def settle(self, histogram: Histogram | None, moments: Moments | None) -> None:
        """Bring the NumPy states up to date."""
        self.sums.into(histogram, moments)
        for state in self.places:
            state.into_host()


def _bar(end: DeviceTopK | None, out_of_reach: float, units: int, device: torch.device) -> list[Tensor]:
    """Thresholds of an end, with their documents; one that is not kept has such as no value reaches."""
    if end is not None:
        return end.bar
    return [
        torch.full((units,), out_of_reach, device=device),
        torch.full((units,), NO_DOCUMENT, dtype=torch.int64, device=device),
    ]


def splits_of(units: int, device: torch.device) -> int:
    """Programs that share the blocks of the same units, so that two of them run on every multiprocessor."""
    if device.type != "cuda":
        return 2
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, 2 * processors // -(-units // PROGRAM_UNITS))
