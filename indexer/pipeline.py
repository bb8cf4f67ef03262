"""A build: corpus -> tokens -> model -> kernels -> index, in one pass."""

from __future__ import annotations

import platform
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from indexer_kernels import Keep, KernelInputError
from indexer_kernels.dispatch import choose
from indexer_kernels.dispatch import describe as describe_kernels

from indexer import __version__
from indexer.config import BuildConfig
from indexer.corpus import Corpus
from indexer.documents import Documents
from indexer.errors import IndexerError
from indexer.index.vocabulary import Vocabulary
from indexer.index.write import IndexWriter
from indexer.memory import freed_memory_kept
from indexer.models import LoadedModel, Runner, load
from indexer.observer import StatisticsObserver, describe
from indexer.progress import Progress, in_bytes, in_tokens, peak_memory
from indexer.tokens import Batches, TokenTotals
from indexer.units import format_layers, parse_layers

# Rows that an MLP takes at a time on a CPU, so that its activations stay in cache until they are projected.
CHUNK_TOKENS = 1024
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")


def build(config: BuildConfig) -> Path:
    """Run the model over the corpus once and write the index; returns the output folder.

    Raises IndexerError for anything wrong with the request, the model, the corpus or the disk; the output
    folder then is as it was before. KeyboardInterrupt passes through, with a word on what was kept.
    """
    return Build(config).run()


