"""The fused GPU kernels on a GPU: against the bandwidth of a copy, against themselves without statistics, and
against torch's own functions.

Before a side is timed its result is verified: what the very launch of that size left in 64 of the units
equals the reference, bit for bit, and its activations are those of the definition. Then a louder batch fills
all places, so that, as in most of a long run, no example enters a top-k. Sides take turns; a side's round is
several calls between two events, which the GPU begins to work on only when all of them are queued: what the
host needs to launch them is not in these figures.

`dry` runs all of it on the CPU in Triton's interpreter, with wall time for time: it shows that this works.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from indexer_kernels import Histogram, Keep, Moments, Sequences, Statistics, TopK, activate
from indexer_kernels.plan import Plan
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Side, interleaved, measured_parts, ratios, timed
from benchmarks.report import WrongResultError
from benchmarks.states import first_difference
from indexer.errors import IndexerError

# Tokens and units: gated units of Llama-3.1-8B, and neurons of GPT-2 small
SHAPES = ((16_384, 14_336), (32_768, 3_072))
SEQUENCE_TOKENS = 1_024
VERIFIED_UNITS = 64
CALLS = 8
MATRIX = 8_192
ATOMIC_STEPS = 1_000
DTYPE = torch.bfloat16
# Times the activations of the batch that fills all places
LOUD = 16
# Rounding to a neighbour of the nearest bfloat16, of the function and again of its product
TOLERANCE = 2.0**-7
# What activations_triton promises of its tails
TAIL = 5e-7


@dataclass(frozen=True)
class Case:
    """A function with what computes it: names of figures begin with `name`."""

    name: str
    function: str
    gated: bool
    torch: Callable[[Tensor, Tensor], Tensor]


CASES = (
    Case("swiglu", "silu", True, lambda gate, up: torch.nn.functional.silu(gate) * up),
    Case("gelu", "gelu", False, lambda gate, up: torch.nn.functional.gelu(gate)),
    Case(
        "gelu_tanh", "gelu_tanh", False, lambda gate, up: torch.nn.functional.gelu(gate, approximate="tanh")
    ),
)


def measure(device: torch.device, *, tokens: int, units: int, rounds: int, dry: bool) -> dict[str, Any]:
    """Figures of the kernels on bfloat16 [tokens, units]: plain numbers, names with their unit.

    *_seconds are medians of `rounds` rounds, per call. *_per_*: ratios of times, median of the pairs of
    rounds, with *_min and *_max. `update_share_of_copy_bandwidth` compares bytes per second: what `update`
    reads, with what a copy reads and writes.
    dry: on the CPU, in the interpreter; TRITON_INTERPRET=1 must be set before triton is imported.
    Parts are hardware, update, swiglu, gelu and gelu_tanh; for one that fails see measure.measured_parts.
    Raises IndexerError where the device and `dry` do not fit.
    Cost: about 12 bytes of device memory per element; seconds on a GPU, of which the reference takes most.
    """
    if (device.type == "cuda") == dry:
        way_out = "dry=True is for the CPU" if dry else "give a CUDA device, or dry=True"
        raise IndexerError(f"kernels cannot be measured on {device}: {way_out}")
    with interpreter() if dry else nullcontext(), torch.no_grad():
        bench = Bench.of(device, tokens, units, rounds, dry)
        parts = {"hardware": bench.hardware_figures, "update": bench.update_figures}
        parts |= {case.name: partial(bench.case_figures, case) for case in CASES}
        figures: dict[str, Any] = {
            "tokens": tokens, "units": units, "rounds": rounds, "calls_per_round": 1 if dry else CALLS,
            "dry": int(dry),
        }  # fmt: skip
        measured_parts(parts, figures)
        return figures


@dataclass
class Bench:
    """The arrays of one run, and how its sides are timed.

    gate, up, out: bfloat16 [tokens, units]. first, later: two batches of the same shape, the second with
    documents that come after.
    """

    device: torch.device
    rounds: int
    dry: bool
    keep: Keep
    gate: Tensor
    up: Tensor
    out: Tensor
    first: Sequences
    later: Sequences

    @classmethod
    def of(cls, device: torch.device, tokens: int, units: int, rounds: int, dry: bool) -> Bench:
        """Made-up values as a matrix product leaves them, the same in every run on one kind of device."""
        generator = torch.Generator(device).manual_seed(0)
        gate, up, out = (torch.empty(tokens, units, dtype=DTYPE, device=device) for _ in range(3))
        for matrix in (gate, up):
            # mostly negative, with a tail: what MLPs feed to their activation functions looks like this
            matrix.normal_(-0.6, 1.2, generator=generator)
        length = max(1, min(SEQUENCE_TOKENS, tokens // 8))
        first, later = (_sequences(tokens, length, document) for document in (0, 1_000_000))
        keep = Keep(top=1, bottom=1, window=(1, 1)) if dry else Keep()
        return cls(device, rounds, dry, keep, gate, up, out, first, later)

    def update_figures(self) -> dict[str, Any]:
        """`update` on activations that exist, against a copy of the same array."""
        statistics = self._verified(None)
        self._fill_places(statistics, self.gate)
        seconds = self._times({
            "copy": lambda: self.out.copy_(self.gate),
            "update": lambda: statistics.update(self.gate, self.later),
        })  # fmt: skip
        self._check_count("update", statistics)
        size = self.gate.numel() * self.gate.element_size()
        copied, read = 2 * size / median(seconds["copy"]), size / median(seconds["update"])
        return {
            "copy_seconds": median(seconds["copy"]),
            "copy_bytes_per_second": copied,
            "update_seconds": median(seconds["update"]),
            "update_bytes_per_second": read,
            "update_share_of_copy_bandwidth": read / copied,
        }

    def case_figures(self, case: Case) -> dict[str, Any]:
        """An activation function with statistics, against the same kernel without, and against torch."""
        from benchmarks.plain_triton import activate_plain

        statistics = self._verified(case)
        up = self.up if case.gated else None
        fused = self.out.clone()
        assert statistics._on_device is not None
        plan, splits = Plan.of(self.later, self.device), statistics._on_device.splits
        self.out.zero_()
        activate_plain(case.function, self.gate, up, self.out, plan, splits)
        if not torch.equal(fused.view(torch.int16), self.out.view(torch.int16)):
            raise WrongResultError(f"{case.name}: activations differ with and without statistics")
        self._fill_places(statistics, fused)
        seconds = self._times({
            "statistics": lambda: statistics.activate(case.function, self.gate, up, self.later, out=self.out),
            "plain_kernel": lambda: activate_plain(case.function, self.gate, up, self.out, plan, splits),
            "torch": lambda: case.torch(self.gate, self.up),
        })  # fmt: skip
        self._check_count(case.name, statistics)
        moved = (3 if case.gated else 2) * self.gate.numel() * self.gate.element_size()
        figures = {f"{case.name}_{side}_seconds": median(taken) for side, taken in seconds.items()}
        figures[f"{case.name}_statistics_bytes_per_second"] = moved / median(seconds["statistics"])
        for side in ("plain_kernel", "torch"):
            ratio = ratios(seconds["statistics"], seconds[side])["pairs"]
            for suffix, part in (("", "median"), ("_min", "min"), ("_max", "max")):
                figures[f"{case.name}_statistics_per_{side}{suffix}"] = ratio[part]
        return figures

    def hardware_figures(self) -> dict[str, Any]:
        """What the device does at most: shared-memory atomics, and products of bfloat16 matrices."""
        from benchmarks.plain_triton import count_in_shared

        programs = 2 if self.dry else 2 * torch.cuda.get_device_properties(self.device).multi_processor_count
        steps, side = (4, 32) if self.dry else (ATOMIC_STEPS, MATRIX)
        generator = torch.Generator().manual_seed(0)
        row = torch.randint(512, (8, 8, 32), dtype=torch.int32, generator=generator).to(self.device)
        atomics = row.numel() * steps
        counted = count_in_shared(programs, steps, row).cpu()
        if not (counted == atomics).all():
            raise WrongResultError(f"shared counters hold {counted.tolist()}, and {atomics} were counted")
        left, right = (torch.randn(side, side, device=self.device).to(DTYPE) for _ in range(2))
        seconds = self._times({
            "atomics": lambda: count_in_shared(programs, steps, row),
            "product": lambda: left @ right,
        })  # fmt: skip
        return {
            "shared_atomics_per_second": programs * atomics / median(seconds["atomics"]),
            "matmul_bfloat16_flop_per_second": 2 * side**3 / median(seconds["product"]),
        }

    def _verified(self, case: Case | None) -> Statistics:
        """Statistics of one batch, equal to the reference; the activations stand in `out` then."""
        units = self.gate.shape[1]
        statistics = Statistics.empty(units, self.keep, kernels="triton")
        chosen = np.unique(np.linspace(0, units - 1, VERIFIED_UNITS).astype(np.int64))
        place = torch.from_numpy(chosen).to(self.device)
        gate, up = (matrix[:, place].cpu() for matrix in (self.gate, self.up))
        if case is None:
            statistics.update(self.gate, self.first)
            activated, factor = gate, None
        else:
            given, factor = (self.up, up) if case.gated else (None, None)
            statistics.activate(case.function, self.gate, given, self.first, out=self.out)
            activated = self.out[:, place].cpu()
            exact = activate(case.function, gate, factor).double()
            far = torch.abs(activated.double() - exact) > (1 + case.gated) * TOLERANCE * exact.abs() + TAIL
            if far.any():
                raise WrongResultError(f"{case.name}: {int(far.sum())} activations are not the function's")
        reference = Statistics.empty(len(chosen), self.keep, kernels="reference")
        reference.update(activated, self.first, factor)
        difference = first_difference(some_units(statistics, chosen), reference)
        if difference is not None:
            raise WrongResultError(f"{'update' if case is None else case.name}: {difference}")
        return statistics

    def _fill_places(self, statistics: Statistics, activated: Tensor) -> None:
        """Give every place to a value that no timed batch reaches: `LOUD` times one of these activations."""
        tokens = activated.shape[0]
        # short ones, for each holds one place at most
        loud = _sequences(tokens, max(1, tokens // (2 * max(self.keep.top, self.keep.bottom))), 500_000)
        statistics.update(activated * LOUD, loud)

    def _check_count(self, name: str, statistics: Statistics) -> None:
        """Raise WrongResultError where timed calls left something out, or an example entered."""
        statistics.settle()
        histogram, moments = statistics.histogram, statistics.moments
        assert histogram is not None
        assert moments is not None
        counted = histogram.counts.sum(axis=1) + moments.nan + moments.inf
        if not (counted == statistics.count).all():
            raise WrongResultError(
                f"{name}: bins hold {counted.min()} to {counted.max()} of {statistics.count}"
            )
        for end in (statistics.top, statistics.bottom):
            assert end is not None
            if end.filled.min() < end.k or end.document.max() >= self.later.document[0]:
                raise WrongResultError(f"{name}: the places were not filled before the timed batches")

    def _times(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds per call of each side and round."""
        side = timed if self.dry else partial(_queued, device=self.device)
        return interleaved({name: side(call) for name, call in calls.items()}, self.rounds)


