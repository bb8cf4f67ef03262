// The bin of a float32 and the settling of the 16-bit counters.
//
// A bin is read off the bits: sign, exponent, top 3 mantissa bits; 8 bins an octave over [2^-10, 2^14). New counts go to
// 16-bit counters (a block of 64 units is 50 kB and stays in cache) and move to the others before they could wrap.
#pragma once
#include "isa.hpp"
#include <cstdint>

#include "half.hpp"
#include "job.hpp"

namespace indexer {
namespace INDEXER_ISA {

constexpr std::int32_t kMostRecent = 65535;
// (bits >> 20) of 2^-10, less the bin of magnitude that it opens
constexpr std::int32_t kBinOffset = ((127 - 10) << 3) - 2;

inline int bin_of(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude == 0) return kZeroBin;
  std::int32_t bin = static_cast<std::int32_t>(magnitude >> 20) - kBinOffset;
  if (bin < 1) bin = 1;
  if (bin > kMagnitudes) bin = kMagnitudes;
  return (bits >> 31) ? kZeroBin - bin : kZeroBin + bin;
}

inline void settle_histogram(const Histogram& state, std::int64_t first_unit, std::int64_t units) {
  std::uint16_t* recent = state.recent + first_unit * kBins;
  std::uint32_t* low = state.low + first_unit * kBins;
  std::uint32_t wrapped = 0;
  for (std::int64_t bin = 0; bin < units * kBins; ++bin) {
    low[bin] += recent[bin];
    wrapped |= low[bin] < recent[bin];
  }
  // once in 2^32 counts of a bin
  for (std::int64_t bin = 0; wrapped && bin < units * kBins; ++bin)
    state.high[first_unit * kBins + bin] += low[bin] < recent[bin];
  for (std::int64_t bin = 0; bin < units * kBins; ++bin) recent[bin] = 0;
  state.recent_tokens[first_unit] = 0;
}

}  // namespace INDEXER_ISA
}  // namespace indexer
