"""The site `attn`: input channels of every attention's output projection, head after head.

The projection is found by what it computes, without names. While a small batch runs, the product of each head
is multiplied by a number of its own, a power of two: the linear layer whose input is then what it was before,
each head's share of it times that head's number, bit for bit, is the projection. So its channels are those of
the heads, in order, and nothing but a gate lies in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from indexer.errors import IndexerError
from indexer.models import LoadedModel
from indexer.models.forward import call_model
from indexer.models.sample import SEQUENCES
from indexer.models.trace import BlockTrace, traced
from indexer.names import ATTN, Key
from indexer.sites.asked import Asked
from indexer.sites.blocks import block_lists, blocks_of, blocks_with
from indexer.sites.hook import Hook
from indexer.sites.linear import is_linear
from indexer.sites.patterns import by_head

_LEAVE = "leave attn and heads out of --sites"
# numbers of heads are 2 to the power of 1 to _POWERS: exact in every dtype, and small enough for float16
_POWERS = 5


def find(loaded: LoadedModel, asked: Asked) -> list[Hook]:
    """The input of the output projection of every block that has attention.

    Raises IndexerError where there is attention whose projection is not found, and where there is none.
    Cost: two forward passes over 16 tokens; memory for what they give to the linear layers of all blocks.
    """
    found = {path: _Block(block) for path, block in blocks_of(block_lists(loaded)).items()}

    def finished(path: str, trace: BlockTrace) -> None:
        found[path].inputs.append(_linear_inputs(trace))

    ids = loaded.sample.token_ids
    with traced({path: block.module for path, block in found.items()}, finished):
        call_model(loaded.model, ids)
    with _Numbered() as products, ExitStack() as stack:
        for block in found.values():
            stack.enter_context(block.watched(products))
        call_model(loaded.model, ids)

    model = f"model {loaded.provenance['architecture']}"
    runs = {path: len(block.inputs) for path, block in found.items()}
    wanted = f"attention that torch's own functions compute; {_LEAVE}"
    return [
        found[path].probe(Key(ATTN, number), path, asked, model)
        for number, path in enumerate(blocks_with(loaded, runs, lambda path: found[path].products, wanted))
        if found[path].products
    ]


class _Numbered(TorchFunctionMode):
    """While it is entered, and within a block, the product of every head is multiplied by the head's number.

    heads: of the last product, [heads] float32 numbers; None before the first. inside: whether a block runs.
    """

    heads: Tensor | None = None
    inside: bool = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        found = by_head(func, output, SEQUENCES) if self.inside else None
        if found is None:
            return output
        self.heads = _numbers(found.shape[1])
        numbers = self.heads.to(output).view(-1, *[1] * (found.ndim - 2))
        return (found * numbers).view_as(output)


@dataclass
class _Block:
    """One block in both passes.

    inputs: of each run, what its linear layers were given, by path. products: whether it has attention.
    projections: linear layers that were given the products of heads, and how many heads.
    """

    module: nn.Module
    inputs: list[dict[str, Tensor]] = field(default_factory=list)
    products: bool = False
    projections: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def watched(self, numbered: _Numbered) -> Iterator[None]:
        """In the second pass: projections are found, and go on with what they were given in the first."""

        def begins(module: nn.Module, args: Any) -> None:
            numbered.heads, numbered.inside = None, True

        def ends(module: nn.Module, args: Any, output: Any) -> None:
            self.products |= numbered.heads is not None
            numbered.inside = False

        with ExitStack() as stack:
            stack.enter_context(self.module.register_forward_pre_hook(begins))
            stack.enter_context(self.module.register_forward_hook(ends))
            for path in self.inputs[0] if self.inputs else ():
                given = self._given(path, numbered)
                module = self.module.get_submodule(path)
                stack.enter_context(module.register_forward_pre_hook(given, with_kwargs=True))
            yield

    def _given(self, path: str, numbered: _Numbered) -> Callable[..., Any]:
        before = self.inputs[0][path]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            heads = numbered.heads
            x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            if heads is None or not _is_numbered(x, before, heads):
                return None
            self.projections[path] = len(heads)
            return (
                tuple(before if value is x else value for value in args),
                {name: before if value is x else value for name, value in kwargs.items()},
            )

        return hook

    def probe(self, key: Key, path: str, asked: Asked, model: str) -> Hook:
        """path: of the block. model: as messages name it. Raises IndexerError where it cannot be told."""
        own = {path: heads for path, heads in self.projections.items() if not self._crosses(path)}
        if len(own) != 1:
            found = ", ".join(own)
            what = f"more than one linear layer is ({found})" if found else "no linear layer is"
            raise IndexerError(
                f"{model}: {path} ({type(self.module).__name__}) has attention whose output projection is "
                f"not recognised: it would be given the products of heads side by side, and {what}; {_LEAVE}"
            )
        ((within, heads),) = own.items()
        crossing = {"cross_attention": "not indexed"} if len(own) < len(self.projections) else {}
        return Hook(
            key=key, units=self.inputs[0][within].shape[-1], keep=asked.keep, place=f"{path}.{within}",
            module=self.module.get_submodule(within), facts={"heads": heads, **crossing},
        )  # fmt: skip

    def _crosses(self, projection: str) -> bool:
        """Whether it is that of an attention to another stack: one that is given rows of that stack, too."""
        attention = projection.rpartition(".")[0]
        rows = {
            x.shape[:-1].numel()
            for path, x in self.inputs[0].items()
            if attention and path.startswith(f"{attention}.")
        }
        return len(rows) > 1


def _linear_inputs(trace: BlockTrace) -> dict[str, Tensor]:
    """What every linear layer that ran once was given."""
    linear = (path for path, module in trace.modules.items() if path and is_linear(module))
    calls = ((path, trace.once(path)) for path in linear)
    return {path: call.inputs[0].clone() for path, call in calls if call and len(call.inputs) == 1}


def _numbers(heads: int) -> Tensor:
    """A power of two for every head, float32 [heads]: neighbours differ, and no period is the heads' own."""
    number = torch.arange(heads, device="cpu")
    return 2.0 ** (1 + (number + number // _POWERS) % _POWERS)


def _is_numbered(x: Tensor, before: Tensor, heads: Tensor) -> bool:
    """Whether x is what it was before, times the number of the head whose share of its channels that is."""
    width = x.shape[-1]
    if x.shape != before.shape or width % len(heads) or not before.any():
        return False
    return torch.equal(x, before * heads.repeat_interleave(width // len(heads)).to(before))
