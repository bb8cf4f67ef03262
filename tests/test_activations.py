"""The fused kernels: the activation functions, and that gathering rides along without changing a bit."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from indexer_kernels import FUNCTIONS, Keep, KernelInputError, Sequences, Statistics, activate
from indexer_kernels.activations import apply

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

KEEP = Keep(top=3, bottom=3, window=(4, 2))


def pre_activations(tokens: int, units: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Ordinary values and some far out, in a matrix with room to the right."""
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(tokens, units + 3, generator=generator)
    values[torch.rand(values.shape, generator=generator) < 0.02] *= 20
    return values.to(dtype)[:, :units]


def further_than_rounding(
    function: str, gate: torch.Tensor, up: torch.Tensor | None, out: torch.Tensor, *, triton: bool = False
) -> torch.Tensor:
    """Where a kernel's activations are not the definition's, rounding aside: bool of their shape."""
    expected = activate(function, gate, up).double()
    # float32 rounding inside may tip the rounding to a 16-bit dtype by one unit in its last place
    unit = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[out.dtype]
    # near the middle of two multiples of 2^-25 either is right
    step = 2.0**-25 * gate.double().abs() * ("gelu" in function)
    if triton and out.dtype == torch.bfloat16:
        # the function may be the one beside the nearest, and so may the product; see activations_triton.py
        unit, step = unit * (1 if up is None else 2), torch.full_like(step, 5e-7)
    if triton and out.dtype == torch.float16:
        # so may the function, which is a multiple of this
        step += 2.0**-24
    tail = step * (1.0 if up is None else up.double().abs()) + 1e-7
    return ~((torch.abs(out.double() - expected) <= unit * expected.abs() + tail) | (out == expected))


