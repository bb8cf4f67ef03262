#define INDEXER_ISA baseline
#include "statistics.hpp"
