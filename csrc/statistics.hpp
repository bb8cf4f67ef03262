// All statistics of one block of 64 units over a batch, in one read: the activation function, moments, histogram,
// extremes of each sequence, and the rare visits to the places of top-k and of samples.
//
// A tile of 32 tokens x 64 units (8 kB) is activated row by row, then walked column by column with its sums in
// registers, which also writes each element's bin (4 kB), then counted row by row: consecutive increments fall into
// different units' counters, so none waits for the one before. Tiles stay in the first-level cache throughout.
// Where few values of a tile are not zero, as of sparse features, these are taken in one by one: a zero adds to its
// counter, and may be an extreme. Whether tiles are so is asked of the first of a block of positions, and then of each as
// long as they are.
// Non-finite values show up as a non-finite sum; only then is a block of one unit done again, value by value.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "bands.hpp"
#include "exact_sum.hpp"
#include "histogram.hpp"
#include "job.hpp"
#include "simd.hpp"
#include "tile.hpp"
#include "topk.hpp"

namespace indexer {
namespace INDEXER_ISA {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

inline float value_at(const Matrix& matrix, std::int64_t row, std::int64_t unit) {
  const std::int64_t index = row * matrix.row_stride + unit;
  if (matrix.dtype == DType::float32) return static_cast<const float*>(matrix.data)[index];
  const std::uint16_t half = static_cast<const std::uint16_t*>(matrix.data)[index];
  return matrix.dtype == DType::bfloat16 ? from_bfloat16(half) : from_float16(half);
}

inline bool is_finite(float value) { return (bits_of(value) & 0x7FFFFFFFu) < 0x7F800000u; }

// Values of a tile beside which the others, all zeros, are not looked at: one in 32.
constexpr int kFew = kTileTokens * kBlockUnits / 32;

// Each unit's zero bin within the block's counters.
struct ZeroBins {
  std::int32_t bin[kBlockUnits];
  constexpr ZeroBins() : bin() {
    for (int unit = 0; unit < kBlockUnits; ++unit) bin[unit] = unit * kBins + kZeroBin;
  }
};
constexpr ZeroBins kZeroBins{};

// One block of units on its way through the batch.
class Block {
 public:
  Block(const Job& job, std::int64_t first_unit)
      : job_(job),
        read_(job.function == Function::identity ? job.gate : job.out),
        fill_(filler_of(job)),
        first_(first_unit),
        units_(static_cast<int>(job.units - first_unit < kBlockUnits ? job.units - first_unit : kBlockUnits)) {}

  void run() {
    prefetch_counters();
    std::int64_t row = 0;
    for (std::int64_t sequence = 0; sequence < job_.batch.sequences; ++sequence) {
      activate_only(row, job_.batch.start[sequence]);
      add_sequence(sequence);
      row = job_.batch.start[sequence] + job_.batch.length[sequence];
    }
    activate_only(row, job_.batch.rows);
  }

 private:
  // the counters of the block were pushed out by those of other blocks and layers since they were used last
  void prefetch_counters() const {
    if (!job_.histogram) return;
    const char* counters = reinterpret_cast<const char*>(job_.histogram->recent + first_ * kBins);
    for (std::int64_t byte = 0; byte < units_ * kBins * 2; byte += 64) __builtin_prefetch(counters + byte, 1, 2);
  }

  // rows of no sequence: the model still reads them
  void activate_only(std::int64_t row, std::int64_t end) {
    if (job_.function == Function::identity) return;
    for (; row < end; row += kTileTokens) fill_(job_, row, tile_rows(row, end), first_, units_, tile_);
  }

  static int tile_rows(std::int64_t row, std::int64_t end) {
    return static_cast<int>(end - row < kTileTokens ? end - row : kTileTokens);
  }

  // where in its sequence a row of the matrix is
  std::int64_t position_at(std::int64_t sequence, std::int64_t row) const {
    const Batch& batch = job_.batch;
    return batch.at ? batch.at[row] - batch.first_token[sequence] : row - batch.start[sequence];
  }

