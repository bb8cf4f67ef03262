"""Who runs a build: this process, several processes of this machine, or a Ray cluster.

All of them cut the corpus at the same places and merge exactly, so the index does not tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from indexer.config.build import BuildConfig
from indexer.errors import MODELS, check_installed
from indexer.index.schema import MANIFEST


def build(config: BuildConfig) -> Path:
    """Build as `config` says; returns the folder of the index, or of the partial one of a shard.

    Raises IndexerError for anything wrong with the request, the model, the corpus, the disk or a worker. What
    was done is kept beside the output, and the same call continues it.
    """
    # what some corpora take besides is asked for where they are read
    check_installed("building an index", *MODELS)
    _look_at_corpus(config)
    if config.ray is not None:
        from indexer.engines.ray_engine import build_on_ray

        return build_on_ray(config)
    if config.workers > 1:
        from indexer.engines.processes import build_in_processes

        return build_in_processes(config)
    if config.append:
        from indexer.engines.append import build_appended

        return build_appended(config)
    if config.shard is not None:
        from indexer.engines.shards import build_shard

        return build_shard(config)
    from indexer.building.run import build as build_here

    return build_here(config)


def _look_at_corpus(config: BuildConfig) -> None:
    """Raise mistakes in sources and columns before a model is loaded, which takes seconds."""
    # an index that is there already may need no corpus
    if config.append or config.overwrite or not (config.output / MANIFEST).exists():
        from indexer.corpus import Corpus

        Corpus.of(config, allow_empty=config.shard is not None).look()


def merge(parts: Sequence[Path], output: Path, *, overwrite: bool = False) -> Path:
    """Merge partial indexes, or all those in folders of them, into one index at `output`; returns it."""
    from indexer.engines.shards import merge_parts

    return merge_parts(parts, output, overwrite=overwrite)
