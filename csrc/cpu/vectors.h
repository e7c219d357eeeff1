// GENKERN_VECTORS: vectors are written out in this file's instruction set. GENKERN_AUTO_VECTORS
// leaves them to the compiler, so that the two can be compared.
#pragma once

#if defined(__AVX2__) && !defined(GENKERN_AUTO_VECTORS)
#define GENKERN_VECTORS
#include <immintrin.h>
#endif