  // the first row of a sequence at this position or behind it
  std::int64_t row_from(std::int64_t sequence, std::int64_t position) const {
    const Batch& batch = job_.batch;
    const std::int64_t start = batch.start[sequence], end = start + batch.length[sequence];
    if (!batch.at) return start + position < end ? start + position : end;
    return std::lower_bound(batch.at + start, batch.at + end, batch.first_token[sequence] + position) - batch.at;
  }

  void add_sequence(std::int64_t sequence) {
    const std::int64_t start = job_.batch.start[sequence], length = job_.batch.length[sequence];
    for (int unit = 0; unit < kBlockUnits; ++unit) {
      maximum_[unit] = -kInfinity;
      minimum_[unit] = kInfinity;
      maximum_tile_[unit] = minimum_tile_[unit] = 0;
    }
    for (std::int64_t token = 0, end; token < length; token = end) {
      const std::int64_t block = position_at(sequence, start + token) / kBlockTokens;
      end = row_from(sequence, (block + 1) * kBlockTokens) - start;
      add_block(start, token, end);
    }
    for (int unit = 0; unit < units_; ++unit)
      if (poisoned_[unit]) find_extremes(start, length, unit);
    if (job_.moments) widen_range(*job_.moments);
    if (job_.top) compete(*job_.top, sequence, maximum_, maximum_tile_);
    if (job_.bottom) compete(*job_.bottom, sequence, minimum_, minimum_tile_);
    if (job_.samples) sample(*job_.samples, sequence);
  }

  // rows [token, end) of a sequence, of at most kBlockTokens positions: one float32 partial sum
  void add_block(std::int64_t start, std::int64_t token, std::int64_t end) {
    if (job_.histogram && job_.histogram->recent_tokens[first_] + kBlockTokens > kMostRecent)
      settle_histogram(*job_.histogram, first_, units_);
    std::memset(sums_, 0, sizeof sums_);
    std::int32_t counted = 0;
    zeros_ = 0;
    bool sparse = true;
    for (std::int64_t tile = token; tile < end; tile += kTileTokens) {
      const int rows = tile_rows(tile, end);
      fill_(job_, start + tile, rows, first_, units_, tile_);
      sparse = sparse && few_active(rows);
      const std::uint8_t* flags = job_.batch.counted + start + tile;
      for (int begin = 0; begin < rows;) {
        if (!flags[begin]) { ++begin; continue; }
        int stop = begin + 1;
        while (stop < rows && flags[stop]) ++stop;
        const auto tile_number = static_cast<std::int32_t>(tile / kTileTokens);
        if (!sparse || !add_few(begin, stop - begin, tile_number)) add_rows(begin, stop - begin, tile_number);
        counted += stop - begin;
        begin = stop;
      }
    }
    if (counted) settle_block(start, token, end, counted);
  }

  // Whether few values of the tile are not zero; notes which.
  bool few_active(int rows) {
    int found = 0;
    for (int token = 0; token < rows; ++token) {
      std::uint64_t active = 0;
      for (int vector = 0; vector < kVectors; ++vector) {
        const Floats x = load(tile_ + token * kBlockUnits + vector * kLanes);
        active |= static_cast<std::uint64_t>(differs(x, splat(0.0f))) << (vector * kLanes);
      }
      active_[token] = active;
      found += __builtin_popcountll(active);
    }
    return found <= kFew;
  }