def some_units(statistics: Statistics, chosen: NDArray[np.int64]) -> Statistics:
    """The statistics of the chosen units alone, as a copy."""
    statistics.settle()

    def part(state: Any) -> Any:
        arrays = {name: value[chosen] for name, value in vars(state).items() if isinstance(value, np.ndarray)}
        return replace(state, **arrays, _native=None)

    moments: Moments | None = part(statistics.moments)
    histogram: Histogram | None = part(statistics.histogram)
    ends: list[TopK | None] = [end and part(end) for end in (statistics.top, statistics.bottom)]
    some = Statistics(len(chosen), moments, histogram, *ends, kernels="reference")
    some.counts = statistics.counts[chosen]
    return some


@contextmanager
def interpreter() -> Iterator[None]:
    """Within the block kernels run in Triton's interpreter; raises IndexerError as `interpreting` does."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from tests.gluon_interpreter import KERNELS, interpreting

        with interpreting({**KERNELS, "benchmarks.plain_triton": ("activate_groups", "add_in_shared")}):
            yield
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


def _sequences(tokens: int, length: int, first_document: int) -> Sequences:
    """Sequences of `length` tokens, each a document whose first token does not count."""
    offsets = np.unique(np.append(np.arange(0, tokens, length), tokens))
    counted = np.ones(tokens, np.bool_)
    counted[offsets[:-1]] = False
    number = np.arange(len(offsets) - 1)
    ids = np.random.default_rng(0).integers(0, 30_000, tokens, dtype=np.int32)
    return Sequences.from_offsets(offsets, first_document + number, np.zeros_like(number), ids, counted)


def _queued(call: Callable[[], object], device: torch.device) -> Side:
    """Seconds per call of CALLS calls on the GPU, all of them queued before the first one starts."""

    def side() -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin = time.perf_counter()
        call()
        host = time.perf_counter() - begin
        torch.cuda.synchronize(device)
        # cycles at 2 GHz: twice what the host takes and a millisecond, but not long where it was slow once
        torch.cuda._sleep(int(2e9 * min(0.2, 2 * CALLS * host + 1e-3)))
        before.record()
        for _ in range(CALLS):
            call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3 / CALLS

    return side
