"""Linear layers, whichever way round their weights are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Affine:
    """A linear layer as x @ weight + bias.

    weight: [inputs, outputs], a view of the module's own weight, whichever way round that one is stored.
    bias: [outputs] or None.
    """

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Module) -> Affine | None:
        """The affine form of a linear layer with floating-point weights, or None for any other module."""
        if not isinstance(module, nn.Linear | Conv1D) or not module.weight.is_floating_point():
            return None
        weight = module.weight.detach()
        bias = None if module.bias is None else module.bias.detach()
        return cls(weight.t() if isinstance(module, nn.Linear) else weight, bias)

    @property
    def outputs(self) -> int:
        """Width of what comes out."""
        return self.weight.shape[1]

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        """x: [rows, inputs], any row stride; out: [rows, outputs], overwritten and returned."""
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: nn.Linear, or the transposed one of GPT-2."""
    return isinstance(module, nn.Linear | Conv1D) and module.weight.ndim == 2


def is_of_dbrx(module: nn.Module) -> bool:
    """Whether a module holds routed experts as DBRX does: three matrices, each of all experts in turn."""
    held = getattr(module, "mlp", None)
    weights = [getattr(held, name, None) for name in ("w1", "v1", "w2")]
    return hasattr(module, "num_experts") and all(
        isinstance(weight, nn.Parameter) and weight.ndim == 2 for weight in weights
    )
