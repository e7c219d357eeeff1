// Storage types, and how an array of one becomes an array in the arithmetic's type and back.
#pragma once

#include <cstdint>

#include "cpu/lanes.h"
#include "genkern/normal.h"

namespace genkern::GENKERN_CAPABILITY {

struct BFloat16 {
  uint16_t bits;
  explicit operator float() const;
};
struct Half {
  uint16_t bits;
  explicit operator float() const;
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

inline BFloat16::operator float() const { return load(*this); }
inline Half::operator float() const { return load(*this); }

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

GENKERN_HD void store_vector(BFloat16* out, float x) { store(x, *out); }
GENKERN_HD void store_vector(Half* out, float x) { store(x, *out); }

#if defined(GENKERN_VECTORS)

// A vector of numbers, and two vectors back: the same bits as `load` and `store`.

#if defined(__AVX512F__)

static inline __m256i halves(const void* in) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(in));
}
static inline __m512 widened(const BFloat16* in) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves(in)), 16));
}
static inline __m512 widened(const Half* in) { return _mm512_cvtph_ps(halves(in)); }

// In the upper halves.
static inline __m512i rounded(__m512 number) {
  const __m512i x = _mm512_castps_si512(number);
  const __mmask16 even = _mm512_testn_epi32_mask(x, _mm512_set1_epi32(0x10000));
  const __mmask16 nan = _mm512_cmp_ps_mask(number, number, _CMP_UNORD_Q);
  const __m512i sum = _mm512_add_epi32(x, _mm512_set1_epi32(0x8000));
  return _mm512_mask_mov_epi32(_mm512_mask_sub_epi32(sum, even, sum, _mm512_set1_epi32(1)), nan,
                               _mm512_set1_epi32(0x7fc00000));
}
alignas(64) constexpr uint16_t kUpperHalves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                   23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                   45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
static inline void store_two(__m512 a, __m512 b, BFloat16* out) {
  const __m512i upper = _mm512_load_si512(kUpperHalves);
  _mm512_storeu_si512(out, _mm512_permutex2var_epi16(rounded(a), upper, rounded(b)));
}
static inline void store_two(__m512 a, __m512 b, Half* out) {
  __m256i* const to = reinterpret_cast<__m256i*>(out);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
  _mm256_storeu_si256(to, _mm512_cvtps_ph(a, kNearest));
  _mm256_storeu_si256(to + 1, _mm512_cvtps_ph(b, kNearest));
}

#else

static inline __m128i halves(const void* in) {
  return _mm_loadu_si128(static_cast<const __m128i*>(in));
}
static inline __m256 widened(const BFloat16* in) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(in)), 16));
}
static inline __m256 widened(const Half* in) { return _mm256_cvtph_ps(halves(in)); }

static inline __m256i rounded(__m256 number) {
  const __m256i x = _mm256_castps_si256(number);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(number, number, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7fc0), nan);
}
static inline void store_two(__m256 a, __m256 b, BFloat16* out) {
  // Packed within 128 bits, then put in sequence.
  const __m256i packed =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded(a), rounded(b)), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
}
static inline void store_two(__m256 a, __m256 b, Half* out) {
  __m128i* const to = reinterpret_cast<__m128i*>(out);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
  _mm_storeu_si128(to, _mm256_cvtps_ph(a, kNearest));
  _mm_storeu_si128(to + 1, _mm256_cvtps_ph(b, kNearest));
}

#endif

template <int N, class S>
GENKERN_HD Floats<N> load_as(Number<Floats<N>>, const S* in) {
  Floats<N> out;
  for (int i = 0; i < N; ++i) out.v[i] = widened(in + i * Lanes::kFloats);
  return out;
}
template <int N, class S>
GENKERN_HD void store_vector(S* out, Floats<N> x) {
  for (int i = 0; i < N; i += 2) store_two(x.v[i], x.v[i + 1], out + i * Lanes::kFloats);
}

template <class S>
static inline void load_narrow(const S* __restrict in, int64_t n, float* __restrict out) {
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + Lanes::kFloats <= n; i += Lanes::kFloats) Lanes::store(out + i, widened(in + i));
  for (; i < n; ++i) out[i] = load(in[i]);
}
template <class S>
static inline void store_narrow(const float* __restrict in, int64_t n, S* __restrict out) {
  constexpr int kTwo = 2 * Lanes::kFloats;
  int64_t i = 0;
#pragma GCC unroll 2
  for (; i + kTwo <= n; i += kTwo) {
    store_two(Lanes::load(in + i), Lanes::load(in + i + Lanes::kFloats), out + i);
  }
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
