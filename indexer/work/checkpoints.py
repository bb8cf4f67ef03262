"""A build's state to and from its folder, and its index put in place.

A checkpoint is an index of all that was read so far, written as any index is, and beside it where reading
stands. So it holds nothing that the format does not, and can itself be asked questions.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer import account
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.restore import read_layer, read_vocabulary
from indexer.index.write import IndexWriter
from indexer.observer import MLP, NonFinite
from indexer.partials.state import record_of, statistics_of
from indexer.tokens import Position
from indexer.work.folder import Checkpoint

if TYPE_CHECKING:
    from indexer.pipeline import Build

# beside the index of a checkpoint, until that is whole
_WRITING = "index.new"


def save(build: Build) -> float:
    """Make a checkpoint of all batches that were run; returns the seconds that it took.

    To be called between batches. Raises IndexerError where the disk fails; the last checkpoint then holds.
    """
    begin = time.perf_counter()
    assert build.observer is not None
    build.spotcheck.finish()
    build.observer.finish()
    build.work.save(lambda path: _write(build, path, running=True), _position(build))
    seconds = time.perf_counter() - begin
    # the finished index is written in the same way
    build.course.writing_seconds = seconds
    build.note("checkpoint", tokens=build.observer.count, share=build.course.share, took=round(seconds, 3))
    return seconds


def publish(build: Build) -> Path:
    """Put the finished index in place and remove the build's folder; returns the index's path."""
    assert build.observer is not None
    _write(build, build.config.output, running=False)
    build.published = True
    build.work.remove()
    return build.config.output


def restored(build: Build, checkpoint: Checkpoint) -> Position:
    """Give the build the states of a checkpoint; returns where to go on reading."""
    state, observer = checkpoint.position, build.observer
    assert observer is not None
    changed = build.corpus.changed_since(state["stamps"])
    if changed:
        raise IndexerError(
            f"{build.work.path}: {changed}, since this build began; restore the file to continue, or give "
            "--overwrite after removing the folder to begin anew"
        )
    manifest = read_manifest(checkpoint.index)
    for layer in build.layers:
        record = read_layer(checkpoint.index, manifest, MLP, layer.layer)
        statistics = statistics_of(record, kernels=build.kernels, threads=build.threads)
        observer.restore(layer.layer, statistics)
    _, counts = read_vocabulary(checkpoint.index)
    # what was read cannot be added to
    build.token_counts = counts.copy()
    met = state["observer"]["first_non_finite"]
    observer.first_non_finite = None if met is None else NonFinite(**met)
    observer.seconds = state["observer"]["seconds"]
    build.documents.restore(state["documents"])
    build.spotcheck.checked, build.spotcheck.largest = state["checked"], state["largest_difference"]
    build.course.share, build.course.writing_seconds = state["course"]
    build.seconds_before = state["seconds"]
    build.model_seconds = state["model_seconds"]
    build.waited = state["waited"]
    # the same batches go on, whatever memory is free now
    build.batch_tokens = state["batch_tokens"]
    return Position(state["reading"])


def _position(build: Build) -> dict[str, Any]:
    observer = build.observer
    assert observer is not None
    met = observer.first_non_finite
    return {
        "reading": build.batches.position().state,
        "stamps": build.corpus.stamps(),
        "documents": build.documents.state(),
        "observer": {
            "first_non_finite": None if met is None else asdict(met),
            "seconds": observer.seconds,
        },
        "checked": build.spotcheck.checked,
        "largest_difference": build.spotcheck.largest,
        "course": [build.course.share, build.course.writing_seconds],
        "seconds": build.seconds,
        "model_seconds": build.model_seconds,
        "waited": build.waited,
        "batch_tokens": build.batch_tokens,
    }


def _write(build: Build, path: Path, *, running: bool) -> None:
    """An index of the present state; running: whether the states are needed afterwards."""
    observer = build.observer
    assert observer is not None
    overwrite = build.config.overwrite and not running
    staging = path.with_name(_WRITING) if running else build.work.staging
    kept = build.work.kept
    with IndexWriter(path, build.vocabulary, overwrite=overwrite, staging=staging, kept=kept) as writer:
        for layer in build.layers:
            if not running:
                build.show_writing(writer.layers_written / (len(build.layers) + 1))
            number = layer.layer
            # a record that takes its arrays over is gone once it is written
            writer.add_layer(
                record_of(observer.statistics[number], MLP, number, copy=True)
                if running
                else observer.take_record(number)
            )
        documents = build.documents.table(build.corpus, writer.documents)
        if not running:
            build.note("finished", tokens=build.totals.counted_tokens, seconds=round(build.seconds, 1))
        log = None if running else build.work.log.path.read_text(encoding="ascii")
        writer.publish(account.manifest(build), documents, build.token_counts, log)
