"""The activation functions that a kernel can apply while it gathers statistics: their definitions.

Sources: GELU, Hendrycks and Gimpel 2016 (arXiv 1606.08415), exact and tanh form; SiLU, Elfwing et al. 2017
(arXiv 1702.03118); squared ReLU, So et al. 2021 (arXiv 2109.08668); gated units, Shazeer 2020 (arXiv
2002.05202).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from indexer_kernels.errors import KernelInputError

# The order is that of csrc/job.hpp, which starts with the identity.
FUNCTIONS = ("gelu", "gelu_tanh", "silu", "relu", "relu2")


def apply(function: str, values: Tensor) -> Tensor:
    """f(values) in float64, any shape; KernelInputError for a function that is not known."""
    x = values.double()
    if function == "gelu":
        return 0.5 * x * torch.erfc(-x / math.sqrt(2))
    if function == "gelu_tanh":
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    if function == "silu":
        return x * torch.sigmoid(x)
    if function == "relu":
        return torch.relu(x)
    if function == "relu2":
        return torch.relu(x) ** 2
    raise KernelInputError(
        f"activation function {function!r} is unknown; choose one of: {', '.join(FUNCTIONS)}"
    )


def activate(function: str, gate: Tensor, up: Tensor | None = None) -> Tensor:
    """f(gate), or f(gate) * up; rounded to gate's dtype after each step, as a model does it.

    gate, up: [tokens, units] of one dtype. The float64 inside makes this the reference of every fused kernel.
    """
    activated = apply(function, gate).to(gate.dtype)
    return activated if up is None else (activated.double() * up.double()).to(gate.dtype)
