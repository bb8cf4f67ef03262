"""The build's loop over a model on a GPU, against the same forward without statistics, and the plain one.

Sides run over batches of random token ids in turns, each between two waits for the GPU, so that whatever the
host takes to launch is in the figures:

* build: our runner with all statistics, as `neuron-indexer build` runs it, but for reading text and writing.
* forward: the same runner with the same fused activation functions, less the statistics.
* plain: transformers' own forward, input_ids alone, no head, no cache.
* compiled_build, compiled_forward: the first two with --compile.
* peer: plain, with one layer's top sequences by concatenation, topk and gather (peers.py). In use elsewhere
  it takes a pass for every layer; measured on a few, and extrapolated to all of them.

The roofline is the time of the operations alone, at the rate of a large matrix product in the same run.
Before anything is timed, statistics are compared with the reference, and states are brought to where a long
build's are: they have seen many sequences, so that few values still enter a top-k.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from indexer_kernels import Keep, Sequences
from indexer_kernels.plan import Plan
from torch import Tensor

from benchmarks.gpu_check import check_sums, checked_columns
from benchmarks.gpu_kernels import interpreter
from benchmarks.gpu_models import (
    SHAPES,
    RandomBatches,
    floating_point_operations,
    parameters,
    random_model,
)
from benchmarks.measure import Side, interleaved, measured_parts, ratios
from benchmarks.peers import TopSequences
from benchmarks.report import say
from indexer.building.states import States
from indexer.models import LoadedModel, Probe, Runner, Values
from indexer.models.forward import call_model, embedding_rows
from indexer.names import Key
from indexer.sites import Asked, find
from indexer.tokens import Batch

Figures = dict[str, Any]
# of a model and a batch, which probes
Choose = Callable[[LoadedModel, Batch], list[Probe]]
MATRIX = 8192
# Sequences that states have seen before anything is timed
SETTLED = 4000


def measure(model: str, device: torch.device, *, dry: bool, save: Callable[[Figures], None]) -> Figures:
    """Figures of one of SHAPES: plain numbers, names with their unit, and `checks`, a sentence each.

    *_seconds: median of the rounds, of one batch. *_per_*: ratios of times, median of the pairs of rounds,
    with *_min and *_max. *_extrapolated: not measured on the whole model.
    save: called with the figures so far after every part: loop, synchronisations, peer, compiled. For one
    that fails see measure.measured_parts.
    dry: tiny, on the CPU, in the interpreter; TRITON_INTERPRET=1 must be set before triton is imported.
    Raises WrongResultError where statistics differ from the reference.
    """
    with interpreter() if dry else nullcontext(), ExitStack() as installed:
        bench = Bench.of(model, device, dry, installed)
        bench.prepare()
        figures = bench.facts()
        parts = {
            "loop": bench.loop, "synchronisations": bench.synchronisations, "peer": bench.peer,
            "compiled": bench.compiled,
        }  # fmt: skip
        measured_parts(parts, figures, lambda: save(figures | {"checks": bench.checks}))
    return figures | {"checks": bench.checks}


class Plainly:
    """Computes values and takes none of them in; `take` is for a Runner.

    splits: programs that share a batch's rows, by probe, as in the statistics that this is compared with.
    """

    def __init__(self, splits: Mapping[Key, int]) -> None:
        self.splits = splits

    def take(self, key: Key, values: Values) -> None:
        """The fused kernel without statistics; values that the model computed are left alone."""
        from benchmarks.plain_triton import activate_plain

        if values.function is not None:
            gate, plan = values.matrix, Plan.of(values.sequences, values.matrix.device)
            activate_plain(values.function, gate, values.up, gate, plan, self.splits[key])
            values.leave()


class Settling:
    """Shows a probe's values to its statistics again and again, units exchanged; `take` is for a Runner.

    others: sequences of as many tokens as the batch, which have other documents.
    """

    def __init__(self, states: States, others: list[Sequences]) -> None:
        self.states, self.others = states, others

    def take(self, key: Key, values: Values) -> None:
        """Take in what the model computed, and what it might have computed."""
        self.states.take(key, values)
        for number, other in enumerate(self.others, 1):
            part = self.states.statistics[key].part(values.first)
            part.update(values.made().roll(number, dims=1), other)


@dataclass
class Bench:
    """A model on a device, and what its sides run over.

    installed: holds what the present runner replaced in the model.
    """

    model: str
    device: torch.device
    dry: bool
    loaded: LoadedModel
    batches: RandomBatches
    probes: list[Probe]
    states: States
    runner: Runner
    installed: ExitStack
    checks: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, model: str, device: torch.device, dry: bool, installed: ExitStack, choose: Choose | None = None
    ) -> Bench:
        """The model with empty states. choose: gives the probes; all MLPs without it."""
        shape = SHAPES[model]
        loaded = random_model(shape, device, torch.bfloat16, dry=dry)
        sequence, tokens = (8, 16) if dry else (shape.sequence, shape.tokens)
        batches = RandomBatches(embedding_rows(loaded.model), sequence, tokens)
        keep = Keep(top=1, bottom=1, window=(1, 1)) if dry else Keep()
        probes = choose(loaded, *batches.take(1)) if choose else find(loaded, asked=Asked(keep))
        states = States(probes, kernels="triton", threads=1)
        runner = Runner(loaded, probes, states.take)
        return cls(model, device, dry, loaded, batches, probes, states, runner, installed)

    @property
    def rounds(self) -> int:
        """Measured rounds of all sides."""
        return 1 if self.dry else 5

    @property
    def round_batches(self) -> int:
        """Batches of a side in a round."""
        return 1 if self.dry else SHAPES[self.model].batches

    @property
    def few(self) -> list[Probe]:
        """The first, middle and last probe."""
        return [self.probes[place] for place in sorted({0, len(self.probes) // 2, len(self.probes) - 1})]

    def prepare(self) -> None:
        """Check the statistics of a batch, then settle the states."""
        begin = time.perf_counter()
        (batch,) = self.batches.take(1)
        self.checks.append(checked_columns(self.loaded, self.few, batch))
        say(f"{self.checks[-1]}; {time.perf_counter() - begin:.1f} s")
        self.installed.enter_context(self.runner)
        first, *others = self.batches.take(2 if self.dry else 1 + -(-SETTLED // self.batches.rows))
        settling = Settling(self.states, [other.sequences() for other in others])
        self.runner.run_for(first, settling.take)
        self.wait()
        say(f"states have seen {self.batches.documents:,} sequences; {time.perf_counter() - begin:.1f} s")

    def facts(self) -> Figures:
        """What is measured, and its roofline."""
        every, _ = parameters(self.loaded.model)
        operations = floating_point_operations(self.loaded, self.batches.width)
        rate = self._matmul_rate(64 if self.dry else MATRIX)
        return {
            "shape": SHAPES[self.model].name,
            "dry": int(self.dry),
            "parameters": every,
            "layers": len(self.probes),
            "units": sum(probe.units for probe in self.probes),
            "sequence_tokens": self.batches.width,
            "batch_tokens": self.batches.tokens,
            "batches_per_round": self.round_batches,
            "rounds": self.rounds,
            "matmul_bfloat16_flop_per_second": rate,
            "flop_per_token": operations,
            "roofline_tokens_per_second": rate / operations,
        }

    def loop(self) -> Figures:
        """Build, forward and plain in turns."""
        sides: dict[str, Side] = {"build": self._build, "forward": self._forward, "plain": self._plain_alone}
        seconds = interleaved(sides, self.rounds, announce=say)
        self._check_sums()
        figures = self._of_sides(seconds)
        for side in ("forward", "plain"):
            figures |= _ratio(f"build_per_{side}", seconds["build"], seconds[side])
        if self.device.type == "cuda":
            figures["most_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        if self.runner.most_tokens < sys.maxsize:
            figures["halved_to_tokens"] = self.runner.most_tokens
        return figures

    def synchronisations(self) -> Figures:
        """How often the host waits for the GPU in a batch of a steady state, and where; None without a GPU.

        Not counted: waiting for the batch before the last one, so that the queue does not grow for ever.
        """
        if self.device.type != "cuda":
            return {"synchronisations_per_batch": None, "synchronisations_where": []}
        self._build()
        steady = self.batches.take(4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for batch in steady:
                    self.states.run(self.runner, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [one for one in caught if "called a synchronizing" in str(one.message)]
        where = sorted({f"{one.filename}:{one.lineno}" for one in waits})
        return {"synchronisations_per_batch": len(waits) / len(steady), "synchronisations_where": where}

    def peer(self) -> Figures:
        """The algorithm in use elsewhere on a few layers, extrapolated to all."""
        layers = len(self.probes)
        sides: dict[str, Side] = {str(probe.key): partial(self._peer, probe) for probe in self.few}
        seconds = interleaved({**sides, "build": self._build}, 1 if self.dry else 2, announce=say)
        build = median(seconds.pop("build"))
        pass_seconds = median(taken for every in seconds.values() for taken in every)
        tokens = self.batches.tokens * self.round_batches
        return {
            "peer_layers_measured": [probe.key.layer for probe in self.few],
            "peer_pass_tokens_per_second": tokens / pass_seconds,
            "peer_tokens_per_second_extrapolated": tokens / pass_seconds / layers,
            "peer_per_build_extrapolated": pass_seconds * layers / build,
        }

    def compiled(self) -> Figures:
        """Build and forward with --compile, in turns; compiling comes before."""
        with self._another(Runner(self.loaded, self.probes, self.states.take, compiled=True)):
            begin = time.perf_counter()
            self._build()
            taken = time.perf_counter() - begin
            sides: dict[str, Side] = {"compiled_build": self._build, "compiled_forward": self._forward}
            seconds = interleaved(sides, self.rounds, announce=say)
        self._check_sums()
        figures = {"compile_seconds": taken, **self._of_sides(seconds)}
        return figures | _ratio("compiled_build_per_compiled_forward", *seconds.values())

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _build(self) -> float:
        return self._timed(lambda batch: self.states.run(self.runner, batch))

    def _forward(self) -> float:
        splits = {}
        for key, statistics in self.states.statistics.items():
            assert statistics._on_device is not None, "states have seen batches"
            splits[key] = statistics._on_device.splits
        plainly = Plainly(splits)
        return self._timed(lambda batch: self.runner.run_for(batch, plainly.take))

    def _plain(self, batch: Batch) -> None:
        with torch.inference_mode():
            call_model(self.loaded.model, torch.from_numpy(batch.token_ids).to(self.device))

    def _plain_alone(self) -> float:
        with self._another(None):
            return self._timed(self._plain)

    def _peer(self, probe: Probe) -> float:
        """Seconds of a pass for one layer's top sequences."""
        state = TopSequences(probe.keep.top, self.batches.width, 1)
        present: list[Batch] = []

        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (batch,) = present
            ids = torch.from_numpy(batch.token_ids).to(self.device, torch.int32)
            counted = torch.from_numpy(batch.counted).to(self.device)
            state.update(inputs[0].reshape(*ids.shape, -1), ids, counted)

        def run(batch: Batch) -> None:
            present[:] = [batch]
            self._plain(batch)

        with self._another(None), probe.module.register_forward_pre_hook(hook):
            # a first batch outside of the clock: later ones find k sequences held
            run(self.batches.take(1)[0])
            return self._timed(run)

    def _timed(self, run: Callable[[Batch], None]) -> float:
        batches = self.batches.take(self.round_batches)
        self.wait()
        begin = time.perf_counter()
        for batch in batches:
            run(batch)
        self.wait()
        return time.perf_counter() - begin

    @contextmanager
    def _another(self, runner: Runner | None) -> Iterator[None]:
        """Within the block the model is run by another runner, or is transformers' own for None."""
        own = self.runner
        self.installed.pop_all().close()
        try:
            if runner is None:
                yield
                return
            with runner, torch.compiler.set_stance("force_eager" if self.dry else "default"):
                self.runner = runner
                yield
        finally:
            self.runner = own
            self.installed.enter_context(own)

    def _check_sums(self) -> None:
        self.states.finish()
        self.checks.append(check_sums(self.states))

    def _of_sides(self, seconds: Mapping[str, list[float]]) -> Figures:
        figures = {}
        for name, taken in seconds.items():
            one = median(taken) / self.round_batches
            figures[f"{name}_seconds"] = one
            figures[f"{name}_tokens_per_second"] = self.batches.tokens / one
        return figures

    def _matmul_rate(self, side: int) -> float:
        """Operations per second of a product of two bfloat16 matrices."""
        left, right = (torch.randn(side, side, device=self.device).to(torch.bfloat16) for _ in range(2))
        products = 8

        def multiply() -> float:
            self.wait()
            begin = time.perf_counter()
            for _ in range(products):
                left @ right
            self.wait()
            return time.perf_counter() - begin

        return 2 * side**3 * products / median(interleaved({"product": multiply}, 5)["product"])


def _ratio(name: str, side: list[float], base: list[float]) -> Figures:
    pairs = ratios(side, base)["pairs"]
    return {name: pairs["median"], f"{name}_min": pairs["min"], f"{name}_max": pairs["max"]}
