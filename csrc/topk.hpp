// The k best examples of each unit, in no order, each with its window; the worst one's value is the threshold to beat.
//
// There is no buffer of candidates to overflow: a value that reaches the threshold is compared with the worst place
// under the total order (value, document, sequence, position) and takes that place, window and all, or is dropped.
// Over N sequences in random order that happens k (1 + ln(N / k)) times a unit.
#pragma once
#include "isa.hpp"
#include <cstdint>
#include <limits>

#include "job.hpp"

namespace indexer {
namespace INDEXER_ISA {

struct Candidate {
  float value;
  std::int64_t document, sequence;
  std::int32_t position;
  std::uint64_t passage;
};

inline Candidate place_of(const TopK& state, std::int64_t place) {
  return {state.value[place], state.document[place], state.sequence[place], state.position[place], 0};
}

inline bool ranks_before(const TopK& state, const Candidate& left, const Candidate& right) {
  if (left.value != right.value) return state.largest ? left.value > right.value : left.value < right.value;
  if (left.document != right.document) return left.document < right.document;
  if (left.sequence != right.sequence) return left.sequence < right.sequence;
  return left.position < right.position;
}

inline void find_worst(const TopK& state, std::int64_t unit) {
  const std::int64_t first = unit * state.places;
  std::int64_t worst = 0;
  for (std::int64_t place = 1; place < state.places; ++place) {
    const float value = state.value[first + place], held = state.value[first + worst];
    const bool behind = state.largest ? value < held : value > held;
    if (behind || (value == held && ranks_before(state, place_of(state, first + worst), place_of(state, first + place))))
      worst = place;
  }
  state.worst[unit] = static_cast<std::int32_t>(worst);
  state.threshold[unit] = state.value[first + worst];
}

// Whether a candidate beats the worst place. Cheap unless it ties: the threshold lies with those of its neighbours, the
// places of one unit are memory that was not looked at for long.
inline bool beats_worst(const TopK& state, std::int64_t unit, const Candidate& candidate) {
  if (state.filled[unit] < state.places) return true;
  const float bar = state.threshold[unit];
  if (candidate.value != bar) return state.largest ? candidate.value > bar : candidate.value < bar;
  return ranks_before(state, candidate, place_of(state, unit * state.places + state.worst[unit]));
}

// The place of a candidate that beats the worst one, or -1 where its document, or its passage where places are distinct,
// holds a better place already. Other competitors come once.
inline std::int64_t place_won(const TopK& state, std::int64_t unit, const Candidate& candidate) {
  const std::int64_t first = unit * state.places;
  const std::int32_t filled = state.filled[unit];
  if (state.distinct || state.by == Competitor::document) {
    for (std::int64_t place = first; place < first + filled; ++place) {
      const bool same = state.distinct ? state.passage[place] == candidate.passage
                                       : state.document[place] == candidate.document;
      if (same) return ranks_before(state, candidate, place_of(state, place)) ? place : -1;
    }
  }
  return first + (filled == state.places ? state.worst[unit] : filled);
}

// After a place was written.
inline void settle_place(const TopK& state, std::int64_t unit, std::int64_t place) {
  if (place - unit * state.places == state.filled[unit]) state.filled[unit] += 1;
  if (state.filled[unit] == state.places) find_worst(state, unit);
}

}  // namespace INDEXER_ISA
}  // namespace indexer
