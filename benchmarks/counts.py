"""What an index counts over the activations of a real model: every kernel against torch's own function.

The gates, and in gated models the factors, of every layer are taken from one pass over real text. Torch's
function of them is what a hook would read; each kernel computes the function itself, of the same numbers.
Then the same text is indexed fused and by hooks. There the matrix products differ too, and round otherwise,
so that how far the counts are apart is told, not judged.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from indexer_kernels import Statistics
from indexer_kernels._cpp import instruction_sets
from indexer_kernels.histogram import Histogram, active, positive
from indexer_kernels.moments import Moments
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import indexer
from benchmarks.gpu_kernels import interpreter
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from indexer.commands.demo import model_folder, write_corpus
from indexer.corpus import Corpus
from indexer.models import LoadedModel, Runner, Values, load
from indexer.names import Key
from indexer.sites import find
from indexer.tokens import Batch, Batches


def _gelu(x: Tensor) -> Tensor:
    """GELU (erf) by torch's own instructions, without oneDNN; see indexer_kernels.activations."""
    used = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)[0]
    try:
        return functional.gelu(x)
    finally:
        torch.backends.mkldnn.set_flags(used, _fp32_precision=None)


# What a model of transformers calls.
TORCH = {
    "gelu": _gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}
DTYPES = ("float32", "bfloat16", "float16")
COUNTED = ("positive", "active", "nan", "inf")
# Triton's interpreter is slow: of each layer it takes so many units
TRITON_UNITS = 64
OF_TRITON = "torch, of what triton takes"
# Of a million values, so many may fall on the other side of 2^-10, or of a float16's smallest, by rounding.
MOST_APART = 20.0


@dataclass(frozen=True)
class Options:
    model: str = option("minilm", "the packaged MiniLM, or a model's folder")
    tokens: int = option(4_000, "counted tokens of the corpus", quick=100)
    triton_tokens: int = option(256, "tokens that Triton's interpreter takes", quick=20)
    context: int = option(128, "tokens of a sequence", quick=16)
    builds: bool = option(True, "index the same text fused and by hooks, too")


class Counters:
    """Counts what torch and every kernel make of the same gates; `take` is for a Runner.

    counts: statistics by kernel and probe; "torch" is what the others are compared with, OF_TRITON what
        "triton" is, which takes fewer units and tokens.
    """

    def __init__(self, triton_tokens: int) -> None:
        self.counts: dict[tuple[str, Key], Statistics] = {}
        self._left: defaultdict[Key, int] = defaultdict(lambda: triton_tokens)

    def take(self, key: Key, values: Values) -> None:
        """Count all, and let the model go on with what torch computes."""
        function, gate, up, sequences = values.function, values.matrix, values.up, values.sequences
        if function is None:
            raise WrongResultError(f"{key} is read by a hook: no kernel computes its function")
        computed = TORCH[function](gate.contiguous())
        computed = computed if up is None else computed * up
        self._statistics("torch", key, gate.shape[1], "cpp").update(computed, sequences)
        for name in instruction_sets():
            with patch.dict(os.environ, {"NEURON_INDEXER_ISA": name}):
                self._statistics(name, key, gate.shape[1], "cpp").activate(function, gate, up, sequences)
        self._statistics("reference", key, gate.shape[1], "reference").activate(
            function, gate, up, sequences
        )
        if self._left[key] > 0:
            self._left[key] -= sequences.tokens
            part = slice(0, TRITON_UNITS)
            few_gate, few_up = gate[:, part], None if up is None else up[:, part]
            units = few_gate.shape[1]
            self._statistics(OF_TRITON, key, units, "cpp").update(computed[:, part], sequences)
            self._statistics("triton", key, units, "triton").activate(function, few_gate, few_up, sequences)
        gate.copy_(computed)
        values.leave()

    def apart(self, kernel: str) -> tuple[list[int], int]:
        """Of positive, active, NaN and infinite, how far a kernel's counts are from torch's, over all units.

        And how many values there were.
        """
        wanted = OF_TRITON if kernel == "triton" else "torch"
        total, values = np.zeros(len(COUNTED), np.int64), 0
        for (name, key), statistics in self.counts.items():
            if name == kernel:
                found, expected = (counted(s) for s in (statistics, self.counts[wanted, key]))
                total += np.abs(found - expected).sum(axis=1)
                values += statistics.count * statistics.units
        return total.tolist(), values

    def _statistics(self, name: str, key: Key, units: int, kernels: str) -> Statistics:
        if (name, key) not in self.counts:
            parts = (Moments.empty(units), Histogram.empty(units), None, None)
            self.counts[name, key] = Statistics(units, *parts, kernels=kernels)
        return self.counts[name, key]


