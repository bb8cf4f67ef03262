"""Recognising an MLP in a trace of its block, by values: what is projected equals f(gate) or f(gate) * up.

No names are consulted. A linear layer is an MLP's output projection if what it was given is, bit for bit, the
output of an activation module that was given the output of another linear layer (or half of it), alone or
times the output of a linear layer (or the other half). Attention's output projection is never fed like that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from indexer_kernels.activations import FUNCTIONS, activate
from torch import Tensor, nn

from indexer.models import functions
from indexer.models.plan import Affine, FusedPlan, Packing, is_linear
from indexer.models.trace import BlockTrace


@dataclass(frozen=True)
class Match:
    """One MLP within a block, by paths of modules within the block.

    activation: the module of the activation function, None if it is a plain function call inside the model's
    code.
    function: its name among the kernels' FUNCTIONS, None if it is none of them.
    gate, up: linear layers; up is None if there is none, or if gate's output holds both (packing).
    """

    projection: str
    units: int
    activation: str | None
    function: str | None
    gate: str
    up: str | None
    packing: Packing

    @property
    def gated(self) -> bool:
        """Whether f(gate) is multiplied by a second linear layer's output."""
        return self.up is not None or self.packing != "separate"


@dataclass(frozen=True)
class _Source:
    """The output of a linear layer, or half of it, as [tokens, units]."""

    path: str
    half: int | None
    value: Tensor


def linear_paths(trace: BlockTrace) -> list[str]:
    """Paths of the linear layers within a block."""
    return [path for path, module in trace.modules.items() if path and is_linear(module)]


def matches(trace: BlockTrace, tokens: int, only: str | None = None) -> list[Match]:
    """All MLPs of a block, or the one with the projection `only`; tokens: how many the trace was run with."""
    block = trace.once("")
    if block is None or block.output is None:
        return []
    hidden = block.output.shape[-1]
    found = []
    for path in linear_paths(trace) if only is None else [only]:
        call = trace.once(path)
        if call is None or call.output is None or len(call.inputs) != 1 or call.output.shape[-1] != hidden:
            continue
        x = call.inputs[0].reshape(-1, call.inputs[0].shape[-1])
        match = _fed_by_activation(trace, path, x) if x.shape[0] == tokens else None
        if match is not None:
            found.append(match)
    return found


def plan(trace: BlockTrace, match: Match, shared: set[int]) -> FusedPlan | str:
    """How to compute the matched MLP in one pass, or why that cannot be done.

    shared: ids of modules that more than one block uses, which therefore cannot be bypassed.
    """
    modules = trace.modules
    if match.activation is None:
        return "the activation function is no module of its own"
    if match.function is None:
        name = type(modules[match.activation]).__name__
        return f"no fused kernel for the activation {name} (there is: {', '.join(FUNCTIONS)})"
    gate, projection = Affine.of(modules[match.gate]), Affine.of(modules[match.projection])
    up = None if match.up is None else Affine.of(modules[match.up])
    if gate is None or projection is None or (match.up is not None and up is None):
        return "a linear layer of the MLP has no plain floating-point weights"
    if len({affine.weight.dtype for affine in (gate, up, projection) if affine is not None}) > 1:
        return "the linear layers of the MLP differ in dtype"
    whole = _whole_module(trace, match)
    if whole is not None:
        return FusedPlan(match.function, gate, up, match.packing, projection, modules[whole])
    if match.gated:
        return "a gated MLP that is no module of its own"
    bypassed = (modules[match.gate], modules[match.activation])
    if any(id(module) in shared for module in bypassed):
        return "the activation module is shared between layers"
    return FusedPlan(match.function, gate, None, "separate", projection, modules[match.projection], bypassed)


