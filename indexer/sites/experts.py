"""The site `experts`: neurons of routed experts, the input channels of each one's output projection.

In nearly all of transformers' mixtures a module holds the weights of all experts of a layer, stacked, and is
given the tokens, which experts each one passes, and with what weights; what it does with them is the same in
all, up to the activation function (transformers.integrations.moe). DBRX has the factors of its neurons in two
matrices instead of one. On the CPU it is done here expert by expert, so that one's activations are taken
while they are in cache, and never exist for all; on a GPU for all at once, by torch's products of groups of
rows, so that the host need not know what is routed where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from indexer_kernels.activations import FUNCTIONS, activate
from indexer_kernels.routes import Routes, repeats
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models import LoadedModel
from indexer.models.forward import call_model
from indexer.models.matmul import linear
from indexer.models.probe import Take, Values, Workspace, forward_of
from indexer.names import EXPERTS, Experts, Key
from indexer.sites.asked import Asked
from indexer.sites.blocks import block_lists, blocks_of, blocks_with
from indexer.sites.hook import Hook
from indexer.sites.linear import Affine, is_of_dbrx
from indexer.sites.mlp.fused import without_up

_LEAVE = "leave experts out of --sites"


def find(loaded: LoadedModel, asked: Asked) -> list[Hook]:
    """The routed experts of every block that has some.

    Raises IndexerError where there are none, or where it cannot be told which they are.
    Cost: a forward pass over 16 tokens.
    """
    model = f"model {loaded.provenance['architecture']}"
    blocks = {path: _Block(path, block) for path, block in blocks_of(block_lists(loaded)).items()}
    with ExitStack() as stack:
        for block in blocks.values():
            stack.enter_context(block.watched())
        call_model(loaded.model, loaded.sample.token_ids)
    runs = {path: block.runs for path, block in blocks.items()}
    wanted = f"routed experts in a module of transformers' usual form; {_LEAVE}"
    return [
        blocks[path].probe(Key(EXPERTS, number), asked, model)
        for number, path in enumerate(blocks_with(loaded, runs, lambda path: blocks[path].routed, wanted))
        if blocks[path].routed
    ]


@dataclass
class _Block:
    """A block, and how often it ran.

    routed: by paths within it, its experts: how many a token passed, each time that they ran.
    """

    path: str
    module: nn.Module
    runs: int = 0
    routed: dict[str, list[int]] = field(default_factory=dict)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block what runs is noted."""

        def ran(module: nn.Module, args: Any) -> None:
            self.runs += 1

        def routes(path: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                _, index, _ = (*args, *kwargs.values())
                self.routed.setdefault(path, []).append(index.shape[-1])

            return hook

        with ExitStack() as stack:
            stack.callback(self.module.register_forward_pre_hook(ran).remove)
            for path, module in self.module.named_modules():
                if _is_stack(module):
                    stack.callback(module.register_forward_pre_hook(routes(path), with_kwargs=True).remove)
            yield

    def probe(self, key: Key, asked: Asked, model: str) -> RoutedExperts:
        """Raises IndexerError for a block with experts in several places, or that run again."""
        if [len(times) for times in self.routed.values()] != [1]:
            there = ", ".join(f"{path} ({len(times)} times)" for path, times in self.routed.items())
            raise IndexerError(
                f"{model}: {self.path} runs experts more than once ({there}), and which are meant by {key} "
                f"cannot be told; {_LEAVE}"
            )
        ((within, (per_token,)),) = self.routed.items()
        module = self.module.get_submodule(within)
        plan = Stack.of(module)
        number, grouped = len(plan.projections), is_grouped(module)
        if grouped and not plan.aligned:
            raise IndexerError(
                f"{model}: {self.path}.{within} has weights whose rows are no multiples of 16 bytes, as "
                f"grouped products on a GPU take them; take --device cpu, or {_LEAVE}"
            )
        facts = {"function": plan.function, "gated": plan.gated, "experts": number, "per_token": per_token}
        found = RoutedExperts(
            key=key, units=number * plan.width, keep=asked.keep, place=f"{self.path}.{within}",
            module=module, facts=facts, plan=plan, per_token=per_token, grouped=grouped,
        )  # fmt: skip
        if plan.function is None:
            return found.read(f"no fused kernel for its activation (there is: {', '.join(FUNCTIONS)})")
        return found


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is one of those that transformers.integrations.moe computes, or of DBRX."""
    stacked = getattr(module, "down_proj", None)
    named = all(hasattr(module, name) for name in ("is_transposed", "has_bias", "_apply_gate"))
    return is_of_dbrx(module) or (named and isinstance(stacked, nn.Parameter) and stacked.ndim == 3)


def is_grouped(module: nn.Module) -> bool:
    """Whether all experts of a module are computed at once."""
    return next(module.parameters()).device.type != "cpu"


@dataclass(frozen=True)
class Affines:
    """A linear layer of every expert: weight [experts, inputs, outputs], bias [experts, outputs] or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: Any, name: str) -> Affines:
        """The one whose weights have this name in a module that `_is_stack`."""
        weight = getattr(module, name).detach()
        bias = getattr(module, f"{name}_bias").detach() if module.has_bias else None
        return cls(weight if module.is_transposed else weight.mT, bias)

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, expert: int) -> Affine:
        return Affine(self.weight[expert], None if self.bias is None else self.bias[expert])

    def grouped(self, x: Tensor, routes: Routes) -> Tensor:
        """Rows through the experts that they are of; those of none come out as anything.

        In bfloat16 from compute capability 9.0 on it is one kernel; otherwise torch waits for the device, and
        goes from expert to expert.
        """
        out = nn.functional.grouped_mm(x.to(self.weight.dtype), self.weight, offs=routes.ends)
        return out if self.bias is None else out.add_(self.bias[routes.part.clamp(max=len(self) - 1)])


