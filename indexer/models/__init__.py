"""Models of transformers: loading them, and running them for the values of probes."""

from __future__ import annotations

from indexer.models.loading import LoadedModel, adapt, load
from indexer.models.probe import Probe, Values
from indexer.models.runner import Batch, Runner, TakeAll

__all__ = ["Batch", "LoadedModel", "Probe", "Runner", "TakeAll", "Values", "adapt", "load"]
