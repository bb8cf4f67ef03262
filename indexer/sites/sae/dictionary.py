"""The encoder of a sparse dictionary in one plain form, whatever library it came from.

    x       what the model has at the read point, in the dictionary's dtype
    source  normed(x) - subtracted
    pre     source @ weight.T + bias, times scale
    values  the activation function of pre

Each step is rounded to the dtype as the library that wrote the files does it. Units are encoded in blocks, so
that the values of one block are in cache when their statistics are taken; [tokens, units] never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from indexer.errors import IndexerError

# x @ weight.T + bias: x [rows, inputs], weight [units, inputs], bias [units] or None
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Norm = Literal["none", "layer_norm", "constant_norm_rescale"]


class Activation(Protocol):
    """What makes values of `pre`.

    function: what is left to be applied by the kernels, in the same read as the statistics; None for nothing.
    signed: whether values may be negative.
    """

    @property
    def function(self) -> str | None: ...
    @property
    def signed(self) -> bool: ...
    @property
    def formula(self) -> str: ...
    def of(self, units: slice) -> Activation:
        """That of some units alone."""
    def made(self, pre: Tensor, units: slice) -> Tensor:
        """The values of some units, but for `function`; pre: [rows, units], which may be written to."""


@dataclass(frozen=True)
class Relu:
    """max(pre, 0)."""

    function: str | None = "relu"
    signed: bool = False
    formula: str = "relu(pre)"

    def of(self, units: slice) -> Relu:
        """Itself."""
        return self

    def made(self, pre: Tensor, units: slice) -> Tensor:
        """pre."""
        return pre


@dataclass(frozen=True)
class Jump:
    """pre where it is above the threshold, else 0; rectified: and where it is above 0.

    threshold: [units], or of one number for all.
    """

    threshold: Tensor
    rectified: bool = True

    @property
    def function(self) -> str | None:
        """What is left to do."""
        return "relu" if self.rectified else None

    @property
    def signed(self) -> bool:
        """Whether values may be negative."""
        return not self.rectified and bool((self.threshold < 0).any())

    @property
    def formula(self) -> str:
        """For people."""
        return f"{'relu(pre)' if self.rectified else 'pre'} * (pre > threshold)"

    def of(self, units: slice) -> Jump:
        """Of some units."""
        return self if self.threshold.numel() == 1 else replace(self, threshold=self.threshold[units].clone())

    def made(self, pre: Tensor, units: slice) -> Tensor:
        """pre, or 0."""
        threshold = self.threshold if self.threshold.numel() == 1 else self.threshold[units]
        return pre.masked_fill_(pre <= threshold, 0)


@dataclass(frozen=True)
class Gated:
    """relu(pre * exp(r_mag) + b_mag) where pre + b_gate is above 0, else 0.

    b_gate, magnitude = exp(r_mag), b_mag: [units]. pre has no bias.
    """

    b_gate: Tensor
    magnitude: Tensor
    b_mag: Tensor
    function: str | None = "relu"
    signed: bool = False
    formula: str = "relu(pre * exp(r_mag) + b_mag) * (pre + b_gate > 0)"

    def of(self, units: slice) -> Gated:
        """Of some units."""
        b_gate, magnitude, b_mag = (part[units].clone() for part in (self.b_gate, self.magnitude, self.b_mag))
        return Gated(b_gate, magnitude, b_mag)

    def made(self, pre: Tensor, units: slice) -> Tensor:
        """The magnitude, or 0."""
        closed = pre + self.b_gate[units] <= 0
        return pre.mul_(self.magnitude[units]).add_(self.b_mag[units]).masked_fill_(closed, 0)


@dataclass(frozen=True)
class TopK:
    """The k largest of a token, all others 0; of equal ones those of the first units.

    rectified: and 0 where they are not above 0. absolute: the k furthest from 0, as they are.
    """

    k: int
    rectified: bool = True
    absolute: bool = False
    function: str | None = None

    @property
    def signed(self) -> bool:
        """Whether values may be negative."""
        return not self.rectified

    @property
    def formula(self) -> str:
        """For people."""
        of = "abs(pre)" if self.absolute else "pre"
        kept = "relu(pre)" if self.rectified else "pre"
        return f"{kept} of the {self.k} largest {of} of a token, of equal ones the first; else 0"

    def of(self, units: slice) -> TopK:
        """Not of some units alone."""
        raise AssertionError("which are the largest, all units of a token tell")

    def made(self, pre: Tensor, units: slice) -> Tensor:
        """See `of`."""
        raise AssertionError("which are the largest, all units of a token tell")

    def chosen(self, blocks: Iterator[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
        """Values and units of the k largest of each token, [rows, k]; blocks: of `pre`, in order."""
        values = units = None
        for first, pre in blocks:
            size = pre.abs() if self.absolute else pre
            of_block = _largest(size, min(self.k, pre.shape[1]))
            here, there = pre.gather(1, of_block), of_block + first
            if values is not None and units is not None:
                here, there = torch.cat([values, here], dim=1), torch.cat([units, there], dim=1)
            # units ascend within each token, so that a stable order puts the first of equal ones first
            best = _largest(here.abs() if self.absolute else here, min(self.k, here.shape[1]))
            values, units = here.gather(1, best), there.gather(1, best)
        assert values is not None, "a dictionary has units"
        assert units is not None
        return values.relu() if self.rectified else values, units


def _largest(values: Tensor, k: int) -> Tensor:
    """Columns of the k largest of every row, ascending, [rows, k]; of equal ones the first."""
    top, column = values.topk(k, dim=1, sorted=True)
    last = top[:, -1:]
    # torch leaves open which of the equal ones it takes
    if values.device.type != "cpu":
        # to learn where that is, the host would have to wait
        column = _first_of_equal(values, top, column)
    else:
        tied = ((values == last).sum(1) > (top == last).sum(1)).nonzero().flatten()
        if len(tied):
            column[tied] = _first_of_equal(values[tied], top[tied], column[tied])
    return column.sort(dim=1).values


def _first_of_equal(values: Tensor, top: Tensor, column: Tensor) -> Tensor:
    """Columns of the largest of every row, where of those that equal the last of them the first are taken.

    top, column: the largest and their columns, in descending order, [rows, k].
    """
    k, width = column.shape[1], values.shape[1]
    number = torch.arange(width, dtype=torch.int32, device=values.device)
    first = torch.where(values == top[:, -1:], width - number, 0).topk(k, dim=1).indices
    above = (top != top[:, -1:]).sum(dim=1, keepdim=True)
    place = torch.arange(k, device=values.device)
    return torch.where(place < above, column, first.gather(1, (place - above).clamp(min=0)))


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """One dictionary's encoder, at one place of a model.

    files: what it was read from. form: the format and architecture, for people. point: where it reads, as its
    files say; layer: the number that its units are named by. weight: [units, inputs], as it is in its file
    until units are chosen; bias, scale: [units] or None. subtracted: [inputs] or None. dtype: in which it
    computes, that of the weight where it is None. rounds_between: whether the product is rounded before the
    bias is added. centred: whether the mean of x over the model's width is taken off
    first, as where writing weights were centred. facts: what else its files say, as JSON values.
    first: number of the first unit that is indexed. part: which of those here are; None for all.
    """

    files: tuple[Path, ...]
    form: str
    point: str
    layer: int | None
    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    activation: Activation = field(repr=False)
    subtracted: Tensor | None = field(default=None, repr=False)
    scale: Tensor | None = field(default=None, repr=False)
    norm: Norm = "none"
    rounds_between: bool = True
    centred: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    first: int = 0
    part: range | None = None

    @property
    def inputs(self) -> int:
        """Width of what it reads."""
        return self.weight.shape[1]

    @property
    def units(self) -> range:
        """Those that are indexed, of those here."""
        return self.part or range(len(self.weight))

    @property
    def formula(self) -> str:
        """All of what is computed, for people."""
        x = {"none": "x", "layer_norm": "layer_norm(x)", "constant_norm_rescale": "x * sqrt(d) / |x|"}
        read = x[self.norm].replace("x", "(x - mean(x))") if self.centred else x[self.norm]
        source = f"({read} - b_dec)" if self.subtracted is not None else read
        bias = "" if self.bias is None else " + b_enc"
        pre = f"{source} @ W_enc{bias}"
        scaled = f"({pre}) * |W_dec|" if self.scale is not None else pre
        return f"pre = {scaled}; {self.activation.formula}"

    def source(self, x: Tensor) -> Tensor:
        """What enters the product, [rows, inputs] in the dictionary's dtype; x: [rows, inputs]."""
        x = x.to(self.weight.dtype)
        if self.centred:
            x = x - x.mean(dim=-1, keepdim=True)
        if self.norm == "layer_norm":
            x = x - x.mean(dim=-1, keepdim=True)
            x = x / (x.std(dim=-1, keepdim=True) + 1e-5)
        elif self.norm == "constant_norm_rescale":
            x = x * (self.inputs**0.5 / x.norm(dim=-1, keepdim=True))
        return x if self.subtracted is None else x - self.subtracted

    def blocks(self, source: Tensor, width: int, product: Product) -> Iterator[tuple[int, Tensor]]:
        """Values of the units that are indexed, but for the activation's `function`, block by block.

        Gives the place of a block's first unit among them, and [rows, at most `width`], until the next is
        asked for.
        """
        if isinstance(self.activation, TopK):
            firsts = range(0, len(self.weight), width)
            every = ((first, self._pre(source, slice(first, first + width), product)) for first in firsts)
            values, units = self.activation.chosen(every)
        for place in range(0, len(self.units), width):
            some = self.units[place : place + width]
            block = slice(some.start, some.stop)
            if isinstance(self.activation, TopK):
                yield place, _spread(values, units, block)
            else:
                yield place, self.activation.made(self._pre(source, block, product), block)

    def on(self, device: torch.device) -> Dictionary:
        """The same, to be encoded on a device."""
        return _moved(replace(self, activation=_moved(self.activation, device)), device)

    def _pre(self, source: Tensor, units: slice, product: Product) -> Tensor:
        bias = None if self.bias is None else self.bias[units]
        if self.rounds_between and self.weight.dtype != torch.float32:
            pre = product(source, self.weight[units], None)
            if bias is not None:
                pre += bias
        else:
            pre = product(source, self.weight[units], bias)
        return pre if self.scale is None else pre.mul_(self.scale[units])

    def chosen(self, units: tuple[int, int] | None) -> Dictionary:
        """As it encodes the units from one number to another; None: all.

        Of its files no more is read than these take. A weight that is as the products take it stays in its
        file, which the system reads as it is needed; all else is memory of its own.
        """
        first, last = units or (0, len(self.weight) - 1)
        if last >= len(self.weight):
            has = f"{self.files[0].parent} has features 0 to {len(self.weight) - 1}"
            raise IndexerError(f"--sae-units {first}-{last}: {has}")
        weight, bias, scale, activation, part = self.weight, self.bias, self.scale, self.activation, None
        if isinstance(activation, TopK):
            # which are the largest, all units of a token tell
            part = range(first, last + 1)
        else:
            some = slice(first, last + 1)
            weight, activation = weight[some], activation.of(some)
            bias, scale = (None if of is None else of[some] for of in (bias, scale))
        own = [None if of is None else of.clone() for of in (bias, scale, self.subtracted)]
        return replace(
            self, weight=weight.to(self.dtype or weight.dtype).contiguous(), bias=own[0], scale=own[1],
            subtracted=own[2], activation=activation, first=first, part=part,
        )  # fmt: skip


def _moved(state: Any, device: torch.device) -> Any:
    """The same with its tensors on a device."""
    tensors = {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}
    return replace(state, **{name: value.to(device) for name, value in tensors.items()})


def _spread(values: Tensor, units: Tensor, block: slice) -> Tensor:
    """[rows, units of the block]: the values of those that are among `units`, [rows, k], and else 0."""
    width = block.stop - block.start
    inside = (block.start <= units) & (units < block.stop)
    # what is elsewhere adds nothing to some unit, so that nobody need know how many there are
    place = (units - block.start).clamp(0, width - 1)
    return values.new_zeros(len(values), width).scatter_add_(1, place, values.masked_fill(~inside, 0))
