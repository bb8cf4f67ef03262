"""The GPU kernels as operators of torch, so that torch.compile keeps its graph whole around them.

`update` reads activations, `activate` also computes them. Both change the states that they are given. The
fake implementations do nothing, for nothing is returned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STATES = ("sums", "top", "bottom", "samples")


@torch.library.custom_op("indexer_kernels::update", mutates_args=STATES)
def update(
    activations: Tensor, up: Tensor | None, plan: Sequence[Tensor], bars: Sequence[Tensor],
    sums: Sequence[Tensor], top: Sequence[Tensor], bottom: Sequence[Tensor], samples: Sequence[Tensor],
    window: Sequence[int], by: str,
) -> None:  # fmt: skip
    """Take activations [tokens, units] into the states; arguments as in statistics_triton.launch."""
    from indexer_kernels.statistics_triton import launch

    launch("plain", activations, up, activations, plan, bars, sums, top, bottom, samples, window, by)


@torch.library.custom_op(
    "indexer_kernels::activate", mutates_args=("out", "sums", "top", "bottom", "samples")
)
def activate(
    function: str, gate: Tensor | None, up: Tensor | None, out: Tensor, plan: Sequence[Tensor],
    bars: Sequence[Tensor], sums: Sequence[Tensor], top: Sequence[Tensor], bottom: Sequence[Tensor],
    samples: Sequence[Tensor], window: Sequence[int], by: str,
) -> None:  # fmt: skip
    """Write f(gate), or f(gate) * up, to out and take it in; gate None: it stands in out."""
    from indexer_kernels.statistics_triton import launch

    launch(
        function, out if gate is None else gate, up, out, plan, bars, sums, top, bottom, samples, window, by
    )


@update.register_fake
def _(*arguments: object) -> None:
    return None


@activate.register_fake
def _(*arguments: object) -> None:
    return None
