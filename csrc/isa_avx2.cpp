#define INDEXER_AVX2
#define INDEXER_ISA avx2
#include "statistics.hpp"
