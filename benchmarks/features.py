"""Features of one dictionary on one layer of a model: a pass with all statistics against encoding alone.

Sides take turns over the same batches in memory, on the threads of one another:

* bare: transformers' own forward, and relu(x @ W + b) in plain torch by 1,024 tokens; nothing is kept.
* ours: a pass with top-k, samples, histogram and moments of all features.
* re-encoding, as dashboards of features are made: the corpus is run once for every 4,096 features, which are
  encoded densely, and the best whole sequences kept by concatenating and torch.topk. It has top-k alone.

What re-encoding takes over ours grows with the dictionary, up to a bound: with M for the model, E and T for
encoding a group and its top-k, S for our statistics of it, G groups take it G (M + E + T), and ours
M + G (E + S). benchmarks/results/README.md has the figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from indexer_kernels import Keep
from torch import Tensor, nn

from benchmarks.measure import interleaved, ratios, shown_ratio, spread, timed
from benchmarks.options import option, settings_of
from benchmarks.peers import TopSequences
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.subject import Subject, prepare
from indexer.building.states import States
from indexer.models import Runner
from indexer.models.forward import call_model
from indexer.names import SAE, Key
from indexer.sites.sae.dictionary import Dictionary, Relu
from indexer.sites.sae.probe import Features
from indexer.tokens import Batch

BARE, OURS, PEER = "forward and relu(x @ W + b)", "a pass with statistics", "re-encoding"
MODELS = ("minilm", "gpt2")
CHUNK_TOKENS = 1024
K = 20


@dataclass(frozen=True)
class Options:
    model: str = option("minilm", "the packaged model, or GPT-2's shape with random weights", choices=MODELS)
    tokens: int = option(20_000, "of the corpus", quick=600)
    features: int = option(16_384, "of the dictionary", quick=300)
    group: int = option(4096, "features for which re-encoding runs the corpus once", quick=100)
    layer: int = option(5, "whose output is encoded", quick=1)
    active: int = option(50, "features of a token that are active, about", quick=10)
    repeats: int = option(3, "measured rounds", quick=1)
    threads: int | None = option(None, "of all sides; without it the machine's cores")


def run(options: Options) -> Report:
    """Compare the sides' results, then measure."""
    import psutil

    threads = options.threads or psutil.cpu_count(logical=False) or 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            return _measured(options, threads, Path(folder))
    finally:
        torch.set_num_threads(before)


def _measured(options: Options, threads: int, folder: Path) -> Report:
    subject = prepare(options.model, "float32", options.tokens, folder)
    blocks = "h" if options.model == "gpt2" else "encoder.layer"
    block = subject.loaded.model.get_submodule(f"{blocks}.{options.layer}")
    weight, bias = random_encoder(subject, block, options.features, options.active)
    features = _Features(subject, block, weight, bias)
    states: list[States] = []

    def ours() -> None:
        states[:] = [_gathered(subject, block, weight, bias, threads)]

    def re_encoding() -> list[Tensor]:
        firsts = range(0, options.features, options.group)
        return [features.best(slice(first, first + options.group)) for first in firsts]

    say("comparing the sides' results")
    ours()
    checks = [_check(states[0], torch.cat(re_encoding()))]
    sides = {BARE: timed(features.encode), OURS: timed(ours), PEER: timed(re_encoding)}
    seconds = interleaved(sides, options.repeats, announce=say)
    against = {name: ratios(seconds[name], seconds[BARE]) for name in (OURS, PEER)}
    results: dict[str, Any] = {
        "seconds": {name: spread(taken) for name, taken in seconds.items()},
        "against_bare": against[OURS],
        "re_encoding_against_ours": ratios(seconds[PEER], seconds[OURS]),
        "kernel_seconds": states[0].seconds,
        "tokens": subject.totals.counted_tokens,
        "active": features.active,
    }
    shown = {name: shown_ratio(ratio) for name, ratio in against.items()}
    medians = {name: f"{taken['median']:.2f}" for name, taken in results["seconds"].items()}
    rows: list[tuple[str, ...]] = [(name, medians[name], shown.get(name, "")) for name in sides]
    title = (
        f"{options.model}, float32, {options.features:,} features of layer {options.layer}, "
        f"{features.active:.0f} of them active at a token, {results['tokens']:,} tokens, {threads} threads, "
        f"{options.repeats} rounds"
    )
    table = Table(title, ("side", "seconds", "x bare (lowest-highest)"), rows)
    notes = [f"of ours {states[0].seconds:.2f} s are activation functions with statistics"]
    return Report(settings_of(options) | {"threads": threads}, checks, results, [table], notes)


