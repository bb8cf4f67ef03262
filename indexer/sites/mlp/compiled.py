"""An MLP's forward for torch.compile: the statistics are one opaque operator in a block's graph.

What takes the values, and which sequences they are of, is looked up when it runs, by a number that is a
tensor: all blocks of a model share one compiled graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from indexer.sites.mlp.plan import FusedPlan

# f(gate) or f(gate) * up into gate, with statistics
InPlace = Callable[[str, Tensor, Tensor | None], None]

_takers: dict[int, InPlace] = {}
_numbers = count()


@torch.library.custom_op("neuron_indexer::activate", mutates_args=("gate",))
def _activate(function: str, gate: Tensor, up: Tensor | None, taker: Tensor) -> None:
    _takers[int(taker)](function, gate, up)


@_activate.register_fake
def _(function: str, gate: Tensor, up: Tensor | None, taker: Tensor) -> None:
    return None


class TracedMlp(nn.Module):
    """As FusedForward, for a block that is compiled: takes x [..., hidden], returns [..., hidden].

    A module, since blocks whose modules differ in their tensors alone share a graph. Memory is the compiler's
    business. taker: int64 [] on the CPU, from `taking`.
    """

    taker: Tensor
    gate: Tensor
    gate_bias: Tensor | None
    up: Tensor | None
    up_bias: Tensor | None
    projection: Tensor
    projection_bias: Tensor | None

    def __init__(self, plan: FusedPlan, taker: Tensor) -> None:
        super().__init__()
        self.function, self.packing = plan.function, plan.packing
        self.register_buffer("taker", taker)
        for name, affine in (("gate", plan.gate), ("up", plan.up), ("projection", plan.projection)):
            self.register_buffer(name, None if affine is None else affine.weight.t())
            self.register_buffer(f"{name}_bias", None if affine is None else affine.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gate = linear(rows, self.gate, self.gate_bias)
        up = None if self.up is None else linear(rows, self.up, self.up_bias)
        if self.packing == "gate first":
            gate, up = gate.chunk(2, dim=-1)
        elif self.packing == "up first":
            up, gate = gate.chunk(2, dim=-1)
        torch.ops.neuron_indexer.activate(self.function, gate, up, self.taker)
        return linear(gate, self.projection, self.projection_bias).view(*x.shape[:-1], -1)


class _HandOn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@contextmanager
def traced(model: nn.Module, plan: FusedPlan, take: InPlace) -> Iterator[None]:
    """Within the block, the model's MLP is one for torch.compile; afterwards it is as it was."""
    with ExitStack() as stack:
        taker = stack.enter_context(taking(take))
        stack.enter_context(_in_place_of(model, plan.replaced, TracedMlp(plan, taker)))
        for module in plan.bypassed:
            stack.enter_context(_in_place_of(model, module, _HandOn()))
        yield


@contextmanager
def _in_place_of(model: nn.Module, module: nn.Module, other: nn.Module) -> Iterator[None]:
    parent, name = next(
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if child is module
    )
    other.eval()
    setattr(parent, name, other)
    try:
        yield
    finally:
        setattr(parent, name, module)


@contextmanager
def taking(take: InPlace) -> Iterator[Tensor]:
    """Within the block, the tensor given leads the operator to `take`."""
    number = next(_numbers)
    _takers[number] = take
    try:
        yield torch.tensor(number)
    finally:
        del _takers[number]