  // Adjacent rows of a tile of which few values are not zero. False, with nothing done, where a unit has no zero among them.
  bool add_few(int begin, int rows, std::int32_t tile_number) {
    std::uint64_t always = ~std::uint64_t{0};
    for (int token = begin; token < begin + rows; ++token) always &= active_[token];
    if (always) return false;
    const Floats zero = splat(0.0f);
    const Ints here = splat(tile_number);
    for (int unit = 0; unit < kBlockUnits; unit += kLanes) {
      const Floats high = load(maximum_ + unit), low = load(minimum_ + unit);
      store(maximum_ + unit, max(high, zero));
      store(minimum_ + unit, min(low, zero));
      store(maximum_tile_ + unit, select_greater(zero, high, here, load(maximum_tile_ + unit)));
      store(minimum_tile_ + unit, select_greater(low, zero, here, load(minimum_tile_ + unit)));
    }
    zeros_ += rows;
    for (int token = begin; token < begin + rows; ++token)
      for (std::uint64_t active = active_[token]; active; active &= active - 1)
        add_value(tile_[token * kBlockUnits + __builtin_ctzll(active)], __builtin_ctzll(active), tile_number);
    return true;
  }

  // One value in the place of a zero.
  void add_value(float x, int unit, std::int32_t tile_number) {
    const float x2 = x * x;
    sums_[0][unit] += x;
    sums_[1][unit] += x2;
    sums_[2][unit] = fma_once(x2, x, sums_[2][unit]);
    sums_[3][unit] = fma_once(x2, x2, sums_[3][unit]);
    if (x > maximum_[unit]) { maximum_[unit] = x; maximum_tile_[unit] = tile_number; }
    if (x < minimum_[unit]) { minimum_[unit] = x; minimum_tile_[unit] = tile_number; }
    // of the last block of a layer some units are no one's
    if (!job_.histogram || unit >= units_) return;
    std::uint16_t* recent = job_.histogram->recent + (first_ + unit) * kBins;
    --recent[kZeroBin];
    ++recent[bin_of(x)];
  }

  void add_rows(int begin, int rows, std::int32_t tile_number) {
    for (int vector = 0; vector < kVectors; ++vector) add_column(begin, rows, vector * kLanes, tile_number);
    if (!job_.histogram) return;
    std::uint16_t* recent = job_.histogram->recent + first_ * kBins;
    const std::uint16_t* bins = bins_;
    if (units_ == kBlockUnits) {
      const std::uint16_t* end = bins + rows * kBlockUnits;
      for (; bins < end; bins += 8) {
        ++recent[bins[0]]; ++recent[bins[1]]; ++recent[bins[2]]; ++recent[bins[3]];
        ++recent[bins[4]]; ++recent[bins[5]]; ++recent[bins[6]]; ++recent[bins[7]];
      }
      return;
    }
    for (int token = 0; token < rows; ++token, bins += kBlockUnits)
      for (int unit = 0; unit < units_; ++unit) ++recent[bins[unit]];
  }

  // sums, extremes and bins of kLanes units over adjacent rows of the tile
  INDEXER_INLINE void add_column(int begin, int rows, int unit, std::int32_t tile_number) {
    const float* values = tile_ + begin * kBlockUnits + unit;
    std::uint16_t* bins = bins_ + unit;
    Floats sum = load(sums_[0] + unit), sum2 = load(sums_[1] + unit);
    Floats sum3 = load(sums_[2] + unit), sum4 = load(sums_[3] + unit);
    const Floats high_before = load(maximum_ + unit), low_before = load(minimum_ + unit);
    Floats high = high_before, low = low_before;
    const Ints one = splat(std::int32_t{1}), offset = splat(kBinOffset), last = splat(std::int32_t{kMagnitudes});
    const Ints clear_sign = splat(std::int32_t{0x7FFFFFFF});
    const Ints zero_bin = load(kZeroBins.bin + unit);
    for (int token = 0; token < rows; ++token) {
      const Floats x = load(values + token * kBlockUnits);
      const Floats x2 = x * x;
      sum = sum + x;
      sum2 = sum2 + x2;
      sum3 = fma(x2, x, sum3);
      sum4 = fma(x2, x2, sum4);
      high = max(x, high);
      low = min(x, low);
      const Ints bits = as_ints(x);
      const Ints magnitude = bits & clear_sign;
      // 0 for zero, else 1 to kMagnitudes; then mirrored about the unit's zero bin by the sign
      const Ints bin = min(max(shift_right<20>(magnitude) - offset, min(magnitude, one)), last);
      const Ints sign = sign_of(bits);
      store_low(bins + token * kBlockUnits, zero_bin + ((bin ^ sign) - sign));
    }
    store(sums_[0] + unit, sum);
    store(sums_[1] + unit, sum2);
    store(sums_[2] + unit, sum3);
    store(sums_[3] + unit, sum4);
    store(maximum_ + unit, high);
    store(minimum_ + unit, low);
    const Ints here = splat(tile_number);
    store(maximum_tile_ + unit, select_greater(high, high_before, here, load(maximum_tile_ + unit)));
    store(minimum_tile_ + unit, select_greater(low_before, low, here, load(minimum_tile_ + unit)));
  }

