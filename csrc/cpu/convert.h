// Storage types, and how an array of one becomes an array in the arithmetic's type and back.
#pragma once

#include <cstdint>

#include "cpu/vectors.h"
#include "genkern/normal.h"

namespace genkern::GENKERN_CAPABILITY {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class S>
struct Arithmetic {
  using T = float;
};
template <>
struct Arithmetic<double> {
  using T = double;
};

template <class T>
static inline T load(T x) {
  return x;
}
static inline float load(BFloat16 x) { return ScalarLanes::as_float(uint32_t{x.bits} << 16); }
static inline float load(Half x) {
  // The exponent is rebased by a multiplication, which also normalises subnormals; infinities and
  // NaNs, whose exponent is all ones, get theirs set.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  const float rebased = ScalarLanes::as_float(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return ScalarLanes::as_float(ScalarLanes::as_uint(rebased) | special | (x.bits & 0x8000u) << 16);
}

template <class T>
static inline void store(T value, T& out) {
  out = value;
}
static inline void store(float value, BFloat16& out) {
  const uint32_t x = ScalarLanes::as_uint(value);
  // To nearest, ties to even; a NaN stays one.
  const uint32_t rounded = (x + 0x7fffu + (x >> 16 & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((x & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
static inline void store(float value, Half& out) {
  const uint32_t x = ScalarLanes::as_uint(value);
  const uint32_t magnitude = x & 0x7fffffffu;
  // Normal results: rebase the exponent and round at bit 13. Smaller ones: adding 1/2 leaves the
  // bits in units of 2^-24, rounded by the addition.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t tiny = ScalarLanes::as_uint(ScalarLanes::as_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? tiny : normal;
  // 65520 and above round to infinity.
  const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  out.bits =
      static_cast<uint16_t>((magnitude >= 0x477ff000u ? large : finite) | (x >> 16 & 0x8000u));
}

#if defined(GENKERN_VECTORS)

// Sixteen numbers at a time, the same bits as `load` and `store`.
constexpr int kConverted = 16;

#if defined(__AVX512F__)

static inline void load16(const BFloat16* in, float* out) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  _mm512_storeu_si512(out, _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline void store16(const float* in, BFloat16* out) {
  const __m512i x = _mm512_loadu_si512(in);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
  const __m512 number = _mm512_castsi512_ps(x);
  const __mmask16 nan = _mm512_cmp_ps_mask(number, number, _CMP_UNORD_Q);
  const __m512i high =
      _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(high));
}
static inline void load16(const Half* in, float* out) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  _mm512_storeu_ps(out, _mm512_cvtph_ps(bits));
}
static inline void store16(const float* in, Half* out) {
  const __m256i half = _mm512_cvtps_ph(_mm512_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), half);
}

#else

static inline __m256i load8(const void* in) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(in)));
}
static inline void load16(const BFloat16* in, float* out) {
  const __m256i low = _mm256_slli_epi32(load8(in), 16), high = _mm256_slli_epi32(load8(in + 8), 16);
  _mm256_storeu_ps(out, _mm256_castsi256_ps(low));
  _mm256_storeu_ps(out + 8, _mm256_castsi256_ps(high));
}
static inline __m256i rounded_high(__m256 number) {
  const __m256i x = _mm256_castps_si256(number);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(number, number, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), nan);
}
static inline void store16(const float* in, BFloat16* out) {
  const __m256i low = rounded_high(_mm256_loadu_ps(in)),
                high = rounded_high(_mm256_loadu_ps(in + 8));
  // Packed within 128 bits, then put in sequence.
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
}
static inline void load16(const Half* in, float* out) {
  const __m128i* from = reinterpret_cast<const __m128i*>(in);
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(from)));
  _mm256_storeu_ps(out + 8, _mm256_cvtph_ps(_mm_loadu_si128(from + 1)));
}
static inline void store16(const float* in, Half* out) {
  __m128i* to = reinterpret_cast<__m128i*>(out);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
  _mm_storeu_si128(to, _mm256_cvtps_ph(_mm256_loadu_ps(in), kNearest));
  _mm_storeu_si128(to + 1, _mm256_cvtps_ph(_mm256_loadu_ps(in + 8), kNearest));
}

#endif

template <class S>
static inline void load_narrow(const S* __restrict in, int64_t n, float* __restrict out) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kConverted <= n; i += kConverted) load16(in + i, out + i);
  for (; i < n; ++i) out[i] = load(in[i]);
}
template <class S>
static inline void store_narrow(const float* __restrict in, int64_t n, S* __restrict out) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + kConverted <= n; i += kConverted) store16(in + i, out + i);
  for (; i < n; ++i) store(in[i], out[i]);
}

#endif

template <class S, class T>
static inline void load_dense(const S* __restrict in, int64_t n, T* __restrict out) {
#if defined(GENKERN_VECTORS)
  if constexpr (sizeof(S) == 2) return load_narrow(in, n, out);
#endif
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = load(in[i]);
}

template <class S, class T>
static inline void store_dense(const T* __restrict in, int64_t n, S* __restrict out) {
#if defined(GENKERN_VECTORS)
  if constexpr (sizeof(S) == 2) return store_narrow(in, n, out);
#endif
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(in[i], out[i]);
}

}  // namespace genkern::GENKERN_CAPABILITY
