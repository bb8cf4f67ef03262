// The hashes of sequences and of passages; indexer_kernels/hashes.py defines them.
#pragma once
#include "isa.hpp"
#include <cstdint>

namespace indexer {
namespace INDEXER_ISA {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15u, kFirst = 0xBF58476D1CE4E5B9u, kSecond = 0x94D049BB133111EBu;

inline std::uint64_t mixed(std::uint64_t number) {
  number = (number ^ (number >> 30)) * kFirst;
  number = (number ^ (number >> 27)) * kSecond;
  return number ^ (number >> 31);
}

inline std::uint64_t sequence_key(std::int64_t document, std::int64_t ordinal) {
  return mixed(mixed(static_cast<std::uint64_t>(document)) + (static_cast<std::uint64_t>(ordinal) + 1) * kGolden);
}

inline std::uint64_t passage_hash(const std::int32_t* token_ids, std::int64_t tokens) {
  std::uint64_t hash = 0;
  for (std::int64_t token = 0; token < tokens; ++token)
    hash = mixed(hash + (static_cast<std::uint64_t>(token_ids[token]) + 1) * kGolden);
  return hash;
}

inline std::uint64_t scrambled(std::uint64_t number) {
  number *= kFirst;
  number = (number ^ (number >> 32)) * kSecond;
  return (number ^ (number >> 32)) * kFirst;
}

}  // namespace INDEXER_ISA
}  // namespace indexer
