"""Which implementation runs: the compiled one for the CPU, Triton on a GPU, or the reference.

Asking for what is not there is an error, never a silent fallback.
"""

from __future__ import annotations

from indexer_kernels.errors import KernelInputError

IMPLEMENTATIONS = ("auto", "cpp", "triton", "reference")


def choose(name: str, device: str = "cpu") -> str:
    """The implementation behind a name, "cpp" or "reference"; raises KernelInputError where it cannot run."""
    if name not in IMPLEMENTATIONS:
        raise KernelInputError(f"kernels {name!r} are unknown; choose one of: {', '.join(IMPLEMENTATIONS)}")
    if name == "reference":
        return name
    if name == "triton" or (name == "auto" and device != "cpu"):
        raise KernelInputError(
            f"kernels {name!r} on device {device!r}: this version has compiled kernels for the CPU only; "
            "use --device cpu, or --kernels reference"
        )
    if device != "cpu":
        raise KernelInputError(f"kernels 'cpp' run on the CPU, not on {device!r}; use --device cpu")
    instruction_set()
    return "cpp"


def instruction_set() -> str:
    """The instruction set that the compiled kernels use: baseline, avx2 or avx512.

    The environment variable NEURON_INDEXER_ISA forces one. Raises KernelInputError where the extension is
    not built or that instruction set cannot run here.
    """
    try:
        from indexer_kernels import _cpp
    except ImportError as error:
        raise KernelInputError(
            f"the compiled kernels cannot be loaded ({error}); build them with: pip install -e ."
        ) from error
    try:
        return str(_cpp.instruction_set())
    except ValueError as error:
        raise KernelInputError(f"NEURON_INDEXER_ISA: {error}") from error


def instruction_sets() -> list[str]:
    """Those that can run on this machine, best last."""
    from indexer_kernels import _cpp

    return list(_cpp.instruction_sets())
