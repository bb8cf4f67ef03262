"""What routed experts make of tokens, one token and one expert at a time, from the model's own weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_stack(module: Any) -> bool:
    """Whether a module holds the weights of several experts, as transformers has them."""
    return (hasattr(module, "_apply_gate") and hasattr(module, "down_proj")) or _is_dbrx(module)


def _is_dbrx(module: Any) -> bool:
    return type(module).__name__ == "DbrxExperts"


def neurons(module: Any, given: tuple[Any, ...]) -> NDArray[np.float32]:
    """float32 [tokens, experts, neurons] of what a stack is given; NaN where a token does not pass one."""
    hidden, index, _ = given
    if _is_dbrx(module):
        return _of_dbrx(module, hidden.reshape(-1, hidden.shape[-1]), index)
    gated = getattr(module, "has_gate", True)
    name = "gate_up_proj" if gated else "up_proj"
    weights, width = getattr(module, name), module.down_proj.shape[1 if module.is_transposed else 2]
    made = np.full((len(hidden), len(weights), width), np.nan, np.float32)
    for token, experts in enumerate(index.tolist()):
        for expert in (expert for expert in experts if expert < len(weights)):
            weight = weights[expert] if module.is_transposed else weights[expert].T
            row = hidden[token : token + 1].to(weight.dtype) @ weight
            row = row + getattr(module, f"{name}_bias")[expert] if module.has_bias else row
            row = module._apply_gate(row) if gated else module.act_fn(row)
            made[token, expert] = row[0].detach().float().numpy()
    return made


def _of_dbrx(module: Any, hidden: Any, index: Any) -> NDArray[np.float32]:
    """The same; its matrices hold the experts one below the other."""
    held, number = module.mlp, module.num_experts
    width = len(held.w1) // number
    made = np.full((len(hidden), number, width), np.nan, np.float32)
    for token, experts in enumerate(index.tolist()):
        for expert in experts:
            own, row = slice(expert * width, (expert + 1) * width), hidden[token]
            neuron = held.activation_fn(held.w1[own] @ row) * (held.v1[own] @ row)
            made[token, expert] = neuron.detach().float().numpy()
    return made
