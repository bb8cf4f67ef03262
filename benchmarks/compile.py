"""What the GPU kernels become, without a GPU: registers, spills, shared memory and instructions per
element.

Every variant is compiled ahead of time by Triton's own compiler and taken apart by the disassembler that
comes with it. The hot loop is the innermost loop with the most shared-memory atomics, of which there is one
per element, so instructions per element are its length over their number. This proves that kernels compile
and what they are made of; it says nothing about time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from indexer_kernels import FUNCTIONS, KernelInputError
from indexer_kernels.dispatch import check_triton

from benchmarks.disassembly import Machine, take_apart
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from indexer.errors import IndexerError

# Shared memory of a multiprocessor in bytes; every block takes 1 kB of it for the system.
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
RESERVED_BYTES = 1024
BLOCKS = 2
# Instructions per element of the loop without masks that no variant for sm_80 may pass, how many more gated
# ones have, and how many fewer those for later ones. float32 has no budget: its functions are longer.
# Gated, GELU in bfloat16 has a longer form, which is zero where torch's is.
# Rows of parts have an address more to advance.
BUDGET = {
    "bfloat16": {"plain": 12, "relu": 13, "relu2": 13.5, "silu": 19, "gelu_tanh": 21.04, "gelu": 21.5},
    "float16": {"plain": 11.9, "relu": 12.7, "relu2": 13.1, "silu": 18.7, "gelu_tanh": 24.7, "gelu": 26.7},
}
GATED_BUDGET = 1.1
LONGER_GATED = {("bfloat16", "gelu_tanh"): 4, ("bfloat16", "gelu"): 5.53}
LATER_BUDGET = -0.5
ROUTED_BUDGET = 0.2
# Two blocks of 256 threads share 65,536.
MOST_REGISTERS = 65_536 // (BLOCKS * 256)
TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# What is neither float32* nor an int32, by argument name.
ARGUMENTS = {
    "*i64": (
        "rows", "block_row", "block_document", "block_sequence", "sums", "nan", "inf", "top_document",
        "bottom_document", "start", "length", "document", "ordinal", "threshold_document", "place_document",
        "place_sequence", "token_of",
    ),
    "*i32": (
        "block_span", "group_run", "recent", "met", "top_hits", "bottom_hits", "hits",
        "token_ids", "row_of", "worst", "filled", "place_position", "window_start", "window_length",
        "window_tokens",
    ),
    "*u8": ("counted",),
    "*u64": ("block_key", "unit_key", "place_hash", "place_passage"),
    "*u32": ("bars",),
    "i32": (
        "gate_stride", "up_stride", "out_stride", "stride", "bars_stride", "units", "width", "tokens",
        "groups", "blocks", "splits", "k", "samples", "before", "after",
    ),
}  # fmt: skip
PLACES = {"PLACES": 32, "WINDOW": 64, "SPLITS": 4, "BLOCKS": 64}
SAMPLE_PLACES = {"PLACES": 16, "WINDOW": 64, "SPLITS": 4, "BLOCKS": 32}
HIT_TILE = {"UNITS": 64, "BLOCKS": 16}
# of a row for every token, and of parts that meet some
ROWS = ({"ROUTED": False}, {"ROUTED": True})
# A launch compiles them in.
STRIDES = {"gate_stride": 14336, "up_stride": 14336, "out_stride": 14336}
ONES = {"units": 1, "width": 1, "tokens": 1, "groups": 1, "splits": 1, "before": 1, "after": 1}
ACTIVATIONS = ("gate", "up", "out", "values")


@dataclass(frozen=True)
class Options:
    variants: str = option("all", "which variants", quick="few", choices=("all", "few"))


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched for one model."""

    kernel: str
    architecture: int
    dtype: str
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        chosen = [str(value) for name, value in self.constants.items() if name in ("FUNCTION", "IDENTITY")]
        chosen += ["distinct"] * bool(self.constants.get("DISTINCT"))
        chosen += ["gated"] * bool(self.constants.get("GATED"))
        chosen += ["routed"] * bool(self.constants.get("ROUTED"))
        tiny = ["of one unit"] * ("units" in self.constants)
        return " ".join([self.kernel, *chosen, *tiny, self.dtype, f"sm_{self.architecture}"])

    @property
    def budget(self) -> float | None:
        """Instructions per element; None without such a loop, and for float32."""
        if self.kernel != "gather" or self.dtype not in BUDGET or not self.constants["WHOLE"]:
            return None
        function = self.constants["FUNCTION"]
        gated = GATED_BUDGET + LONGER_GATED.get((self.dtype, function), 0)
        more = gated * self.constants["GATED"] + LATER_BUDGET * (self.architecture > 80)
        more += ROUTED_BUDGET * self.constants["ROUTED"]
        return round(BUDGET[self.dtype][function] + more, 2)


def run(options: Options) -> Report:
    """Compile all variants; raises WrongResultError where one spills, is too large or too long."""
    try:
        check_triton()
    except KernelInputError as error:
        raise IndexerError(str(error)) from error
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise WrongResultError("TRITON_INTERPRET=1 is set, so that there is no compiler; unset it")
    rows = []
    variants = list(_variants(options.variants == "few"))
    for number, variant in enumerate(variants, 1):
        say(f"{number} of {len(variants)}: {variant.name}")
        machine = _compiled(variant)
        _check(variant, machine)
        rows.append({**asdict(variant), "name": variant.name, **machine.figures()})
    checks = [
        "no variant spills a register or keeps a stack",
        f"{BLOCKS} blocks of every variant fit the shared memory and the registers of a multiprocessor",
        "the loop without masks of every 16-bit variant keeps to its budget of instructions per element",
        "no variant has an atomic on global memory",
    ]
    return Report(
        settings_of(options), checks, {"triton": version("triton"), "rows": rows}, [_table(rows)], []
    )


