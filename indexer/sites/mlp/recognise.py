"""Recognising an MLP in a trace of its block, by values: what is projected equals f(gate) or f(gate) * up.

No names are consulted. A linear layer is an MLP's output projection if what it was given is, bit for bit, the
output of an activation module that was given the output of another linear layer (or half of it), alone or
times the output of a linear layer (or the other half). Attention's output projection is never fed like that.
What may stand in the way: the gate may be changed before its activation module if there is an up, and a
module may lie between the product and the projection; such an MLP is read by hook.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from indexer_kernels.activations import FUNCTIONS, activate
from torch import Tensor, nn

from indexer.models.trace import BlockTrace
from indexer.sites.linear import Affine, is_linear
from indexer.sites.mlp import functions
from indexer.sites.mlp.plan import FusedPlan, Packing


@dataclass(frozen=True)
class Match:
    """One MLP within a block, by paths of modules within the block.

    activation: the module of the activation function, None if it is a plain function call inside the model's
    code.
    function: its name among the kernels' FUNCTIONS, None if it is none of them.
    gate, up: linear layers; gate is None if what it makes is changed before the activation; up is None if
    there is none, or if gate's output holds both (packing).
    between: a module, a normalisation say, through which the product goes to the projection.
    """

    projection: str
    units: int
    activation: str | None
    function: str | None
    gate: str | None
    up: str | None
    packing: Packing
    between: str | None = None

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


def matches(trace: BlockTrace, tokens: tuple[int, int], only: str | None = None) -> list[Match]:
    """All MLPs of a block, or the one with the projection `only`.

    tokens: of how many sequences, and of how many tokens each, the batch was that the trace was run with.
    """
    block = trace.once("")
    if block is None or block.output is None:
        return []
    hidden = block.output.shape[-1]
    found = []
    for path in linear_paths(trace) if only is None else [only]:
        call = trace.once(path)
        if call is None or call.output is None or len(call.inputs) != 1 or call.output.shape[-1] != hidden:
            continue
        if not is_by_token(call.inputs[0], tokens):
            continue
        x = call.inputs[0].reshape(-1, call.inputs[0].shape[-1])
        match = _fed_by_activation(trace, path, x) or _fed_through_module(trace, path, x)
        if match is not None:
            found.append(match)
    return found


def is_by_token(x: Tensor, tokens: tuple[int, int]) -> bool:
    """Whether the rows of x, [..., units], are the tokens of a batch [sequences, width], in order."""
    return [size for size in x.shape[:-1] if size != 1] in ([*tokens], [tokens[0] * tokens[1]])


def plan(trace: BlockTrace, match: Match, shared: set[int]) -> FusedPlan | str:
    """How to compute the matched MLP in one pass, or why that cannot be done.

    shared: ids of modules that more than one block uses, which therefore cannot be bypassed.
    """
    modules = trace.modules
    if match.between is not None:
        return f"{type(modules[match.between]).__name__} lies between the MLP and its output projection"
    if match.gate is None:
        return "the gate is changed before the activation function"
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
    whole, gate, projection = trace.once(path), trace.once(match.gate or ""), trace.once(match.projection)
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
    sources = list(_sources(trace, projection, x))
    for path, module in trace.modules.items():
        call = trace.once(path) if path and _may_be_activation(module) else None
        if call is None or call.output is None or len(call.inputs) != 1 or call.output.shape[-1] != units:
            continue
        given, made = call.inputs[0], call.output
        if given.shape != made.shape or made.numel() != x.numel() or same(given, made):
            continue
        given, made = given.reshape(-1, units), made.reshape(-1, units)
        gate = next((source for source in sources if same(source.value, given)), None)
        if gate is None:
            match = _closed_without_gate(projection, x, made, sources, path)
        else:
            match = _closed(projection, x, gate, made, sources, path)
        if match is not None and functions.is_activation(module, call.inputs[0]):
            return replace(match, function=functions.recognise(module))
    return _fed_by_function(projection, x, sources)


def _fed_through_module(trace: BlockTrace, projection: str, x: Tensor) -> Match | None:
    """As _fed_by_activation, for a projection that is given what a module without parts makes of it."""
    for path, module in trace.modules.items():
        call = trace.once(path) if path and _may_be_activation(module) else None
        if call is None or call.output is None or len(call.inputs) != 1 or not same(call.output, x):
            continue
        if call.inputs[0].shape == call.output.shape:
            match = _fed_by_activation(trace, projection, call.inputs[0].reshape(x.shape))
            if match is not None:
                return replace(match, between=path)
    return None


def _fed_by_function(projection: str, x: Tensor, sources: list[_Source]) -> Match | None:
    """As _fed_by_activation, where the model's code calls the function itself, whose name stays unknown."""
    if not x.any():
        return None
    for gate in sources:
        for function in FUNCTIONS:
            match = _closed(projection, x, gate, activate(function, gate.value), sources, None)
            if match is not None:
                return match
    return None


def _closed(
    projection: str, x: Tensor, gate: _Source, made: Tensor, sources: list[_Source], activation: str | None
) -> Match | None:
    """The match that makes x of `made` = f(gate), alone or times another source; made: [tokens, units]."""
    equal = same if activation is not None else near
    units = x.shape[-1]
    if gate.half is None and equal(made, x):
        return Match(projection, units, activation, None, gate.path, None, "separate")
    for up in sources:
        if (gate.half is None) != (up.half is None) or not equal(made * up.value, x):
            continue
        if gate.half is None and up.path != gate.path:
            return Match(projection, units, activation, None, gate.path, up.path, "separate")
        if gate.half is not None and up.path == gate.path and up.half != gate.half:
            packing: Packing = "gate first" if gate.half == 0 else "up first"
            return Match(projection, units, activation, None, gate.path, None, packing)
    return None


def _closed_without_gate(
    projection: str, x: Tensor, made: Tensor, sources: list[_Source], activation: str
) -> Match | None:
    """As _closed, for a module f that was given no source: its output times one."""
    for up in sources:
        if up.half is None and same(made * up.value, x):
            return Match(projection, x.shape[-1], activation, None, None, up.path, "separate")
    return None


def _sources(trace: BlockTrace, projection: str, x: Tensor) -> Iterator[_Source]:
    """Outputs, and halves of outputs, of the shape of x, which is [tokens, units]."""
    tokens, units = x.shape
    for path in linear_paths(trace):
        call = trace.once(path)
        if path == projection or call is None or call.output is None:
            continue
        value = call.output.reshape(-1, call.output.shape[-1])
        # a layer may project something else than tokens, as the distances between them
        if value.shape[0] != tokens:
            continue
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
