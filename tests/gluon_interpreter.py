"""Runs Gluon kernels in Triton's interpreter, which knows the Triton language alone.

A Gluon kernel is Triton plus layouts, shared memory and barriers. Here layouts are dropped, shared memory
is an array, a barrier does nothing, and everything else is handed to Triton's language as the interpreter
has it. What a layout does to speed and to the order of programs' threads is thus not tested; what is
computed is. The environment must have TRITON_INTERPRET=1 before triton is imported.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from indexer_kernels.moments import fused_multiply_add
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.runtime.interpreter import InterpretedFunction, TensorHandle

from indexer.errors import IndexerError

# What is launched; the functions that these call are translated with them.
KERNELS = {
    "indexer_kernels.statistics_triton": ("gather",),
    "indexer_kernels.activations_triton": ("activate_rows",),
}


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

    def slice(self, start: int, length: int) -> SharedMemory:
        start, length = int(_number(start)), int(_number(length))
        return SharedMemory(self.dtype, self.array[start : start + length])

    def load(self, layout: Any) -> tl.tensor:
        return _tensor(self.array.copy(), self.dtype)

    def gather(self, indices: tl.tensor, axis: int) -> tl.tensor:
        return _tensor(self.array[self._places(indices, indices.handle.data.shape)], self.dtype)

    def scatter(self, values: tl.tensor, indices: tl.tensor, axis: int) -> None:
        self.array[self._places(indices, values.handle.data.shape)] = values.handle.data

    def atomic_scatter_add(
        self, values: tl.tensor, indices: tl.tensor, axis: int, mask: tl.tensor | None = None
    ) -> None:
        added = values.handle.data
        if mask is not None:
            added = np.where(mask.handle.data, added, 0)
        np.add.at(self.array, self._places(indices, added.shape), added)

    def _places(self, indices: tl.tensor, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Where each value stands along each axis; along axis 0 it is given."""
        places = np.broadcast_arrays(indices.handle.data, *[np.arange(size) for size in shape[1:]])
        assert (places[0] >= 0).all()
        assert (places[0] < self.array.shape[0]).all()
        return tuple(places)


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

    def convert_layout(self, value: tl.tensor, layout: Any, assert_trivial: bool = False) -> tl.tensor:
        return value

    def fma(self, one: tl.tensor, other: Any, addend: Any) -> tl.tensor:
        """Rounded once, which the interpreter does not; float32."""
        numbers = [getattr(number, "handle", None) for number in (one, other, addend)]
        arrays = [
            np.float32(_number(value)) if number is None else number.data
            for value, number in zip((one, other, addend), numbers, strict=True)
        ]
        with np.errstate(over="ignore", invalid="ignore"):
            return _tensor(fused_multiply_add(*np.broadcast_arrays(*arrays)), tl.float32)

    def full_like(self, like: tl.tensor, value: Any) -> tl.tensor:
        return tl.full(like.shape, value, like.dtype)

    def allocate_shared_memory(self, dtype: tl.dtype, shape: Any, layout: Any) -> SharedMemory:
        # whatever stood there before; a kernel that relies on zeros must not pass
        filling = np.full([int(_number(size)) for size in shape], 0x7F7F7F7F, np.int32)
        return SharedMemory(dtype, filling if dtype == tl.int32 else filling.view(np.float32))


def _flushed(value: np.ndarray) -> tl.tensor:
    """float32 with 0 for what is subnormal."""
    return _tensor(np.where(np.abs(value) < 2.0**-126, np.copysign(np.float32(0), value), value), tl.float32)


def _exp2(value: tl.tensor) -> tl.tensor:
    with np.errstate(over="ignore"):
        return _flushed(np.exp2(value.handle.data))


def _reciprocal(value: tl.tensor) -> tl.tensor:
    with np.errstate(divide="ignore"):
        return _flushed(1 / value.handle.data)


def _size(value: tl.tensor) -> tl.tensor:
    return _tensor(np.abs(value.handle.data), tl.float32)


def _halves(word: tl.tensor, kind: str) -> np.ndarray:
    """The two numbers in each word as float64, which holds them and their products; [..., 2]."""
    bits = word.handle.data.astype(np.int32).view(np.uint16).reshape(*word.handle.data.shape, 2)
    # signalling NaN
    with np.errstate(invalid="ignore"):
        if kind == "f16x2":
            return bits.view(np.float16).astype(np.float64)
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _words(halves: np.ndarray, kind: str) -> tl.tensor:
    """Pairs of float64 as words, to nearest, ties to even, once; NaN as the hardware writes it."""
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "f16x2":
            bits = halves.astype(np.float16).view(np.uint16)
        else:
            # float32 has the same exponents, but its subnormals would be rounded twice
            steps = np.rint(np.ldexp(halves, 133))
            small = np.abs(halves) < 2.0**-126
            exact = np.where(small, np.ldexp(np.where(small, steps, 0), -133), halves).astype(np.float32)
            bits = torch.from_numpy(exact).bfloat16().view(torch.uint16).numpy()
    bits = np.where(np.isnan(halves), 0x7FFF, bits).astype(np.uint16)
    return _tensor(np.ascontiguousarray(bits).view(np.int32)[..., 0], tl.int32)