def _variants(few: bool) -> Iterator[Variant]:
    forms = [("plain", False), *((function, gated) for function in FUNCTIONS for gated in (False, True))]
    plain = {"FUNCTION": "plain", "GATED": False, "WHOLE": False, "ROUTED": False}
    # numbers that are 1 when a kernel is launched are compiled in
    yield Variant("gather", 90, "bfloat16", {**plain, **dict.fromkeys(STRIDES, 1), **ONES})
    ones = {"GATED": True, "up_stride": 1}
    end = {"SIGN": -1, "IDENTITY": 2, "DISTINCT": False, "k": 1, "ROUTED": False, **PLACES}
    yield Variant("compete", 90, "bfloat16", {**ones, **end, **ONES})
    tiny = {**ones, "samples": 1, "ROUTED": False, **SAMPLE_PLACES, "PLACES": 8, **ONES}
    yield Variant("sample", 90, "bfloat16", tiny)
    for architecture in SHARED_BYTES:
        # of no dtype: it reads maxima alone
        for rows in ROWS:
            yield Variant("find_hits", architecture, "float32", {**HIT_TILE, **rows})
        for dtype in ("bfloat16",) if few else TYPES:
            for function, gated in (("plain", False), ("gelu", False), ("silu", True)) if few else forms:
                constants = {"FUNCTION": function, "GATED": gated}
                for rows in ROWS:
                    whole = {**constants, "WHOLE": True, **rows, **STRIDES}
                    yield Variant("gather", architecture, dtype, whole)
                if function != "plain":
                    yield Variant("activate_rows", architecture, dtype, constants)
            competitors = [(1, False), (3, False), (3, True)] * (not few)
            for rows, gated in product(ROWS, (False, True)):
                for identity, distinct in [(2, False), (2, True), *competitors]:
                    ends = {"SIGN": 1, "IDENTITY": identity, "DISTINCT": distinct, **rows}
                    ends |= {"GATED": gated, **PLACES}
                    yield Variant("compete", architecture, dtype, ends)
                yield Variant("sample", architecture, dtype, {"GATED": gated, **rows, **SAMPLE_PLACES})


def _compiled(variant: Variant) -> Machine:
    import triton
    from indexer_kernels import activations_triton, bands_triton, statistics_triton, topk_triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel, source, warps = {
        "gather": (statistics_triton.gather, GluonASTSource, statistics_triton.WARPS.value),
        "activate_rows": (activations_triton.activate_rows, GluonASTSource, activations_triton.WARPS.value),
        "compete": (topk_triton.compete, ASTSource, 1),
        "find_hits": (bands_triton.find_hits, ASTSource, 4),
        "sample": (bands_triton.sample, ASTSource, 1),
    }[variant.kernel]
    plainest = {"DISTINCT": False, "ROUTED": False}
    bounded = variant.kernel == "sample" or (
        variant.kernel == "compete"
        and (variant.constants["IDENTITY"] == 3 or not plainest.items() <= variant.constants.items())
    )
    signature, constants, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in variant.constants:
            signature[name] = "constexpr"
            constants[(place,)] = variant.constants[name]
            continue
        kind = next((kind for kind, names in ARGUMENTS.items() if name in names), "*fp32")
        signature[name] = f"*{TYPES[variant.dtype]}" if name in ACTIVATIONS else kind
        # as a launch finds them: allocations, strides and layer sizes are multiples of 16
        if kind.startswith("*") or name in ("units", "width") or name.endswith("stride"):
            aligned[(place,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        source(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", variant.architecture, 32),
        options={
            "num_warps": warps,
            "enable_fp_fusion": False,
            "maxnreg": topk_triton.REGISTERS if bounded else None,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        return take_apart(path, compiled.metadata.shared)


def _check(variant: Variant, machine: Machine) -> None:
    most = SHARED_BYTES[variant.architecture] // BLOCKS - RESERVED_BYTES
    if machine.stack_bytes or machine.spills:
        raise WrongResultError(
            f"{variant.name}: {machine.stack_bytes} bytes of stack, {machine.spills} spills"
        )
    if machine.shared_bytes > most:
        raise WrongResultError(
            f"{variant.name}: {machine.shared_bytes} bytes of shared memory; at most {most}"
        )
    if variant.kernel not in ("compete", "sample") and machine.registers > MOST_REGISTERS:
        raise WrongResultError(f"{variant.name}: {machine.registers} registers; at most {MOST_REGISTERS}")
    if machine.global_atomics:
        raise WrongResultError(f"{variant.name}: {machine.global_atomics} atomics on global memory")
    if variant.budget is not None and not 0 < machine.instructions_per_element <= variant.budget:
        raise WrongResultError(
            f"{variant.name}: {machine.instructions_per_element} instructions per element; "
            f"at most {variant.budget}"
        )


def _table(rows: list[dict[str, Any]]) -> Table:
    shown = ("registers", "stack_bytes", "shared_bytes", "instructions_per_element", "reads_first")
    return Table(
        "kernels ahead of time",
        ("variant", "registers", "stack, bytes", "shared, bytes", "instructions per element", "reads first"),
        [(row["name"], *(str(row[name]) for name in shown)) for row in rows],
    )
