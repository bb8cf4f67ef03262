// Activation functions, vector by vector, as torch has them (see indexer_kernels/activations.py): accurate to a few units
// in the last place, but that both forms of GELU round the factor of x to multiples of 2^-25 for negative x.
//
// GELU (erf) is relu(x) - |x| * Q(|x|) with the normal tail Q(t) = exp(-t^2 / 2) * v * P(v), v = 1 / (1 + 0.26 t). P and
// the exponential's polynomial are least-maximum fits of our own (relative errors 1.9e-8 on [0, 13] and 3.1e-9 on
// [-ln 2 / 2, ln 2 / 2]).
// GELU (tanh) is x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); SiLU is x * sigmoid(x).
#pragma once
#include "job.hpp"
#include "simd.hpp"

namespace indexer {
namespace INDEXER_ISA {

// exp(y + correction) for y in [-87, 88.72283]
INDEXER_INLINE Floats exponential(Floats y, Floats correction) {
  // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
  const Floats magic = splat(12582912.0f);
  const Floats shifted = fma(y, splat(1.44269504f), magic);
  const Floats octaves = shifted - magic;
  Floats rest = fma(octaves, splat(-0.693145752f), y);
  rest = fma(octaves, splat(-1.42860677e-6f), rest) + correction;
  Floats series = splat(0.0013814609f);
  series = fma(series, rest, splat(0.0083687173f));
  series = fma(series, rest, splat(0.041668388f));
  series = fma(series, rest, splat(0.16666521f));
  series = fma(series, rest, splat(0.49999993f));
  series = fma(series, rest, splat(1.0f));
  series = fma(series, rest, splat(1.0f));
  return as_floats(as_ints(series) + shift_left<23>(as_ints(shifted)));
}

// 1 + exp(-z); z from -88.72283 on, below which the exponential leaves float32
INDEXER_INLINE Floats one_plus_exponential(Floats z) {
  const Floats inside = min(splat(87.0f), max(splat(-88.72283173f), z));
  return splat(1.0f) + exponential(negated(inside), splat(0.0f));
}

// The multiple of 2^-25 nearest to a factor in [0, 1/4], of larger ones a multiple of 2^-23.
INDEXER_INLINE Floats rounded_factor(Floats factor) { return (factor + splat(0.25f)) - splat(0.25f); }

// The value, but 0 where x is below the limit, and NaN where it is -infinity.
INDEXER_INLINE Floats zero_below(float limit, Floats x, Floats value) {
  return select_greater(splat(limit), x, x * splat(0.0f), value);
}

INDEXER_INLINE Floats silu(Floats x) { return zero_below(-88.72283173f, x, x / one_plus_exponential(x)); }

INDEXER_INLINE Floats gelu(Floats x) {
  const Floats limit = splat(13.0f);
  // infinite for -infinity alone, so that times 0 it is NaN
  const Floats size = magnitude_of(min(x, limit));
  const Floats t = min(size, limit);
  const Floats square = t * t;
  // what rounding the square lost, put back into the exponent
  const Floats lost = fma(t, t, negated(square));
  const Floats density = exponential(square * splat(-0.5f), lost * splat(-0.5f));
  const Floats v = splat(1.0f) / fma(t, splat(0.26f), splat(1.0f));
  Floats series = splat(0.031065758f);
  series = fma(series, v, splat(-0.15557297f));
  series = fma(series, v, splat(0.2572077f));
  series = fma(series, v, splat(-0.1575571f));
  series = fma(series, v, splat(0.16557452f));
  series = fma(series, v, splat(0.049022744f));
  series = fma(series, v, splat(0.10355442f));
  series = fma(series, v, splat(0.10294127f));
  series = fma(series, v, splat(0.10376364f));
  return fma(negated(size), rounded_factor(density * (v * series)), max(splat(0.0f), x));
}

INDEXER_INLINE Floats gelu_tanh(Floats x) {
  const Floats cubic = fma(x * x, splat(0.044715f), splat(1.0f));
  const Floats sigmoid = splat(1.0f) / one_plus_exponential(x * splat(1.59576912f) * cubic);
  return zero_below(-5.061380386f, x, x * rounded_factor(sigmoid));
}

template <Function function>
INDEXER_INLINE Floats activated(Floats x) {
  if constexpr (function == Function::gelu) return gelu(x);
  if constexpr (function == Function::gelu_tanh) return gelu_tanh(x);
  if constexpr (function == Function::silu) return silu(x);
  if constexpr (function == Function::relu) return max(splat(0.0f), x);
  if constexpr (function == Function::relu2) {
    const Floats positive = max(splat(0.0f), x);
    return positive * positive;
  }
  return x;
}

}  // namespace INDEXER_ISA
}  // namespace indexer
