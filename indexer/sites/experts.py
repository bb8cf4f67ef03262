"""The site `experts`: neurons of routed experts, the input channels of each one's output projection.

In nearly all of transformers' mixtures a module holds the weights of all experts of a layer, stacked, and is
given the tokens, which experts each one passes, and with what weights; what it does with them is the same in
all, up to the activation function (transformers.integrations.moe). Here it is done expert by expert, so that
one's activations are taken while they are in cache, and never exist for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from indexer_kernels.activations import FUNCTIONS, activate
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
from indexer.sites.linear import Affine
from indexer.sites.mlp.fused import without_up

_LEAVE = "leave experts out of --sites"


def find(loaded: LoadedModel, asked: Asked) -> list[Hook]:
    """The routed experts of every block that has some.

    Raises IndexerError where there are none, or where it cannot be told which they are, and on a GPU.
    Cost: a forward pass over 16 tokens.
    """
    model = f"model {loaded.provenance['architecture']}"
    if loaded.device.type != "cpu":
        raise IndexerError(
            f"{model}: experts are gathered on the CPU alone, as yet; take --device cpu, or {_LEAVE}"
        )
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
        number = len(plan.projections)
        facts = {"function": plan.function, "gated": plan.gated, "experts": number, "per_token": per_token}
        found = RoutedExperts(
            key=key, units=number * plan.width, keep=asked.keep, place=f"{self.path}.{within}",
            module=module, facts=facts, plan=plan, per_token=per_token,
        )  # fmt: skip
        if plan.function is None:
            return found.read(f"no fused kernel for its activation (there is: {', '.join(FUNCTIONS)})")
        return found


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is one of those that transformers.integrations.moe computes."""
    stacked = getattr(module, "down_proj", None)
    named = all(hasattr(module, name) for name in ("is_transposed", "has_bias", "_apply_gate"))
    return named and isinstance(stacked, nn.Parameter) and stacked.ndim == 3


@dataclass(frozen=True)
class Stack:
    """All experts of a layer, each as projection(f(gate(x))) or projection(f(gate(x)) * up(x)).

    gates: of each the linear layer into its neurons, with both factors side by side where it is gated.
    projections: of each the output projection. width: neurons of one. function: the kernels' name of f, None
    where the module's own code is to make the neurons; gated: whether there is an up.
    """

    module: Any
    gates: list[Affine]
    projections: list[Affine]
    width: int
    function: str | None
    gated: bool

    @classmethod
    def of(cls, module: Any) -> Stack:
        """That of a module that `_is_stack`."""
        gated = getattr(module, "has_gate", True)
        projections = _affines(module, "down_proj")
        gates = _affines(module, "gate_up_proj" if gated else "up_proj")
        return cls(module, gates, projections, len(projections[0].weight), _function(module, gated), gated)

    def neurons(self, x: Tensor) -> Tensor:
        """What the model makes of [rows, outputs of the gate]: the neurons, [rows, width]."""
        return self.module._apply_gate(x) if self.gated else self.module.act_fn(x)

    def normed(self, x: Tensor) -> Tensor:
        """What an expert returns of [rows, outputs of its projection], which some models change once more."""
        module = self.module
        return module.post_expert_norm(x) if getattr(module, "has_post_expert_norm", False) else x


def _affines(module: Any, name: str) -> list[Affine]:
    weights = getattr(module, name).detach()
    weights = weights if module.is_transposed else weights.mT
    biases = getattr(module, f"{name}_bias").detach() if module.has_bias else [None] * len(weights)
    return [Affine(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _function(module: Any, gated: bool) -> str | None:
    """The kernels' name of the activation function, where it is applied as they do, to the first half.

    It is asked what it makes of values up to 64: clipped forms differ only far out.
    """
    gate = torch.linspace(-64, 64, 8192).view(-1, 64)
    up = gate.t().reshape(gate.shape)
    found = module._apply_gate(torch.cat([gate, up], dim=1)) if gated else module.act_fn(gate)
    for name in FUNCTIONS:
        if torch.allclose(found, activate(name, gate, up if gated else None), rtol=1e-5, atol=1e-5):
            return name
    return None


@dataclass(frozen=True, eq=False, kw_only=True)
class RoutedExperts(Hook):
    """The probe of a layer of experts, which are computed here; see models.probe.Probe."""

    plan: Stack = field(repr=False)
    per_token: int

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
        """Hand over expert after expert."""
        with forward_of(self.module, _Forward(self, take, workspace, last)):
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
            gate, up = self._product(rows[tokens], plan.gates[expert], slot=0), None
            if plan.function is None:
                gate = plan.neurons(gate)
            elif plan.gated:
                gate, up = gate.chunk(2, dim=1)
            sequences, follow = replace(self.workspace.sequences, at=token), number < len(routes)
            first = expert * plan.width
            self.take(Values(gate, sequences, plan.function, up, first=first, parts_follow=follow))
            if out is not None:
                made = plan.normed(self._product(gate, plan.projections[expert], slot=1))
                weight = weights.new_zeros(len(token), 1)
                weight.index_add_(0, torch.from_numpy(row), weights[torch.from_numpy(slots)])
                out.index_add_(0, tokens, (made * weight).float())
        assert out is not None, "the forward pass ends with the last probe"
        return out.to(x.dtype).view(x.shape)

    def _product(self, x: Tensor, affine: Affine, slot: int) -> Tensor:
        x = x.to(affine.weight.dtype)
        if self.workspace.onednn:
            return linear(x, affine.weight.t(), affine.bias)
        return affine.into(x, self.workspace.take(slot, x.shape[0], affine.outputs, x))


def _routes(index: NDArray[np.int64], experts: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Every expert that some tokens pass, and which entries of [tokens, per token] they are; one at least.

    An entry that is no expert's number is a token that passes one less.
    """
    flat = index.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ends = np.searchsorted(flat[order], np.arange(experts + 1))
    routes = [(expert, order[ends[expert] : ends[expert + 1]]) for expert in range(experts)]
    return [route for route in routes if len(route[1])] or routes[:1]
