"""The fused Triton kernel in Triton's interpreter: functions, statistics that ride along, operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from indexer_kernels import FUNCTIONS, Keep, Sequences, Statistics, activate
from indexer_kernels.activations import apply
from torch import Tensor

from benchmarks.counts import TORCH
from tests.kernel_cases import (
    DTYPES,
    assert_equal,
    every_16_bit_value,
    float32_near,
    kinds,
    set_up,
    some_sequences,
)
from tests.test_activations import (
    EDGES,
    EXCEPTIONS,
    counted_otherwise,
    further_than_rounding,
    one_sequence,
    pre_activations,
)

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
pytestmark = pytest.mark.usefixtures("triton_interpreter")

KEEP = Keep(top=2, bottom=1, window=(4, 2), samples=1)
# Half of the smallest x is in the middle of two. The hardware's reciprocal is 0 where it would be
# subnormal.
MORE_EXCEPTIONS = {
    ("gelu", torch.float16): (2.0**-24,),
    ("gelu", torch.bfloat16): (2.0**-133,),
    ("silu", torch.bfloat16): (-87.5, -88.0, -88.5),
}
NONE = Keep(top=0, bottom=0)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("dtype", [*DTYPES[:2], pytest.param(DTYPES[2], marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_fused_is_activation_then_update(function: str, dtype: torch.dtype, gated: bool) -> None:
    tokens, units = 40, 3
    sequences = some_sequences(tokens, np.random.default_rng(7))
    gate = pre_activations(tokens, units, dtype)
    up = pre_activations(tokens, units, dtype, seed=1) if gated else None
    before = gate.clone()
    fused = Statistics.empty(units, KEEP, layer="mlp.0", kernels="triton")
    out = fused.activate(function, gate, up, sequences, out=gate)
    assert out is gate
    then = Statistics.empty(units, KEEP, layer="mlp.0", kernels="reference")
    then.update(out, sequences)
    if up is not None:
        set_up(then, up, sequences)
    assert_equal(fused, then)
    assert not further_than_rounding(function, before, up, out, triton=True).any()


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_loop_without_masks_writes_every_row(packed: bool) -> None:
    # two rows of no sequence, and 25 for every warp: two turns, one of that for what is left, one with a mask
    tokens, units = 204, 64
    both = pre_activations(tokens, 2 * units, torch.bfloat16)
    gate, up = both[:, :units], both[:, units:]
    expected = activate("silu", gate, up)
    statistics = Statistics.empty(units, NONE, kernels="triton")
    eight = np.arange(8)
    sequences = Sequences(
        2 + 25 * eight, np.full(8, 25), eight, np.zeros(8), np.zeros(tokens), np.ones(tokens, bool)
    )
    out = statistics.activate("silu", gate, up, sequences, out=gate if packed else None)
    torch.testing.assert_close(out, expected, rtol=2.0**-7, atol=1e-7)
    then = Statistics.empty(units, NONE, kernels="reference")
    then.update(out, sequences)
    assert_equal(statistics, then)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_is_within_a_few_units_in_the_last_place(function: str) -> None:
    x = torch.linspace(-30, 30, 20 * 61).reshape(20, 61)
    got = Statistics.empty(61, NONE, kernels="triton").activate(function, x, None, one_sequence(20)).double()
    expected = apply(function, x)
    exponent = 2 * np.sqrt(2 / np.pi) * (x.double().abs() + 0.044715 * x.double().abs() ** 3)
    relative = 6e-7 + (1.5e-7 * exponent if function == "gelu_tanh" else 0)
    # near the middle of two multiples of 2^-25 either is right
    step = 2.0**-25 * x.double().abs() * (x < 0) if "gelu" in function else 0.0
    assert (torch.abs(got - expected) <= relative * expected.abs() + step + 1e-36).all()


def of_every_16_bit_value(
    function: str, dtype: torch.dtype, finite: bool = True, gated: bool = False
) -> tuple[Tensor, Tensor]:
    """All values, or the finite ones, and what the kernel makes of them; gated: times 1."""
    x = every_16_bit_value(dtype)
    x = x[x.isfinite()].reshape(-1, 64) if finite else x
    up = torch.ones_like(x) if gated else None
    # one to each warp, so that most rows are taken without masks
    edges = np.linspace(0, len(x), 9).astype(np.int64)
    sequences = Sequences.from_offsets(edges, np.arange(8), np.zeros(8), np.zeros(len(x)))
    return x, Statistics.empty(64, NONE, kernels="triton").activate(function, x, up, sequences)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_16_bit_value_counts_as_in_torch(function: str, dtype: torch.dtype, gated: bool) -> None:
    x, got = of_every_16_bit_value(function, dtype, finite=False, gated=gated)
    wanted = TORCH[function](x)
    known = torch.tensor(EXCEPTIONS.get((function, dtype), ()) + MORE_EXCEPTIONS.get((function, dtype), ()))
    other = ~torch.isin(x, known.to(dtype))
    assert torch.equal(kinds(got)[other], kinds(wanted)[other])
    # times a negative `up` what is left of a zero would be positive
    if gated:
        assert torch.equal((got == 0)[other], (wanted == 0)[other])


def test_float32_counts_as_in_torch_at_every_edge() -> None:
    for function in ("gelu", "gelu_tanh", "silu"):
        x = float32_near(*EDGES)[::9]
        got = Statistics.empty(64, NONE, kernels="triton").activate(function, x, None, one_sequence(len(x)))
        other = counted_otherwise(function, x, got)
        if function == "gelu":
            other = other[~((other > -5.54305) & (other < -5.54259))]
        assert not len(other), (function, other[:5])


ROUNDED = [
    ("silu", torch.bfloat16),
    ("gelu_tanh", torch.bfloat16),
    ("relu2", torch.bfloat16),
    *((name, torch.float16) for name in FUNCTIONS),
]


@pytest.mark.parametrize(("function", "dtype"), ROUNDED, ids=str)
def test_function_of_every_16_bit_value_is_hardly_more_than_rounded(
    function: str, dtype: torch.dtype
) -> None:
    x, got = of_every_16_bit_value(function, dtype)
    expected = apply(function, x)
    # rounding, the function's own error, and in GELU (tanh) that of its exponent, which grows in the tail
    half_a_place, own = (2.0**-8, 1e-6) if dtype == torch.bfloat16 else (2.0**-11, 5e-5)
    exponent = 1.6 * (x.double().abs() + 0.045 * x.double().abs() ** 3) if function == "gelu_tanh" else 0.0
    # subnormal results: float16 rounds them, and float32's are 0
    bound = (half_a_place + own + 2e-7 * exponent) * expected.abs()
    bound += 1e-36 if dtype == torch.bfloat16 else 2.0**-24 * 0.51
    if "gelu" in function:
        # rounded to another multiple of 2^-25, or not at all
        bound += torch.where(x < 0, 2.0**-25 * x.double().abs(), 0.0)
    close = (torch.abs(got.double() - expected) <= bound) | (got == expected.to(dtype))
    assert close.all(), (x[~close][:5], got[~close][:5], expected[~close][:5])


def test_brief_function_is_at_most_one_bfloat16_from_the_nearest() -> None:
    x, got = of_every_16_bit_value("gelu", torch.bfloat16)
    expected = apply("gelu", x)
    nearest = expected.bfloat16()
    # far out on the left the function is small, and so is the error; subnormal numbers have few places
    tail = ((x < -1) & (expected.abs() < 2.0**-11)) | (x.abs() < 2.0**-110)
    off = torch.abs(got.double() - expected) - 2.0**-8 * expected.abs()
    assert (off[tail] <= 5e-7).all(), off[tail].max()
    steps = torch.abs(place(got) - place(nearest))
    assert (steps[~tail] <= 1).all(), x[~tail][steps[~tail] > 1][:5]
    assert (got.double() * expected >= 0).all()
    usual = (x.abs() > 2.0**-8) & (x.abs() < 8)
    assert (steps[usual] == 0).double().mean() >= 0.7
    assert (steps[x > 8] == 0).all()


def place(values: Tensor) -> Tensor:
    """Where bfloat16 values stand among all of them, both zeros at 0."""
    bits = values.view(torch.int16).int()
    return torch.where(bits < 0, -32768 - bits, bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_keeps_what_is_not_finite(function: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[float("nan"), float("inf"), 0.0, -0.0, 1e30, -1e30]], dtype=dtype)
    got = Statistics.empty(6, NONE, kernels="triton").activate(function, x, None, one_sequence(1))[0]
    assert torch.isnan(got[0])
    assert got[1] == float("inf")
    assert (got[2:4] == 0).all()
    assert got[4] == (float("inf") if function == "relu2" else x[0, 4])
    assert got[5] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ["gelu", "gelu_tanh", "silu"])
def test_minus_infinity_is_counted_as_nan(function: str, dtype: torch.dtype) -> None:
    x = torch.zeros(3, 5, dtype=dtype)
    x[1, 2], x[1, 3] = -torch.inf, torch.inf
    for up in (None, torch.ones_like(x)):
        statistics = Statistics.empty(5, NONE, kernels="triton")
        statistics.activate(function, x, up, one_sequence(3))
        statistics.settle()
        assert statistics.moments.nan.tolist() == [0, 0, 1, 0, 0]
        assert statistics.moments.inf.tolist() == [0, 0, 0, 1, 0]


def test_compile_keeps_one_graph_around_the_operators() -> None:
    from indexer_kernels import ops
    from indexer_kernels.device import DeviceStatistics
    from indexer_kernels.plan import Plan

    sequences = some_sequences(20, np.random.default_rng(0))
    plan = Plan.of(sequences, torch.device("cpu")).tensors()
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    x = pre_activations(20, 4, torch.float32)

    def layer(x: Tensor, bars: list[Tensor], sums: list[Tensor]) -> Tensor:
        gate = x @ weight
        out = torch.empty_like(gate)
        ops.activate("relu", gate, None, out, plan, bars, sums, [], [], [], [0, 0], "sequence")
        ops.update(out, None, plan, bars, sums, [], [], [], [0, 0], "sequence")
        return out @ weight.T

    results = []
    for form in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        state = DeviceStatistics.of(3, None, None, None, torch.device("cpu"))
        results.append([form(x, state.bars, state.sums.tensors()), *state.sums.tensors()])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0, atol=0)
    assert results[0][1].sum() == 2 * 3 * sequences.counted[_rows(sequences)].sum()


def _rows(sequences: Sequences) -> np.ndarray:
    return np.concatenate(
        [
            np.arange(start, start + length)
            for start, length in zip(sequences.start, sequences.length, strict=True)
        ]
    )
