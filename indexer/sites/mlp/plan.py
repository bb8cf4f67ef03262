"""How an MLP can be computed in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Packing = Literal["separate", "gate first", "up first"]


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


@dataclass(frozen=True)
class FusedPlan:
    """An MLP as projection(f(gate(x))) or projection(f(gate(x)) * up(x)), to be computed by us.

    gate: the linear layer that feeds the activation function; with packing other than "separate" its outputs
        hold gate and up side by side, [tokens, 2 * units].
    up: the other factor's linear layer; None in an MLP that is not gated, or packed.
    replaced: the module whose forward becomes ours; it is called with x and returns the projection's output.
    bypassed: modules that hand on their input, because their work is done in `replaced`. Where an MLP is no
        module of its own (BERT, OPT), x reaches the projection through its linear layer and activation, and
        all work is done there.
    """

    function: str
    gate: Affine
    up: Affine | None
    packing: Packing
    projection: Affine
    replaced: nn.Module = field(repr=False)
    bypassed: tuple[nn.Module, ...] = field(default=(), repr=False)

    @property
    def gated(self) -> bool:
        """Whether f(gate) is multiplied by a second linear layer's output."""
        return self.up is not None or self.packing != "separate"
