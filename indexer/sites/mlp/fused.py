"""The fused path: an MLP's forward, in place of the model's, with the statistics taken along the way.

Input linear layer, activation with statistics, output projection; over groups of whole sequences, so that the
wide activations of one group are still in cache when they are projected. They live in scratch memory that all
layers and batches share, and the activation function works in place, so nothing as wide as the MLP is ever
allocated or copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from indexer.models.matmul import linear
from indexer.models.probe import Group, Take, Values, Workspace, forward_of
from indexer.sites.hook import Hook
from indexer.sites.linear import Affine
from indexer.sites.mlp.compiled import traced
from indexer.sites.mlp.plan import FusedPlan


@dataclass(frozen=True, eq=False, kw_only=True)
class FusedMlp(Hook):
    """The probe of an MLP that is computed here; see models.probe.Probe."""

    plan: FusedPlan = field(repr=False)

    @property
    def fused(self) -> bool:
        """Whether the values are computed here."""
        return True

    @contextmanager
    def attach(self, take: Take, workspace: Workspace, last: bool) -> Iterator[None]:
        """Hand over group after group, before the activation function."""
        with ExitStack() as stack:
            # an exception, which ends the forward in the last layer, would break a compiled graph
            if workspace.compiled and not last:
                stack.enter_context(traced(workspace.model, self.plan, self._whole(take, workspace)))
            else:
                forward = FusedForward(self.plan, self.place, take, workspace, last)
                stack.enter_context(forward_of(self.plan.replaced, forward))
                for module in self.plan.bypassed:
                    stack.enter_context(forward_of(module, _hand_on))
            yield

    def read(self, reason: str) -> Hook:
        """The same neurons, read by a hook."""
        return Hook(
            key=self.key, units=self.units, keep=self.keep, place=self.place, module=self.module,
            facts=without_up(self.facts), reason=reason,
        )  # fmt: skip

    def _whole(self, take: Take, workspace: Workspace) -> Any:
        """Hands over a batch at once."""

        def activate(function: str, gate: Tensor, up: Tensor | None) -> None:
            workspace.check_rows(self.place, gate.shape[0])
            take(Values(gate, workspace.sequences, function, up))

        return activate


def without_up(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of an MLP that is read by a hook, which sees the product of a gated one alone."""
    return {**facts, "up": "not seen"} if facts["gated"] else facts


class FusedForward:
    """The forward of one MLP, to stand in for `plan.replaced.forward`.

    Called with x: [..., hidden] it returns [..., hidden]; with `last` its `take` does not return from the
    last group. Raises IndexerError where x has more or fewer rows than the batch.
    place: path of the output projection. Cost over the plain forward: none, for it allocates less.
    """

    def __init__(
        self, plan: FusedPlan, place: str, take: Take, workspace: Workspace, last: bool = False
    ) -> None:
        self.plan = plan
        self.place = place
        self.take = take
        self.workspace = workspace
        self.last = last

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        (x,) = args or kwargs.values()
        rows = x.reshape(-1, x.shape[-1])  # [tokens, hidden]
        self.workspace.check_rows(self.place, rows.shape[0])
        out = None if self.last else rows.new_empty(rows.shape[0], self.plan.projection.outputs)
        for group in self.workspace.groups:
            activations = self._activations(rows[group.first_row : group.last_row], group)
            if out is not None:
                self._project(activations, out[group.first_row : group.last_row])
        assert out is not None, "the forward pass ends with the last probe"
        return out.view(*x.shape[:-1], -1)

    def _activations(self, x: Tensor, group: Group) -> Tensor:
        """x: [rows, hidden]; returns [rows, units] in scratch memory."""
        plan = self.plan
        gate = self._wide(plan.gate, x, slot=0)
        up = None
        if plan.packing == "gate first":
            gate, up = gate.chunk(2, dim=-1)
        elif plan.packing == "up first":
            up, gate = gate.chunk(2, dim=-1)
        elif plan.up is not None:
            up = self._wide(plan.up, x, slot=1)
        follow = group is not self.workspace.groups[-1]
        self.take(Values(gate, group.sequences, plan.function, up, rows_follow=follow))
        return gate

    def _wide(self, affine: Affine, x: Tensor, slot: int) -> Tensor:
        if self.workspace.onednn:
            return linear(x, affine.weight.t(), affine.bias)
        return affine.into(x, self.workspace.take(slot, x.shape[0], affine.outputs, x))

    def _project(self, activations: Tensor, out: Tensor) -> None:
        affine = self.plan.projection
        if self.workspace.onednn:
            out.copy_(linear(activations, affine.weight.t(), affine.bias))
        else:
            affine.into(activations, out)


def _hand_on(x: Tensor) -> Tensor:
    return x
