// The samples of each unit: of each band the sequences with the smallest hashes. indexer_kernels/bands.py defines them.
//
// Nearly every sequence ends at `may_enter`, a hash and one look at its band's bar. For the others the places of the
// unit are looked through: there are few, and what their octaves are decides which bands there are.
#pragma once
#include "isa.hpp"
#include <cstdint>

#include "half.hpp"
#include "hashes.hpp"
#include "job.hpp"

namespace indexer {
namespace INDEXER_ISA {

constexpr std::int32_t kOctaves = 6;
constexpr std::int32_t kRestRow = 1 + kResidues;
constexpr std::uint32_t kNoOctave = 255;
constexpr std::uint64_t kNoHash = ~std::uint64_t{0};

struct Sampled {
  std::uint64_t hash;
  std::int64_t document, sequence;
};

// Of a finite value; 0 where it is not positive, or below 2^-126.
inline std::int32_t octave_of(float value) {
  const std::int32_t octave = static_cast<std::int32_t>(bits_of(value)) >> 23;
  return octave > 0 ? octave : 0;
}

inline std::uint32_t bar_of(std::uint64_t hash, std::uint32_t octave) {
  return static_cast<std::uint32_t>(hash >> 40) << 8 | octave;
}

// Whether the band of an octave may take a hash, but for the lower bits of hashes. bars: the unit's in the first row.
inline bool may_enter(const std::uint32_t* bars, std::int64_t bars_row, std::int32_t octave, std::uint64_t hash) {
  const bool rest = octave < static_cast<std::int32_t>(bars[0]);
  const std::uint32_t bar = bars[(rest ? kRestRow : 1 + octave % kResidues) * bars_row];
  const std::uint32_t own = bar_of(hash, rest ? 0 : static_cast<std::uint32_t>(octave));
  // a bar of another octave says nothing
  return ((own ^ bar) & 255) != 0 || own <= bar;
}

// The places of one unit, as long as a sequence competes for them.
class BandPlaces {
 public:
  BandPlaces(const Bands& state, std::int64_t unit)
      : state_(state), unit_(unit), first_(unit * state.places), end_(first_ + state.places) {}

  // The place that a sequence takes, or -1; examples that have to go are gone then.
  std::int64_t place_won(std::int32_t octave, const Sampled& sequence) {
    for (std::int64_t place = first_; place < end_; ++place)
      if (held(place) && state_.document[place] == sequence.document && state_.sequence[place] == sequence.sequence)
        return -1;
    const std::int32_t least = least_octave(octave);
    // an octave that falls out of the highest brings its examples to the rest
    while (members(least, 0) > state_.samples) state_.window_length[last_of(least, 0)] = 0;
    const std::int32_t band = octave < least ? 0 : octave;
    if (members(least, band) == state_.samples) {
      const std::int64_t last = last_of(least, band);
      return precedes(sequence, sampled(last)) ? last : -1;
    }
    std::int64_t free = first_;
    while (held(free)) ++free;
    return free;
  }

  void set_bars() const {
    const std::int32_t least = least_octave(0);
    std::uint32_t* bars = state_.bars + unit_;
    bars[0] = static_cast<std::uint32_t>(least);
    for (std::int32_t row = 1; row < kRestRow; ++row) {
      std::int32_t band = 0;
      for (std::int64_t place = first_; place < end_; ++place) {
        const std::int32_t octave = held(place) ? band_of(least, place) : 0;
        if (octave % kResidues == row - 1 && octave > band) band = octave;
      }
      bars[row * state_.bars_row] = band ? bar(least, band) : kNoOctave;
    }
    bars[kRestRow * state_.bars_row] = bar(least, 0);
  }

 private:
  bool held(std::int64_t place) const { return state_.window_length[place] > 0; }

  Sampled sampled(std::int64_t place) const {
    return {state_.hash[place], state_.document[place], state_.sequence[place]};
  }

  static bool precedes(const Sampled& left, const Sampled& right) {
    if (left.hash != right.hash) return left.hash < right.hash;
    if (left.document != right.document) return left.document < right.document;
    return left.sequence < right.sequence;
  }

  // the least octave that has a band, of those held and one more
  std::int32_t least_octave(std::int32_t own) const {
    std::int32_t least = 256;
    for (std::int32_t number = 0; number < kOctaves; ++number) {
      std::int32_t next = own < least ? own : 0;
      for (std::int64_t place = first_; place < end_; ++place) {
        const std::int32_t octave = held(place) ? octave_of(state_.value[place]) : 0;
        if (octave < least && octave > next) next = octave;
      }
      least = next;
    }
    return least > 0 ? least : 1;
  }

  std::int32_t band_of(std::int32_t least, std::int64_t place) const {
    const std::int32_t octave = octave_of(state_.value[place]);
    return octave < least ? 0 : octave;
  }

  bool member(std::int32_t least, std::int32_t band, std::int64_t place) const {
    return held(place) && band_of(least, place) == band;
  }

  std::int64_t members(std::int32_t least, std::int32_t band) const {
    std::int64_t number = 0;
    for (std::int64_t place = first_; place < end_; ++place) number += member(least, band, place);
    return number;
  }

  std::int64_t last_of(std::int32_t least, std::int32_t band) const {
    std::int64_t last = -1;
    for (std::int64_t place = first_; place < end_; ++place)
      if (member(least, band, place) && (last < 0 || precedes(sampled(last), sampled(place)))) last = place;
    return last;
  }

  std::uint32_t bar(std::int32_t least, std::int32_t band) const {
    const bool full = members(least, band) == state_.samples;
    return bar_of(full ? state_.hash[last_of(least, band)] : kNoHash, static_cast<std::uint32_t>(band));
  }

  const Bands& state_;
  const std::int64_t unit_, first_, end_;
};

}  // namespace INDEXER_ISA
}  // namespace indexer
