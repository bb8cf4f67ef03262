// The samples of each unit: of each band the sequences with the smallest hashes. indexer_kernels/bands.py defines them.
//
// Nearly every sequence ends at `may_enter`, a hash and one look at its band's bar. For the others the places of the
// unit are looked through: there are few, and what their octaves are decides which bands there are.
#pragma once
#include "isa.hpp"
#include <cstdint>
#include <utility>

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

// Asks for what BandPlaces looks at.
inline void prefetch_places(const Bands& state, std::int64_t unit) {
  const std::int64_t first = unit * state.places;
  const auto ask = [&](const auto* values) {
    for (std::int64_t byte = 0; byte < state.places * std::int64_t(sizeof *values); byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(values + first) + byte, 1);
  };
  ask(state.window_length);
  ask(state.value);
  ask(state.document);
  ask(state.sequence);
  ask(state.hash);
}

// The places of one unit, as long as a sequence competes for them. Its bands are made of what is held once, when it
// comes: the highest octaves of what is held and of its own, highest first, and the rest.
class BandPlaces {
 public:
  BandPlaces(const Bands& state, std::int64_t unit, std::int32_t own)
      : state_(state), unit_(unit), first_(unit * state.places), end_(first_ + state.places) {
    add_octave(own);
    for (std::int64_t place = first_; place < end_; ++place)
      if (held(place)) add_octave(octave_of(state_.value[place]));
    for (std::int64_t place = first_; place < end_; ++place)
      if (held(place)) add_member(bands_[band_of(octave_of(state_.value[place]))], place);
    own_ = band_of(own);
  }

  // The place that a sequence takes, or -1; examples that have to go are gone then.
  std::int64_t place_won(const Sampled& sequence) {
    for (std::int64_t place = first_; place < end_; ++place)
      if (held(place) && state_.document[place] == sequence.document && state_.sequence[place] == sequence.sequence)
        return -1;
    // an octave that falls out of the highest brings its examples to the rest
    while (bands_[kOctaves].members > state_.samples) {
      state_.window_length[bands_[kOctaves].last] = 0;
      count(kOctaves);
    }
    const Band& band = bands_[own_];
    if (band.members == state_.samples) return precedes(sequence, sampled(band.last)) ? band.last : -1;
    std::int64_t free = first_;
    while (held(free)) ++free;
    return free;
  }

  // After the place was written.
  void set_bars() {
    count(own_);
    std::uint32_t* bars = state_.bars + unit_;
    const std::int32_t least = bands_[kOctaves - 1].octave;
    bars[0] = static_cast<std::uint32_t>(least > 0 ? least : 1);
    for (std::int32_t row = 1; row < kRestRow; ++row) bars[row * state_.bars_row] = kNoOctave;
    // of bands that meet in a row the highest has it
    for (std::int32_t number = kOctaves; number-- > 0;)
      if (bands_[number].octave > 0) bars[(1 + bands_[number].octave % kResidues) * state_.bars_row] = bar(bands_[number]);
    bars[kRestRow * state_.bars_row] = bar(bands_[kOctaves]);
  }

 private:
  struct Band {
    std::int32_t octave = 0;  // 0: there is none, or it is the rest
    std::int64_t members = 0, last = -1;
  };

  bool held(std::int64_t place) const { return state_.window_length[place] > 0; }

  Sampled sampled(std::int64_t place) const {
    return {state_.hash[place], state_.document[place], state_.sequence[place]};
  }

  static bool precedes(const Sampled& left, const Sampled& right) {
    if (left.hash != right.hash) return left.hash < right.hash;
    if (left.document != right.document) return left.document < right.document;
    return left.sequence < right.sequence;
  }

  void add_octave(std::int32_t octave) {
    for (std::int32_t number = 0; number < kOctaves && octave != bands_[number].octave; ++number)
      if (octave > bands_[number].octave) std::swap(octave, bands_[number].octave);
  }

  std::int32_t band_of(std::int32_t octave) const {
    std::int32_t number = 0;
    while (number < kOctaves && (octave == 0 || bands_[number].octave != octave)) ++number;
    return number;
  }

  void add_member(Band& band, std::int64_t place) const {
    ++band.members;
    if (band.last < 0 || precedes(sampled(band.last), sampled(place))) band.last = place;
  }

  // the members of a band once more
  void count(std::int32_t number) {
    Band& band = bands_[number];
    band = {band.octave};
    for (std::int64_t place = first_; place < end_; ++place)
      if (held(place) && band_of(octave_of(state_.value[place])) == number) add_member(band, place);
  }

  std::uint32_t bar(const Band& band) const {
    const bool full = band.members == state_.samples;
    return bar_of(full ? state_.hash[band.last] : kNoHash, static_cast<std::uint32_t>(band.octave));
  }

  const Bands& state_;
  const std::int64_t unit_, first_, end_;
  Band bands_[kOctaves + 1];
  std::int32_t own_;
};

}  // namespace INDEXER_ISA
}  // namespace indexer