  void settle_block(std::int64_t start, std::int64_t token, std::int64_t end, std::int32_t counted) {
    if (job_.histogram) {
      job_.histogram->recent_tokens[first_] += counted;
      std::uint16_t* zero = job_.histogram->recent + first_ * kBins + kZeroBin;
      for (int unit = 0; unit < units_; ++unit) zero[unit * kBins] += zeros_;
    }
    if (job_.moments && ++job_.moments->pending[first_] > kMostPending) {
      for (std::int64_t sum = 0; sum < units_ * kPowers; ++sum)
        settle_carries(job_.moments->sums + (first_ * kPowers + sum) * kLimbs);
      job_.moments->pending[first_] = 1;
    }
    std::uint64_t bad = 0;
    for (int vector = 0; vector < kVectors; ++vector) {
      std::uint32_t lanes = 0;
      for (int power = 0; power < kPowers; ++power) lanes |= not_finite(load(sums_[power] + vector * kLanes));
      bad |= static_cast<std::uint64_t>(lanes) << (vector * kLanes);
    }
    for (int unit = 0; unit < units_; ++unit) {
      if (bad >> unit & 1) {
        repair(start + token, start + end, unit);
      } else if (job_.moments) {
        std::int64_t* limbs = job_.moments->sums + (first_ + unit) * kPowers * kLimbs;
        for (int power = 0; power < kPowers; ++power) exact_add(limbs + power * kLimbs, sums_[power][unit]);
      }
    }
  }

  // one unit's rows again, its non-finite values counted and left out
  void repair(std::int64_t row, std::int64_t end, int unit) {
    const std::int64_t index = first_ + unit;
    float sums[kPowers] = {};
    for (; row < end; ++row) {
      if (!job_.batch.counted[row]) continue;
      const float x = value_at(read_, row, index);
      if (!is_finite(x)) {
        poisoned_[unit] = true;
        if (job_.histogram) --job_.histogram->recent[index * kBins + bin_of(x)];
        if (job_.moments) ++(x != x ? job_.moments->nan : job_.moments->inf)[index];
        continue;
      }
      const float x2 = x * x;
      sums[0] += x;
      sums[1] += x2;
      sums[2] = fma_once(x2, x, sums[2]);
      sums[3] = fma_once(x2, x2, sums[3]);
    }
    if (!job_.moments) return;
    for (int power = 0; power < kPowers; ++power)
      exact_add(job_.moments->sums + (index * kPowers + power) * kLimbs, sums[power]);
  }

  void find_extremes(std::int64_t start, std::int64_t length, int unit) {
    poisoned_[unit] = false;
    maximum_[unit] = -kInfinity;
    minimum_[unit] = kInfinity;
    for (std::int64_t token = 0; token < length; ++token) {
      const float x = value_at(read_, start + token, first_ + unit);
      if (!job_.batch.counted[start + token] || !is_finite(x)) continue;
      const std::int32_t tile = static_cast<std::int32_t>(token / kTileTokens);
      if (x > maximum_[unit]) { maximum_[unit] = x; maximum_tile_[unit] = tile; }
      if (x < minimum_[unit]) { minimum_[unit] = x; minimum_tile_[unit] = tile; }
    }
  }

