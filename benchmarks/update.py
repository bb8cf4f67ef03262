"""Cost of all statistics per element, of every implementation and instruction set, on one core.

A tile of [tokens, units] sits in cache and holds a new sequence before every call; states have seen enough
sequences before that their thresholds have settled. `update` reads activations, `activate` also computes
them, in place; beside them, in the same rounds, a plain read of the same memory and torch's own functions.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from indexer_kernels import Keep, Sequences, Statistics, activate
from indexer_kernels._cpp import instruction_sets
from torch import Tensor

from benchmarks.measure import Side, interleaved, ratios, spread
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.states import first_difference
from benchmarks.tiles import Tile, awkward

ISA = "NEURON_INDEXER_ISA"
READ, REFERENCE = "plain read", "reference"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# In place, as the kernels work: no memory is allocated on either side.
TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: torch.ops.aten.gelu_(x, approximate="none"),
    "gelu_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "silu": torch.ops.aten.silu_,
    "relu": torch.ops.aten.relu_,
}
# How far the kernels' functions may be from the exact ones: float32 rounding inside, and of the result.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Options:
    tokens: int = option(256, "tokens of the tile", quick=24)
    units: int = option(1536, "units of the tile", quick=40)
    rounds: int = option(15, "measured rounds of all sides", quick=1)
    calls: int = option(20, "calls of a side in a round; their mean counts", quick=2)
    settled: int = option(1000, "sequences that states have seen before", quick=5)
    top: int = option(20, "examples kept at either end")


def run(options: Options) -> Report:
    """Verify every implementation on a small batch, then measure all of them in turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _instruction_set(None):
            checks = [_verify_updates(), _verify_activations()]
            say("checked against the reference")
            results = {}
            for name in DTYPES:
                say(f"measuring {name}")
                results[name] = _measure(options, name)
    finally:
        torch.set_num_threads(threads)
    checks.append("after the measured calls the states of all instruction sets are equal, bit for bit")
    rows = [row for dtype in results.values() for row in dtype]
    note = (
        f"tile [{options.tokens}, {options.units}], one thread; states had seen {options.settled} sequences, "
        f"{options.top} examples at either end; the statistics of {options.units} units take "
        f"{Keep(options.top, options.top).bytes_per_unit() * options.units / 1e6:.0f} MB"
    )
    tables = [_table(dtype, found) for dtype, found in results.items()]
    return Report(settings_of(options), checks, {"rows": rows}, tables, [note])


def _measure(options: Options, dtype: str) -> list[dict[str, Any]]:
    """A row for every side of one dtype."""
    sides: dict[str, Side] = {}
    updated: dict[str, Statistics] = {}
    for function in (None, *TORCH):
        tile = _tile(options, dtype, function)
        settled = _settled(options, tile, function)
        if function is None:
            sides[READ] = _calls(options.calls, tile, _read)
            reference = _copy(settled, kernels="reference")
            sides[f"update {REFERENCE}"] = _calls(1, copy.deepcopy(tile), _gather(reference, None))
        else:
            sides[f"{function} torch"] = _calls(options.calls, tile, _of_torch(TORCH[function]))
        for isa in instruction_sets():
            statistics = _copy(settled)
            name = f"{function or 'update'} cpp {isa}"
            sides[name] = _calls(options.calls, copy.deepcopy(tile), _gather(statistics, function), isa)
            if function is None:
                updated[name] = statistics
    seconds = interleaved(sides, options.rounds)
    _verify_equal(updated)
    return [_row(options, dtype, name, taken, seconds) for name, taken in seconds.items()]


def _tile(options: Options, dtype: str, function: str | None) -> Tile:
    return Tile.of(options.tokens, options.units, DTYPES[dtype], activated=function is None)


def _settled(options: Options, tile: Tile, function: str | None) -> Statistics:
    """Statistics that have seen many sequences of the tile, by the fastest kernel."""
    statistics = Statistics.empty(options.units, Keep(options.top, options.top), kernels="cpp", threads=1)
    gather = _gather(statistics, function)
    for _ in range(options.settled):
        gather(tile.values, tile.refill())
    statistics.settle()
    return statistics


def _copy(statistics: Statistics, kernels: str = "cpp") -> Statistics:
    copied = copy.deepcopy(statistics)
    copied.kernels = kernels
    return copied


def _calls(
    calls: int, tile: Tile, call: Callable[[Tensor, Sequences], object], isa: str | None = None
) -> Side:
    """A side that makes some calls, each on new values; the mean of their seconds counts."""

    def side() -> float:
        seconds = 0.0
        with _instruction_set(isa):
            for _ in range(calls):
                sequences = tile.refill()
                # made once for all layers of a model
                sequences.native()
                begin = time.perf_counter()
                call(tile.values, sequences)
                seconds += time.perf_counter() - begin
        return seconds / calls

    return side


