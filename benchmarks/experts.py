"""Routed experts: a pass with all statistics of their neurons against transformers' own forward, in turns.

A model of OLMoE's shape with fewer layers and random weights; batches of random tokens in memory. Channels of
the residual stream are indexed beside the experts, so that ours, too, runs all of the model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from indexer_kernels import Keep, Sequences
from numpy.typing import NDArray
from torch import nn

from benchmarks.measure import interleaved, ratios, shown_ratio, spread, timed
from benchmarks.options import option, settings_of
from benchmarks.plain_experts import is_stack
from benchmarks.report import Report, Table, WrongResultError, say
from indexer.building.states import States
from indexer.models import LoadedModel, Runner, adapt
from indexer.models.forward import call_model
from indexer.models.loading import DTYPES, quiet_transformers
from indexer.models.runner import Part
from indexer.names import EXPERTS, RESID
from indexer.sites import Asked, find

BARE, PASS = "transformers' forward", "a pass with statistics"
VOCABULARY = 2000


@dataclass(frozen=True)
class Options:
    dtype: str = option("float32", "of weights and activations", choices=("float32", "bfloat16"))
    layers: int = option(2, "of the model")
    width: int = option(1024, "neurons of an expert", quick=16)
    hidden: int = option(2048, "channels of the residual stream", quick=64)
    sequences: int = option(16, "of a batch", quick=2)
    context: int = option(256, "tokens of a sequence", quick=16)
    warm: int = option(4, "batches before the first round, which fill the places of examples", quick=1)
    repeats: int = option(5, "measured rounds", quick=1)
    threads: int | None = option(None, "of both sides; without it the machine's cores")


def run(options: Options) -> Report:
    """Measure, then compare what was counted with what the model routed."""
    import psutil

    threads = options.threads or psutil.cpu_count(logical=False) or 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measured(options, threads)
    finally:
        torch.set_num_threads(before)


def _measured(options: Options, threads: int) -> Report:
    loaded = _olmoe(options)
    probes = find(loaded, (EXPERTS, RESID), Asked(Keep(samples=2)))
    states = States(probes, kernels="cpp", threads=threads)
    random, passes = np.random.default_rng(0), 0
    seconds_in_kernels: list[float] = []

    def batch() -> Part:
        nonlocal passes
        passes += 1
        ids = random.integers(0, VOCABULARY, (options.sequences, options.context))
        number = np.arange(options.sequences)
        ends = np.arange(options.sequences + 1) * options.context
        flat = ids.reshape(-1).astype(np.int32)
        rows = Sequences.from_offsets(ends, passes * len(ids) + number, number, flat)
        return Part(ids, rows.length, rows)

    def gather(part: Part) -> None:
        with Runner(loaded, probes, states.take) as runner:
            runner.run(part)

    def bare() -> None:
        with torch.inference_mode():
            call_model(loaded.model, torch.from_numpy(same.token_ids))

    def a_pass() -> float:
        part, before = batch(), states.seconds
        begin = time.perf_counter()
        gather(part)
        taken = time.perf_counter() - begin
        seconds_in_kernels.append(states.seconds - before)
        return taken

    routed = _Routed(loaded)
    for number in range(options.warm):
        say(f"filling places, batch {number + 1} of {options.warm}")
        part = batch()
        with routed, torch.inference_mode():
            call_model(loaded.model, torch.from_numpy(part.token_ids))
        gather(part)
    checks = [_check(states, routed, options)]
    same = batch()
    seconds = interleaved({BARE: timed(bare), PASS: a_pass}, options.repeats, announce=say)
    tokens = options.sequences * options.context
    results: dict[str, Any] = {
        "seconds": {name: spread(taken) for name, taken in seconds.items()},
        "against_bare": ratios(seconds[PASS], seconds[BARE]),
        "kernel_seconds": spread(seconds_in_kernels[1:]),
        "tokens": tokens,
        "units": sum(probe.units for probe in probes),
        "implementation": loaded.model.config._experts_implementation,  # type: ignore[union-attr]
    }
    table = Table(
        f"OLMoE's shape, {options.layers} layers, {options.dtype}, {tokens:,} tokens, "
        f"{results['units']:,} neurons, medians of {options.repeats} rounds",
        ("side", "seconds", "x transformers' (lowest-highest)"),
        [
            (BARE, f"{results['seconds'][BARE]['median']:.3f}", ""),
            (PASS, f"{results['seconds'][PASS]['median']:.3f}", shown_ratio(results["against_bare"])),
        ],
    )
    of_kernels = results["kernel_seconds"]["median"]
    notes = [f"of a pass {of_kernels:.3f} s are activation functions with statistics"]
    return Report(settings_of(options) | {"threads": threads}, checks, results, [table], notes)


def _olmoe(options: Options) -> LoadedModel:
    from transformers import OlmoeConfig, OlmoeModel

    with quiet_transformers():
        torch.manual_seed(0)
        config = OlmoeConfig(
            vocab_size=VOCABULARY, num_hidden_layers=options.layers, hidden_size=options.hidden,
            intermediate_size=options.width,
        )  # fmt: skip
        model = OlmoeModel(config)
    return adapt(nn.Module.to(model, DTYPES[options.dtype]).eval(), name="OLMoE's shape, random weights")


class _Routed:
    """How many tokens the model itself routes to each expert; counts: int64 [layers, experts]."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.stacks: list[Any] = [module for module in loaded.model.modules() if is_stack(module)]
        self.counts = [np.zeros(stack.num_experts, np.int64) for stack in self.stacks]
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for stack, counts in zip(self.stacks, self.counts, strict=True):
            self._handles.append(stack.register_forward_pre_hook(_counting(counts)))

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _counting(counts: NDArray[np.int64]) -> Any:
    def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
        counts[:] += np.bincount(given[1].reshape(-1).numpy(), minlength=len(counts))

    return hook


def _check(states: States, routed: _Routed, options: Options) -> str:
    """Raises WrongResultError."""
    experts = sorted(key for key in states.statistics if key.site == EXPERTS)
    for key, counts in zip(experts, routed.counts, strict=True):
        found = states.statistics[key].counts[:: options.width]
        # by another rounding a token at the edge goes to another expert
        off = int(np.abs(found - counts).sum())
        if found.sum() != counts.sum() or off > counts.sum() / 100:
            raise WrongResultError(f"{key}: {off} of {counts.sum()} tokens are counted by another expert")
    return "tokens counted by every expert of every layer are those that the model routes there, but for 1%"