def one_sequence(tokens: int) -> Sequences:
    return Sequences.from_offsets(
        np.array([0, tokens]), np.array([0]), np.array([0]), np.zeros(tokens, np.int32)
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_is_within_a_few_units_in_the_last_place(function: str, instruction_set: str) -> None:
    x = torch.linspace(-30, 30, 64 * 1501).reshape(-1, 64)
    got = Statistics.empty(64, KEEP).activate(function, x, None, one_sequence(len(x))).double()
    expected = apply(function, x)
    # In GELU (tanh) the exponent's own rounding is all there is. Both forms of GELU round the factor of a
    # negative x to multiples of 2^-25, and near the middle of two either is right.
    exponent = 2 * math.sqrt(2 / math.pi) * (x.double().abs() + 0.044715 * x.double().abs() ** 3)
    relative = 6e-7 + (1.5e-7 * exponent if function == "gelu_tanh" else 0)
    step = 2.0**-25 * x.double().abs() * (x < 0) if "gelu" in function else 0.0
    assert (torch.abs(got - expected) <= relative * expected.abs() + step + 1e-36).all()
    tail = x < -5.6
    if "gelu" in function:
        assert (got[tail] == 0).all()


# Where torch's own instructions disagree with each other: below -5.5426 the plain ones give 0. And half of
# the smallest x is in the middle of two.
EXCEPTIONS = {
    ("gelu", torch.float16): (-5.54296875,),
    ("gelu_tanh", torch.float16): (2.0**-24,),
}
EDGES = (5.5426, 5.061380386, 88.72283173, 2.0**-9, 2.0**-10)


def counted_otherwise(function: str, x: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """Of x, what counts otherwise than torch's own, zero apart from negative; got: what a kernel gave."""
    wanted = TORCH[function](x)
    same = (kinds(got) == kinds(wanted)) & ((got == 0) == (wanted == 0))
    return x[~same]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_16_bit_value_counts_as_in_torch(
    function: str, dtype: torch.dtype, instruction_set: str
) -> None:
    x = every_16_bit_value(dtype)
    kernel = Statistics.empty(64, KEEP).activate(function, x, None, one_sequence(len(x)))
    for got in (kernel, activate(function, x)):
        assert set(counted_otherwise(function, x, got).tolist()) <= set(EXCEPTIONS.get((function, dtype), ()))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float32_counts_as_in_torch_at_every_edge(function: str, instruction_set: str) -> None:
    x = float32_near(*EDGES)
    kernel = Statistics.empty(64, KEEP).activate(function, x, None, one_sequence(len(x)))
    for got in (kernel, activate(function, x)):
        other = counted_otherwise(function, x, got)
        if function == "gelu":
            # torch's vector instructions end a little later than its others, see activations.py
            other = other[~((other > -5.54305) & (other < -5.54259))]
        assert not len(other), other[:5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ["gelu", "gelu_tanh", "silu"])
def test_minus_infinity_is_counted_as_nan(function: str, dtype: torch.dtype, instruction_set: str) -> None:
    x = torch.zeros(3, 5, dtype=dtype)
    x[1, 2], x[1, 3] = -torch.inf, torch.inf
    assert torch.equal(TORCH[function](x).isnan(), x == -torch.inf)
    for kernels in ("cpp", "reference"):
        for up in (None, torch.ones_like(x)):
            statistics = Statistics.empty(5, KEEP, kernels=kernels)
            statistics.activate(function, x, up, one_sequence(3))
            statistics.settle()
            assert statistics.moments.nan.tolist() == [0, 0, 1, 0, 0]
            assert statistics.moments.inf.tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_keeps_what_is_not_finite(function: str, instruction_set: str) -> None:
    x = torch.tensor([[float("nan"), float("inf"), 0.0, -0.0, 1e30, -1e30]])
    got = Statistics.empty(6, KEEP).activate(function, x, None, one_sequence(1))[0]
    assert torch.isnan(got[0])
    assert torch.isinf(got[1])
    assert got[1] > 0
    assert (got[2:4] == 0).all()
    assert got[4] == (float("inf") if function == "relu2" else torch.tensor(1e30))
    assert got[5] == 0


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_fused_is_activation_then_update(
    function: str, dtype: torch.dtype, gated: bool, instruction_set: str
) -> None:
    tokens, units = 300, 70
    sequences = some_sequences(tokens, np.random.default_rng(7))
    gate = pre_activations(tokens, units, dtype)
    up = pre_activations(tokens, units, dtype, seed=1) if gated else None
    before = gate.clone()
    fused = Statistics.empty(units, KEEP, threads=2)
    out = fused.activate(function, gate, up, sequences, out=gate)
    assert out is gate
    then = Statistics.empty(units, KEEP, kernels="reference")
    then.update(out, sequences)
    if up is not None:
        set_up(then, up, sequences)
    assert_equal(fused, then)
    assert not further_than_rounding(function, before, up, out).any()


@pytest.mark.parametrize("kernels", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by", ["sequence", "token", "document"])
def test_examples_hold_the_other_factor_where_it_was_given(
    by: str, dtype: torch.dtype, kernels: str, instruction_set: str
) -> None:
    keep = dataclasses.replace(KEEP, by=by, samples=2)
    found, wanted = (
        Statistics.empty(7, keep, layer="mlp.0", kernels=kind) for kind in (kernels, "reference")
    )
    for batch, form in enumerate(("fused", "alone", "made before", "fused", "alone")):
        sequences = some_sequences(300, np.random.default_rng(batch), first_document=100 * batch)
        gate, up = (pre_activations(300, 7, dtype, seed=2 * batch + factor) for factor in range(2))
        up[::5] *= -0.0
        if form == "fused":
            found.activate("silu", gate, up, sequences, out=gate)
        else:
            found.update(gate, sequences, None if form == "alone" else up)
        wanted.update(gate, sequences)
        if form != "alone":
            set_up(wanted, up, sequences)
    assert_equal(found, wanted)
    for state in (found.top, found.bottom, found.samples):
        assert state is not None
        assert 0 < np.isnan(state.up[state.taken]).mean() < 1
        assert not np.signbit(state.up[state.up == 0]).any()


def test_gate_and_up_may_lie_in_one_tensor(instruction_set: str) -> None:
    tokens, units = 90, 70
    packed = pre_activations(tokens, 2 * units, torch.float32)
    sequences = one_sequence(tokens)
    expected = activate("silu", packed[:, :units], packed[:, units:])
    statistics = Statistics.empty(units, KEEP)
    out = statistics.activate("silu", packed[:, :units], packed[:, units:], sequences, out=packed[:, :units])
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=1e-30)


def test_every_instruction_set_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for name in ("baseline", "avx2", "avx512"):
        monkeypatch.setenv("NEURON_INDEXER_ISA", name)
        try:
            statistics = Statistics.empty(70, KEEP)
        except KernelInputError:
            continue
        x = pre_activations(256, 70, torch.float32)
        out = [statistics.activate(function, x, None, one_sequence(256)) for function in FUNCTIONS]
        results.append(torch.stack(out).view(torch.int32))
    assert all(torch.equal(result, results[0]) for result in results)


def test_padding_is_activated_and_not_counted() -> None:
    sequences = Sequences(
        np.array([2, 50]),
        np.array([10, 5]),
        np.array([0, 1]),
        np.array([0, 0]),
        np.zeros(60),
        np.ones(60, bool),
    )
    x = pre_activations(60, 64, torch.float32)
    statistics = Statistics.empty(64, KEEP)
    out = statistics.activate("gelu", x, None, sequences)
    torch.testing.assert_close(out, activate("gelu", x), rtol=2e-6, atol=6 * 2.0**-25)
    statistics.settle()
    assert statistics.count == 15
    assert (statistics.histogram.counts.sum(axis=1) == 15).all()


def test_unknown_function_is_refused() -> None:
    with pytest.raises(KernelInputError, match="gelu_tanh"):
        Statistics.empty(4, KEEP).activate("swish", torch.zeros(1, 4), None, one_sequence(1))
