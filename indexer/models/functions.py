"""The activation functions that the kernels compute, and how one is told from another.

The names are those of the kernels' `activate`. Transformers has several modules for the same mathematics
(three for the tanh form of GELU alone), so a module is recognised by what it returns, never by its class or
name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def gelu(gate: Tensor) -> Tensor:
    return F.gelu(gate)


def gelu_tanh(gate: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh")


def relu2(gate: Tensor) -> Tensor:
    return torch.square(F.relu(gate))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": F.silu,
    "relu": F.relu,
    "relu2": relu2,
}

# GELU and its tanh form differ by up to 4.7e-4, most of it at |x| near 2.2; clipped forms differ only far out
GRID_LARGEST = 64.0
GRID_POINTS = 8193
TOLERANCE = 1e-5


def recognise(module: nn.Module) -> str | None:
    """The name in FUNCTIONS of what an activation module computes, or None.

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
    for name, function in FUNCTIONS.items():
        if torch.allclose(value.float(), function(grid), rtol=TOLERANCE, atol=TOLERANCE):
            return name
    return None


def evaluate(function: str, gate: Tensor, up: Tensor | None, out: Tensor) -> Tensor:
    """f(gate), or f(gate) * up, into `out` (which may be `gate`), rounded once; all of one shape."""
    value = FUNCTIONS[function](gate.float())
    if up is not None:
        value = value * up.float()
    return out.copy_(value)
