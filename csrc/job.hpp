// What one update is asked to do, as plain pointers: activations, the sequences of the batch, and the states to change.
#pragma once
#include <cstdint>

namespace indexer {

constexpr int kBins = 389;          // 194 negative magnitudes, zero, 194 positive magnitudes
constexpr int kZeroBin = 194;
constexpr int kMagnitudes = 194;    // below 2^-10, 24 octaves of 8, above 2^14
constexpr int kPowers = 4;          // sums of x, x^2, x^3, x^4
constexpr int kLimbs = 17;          // an exact sum: 16 limbs and the number of blocks that overflowed float32
constexpr int kBlockUnits = 64;     // units that one visit handles together
constexpr int kTileTokens = 32;     // tokens that one visit handles together
constexpr int kBlockTokens = 256;   // tokens of one float32 partial sum
constexpr int kPassageTokens = 8;   // of the passage that an example shows, up to its peak
constexpr int kResidues = 16;       // of octaves, by which bars of bands are looked up

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2 };
enum class Function : int { identity = 0, gelu, gelu_tanh, silu, relu, relu2 };
enum class Competitor : int { sequence = 0, token = 1, document = 2 };

// Rows of `units` adjacent values; the stride counts elements.
struct Matrix {
  void* data = nullptr;
  std::int64_t row_stride = 0;
  DType dtype = DType::float32;
};

// A matrix has a row for every token, or for some of them alone: `at` then says for which.
struct Batch {
  const std::int64_t* start = nullptr;     // [sequences] its first row in the matrix
  const std::int64_t* length = nullptr;    // [sequences] its rows
  const std::int64_t* document = nullptr;  // [sequences]
  const std::int64_t* ordinal = nullptr;   // [sequences]
  const std::int32_t* token_ids = nullptr; // [tokens]
  const std::uint8_t* counted = nullptr;   // [rows]
  std::int64_t sequences = 0;
  std::int64_t rows = 0;
  const std::int64_t* first_token = nullptr;  // [sequences] its first token among all
  const std::int64_t* tokens = nullptr;       // [sequences] how many it has
  const std::int64_t* at = nullptr;           // [rows] the token of each row, ascending; null: they are the tokens
};

struct Histogram {
  std::uint32_t* low = nullptr;            // [units, kBins] a count is high * 2^32 + low
  std::uint32_t* high = nullptr;           // [units, kBins] written to seldom
  std::uint16_t* recent = nullptr;         // [units, kBins] not yet added to these
  std::int32_t* recent_tokens = nullptr;   // [units] tokens in recent, kept at each block's first unit
};

struct Moments {
  std::int64_t* nan = nullptr;             // [units]
  std::int64_t* inf = nullptr;             // [units]
  float* minimum = nullptr;                // [units] +infinity before the first finite value
  float* maximum = nullptr;                // [units] -infinity before the first finite value
  std::int64_t* sums = nullptr;            // [units, kPowers, kLimbs]
  std::int32_t* pending = nullptr;         // [units] blocks added since carries were settled, at each block's first unit
};

// What every state of examples is; what is not taken is undefined.
struct Places {
  std::int64_t places = 0, before = 0, after = 0;
  float* value = nullptr;                  // [units, places], and so the next six
  float* up = nullptr;                     // NaN where no factor is given
  std::int64_t* document = nullptr;
  std::int64_t* sequence = nullptr;
  std::int32_t* position = nullptr;
  std::int32_t* window_start = nullptr;
  std::int32_t* window_length = nullptr;
  std::int32_t* token_ids = nullptr;       // [units, places, before + 1 + after]
  float* activations = nullptr;            // [units, places, before + 1 + after]
};

struct TopK : Places {
  bool largest = true;
  Competitor by = Competitor::sequence;
  float* threshold = nullptr;              // [units] value of the worst place; -/+infinity while places are free
  std::int32_t* worst = nullptr;           // [units] which place that is
  std::int32_t* filled = nullptr;          // [units]
  bool distinct = false;                   // whether a passage has one place at most
  std::uint64_t* passage = nullptr;        // [units, places] hashes of what places show, where they are distinct
};

// A place is taken where its window has a length.
struct Bands : Places {
  std::int64_t samples = 0, bars_row = 0;  // of each band; elements from one row of bars to the next
  const std::uint64_t* key = nullptr;      // [units]
  std::uint32_t* bars = nullptr;           // [2 + kResidues, bars_row] least octave, bar of each residue, bar of the rest
  std::uint64_t* hash = nullptr;           // [units, places]
};

struct Job {
  Function function = Function::identity;
  Matrix gate, up, out;                    // up.data is null where no factor is known; out.data is null for update
  std::int64_t units = 0;
  Batch batch;
  const Histogram* histogram = nullptr;    // states that are null are not kept
  const Moments* moments = nullptr;
  const TopK* top = nullptr;
  const TopK* bottom = nullptr;
  const Bands* samples = nullptr;
};

using ProcessBlock = void (*)(const Job&, std::int64_t first_unit);

namespace baseline { void process_block(const Job&, std::int64_t first_unit); }
namespace avx2 { void process_block(const Job&, std::int64_t first_unit); }
namespace avx512 { void process_block(const Job&, std::int64_t first_unit); }

}  // namespace indexer
