"""The activation functions on the GPU, and a kernel for the rows that a model reads but no statistic does.

float32 has the mathematics of csrc/activations.hpp, with a two-part logarithm in the exponential. For
bfloat16 and float16 the hardware's exponential and reciprocal are closer than their rounding; the two have
no name in the language, so they stand here as assembly.

ReLU is exact, and the others hardly more than rounded, and zero where the definitions are. But for GELU in
bfloat16 where no gate multiplies it: there it is shorter. GELU (erf) is the nearest bfloat16 or one beside
it, the nearest for at least 70% of values between 2^-8 and 8 in size, and for all above 8; where a negative
result is smaller than 2^-11 it is off by at most 5e-7 and the rounding. Both forms keep a negative value
where the definition is zero, which neither `positive` nor `active` counts. Signs are right, NaN and infinity
stay. A state holds what was written: it is taken of the rounded values.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from indexer_kernels.plan import Plan
from indexer_kernels.words_triton import (
    KEEP_NAN,
    UNITS,
    VALUES,
    WARPS,
    negative_sizes,
    positive_or_nan,
    positive_row,
    product_row,
    rounded_row,
    row_of,
    stored_of,
    sum_words,
    values_of,
)

# What a program of `activate_rows` reads of its row before it writes, times 512 units
TILES = gl.constexpr(4)


@gluon.jit
def exp2_hardware(value):
    """2^value as the hardware has it: 2 units in the last place, subnormal results are 0. float32."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [value], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def reciprocal_hardware(value):
    """1 / value as the hardware has it: 1 unit in the last place, subnormal results are 0. float32."""
    return gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [value], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def size_hardware(value):
    """|value|, which costs nothing: what reads it drops the sign. float32."""
    return gl.inline_asm_elementwise(
        "abs.f32 $0, $1;", "=f,f", [value], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def exponential(exponent, correction):
    """exp(exponent + correction), correction tiny, exponent in [-87, 88.72283]; float32."""
    octaves = gl.floor(gl.fma(exponent, 1.44269504, 0.5))
    rest = gl.fma(octaves, -0.693145752, exponent)
    rest = gl.fma(octaves, -1.42860677e-6, rest) + correction
    series = gl.fma(rest, 0.0013814609, 0.0083687173)
    series = gl.fma(series, rest, 0.041668388)
    series = gl.fma(series, rest, 0.16666521)
    series = gl.fma(series, rest, 0.49999993)
    series = gl.fma(series, rest, 1.0)
    series = gl.fma(series, rest, 1.0)
    bits = series.to(gl.int32, bitcast=True) + (octaves.to(gl.int32) << 23)
    return bits.to(gl.float32, bitcast=True)


@gluon.jit
def one_plus_exponential(slope):
    """1 + exp(-slope) in float32; slope from -88.72283 on, below which the exponential leaves it."""
    inside = gl.minimum(gl.maximum(slope, -88.72283172607422), 87.0)
    return 1.0 + exponential(-inside, 0.0)


@gluon.jit
def one_over_one_plus(octaves):
    """1 / (1 + 2^octaves) for a result in 16 bits."""
    return reciprocal_hardware(1.0 + exp2_hardware(octaves))


@gluon.jit
def rounded_factor(factor):
    """The multiple of 2^-25 nearest to a factor in [0, 1/4], of larger ones a multiple of 2^-23. float32."""
    return (factor + 0.25) - 0.25


@gluon.jit
def tail_float32(t):
    """Q(t) = exp(-t^2 / 2) v P(v), v = 1 / (1 + 0.26 t), for t in [0, 13]."""
    square = t * t
    lost = gl.fma(t, t, -square)
    density = exponential(square * -0.5, lost * -0.5)
    v = gl.div_rn(1.0, gl.fma(t, 0.26, 1.0))
    series = gl.fma(v, 0.031065758, -0.15557297)
    series = gl.fma(series, v, 0.2572077)
    series = gl.fma(series, v, -0.1575571)
    series = gl.fma(series, v, 0.16557452)
    series = gl.fma(series, v, 0.049022744)
    series = gl.fma(series, v, 0.10355442)
    series = gl.fma(series, v, 0.10294127)
    series = gl.fma(series, v, 0.10376364)
    return density * (v * series)


@gluon.jit
def tail_16_bits(t):
    """Q(t) = 2^P(t) for t in [0, 6]. Relative error 4.8e-5."""
    octaves = gl.fma(t, 2.2990062e-05, -0.00061110005)
    octaves = gl.fma(octaves, t, 0.0071955663)
    octaves = gl.fma(octaves, t, -0.05118534)
    octaves = gl.fma(octaves, t, -0.46127191)
    octaves = gl.fma(octaves, t, -1.1501743)
    octaves = gl.fma(octaves, t, -1.0000647)
    return exp2_hardware(octaves)


@gluon.jit
def gelu(value, DTYPE: gl.constexpr):
    """relu(x) - |x| Q(|x|) with the normal tail Q, rounded."""
    MOST: gl.constexpr = 13.0 if DTYPE == gl.float32 else 6.0
    # infinite for -infinity alone, so that times 0 it is NaN
    size = gl.abs(gl.minimum(value, MOST))
    t = gl.minimum(size, MOST)
    if DTYPE == gl.float32:
        tail = tail_float32(t)
    else:
        tail = tail_16_bits(t)
    return gl.fma(-size, rounded_factor(tail), gl.maximum(value, 0.0, propagate_nan=KEEP_NAN))


@gluon.jit
def sigmoid_of_tanh(value, DTYPE: gl.constexpr):
    """1 / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if DTYPE == gl.float32:
        cubic = gl.fma(value * value, 0.044715, 1.0)
        return gl.div_rn(1.0, one_plus_exponential(value * 1.59576912 * cubic))
    else:
        return one_over_one_plus(value * gl.fma(value * value, -0.10294324, -2.3022082))


@gluon.jit
def gelu_tanh(value, DTYPE: gl.constexpr):
    """x times the sigmoid, rounded, and 0 where torch's tanh is -1."""
    factor = rounded_factor(sigmoid_of_tanh(value, DTYPE))
    return value * gl.where(value < -5.061380386352539, 0.0, factor)


@gluon.jit
def silu(value, DTYPE: gl.constexpr):
    """x / (1 + exp(-x)), and 0 where the exponential leaves float32."""
    if DTYPE == gl.float32:
        quotient = gl.div_rn(value, one_plus_exponential(value))
        return gl.where(value < -88.72283172607422, value * 0.0, quotient)
    else:
        return value * one_over_one_plus(value * -1.44269504)


@gluon.jit
def gelu_bfloat16(row):
    """relu(x) - t Q(t), t = min(|x|, 16), Q(t) = 2^(-q^3 + a q - b), q of degree two.

    Relative error of Q 3.6e-4 where t Q(t) > 2^-11. Q(16) is 0, so that relu alone is left of infinity, and
    NaN of -infinity.
    """
    size = negative_sizes(row, 0x41804180)
    t = size_hardware(values_of(size, gl.bfloat16))
    root = gl.fma(t, -0.00788076, 0.39197799)
    root = gl.fma(root, t, 1.08055997)
    octaves = gl.fma(root, root, -0.58433632)
    octaves = gl.fma(-root, octaves, -0.37024807)
    tail = rounded_row(exp2_hardware(octaves), gl.bfloat16)
    return sum_words(size, tail, positive_or_nan(row), "bf16x2")


@gluon.jit
def activated_row(row, factor, DTYPE: gl.constexpr, FUNCTION: gl.constexpr, GATED: gl.constexpr):
    """f(row), or f(row) * factor, rounded after each; all rows as in words_triton.

    FUNCTION: a name in activations.FUNCTIONS, or "plain".
    """
    BRIEF: gl.constexpr = DTYPE == gl.bfloat16 and not GATED
    if FUNCTION == "gelu" and BRIEF:
        row = gelu_bfloat16(row)
    elif FUNCTION == "gelu_tanh" and BRIEF:
        value = values_of(row, DTYPE)
        row = rounded_row(value * sigmoid_of_tanh(value, DTYPE), DTYPE)
    elif FUNCTION == "gelu":
        row = rounded_row(gelu(values_of(row, DTYPE), DTYPE), DTYPE)
    elif FUNCTION == "gelu_tanh":
        row = rounded_row(gelu_tanh(values_of(row, DTYPE), DTYPE), DTYPE)
    elif FUNCTION == "silu":
        row = rounded_row(silu(values_of(row, DTYPE), DTYPE), DTYPE)
    elif FUNCTION == "relu":
        row = positive_row(row, DTYPE)
    elif FUNCTION == "relu2":
        positive = positive_row(row, DTYPE)
        row = product_row(positive, positive, DTYPE)
    if GATED:
        row = product_row(row, factor, DTYPE)
    return row


@gluon.jit
def activated_rows(
    gate_at, up_at, out_at, GATE: gl.constexpr, UP: gl.constexpr, OUT: gl.constexpr,
    ROWS: gl.constexpr, FUNCTION: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Read, activate and write ROWS rows, which are returned as a reader of `out` sees them.

    gate_at, up_at, out_at: pointers [WARPS, 64] to the first of them; GATE, UP, OUT: from row to row.
    """
    DTYPE: gl.constexpr = gate_at.dtype.element_ty
    rows = ()
    factors = ()
    # all reads come first, for none could pass a write that may hit its place
    for ahead in gl.static_range(ROWS):
        rows = rows + (row_of(gl.load(gate_at + ahead * GATE), DTYPE),)
        if GATED:
            factors = factors + (row_of(gl.load(up_at + ahead * UP), DTYPE),)
    if FUNCTION != "plain":
        read = rows
        rows = ()
        for ahead in gl.static_range(ROWS):
            factor = factors[ahead] if GATED else read[ahead]
            row = activated_row(read[ahead], factor, DTYPE, FUNCTION, GATED)
            gl.store(out_at + ahead * OUT, stored_of(row, DTYPE))
            rows = rows + (row,)
    return rows


@gluon.jit
def activate_row(gate, up, out, mask, FUNCTION: gl.constexpr, GATED: gl.constexpr):
    """Read, activate, write where FUNCTION is not "plain"; returns the row that a reader of `out` sees.

    gate, up, out: pointers [WARPS, 64] of one dtype.
    """
    DTYPE: gl.constexpr = gate.dtype.element_ty
    row = row_of(gl.load(gate, mask), DTYPE)
    factor = row
    if GATED:
        factor = row_of(gl.load(up, mask), DTYPE)
    if FUNCTION != "plain":
        row = activated_row(row, factor, DTYPE, FUNCTION, GATED)
        gl.store(out, stored_of(row, DTYPE), mask)
    return row


@gluon.jit
def activate_rows(
    gate, up, out, gate_stride, up_stride, out_stride, rows, units,
    FUNCTION: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Activate TILES * WARPS * 64 units of one row; rows: int64, one per program of the first axis."""
    DTYPE: gl.constexpr = gate.dtype.element_ty
    warp = gl.program_id(1) * TILES * WARPS + gl.arange(0, WARPS, gl.SliceLayout(1, VALUES))
    unit = (warp * UNITS)[:, None] + gl.arange(0, UNITS, gl.SliceLayout(0, VALUES))[None, :]
    row = gl.load(rows + gl.program_id(0))
    gate_row, up_row, out_row = gate + row * gate_stride, up + row * up_stride, out + row * out_stride
    gates = ()
    factors = ()
    # all reads come first, for none could pass a write that may hit its place
    for tile in gl.static_range(TILES):
        at = unit + tile * WARPS * UNITS
        gates = gates + (row_of(gl.load(gate_row + at, at < units), DTYPE),)
        if GATED:
            factors = factors + (row_of(gl.load(up_row + at, at < units), DTYPE),)
    for tile in gl.static_range(TILES):
        at = unit + tile * WARPS * UNITS
        factor = factors[tile] if GATED else gates[tile]
        result = activated_row(gates[tile], factor, DTYPE, FUNCTION, GATED)
        gl.store(out_row + at, stored_of(result, DTYPE), at < units)


def activate_other_rows(function: str, gate: Tensor, up: Tensor | None, out: Tensor, plan: Plan) -> None:
    """Activate the rows of a batch that do not count: special tokens and padding."""
    rows, units = plan.other_rows.shape[0], gate.shape[1]
    factor = gate if up is None else up
    if rows:
        activate_rows[(rows, -(-units // (TILES.value * WARPS.value * UNITS.value)))](
            gate, factor, out, gate.stride(0), factor.stride(0), out.stride(0), plan.other_rows, units,
            FUNCTION=function, GATED=up is not None, num_warps=WARPS.value, enable_fp_fusion=False,
        )  # fmt: skip
