// Each instruction set compiles the same headers in a namespace of its own: shared inline functions would be merged by
// the linker, and a machine could then meet instructions that it lacks.
#pragma once
#ifndef INDEXER_ISA
#define INDEXER_ISA baseline
#endif
