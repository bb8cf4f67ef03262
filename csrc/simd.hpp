// Vectors of float32 and int32 for the instruction set that this translation unit is compiled for.
//
// Every operation gives the same bits on every instruction set: fma rounds once everywhere, and max and min follow
// x86 (the second operand where either is NaN). INDEXER_ISA names the namespace: baseline, avx2 or avx512.
#pragma once
#include "isa.hpp"
#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.hpp"

#if defined(INDEXER_AVX2) || defined(INDEXER_AVX512)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define INDEXER_INLINE inline __attribute__((always_inline))

namespace indexer {
namespace INDEXER_ISA {

INDEXER_INLINE float fma_once(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  // The product is exact in double. Rounding the sum to odd there makes the second rounding, to float32, the only one
  // (Boldo and Melquiond 2008).
  const double product = static_cast<double>(a) * b;
  const double sum = product + c;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (c - back);
  std::uint64_t bits;
  std::memcpy(&bits, &sum, sizeof bits);
  if (error != 0.0 && error == error && (bits & 1u) == 0) {
    bits += (error > 0.0) == (sum > 0.0) ? 1 : -1;
    double odd;
    std::memcpy(&odd, &bits, sizeof odd);
    return static_cast<float>(odd);
  }
  return static_cast<float>(sum);
#endif
}

#if defined(INDEXER_AVX512)

constexpr int kLanes = 16;
struct Floats { __m512 v; };
struct Ints { __m512i v; };

INDEXER_INLINE Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
INDEXER_INLINE void store(float* to, Floats a) { _mm512_storeu_ps(to, a.v); }
INDEXER_INLINE Floats splat(float value) { return {_mm512_set1_ps(value)}; }
INDEXER_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
INDEXER_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
INDEXER_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
INDEXER_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
INDEXER_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INDEXER_INLINE Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
INDEXER_INLINE Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
INDEXER_INLINE Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
INDEXER_INLINE Ints as_ints(Floats a) { return {_mm512_castps_si512(a.v)}; }
INDEXER_INLINE Ints load(const std::int32_t* from) { return {_mm512_loadu_si512(from)}; }
INDEXER_INLINE void store(std::int32_t* to, Ints a) { _mm512_storeu_si512(to, a.v); }
INDEXER_INLINE Ints splat(std::int32_t value) { return {_mm512_set1_epi32(value)}; }
INDEXER_INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
INDEXER_INLINE Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
INDEXER_INLINE Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
INDEXER_INLINE Ints operator|(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
INDEXER_INLINE Ints operator^(Ints a, Ints b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N> INDEXER_INLINE Ints shift_left(Ints a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N> INDEXER_INLINE Ints shift_right(Ints a) { return {_mm512_srli_epi32(a.v, N)}; }
INDEXER_INLINE Ints sign_of(Ints a) { return {_mm512_srai_epi32(a.v, 31)}; }
INDEXER_INLINE Ints max(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
INDEXER_INLINE Ints min(Ints a, Ints b) { return {_mm512_min_epi32(a.v, b.v)}; }
INDEXER_INLINE Ints select_greater(Floats a, Floats b, Ints yes, Ints no) {
  return {_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
INDEXER_INLINE Floats select_greater(Floats a, Floats b, Floats yes, Floats no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
INDEXER_INLINE std::uint32_t at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
INDEXER_INLINE std::uint32_t differs(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ); }
INDEXER_INLINE std::uint32_t not_finite(Floats a) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7FFFFFFF));
  return _mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(0x7F800000));
}
INDEXER_INLINE void store_low(std::uint16_t* to, Ints a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(a.v));
}
INDEXER_INLINE Ints load_low(const std::uint16_t* from) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
INDEXER_INLINE Floats load_float16(const std::uint16_t* from) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
INDEXER_INLINE Floats round_float16(std::uint16_t* to, Floats a) {
  const __m256i half = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
  return {_mm512_cvtph_ps(half)};
}

#elif defined(INDEXER_AVX2)

constexpr int kLanes = 8;
struct Floats { __m256 v; };
struct Ints { __m256i v; };

INDEXER_INLINE Floats load(const float* from) { return {_mm256_loadu_ps(from)}; }
INDEXER_INLINE void store(float* to, Floats a) { _mm256_storeu_ps(to, a.v); }
INDEXER_INLINE Floats splat(float value) { return {_mm256_set1_ps(value)}; }
INDEXER_INLINE Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
INDEXER_INLINE Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
INDEXER_INLINE Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
INDEXER_INLINE Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.v, b.v)}; }
INDEXER_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
INDEXER_INLINE Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
INDEXER_INLINE Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
INDEXER_INLINE Floats as_floats(Ints a) { return {_mm256_castsi256_ps(a.v)}; }
INDEXER_INLINE Ints as_ints(Floats a) { return {_mm256_castps_si256(a.v)}; }
INDEXER_INLINE Ints load(const std::int32_t* from) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))}; }
INDEXER_INLINE void store(std::int32_t* to, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.v); }
INDEXER_INLINE Ints splat(std::int32_t value) { return {_mm256_set1_epi32(value)}; }
INDEXER_INLINE Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
INDEXER_INLINE Ints operator-(Ints a, Ints b) { return {_mm256_sub_epi32(a.v, b.v)}; }
INDEXER_INLINE Ints operator&(Ints a, Ints b) { return {_mm256_and_si256(a.v, b.v)}; }
INDEXER_INLINE Ints operator|(Ints a, Ints b) { return {_mm256_or_si256(a.v, b.v)}; }
INDEXER_INLINE Ints operator^(Ints a, Ints b) { return {_mm256_xor_si256(a.v, b.v)}; }
template <int N> INDEXER_INLINE Ints shift_left(Ints a) { return {_mm256_slli_epi32(a.v, N)}; }
template <int N> INDEXER_INLINE Ints shift_right(Ints a) { return {_mm256_srli_epi32(a.v, N)}; }
INDEXER_INLINE Ints sign_of(Ints a) { return {_mm256_srai_epi32(a.v, 31)}; }
INDEXER_INLINE Ints max(Ints a, Ints b) { return {_mm256_max_epi32(a.v, b.v)}; }
INDEXER_INLINE Ints min(Ints a, Ints b) { return {_mm256_min_epi32(a.v, b.v)}; }
INDEXER_INLINE Ints select_greater(Floats a, Floats b, Ints yes, Ints no) {
  return {_mm256_blendv_epi8(no.v, yes.v, _mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)))};
}
INDEXER_INLINE Floats select_greater(Floats a, Floats b, Floats yes, Floats no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
INDEXER_INLINE std::uint32_t at_least(Floats a, Floats b) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
}
INDEXER_INLINE std::uint32_t differs(Floats a, Floats b) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)));
}
INDEXER_INLINE std::uint32_t not_finite(Floats a) {
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(a.v), _mm256_set1_epi32(0x7FFFFFFF));
  const __m256i above = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7F7FFFFF));
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(above)));
}
INDEXER_INLINE void store_low(std::uint16_t* to, Ints a) {
  const __m256i low = _mm256_and_si256(a.v, _mm256_set1_epi32(0xFFFF));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}
