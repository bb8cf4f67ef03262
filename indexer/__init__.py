"""Neuron activation indexer: one pass of a model over a corpus, then SQL on every neuron.

    import indexer

    indexer.build(model="my-model/", corpus=["texts/"], output="my.index")   # needs torch and transformers
    index = indexer.open_index("my.index")                                  # needs neither
    index.top("mlp.5.1733", k=10)                                           # pyarrow.Table

Importing the package costs nothing: each name loads what it needs when it is first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.errors import IndexerError
from indexer.version import __version__

if TYPE_CHECKING:
    from indexer.index.read import Index

__all__ = ["IndexerError", "__version__", "build", "open_index"]


def open_index(path: str | Path) -> Index:
    """Open a finished index for questions; use as a context manager or call its close().

    Raises IndexerError where the folder is missing, unfinished, damaged or of another format version.
    """
    from indexer.index.read import open_index as open_folder

    return open_folder(path)


def build(**options: Any) -> Path:
    """Run a model over a corpus and write the index; returns its folder.

    options: the fields of indexer.config.BuildConfig, e.g. model, corpus, output, layers, top, max_tokens.
    Raises IndexerError, in one line, for an option that does not exist or a value that cannot be.
    """
    from indexer.config.options import build_config
    from indexer.engines import build as run

    return run(build_config(options))
