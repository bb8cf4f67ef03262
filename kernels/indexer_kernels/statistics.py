"""All statistics of one layer's units, gathered in one pass: moments, histogram, top-k, bottom-k, samples.

`update` reads activations that exist; `activate` applies the model's activation function and gathers in the
same read, writing what the model needs next. Compiled kernel: csrc/statistics.hpp. Reference: the `update`
of each state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer_kernels import activations as functions
from indexer_kernels.bands import Bands
from indexer_kernels.device import MOST_PENDING, MOST_RECENT, DeviceStatistics, Windows
from indexer_kernels.dispatch import choose, device_type
from indexer_kernels.errors import KernelInputError
from indexer_kernels.histogram import Histogram
from indexer_kernels.keep import Keep
from indexer_kernels.moments import Moments
from indexer_kernels.plan import Plan
from indexer_kernels.routes import Routes
from indexer_kernels.sequences import Sequences
from indexer_kernels.topk import TopK

# The order is that of csrc/job.hpp.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Statistics:
    """The state of one layer; any part that is None is not kept.

    others: further states by name. No kernel knows them: their own `update` follows each kernel.
    """

    _on_device: DeviceStatistics | None = None
    _windows: Windows = "device"

    def __init__(
        self,
        units: int,
        moments: Moments | None,
        histogram: Histogram | None,
        top: TopK | None,
        bottom: TopK | None,
        *,
        samples: Bands | None = None,
        others: Mapping[str, Any] | None = None,
        kernels: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.others = dict(others or {})
        self.units = units
        self.count = 0
        self.moments, self.histogram = moments, histogram
        self.top, self.bottom, self.samples = top, bottom, samples
        self.kernels = choose(kernels)
        self.threads = threads or torch.get_num_threads()

    @classmethod
    def empty(
        cls,
        units: int,
        keep: Keep | None = None,
        *,
        layer: str | None = None,
        **options: Any,
    ) -> Self:
        """The statistics of no tokens over `units` units; layer: see Keep.states. options: see `of`."""
        return cls.of(units, (keep or Keep()).states(units, layer), **options)

    @classmethod
    def of(cls, units: int, states: Mapping[str, Any], **options: Any) -> Self:
        """Statistics that go on with states, named as Keep.states does; they take over their arrays.

        options: kernels, by dispatch.choose, and threads.
        """
        kept = {name: state for name, state in states.items() if getattr(state, "places", True)}
        known = (kept.pop(name, None) for name in ("moments", "histogram", "top", "bottom"))
        samples = kept.pop("samples", None)
        return cls(units, *known, samples=samples, others=kept, **options)

    def update(
        self,
        activations: Tensor,
        sequences: Sequences,
        up: Tensor | None = None,
        routes: Routes | None = None,
    ) -> None:
        """Take in activations that exist.

        activations: [rows, units] float32, bfloat16 or float16, any row stride, adjacent units, where the
            kernels take them.
        sequences: what the rows are: tokens, or some of them. up: as activations, what they were multiplied
            by, where that is known; examples hold it at their peaks.
        routes: where all parts of a PartedStatistics on a GPU come together, what each row is; units are
            those of a part then.
        Raises KernelInputError where shapes or dtypes disagree.
        Cost: one read of activations; about 0.6 ns an element and core where they are in cache.
        """
        self._check("activations", activations, sequences, routes)
        self._check_like("up", up, activations, "activations", sequences, routes)
        if self.kernels == "reference":
            self._update_reference(activations, up, sequences)
        elif self.kernels == "triton":
            self._launch(None, activations, up, activations, sequences, routes)
        else:
            self._process(0, activations, up, None, sequences)
        self._update_others(activations, sequences, routes)
        self._count(sequences, routes)

    def activate(
        self,
        function: str,
        gate: Tensor,
        up: Tensor | None,
        sequences: Sequences,
        out: Tensor | None = None,
        routes: Routes | None = None,
    ) -> Tensor:
        """Write f(gate), or f(gate) * up, to `out` and take it in; all rows are written, padding too.

        function: one of activations.FUNCTIONS.
        gate, up, out: [rows, units] of one dtype, any row strides; `out` may be `gate`, and is made where
        not given. Examples hold `up` at their peaks. routes: as of `update`. Returns out. Raises
        KernelInputError where shapes or dtypes disagree.
        """
        if function not in functions.FUNCTIONS:
            functions.apply(function, gate[:0])
        self._check("gate", gate, sequences, routes)
        out = torch.empty_like(gate) if out is None else out
        self._check_like("up", up, gate, "gate", sequences, routes)
        self._check_like("out", out, gate, "gate", sequences, routes)
        if self.kernels == "reference":
            out.copy_(functions.activate(function, gate, up))
            self._update_reference(out, up, sequences)
        elif self.kernels == "triton":
            self._launch(function, gate, up, out, sequences, routes)
        else:
            self._process(1 + functions.FUNCTIONS.index(function), gate, up, out, sequences)
        self._update_others(out, sequences, routes)
        self._count(sequences, routes)
        return out

    def to_device(self, device: torch.device, windows: Windows = "device") -> None:
        """Make room for the states there now, and not with the first batch; for kernels on a GPU only.

        windows: where the examples' token ids and activations are from now on: "device", or "host" for
            page-locked memory that the kernels write from the GPU.
        Raises KernelInputError where the device cannot write such memory.
        """
        if self.kernels != "triton":
            return
        there = self._on_device
        if there is None or there.device != device or self._windows != windows:
            self.settle()
            self._windows, self._on_device = windows, None
            self._on_device = DeviceStatistics.of(
                self.units, self.top, self.bottom, self.samples, device, windows
            )

    @property
    def met_non_finite(self) -> Tensor | None:
        """int32 [1] on the device, 1 once a NaN or an infinity was met; set it to 0 to be told again.

        None where the states are in the main memory, and `non_finite` costs little.
        """
        return None if self._on_device is None else self._on_device.sums.met

    def part(self, first: int) -> Statistics:
        """The statistics whose first unit is number `first` of the layer: here those of all, from 0 on."""
        return self

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counted tokens of every unit, int64 [units]: here all units count the same."""
        return np.full(self.units, self.count, np.int64)

    @counts.setter
    def counts(self, counts: NDArray[np.int64]) -> None:
        self.count = int(counts.max(initial=0))

    def documents(self) -> Iterator[NDArray[np.int64]]:
        """Ids of the documents that places point to at present, in any order and repeated."""
        if self._on_device is not None:
            yield from (state.documents() for state in self._on_device.places)
        else:
            states = (state for state in (self.top, self.bottom, self.samples) if state is not None)
            yield from (state.document[state.taken] for state in states)

    def non_finite(self) -> int:
        """NaN and infinite values so far, over all units; on a GPU this waits for its kernels."""
        assert self.moments is not None
        total = int(self.moments.nan.sum() + self.moments.inf.sum())
        if self._on_device is not None:
            total += int((self._on_device.sums.nan + self._on_device.sums.inf).sum())
        return total

    def settle(self) -> None:
        """Bring every state up to date for reading."""
        if self._on_device is not None:
            self._on_device.settle(self.histogram, self.moments)
        if self.moments:
            self.moments.settle()
        if self.histogram:
            self.histogram.settle()

    def _shape(self, sequences: Sequences, routes: Routes | None) -> tuple[int, int]:
        """Rows and units of what is taken in."""
        if routes is not None:
            raise KernelInputError("units that are not in parts meet all tokens, and take no routes")
        return sequences.matrix_rows, self.units

    def _check(self, name: str, matrix: Tensor, sequences: Sequences, routes: Routes | None) -> None:
        shape = self._shape(sequences, routes)
        if tuple(matrix.shape) != shape:
            raise KernelInputError(
                f"{name} has shape {tuple(matrix.shape)}; the batch and the layer take {shape}: tokens, units"
            )
        if matrix.dtype not in DTYPES:
            raise KernelInputError(f"{name} is {matrix.dtype}; kernels take float32, bfloat16 or float16")
        if self.kernels == "triton" and sequences.at is not None:
            raise KernelInputError(f"{name} has rows of some tokens; kernels 'triton' take routes for them")
        expected = device_type(self.kernels)
        if expected is not None and matrix.device.type != expected:
            raise KernelInputError(
                f"{name} is on {matrix.device}; kernels {self.kernels!r} take arrays on {expected}"
            )
        if self.units > 1 and matrix.stride(1) != 1:
            raise KernelInputError(
                f"{name} has unit stride {matrix.stride(1)}; units of a token must be adjacent"
            )

    def _check_like(
        self,
        name: str,
        matrix: Tensor | None,
        other: Tensor,
        other_name: str,
        sequences: Sequences,
        routes: Routes | None,
    ) -> None:
        if matrix is None:
            return
        self._check(name, matrix, sequences, routes)
        if matrix.dtype != other.dtype:
            raise KernelInputError(
                f"{name} is {matrix.dtype} but {other_name} is {other.dtype}; they take one dtype"
            )

    def _update_reference(self, activations: Tensor, up: Tensor | None, sequences: Sequences) -> None:
        values = _spread(activations, sequences)
        factor = None if up is None else _spread(up, sequences)
        sequences = sequences.spread()
        for sums in (self.moments, self.histogram):
            if sums is not None:
                sums.update(values, sequences)
        for places in (self.top, self.bottom, self.samples):
            if places is not None:
                places.update(values, sequences, factor)

    def _count(self, sequences: Sequences, routes: Routes | None) -> None:
        """Note how many tokens are taken in."""
        self.count += sequences.counted_tokens

    def _update_others(self, activations: Tensor, sequences: Sequences, routes: Routes | None) -> None:
        if self.others:
            values = _spread(activations, sequences)
            for state in self.others.values():
                state.update(values, sequences.spread())

    def _launch(
        self,
        function: str | None,
        gate: Tensor,
        up: Tensor | None,
        out: Tensor,
        sequences: Sequences,
        routes: Routes | None,
    ) -> Plan:
        from indexer_kernels import ops

        self.to_device(gate.device, self._windows)
        state, plan = self._on_device, Plan.of(sequences, gate.device, routes)
        assert state is not None
        if state.sums.tokens + sequences.tokens > MOST_RECENT:
            state.settle(self.histogram, self.moments)
        if state.sums.blocks + plan.blocks > MOST_PENDING:
            state.sums.settle_carries()
        state.sums.tokens += sequences.tokens
        state.sums.blocks += plan.blocks
        places = [[] if kept is None else kept.tensors() for kept in (state.top, state.bottom, state.samples)]
        window = next(([kept.host.before, kept.host.after] for kept in state.places), [0, 0])
        by = next((end.by for end in (self.top, self.bottom) if end is not None), "sequence")
        arguments = (plan.tensors(), state.bars, state.sums.tensors(), *places, window, by)
        if function is None:
            ops.update(gate, up, *arguments)
        else:
            ops.activate(function, None if gate is out else gate, up, out, *arguments)
        return plan

    def _process(
        self, function: int, gate: Tensor, up: Tensor | None, out: Tensor | None, sequences: Sequences
    ) -> None:
        from indexer_kernels import _cpp

        def native(state: Any) -> Any:
            return None if state is None else state.native()

        _cpp.process(
            function,
            gate.data_ptr(), gate.stride(0),
            0 if up is None else up.data_ptr(), 0 if up is None else up.stride(0),
            0 if out is None else out.data_ptr(), 0 if out is None else out.stride(0),
            DTYPES.index(gate.dtype), self.units, sequences.native(),
            native(self.histogram), native(self.moments), native(self.top), native(self.bottom),
            native(self.samples), self.threads,
        )  # fmt: skip


def _spread(matrix: Tensor, sequences: Sequences) -> NDArray[np.float32]:
    """A matrix as float32 [tokens, units], with zeros for the tokens that have no row."""
    values = matrix.float().cpu().numpy()
    if sequences.at is None:
        return values
    whole = np.zeros((sequences.tokens, matrix.shape[1]), np.float32)
    whole[sequences.at] = values
    return whole
