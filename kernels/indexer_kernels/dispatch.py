"""Which implementation runs: the compiled one for the CPU, Triton on a GPU, or the reference.

Asking for what is not there is an error, never a silent fallback.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import torch

from indexer_kernels.errors import KernelInputError

TRITON_FLOOR = (3, 8)
IMPLEMENTATIONS = ("auto", "cpp", "triton", "reference")


def choose(name: str, device: str | None = None) -> str:
    """The implementation behind a name: "cpp", "triton" or "reference".

    device: where the activations will be, "cpu" or "cuda"; None: where that implementation runs, the CPU
    for "auto". Raises KernelInputError where it cannot run.
    """
    if name not in IMPLEMENTATIONS:
        raise KernelInputError(f"kernels {name!r} are unknown; choose one of: {', '.join(IMPLEMENTATIONS)}")
    if name == "auto":
        name = "triton" if device == "cuda" else "cpp"
    expected = device_type(name)
    if device is not None and expected is not None and device != expected:
        raise KernelInputError(
            f"kernels {name!r} run on {expected}, not on {device!r}; use --device {expected}"
        )
    if name == "cpp":
        instruction_set()
    elif name == "triton":
        check_triton()
        if not _interpreted() and not torch.cuda.is_available():
            raise KernelInputError("kernels 'triton' need a GPU, and torch finds none; use --device cpu")
    return name


def device_type(name: str) -> str | None:
    """Where an implementation takes its arrays: "cpu", "cuda", or None for anywhere.

    Triton's interpreter (TRITON_INTERPRET=1, for tests) takes them on the CPU.
    """
    if name == "reference":
        return None
    return "cuda" if name == "triton" and not _interpreted() else "cpu"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_triton() -> None:
    """Raises KernelInputError without a Triton that counts in shared memory."""
    try:
        found = version("triton")
    except PackageNotFoundError as error:
        raise KernelInputError(
            "kernels 'triton' need the package triton; install it with: "
            "pip install 'triton>=3.8'"
        ) from error
    if tuple(int(part) for part in found.split(".")[:2]) < TRITON_FLOOR:
        raise KernelInputError(
            f"kernels 'triton' need Triton 3.8 or newer, and this is {found}: older ones have no atomics in "
            "shared memory; upgrade it, or use --device cpu"
        )


def describe(name: str) -> str:
    """An implementation with what decides how it computes: "cpp avx512", "triton 3.9.0" or "reference"."""
    detail = {"cpp": instruction_set, "triton": lambda: version("triton")}.get(name)
    return name if detail is None else f"{name} {detail()}"


def instruction_set() -> str:
    """The instruction set that the compiled kernels use: baseline, avx2 or avx512.

    The environment variable NEURON_INDEXER_ISA forces one. Raises KernelInputError where the extension is
    not built or that instruction set cannot run here.
    """
    try:
        from indexer_kernels import _cpp
    except ImportError as error:
        raise KernelInputError(
            f"the compiled kernels cannot be loaded ({error}); install the package again, which builds them"
        ) from error
    try:
        return str(_cpp.instruction_set())
    except ValueError as error:
        raise KernelInputError(f"NEURON_INDEXER_ISA: {error}") from error