INDEXER_INLINE Ints load_low(const std::uint16_t* from) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
}
INDEXER_INLINE Floats load_float16(const std::uint16_t* from) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
}
INDEXER_INLINE Floats round_float16(std::uint16_t* to, Floats a) {
  const __m128i half = _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half);
  return {_mm256_cvtph_ps(half)};
}

#else

// Vector types of GCC and Clang: SSE2 on x86, NEON on Arm.
constexpr int kLanes = 4;
typedef float Float4 __attribute__((vector_size(16)));
typedef std::int32_t Int4 __attribute__((vector_size(16)));
typedef std::uint32_t Uint4 __attribute__((vector_size(16)));
struct Floats { Float4 v; };
struct Ints { Int4 v; };

INDEXER_INLINE Floats load(const float* from) { Floats a; std::memcpy(&a.v, from, 16); return a; }
INDEXER_INLINE void store(float* to, Floats a) { std::memcpy(to, &a.v, 16); }
INDEXER_INLINE Floats splat(float value) { return {Float4{value, value, value, value}}; }
INDEXER_INLINE Floats operator+(Floats a, Floats b) { return {a.v + b.v}; }
INDEXER_INLINE Floats operator-(Floats a, Floats b) { return {a.v - b.v}; }
INDEXER_INLINE Floats operator*(Floats a, Floats b) { return {a.v * b.v}; }
INDEXER_INLINE Floats operator/(Floats a, Floats b) { return {a.v / b.v}; }
INDEXER_INLINE Floats as_floats(Ints a) { return {(Float4)a.v}; }
INDEXER_INLINE Ints as_ints(Floats a) { return {(Int4)a.v}; }
INDEXER_INLINE Ints load(const std::int32_t* from) { Ints a; std::memcpy(&a.v, from, 16); return a; }
INDEXER_INLINE void store(std::int32_t* to, Ints a) { std::memcpy(to, &a.v, 16); }
INDEXER_INLINE Ints splat(std::int32_t value) { return {Int4{value, value, value, value}}; }
INDEXER_INLINE Ints operator+(Ints a, Ints b) { return {a.v + b.v}; }
INDEXER_INLINE Ints operator-(Ints a, Ints b) { return {a.v - b.v}; }
INDEXER_INLINE Ints operator&(Ints a, Ints b) { return {a.v & b.v}; }
INDEXER_INLINE Ints operator|(Ints a, Ints b) { return {a.v | b.v}; }
INDEXER_INLINE Ints operator^(Ints a, Ints b) { return {a.v ^ b.v}; }
template <int N> INDEXER_INLINE Ints shift_left(Ints a) { return {a.v << N}; }
template <int N> INDEXER_INLINE Ints shift_right(Ints a) { return {(Int4)((Uint4)a.v >> N)}; }
INDEXER_INLINE Ints sign_of(Ints a) { return {a.v >> 31}; }
INDEXER_INLINE Ints choose(Int4 mask, Ints yes, Ints no) { return {(mask & yes.v) | (~mask & no.v)}; }
INDEXER_INLINE Floats choose(Int4 mask, Floats yes, Floats no) {
  return as_floats(choose(mask, as_ints(yes), as_ints(no)));
}
INDEXER_INLINE Floats max(Floats a, Floats b) { return choose(a.v > b.v, a, b); }
INDEXER_INLINE Floats min(Floats a, Floats b) { return choose(a.v < b.v, a, b); }
INDEXER_INLINE Ints max(Ints a, Ints b) { return choose(a.v > b.v, a, b); }
INDEXER_INLINE Ints min(Ints a, Ints b) { return choose(a.v < b.v, a, b); }
INDEXER_INLINE Ints select_greater(Floats a, Floats b, Ints yes, Ints no) { return choose(a.v > b.v, yes, no); }
INDEXER_INLINE Floats select_greater(Floats a, Floats b, Floats yes, Floats no) { return choose(a.v > b.v, yes, no); }
INDEXER_INLINE std::uint32_t lane_mask(Int4 mask) {
  return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
}
INDEXER_INLINE std::uint32_t at_least(Floats a, Floats b) { return lane_mask(a.v >= b.v); }
INDEXER_INLINE std::uint32_t differs(Floats a, Floats b) { return lane_mask(a.v != b.v); }
INDEXER_INLINE std::uint32_t not_finite(Floats a) {
  return lane_mask((as_ints(a).v & 0x7FFFFFFF) >= 0x7F800000);
}
INDEXER_INLINE void store_low(std::uint16_t* to, Ints a) {
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<std::uint16_t>(a.v[lane]);
}
INDEXER_INLINE Ints load_low(const std::uint16_t* from) { return {Int4{from[0], from[1], from[2], from[3]}}; }
INDEXER_INLINE Floats load_float16(const std::uint16_t* from) {
  return {Float4{from_float16(from[0]), from_float16(from[1]), from_float16(from[2]), from_float16(from[3])}};
}
INDEXER_INLINE Floats round_float16(std::uint16_t* to, Floats a) {
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = to_float16(a.v[lane]);
  return load_float16(to);
}

