"""The activation functions that a kernel can apply while it gathers statistics: their definitions.

They are torch's on a CPU. There 1 + erf and 1 + tanh are formed in float32: the factor of x in both forms of
GELU is a multiple of 2^-25 for negative x, so that GELU is exactly zero below -5.543; with tanh it is zero
where the tanh of vector instructions is -1, below -5.0614, and SiLU where exp(-x) leaves float32, below
-88.7228. For -infinity all three are NaN. Zeros decide how often a gated neuron is positive: what is left of
f(gate) there, times a negative `up`, would count.

torch itself is not of one mind: without vector instructions, as for the last few values of a tensor whose
size is no multiple of 32, its GELU ends at -5.5426 and -5.1579; on a GPU its GELU (erf) ends nowhere. On a
processor with AVX-512 it leaves GELU (erf) to oneDNN, whose values end at -5.5416 and are NaN for infinity.

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
# the lowest float32 of which they are not zero
LAST_GELU_TANH = -5.061380386352539
LAST_SILU = -88.72283172607422


def apply(function: str, values: Tensor) -> Tensor:
    """f(values) in float64, any shape; KernelInputError for a function that is not known."""
    x = values.double()
    if function == "gelu":
        return x * _as_in_float32(0.5 * torch.erfc(-x / math.sqrt(2)))
    if function == "gelu_tanh":
        sigmoid = torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        return x * torch.where(x < LAST_GELU_TANH, 0.0, _as_in_float32(sigmoid))
    if function == "silu":
        return x * torch.where(x < LAST_SILU, 0.0, torch.sigmoid(x))
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


def _as_in_float32(factor: Tensor) -> Tensor:
    """Half of what 1 + a float32 between -1 and 1 comes to: the nearest multiple of 2^-25."""
    return torch.round(factor * 2.0**25) * 2.0**-25
