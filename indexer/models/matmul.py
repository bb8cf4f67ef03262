"""Linear layers on the CPU through oneDNN instead of the BLAS that torch was built with.

That BLAS is MKL as a rule, which keeps to AVX2 on processors that are not Intel's. oneDNN uses what the
processor has: on one Zen 5 core, float32, 512 x 384 by 384 x 1,536, it takes 2.5 ms where MKL takes 5.6 ms
(244 and 108 GFLOP/s), and a whole MiniLM forward takes 0.58 of the time. Weights are used as they are,
without a packed copy. Sums are in another order, so results differ from MKL's by rounding; how rows are
grouped into calls changes nothing in either.

Where a processor has no instructions for bfloat16, torch multiplies it number by number. There products are
made in float32, of weights that are converted on the way, and rounded once: 512 x 2,048 by 2,048 x 2,048
takes 0.20 s on two cores of an EPYC without AVX-512, where torch takes 0.70 s.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from indexer_kernels.statistics import DTYPES
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from indexer.errors import IndexerError

Matmul = Literal["auto", "torch", "onednn"]
CHOICES = get_args(Matmul)


def uses_onednn(choice: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether linear layers go through oneDNN: with "auto", in float32 on a CPU, where torch has it.

    In bfloat16 and float16 torch uses it by itself where the processor has instructions for them, and is left
    to it; elsewhere they go through it, in float32. Raises IndexerError for "onednn" where that cannot be.
    """
    if choice not in CHOICES:
        raise IndexerError(f"matmul {choice}: choose among {', '.join(CHOICES)}")
    # the operator is one of torch's own; no version has promised it
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    possible = device.type == "cpu" and there and not _by_itself(dtype)
    if choice == "onednn" and not possible:
        raise IndexerError(
            f"matmul onednn: torch needs no help for {dtype} on {device.type}; take auto"
            if there
            else "matmul onednn: this torch was built without it; take auto"
        )
    return choice != "torch" and possible


def _by_itself(dtype: torch.dtype) -> bool:
    """Whether torch multiplies it through oneDNN on this processor without being told."""
    if dtype == torch.float32:
        return False
    native = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    return bool(getattr(torch.ops.mkldnn, native)())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias, newly allocated, added up in float32 and rounded once to x's dtype.

    x: [..., inputs], weight: [outputs, inputs], any strides, bias: [outputs]; all of one dtype.
    """
    wide = [part if part is None else part.float() for part in (x, weight, bias)]
    # the operator that torch.compile emits for linear layers, here without a function fused behind it
    return torch.ops.mkldnn._linear_pointwise(*wide, "none", [], "").to(x.dtype)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module does x @ W.T + b and nothing else: subclasses may do more."""
    return type(module) in (nn.Linear, Conv1D) and module.weight.dtype in DTYPES


class OnednnForward:
    """The forward of a linear layer, to stand in for `module.forward`."""

    def __init__(self, module: nn.Module) -> None:
        weight: Tensor = module.weight  # type: ignore[assignment]
        self.weight = weight.detach() if isinstance(module, nn.Linear) else weight.detach().t()
        self.bias = module.bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)  # type: ignore[arg-type]
