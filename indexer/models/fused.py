"""The fused path: an MLP's forward, in place of the model's, with the statistics taken along the way.

Input linear layer, activation with statistics, output projection; over groups of whole sequences, so that the
wide activations of one group are still in cache when they are projected. They live in scratch memory that all
layers and batches share, and the activation function works in place, so nothing as wide as the MLP is ever
allocated or copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models.matmul import linear
from indexer.models.plan import Affine, FusedPlan

if TYPE_CHECKING:
    from indexer_kernels.sequences import Sequences

# f(gate) or f(gate) * up over the rows of some sequences, into out
Activate = Callable[[str, Tensor, Tensor | None, "Sequences", Tensor], Tensor]


class LastLayerDone(Exception):  # noqa: N818 - a signal, no error
    """Raised out of the model's forward once the last layer asked for has its activations."""


@dataclass(frozen=True)
class Group:
    """Some consecutive sequences of a batch: their rows in [tokens, units], and what those rows are."""

    first_row: int
    last_row: int
    sequences: Sequences


@dataclass
class Workspace:
    """What all layers share during a run: the groups of the present batch, and scratch memory."""

    groups: Sequence[Group] = ()
    scratch: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the present batch, padding included."""
        return self.groups[-1].last_row

    def take(self, slot: int, rows: int, width: int, like: Tensor) -> Tensor:
        """Uninitialised [rows, width], dtype and device as `like`; valid until the slot is taken again."""
        memory = self.scratch.get((slot, like.device))
        wanted = rows * width
        if memory is None or memory.numel() < wanted or memory.dtype != like.dtype:
            # what there is goes first, so that memory need not hold both
            self.scratch.pop((slot, like.device), None)
            memory = None
            memory = torch.empty(wanted, dtype=like.dtype, device=like.device)
            self.scratch[slot, like.device] = memory
        return memory[:wanted].view(rows, width)


class FusedForward:
    """The forward of one MLP, to stand in for `plan.replaced.forward`.

    Called with x: [..., hidden] it returns [..., hidden]; with `last` it raises LastLayerDone once the
    activations of all groups are made. Raises IndexerError where x has more or fewer rows than the batch.
    place: path of the output projection. Cost over the plain forward: none, for it allocates less.
    """

    def __init__(
        self,
        plan: FusedPlan,
        place: str,
        activate: Activate,
        workspace: Workspace,
        last: bool = False,
        onednn: bool = False,
    ) -> None:
        self.plan = plan
        self.place = place
        self.activate = activate
        self.workspace = workspace
        self.last = last
        self.onednn = onednn

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        (x,) = args or kwargs.values()
        rows = x.reshape(-1, x.shape[-1])  # [tokens, hidden]
        check_rows(self.place, rows.shape[0], self.workspace.rows)
        out = None if self.last else rows.new_empty(rows.shape[0], self.plan.projection.outputs)
        for group in self.workspace.groups:
            activations = self._activations(rows[group.first_row : group.last_row], group.sequences)
            if out is not None:
                self._project(activations, out[group.first_row : group.last_row])
        if out is None:
            raise LastLayerDone
        return out.view(*x.shape[:-1], -1)

    def _activations(self, x: Tensor, sequences: Sequences) -> Tensor:
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
        return self.activate(plan.function, gate, up, sequences, gate)

    def _wide(self, affine: Affine, x: Tensor, slot: int) -> Tensor:
        if self.onednn:
            return linear(x, affine.weight.t(), affine.bias)
        return affine.into(x, self.workspace.take(slot, x.shape[0], affine.outputs, x))

    def _project(self, activations: Tensor, out: Tensor) -> None:
        affine = self.plan.projection
        if self.onednn:
            out.copy_(linear(activations, affine.weight.t(), affine.bias))
        else:
            affine.into(activations, out)


def check_rows(place: str, rows: int, tokens: int) -> None:
    """Raises IndexerError where an MLP is not given one row for every token of a batch."""
    if rows != tokens:
        raise IndexerError(
            f"{place}: the model gives its MLP {rows} rows for a batch of {tokens} tokens, so which row is "
            "which token cannot be told; this model, or this layer (see --layers), cannot be indexed"
        )


@contextmanager
def installed(plan: FusedPlan, forward: FusedForward) -> Iterator[None]:
    """Within the block, calls of the model's MLP go to `forward`; afterwards the model is as it was."""
    with ExitStack() as replaced:
        replaced.enter_context(forward_of(plan.replaced, forward))
        for module in plan.bypassed:
            replaced.enter_context(forward_of(module, _hand_on))
        yield


def _hand_on(x: Tensor) -> Tensor:
    return x


@contextmanager
def forward_of(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replaces `module.forward` on this one instance."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
