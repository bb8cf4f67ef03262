"""Statistics of neuron activations as mergeable states, with compiled kernels that gather them in one read.

Knows arrays; not models, files or SQL. Each state (`Moments`, `Histogram`, `TopK`, `Bands`) is defined once,
in NumPy: that code is the reference of the kernels, what merging uses, and what an index holds. csrc/ and the
Triton files are its fast forms. `Statistics` holds all of one layer and chooses the kernel.

Importing the package costs nothing: each name loads what it needs when it is first used. The states need
NumPy alone, `Statistics` and the activation functions also torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer_kernels.activations import FUNCTIONS, activate
    from indexer_kernels.bands import Bands
    from indexer_kernels.errors import KernelInputError
    from indexer_kernels.histogram import Histogram
    from indexer_kernels.keep import Keep
    from indexer_kernels.moments import Moments
    from indexer_kernels.parted import PartedStatistics
    from indexer_kernels.sequences import Sequences
    from indexer_kernels.statistics import Statistics
    from indexer_kernels.topk import TopK

_FROM = {
    "Bands": "bands",
    "FUNCTIONS": "activations",
    "Histogram": "histogram",
    "Keep": "keep",
    "KernelInputError": "errors",
    "Moments": "moments",
    "PartedStatistics": "parted",
    "Sequences": "sequences",
    "Statistics": "statistics",
    "TopK": "topk",
    "activate": "activations",
}
__all__ = [
    "FUNCTIONS", "Bands", "Histogram", "Keep", "KernelInputError", "Moments", "PartedStatistics",
    "Sequences", "Statistics", "TopK", "activate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