class _Features:
    """What plain torch makes of all batches. active: features above zero at a token, on the average."""

    def __init__(self, subject: Subject, block: nn.Module, weight: Tensor, bias: Tensor) -> None:
        self.subject, self.block, self.weight, self.bias = subject, block, weight, bias
        self.active = 0.0

    def encode(self) -> None:
        """All features of all tokens, kept nowhere."""
        for _, x in streams(self.subject, self.block):
            for rows in x.flatten(0, 1).split(CHUNK_TOKENS):
                torch.relu_(torch.addmm(self.bias, rows, self.weight.t()))

    def best(self, units: slice) -> Tensor:
        """The best values of some features, float32 [features, K]: one pass of the model."""
        top = TopSequences(K, self.subject.config.sequence_tokens, 1)
        above, tokens = 0, 0
        for batch, x in streams(self.subject, self.block):
            values = torch.addmm(self.bias[units], x.flatten(0, 1), self.weight[units].t()).relu_()
            counted = torch.from_numpy(batch.counted)
            top.update(values.view(*x.shape[:2], -1), torch.from_numpy(batch.token_ids).int(), counted)
            above, tokens = above + int((values > 0)[counted.flatten()].sum()), tokens + int(counted.sum())
        self.active = above / tokens * len(self.weight) / len(self.weight[units])
        return top.values()


def streams(subject: Subject, block: nn.Module) -> Iterator[tuple[Batch, Tensor]]:
    """Of each batch what a block returns, [sequences, width, channels]."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(keep)
    try:
        for batch in subject.batches:
            mask = (np.arange(batch.token_ids.shape[1]) < batch.length[:, None]).astype(np.int64)
            ids = torch.from_numpy(batch.token_ids)
            call_model(subject.loaded.model, ids, torch.from_numpy(mask))
            yield batch, kept.pop()
    finally:
        handle.remove()


def random_encoder(subject: Subject, block: nn.Module, features: int, active: int) -> tuple[Tensor, Tensor]:
    """Random directions [features, channels], and biases by which so many are active at a token, about."""
    generator = torch.Generator().manual_seed(0)
    channels: int = subject.loaded.model.config.hidden_size  # type: ignore[union-attr, assignment]
    weight = torch.randn(features, channels, generator=generator)
    _, x = next(streams(subject, block))
    some, share = x.flatten(0, 1)[:512], min(0.5, active / features)
    # torch.quantile takes no more than 2^24 numbers
    thresholds = [torch.quantile(some @ part.t(), 1 - share, dim=0) for part in weight.split(CHUNK_TOKENS)]
    return weight, -torch.cat(thresholds)


def _gathered(subject: Subject, block: nn.Module, weight: Tensor, bias: Tensor, threads: int) -> States:
    """A pass with all statistics."""
    dictionary = Dictionary(
        files=(Path("random"),), form="random", point="", layer=None, weight=weight, bias=bias,
        activation=Relu(),
    )  # fmt: skip
    probe = Features(
        key=Key(f"{SAE}.random", 0), units=len(weight), keep=Keep(top=K, bottom=0, samples=2), place="random",
        module=block, returned=True, dictionary=dictionary,
    )  # fmt: skip
    states = States([probe], kernels="cpp", threads=threads)
    with Runner(subject.loaded, [probe], states.take, chunk_tokens=CHUNK_TOKENS) as runner:
        for batch in subject.batches:
            runner.run(batch)
    return states


def _check(states: States, wanted: Tensor) -> str:
    """Raises WrongResultError where the best values of features are not those of re-encoding."""
    (statistics,) = states.statistics.values()
    statistics.settle()
    assert statistics.top is not None
    found = np.sort(statistics.top.value, axis=1)[:, ::-1][:, : wanted.shape[1]]
    off = float(np.abs(found - wanted.numpy()).max())
    largest = float(wanted.max())
    # rounding of two products of matrices, and of the model in batches and in groups
    if not off <= 1e-4 * largest:
        raise WrongResultError(f"the best values of features differ by {off:.3g}, of at most {largest:.3g}")
    return (
        f"the {wanted.shape[1]} best values of every feature are those of re-encoding, within {off:.1g} of "
        f"{largest:.3g}"
    )

