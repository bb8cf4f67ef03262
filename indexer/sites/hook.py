"""The probe that works for every module: it reads what the model computed, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from indexer_kernels import Keep
from torch import Tensor, nn

from indexer.models.probe import Take, Values, Workspace
from indexer.names import Experts, Key


@dataclass(frozen=True, eq=False, kw_only=True)
class Hook:
    """Reads the first tensor that a module is given, or that it returns; see models.probe.Probe.

    facts: what the site knows of it, as JSON values. reason: why it is read so, where it could be otherwise.
    call: which of the module's calls in a forward pass it reads, from 0; None where there is but one.
    across: whether what it reads is [tokens, sequences, channels], and not [sequences, tokens, channels].
    """

    key: Key
    units: int
    keep: Keep
    place: str
    module: nn.Module = field(repr=False)
    returned: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    call: int | None = None
    across: bool = False

    @property
    def experts(self) -> Experts | None:
        """None: all units meet all tokens."""
        return None

    @property
    def width(self) -> int | None:
        """None: all units are handed over together."""
        return None

    @property
    def fused(self) -> bool:
        """Whether the values are computed here."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the module's weights are, its values are made, and their statistics belong."""
        return next(self.module.parameters()).device

    @property
    def provenance(self) -> dict[str, Any]:
        """For the manifest and `info`."""
        path = "fused" if self.fused else "hook"
        call = {} if self.call is None else {"call": self.call}
        return {"place": self.place, "path": path, **call, **self.facts, "reason": self.reason}

    @contextmanager
    def attach(self, take: Take, workspace: Workspace, last: bool) -> Iterator[None]:
        """Hand over every batch at once."""
        batch, calls = workspace.batch, 0

        def read(tensors: Any) -> None:
            nonlocal batch, calls
            batch, calls = workspace.batch, calls + 1 if batch == workspace.batch else 1
            if self.call not in (None, calls - 1):
                return
            # some modules are told more, as by what a quantised layer's input is scaled
            x = next(value for value in tensors if isinstance(value, Tensor))
            # the very matrix of the model: a view, unless a model hands on something transposed
            rows = (x.transpose(0, 1) if self.across else x).reshape(-1, x.shape[-1])
            workspace.check_rows(self.place, rows.shape[0])
            self.hand_over(rows, take, workspace)

        def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read((*args, *kwargs.values()))

        def returned(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            read(output if isinstance(output, tuple | list) else (output,))

        if self.returned:
            handle = self.module.register_forward_hook(returned)
        else:
            handle = self.module.register_forward_pre_hook(given, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def hand_over(self, rows: Tensor, take: Take, workspace: Workspace) -> None:
        """Hand over the units of [tokens, channels] rows, all of a batch."""
        values = self.values(rows)
        take(Values(values if values.stride(1) == 1 else values.contiguous(), workspace.sequences))

    def values(self, rows: Tensor) -> Tensor:
        """The units of [tokens, channels] rows: here those channels themselves."""
        return rows

    def within(self, stack: str) -> Hook:
        """The same in a stack of the model."""
        return replace(self, key=Key(f"{stack}.{self.key.site}", self.key.layer))

    def read(self, reason: str) -> Hook:
        """Itself."""
        return self
