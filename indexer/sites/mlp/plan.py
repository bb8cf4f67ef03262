"""How an MLP can be computed in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from indexer.sites.linear import Affine

Packing = Literal["separate", "gate first", "up first"]


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
