// Vectors of the instruction set that this file is compiled for, as `Lanes` (see normal.h).
//
// Wide vectors hold one Philox word in the low half of each 64-bit lane: the multiplication reads
// just these halves and leaves its 64-bit product in place, so a round needs no shuffle and the
// high halves may hold anything. Lane j works on block kOrder[j] of a batch; the order is the one
// that lets `interleave`, which works within 128 bits, put the numbers in sequence.
#pragma once

#include <cstdint>

#include "cpu/vectors.h"
#include "genkern/math.h"
#include "genkern/normal.h"

namespace genkern::GENKERN_CAPABILITY {

#if defined(GENKERN_VECTORS) && defined(__AVX512F__)

struct Lanes {
  using F = __m512;
  typedef uint32_t U __attribute__((vector_size(64)));
  using Wide = __m512i;
  static constexpr int kBlocks = 8, kFloats = 16;
  // Ten rounds are one chain of dependent multiplications; batches in flight hide their latency.
  static constexpr int kUnroll = 4;
  // Philox for the next words beside Box and Muller for these: they use other execution units.
  // There are registers for both.
  static constexpr bool kOverlap = true;
  static constexpr int kManyVectors = 4;

  static Wide order() { return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); }
  static Wide wide(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
  static Wide add(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
  static Wide mul(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
  // A shuffle, for its execution port: multiplications and shifts share theirs on many processors.
  static Wide high(Wide a) { return _mm512_shuffle_epi32(a, _MM_PERM_DDBB); }
  static Wide to_high(Wide a) { return _mm512_shuffle_epi32(a, _MM_PERM_CCAA); }
  static Wide xor2(Wide a, Wide b) { return _mm512_xor_si512(a, b); }
  static Wide xor3(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static Wide low_high(Wide low, Wide high) { return _mm512_mask_blend_epi32(0xaaaa, low, high); }

  static U words(Wide a) { return reinterpret_cast<U>(a); }
  static F unit_interval(U x) { return fma(to_float(x), broadcast(0x1p-32f), broadcast(0x1p-33f)); }
  static F quarter_turns(U y) { return fma(to_float(y), broadcast(0x1p-30f), broadcast(0x1p-31f)); }
  static F to_float(U x) { return _mm512_cvtepu32_ps(reinterpret_cast<Wide>(x)); }
  static F signed_to_float(U x) { return _mm512_cvtepi32_ps(reinterpret_cast<Wide>(x)); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static F as_float(U x) { return reinterpret_cast<F>(x); }
  static U as_uint(F x) { return reinterpret_cast<U>(x); }
  static F broadcast(float x) { return _mm512_set1_ps(x); }
  static F select(U mask, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(reinterpret_cast<Wide>(mask)), a, b);
  }
  static F select_less(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  // Where one operand is NaN these instructions give the second.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F load(const float* in) { return _mm512_loadu_ps(in); }
  static void store(float* out, F x) { _mm512_storeu_ps(out, x); }
  static void stream(float* out, F x) { _mm512_stream_ps(out, x); }
  static void interleave(F a, F b, float* out) {
    _mm512_storeu_ps(out, _mm512_unpacklo_ps(a, b));
    _mm512_storeu_ps(out + 16, _mm512_unpackhi_ps(a, b));
  }
};

#elif defined(GENKERN_VECTORS)

struct Lanes {
  using F = __m256;
  typedef uint32_t U __attribute__((vector_size(32)));
  using Wide = __m256i;
  static constexpr int kBlocks = 4, kFloats = 8;
  // Four batches do not fit the sixteen registers, and are faster than two that do.
  static constexpr int kUnroll = 4;
  static constexpr bool kOverlap = false;
  // Where a chain holds few values, eight cover the latency, though some then wait in memory.
  static constexpr int kManyVectors = 8;

  static Wide order() { return _mm256_setr_epi64x(0, 2, 1, 3); }
  static Wide wide(uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
  static Wide add(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
  static Wide mul(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
  // A shuffle, for its execution port: multiplications and shifts share theirs on many processors.
  static Wide high(Wide a) { return _mm256_shuffle_epi32(a, 0xf5); }
  static Wide to_high(Wide a) { return _mm256_shuffle_epi32(a, 0xa0); }
  static Wide xor2(Wide a, Wide b) { return _mm256_xor_si256(a, b); }
  static Wide xor3(Wide a, Wide b, Wide c) { return xor2(xor2(a, b), c); }
  static Wide low_high(Wide low, Wide high) { return _mm256_blend_epi32(low, high, 0xaa); }

  static U words(Wide a) { return reinterpret_cast<U>(a); }
  static F unit_interval(U x) { return scaled<-32>(x); }
  static F quarter_turns(U y) { return scaled<-30>(y); }
  // fma(f32(x), 2^E, 2^(E-1)). There is no conversion of unsigned words, hence by halves: for a
  // half h, 2^23 + h has the bits of 2^23 with h under them. Scaled by 2^E and 2^(E+16), the
  // halves add up, after an exact subtraction, with one rounding.
  template <int E>
  static F scaled(U x) {
    constexpr uint32_t kLow = (127 + 23 + E) << 23, kHigh = (127 + 39 + E) << 23;
    const Wide bits = reinterpret_cast<Wide>(x);
    const Wide low = _mm256_blend_epi16(bits, _mm256_set1_epi32(kLow), 0xaa);
    const Wide high =
        _mm256_blend_epi16(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(kHigh), 0xaa);
    const float scale = E == -32 ? 0x1p-32f : 0x1p-30f;
    return ((_mm256_castsi256_ps(high) - broadcast((0x1p39f + 0x1p23f) * scale)) +
            _mm256_castsi256_ps(low)) +
           broadcast(0.5f * scale);
  }
  static F signed_to_float(U x) { return _mm256_cvtepi32_ps(reinterpret_cast<Wide>(x)); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F sqrt(F a) { return _mm256_sqrt_ps(a); }
  static F as_float(U x) { return reinterpret_cast<F>(x); }
  static U as_uint(F x) { return reinterpret_cast<U>(x); }
  static F broadcast(float x) { return _mm256_set1_ps(x); }
  static F select(U mask, F a, F b) { return _mm256_blendv_ps(a, b, reinterpret_cast<F>(mask)); }
  static F select_less(F a, F b, F x, F y) { return a < b ? x : y; }
  // Where one operand is NaN these instructions give the second.
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F load(const float* in) { return _mm256_loadu_ps(in); }
  static void store(float* out, F x) { _mm256_storeu_ps(out, x); }
  static void stream(float* out, F x) { _mm256_stream_ps(out, x); }
  static void interleave(F a, F b, float* out) {
    _mm256_storeu_ps(out, _mm256_unpacklo_ps(a, b));
    _mm256_storeu_ps(out + 8, _mm256_unpackhi_ps(a, b));
  }
};

#endif

#if defined(GENKERN_VECTORS)

// N vectors side by side, as Lanes. An operation is done on all before the next one starts, so the
// instructions of N independent chains alternate: each chain is longer than what processors
// reorder.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // alignment of vector types as arguments

template <class V, int N>
struct Pack {
  Pack() = default;
  explicit GENKERN_HD Pack(float x) {
    for (int i = 0; i < N; ++i) v[i] = Lanes::broadcast(x);
  }
#if !defined(__AVX512F__)
  // GCC copies an array of these vectors by way of memory and integer registers.
  GENKERN_HD Pack(const Pack& other) { *this = other; }
  GENKERN_HD Pack& operator=(const Pack& other) {
    for (int i = 0; i < N; ++i) v[i] = other.v[i];
    return *this;
  }
#endif
  V v[N];
};
template <class V, int N>
GENKERN_HD Pack<V, N> operator-(Pack<V, N> a) {
  Pack<V, N> out;
  for (int i = 0; i < N; ++i) out.v[i] = -a.v[i];
  return out;
}
#define GENKERN_PACK_OPERATOR(op)                                 \
  template <class V, int N>                                       \
  GENKERN_HD Pack<V, N> operator op(Pack<V, N> a, Pack<V, N> b) { \
    Pack<V, N> out;                                               \
    for (int i = 0; i < N; ++i) out.v[i] = a.v[i] op b.v[i];      \
    return out;                                                   \
  }                                                               \
  template <class V, int N>                                       \
  GENKERN_HD Pack<V, N> operator op(Pack<V, N> a, uint32_t b) {   \
    Pack<V, N> out;                                               \
    for (int i = 0; i < N; ++i) out.v[i] = a.v[i] op b;           \
    return out;                                                   \
  }
GENKERN_PACK_OPERATOR(+)
GENKERN_PACK_OPERATOR(-)
GENKERN_PACK_OPERATOR(*)
GENKERN_PACK_OPERATOR(/)
GENKERN_PACK_OPERATOR(&)
GENKERN_PACK_OPERATOR(|)
GENKERN_PACK_OPERATOR(^)
GENKERN_PACK_OPERATOR(<<)
#undef GENKERN_PACK_OPERATOR

template <class L, int N>
struct PackLanes {
  using F = Pack<typename L::F, N>;
  using U = Pack<typename L::U, N>;

  template <class Out, class Op, class... In>
  static GENKERN_HD Out each(Op op, const In&... in) {
    Out out;
    for (int i = 0; i < N; ++i) out.v[i] = op(in.v[i]...);
    return out;
  }
  static GENKERN_HD F unit_interval(U x) { return each<F>(L::unit_interval, x); }
  static GENKERN_HD F quarter_turns(U y) { return each<F>(L::quarter_turns, y); }
  static GENKERN_HD F signed_to_float(U x) { return each<F>(L::signed_to_float, x); }
  static GENKERN_HD F fma(F a, F b, F c) { return each<F>(L::fma, a, b, c); }
  static GENKERN_HD F sqrt(F a) { return each<F>(L::sqrt, a); }
  static GENKERN_HD F as_float(U x) { return each<F>(L::as_float, x); }
  static GENKERN_HD U as_uint(F x) { return each<U>(L::as_uint, x); }
  static GENKERN_HD F broadcast(float x) {
    F out;
    for (int i = 0; i < N; ++i) out.v[i] = L::broadcast(x);
    return out;
  }
  static GENKERN_HD F select(U mask, F a, F b) { return each<F>(L::select, mask, a, b); }
};

// The primitives of math.h for vectors of floats. (Declared here, they would hide those for
// numbers.)
using genkern::at_least;
using genkern::at_most;
using genkern::clamp;
using genkern::decay;
using genkern::exp;
using genkern::expm1;
using genkern::madd;
using genkern::magnitude;
using genkern::root_exp;
using genkern::root_expm1;
using genkern::select_less;

// Chains in flight: measured, 1 to 8.
constexpr int kVectors = 4, kManyVectors = Lanes::kManyVectors;
template <int N>
using Floats = Pack<Lanes::F, N>;
template <int N>
using FloatsLanes = PackLanes<Lanes, N>;

template <int N>
GENKERN_HD Floats<N> madd(Floats<N> a, Floats<N> b, Floats<N> c) {
  return FloatsLanes<N>::fma(a, b, c);
}
template <int N>
GENKERN_HD Floats<N> select_less(Floats<N> a, Floats<N> b, Floats<N> x, Floats<N> y) {
  return FloatsLanes<N>::template each<Floats<N>>(Lanes::select_less, a, b, x, y);
}
template <int N>
GENKERN_HD Floats<N> at_least(Floats<N> x, Floats<N> low) {
  return FloatsLanes<N>::template each<Floats<N>>(Lanes::max, low, x);
}
template <int N>
GENKERN_HD Floats<N> at_most(Floats<N> x, Floats<N> high) {
  return FloatsLanes<N>::template each<Floats<N>>(Lanes::min, high, x);
}
template <int N>
GENKERN_HD Floats<N> clamp(Floats<N> x, Floats<N> low, Floats<N> high) {
  return at_most(at_least(x, low), high);
}
template <int N>
GENKERN_HD Floats<N> magnitude(Floats<N> x) {
  return FloatsLanes<N>::as_float(FloatsLanes<N>::as_uint(x) & 0x7fffffffu);
}
template <int N>
GENKERN_HD Floats<N> exp(Floats<N> x) {
  return exp_single<FloatsLanes<N>>(x);
}
#if !defined(__AVX512F__)
// The bits of exp(-magnitude(x)), with less on the way: what does not grow needs no upper bound,
// nor its exponent in two parts. r and q are not doubled, as they are in reduced_root.
template <int N>
GENKERN_HD Floats<N> decay(Floats<N> x) {
  using L = FloatsLanes<N>;
  const auto c = [](float f) { return L::broadcast(f); };
  const Floats<N> y = at_least(L::as_float(L::as_uint(x) | 0x80000000u), c(-87.5f));
  const Floats<N> shifted = madd(y, c(0x1.715476p+0f), c(12582912.0f + 126.0f));
  const Floats<N> n = shifted - c(12582912.0f + 126.0f);
  const Floats<N> r = madd(n, c(-0x1.7f7d1cp-20f), madd(n, c(-0x1.62e4p-1f), y));
  Floats<N> p = c(0.0013863786589354277f);
  p = madd(p, r, c(0.008367476053535938f));
  p = madd(p, r, c(0.041667237877845764f));
  p = madd(p, r, c(0.16666534543037415f));
  p = madd(p, r, c(0.5f));
  const Floats<N> q = madd(p * r, r, r);
  const Floats<N> half = L::as_float(L::as_uint(shifted) << 23);
  const Floats<N> power = half + half;
  return madd(q, power, power);
}
#endif
template <int N>
GENKERN_HD Floats<N> root_exp(Floats<N> x) {
  return reduced_root<FloatsLanes<N>>(x).value;
}
template <int N>
GENKERN_HD RootExpm1<Floats<N>> root_expm1(Floats<N> x) {
  return root_expm1_single<FloatsLanes<N>>(x);
}
template <int N>
GENKERN_HD Expm1<Floats<N>> expm1(Floats<N> x) {
  return root_expm1(x).expm1;
}

#pragma GCC diagnostic pop

#else
constexpr int kVectors = 1, kManyVectors = 1;
#endif

template <class V>
struct Number {
  using T = V;
};

// What a loop over T works on at a time: a number, or N vectors of floats.
template <class T, int N>
struct Step {
  using V = T;
  static constexpr int kWidth = 1;
};
template <class V, class T>
GENKERN_HD V load_as(Number<V>, const T* in) {
  return static_cast<V>(*in);
}
GENKERN_HD void store_vector(float* out, float x) { *out = x; }
GENKERN_HD void store_vector(double* out, double x) { *out = x; }

#if defined(GENKERN_VECTORS)
template <int N>
struct Step<float, N> {
  using V = Floats<N>;
  static constexpr int kWidth = N * Lanes::kFloats;
};
template <int N>
GENKERN_HD Floats<N> load_as(Number<Floats<N>>, const float* in) {
  Floats<N> out;
  for (int i = 0; i < N; ++i) out.v[i] = Lanes::load(in + i * Lanes::kFloats);
  return out;
}
template <int N>
GENKERN_HD void store_vector(float* out, Floats<N> x) {
  for (int i = 0; i < N; ++i) Lanes::store(out + i * Lanes::kFloats, x.v[i]);
}
#endif

template <class V, class T>
GENKERN_HD V load_vector(const T* in) {
  return load_as(Number<V>(), in);
}

// A float in memory that is written past the caches, from a line's beginning on: see
// stream_fence().
struct Streamed {
  float value;
};
GENKERN_HD void store_vector(Streamed* out, float x) { out->value = x; }
#if defined(GENKERN_VECTORS)
template <int N>
GENKERN_HD void store_vector(Streamed* out, Floats<N> x) {
  for (int i = 0; i < N; ++i) Lanes::stream(&out[i * Lanes::kFloats].value, x.v[i]);
}
#endif

// Calls f with the type to work on and an offset: N vectors over [0, n), then the rest by numbers.
template <class T, int N = kVectors, class F>
GENKERN_HD void for_steps(int64_t n, const F& f) {
  using V = typename Step<T, N>::V;
  constexpr int kWidth = Step<T, N>::kWidth;
  int64_t i = 0;
  if constexpr (kWidth > 1) {
    for (; i + kWidth <= n; i += kWidth) f(Number<V>(), i);
  }
#pragma GCC ivdep
  for (int64_t j = i; j < n; ++j) f(Number<T>(), j);
}

}  // namespace genkern::GENKERN_CAPABILITY
