"""A build: corpus -> tokens -> model -> kernels -> index, in one pass that survives being stopped."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from indexer.building import checkpoints, report
from indexer.building.allocator import freed_memory_kept
from indexer.building.folder import WorkFolder
from indexer.building.gathered import Gathered
from indexer.building.heads import Scoring
from indexer.building.identity import identity_of
from indexer.building.pace import Pace
from indexer.building.plan import Plan, check_same, planned, threads_of
from indexer.building.progress import Progress
from indexer.building.signals import StopRequest
from indexer.config.build import BuildConfig
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.schema import MANIFEST
from indexer.models import Runner
from indexer.names import Key
from indexer.tokens import Batch, Batches, Position


def build(config: BuildConfig, joins: Path | None = None) -> Path:
    """Run the model over the corpus once and write the index; returns the output folder.

    joins: an index that this one will be merged into.
    Stopped at any moment - by Ctrl-C, a crash, a full disk - the same call continues; an index that is
    finished is left as it is. Raises IndexerError for anything wrong with the request, the model, the corpus
    or the disk. KeyboardInterrupt passes through, with a word on what was kept.
    """
    begin, progress, folder = time.perf_counter(), Progress(), WorkFolder(config.output)
    try:
        with _torch_threads(threads_of(config)):
            plan = planned(config, joins)
            if not _is_finished(plan, progress):
                _build(plan, Gathered(plan, begin), folder, progress)
        return config.output
    except KeyboardInterrupt:
        progress.say(report.interrupted(folder))
        raise
    finally:
        progress.close()


def is_finished(config: BuildConfig) -> bool:
    """Whether the very index that is asked for is there, which is said then; nothing is built.

    Raises IndexerError where the output is another index, and for anything wrong with the request.
    """
    progress = Progress()
    try:
        with _torch_threads(threads_of(config)):
            return _is_finished(planned(config), progress)
    finally:
        progress.close()


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_finished(plan: Plan, progress: Progress) -> bool:
    """Whether the output is the very index that is asked for; raises IndexerError where it is another."""
    config = plan.config
    # what --overwrite replaces is the index of all shards; one of its own that is finished is kept
    if not (config.output / MANIFEST).is_file() or (config.overwrite and config.shard is None):
        return False
    before = identity_of(read_manifest(config.output))
    if config.overwrite and before != plan.identity:
        return False
    check_same(config, before, plan.identity)
    progress.say(f"{config.output} is finished already: the same model, corpus and options")
    WorkFolder(config.output).remove()
    return True


def _build(plan: Plan, gathered: Gathered, folder: WorkFolder, progress: Progress) -> None:
    with folder, StopRequest() as stop:
        checkpoint = folder.begin(plan.identity, overwrite=plan.config.overwrite)
        start = None
        if checkpoint is not None:
            start = checkpoints.restored(plan, gathered, checkpoint, folder)
        if checkpoint is None or not checkpoint.position["finished"]:
            gathered.put_on_device(plan)
            for line in report.beginning(plan, gathered):
                progress.say(line)
            folder.note(
                "started" if checkpoint is None else "resumed",
                tokens=gathered.count,
                share=gathered.course.share,
            )
            _Pass(plan, gathered, folder, progress).run(start, stop)
        folder.publish(overwrite=plan.config.overwrite)
    progress.close()
    for line in report.cost(plan.config.output, plan.corpus.without_column):
        progress.say(line)


class _Pass:
    """The pass over the corpus: every batch once, with a checkpoint now and then, and one at the end."""

    def __init__(self, plan: Plan, gathered: Gathered, folder: WorkFolder, progress: Progress) -> None:
        self.plan, self.gathered, self.folder, self.progress = plan, gathered, folder, progress
        self.pace = Pace(plan.config.checkpoint_minutes * 60)
        self.most_tokens = sys.maxsize
        self.bytes = sum(piece.bytes for piece in plan.pieces)

    def run(self, start: Position | None, stop: StopRequest) -> None:
        """Do it all. start: where earlier processes stopped reading.

        Raises KeyboardInterrupt, after a checkpoint, where a stop is requested.
        """
        gathered, clock = self.gathered, self.gathered.clock
        self.progress.start(gathered.course.share, gathered.count)
        with ExitStack() as stack:
            stack.enter_context(freed_memory_kept(self.plan.largest_block))
            batches = stack.enter_context(self._batches(start))
            runner = stack.enter_context(self.plan.runner(gathered.states.take))
            model_before, waited_before = clock.model, clock.waited
            begin = time.perf_counter()
            for batch in self._until_it_fails(batches):
                gathered.run(runner, batch)
                gathered.documents.add(batches.finished_documents())
                clock.model = model_before + time.perf_counter() - begin
                clock.waited = waited_before + batches.waited
                self._tell_halved(runner)
                self._show(batches)
                if stop.requested:
                    self._save(batches)
                    raise KeyboardInterrupt
                if self.pace.checkpoint_due():
                    self.pace.took(self._save(batches))
            gathered.finish()
            clock.model = model_before + time.perf_counter() - begin
            gathered.documents.add(batches.finished_documents(), running=False)
            added = self._filled(runner, batches, stop)
        gathered.course.run(1.0, clock.model)
        self.progress.start(gathered.course.share)
        checkpoints.save(
            self.plan,
            gathered,
            batches,
            self.folder,
            finished=True,
            added=added,
            written=self._show_writing,
        )

    def _batches(self, start: Position | None) -> Batches:
        config = self.plan.config
        return Batches(
            self.plan.corpus,
            self.plan.loaded.tokenizer,
            context=config.sequence_tokens,
            batch_tokens=self.gathered.batch_tokens,
            count_special_tokens=config.count_special_tokens,
            max_tokens=config.max_tokens,
            shapes=self.plan.shapes,
            special_tokens=not config.no_special_tokens and config.ids_column is None,
            targets=config.target_column is not None,
            bos=config.bos,
            pieces=self.plan.pieces,
            start=start,
        )

    def _until_it_fails(self, batches: Batches) -> Iterator[Batch]:
        """The batches; where the corpus fails, what was read before is kept first."""
        try:
            yield from batches
        except IndexerError:
            if self.gathered.count:
                self._save(batches)
            raise

    def _save(self, batches: Batches) -> float:
        return checkpoints.save(self.plan, self.gathered, batches, self.folder)

    def _filled(self, runner: Runner, batches: Batches, stop: StopRequest) -> dict[Key, dict[str, Any]]:
        """What probes get at the end, by the names of states: the panel where one is kept, scores of heads.

        Stopped in between, it is begun anew later.
        """
        panels, added = self.gathered.panels, defaultdict[Key, dict[str, Any]](dict)
        scoring = Scoring(self.plan, panels)
        begin = time.perf_counter()

        def between(share: float) -> None:
            self.progress.show_share(share, "filling the panel")
            if stop.requested:
                self._save(batches)
                raise KeyboardInterrupt

        with scoring:
            for name, chosen in panels.items() if self.plan.config.panel else ():
                with self.folder.scratch_file() as file:
                    filled = chosen.filled(runner, self.plan.kernels, file, between, scoring.watch)
                for key, panel in filled.items():
                    added[key][name] = panel
            for key, scores in scoring.of(runner).items():
                added[key]["scores"] = scores
        self.gathered.clock.panel = time.perf_counter() - begin
        return added

    def _tell_halved(self, runner: Runner) -> None:
        """Say so where a batch did not fit into the memory of the GPU."""
        if runner.most_tokens >= self.most_tokens:
            return
        self.most_tokens = runner.most_tokens
        self.progress.say(
            f"out of memory on {self.plan.loaded.device}: batches of at most {self.most_tokens:,} tokens "
            f"from here on; --batch-tokens {self.most_tokens} avoids it"
        )
        self.folder.note("out of memory", most_tokens=self.most_tokens)

    def _show(self, batches: Batches) -> None:
        course, tokens = self.gathered.course, self.gathered.count
        course.run(self._share(batches), self.gathered.clock.model)
        self.progress.show(course.share, tokens)
        if self.pace.event_due():
            speed, left = self.progress.rate(course.share, tokens)
            self.folder.note(
                "progress",
                tokens=tokens,
                share=course.share,
                tokens_per_second=round(speed, 1),
                seconds_left=None if left is None else round(left),
                seconds=round(self.gathered.clock.seconds, 1),
            )

    def _share(self, batches: Batches) -> float | None:
        """Of the pass over the corpus, 0 to 1; None where that is not known."""
        shares = [batches.share(self.bytes)]
        if self.plan.config.max_tokens:
            shares.append(min(1.0, self.gathered.count / self.plan.config.max_tokens))
        return max((share for share in shares if share is not None), default=None)

    def _show_writing(self, share: float) -> None:
        """This share of the index is written."""
        course = self.gathered.course
        course.written(share)
        _, left = self.progress.rate(course.share, 0)
        self.progress.show_share(course.share, "writing the index")
        if self.pace.event_due() or not share:
            seconds = course.writing_seconds if left is None else left
            self.folder.note(
                "writing",
                tokens=self.gathered.count,
                share=course.share,
                seconds_left=round(seconds),
            )