class Build:
    """One build; `run` does it. Its attributes are what a benchmark or a test wants to look at afterwards."""

    def __init__(self, config: BuildConfig) -> None:
        self.config = config
        self.begin = time.perf_counter()
        self.model_seconds = 0.0
        self.threads = config.threads or psutil.cpu_count(logical=False) or 1
        self.progress = Progress()

    def run(self) -> Path:
        """Do it all; returns the output folder."""
        try:
            with ExitStack() as stack:
                return self._run(stack)
        except KeyboardInterrupt:
            self.progress.say(self._interrupted())
            raise
        finally:
            self.progress.close()

    def _run(self, stack: ExitStack) -> Path:
        config = self.config
        kernels = _chosen_kernels(config)
        self.corpus = Corpus(config.corpus, text_column=config.text_column, on_bad_text=config.on_bad_text)
        stack.enter_context(freed_memory_kept())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(self.threads)
        loaded = load(
            config.model,
            dtype=config.dtype,
            device=config.device,
            revision=config.revision,
            output_projection=config.output_projection,
        )
        _check_context(config, loaded)
        layers = parse_layers(config.layers, len(loaded.layers)) if config.layers else None
        units = {layer.layer: layer.units for layer in loaded.select(layers)}
        keep = Keep(top=config.top, bottom=config.bottom, window=config.window, by=config.by)
        self._say_plan(loaded, units, keep)
        writer = IndexWriter(
            config.output, Vocabulary.from_tokenizer(loaded.tokenizer), overwrite=config.overwrite
        )
        stack.enter_context(writer)
        self.observer = StatisticsObserver(units, keep, kernels=kernels, threads=self.threads)
        self.documents = Documents(self.observer.documents)
        self.totals = self._run_model(loaded, sorted(units))
        for layer in sorted(units):
            writer.add_layer(self.observer.take_record(layer))
        output = writer.publish(
            self._manifest(loaded, kernels), self.documents.table(self.corpus, writer.documents)
        )
        self._say_cost(output)
        return output

    def _run_model(self, loaded: LoadedModel, layers: list[int]) -> TokenTotals:
        """Every batch once through the model, into the states."""
        config = self.config
        batches = Batches(
            self.corpus,
            loaded.tokenizer,
            context=config.context,
            batch_tokens=config.batch_tokens,
            count_special_tokens=config.count_special_tokens,
            max_tokens=config.max_tokens,
        )
        chunk = CHUNK_TOKENS if loaded.device.type == "cpu" else 0
        runner = Runner(loaded, layers, self.observer, chunk_tokens=chunk, force_hooks=config.hooks)
        begin = time.perf_counter()
        with batches, runner:
            self.matmul = "onednn" if runner.onednn else "torch"
            for batch in batches:
                runner.run(batch)
                self.documents.add(batches.finished_documents())
                self.progress.show(self._share_done(batches), self.observer.count)
            self.documents.add(batches.finished_documents(), running=False)
            self.waited = batches.waited
        self.model_seconds = time.perf_counter() - begin
        return batches.totals

    def _share_done(self, batches: Batches) -> float | None:
        shares = []
        if self.corpus.bytes:
            shares.append(batches.bytes_done / self.corpus.bytes)
        if self.config.max_tokens:
            shares.append(self.observer.count / self.config.max_tokens)
        return min(1.0, max(shares)) if shares else None

    def _say_plan(self, loaded: LoadedModel, units: dict[int, int], keep: Keep) -> None:
        """What is about to be done and what it takes; raises IndexerError where the memory is not there."""
        state = keep.bytes_per_unit() * sum(units.values())
        available = psutil.virtual_memory().available
        if state > available:
            raise IndexerError(
                f"the statistics of {sum(units.values()):,} units take {in_bytes(state)}, "
                f"and {in_bytes(available)} of memory are free; "
                "choose fewer --layers, a smaller --top and --bottom, or a shorter --window"
            )
        chosen = [layer for layer in loaded.layers if layer.layer in units]
        fused = sum(layer.path == "fused" for layer in chosen) if not self.config.hooks else 0
        self.progress.say(
            f"indexing {sum(units.values()):,} neurons of layers {format_layers(tuple(units))} "
            f"({fused} fused, {len(chosen) - fused} by hook), {loaded.provenance['dtype']} on "
            f"{loaded.device}, "
            f"{len(self.corpus.files):,} files, {in_bytes(state)} of statistics"
        )

    def _manifest(self, loaded: LoadedModel, kernels: str) -> dict[str, Any]:
        config, counts, totals = self.config, self.corpus.counts, self.totals
        met = self.observer.first_non_finite
        chosen = loaded.select(
            list(parse_layers(config.layers, len(loaded.layers))) if config.layers else None
        )
        paths = [
            {
                "layer": layer.layer,
                "projection": layer.projection,
                "path": "hook" if config.hooks else layer.path,
                "function": layer.function,
                "gated": layer.gated,
                "reason": "asked for" if config.hooks else layer.reason,
            }
            for layer in chosen
        ]
        return {
            "model": {**loaded.provenance, "matmul": self.matmul, "layers": paths},
            "tokenizer": {
                "class": type(loaded.tokenizer).__name__,
                "vocabulary": len(loaded.tokenizer),
                "special_tokens_counted": config.count_special_tokens,
            },
            "corpus": {
                "files": self.corpus.digests(),
                "documents": counts.documents,
                "empty_documents": counts.empty,
                "bad_text_replaced": counts.bad_text_replaced,
                "bad_text_skipped": counts.bad_text_skipped,
                "binary_files_skipped": counts.binary_skipped,
                "characters": counts.characters,
            },
            "configuration": config.model_dump(mode="json"),
            "totals": {
                **asdict(totals),
                "non_finite": self.observer.non_finite,
                "first_non_finite": None if met is None else describe(met),
                "seconds": round(time.perf_counter() - self.begin, 3),
                "model_seconds": round(self.model_seconds, 3),
                "kernel_seconds": round(self.observer.seconds, 3),
                "waited_seconds": round(self.waited, 3),
                "peak_memory_bytes": peak_memory(),
            },
            "software": {
                "neuron-activation-indexer": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES},
                "kernels": describe_kernels(kernels),
                "threads": self.threads,
                "machine": platform.machine(),
            },
        }

    def _say_cost(self, output: Path) -> None:
        seconds, model = time.perf_counter() - self.begin, max(self.model_seconds, 1e-9)
        size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
        self.progress.close()
        self.progress.say(
            f"{self.totals.counted_tokens:,} tokens in {self.totals.sequences:,} sequences, "
            f"{in_tokens(self.totals.counted_tokens / model)} tokens/s; {seconds:.1f} s in all\n"
            f"activation functions with statistics took {self.observer.seconds / model:.1%} of the model's "
            f"time, it waited for text {self.waited / model:.1%}, padding {_padding(self.totals):.1%}\n"
            f"{output}: {in_bytes(size)}; peak memory {in_bytes(peak_memory())}"
        )
        counts = self.corpus.counts
        for number, what in (
            (counts.empty, "empty documents were left out"),
            (counts.bad_text_skipped, "documents with invalid UTF-8 were left out"),
            (counts.bad_text_replaced, "documents have invalid UTF-8 replaced by U+FFFD"),
            (counts.binary_skipped, "files that are not text were left out"),
        ):
            if number:
                self.progress.say(f"{number:,} {what}")
        if self.observer.non_finite:
            self.progress.say(
                f"warning: {self.observer.non_finite:,} activations are NaN or infinite and enter nothing "
                f"but their count; the first is {self.observer.first_non_finite}"
            )

    def _interrupted(self) -> str:
        observer = getattr(self, "observer", None)
        tokens = observer.count if observer is not None and observer.statistics else 0
        return (
            f"stopped after {tokens:,} tokens; nothing was kept, {self.config.output} is as it was "
            "(an index appears only when it is whole)"
        )


def _chosen_kernels(config: BuildConfig) -> str:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return choose(config.kernels, device.split(":")[0])
    except KernelInputError as error:
        raise IndexerError(str(error)) from error


def _check_context(config: BuildConfig, loaded: LoadedModel) -> None:
    if loaded.context is not None and config.context > loaded.context:
        raise IndexerError(
            f"--context {config.context}: the model {config.model} takes at most {loaded.context} tokens; "
            f"use --context {loaded.context} or less"
        )


def _padding(totals: TokenTotals) -> float:
    return totals.padding / max(1, totals.padding + totals.tokens)
