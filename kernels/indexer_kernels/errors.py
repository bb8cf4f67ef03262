"""What the kernels refuse."""
from __future__ import annotations


class KernelInputError(ValueError):
    """Arrays whose shapes, dtypes or devices do not fit together, or an implementation that is not there."""
