"""Statistics of neuron activations as mergeable states, with compiled kernels that gather them in one read.

Knows arrays; not models, files or SQL. Each state (`Moments`, `Histogram`, `TopK`) has `empty`, `update` and
`merge`: their NumPy code is the definition, csrc/ the fast form. `Statistics` holds all of one layer and
chooses the kernel.
"""
from __future__ import annotations

from indexer_kernels.activations import FUNCTIONS, activate
from indexer_kernels.errors import KernelInputError
from indexer_kernels.histogram import Histogram
from indexer_kernels.moments import Moments
from indexer_kernels.sequences import Sequences
from indexer_kernels.statistics import Keep, Statistics
from indexer_kernels.topk import TopK

__all__ = [
    "FUNCTIONS",
    "Histogram",
    "Keep",
    "KernelInputError",
    "Moments",
    "Sequences",
    "Statistics",
    "TopK",
    "activate",
]  # fmt: skip
