// Which instruction set to run: the best that the machine and the binary have, or the one that is asked for.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "job.hpp"

namespace indexer {

struct InstructionSet {
  const char* name;
  ProcessBlock process_block;
};

// Those that can run here, best last.
inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets{{"baseline", baseline::process_block}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    sets.push_back({"avx2", avx2::process_block});
  if (sets.size() == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    sets.push_back({"avx512", avx512::process_block});
#endif
  return sets;
}

// The named one, or the best where the name is empty; std::invalid_argument names those there are.
inline InstructionSet choose_instruction_set(const std::string& name) {
  const std::vector<InstructionSet> sets = instruction_sets();
  if (name.empty()) return sets.back();
  std::string known;
  for (const InstructionSet& set : sets) {
    if (name == set.name) return set;
    known += (known.empty() ? "" : ", ") + std::string(set.name);
  }
  throw std::invalid_argument("instruction set \"" + name + "\" cannot run here; choose one of: " + known);
}

}  // namespace indexer
