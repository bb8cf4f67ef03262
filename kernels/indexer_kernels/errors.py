"""What the kernels refuse."""


class KernelInputError(ValueError):
    """Arrays whose shapes, dtypes or devices do not fit together, or an implementation that is not there."""
