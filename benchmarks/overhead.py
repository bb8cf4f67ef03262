"""The whole build against the bare forward pass of the same model on the same batches.

All sides run in one process with the same threads, in turns, after a warm-up of each:

* bare: transformers' own forward, input_ids and attention_mask, no head, no cache.
* bare, oneDNN: the same with its linear layers through the library that our runner uses, where it does, so
  that what the statistics cost can be told from what the matrix products gain.
* build: the whole of it - reading, tokenising in the background, the model, every statistic, writing the
  index. Its loop over the corpus and what surrounds that, which does not grow with the corpus, are told
  apart. Loading the model is in no side.
* peers: two algorithms in use elsewhere, see peers.py.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved, ratios, shown_ratio, spread, timed
from benchmarks.options import option, settings_of
from benchmarks.overhead_check import check_index
from benchmarks.peers import TopSequences, UnitHistograms
from benchmarks.plain_check import check_bare, check_histograms, check_top
from benchmarks.report import Report, Table, say
from benchmarks.subject import Subject, prepare
from indexer.building.run import build
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.models.forward import call_model
from indexer.models.matmul import OnednnForward, is_plain_linear, uses_onednn
from indexer.models.probe import Probe, forward_of
from indexer.names import MLP
from indexer.tokens import Batch

BARE, BARE_ONEDNN = "bare", "bare, oneDNN"
BUILD, LOOP = "build", "build without writing"
PEER_TOP, PEER_HISTOGRAM = "peer: top sequences of one layer", "peer: histograms"
PEER_TOP_ALL = "peer: top sequences, a pass per layer"
PEER_TOP_ONCE = "peer: top sequences, all layers in a pass"


@dataclass(frozen=True)
class Options:
    model: str = option("minilm", "minilm, the packaged one; gpt2, GPT-2 small's shape; or a folder")
    sites: str = option("mlp", "what is indexed, as mlp,attn,heads,resid; others than mlp need --no-peers")
    dtype: str = option("float32", "of weights and activations", choices=("float32", "bfloat16"))
    tokens: int = option(100_000, "counted tokens of the corpus", quick=400)
    repeats: int = option(5, "measured rounds of all sides", quick=1)
    threads: int | None = option(None, "of every side; without it the machine's cores")
    context: int = option(256, "tokens of a sequence", quick=32)
    batch_tokens: int = option(4096, "tokens of a batch", quick=256)
    top: int = option(20, "examples kept at either end", quick=5)
    peers: bool = option(True, "measure the algorithms in use elsewhere too")
    small: bool = option(False, "cut gpt2 down to two layers", quick=True)


@dataclass
class Sides:
    """The sides over one subject, and what their last runs left for the checks."""

    subject: Subject
    threads: int
    layer: int
    loops: list[float] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    top: list[TopSequences] = field(default_factory=list)
    histograms: list[UnitHistograms] = field(default_factory=list)

    def bare(self) -> Tensor:
        """transformers' own forward over all batches; returns the last hidden states of the first one."""
        first = None
        with torch.inference_mode():
            for batch in self.subject.batches:
                out = call_model(self.subject.loaded.model, *_inputs(batch))
                first = out if first is None else first
        assert first is not None
        return first

    def bare_onednn(self) -> Tensor:
        """The same with the linear layers of our runner."""
        with ExitStack() as stack:
            for module in filter(is_plain_linear, self.subject.loaded.model.modules()):
                stack.enter_context(forward_of(module, OnednnForward(module)))
            return self.bare()

    def build(self) -> float:
        """The whole build; its seconds, and in `loops` those of its pass over the corpus."""
        loaded = self.subject.loaded
        with patch("indexer.building.plan.load", return_value=loaded), redirect_stderr(io.StringIO()):
            begin = time.perf_counter()
            output = build(self.subject.config)
            seconds = time.perf_counter() - begin
        self.totals = read_manifest(output).totals
        self.loops.append(self.totals["model_seconds"])
        return seconds

    def peer_top(self) -> None:
        """Top and bottom sequences of one layer, in a pass of its own."""
        config = self.subject.config
        self.top = [
            TopSequences(config.top, config.sequence_tokens, 1),
            TopSequences(config.bottom, config.sequence_tokens, -1),
        ]

        def take(number: int, activations: Tensor, batch: Batch) -> None:
            token_ids, counted = torch.from_numpy(batch.token_ids).int(), torch.from_numpy(batch.counted)
            for state in self.top:
                state.update(activations.view(*token_ids.shape, -1), token_ids, counted)

        self._hooked([self.subject.probes[self.layer]], take)

    def peer_histograms(self) -> None:
        """Histograms of all layers, in one pass."""
        probes = self.subject.probes
        self.histograms = [UnitHistograms.empty(probe.units) for probe in probes]

        def take(number: int, activations: Tensor, batch: Batch) -> None:
            self.histograms[number].update(activations, torch.from_numpy(batch.counted).view(-1))

        self._hooked(probes, take)

    def _hooked(self, probes: list[Probe], take: Callable[[int, Tensor, Batch], None]) -> None:
        """A plain pass with hooks on the output projections; take(number, [tokens, units], batch)."""
        present: list[Batch] = []

        def hook(number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda module, inputs: take(number, inputs[0].reshape(-1, inputs[0].shape[-1]), present[0])

        with ExitStack() as stack, torch.inference_mode():
            for number, probe in enumerate(probes):
                handle = probe.module.register_forward_pre_hook(hook(number))
                stack.callback(handle.remove)
            for batch in self.subject.batches:
                present[:] = [batch]
                call_model(self.subject.loaded.model, *_inputs(batch))


def run(options: Options) -> Report:
    """Measure all sides in turns, then verify what they made."""
    import psutil

    if options.peers and options.sites != MLP:
        raise IndexerError(f"--sites {options.sites}: the peers know MLP neurons alone; add --no-peers")
    threads = options.threads or psutil.cpu_count(logical=False) or 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            subject = prepare(
                options.model,
                options.dtype,
                options.tokens,
                Path(folder),
                small=options.small,
                sites=options.sites,
                context=options.context,
                batch_tokens=options.batch_tokens,
                top=options.top,
                bottom=options.top,
                threads=threads,
            )
            sides = Sides(subject, threads, layer=len(subject.probes) // 2)
            seconds = _measured(sides, options)
            say("measured; checking the results")
            return _report(options, sides, seconds, _checks(sides))
    finally:
        torch.set_num_threads(before)


def _measured(sides: Sides, options: Options) -> dict[str, list[float]]:
    """Seconds of every side, those of the build's loop and of the peer's whole model included."""
    subject, loaded = sides.subject, sides.subject.loaded
    chosen = {BARE: timed(sides.bare), BUILD: sides.build}
    if uses_onednn("auto", loaded.dtype, loaded.device):
        chosen[BARE_ONEDNN] = timed(sides.bare_onednn)
    if options.peers:
        chosen |= {PEER_TOP: timed(sides.peer_top), PEER_HISTOGRAM: timed(sides.peer_histograms)}
    seconds = interleaved(chosen, options.repeats, announce=say)
    # the first is that of the warm-up
    seconds[LOOP] = sides.loops[1:]
    if options.peers:
        layers = len(subject.probes)
        pairs = list(zip(seconds[PEER_TOP], seconds[BARE], strict=True))
        seconds[PEER_TOP_ALL] = [layers * one for one, _ in pairs]
        seconds[PEER_TOP_ONCE] = [bare + layers * max(0.0, one - bare) for one, bare in pairs]
    order = (BARE, BARE_ONEDNN, LOOP, BUILD, PEER_HISTOGRAM, PEER_TOP, PEER_TOP_ALL, PEER_TOP_ONCE)
    return {name: seconds[name] for name in order if name in seconds}


def _checks(sides: Sides) -> list[str]:
    """What was verified; raises WrongResultError."""
    checks = check_index(sides.subject, sides.totals, sides.threads)
    loaded = sides.subject.loaded
    if uses_onednn("auto", loaded.dtype, loaded.device):
        checks.append(check_bare(sides.bare(), sides.bare_onednn()))
    if sides.top:
        checks.append(check_top(sides.subject, sides.layer, sides.top))
    if sides.histograms:
        checks.append(check_histograms(sides.subject, sides.histograms))
    return checks


def _report(options: Options, sides: Sides, seconds: dict[str, list[float]], checks: list[str]) -> Report:
    subject, built = sides.subject, sides.totals
    tokens, totals = subject.totals.counted_tokens, subject.totals
    rows = {
        name: {
            "seconds": spread(taken),
            "tokens_per_second": tokens / spread(taken)["median"],
            "against_bare": ratios(taken, seconds[BARE]),
        }
        for name, taken in seconds.items()
    }
    if BARE_ONEDNN in seconds:
        for name in (LOOP, BUILD):
            rows[name]["against_bare_onednn"] = ratios(seconds[name], seconds[BARE_ONEDNN])
    writing = [whole - loop for whole, loop in zip(seconds[BUILD], seconds[LOOP], strict=True)]
    results = {
        "sides": rows,
        "tokens": tokens,
        "sequences": totals.sequences,
        "padding_share": totals.padding / (totals.padding + totals.tokens),
        "layers": len({probe.key.layer for probe in subject.probes}),
        "units": subject.units,
        "writing_seconds": spread(writing),
        "writing_share": spread([part / whole for part, whole in zip(writing, seconds[BUILD], strict=True)]),
        "waited_share": built["waited_seconds"] / built["model_seconds"],
        "kernel_share": built["kernel_seconds"] / built["model_seconds"],
    }
    settings = settings_of(options) | {"threads": sides.threads}
    return Report(settings, checks, results, [_table(options, results)], _notes(results, sides))


def _table(options: Options, results: dict[str, Any]) -> Table:
    title = (
        f"{options.model} {options.dtype}, {results['tokens']:,} tokens, {results['units']:,} units of "
        f"{options.sites} in {results['layers']} layers, medians of {options.repeats} rounds"
    )
    rows: list[tuple[str, ...]] = []
    for name, row in results["sides"].items():
        same = row.get("against_bare_onednn")
        rows.append(
            (
                name,
                f"{row['seconds']['median']:.3f}",
                f"{row['tokens_per_second']:,.0f}",
                shown_ratio(row["against_bare"]),
                shown_ratio(same) if same else "",
            )
        )
    return Table(title, ("side", "seconds", "tokens/s", "x bare (lowest-highest)", "x bare, oneDNN"), rows)


def _notes(results: dict[str, Any], sides: Sides) -> list[str]:
    notes = [
        f"writing the index and all else around the loop: {results['writing_seconds']['median']:.2f} s, "
        f"{results['writing_share']['median']:.1%} of this build; it grows with neurons, not with the corpus",
        f"within the loop: waiting for text {results['waited_share']:.1%}, activation functions with their "
        f"statistics {results['kernel_share']:.1%}; padding {results['padding_share']:.1%}",
    ]
    if sides.top:
        notes.append(
            f"top sequences: measured on layer {sides.layer}, scaled to {results['layers']} layers of one "
            "width: with a pass per layer, as in use, and as if one pass served all"
        )
    return notes


def _inputs(batch: Batch) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, int64 [sequences, width]."""
    width = batch.token_ids.shape[1]
    mask = torch.arange(width) < torch.from_numpy(batch.length)[:, None]
    return torch.from_numpy(batch.token_ids), mask.long()