def counted(statistics: Statistics) -> NDArray[np.int64]:
    """int64 [COUNTED, units]."""
    statistics.settle()
    assert statistics.histogram is not None
    assert statistics.moments is not None
    bins = statistics.histogram.counts
    return np.stack([positive(bins), active(bins), statistics.moments.nan, statistics.moments.inf])


def run(options: Options) -> Report:
    """Raises WrongResultError where a kernel's counts are further from torch's than rounding explains."""
    model = str(model_folder()) if options.model == "minilm" else options.model
    kernels, builds = [], []
    with tempfile.TemporaryDirectory() as folder, interpreter():
        corpus = write_corpus(Path(folder) / "corpus", 5 * options.tokens)
        for dtype in DTYPES:
            say(f"{dtype}: every kernel")
            loaded = load(model, dtype=dtype)
            kernels += list(_kernels(loaded, dtype, corpus, options))
            if options.builds:
                say(f"{dtype}: two builds")
                builds.append({"dtype": dtype, **_builds(model, dtype, corpus, Path(folder), options)})
    return Report(
        settings_of(options),
        [
            "of every kernel, type and layer: counts of NaN and infinities are torch's, those of positive "
            f"and active values are apart by at most {MOST_APART:g} of a million values"
        ],
        {"kernels": kernels, "builds": builds},
        [_kernels_table(kernels), *([_builds_table(builds)] if builds else [])],
    )


def _kernels(
    loaded: LoadedModel, dtype: str, corpus: tuple[str, ...], options: Options
) -> Iterator[dict[str, Any]]:
    counters = Counters(options.triton_tokens)
    with Runner(loaded, find(loaded), counters.take) as runner:
        for batch in _batches(loaded, corpus, options):
            runner.run(batch)
    for kernel in (*instruction_sets(), "reference", "triton"):
        apart, values = counters.apart(kernel)
        if apart[2] or apart[3] or max(apart) > MOST_APART * max(values / 1e6, 1):
            differences = ", ".join(f"{name} {number}" for name, number in zip(COUNTED, apart, strict=True))
            raise WrongResultError(
                f"{dtype}, {kernel}: apart from torch's function by {differences} of {values:,}"
            )
        yield {"dtype": dtype, "kernel": kernel, "values": values, **dict(zip(COUNTED, apart, strict=True))}


def _batches(loaded: LoadedModel, corpus: tuple[str, ...], options: Options) -> list[Batch]:
    with Batches(
        Corpus(corpus),
        loaded.tokenizer,
        context=options.context,
        batch_tokens=max(options.triton_tokens, options.context),
        max_tokens=options.tokens,
    ) as batches:
        return list(batches)


def _builds(
    model: str, dtype: str, corpus: tuple[str, ...], folder: Path, options: Options
) -> dict[str, Any]:
    """The same text fused and by hooks: counts over all units, and how far apart they are."""
    units = []
    for hooks in (False, True):
        output = folder / f"{dtype}.{hooks}.index"
        with redirect_stderr(io.StringIO()):
            indexer.build(
                model=model, corpus=corpus, output=output, dtype=dtype, hooks=hooks, context=options.context,
                max_tokens=options.tokens, top=1, bottom=0,
            )  # fmt: skip
        with indexer.open_index(output) as index:
            table = index.sql("SELECT count, positive, active, nan, inf FROM units ORDER BY layer, unit")
            units.append({name: table[name].to_numpy() for name in table.column_names})
    fused, hook = units
    return {
        "values": int(hook["count"].sum()),
        **{name: int(hook[name].sum()) for name in COUNTED},
        **{f"{name}_apart": int(np.abs(fused[name] - hook[name]).sum()) for name in COUNTED},
    }


def _kernels_table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        "apart from torch's function of the same gates, sums over all units",
        ("type, kernel", "values", *COUNTED),
        [
            (f"{row['dtype']}, {row['kernel']}", f"{row['values']:,}", *(str(row[name]) for name in COUNTED))
            for row in rows
        ],
    )


def _builds_table(rows: list[dict[str, Any]]) -> Table:
    names = ("values", *COUNTED, *(f"{name}_apart" for name in COUNTED))
    return Table(
        "a build by hooks, and how far the counts of a fused one are from it, sums over all units",
        ("type", "values", *COUNTED, *(f"{name} apart" for name in COUNTED)),
        [(row["dtype"], *(f"{row[name]:,}" for name in names)) for row in rows],
    )
