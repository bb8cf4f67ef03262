"""Attention weights, without a model's own code: from the functions of torch that every model calls.

These are `scaled_dot_product_attention`, or a softmax over keys; sites.attn finds heads by the same two. The
second returns the weights; so does the first where the values are the rows of the unit matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


def by_head(func: Any, output: Tensor, sequences: int) -> Tensor | None:
    """What a function of torch returns, as [sequences, heads, ...], where it is of attention; else None.

    output: products of heads, or weights of keys.
    """
    # weights are those of several heads; a router's, say, have fewer dimensions
    weights = func in _SOFTMAX and (output.ndim == 4 or (output.ndim == 3 and len(output) > sequences))
    if not weights and func is not functional.scaled_dot_product_attention:
        return None
    return output if output.ndim == 4 else output.unflatten(0, (sequences, -1))


class Patterns(TorchFunctionMode):
    """While it is entered, `weights` are those of the last attention that a model computed, of one sequence.

    weights: [heads, queries, keys] in the model's dtype; None before the first.
    """

    weights: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        shown = output
        if func is functional.scaled_dot_product_attention:
            shown = _weights(*args, **(kwargs or {}))
        found = by_head(func, shown, sequences=1)
        if found is not None:
            self.weights = found[0]
        return output


def _weights(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    unit = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
    return functional.scaled_dot_product_attention(
        query, key, unit.expand(*key.shape[:-1], -1), *args, **kwargs
    )
