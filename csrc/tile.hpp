// A tile of activations, 32 tokens x 64 units, on its way from what the matrix product wrote to what the model reads
// next: activated, rounded to the dtype, and kept as float32 for the statistics.
#pragma once
#include <cstdint>
#include <cstring>

#include "activations.hpp"
#include "isa.hpp"
#include "job.hpp"
#include "simd.hpp"

namespace indexer {
namespace INDEXER_ISA {

constexpr int kVectors = kBlockUnits / kLanes;

template <DType dtype>
struct Element;
template <>
struct Element<DType::float32> {
  using Type = float;
  static INDEXER_INLINE Floats read(const Type* from) { return load(from); }
  static INDEXER_INLINE Floats round(Type* to, Floats a) { store(to, a); return a; }
};
template <>
struct Element<DType::bfloat16> {
  using Type = std::uint16_t;
  static INDEXER_INLINE Floats read(const Type* from) { return load_bfloat16(from); }
  static INDEXER_INLINE Floats round(Type* to, Floats a) { return round_bfloat16(to, a); }
};
template <>
struct Element<DType::float16> {
  using Type = std::uint16_t;
  static INDEXER_INLINE Floats read(const Type* from) { return load_float16(from); }
  static INDEXER_INLINE Floats round(Type* to, Floats a) { return round_float16(to, a); }
};

// One row of 64 units: activated, rounded to the dtype, written for the model and, as float32, into the tile.
template <DType dtype, Function function, bool gated>
INDEXER_INLINE void activate_row(const typename Element<dtype>::Type* gate, const typename Element<dtype>::Type* up,
                                 typename Element<dtype>::Type* out, float* tile) {
  using E = Element<dtype>;
  for (int vector = 0; vector < kVectors; ++vector) {
    const int at = vector * kLanes;
    Floats value = E::read(gate + at);
    if constexpr (function != Function::identity) {
      // a gated model rounds f(gate) to its dtype before it multiplies, and so do we
      const Floats factor = gated ? E::read(up + at) : value;
      value = E::round(out + at, activated<function>(value));
      if constexpr (gated) value = E::round(out + at, value * factor);
    }
    store(tile + at, value);
  }
}

template <DType dtype, Function function, bool gated>
void fill_tile(const Job& job, std::int64_t row, int rows, std::int64_t first_unit, int units, float* tile) {
  using Type = typename Element<dtype>::Type;
  const Type* gate = static_cast<const Type*>(job.gate.data) + row * job.gate.row_stride + first_unit;
  const Type* up = gated ? static_cast<const Type*>(job.up.data) + row * job.up.row_stride + first_unit : nullptr;
  Type* out = function == Function::identity
                  ? nullptr
                  : static_cast<Type*>(job.out.data) + row * job.out.row_stride + first_unit;
  constexpr std::int64_t ahead = 8;
  for (int token = 0; token < rows; ++token, tile += kBlockUnits) {
    if (units == kBlockUnits) {
      for (std::size_t byte = 0; byte < kBlockUnits * sizeof(Type); byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(gate + ahead * job.gate.row_stride) + byte);
        if constexpr (gated) __builtin_prefetch(reinterpret_cast<const char*>(up + ahead * job.up.row_stride) + byte);
      }
      activate_row<dtype, function, gated>(gate, up, out, tile);
    } else {
      // the last block of a layer may be narrower: its rows are widened with zeros, which no one reads
      Type wide_gate[kBlockUnits] = {}, wide_up[kBlockUnits] = {}, wide_out[kBlockUnits];
      std::memcpy(wide_gate, gate, units * sizeof(Type));
      if constexpr (gated) std::memcpy(wide_up, up, units * sizeof(Type));
      activate_row<dtype, function, gated>(wide_gate, wide_up, wide_out, tile);
      if constexpr (function != Function::identity) std::memcpy(out, wide_out, units * sizeof(Type));
    }
    gate += job.gate.row_stride;
    if constexpr (gated) up += job.up.row_stride;
    if constexpr (function != Function::identity) out += job.out.row_stride;
  }
}

using FillTile = void (*)(const Job&, std::int64_t row, int rows, std::int64_t first_unit, int units, float* tile);

template <DType dtype, Function function>
FillTile filler_of(bool gated) {
  if constexpr (function != Function::identity) {
    if (gated) return fill_tile<dtype, function, true>;
  }
  return fill_tile<dtype, function, false>;
}

template <DType dtype>
FillTile filler_of(Function function, bool gated) {
  switch (function) {
    case Function::gelu: return filler_of<dtype, Function::gelu>(gated);
    case Function::gelu_tanh: return filler_of<dtype, Function::gelu_tanh>(gated);
    case Function::silu: return filler_of<dtype, Function::silu>(gated);
    case Function::relu: return filler_of<dtype, Function::relu>(gated);
    case Function::relu2: return filler_of<dtype, Function::relu2>(gated);
    default: return filler_of<dtype, Function::identity>(gated);
  }
}

inline FillTile filler_of(const Job& job) {
  const bool gated = job.up.data != nullptr;
  switch (job.gate.dtype) {
    case DType::bfloat16: return filler_of<DType::bfloat16>(job.function, gated);
    case DType::float16: return filler_of<DType::float16>(job.function, gated);
    default: return filler_of<DType::float32>(job.function, gated);
  }
}

}  // namespace INDEXER_ISA
}  // namespace indexer
