"""Runs Gluon kernels in Triton's interpreter, which knows the Triton language alone.

A Gluon kernel is Triton plus layouts, shared memory and barriers. Here layouts are dropped, shared memory
is an array, a barrier does nothing, and everything else is handed to Triton's language as the interpreter
has it. What a layout does to speed and to the order of programs' threads is thus not tested; what is
computed is. The environment must have TRITON_INTERPRET=1 before triton is imported.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.runtime.interpreter import InterpretedFunction, TensorHandle


def _number(value: Any) -> Any:
    return value.value if isinstance(value, tl.constexpr) else value


def _tensor(array: np.ndarray, dtype: tl.dtype) -> tl.tensor:
    return tl.tensor(
        TensorHandle(np.ascontiguousarray(array), dtype), tl.block_type(dtype, list(array.shape))
    )


class SharedMemory:
    """An array with the operations of Gluon's shared-memory descriptor that our kernels use."""

    def __init__(self, dtype: tl.dtype, array: np.ndarray) -> None:
        self.dtype, self.array = dtype, array

    def index(self, place: int) -> SharedMemory:
        return SharedMemory(self.dtype, self.array[place])

    def reinterpret(self, dtype: tl.dtype, shape: Any, layout: Any) -> SharedMemory:
        return SharedMemory(dtype, self.array.reshape([int(_number(size)) for size in shape]))

    def slice(self, start: int, length: int) -> SharedMemory:
        start, length = int(_number(start)), int(_number(length))
        return SharedMemory(self.dtype, self.array[start : start + length])

    def load(self, layout: Any) -> tl.tensor:
        return _tensor(self.array.copy(), self.dtype)

    def store(self, value: tl.tensor) -> None:
        self.array[...] = value.handle.data

    def scatter(self, values: tl.tensor, indices: tl.tensor, axis: int) -> None:
        self.array[self._places(indices, values.handle.data.shape)] = values.handle.data

    def atomic_scatter_add(
        self, values: tl.tensor, indices: tl.tensor, axis: int, mask: tl.tensor | None = None
    ) -> None:
        added = values.handle.data
        if mask is not None:
            added = np.where(mask.handle.data, added, 0)
        np.add.at(self.array, self._places(indices, added.shape), added)

    def _places(self, indices: tl.tensor, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each value; the rows are given, and the axis is 0."""
        rows, columns = np.broadcast_arrays(indices.handle.data, np.arange(shape[1]))
        assert (rows >= 0).all()
        assert (rows < self.array.shape[0]).all()
        return rows, columns


class Language:
    """Gluon's language: Triton's, but for what stands here."""

    constexpr = tl.constexpr

    def __getattr__(self, name: str) -> Any:
        return getattr(tl, name)

    def _layout(self, *arguments: Any) -> None:
        return None

    BlockedLayout = SliceLayout = SwizzledSharedLayout = _layout

    def barrier(self) -> None:
        """Threads of a program run one after another here."""

    def arange(self, start: int, end: int, layout: Any = None) -> tl.tensor:
        return tl.arange(tl.constexpr(_number(start)), tl.constexpr(_number(end)))

    def full(self, shape: Any, value: Any, dtype: tl.dtype, layout: Any = None) -> tl.tensor:
        return tl.full([_number(size) for size in shape], value, dtype)

    def full_like(self, like: tl.tensor, value: Any) -> tl.tensor:
        return tl.full(like.shape, value, like.dtype)

    def allocate_shared_memory(self, dtype: tl.dtype, shape: Any, layout: Any) -> SharedMemory:
        # whatever stood there before; a kernel that relies on zeros must not pass
        filling = np.full([int(_number(size)) for size in shape], 0x7F7F7F7F, np.int32)
        return SharedMemory(dtype, filling if dtype == tl.int32 else filling.view(np.float32))


def _rounded(value: tl.tensor, dtype: tl.dtype) -> tl.tensor:
    """To nearest, ties to even, as the hardware does it; the interpreter cuts bits off for bfloat16."""
    if _number(dtype) != tl.bfloat16:
        return value.to(dtype)
    return _tensor(torch.from_numpy(value.handle.data).bfloat16().view(torch.uint16).numpy(), tl.bfloat16)


# What the interpreter lacks: two approximations of the hardware, which are assembly, and rounding.
SUBSTITUTES: dict[str, Callable[..., tl.tensor]] = {
    "exp2_hardware": lambda value: tl.exp2(value),
    "reciprocal_hardware": lambda value: 1.0 / value,
    "rounded": _rounded,
}


def interpreted(kernel: GluonJITFunction) -> InterpretedFunction:
    """The kernel, launched in the same way, in the interpreter."""
    function = InterpretedFunction(_within(_translated(kernel.fn.__globals__, {}), kernel.fn))
    # the interpreter knows constants by this word
    annotations = kernel.fn.__annotations__.items()
    function.rewrite().__annotations__ = {name: kind.removeprefix("gl.") for name, kind in annotations}
    return function


def _translated(module: dict[str, Any], done: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The names of a module, with `gl` the Language above, and in Gluon functions of all modules too."""
    if id(module) not in done:
        scope = done[id(module)] = {**module, "gl": Language(), "tl": tl}
        for name, value in module.items():
            if isinstance(value, GluonJITFunction):
                own = _translated(value.fn.__globals__, done)
                scope[name] = SUBSTITUTES.get(name) or InterpretedFunction(_within(own, value.fn)).rewrite()
    return done[id(module)]


def _within(scope: dict[str, Any], function: types.FunctionType) -> types.FunctionType:
    return types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