  void widen_range(const Moments& moments) {
    for (int unit = 0; unit < units_; ++unit) {
      float& high = moments.maximum[first_ + unit];
      float& low = moments.minimum[first_ + unit];
      if (maximum_[unit] > high) high = maximum_[unit] + 0.0f;
      if (minimum_[unit] < low) low = minimum_[unit] + 0.0f;
    }
  }

  void compete(const TopK& state, std::int64_t sequence, const float* extremes, const std::int32_t* tiles) {
    for (int vector = 0; vector < kVectors; ++vector) {
      const int at = vector * kLanes;
      if (at >= units_) return;
      alignas(64) float padded[kLanes];
      const float* threshold = state.threshold + first_ + at;
      if (at + kLanes > units_) {
        for (int lane = 0; lane < kLanes; ++lane)
          padded[lane] = at + lane < units_ ? threshold[lane] : (state.largest ? kInfinity : -kInfinity);
        threshold = padded;
      }
      const Floats bar = load(threshold), extreme = load(extremes + at);
      std::uint32_t winners = state.largest ? at_least(extreme, bar) : at_least(bar, extreme);
      for (; winners; winners &= winners - 1) {
        const int unit = at + __builtin_ctz(winners);
        if (unit >= units_ || !is_finite(extremes[unit])) continue;
        if (state.by == Competitor::token) {
          offer_tokens(state, sequence, unit);
        } else {
          offer_sequence(state, sequence, unit, extremes[unit], tiles[unit]);
        }
      }
    }
  }

  void offer_sequence(const TopK& state, std::int64_t sequence, int unit, float extreme, std::int32_t tile) {
    const Batch& batch = job_.batch;
    Candidate candidate{extreme + 0.0f, batch.document[sequence], batch.ordinal[sequence],
                        std::numeric_limits<std::int32_t>::min(), 0};
    // ties with the worst place are common (units that are often exactly zero): settle them before looking for the peak
    if (!beats_worst(state, first_ + unit, candidate)) return;
    const std::int64_t row = row_of(sequence, unit, extreme, tile);
    candidate.position = static_cast<std::int32_t>(position_at(sequence, row));
    offer(state, sequence, unit, row, candidate);
  }

  // where a sequence first reaches its extreme value, which is in a tile that is known
  std::int64_t row_of(std::int64_t sequence, int unit, float extreme, std::int32_t tile) const {
    std::int64_t row = job_.batch.start[sequence] + tile * kTileTokens;
    while (!job_.batch.counted[row] || value_at(read_, row, first_ + unit) != extreme) ++row;
    return row;
  }

  void offer_tokens(const TopK& state, std::int64_t sequence, int unit) {
    const Batch& batch = job_.batch;
    const std::int64_t start = batch.start[sequence], end = start + batch.length[sequence];
    for (std::int64_t row = start; row < end; ++row) {
      if (!batch.counted[row]) continue;
      const float x = value_at(read_, row, first_ + unit);
      const float bar = state.threshold[first_ + unit];
      if (!is_finite(x) || (state.largest ? x < bar : x > bar)) continue;
      const auto position = static_cast<std::int32_t>(position_at(sequence, row));
      offer(state, sequence, unit, row, {x + 0.0f, batch.document[sequence], batch.ordinal[sequence], position, 0});
    }
  }

  void offer(const TopK& state, std::int64_t sequence, int unit, std::int64_t row, Candidate candidate) {
    const std::int64_t index = first_ + unit;
    if (!beats_worst(state, index, candidate)) return;
    if (state.distinct) candidate.passage = passage_at(sequence, candidate.position, state.before);
    const std::int64_t place = place_won(state, index, candidate);
    if (place < 0) return;
    write_place(state, sequence, unit, place, candidate.value, row);
    if (state.distinct) state.passage[place] = candidate.passage;
    settle_place(state, index, place);
  }

  // The hash of the last tokens of a peak's window up to the peak.
  std::uint64_t passage_at(std::int64_t sequence, std::int64_t position, std::int64_t before) const {
    std::int64_t ahead = kPassageTokens - 1;
    if (ahead > position) ahead = position;
    if (ahead > before) ahead = before;
    return passage_hash(job_.batch.token_ids + job_.batch.first_token[sequence] + position - ahead, ahead + 1);
  }

