// The STREAM triad, a = b + s c (McCalpin, "Memory bandwidth and machine balance in current high
// performance computers", IEEE TCCA newsletter, 1995): what memory lets an operator do.

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

void regular(float* a, const float* b, const float* c, float s, int64_t n, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) a[i] = b[i] + s * c[i];
}

#if defined(__SSE2__)
// Sixteen floats an iteration: one cache line, which the processor writes without reading it.
void non_temporal(float* a, const float* b, const float* c, float s, int64_t n, int threads) {
  const __m128 scale = _mm_set1_ps(s);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n / 16; ++i) {
      for (int64_t j = 16 * i; j < 16 * i + 16; j += 4) {
        const __m128 product = _mm_mul_ps(scale, _mm_loadu_ps(c + j));
        _mm_stream_ps(a + j, _mm_add_ps(_mm_loadu_ps(b + j), product));
      }
    }
    _mm_sfence();
  }
  for (int64_t i = n / 16 * 16; i < n; ++i) a[i] = b[i] + s * c[i];
}
#endif

}  // namespace

extern "C" {

int has_non_temporal() {
#if defined(__SSE2__)
  return 1;
#else
  return 0;
#endif
}

// Pointers are aligned to 16 bytes, as torch's are.
void triad_regular(float* a, const float* b, const float* c, float s, int64_t n, int threads) {
  regular(a, b, c, s, n, threads);
}

void triad_non_temporal(float* a, const float* b, const float* c, float s, int64_t n, int threads) {
#if defined(__SSE2__)
  non_temporal(a, b, c, s, n, threads);
#else
  regular(a, b, c, s, n, threads);
#endif
}

}  // extern "C"
