// Prints a digest of every state and output over fixed pseudo-random batches: machines that agree on it agree on
// every bit. Built with one instruction set: -DINDEXER_ISA=baseline, or avx2 and avx512 with their flags.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "statistics.hpp"

using namespace indexer;

namespace {

constexpr std::int64_t kUnits = 70, kTokens = 611, kPlaces = 5, kWidth = 10;

struct Random {
  std::uint64_t state = 88172645463325252ull;
  std::uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
};

struct Digest {
  std::uint64_t value = 14695981039346656037ull;
  template <typename T>
  void add(const std::vector<T>& data) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(data.data());
    for (std::size_t index = 0; index < data.size() * sizeof(T); ++index) value = (value ^ bytes[index]) * 1099511628211ull;
  }
};

// The memory of a state of examples.
template <typename State>
struct Kept {
  std::vector<float> value, up, activations;
  std::vector<std::int32_t> position, start, length, tokens;
  std::vector<std::int64_t> document, sequence;
  State state;
  explicit Kept(std::int64_t places)
      : value(kUnits * places), up(kUnits * places), activations(kUnits * places * kWidth), position(kUnits * places),
        start(kUnits * places), length(kUnits * places), tokens(kUnits * places * kWidth), document(kUnits * places), sequence(kUnits * places) {
    state.places = places;
    state.before = 6;
    state.after = 3;
    state.value = value.data();
    state.up = up.data();
    state.document = document.data();
    state.sequence = sequence.data();
    state.position = position.data();
    state.window_start = start.data();
    state.window_length = length.data();
    state.token_ids = tokens.data();
    state.activations = activations.data();
  }
  void add_to(Digest& digest) const {
    digest.add(value);
    digest.add(up);
    digest.add(document);
    digest.add(sequence);
    digest.add(position);
    digest.add(tokens);
    digest.add(activations);
  }
};

struct Best : Kept<TopK> {
  std::vector<float> threshold;
  std::vector<std::int32_t> worst, filled;
  explicit Best(bool largest)
      : Kept(kPlaces),
        threshold(kUnits, largest ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity()),
        worst(kUnits), filled(kUnits) {
    state.largest = largest;
    state.threshold = threshold.data();
    state.worst = worst.data();
    state.filled = filled.data();
  }
};

struct Samples : Kept<Bands> {
  std::vector<std::uint64_t> key, hash;
  std::vector<std::uint32_t> bars;
  explicit Samples(Random& random) : Kept(7), key(kUnits), hash(kUnits * 7), bars(kUnits * (2 + kResidues), 255) {
    for (std::uint64_t& one : key) one = random.next();
    for (std::int64_t unit = 0; unit < kUnits; ++unit) {
      bars[unit] = 1;
      bars[kUnits * (1 + kResidues) + unit] = 0xFFFFFF00u;
    }
    state.samples = 1;
    state.bars_row = kUnits;
    state.key = key.data();
    state.bars = bars.data();
    state.hash = hash.data();
  }
};

std::uint64_t digest_of(Function function, DType dtype, bool gated) {
  Random random;
  std::vector<std::uint32_t> gate(kTokens * kUnits), up(kTokens * kUnits);
  for (auto* matrix : {&gate, &up})
    for (std::int64_t index = 0; index < kTokens * kUnits; ++index) {
      // magnitudes from 2^-12 to 2^7, both signs, some exact zeros
      const std::uint64_t bits = random.next();
      const auto exponent = static_cast<std::uint32_t>(115 + bits % 20);
      const std::uint32_t word = bits >> 60 ? static_cast<std::uint32_t>(bits >> 40 & 0x807FFFFFu) | exponent << 23 : 0;
      const float value = INDEXER_ISA::float_from_bits(word);
      if (dtype == DType::float32) (*matrix)[index] = word;
      else reinterpret_cast<std::uint16_t*>(matrix->data())[index] =
          dtype == DType::bfloat16 ? INDEXER_ISA::to_bfloat16(value) : INDEXER_ISA::to_float16(value);
    }
  std::vector<std::int64_t> start{0, 300, 580}, length{290, 270, 31}, document{1, 2, 2}, ordinal{0, 0, 1};
  std::vector<std::int32_t> tokens(kTokens);
  std::vector<std::uint8_t> counted(kTokens, 1);
  for (std::int64_t token = 0; token < kTokens; ++token) tokens[token] = static_cast<std::int32_t>(token);
  counted[0] = counted[300] = counted[333] = 0;

  std::vector<std::uint32_t> counts(kUnits * kBins), more(kUnits * kBins);
  std::vector<std::int64_t> nan(kUnits), inf(kUnits), sums(kUnits * kPowers * kLimbs);
  std::vector<std::uint16_t> recent(kUnits * kBins);
  std::vector<std::int32_t> recent_tokens(kUnits), pending(kUnits);
  std::vector<float> low(kUnits, std::numeric_limits<float>::infinity()), high(kUnits, -std::numeric_limits<float>::infinity());
  const Histogram histogram{counts.data(), more.data(), recent.data(), recent_tokens.data()};
  const Moments moments{nan.data(), inf.data(), low.data(), high.data(), sums.data(), pending.data()};
  const Best top(true), bottom(false);
  const Samples samples(random);
  Job job;
  job.function = function;
  job.gate = {gate.data(), kUnits, dtype};
  if (gated) job.up = {up.data(), kUnits, dtype};
  job.out = job.gate;
  job.units = kUnits;
  job.batch = {start.data(), length.data(), document.data(), ordinal.data(), tokens.data(), counted.data(), 3, kTokens,
               start.data(), length.data()};
  job.histogram = &histogram;
  job.moments = &moments;
  job.top = &top.state;
  job.bottom = &bottom.state;
  job.samples = &samples.state;
  for (std::int64_t unit = 0; unit < kUnits; unit += kBlockUnits) INDEXER_ISA::process_block(job, unit);
  Digest digest;
  digest.add(gate);
  digest.add(recent);
  digest.add(nan);
  digest.add(inf);
  digest.add(low);
  digest.add(high);
  digest.add(sums);
  for (const Best* end : {&top, &bottom}) {
    digest.add(end->threshold);
    end->add_to(digest);
  }
  digest.add(samples.bars);
  digest.add(samples.hash);
  samples.add_to(digest);
  return digest.value;
}

}  // namespace

int main() {
  for (int function = 0; function <= static_cast<int>(Function::relu2); ++function)
    for (int dtype = 0; dtype < 3; ++dtype)
      for (int gated = 0; gated < (function ? 2 : 1); ++gated)
        std::printf("%d %d %d %016" PRIx64 "\n", function, dtype, gated,
                    digest_of(static_cast<Function>(function), static_cast<DType>(dtype), gated != 0));
}