def _converted(kind: str) -> Callable[..., tl.tensor]:
    def words(even: tl.tensor, odd: tl.tensor) -> tl.tensor:
        with np.errstate(invalid="ignore"):
            both = np.stack([even.handle.data, odd.handle.data], axis=-1).astype(np.float64)
        return _words(both, kind)

    return words


def _zeros(word: tl.tensor) -> tl.tensor:
    halves = word.handle.data.astype(np.int32).view(np.uint16)
    zero = np.where(halves & 0x7FFF == 0, 0xFFFF, 0).astype(np.uint16)
    return _tensor(zero.view(np.int32), tl.int32)


def _positive(word: tl.tensor, kind: Any) -> tl.tensor:
    # + 0.0: the larger of -0 and 0 is 0
    return _words(np.maximum(_halves(word, _number(kind)), 0.0) + 0.0, _number(kind))


def _positive_or_nan(word: tl.tensor) -> tl.tensor:
    halves = _halves(word, "bf16x2")
    with np.errstate(invalid="ignore"):
        low = np.fmin(halves, 0.0) * 0.0 + 0.0
    return _words(np.maximum(halves, low) + 0.0, "bf16x2")


def _negative_sizes(word: tl.tensor, limit: Any) -> tl.tensor:
    # as numbers of float16, which is what the instruction takes them for
    halves = word.handle.data.astype(np.int32).view(np.uint16)
    sizes = (halves & 0x7FFF).view(np.float16)
    least = np.fmin(sizes, np.uint16(_number(limit) & 0xFFFF).view(np.float16))
    return _tensor((least.view(np.uint16) | 0x8000).view(np.int32), tl.int32)


def _product(word: tl.tensor, other: tl.tensor, kind: Any) -> tl.tensor:
    with np.errstate(invalid="ignore"):
        return _words(_halves(word, _number(kind)) * _halves(other, _number(kind)), _number(kind))


def _sum(word: tl.tensor, factor: tl.tensor, addend: tl.tensor, kind: Any) -> tl.tensor:
    kind = _number(kind)
    with np.errstate(invalid="ignore"):
        return _words(_halves(word, kind) * _halves(factor, kind) + _halves(addend, kind), kind)


def _extreme(word: tl.tensor, one: tl.tensor, other: tl.tensor, end: Any, kind: Any) -> tl.tensor:
    extreme = {"max": np.fmax, "min": np.fmin}[_number(end)]
    first, second, third = (_halves(part, _number(kind)) for part in (word, one, other))
    return _words(extreme(extreme(first, second), third), _number(kind))


# What the interpreter lacks: the functions that are assembly.
SUBSTITUTES: dict[str, Callable[..., tl.tensor]] = {
    "exp2_hardware": _exp2,
    "reciprocal_hardware": _reciprocal,
    "size_hardware": _size,
    "bfloat16_words": _converted("bf16x2"),
    "float16_words": _converted("f16x2"),
    "zero_words": _zeros,
    "positive_words": _positive,
    "positive_or_nan": _positive_or_nan,
    "negative_sizes": _negative_sizes,
    "product_words": _product,
    "sum_words": _sum,
    "extreme_words": _extreme,
    "opaque": lambda word: word,
}


def interpreted(kernel: GluonJITFunction) -> InterpretedFunction:
    """The kernel, launched in the same way, in the interpreter."""
    function = InterpretedFunction(_within(_translated(kernel.fn.__globals__, {}), kernel.fn))
    # the interpreter knows constants by this word
    annotations = kernel.fn.__annotations__.items()
    function.rewrite().__annotations__ = {name: kind.removeprefix("gl.") for name, kind in annotations}
    return function


@contextmanager
def interpreting(kernels: Mapping[str, Sequence[str]] = KERNELS) -> Iterator[None]:
    """Within the block kernels run in the interpreter; kernels: their names by module.

    Raises IndexerError where triton was imported to run on a GPU.
    """
    from indexer_kernels import topk_triton

    if not isinstance(topk_triton.compete, InterpretedFunction):
        raise IndexerError(
            "triton was imported for a GPU, and its interpreter is asked for: set TRITON_INTERPRET=1 before "
            "the program starts"
        )
    before = []
    try:
        for module in map(importlib.import_module, kernels):
            for name in kernels[module.__name__]:
                kernel = getattr(module, name)
                before.append((module, name, kernel))
                if isinstance(kernel, GluonJITFunction):
                    setattr(module, name, interpreted(kernel))
        yield
    finally:
        for module, name, kernel in before:
            setattr(module, name, kernel)


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
