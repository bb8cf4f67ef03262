"""What a build has gathered, to and from its folder.

A checkpoint is an index of all that was read so far, written as any index is, and beside it where reading
stands. So it holds nothing that the format does not, and can itself be asked questions. The finished index is
the last checkpoint, put in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from indexer.building import report
from indexer.building.folder import Checkpoint, WorkFolder
from indexer.building.gathered import Gathered
from indexer.building.plan import Plan
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.restore import read_layer, read_vocabulary
from indexer.index.write import IndexWriter
from indexer.names import Key
from indexer.partials.state import statistics_of
from indexer.tokens import Batches, Position

# what is kept beside the index; another version of this program may keep something else
VERSION = 3


def save(
    plan: Plan,
    gathered: Gathered,
    batches: Batches,
    folder: WorkFolder,
    *,
    finished: bool = False,
    added: Mapping[Key, Mapping[str, Any]] | None = None,
    written: Callable[[float], None] = lambda share: None,
) -> float:
    """Make a checkpoint of all batches that were run; returns the seconds that it took.

    To be called between batches. finished: whether there are no more; what was gathered is given up for the
    index then, probe by probe. added: further states of probes by their names, which there are at the end
    alone. written: told the share that is.
    Raises IndexerError where the disk fails; the last checkpoint then holds.
    """
    begin = time.perf_counter()
    gathered.finish()
    tokens = gathered.count
    position = {
        **gathered.facts(),
        "reading": batches.position(),
        "stamps": plan.corpus.stamps(),
        "finished": finished,
        "version": VERSION,
    }

    def write(path: Path) -> None:
        with IndexWriter(path, plan.vocabulary, kept=folder.kept) as writer:
            for probe in plan.probes:
                written(writer.layers_written / (len(plan.probes) + 1))
                record = gathered.states.record(probe.key, last=finished)
                record = replace(record, states={**record.states, **(added or {}).get(probe.key, {})})
                writer.add_layer(record)
            documents = gathered.documents.table(plan.corpus, writer.documents)
            if finished:
                seconds = round(gathered.clock.seconds, 1)
                folder.note("finished", tokens=tokens, seconds=seconds)
            log = folder.log.path.read_text(encoding="ascii")
            writer.publish(report.manifest(plan, gathered, batches), documents, gathered.token_counts, log)

    folder.save(write, position)
    seconds = time.perf_counter() - begin
    # the finished index is written in the same way
    gathered.course.writing_seconds = seconds
    folder.note("checkpoint", tokens=tokens, share=gathered.course.share, took=round(seconds, 3))
    return seconds


def restored(plan: Plan, gathered: Gathered, checkpoint: Checkpoint, folder: WorkFolder) -> Position:
    """Give a build what a checkpoint holds; returns where to go on reading.

    Raises IndexerError where a file that was read is another one now, and for what another version of this
    program left.
    """
    facts = checkpoint.position
    if facts.get("version") != VERSION:
        raise IndexerError(
            f"{folder.path}: its checkpoint is of another version of this program; finish the build with "
            "that one, or remove the folder to begin anew"
        )
    changed = plan.corpus.changed_since(facts["stamps"])
    if changed:
        raise IndexerError(
            f"{folder.path}: {changed}, since this build read it; restore the file to continue, or give "
            "--overwrite after removing the folder to begin anew"
        )
    manifest = read_manifest(checkpoint.index)
    for probe in plan.probes:
        # what is there of no tokens makes room
        del gathered.states.statistics[probe.key]
        record = read_layer(checkpoint.index, manifest, probe.key)
        statistics = statistics_of(
            record, kernels=plan.kernels, threads=plan.threads, width=probe.width
        )
        gathered.states.restore(probe.key, statistics)
    _, counts = read_vocabulary(checkpoint.index)
    gathered.restore(facts, counts)
    return Position(facts["reading"])
