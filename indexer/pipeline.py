"""A build: corpus -> tokens -> model -> kernels -> index, in one pass."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import torch
from indexer_kernels import Keep, KernelInputError
from indexer_kernels.dispatch import choose

from indexer import account
from indexer.config import BuildConfig
from indexer.corpus import Corpus
from indexer.documents import Documents
from indexer.errors import IndexerError
from indexer.index.output import check_output
from indexer.index.vocabulary import Vocabulary
from indexer.index.write import IndexWriter
from indexer.memory import freed_memory_kept
from indexer.models import LoadedModel, MlpLayer, Runner, load
from indexer.observer import StatisticsObserver
from indexer.progress import Progress, in_bytes
from indexer.tokens import Batches
from indexer.units import parse_layers

# Rows that an MLP takes at a time on a CPU, so that its activations stay in cache until they are projected.
CHUNK_TOKENS = 1024


def build(config: BuildConfig) -> Path:
    """Run the model over the corpus once and write the index; returns the output folder.

    Raises IndexerError for anything wrong with the request, the model, the corpus or the disk; the output
    folder then is as it was before. KeyboardInterrupt passes through, with a word on what was kept.
    """
    return Build(config).run()


class Build:
    """One build; `run` does it. What a benchmark, a test or the manifest asks of it are attributes.

    threads: of the model and the kernels. model_seconds: from the first batch to the last, waiting included.
    observer, documents, totals, waited: see `_run_model`.
    """

    def __init__(self, config: BuildConfig) -> None:
        self.config = config
        self.begin = time.perf_counter()
        self.model_seconds = 0.0
        self.waited = 0.0
        self.threads = config.threads or psutil.cpu_count(logical=False) or 1
        self.progress = Progress()
        self.observer: StatisticsObserver | None = None
        self.writer: IndexWriter | None = None

    def run(self) -> Path:
        """Do it all; returns the output folder."""
        try:
            with ExitStack() as stack:
                return self._run(stack)
        except KeyboardInterrupt:
            self.progress.say(account.interrupted(self))
            raise
        finally:
            self.progress.close()

    def _run(self, stack: ExitStack) -> Path:
        config = self.config
        # what can be refused at once comes before the model, which takes seconds to load
        check_output(config.output, config.overwrite)
        self.kernels = _chosen_kernels(config)
        self.corpus = Corpus(config.corpus, text_column=config.text_column, on_bad_text=config.on_bad_text)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(self.threads)
        self.loaded = load(
            config.model,
            dtype=config.dtype,
            device=config.device,
            revision=config.revision,
            output_projection=config.output_projection,
        )
        _check_context(config, self.loaded)
        self.layers = _chosen_layers(config, self.loaded)
        keep = _kept(config)
        _check_memory(self.layers, keep)
        self.progress.say(account.plan(self, keep))
        vocabulary = Vocabulary.from_tokenizer(self.loaded.tokenizer)
        writer = self.writer = IndexWriter(config.output, vocabulary, overwrite=config.overwrite)
        stack.enter_context(writer)
        units = {layer.layer: layer.units for layer in self.layers}
        self.observer = StatisticsObserver(units, keep, kernels=self.kernels, threads=self.threads)
        self.documents = Documents(self.observer.documents)
        self._run_model(self.observer)
        for layer in sorted(units):
            writer.add_layer(self.observer.take_record(layer))
        documents = self.documents.table(self.corpus, writer.documents)
        output = writer.publish(account.manifest(self), documents)
        self.progress.close()
        for line in account.cost(self, output):
            self.progress.say(line)
        return output

    def _run_model(self, observer: StatisticsObserver) -> None:
        """Every batch once through the model, into the states."""
        config = self.config
        batches = Batches(
            self.corpus,
            self.loaded.tokenizer,
            context=config.context,
            batch_tokens=config.batch_tokens,
            count_special_tokens=config.count_special_tokens,
            max_tokens=config.max_tokens,
        )
        self.totals = batches.totals
        chosen = [layer.layer for layer in self.layers]
        chunk = CHUNK_TOKENS if self.loaded.device.type == "cpu" else 0
        runner = Runner(self.loaded, chosen, observer, chunk_tokens=chunk, force_hooks=config.hooks)
        self.matmul = "onednn" if runner.onednn else "torch"
        begin = time.perf_counter()
        widest = max(layer.units for layer in self.layers) * self.loaded.dtype.itemsize
        with freed_memory_kept(config.batch_tokens * widest), batches, runner:
            for batch in batches:
                runner.run(batch)
                self.documents.add(batches.finished_documents())
                self.progress.show(self._share_done(batches, observer), observer.count)
            self.documents.add(batches.finished_documents(), running=False)
        self.waited = batches.waited
        self.model_seconds = time.perf_counter() - begin

    def _share_done(self, batches: Batches, observer: StatisticsObserver) -> float | None:
        shares = []
        if self.corpus.bytes:
            shares.append(batches.bytes_done / self.corpus.bytes)
        if self.config.max_tokens:
            shares.append(observer.count / self.config.max_tokens)
        return min(1.0, max(shares)) if shares else None


def _chosen_kernels(config: BuildConfig) -> str:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return choose(config.kernels, device.split(":")[0])
    except KernelInputError as error:
        raise IndexerError(str(error)) from error


def _kept(config: BuildConfig) -> Keep:
    # a window reaches no further than its sequence, so that no place is made for more
    before, after = (min(tokens, config.context - 1) for tokens in config.window)
    return Keep(top=config.top, bottom=config.bottom, window=(before, after), by=config.by)


def _chosen_layers(config: BuildConfig, loaded: LoadedModel) -> list[MlpLayer]:
    return loaded.select(None if config.layers is None else parse_layers(config.layers, len(loaded.layers)))


def _check_context(config: BuildConfig, loaded: LoadedModel) -> None:
    if loaded.context is not None and config.context > loaded.context:
        raise IndexerError(
            f"--context {config.context}: the model {config.model} takes at most {loaded.context} tokens; "
            f"use --context {loaded.context} or less"
        )


def _check_memory(layers: list[MlpLayer], keep: Keep) -> None:
    units = sum(layer.units for layer in layers)
    state, available = units * keep.bytes_per_unit(), psutil.virtual_memory().available
    if state > available:
        raise IndexerError(
            f"the statistics of {units:,} units take {in_bytes(state)}, and {in_bytes(available)} of memory "
            "are free; choose fewer --layers, a smaller --top and --bottom, or a shorter --window"
        )