def _read(values: Tensor, sequences: Sequences) -> object:
    # the fastest read at hand: whole registers of integers, for which no bit pattern is special
    return values.view(torch.int32).numpy().max()


def _gather(statistics: Statistics, function: str | None) -> Callable[[Tensor, Sequences], object]:
    """What the statistics do with a tile: `update`, or with a function `activate` in place."""
    if function is None:
        return statistics.update
    return lambda values, sequences: statistics.activate(function, values, None, sequences, out=values)


def _of_torch(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Sequences], object]:
    return lambda values, sequences: function(values)


def _row(
    options: Options, dtype: str, name: str, seconds: list[float], all_seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """ns per element, GB/s, and ratios to the plain read and to torch's function."""
    operation, *implementation = name.split() if name != READ else (READ,)
    elements = options.tokens * options.units
    passes = 2 if operation in TORCH else 1
    moved = elements * passes * DTYPES[dtype].itemsize
    row: dict[str, Any] = {
        "dtype": dtype,
        "operation": operation,
        "implementation": " ".join(implementation),
        "ns_per_element": spread([1e9 * taken / elements for taken in seconds]),
        "gb_per_second": moved / spread(seconds)["median"] / 1e9,
        "against_read": ratios(seconds, all_seconds[READ]),
    }
    if operation in TORCH:
        row["against_torch"] = ratios(seconds, all_seconds[f"{operation} torch"])
    return row


def _table(dtype: str, rows: list[dict[str, Any]]) -> Table:
    def ratio(row: dict[str, Any], name: str) -> str:
        return f"{row[name]['pairs']['median']:.2f}" if name in row else ""

    return Table(
        f"All statistics, {dtype}, one core",
        ("operation", "implementation", "ns/element", "lowest", "highest", "GB/s", "x plain read", "x torch"),
        [
            (
                row["operation"],
                row["implementation"],
                *(f"{row['ns_per_element'][name]:.3f}" for name in ("median", "min", "max")),
                f"{row['gb_per_second']:.1f}",
                ratio(row, "against_read"),
                ratio(row, "against_torch"),
            )
            for row in rows
        ],
    )


def _verify_updates() -> str:
    """Every instruction set and dtype equals the reference on awkward batches; raises WrongResultError."""
    keep = Keep(top=5, bottom=4, window=(6, 3))
    for name, dtype in DTYPES.items():
        batches = [awkward(seed, dtype) for seed in range(3)]
        units = batches[0][0].shape[1]
        reference = Statistics.empty(units, keep, kernels="reference")
        for values, sequences in batches:
            reference.update(values, sequences)
        for isa in instruction_sets():
            with _instruction_set(isa):
                statistics = Statistics.empty(units, keep, kernels="cpp", threads=1)
                for values, sequences in batches:
                    statistics.update(values, sequences)
            found = first_difference(statistics, reference)
            if found is not None:
                raise WrongResultError(f"update, {name}, {isa} against the reference: {found}")
    return "update: every instruction set equals the reference on awkward batches, bit for bit, both dtypes"


def _verify_activations() -> str:
    """Every fused function is right, and gathers what update would; raises WrongResultError."""
    keep = Keep(top=5, bottom=4, window=(6, 3))
    for name, dtype in DTYPES.items():
        for function in TORCH:
            gate, sequences = awkward(0, dtype)
            expected = activate(function, gate).double()
            for isa in instruction_sets():
                with _instruction_set(isa):
                    fused = Statistics.empty(gate.shape[1], keep, kernels="cpp", threads=1)
                    out = fused.activate(function, gate.clone(), None, sequences)
                where = f"{function}, {name}, {isa}"
                close = (out.double() - expected).abs() <= TOLERANCE[name] * expected.abs() + 1e-7
                if not (close | (out == expected) | (out.isnan() & expected.isnan())).all():
                    raise WrongResultError(
                        f"{where}: values are further from the function than {TOLERANCE[name]:.1g}"
                    )
                then = Statistics.empty(gate.shape[1], keep, kernels="reference")
                then.update(out, sequences)
                found = first_difference(fused, then)
                if found is not None:
                    raise WrongResultError(f"{where} against the function, then the reference: {found}")
    return "activate: values within float32 rounding of the exact functions, states equal to update on them"


def _verify_equal(updated: dict[str, Statistics]) -> None:
    """All states were shown the same sequences, so they must be the same; raises WrongResultError."""
    (name, first), *others = updated.items()
    for other, statistics in others:
        found = first_difference(first, statistics)
        if found is not None:
            raise WrongResultError(f"{name} against {other}, after the measured calls: {found}")


@contextmanager
def _instruction_set(name: str | None) -> Iterator[None]:
    """Within the block the kernels use this instruction set, the best one for None."""
    before = os.environ.pop(ISA, None)
    if name is not None:
        os.environ[ISA] = name
    try:
        yield
    finally:
        os.environ.pop(ISA, None)
        if before is not None:
            os.environ[ISA] = before
