"""The activation functions on the GPU, and a kernel for the rows that a model reads but no statistic does.

The mathematics is that of csrc/activations.hpp. float32 takes the exponential with a two-part logarithm; for
bfloat16 and float16 the hardware's own is closer than their rounding.
The two instructions have no name in the language, so these are the two lines of assembly in this project.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from indexer_kernels.plan import Plan

UNITS = 1024


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
def exponential(exponent, correction):
    """exp(exponent + correction), correction tiny, exponent in [-87, 88]; float32."""
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
def times_sigmoid(value, slope, WIDE: gl.constexpr):
    """value / (1 + exp(-slope)), 0 where the exponential leaves float32."""
    if not WIDE:
        return value * reciprocal_hardware(1.0 + exp2_hardware(slope * -1.44269504))
    inside = gl.minimum(gl.maximum(slope, -88.0), 87.0)
    sigmoid = 1.0 + exponential(-inside, 0.0)
    return gl.where(slope < -88.0, value * 0.0, gl.div_rn(value, sigmoid))


@gluon.jit
def gelu(value, WIDE: gl.constexpr):
    """relu(x) - |x| Q(|x|) with the normal tail Q(t) = exp(-t^2 / 2) v P(v), v = 1 / (1 + 0.26 t).

    P has degree 8 for float32 and 4 for 16 bits: relative error 7.8e-5, a sixth of a float16's last place.
    """
    size = gl.abs(value)
    # exp(-16^2 / 2) is 0 in float32, as is the tail of infinity; WIDE keeps to the exponential's range
    t = gl.minimum(size, 13.0 if WIDE else 16.0)
    square = t * t
    if WIDE:
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
        tail = gl.where(size > 13.0, 0.0, density * (v * series))
    else:
        v = reciprocal_hardware(gl.fma(t, 0.26, 1.0))
        series = gl.fma(v, 0.16982546, 0.0061483117)
        series = gl.fma(series, v, 0.11867775)
        series = gl.fma(series, v, 0.1017083)
        series = gl.fma(series, v, 0.10367901)
        tail = exp2_hardware(square * -0.72134752) * (v * series)
    # maximum alone would turn NaN to 0
    positive = gl.where(value < 0.0, 0.0, value)
    return gl.fma(-t, tail, positive)


@gluon.jit
def activated(value, FUNCTION: gl.constexpr, WIDE: gl.constexpr):
    """f(value), float32 of any shape. FUNCTION: a name in activations.FUNCTIONS, or "plain"."""
    if FUNCTION == "gelu":
        return gelu(value, WIDE)
    elif FUNCTION == "gelu_tanh":
        cubic = gl.fma(value * value, 0.044715, 1.0)
        return times_sigmoid(value, value * 1.59576912 * cubic, WIDE)
    elif FUNCTION == "silu":
        return times_sigmoid(value, value, WIDE)
    elif FUNCTION == "relu":
        return gl.where(value < 0.0, 0.0, value)
    elif FUNCTION == "relu2":
        positive = gl.where(value < 0.0, 0.0, value)
        return positive * positive
    else:
        return value


@gluon.jit
def rounded(value, DTYPE: gl.constexpr):
    """A float32 in the dtype of the model, to nearest, ties to even."""
    return value.to(DTYPE)


@gluon.jit
def activate_row(gate, up, out, mask, FUNCTION: gl.constexpr, GATED: gl.constexpr):
    """Read, activate, write where FUNCTION is not "plain"; returns the float32 that a reader of `out` sees.

    gate, up, out: pointers of one shape and dtype. A gated model rounds f(gate) before it multiplies.
    """
    WIDE: gl.constexpr = gate.dtype.element_ty == gl.float32
    read = gl.load(gate, mask)
    if GATED:
        factor = gl.load(up, mask).to(gl.float32)
    value = read.to(gl.float32)
    if FUNCTION != "plain":
        result = rounded(activated(value, FUNCTION, WIDE), gate.dtype.element_ty)
        if GATED:
            result = rounded(result.to(gl.float32) * factor, gate.dtype.element_ty)
        gl.store(out, result, mask)
        value = result.to(gl.float32)
    return value


@gluon.jit
def activate_rows(
    gate, up, out, gate_stride, up_stride, out_stride, rows, units,
    WIDTH: gl.constexpr, FUNCTION: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Activate WIDTH units of one row; rows: int64, one per program of the first axis."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([8], [32], [4], [0])
    unit = gl.program_id(1) * WIDTH + gl.arange(0, WIDTH, LAYOUT)
    row = gl.load(rows + gl.program_id(0))
    activate_row(
        gate + row * gate_stride + unit, up + row * up_stride + unit, out + row * out_stride + unit,
        unit < units, FUNCTION, GATED,
    )  # fmt: skip


def activate_other_rows(function: str, gate: Tensor, up: Tensor | None, out: Tensor, plan: Plan) -> None:
    """Activate the rows of a batch that do not count: special tokens and padding."""
    rows, units = plan.other_rows.shape[0], gate.shape[1]
    factor = gate if up is None else up
    if rows:
        activate_rows[(rows, -(-units // UNITS))](
            gate, factor, out, gate.stride(0), factor.stride(0), out.stride(0), plan.other_rows, units,
            WIDTH=UNITS, FUNCTION=function, GATED=up is not None, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
