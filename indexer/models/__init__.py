"""Models of transformers: loading them, finding their MLPs, and running them for their activations."""

from __future__ import annotations

from indexer.models.loading import LoadedModel, adapt, load
from indexer.models.plan import MlpLayer
from indexer.models.runner import Batch, Observer, Runner

__all__ = ["Batch", "LoadedModel", "MlpLayer", "Observer", "Runner", "adapt", "load"]
