"""Which of the kernels' activation functions a module computes.

Transformers has several modules for the same mathematics (three for the tanh form of GELU alone), so a module
is recognised by what it returns, never by its class or name.
"""

from __future__ import annotations

import torch
from indexer_kernels.activations import FUNCTIONS, apply
from torch import Tensor, nn

# GELU and its tanh form differ by up to 4.7e-4, most of it at |x| near 2.2; clipped forms differ only far out
GRID_LARGEST = 64.0
GRID_POINTS = 8193
TOLERANCE = 1e-5


def recognise(module: nn.Module) -> str | None:
    """The name, among the kernels' FUNCTIONS, of what an activation module computes, or None.

    The module is asked for its values on a float32 grid over [-64, 64]; every one has to be within 1e-5,
    absolute and relative, of the function's. Its forward is called directly, so that hooks on it do not see
    the grid.
    """
    # a module with weights of its own is not a fixed function of its input
    if any(True for _ in module.parameters()):
        return None
    grid = torch.linspace(-GRID_LARGEST, GRID_LARGEST, GRID_POINTS)
    value = module.forward(grid)
    if not isinstance(value, Tensor) or value.shape != grid.shape:
        return None
    for name in FUNCTIONS:
        if torch.allclose(value.double(), apply(name, grid), rtol=TOLERANCE, atol=TOLERANCE):
            return name
    return None


def is_activation(module: nn.Module, x: Tensor) -> bool:
    """Whether a module that maps x to the same shape computes every channel from that channel alone, as a
    normalisation does not, and is no straight line, as a scaling is.

    x: [..., channels], what it was given by the model; it is left as it is.
    """
    other = x.clone()
    other[..., 0] = 2 * x[..., 0] + 1
    y, changed, twice, mirrored, zero = (
        module.forward(value.clone()).nan_to_num() for value in (x, other, 2 * x, -x, 0 * x)
    )
    if not torch.equal(y[..., 1:], changed[..., 1:]):
        return False
    return not (_is_near(twice - zero, 2 * (y - zero)) and _is_near(y - zero, zero - mirrored))


def _is_near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-2 * float(a.abs().max()))
