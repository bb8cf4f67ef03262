#define INDEXER_AVX512
#define INDEXER_ISA avx512
#include "statistics.hpp"