#if defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
INDEXER_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return {(Float4)vfmaq_f32((float32x4_t)c.v, (float32x4_t)a.v, (float32x4_t)b.v)};
}
#elif defined(__SSE2__)
// as fma_once, for two lanes; what it gives is odd, and still to be rounded
INDEXER_INLINE __m128d fma_odd(__m128d a, __m128d b, __m128d c) {
  const __m128d product = a * b;
  const __m128d sum = product + c;
  const __m128d back = sum - product;
  const __m128d error = (product - (sum - back)) + (c - back);
  const __m128i above = (__m128i)(error > 0.0), below = (__m128i)(error < 0.0), positive = (__m128i)(sum > 0.0);
  const __m128i inexact = above | below;
  // toward zero, then odd
  const __m128i beyond = (above & ~positive) | (below & positive);
  return (__m128d)(((__m128i)sum + beyond) | (inexact & 1));
}
// Lanes by instructions of their own: from lanes by number GCC 12 makes other bits (-ftree-slp-vectorize).
INDEXER_INLINE __m128d low_half(Floats a) { return _mm_cvtps_pd(a.v); }
INDEXER_INLINE __m128d high_half(Floats a) { return _mm_cvtps_pd(_mm_movehl_ps(a.v, a.v)); }
INDEXER_INLINE Floats fma(Floats a, Floats b, Floats c) {
  const __m128d low = fma_odd(low_half(a), low_half(b), low_half(c));
  const __m128d high = fma_odd(high_half(a), high_half(b), high_half(c));
  return {_mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high))};
}
#else
INDEXER_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return {Float4{fma_once(a.v[0], b.v[0], c.v[0]), fma_once(a.v[1], b.v[1], c.v[1]),
                 fma_once(a.v[2], b.v[2], c.v[2]), fma_once(a.v[3], b.v[3], c.v[3])}};
}
#endif

#endif

INDEXER_INLINE Floats magnitude_of(Floats a) { return as_floats(as_ints(a) & splat(std::int32_t{0x7FFFFFFF})); }
INDEXER_INLINE Floats negated(Floats a) { return as_floats(as_ints(a) ^ splat(std::int32_t(0x80000000u))); }

INDEXER_INLINE Floats load_bfloat16(const std::uint16_t* from) { return as_floats(shift_left<16>(load_low(from))); }

// Stores the nearest bfloat16 and gives back its value. A NaN stays one: those made here are 0x7FC00000, and those that
// came in as bfloat16 have zeros where rounding adds, so neither is carried over.
INDEXER_INLINE Floats round_bfloat16(std::uint16_t* to, Floats a) {
  const Ints bits = as_ints(a);
  const Ints odd = shift_right<16>(bits) & splat(std::int32_t{1});
  const Ints half = shift_right<16>(bits + splat(std::int32_t{0x7FFF}) + odd);
  store_low(to, half);
  return as_floats(shift_left<16>(half));
}

}  // namespace INDEXER_ISA
}  // namespace indexer
