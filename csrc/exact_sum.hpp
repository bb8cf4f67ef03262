// Sums of float32 values that come out the same in any order.
//
// A float32 is m * 2^(e - 150) with a 24-bit m. Limb e >> 4 takes m << (e & 15), an integer below 2^39, so a sum is
// 16 int64 limbs of weight 2^(16 * limb - 150): nothing is rounded, and adding is associative and commutative.
// Limb 16 counts the addends that were not finite. Carries are settled before 2^24 additions could fill a limb.
#pragma once
#include "isa.hpp"
#include <cstdint>

#include "half.hpp"
#include "job.hpp"

namespace indexer {
namespace INDEXER_ISA {

constexpr std::int32_t kMostPending = 1 << 22;

inline void exact_add(std::int64_t* limbs, float addend) {
  const std::uint32_t bits = bits_of(addend);
  std::uint32_t exponent = (bits >> 23) & 0xFFu;
  std::int64_t mantissa = bits & 0x7FFFFFu;
  if (exponent == 0xFFu) {
    limbs[kLimbs - 1] += 1;
    return;
  }
  if (exponent != 0) {
    mantissa |= 0x800000;
  } else {
    exponent = 1;
  }
  mantissa <<= exponent & 15u;
  limbs[exponent >> 4] += (bits >> 31) ? -mantissa : mantissa;
}

inline void settle_carries(std::int64_t* limbs) {
  for (int limb = 0; limb + 2 < kLimbs; ++limb) {
    limbs[limb + 1] += limbs[limb] >> 16;
    limbs[limb] &= 0xFFFF;
  }
}

}  // namespace INDEXER_ISA
}  // namespace indexer
