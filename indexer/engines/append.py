"""More corpus for a finished index: the new files are built as a partial index, and both are merged."""

from __future__ import annotations

from pathlib import Path

from indexer.config import BuildConfig
from indexer.corpus import Corpus
from indexer.engines.shards import clear_merged, make_folder, shards_folder
from indexer.errors import IndexerError
from indexer.index.manifest import Manifest, read_manifest
from indexer.index.scratch import put_right
from indexer.progress import Progress
from indexer.work.folder import differences
from indexer.work.identity import options_of

PARTIAL = "appended.index"


def build_appended(config: BuildConfig) -> Path:
    """Add the corpus of `config` to the index at its output; returns that.

    The result is that of one build over the earlier corpus and this one. Raises IndexerError where there is
    no finished index, where it was built in another way, and where it ended at --max-tokens.
    """
    from indexer.partials.agreement import merged_into

    output = config.output
    put_right(output.resolve())
    if not (output / "manifest.json").is_file():
        raise IndexerError(f"--append: {output} is not a finished index; build it without --append first")
    found = read_manifest(output)
    _check(output, found, config)
    before = [(str(source), size) for source, size in found.corpus["sources"]]  # type: ignore[call-overload]
    partial = shards_folder(output) / PARTIAL
    # merged by an earlier call, which may have been stopped before it could tidy up
    clear_merged(partial.parent, PARTIAL, merged_into(output))
    new = [(file.source, file.bytes) for file in Corpus.of(config).files]
    if before[-len(new) :] == new:
        Progress().say(f"{output} has this corpus already")
        return output
    repeated = sorted({source for source, _ in new} & {source for source, _ in before})
    if repeated:
        raise IndexerError(f"--append: {repeated[0]} is in {output} already; name the new files alone")
    make_folder(partial.parent)
    from indexer.partials.merge import merge_indexes
    from indexer.pipeline import Build

    Build(config.model_copy(update={"output": partial, "append": False}), before).run()
    merge_indexes([output, partial], output, overwrite=True)
    clear_merged(partial.parent, PARTIAL, merged_into(output))
    return output


def _check(output: Path, found: Manifest, config: BuildConfig) -> None:
    if found.configuration.get("max_tokens") is not None:
        raise IndexerError(
            f"--append: {output} ended at --max-tokens {found.configuration['max_tokens']}, in the middle of "
            "its corpus; build it over all of that first"
        )
    ours = options_of(config.model_dump(mode="json"))
    theirs = options_of(found.configuration)
    differing = differences({**theirs, "--shard": None}, ours)
    if differing:
        raise IndexerError(f"--append: {output} was built in another way: {differing}; give the same options")