def _whole_module(trace: BlockTrace, match: Match) -> str | None:
    """The module that is the MLP and no more: given what gate is given, returning what projection returns."""
    parents = [set(_ancestors(path)) for path in (match.gate, match.projection, match.up) if path is not None]
    common = set.intersection(*parents)
    if not common:
        return None
    path = max(common, key=len)
    whole, gate, projection = trace.once(path), trace.once(match.gate), trace.once(match.projection)
    if whole is None or gate is None or projection is None:
        return None
    if whole.output is None or projection.output is None:
        return None
    if whole.other_arguments or len(whole.inputs) != 1 or whole.inputs[0].dtype != projection.output.dtype:
        return None
    fits = same(whole.inputs[0], gate.inputs[0]) and same(whole.output, projection.output)
    return path if fits else None


def _ancestors(path: str) -> Iterator[str]:
    """Paths of the modules that contain one, within the block and without the block itself."""
    parts = path.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))


def _fed_by_activation(trace: BlockTrace, projection: str, x: Tensor) -> Match | None:
    """x: [tokens, units], what the projection was given."""
    units = x.shape[-1]
    sources = list(_sources(trace, projection, units))
    for path, module in trace.modules.items():
        call = trace.once(path) if path and _may_be_activation(module) else None
        if call is None or call.output is None or len(call.inputs) != 1 or call.output.shape[-1] != units:
            continue
        given, made = call.inputs[0].reshape(-1, units), call.output.reshape(-1, units)
        if made.shape != x.shape or same(given, made):
            continue
        gate = next((source for source in sources if same(source.value, given)), None)
        if gate is None:
            continue
        match = _closed(projection, x, gate, made, sources, path, functions.recognise(module))
        if match is not None:
            return match
    return _fed_by_function(projection, x, sources)


def _fed_by_function(projection: str, x: Tensor, sources: list[_Source]) -> Match | None:
    """As _fed_by_activation, where the model's code calls the function itself, whose name stays unknown."""
    if not x.any():
        return None
    for gate in sources:
        for function in FUNCTIONS:
            match = _closed(projection, x, gate, activate(function, gate.value), sources, None, None)
            if match is not None:
                return match
    return None


def _closed(
    projection: str, x: Tensor, gate: _Source, made: Tensor, sources: list[_Source], activation: str | None,
    function: str | None,
) -> Match | None:  # fmt: skip
    """The match that makes x of `made` = f(gate), alone or times another source; made: [tokens, units]."""
    equal = same if activation is not None else near
    units = x.shape[-1]
    if gate.half is None and equal(made, x):
        return Match(projection, units, activation, function, gate.path, None, "separate")
    for up in sources:
        if (gate.half is None) != (up.half is None) or not equal(made * up.value, x):
            continue
        if gate.half is None and up.path != gate.path:
            return Match(projection, units, activation, function, gate.path, up.path, "separate")
        if gate.half is not None and up.path == gate.path and up.half != gate.half:
            packing: Packing = "gate first" if gate.half == 0 else "up first"
            return Match(projection, units, activation, function, gate.path, None, packing)
    return None


def _sources(trace: BlockTrace, projection: str, units: int) -> Iterator[_Source]:
    for path in linear_paths(trace):
        call = trace.once(path)
        if path == projection or call is None or call.output is None:
            continue
        value = call.output.reshape(-1, call.output.shape[-1])
        if value.shape[-1] == units:
            yield _Source(path, None, value)
        elif value.shape[-1] == 2 * units:
            yield _Source(path, 0, value[:, :units])
            yield _Source(path, 1, value[:, units:])


def _may_be_activation(module: nn.Module) -> bool:
    return not is_linear(module) and next(module.children(), None) is None


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit in all but shape, NaN being equal to NaN."""
    if a.numel() != b.numel() or a.dtype != b.dtype:
        return False
    a, b = a.reshape(-1), b.reshape(-1)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def near(a: Tensor, b: Tensor) -> bool:
    """Equal within what two ways to write one function differ by."""
    if a.numel() != b.numel():
        return False
    tolerance = max(1e-5, 4 * torch.finfo(b.dtype).eps)
    return torch.allclose(a.float().reshape(-1), b.float().reshape(-1), rtol=tolerance, atol=tolerance * 0.1)
