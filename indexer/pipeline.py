"""A build: corpus -> tokens -> model -> kernels -> index, in one pass that survives being stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from indexer_kernels import Keep, KernelInputError
from indexer_kernels.dispatch import choose

from indexer import account
from indexer.config import BuildConfig
from indexer.corpus import Corpus
from indexer.corpus.pieces import share_of
from indexer.documents import Documents
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.output import check_output
from indexer.index.vocabulary import Vocabulary
from indexer.memory import freed_memory_kept
from indexer.models import LoadedModel, MlpLayer, Observer, Runner, load
from indexer.models.alone import Batching, Plain, batching
from indexer.models.memory import plan_memory
from indexer.models.placement import device_type
from indexer.observer import StatisticsObserver
from indexer.progress import WRITING_SPEED, Course, Progress, in_bytes
from indexer.spotcheck import SpotCheck
from indexer.tokens import Batches
from indexer.tokens.chat import chat_writer
from indexer.units import parse_layers
from indexer.work import checkpoints
from indexer.work.folder import WorkFolder, differences
from indexer.work.identity import identity, identity_of, options_of
from indexer.work.pace import Pace
from indexer.work.signals import StopRequest

# Rows that an MLP takes at a time on a CPU, so that its activations stay in cache until they are projected.
CHUNK_TOKENS = 1024


def build(config: BuildConfig) -> Path:
    """Run the model over the corpus once and write the index; returns the output folder.

    Stopped at any moment - by Ctrl-C, a crash, a full disk - the same call continues; an index that is
    finished is left as it is. Raises IndexerError for anything wrong with the request, the model, the corpus
    or the disk. KeyboardInterrupt passes through, with a word on what was kept.
    """
    return Build(config).run()


class Build:
    """One build; `run` does it. What a benchmark, a test or the manifest asks of it are attributes.

    before: (source, bytes) of the files that come before this corpus in an index that this one will join.
    threads: of the model and the kernels. tokens_before: those that earlier processes had counted.
    seconds, model_seconds, waited: of this build, earlier processes included.
    most_tokens: the largest batch that fits; see Runner.
    memory, batch_tokens: see MemoryPlan; on a resumed build the batches of the first process.
    batching: which sequences lie together in a batch, and why. spotcheck: of some of them, while it runs.
    observer, documents, totals: see `_run_model`. course: how far it is.
    token_counts: int64 [vocabulary], how often each token was counted.
    """

    def __init__(self, config: BuildConfig, before: Sequence[tuple[str, int | None]] = ()) -> None:
        self.config = config
        self.before = list(before)
        self.begin = time.perf_counter()
        self.course = Course()
        self.tokens_before = 0
        self.seconds_before = 0.0
        self.model_seconds = 0.0
        self.waited = 0.0
        self.most_tokens = sys.maxsize
        self.threads = config.threads or psutil.cpu_count(logical=False) or 1
        self.progress = Progress()
        self.pace = Pace(config.checkpoint_minutes * 60)
        self.observer: StatisticsObserver | None = None
        self.published = False
        self.work = WorkFolder(config.output)

    @property
    def seconds(self) -> float:
        """Seconds that this build has taken, in all processes."""
        return self.seconds_before + time.perf_counter() - self.begin

    def run(self) -> Path:
        """Do it all; returns the output folder."""
        try:
            with ExitStack() as stack:
                return self._run(stack)
        except KeyboardInterrupt:
            self.progress.say(account.interrupted(self))
            self.note("interrupted")
            raise
        except IndexerError as error:
            self.note("failed", message=str(error))
            raise
        finally:
            self.progress.close()

    def note(self, event: str, **facts: Any) -> None:
        """A line in the log, if the build has begun."""
        self.work.note(event, **facts)

    def _run(self, stack: ExitStack) -> Path:
        config = self.config
        # what can be refused at once comes before the model, which takes seconds to load
        self._check_output()
        self.kernels = _chosen_kernels(config)
        self.corpus = Corpus.of(config, first_ordinal=len(self.before), allow_empty=config.shard is not None)
        self.pieces = _pieces(config, self.corpus)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(self.threads)
        self._load()
        self.identity = identity(self)
        if self._is_finished():
            return config.output
        stack.enter_context(self.work)
        checkpoint = self.work.begin(self.identity, overwrite=config.overwrite)
        self.vocabulary = Vocabulary.from_tokenizer(self.loaded.tokenizer)
        self.token_counts = np.zeros(len(self.vocabulary), np.int64)
        rows = self.loaded.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        self.corpus.token_ids = min(rows, len(self.vocabulary))
        units = {layer.layer: layer.units for layer in self.layers}
        self.observer = StatisticsObserver(units, self.keep, kernels=self.kernels, threads=self.threads)
        self.documents = Documents(self.observer.documents)
        self.spotcheck = SpotCheck(self.kernels, self.batching.together)
        self.course.writing_seconds = sum(units.values()) * self.keep.bytes_per_unit() / WRITING_SPEED
        start = None if checkpoint is None else checkpoints.restored(self, checkpoint)
        self._put_on_device(self.observer)
        self.tokens_before = self.observer.count
        with StopRequest() as stop:
            for line in account.plan(self, self.keep):
                self.progress.say(line)
            self.note(
                "started" if checkpoint is None else "resumed",
                tokens=self.observer.count,
                share=self.course.share,
            )
            self._run_model(self.observer, start, stop)
            self.course.run(1.0, self.model_seconds)
            self.progress.start(self.course.share)
            output = checkpoints.publish(self)
        self.progress.close()
        for line in account.cost(self, output):
            self.progress.say(line)
        return output

    def _load(self) -> None:
        """The model and what follows from it: layers, what is kept, whether there is room."""
        config = self.config
        self.loaded = load(
            config.model,
            dtype=config.dtype,
            device=config.device,
            revision=config.revision,
            output_projection=config.output_projection,
            attention=config.attention,
        )
        _check_context(config, self.loaded)
        self.corpus.write_chat = chat_writer(self.loaded.tokenizer)
        self.layers = _chosen_layers(config, self.loaded)
        self.keep = _kept(config)
        self.memory = plan_memory(
            self.loaded, self.layers, self.keep, context=config.context, batch_tokens=config.batch_tokens
        )
        self.batch_tokens = self.memory.batch_tokens
        self.batching = self._batching()

    def _batching(self) -> Batching:
        """Which sequences of this model may lie together in a batch of this build."""
        config = self.config
        chosen = [layer.layer for layer in self.layers]
        found = batching(
            lambda layers: self._runner(layers, Plain(self.kernels)),
            self.loaded,
            chosen,
            context=config.context,
            kernels=self.kernels,
            padding=config.padding == "auto",
        )
        # of one length is a shape that follows from a sequence's own, but how many there are is not
        single = found.together == "equal" and config.numerics == "reproducible"
        return replace(found, together="single") if single else found

    def _runner(self, layers: Sequence[int], observer: Observer) -> Runner:
        """A runner of the model as this build runs it."""
        config = self.config
        # parts of a batch of a fixed shape would have shapes that are not
        whole = self.loaded.device.type != "cpu" or config.numerics == "reproducible"
        return Runner(
            self.loaded, layers, observer,
            chunk_tokens=0 if whole else CHUNK_TOKENS, force_hooks=config.hooks, compiled=config.compile,
        )  # fmt: skip

    def _put_on_device(self, observer: StatisticsObserver) -> None:
        """Make room for the states on the GPU, each beside its layer."""
        try:
            for layer in self.layers:
                observer.statistics[layer.layer].to_device(layer.device, self.memory.windows)
        except KernelInputError as error:
            raise IndexerError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise IndexerError(
                f"out of memory on {self.loaded.device} with {in_bytes(self.memory.device_state)} of "
                "statistics: another program took what was free; try again, or choose fewer --layers"
            ) from error

    def _check_output(self) -> None:
        """Refuse an output that can neither be made nor is the index that is asked for."""
        output, overwrite = self.config.output, self.config.overwrite
        if overwrite or not (output / "manifest.json").is_file():
            check_output(output, overwrite)
            return
        found = read_manifest(output)
        self._check_same(options_of(found.configuration), options_of(self.config.model_dump(mode="json")))

    def _is_finished(self) -> bool:
        """Whether the output is the very index that is asked for."""
        output = self.config.output
        if self.config.overwrite or not (output / "manifest.json").is_file():
            return False
        self._check_same(identity_of(read_manifest(output)), self.identity)
        self.progress.say(f"{output} is finished already: the same model, corpus and options")
        self.work.remove()
        return True

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        differing = differences(before, now)
        if differing:
            raise IndexerError(
                f"output {self.config.output}: already exists, and differs: {differing}. Choose another "
                "--output, or replace it with --overwrite"
            )

    def _run_model(self, observer: StatisticsObserver, start: Any, stop: StopRequest) -> None:
        """Every batch once through the model, into the states, with a checkpoint now and then."""
        config = self.config
        batches = self.batches = Batches(
            self.corpus,
            self.loaded.tokenizer,
            context=config.context,
            batch_tokens=self.batch_tokens,
            count_special_tokens=config.count_special_tokens,
            max_tokens=config.max_tokens,
            shapes=self._shapes(),
            special_tokens=not config.no_special_tokens and config.ids_column is None,
            pieces=self.pieces,
            start=start,
        )
        self.totals = batches.totals
        runner = self._runner([layer.layer for layer in self.layers], observer)
        self.matmul = "compiled" if config.compile else "onednn" if runner.onednn else "torch"
        widest = max(layer.units for layer in self.layers) * self.loaded.dtype.itemsize
        self.progress.start(self.course.share, observer.count)
        with freed_memory_kept(self.batch_tokens * widest), batches, runner:
            seconds_before, waited_before = self.model_seconds, self.waited
            begin = time.perf_counter()
            for batch in self._until_it_fails(batches):
                self.spotcheck.run(runner, batch, observer)
                counted = batch.token_ids[batch.counted]
                self.token_counts += np.bincount(counted, minlength=len(self.token_counts))
                self._note_halved(runner)
                self.documents.add(batches.finished_documents())
                self.model_seconds = seconds_before + time.perf_counter() - begin
                self.waited = waited_before + batches.waited
                self.course.run(self._share_run(observer), self.model_seconds)
                self.progress.show(self.course.share, observer.count)
                if self.pace.event_due():
                    self._note_progress(observer)
                if stop.requested:
                    checkpoints.save(self)
                    raise KeyboardInterrupt
                if self.pace.checkpoint_due():
                    self.pace.took(checkpoints.save(self))
            self.spotcheck.finish()
            observer.finish()
            self.model_seconds = seconds_before + time.perf_counter() - begin
            self.documents.add(batches.finished_documents(), running=False)

    def _shapes(self) -> str:
        """Those of the batches, see tokens.Layout."""
        if self.batching.together != "padded":
            return self.batching.together
        return "fixed" if self.config.numerics == "reproducible" else "tight"

    def _note_halved(self, runner: Runner) -> None:
        """Say so where a batch did not fit into the memory of the GPU."""
        if runner.most_tokens >= self.most_tokens:
            return
        self.most_tokens = runner.most_tokens
        self.progress.say(
            f"out of memory on {self.loaded.device}: batches of at most {self.most_tokens:,} tokens from "
            f"here on; --batch-tokens {self.most_tokens} avoids it"
        )
        self.note("out of memory", most_tokens=self.most_tokens)

    def _until_it_fails(self, batches: Batches) -> Any:
        """The batches; where the corpus fails, what was read before is kept first."""
        try:
            yield from batches
        except IndexerError:
            if self.observer is not None and self.observer.count:
                checkpoints.save(self)
            raise

    def _note_progress(self, observer: StatisticsObserver) -> None:
        share = self.course.share
        speed, left = self.progress.rate(share, observer.count)
        self.note(
            "progress",
            tokens=observer.count,
            share=share,
            tokens_per_second=round(speed, 1),
            seconds_left=None if left is None else round(left),
            seconds=round(self.seconds, 1),
        )

    def _share_run(self, observer: StatisticsObserver) -> float | None:
        """Of the pass over the corpus, 0 to 1; None where that is not known."""
        shares = [self.batches.share(sum(piece.bytes for piece in self.pieces))]
        if self.config.max_tokens:
            shares.append(min(1.0, observer.count / self.config.max_tokens))
        return max((share for share in shares if share is not None), default=None)

    def show_writing(self, share: float) -> None:
        """This share of the index is written."""
        self.course.written(share)
        share_of_all = self.course.share
        _, left = self.progress.rate(share_of_all, 0)
        self.progress.show_share(share_of_all, "writing the index")
        if self.pace.event_due() or not share:
            seconds = self.course.writing_seconds if left is None else left
            self.note(
                "writing", tokens=self.totals.counted_tokens, share=share_of_all, seconds_left=round(seconds)
            )


def _pieces(config: BuildConfig, corpus: Corpus) -> Sequence[Any]:
    """The corpus's pieces, or those of the shard."""
    pieces = corpus.pieces(config.piece_bytes)
    return pieces if config.shard is None else share_of(pieces, *config.shard)


def _chosen_kernels(config: BuildConfig) -> str:
    try:
        return choose(config.kernels, device_type(config.device))
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