  // An example and its window, while the activations are in memory. Of a token without a row it is 0.
  void write_place(const Places& state, std::int64_t sequence, int unit, std::int64_t place, float value,
                   std::int64_t row) {
    const Batch& batch = job_.batch;
    const std::int64_t position = position_at(sequence, row), last = batch.tokens[sequence] - 1;
    const std::int64_t from = position > state.before ? position - state.before : 0;
    const std::int64_t to = position + state.after < last ? position + state.after : last;
    const std::int64_t width = state.before + 1 + state.after, end = row_from(sequence, to + 1);
    std::memcpy(state.token_ids + place * width, batch.token_ids + batch.first_token[sequence] + from,
                (to - from + 1) * sizeof(std::int32_t));
    float* window = state.activations + place * width;
    if (batch.at) std::memset(window, 0, (to - from + 1) * sizeof(float));
    for (std::int64_t inside = row_from(sequence, from); inside < end; ++inside)
      window[position_at(sequence, inside) - from] = value_at(read_, inside, first_ + unit) + 0.0f;
    state.value[place] = value;
    state.up[place] = job_.up.data ? value_at(job_.up, row, first_ + unit) + 0.0f : kNaN;
    state.document[place] = batch.document[sequence];
    state.sequence[place] = batch.ordinal[sequence];
    state.position[place] = static_cast<std::int32_t>(position);
    state.window_start[place] = static_cast<std::int32_t>(from);
    state.window_length[place] = static_cast<std::int32_t>(to - from + 1);
  }

  void sample(const Bands& state, std::int64_t sequence) {
    const std::int64_t document = job_.batch.document[sequence], ordinal = job_.batch.ordinal[sequence];
    const std::uint64_t key = sequence_key(document, ordinal);
    std::uint64_t hashes[kBlockUnits];
    for (int unit = 0; unit < units_; ++unit) hashes[unit] = scrambled(key ^ state.key[first_ + unit]);
    // their places are asked for while those of others are looked through
    int entering[kBlockUnits], number = 0;
    for (int unit = 0; unit < units_; ++unit) {
      if (!is_finite(maximum_[unit])) continue;
      if (!may_enter(state.bars + first_ + unit, state.bars_row, octave_of(maximum_[unit]), hashes[unit])) continue;
      entering[number++] = unit;
      prefetch_places(state, first_ + unit);
    }
    for (int entry = 0; entry < number; ++entry) {
      const int unit = entering[entry];
      const std::int32_t octave = octave_of(maximum_[unit]);
      BandPlaces places(state, first_ + unit, octave);
      const std::int64_t place = places.place_won({hashes[unit], document, ordinal});
      if (place < 0) continue;
      const std::int64_t row = row_of(sequence, unit, maximum_[unit], maximum_tile_[unit]);
      write_place(state, sequence, unit, place, maximum_[unit] + 0.0f, row);
      state.hash[place] = hashes[unit];
      places.set_bars();
    }
  }

  const Job& job_;
  const Matrix& read_;
  const FillTile fill_;
  const std::int64_t first_;
  const int units_;
  alignas(64) float tile_[kTileTokens * kBlockUnits];
  alignas(64) std::uint16_t bins_[kTileTokens * kBlockUnits];
  std::uint64_t active_[kTileTokens];
  std::uint16_t zeros_;
  alignas(64) float sums_[kPowers][kBlockUnits];
  alignas(64) float maximum_[kBlockUnits];
  alignas(64) float minimum_[kBlockUnits];
  alignas(64) std::int32_t maximum_tile_[kBlockUnits];
  alignas(64) std::int32_t minimum_tile_[kBlockUnits];
  bool poisoned_[kBlockUnits] = {};
};

void process_block(const Job& job, std::int64_t first_unit) { Block(job, first_unit).run(); }

}  // namespace INDEXER_ISA
}  // namespace indexer