@dataclass(frozen=True)
class Stack:
    """All experts of a layer, each as projection(f(gate(x))) or projection(f(gate(x)) * up(x)).

    gates: of each the linear layer into its neurons, with both factors side by side where it is gated; or
    two, one for each factor. projections: of each the output projection. width: neurons of one. neurons: what
    the model makes of what the gates return, [rows, width]. gated: whether there is an up. function: the
    kernels' name of f, None where the module's own code is to make the neurons.
    """

    module: Any
    gates: tuple[Affines, ...]
    projections: Affines
    width: int
    neurons: Callable[..., Tensor]
    gated: bool
    function: str | None

    @classmethod
    def of(cls, module: Any) -> Stack:
        """That of a module that `_is_stack`."""
        gated = getattr(module, "has_gate", True)
        if is_of_dbrx(module):
            held, number = module.mlp, module.num_experts
            gate, up, down = (
                weight.detach().unflatten(0, (number, -1)) for weight in (held.w1, held.v1, held.w2)
            )
            gates: tuple[Affines, ...] = (Affines(gate.mT, None), Affines(up.mT, None))
            projections = Affines(down, None)
            neurons = _product_of(held.activation_fn)
        else:
            gates = (Affines.of(module, "gate_up_proj" if gated else "up_proj"),)
            projections = Affines.of(module, "down_proj")
            neurons = module._apply_gate if gated else module.act_fn
        function = _function(neurons, gated, len(gates))
        return cls(module, gates, projections, projections.weight.shape[1], neurons, gated, function)

    @property
    def aligned(self) -> bool:
        """Whether rows of all that is multiplied are multiples of 16 bytes, as torch.grouped_mm has it."""
        weights = [affines.weight for affines in (*self.gates, self.projections)]
        return all(side * weight.itemsize % 16 == 0 for weight in weights for side in weight.shape[1:])

    def factors(self, made: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Of what the gates return: what `function` is applied to, and the factor beside it.

        Where it is None the neurons themselves, and no factor.
        """
        if self.function is None:
            return self.neurons(*made), None
        if len(made) > 1 or not self.gated:
            return made[0], made[1] if self.gated else None
        gate, up = made[0].chunk(2, dim=1)
        return gate, up

    def normed(self, x: Tensor) -> Tensor:
        """What an expert returns of [rows, outputs of its projection], which some models change once more."""
        module = self.module
        return module.post_expert_norm(x) if getattr(module, "has_post_expert_norm", False) else x


def _product_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda gate, up: function(gate) * up


def _function(neurons: Callable[..., Tensor], gated: bool, gates: int) -> str | None:
    """The kernels' name of the activation function, where it is applied as they do, to the first factor.

    neurons, gated: as in Stack; gates: how many there are. They are asked what they make of values up to 64:
    clipped forms differ only far out.
    """
    gate = torch.linspace(-64, 64, 8192).view(-1, 64)
    up = gate.t().reshape(gate.shape)
    factors = [gate, up] if gated else [gate]
    found = neurons(*factors) if gates > 1 else neurons(torch.cat(factors, dim=1))
    for name in FUNCTIONS:
        if torch.allclose(found, activate(name, gate, up if gated else None), rtol=1e-5, atol=1e-5):
            return name
    return None


@dataclass(frozen=True, eq=False, kw_only=True)
class RoutedExperts(Hook):
    """The probe of a layer of experts, which are computed here; see models.probe.Probe.

    grouped: whether all are at once, and not one after the other.
    """

    plan: Stack = field(repr=False)
    per_token: int
    grouped: bool = False

    @property
    def experts(self) -> Experts:
        """How many there are, and how many a token passes."""
        return Experts(len(self.plan.projections), self.per_token)

    @property
    def width(self) -> int:
        """Neurons of an expert."""
        return self.plan.width

    @property
    def fused(self) -> bool:
        """Whether the values are computed here."""
        return True

    @property
    def provenance(self) -> dict[str, Any]:
        """For the manifest and `info`."""
        return {**super().provenance, "path": "fused" if self.plan.function else "hook"}

    def read(self, reason: str) -> RoutedExperts:
        """The same, with the neurons made by the model's own code and read then."""
        plan = replace(self.plan, function=None)
        return replace(self, plan=plan, facts=without_up(self.facts), reason=reason)

    @contextmanager
    def attach(self, take: Take, workspace: Workspace, last: bool) -> Iterator[None]:
        """Hand over expert after expert, or all of them with their routes."""
        forward = _Grouped if self.grouped else _Forward
        with forward_of(self.module, forward(self, take, workspace, last)):
            yield


@dataclass
class _Forward:
    """The forward of all experts of a layer, to stand in for that of their module.

    What they return is weighted as the model does, added up in float32, and rounded once. With `last` its
    `take` does not return from the last expert.
    """

    probe: RoutedExperts
    take: Take
    workspace: Workspace
    last: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """x: [tokens, hidden]; index: [tokens, per token], the experts of each; weights: as index."""
        x, index, weights = (*args, *kwargs.values())
        plan, rows, weights = self.probe.plan, x.reshape(-1, x.shape[-1]), weights.reshape(-1, 1)
        self.workspace.check_rows(self.probe.place, rows.shape[0])
        out = None if self.last else torch.zeros_like(rows, dtype=torch.float32)
        routes = _routes(index.numpy(), len(plan.projections))
        for number, (expert, slots) in enumerate(routes, 1):
            # a token that passes an expert twice is one row, whose weights are added
            token, row = np.unique(slots // index.shape[-1], return_inverse=True)
            tokens = torch.from_numpy(token)
            given = rows.index_select(0, tokens)
            products = (self._product(given, gates[expert], slot) for slot, gates in enumerate(plan.gates, 1))
            gate, up = plan.factors([*products])
            sequences, follow = replace(self.workspace.sequences, at=token), number < len(routes)
            first = expert * plan.width
            self.take(Values(gate, sequences, plan.function, up, first=first, parts_follow=follow))
            if out is not None:
                made = plan.normed(self._product(gate, plan.projections[expert], slot=0))
                weight = weights.new_zeros(len(token), 1)
                weight.index_add_(0, torch.from_numpy(row), weights[torch.from_numpy(slots)])
                # no token is there twice, so that this adds; index_add_ sorts them first
                out[tokens] = out.index_select(0, tokens).add_(made * weight)
        assert out is not None, "the forward pass ends with the last probe"
        return out.to(x.dtype).view(x.shape)

    def _product(self, x: Tensor, affine: Affine, slot: int) -> Tensor:
        x = x.to(affine.weight.dtype)
        if self.workspace.onednn:
            return linear(x, affine.weight.t(), affine.bias)
        return affine.into(x, self.workspace.take(slot, x.shape[0], affine.outputs, x))


@dataclass
class _Grouped(_Forward):
    """The same, of all experts at once."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """As _Forward."""
        x, index, weights = (*args, *kwargs.values())
        plan, rows = self.probe.plan, x.reshape(-1, x.shape[-1])
        self.workspace.check_rows(self.probe.place, rows.shape[0])
        routes = Routes.of(index, len(plan.projections))
        given = rows[routes.token]
        gate, up = plan.factors([gates.grouped(given, routes) for gates in plan.gates])
        self.take(Values(gate, self.workspace.sequences, plan.function, up, routes=routes))
        assert not self.last, "the forward pass ends with the last probe"
        made = plan.normed(plan.projections.grouped(gate, routes))
        # what is of no expert is whatever the memory held
        made = made.masked_fill((routes.part == routes.parts)[:, None], 0)[routes.row]
        # an expert that a token passes twice has the weights of both
        weights = torch.where(repeats(index), weights[:, None, :], 0).sum(dim=2)
        return (made * weights[:, :, None]).sum(dim=1, dtype=torch.float32).to(x.dtype).view(x.shape)


def _routes(index: NDArray[np.int64], experts: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Every expert that some tokens pass, and which entries of [tokens, per token] they are; one at least.

    An entry that is no expert's number is a token that passes one less.
    """
    flat = index.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ends = np.searchsorted(flat[order], np.arange(experts + 1))
    routes = [(expert, order[ends[expert] : ends[expert + 1]]) for expert in range(experts)]
    return [route for route in routes if len(route[1])] or routes[:1]
