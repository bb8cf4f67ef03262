"""More corpus for a finished index: the new files are built as a partial index, and both are merged."""

from __future__ import annotations

from pathlib import Path

from indexer.building.folder import WorkFolder
from indexer.building.identity import differences, options_of
from indexer.building.progress import Progress
from indexer.config.build import BuildConfig
from indexer.corpus import Corpus
from indexer.engines.shards import clear_merged, held_shards, merge_parts
from indexer.errors import IndexerError
from indexer.index.manifest import Manifest, read_manifest
from indexer.index.schema import MANIFEST
from indexer.index.scratch import put_right

PARTIAL = "appended.index"


def build_appended(config: BuildConfig) -> Path:
    """Add the corpus of `config` to the index at its output; returns that.

    The result is that of one build over the earlier corpus and this one. Raises IndexerError where there is
    no finished index, where it was built in another way, and where it ended at --max-tokens.
    """
    output = config.output
    put_right(output.resolve())
    if not (output / MANIFEST).is_file():
        raise IndexerError(f"--append: {output} is not a finished index; build it without --append first")
    with held_shards(output) as folder:
        partial = folder / PARTIAL
        _merge(output, partial)
        found = read_manifest(output)
        _check(output, found, config)
        from indexer.building.plan import sources_of
        from indexer.building.run import build

        before = sources_of(found)
        new = [(file.source, file.bytes) for file in Corpus.of(config).files]
        if before[-len(new) :] == tuple(new):
            Progress().say(f"{output} has this corpus already")
            return output
        repeated = sorted({source for source, _ in new} & {source for source, _ in before})
        if repeated:
            raise IndexerError(f"--append: {repeated[0]} is in {output} already; name the new files alone")
        build(config.model_copy(update={"output": partial, "append": False}), joins=output)
        _merge(output, partial)
    return output


def _merge(output: Path, partial: Path) -> None:
    """Merge what was built to be added, by this call or by one that was stopped; then it is cleared away."""
    from indexer.partials.agreement import is_merged

    if all((index / MANIFEST).is_file() for index in (output, partial)):
        # its build may have been stopped while it removed that
        WorkFolder(partial).remove()
        if not is_merged([output, partial], output):
            merge_parts([output, partial], output, overwrite=True)
    clear_merged(partial.parent, output)


def _check(output: Path, found: Manifest, config: BuildConfig) -> None:
    if found.configuration.get("max_tokens") is not None:
        raise IndexerError(
            f"--append: {output} ended at --max-tokens {found.configuration['max_tokens']}, in the middle of "
            "its corpus; build it over all of that first"
        )
    from indexer.building.plan import settled

    ours = options_of(settled(config)[0].model_dump(mode="json"))
    theirs = options_of(found.configuration)
    differing = differences({**theirs, "--shard": None}, ours)
    if differing:
        raise IndexerError(f"--append: {output} was built in another way: {differing}; give the same options")
