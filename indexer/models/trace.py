"""What every module of a model's blocks was given and returned in one small forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call: its tensor arguments, whether it had others, and the tensor it returned, if any."""

    inputs: tuple[Tensor, ...]
    other_arguments: bool
    output: Tensor | None


class BlockTrace:
    """The calls of all modules of one block, by path within the block; "" is the block itself.

    Only the modules called exactly once are of use to us.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.modules = dict(block.named_modules())
        self.calls: dict[str, list[Call]] = {}

    def once(self, path: str) -> Call | None:
        """The call of a module that was called exactly once; None for any other."""
        calls = self.calls.get(path, [])
        return calls[0] if len(calls) == 1 else None

    def record(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Note a call of the module at `path`, as a forward hook is told of it."""
        values = [value for value in (*args, *kwargs.values()) if value is not None]
        tensors = tuple(value for value in values if isinstance(value, Tensor))
        result = output[0] if isinstance(output, tuple | list) and output else output
        call = Call(tensors, len(tensors) != len(values), result if isinstance(result, Tensor) else None)
        self.calls.setdefault(path, []).append(call)


@contextmanager
def traced(blocks: dict[str, nn.Module], finished: Callable[[str, BlockTrace], None]) -> Iterator[None]:
    """Within the block, `finished(name, trace)` is called whenever one of `blocks` returns.

    The trace is dropped after that, so memory is that of one block, not of the model.
    """
    handles = []
    for name, block in blocks.items():
        trace = BlockTrace(block)
        for path, module in trace.modules.items():
            if path:
                handles.append(module.register_forward_hook(partial(trace.record, path), with_kwargs=True))
        finish = partial(_finish, trace, name, finished)
        handles.append(block.register_forward_hook(finish, with_kwargs=True))
        # a module that blocks share has been called by others before
        handles.append(block.register_forward_pre_hook(partial(_begin, trace)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _begin(trace: BlockTrace, *call: Any) -> None:
    trace.calls.clear()


def _finish(trace: BlockTrace, name: str, finished: Callable[[str, BlockTrace], None], *call: Any) -> None:
    trace.record("", *call)
    finished(name, trace)
    trace.calls.clear()
