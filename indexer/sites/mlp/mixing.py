"""Blocks without an MLP, as those of attention or of a recurrence alone: told by what they do with tokens.

What an MLP projects at a token follows from that token. So where a block has one projection, and everything
that this is given at later tokens depends on the first one, the block has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from indexer.models import LoadedModel
from indexer.models.forward import call_model
from indexer.models.trace import BlockTrace


@dataclass(frozen=True)
class Projecting:
    """A block with one projection, in one forward pass.

    inputs: the tensors that the block was given, in order. given: what the projection was, [..., units].
    """

    block: nn.Module
    projection: nn.Module
    inputs: list[Tensor]
    given: Tensor

    @classmethod
    def of(cls, trace: BlockTrace, path: str) -> Projecting:
        """path: of the projection, which ran once."""
        block, call = trace.once(""), trace.once(path)
        assert block is not None
        assert call is not None
        inputs = [tensor.clone() for tensor in block.inputs]
        return cls(trace.block, trace.modules[path], inputs, call.inputs[0].clone())


def without_mlp(loaded: LoadedModel, blocks: Mapping[str, Projecting]) -> set[str]:
    """Those of some blocks, by path, that have no MLP. Cost: a forward pass over 16 tokens."""
    given: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path, found in blocks.items():
            changed = _with_another_first_token(found.inputs)
            stack.enter_context(found.block.register_forward_pre_hook(changed, with_kwargs=True))
            stack.enter_context(found.projection.register_forward_pre_hook(_keeping(given, path)))
        call_model(loaded.model, loaded.sample.token_ids)
    return {path for path, found in blocks.items() if _mixes(found.given, given[path], loaded.rows)}


def _with_another_first_token(inputs: list[Tensor]) -> Callable[..., Any]:
    """A hook by which a block is given what it was before, but for the first token of each sequence."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        others = iter(inputs)
        first = next(others).clone()
        first[:, 0] = 2 * first[:, 0] + 1
        values = iter([first, *others])

        def again(value: Any) -> Any:
            return next(values) if isinstance(value, Tensor) else value

        return tuple(map(again, args)), {name: again(value) for name, value in kwargs.items()}

    return hook


def _keeping(given: dict[str, Tensor], path: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        given[path] = args[0].clone()

    return hook


def _mixes(before: Tensor, after: Tensor, rows: tuple[int, int]) -> bool:
    """Whether all channels of later tokens are others, but for those that are zero throughout."""
    before, after = (values.reshape(*rows, -1)[:, 1:].flatten(0, 1) for values in (before, after))
    alive = ((before != 0) | (after != 0)).any(dim=0)
    return bool(alive.any() and (before != after).any(dim=0)[alive].all())
