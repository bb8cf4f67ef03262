"""The site `mlp`: neurons, the input channels of every MLP's output projection."""

from __future__ import annotations

from indexer.sites.mlp.search import find

__all__ = ["find"]
