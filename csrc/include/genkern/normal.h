// Uniform and normal numbers from Philox words.
//
// The float32 normal is one fixed sequence of IEEE-754 binary32 multiplications, additions, fused
// multiply-adds and square roots, each correctly rounded, so every device and instruction set that
// runs it gets the same bits. It is written once, over `Lanes`: a type that names a float vector F,
// an unsigned 32-bit vector U and the handful of operations C++ has no operator for. Compile it
// without contraction (-ffp-contract=off, -fmad=false): the only fused operations are the ones
// written as fma.
//
// Box and Muller, "A note on the generation of random normal deviates", Ann. Math. Stat. 29 (1958).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "genkern/host_device.h"
#include "genkern/philox.h"

namespace genkern {

// a * b + c rounded once, for targets without the instruction: the C library's function is a call,
// and slow. The product is exact in double, and the sum is rounded to odd there (Boldo and
// Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Comput. 57, 2008): with 53
// bits that makes the last rounding, to 24, the only one.
GENKERN_HD float fma_emulated(float a, float b, float c) {
  const double p = static_cast<double>(a) * b;
  const double s = p + c;
  const double t = s - p;
  const double error = (p - (s - t)) + (c - t);
  int64_t bits;
  std::memcpy(&bits, &s, sizeof bits);
  const int64_t toward = (error > 0) == (s > 0) ? 1 : -1;
  bits += error != 0 && !(bits & 1) ? toward : 0;
  double odd;
  std::memcpy(&odd, &bits, sizeof odd);
  return static_cast<float>(odd);
}

#if defined(__CUDA_ARCH__)
// What a radius is computed over, and its cosine and sine are computed times: a power of two, which
// changes no bit of their product. The radius is at most 1 by it, see refined_root.
constexpr float kRadiusUnit = 8.0f;
// unit_interval is times 2^32, which takes one constant less: its bits exceed u's by so much.
constexpr uint32_t kIntervalBits = 32u << 23;

// The square root of a, 0 or from 2^-101 to 1, given y = 1 / sqrt(a) as devices up to sm_100
// approximate it: what __fsqrt_rn does there for such numbers (tests/test_cuda_compile.py compares
// the machine code). y of 0 is infinite and the sum NaN, which saturation makes 0.
template <class L>
__device__ __forceinline__ typename L::F refined_root(typename L::F a, typename L::F y) {
  const typename L::F root = a * y, half = L::broadcast(0.5f) * y;
  return L::saturated_fma(L::fma(-root, root, a), half, root);
}
#else
constexpr float kRadiusUnit = 1.0f;
#endif

// One number at a time, on the host or on a CUDA device.
struct ScalarLanes {
  using F = float;
  using U = uint32_t;

  // u = fma(f32(x), 2^-32, 2^-33), where f32 rounds x to float: (x + 1/2) 2^-32, rounded twice. In
  // (0, 1], never 0, so the logarithm is finite.
  static GENKERN_HD F unit_interval(U x) {
#if defined(__CUDA_ARCH__)
    return to_float(x) + 0.5f;
#else
    return fma(to_float(x), 0x1p-32f, 0x1p-33f);
#endif
  }
  // 4 v for v = fma(f32(y), 2^-32, 2^-33): the scaling is exact.
  static GENKERN_HD F quarter_turns(U y) { return fma(to_float(y), 0x1p-30f, 0x1p-31f); }
  static GENKERN_HD F to_float(U x) {
#if defined(__CUDA_ARCH__)
    return __uint2float_rn(x);
#else
    return static_cast<float>(x);
#endif
  }
  static GENKERN_HD F signed_to_float(U x) {
#if defined(__CUDA_ARCH__)
    return __int2float_rn(static_cast<int32_t>(x));
#else
    return static_cast<float>(static_cast<int32_t>(x));
#endif
  }
  static GENKERN_HD F fma(F a, F b, F c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return std::fma(a, b, c);
#else
    return fma_emulated(a, b, c);
#endif
  }
  static GENKERN_HD F sqrt(F a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ <= 1000
    return refined_root<ScalarLanes>(a, inverse_root(a));
#elif defined(__CUDA_ARCH__)
    return __fsqrt_rn(a);
#else
    return std::sqrt(a);
#endif
  }
#if defined(__CUDA_ARCH__)
  // 1 / sqrt(a).
  static __device__ F inverse_root(F a) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    return y;
  }
  // a b + c between 0 and 1; 0 for NaN.
  static __device__ F saturated_fma(F a, F b, F c) {
    asm("fma.rn.sat.f32 %0, %0, %1, %2;" : "+f"(a) : "f"(b), "f"(c));
    return a;
  }
#endif
  static GENKERN_HD F as_float(U x) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(x);
#else
    F f;
    std::memcpy(&f, &x, sizeof f);
    return f;
#endif
  }
  static GENKERN_HD U as_uint(F f) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(f);
#else
    U x;
    std::memcpy(&x, &f, sizeof x);
    return x;
#endif
  }
  static GENKERN_HD F broadcast(float f) { return f; }
  // a where the sign bit of `mask` is clear, b where it is set.
  static GENKERN_HD F select(U mask, F a, F b) {
#if defined(__CUDA_ARCH__)
    // One instruction tests a bit, if nvcc cannot see that it is one and compare with 1.
    uint32_t sign;
    asm("and.b32 %0, %1, 1;" : "=r"(sign) : "r"(mask >> 31));
    return sign != 0 ? b : a;
#else
    return static_cast<int32_t>(mask) < 0 ? b : a;
#endif
  }
};

// sqrt(-2 ln u) over kRadiusUnit for u = L::unit_interval(x). Within 1.2 ulp of the exact value at
// that u.
template <class L>
GENKERN_HD typename L::F radius(typename L::U x) {
  using F = typename L::F;
  using U = typename L::U;
  const auto c = [](float f) { return L::broadcast(f); };
  const auto squared = [](float f) { return L::broadcast(f / (kRadiusUnit * kRadiusUnit)); };
  // u = 2^e m with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 are the bits of sqrt(1/2) rounded down.
  // The exponent's bits in place, taken as an integer, are 2^23 e.
#if defined(__CUDA_ARCH__)
  const U bits = L::as_uint(L::unit_interval(x)) - kIntervalBits;
#else
  const U bits = L::as_uint(L::unit_interval(x));
#endif
  const U exponent = (bits - 0x3f3504f3u) & 0xff800000u;
  const F e = L::signed_to_float(exponent);
  const F f = L::as_float(bits - exponent) - c(1.0f);
  // -2 log1p(f) = -2 f + f^2 p, minimax in relative error (0.51 * 2^-24) on [sqrt(1/2) - 1,
  // sqrt(2) - 1], each coefficient rounded before the next ones were fitted. Adding -2 f last
  // costs one multiplication more than Horner's form to the end, and halves the error.
  F p = squared(-0x1.66033ap-3f);
  p = L::fma(p, f, squared(0x1.251124p-2f));
  p = L::fma(p, f, squared(-0x1.317ee4p-2f));
  p = L::fma(p, f, squared(0x1.535aaap-2f));
  p = L::fma(p, f, squared(-0x1.98d33p-2f));
  p = L::fma(p, f, squared(0x1.0004aep-1f));
  p = L::fma(p, f, squared(-0x1.5556f2p-1f));
  p = L::fma(p, f, squared(0x1.fffffap-1f));
  const F log_m = L::fma(f, squared(-2.0f), p * (f * f));
  // -2 ln u = -2 ln m - 2 ln 2 e; 0x1.62e43p0 is 2 ln 2.
  return L::sqrt(L::fma(e, squared(-0x1.62e43p-23f), log_m));
}

// Cosine and sine of 2 pi v, times kRadiusUnit, for w = 4 v = L::quarter_turns(y), up to a sign
// common to both, which is left in the top bit of `sign`. Within 1.6 ulp of the exact values at
// that v.
template <class L>
GENKERN_HD void angle(typename L::U y, typename L::F& cosine, typename L::F& sine,
                      typename L::U& sign) {
  using F = typename L::F;
  using U = typename L::U;
  const auto c = [](float f) { return L::broadcast(f); };
  const auto scaled = [](float f) { return L::broadcast(f * kRadiusUnit); };
  // q, the nearest quarter turn, stands in the low bits of 1.5 * 2^23 + w; w - q is exact.
  const F w = L::quarter_turns(y);
  const F shifted = w + c(12582912.0f);
  const U q = L::as_uint(shifted);
  const F f = w - (shifted - c(12582912.0f));
  // Quarter turns: bit 1 of q negates both; odd q swaps the two and negates the new cosine, which
  // is the odd function of f.
  sign = q << 30;
  const U odd = sign + sign;
#if defined(__CUDA_ARCH__)
  const F h = f;  // the selection negates, for nothing
#else
  const F h = L::as_float(L::as_uint(f) ^ odd);
#endif
  const F g = f * f;
  // sin(pi f / 2) / f and cos(pi f / 2) on |f| <= 1/2, minimax in the relative error of the sine
  // (0.47 * 2^-24) and of the cosine (0.66 * 2^-24).
  F s = scaled(-0x1.32f65cp-8f);
  s = L::fma(s, g, scaled(0x1.467fdcp-4f));
  s = L::fma(s, g, scaled(-0x1.4abc22p-1f));
  s = L::fma(s, g, scaled(0x1.921fb6p+0f)) * h;
  F t = scaled(-0x1.4e7962p-6f);
  t = L::fma(t, g, scaled(0x1.03b05ap-2f));
  t = L::fma(t, g, scaled(-0x1.3bd39cp+0f));
  t = L::fma(t, g, scaled(1.0f));
  sine = L::select(odd, s, t);
#if defined(__CUDA_ARCH__)
  cosine = L::select(odd, t, -s);
#else
  cosine = L::select(odd, t, s);
#endif
}

// Of a pair of words: r, with the sign that cos 2 pi v and sin 2 pi v lack.
template <class L>
GENKERN_HD void polar(typename L::U x, typename L::U y, typename L::F& r, typename L::F& cosine,
                      typename L::F& sine) {
  typename L::U sign;
  angle<L>(y, cosine, sine, sign);
  r = L::as_float(L::as_uint(radius<L>(x)) ^ (sign & 0x80000000u));
}

// The two normals of a pair of words: r cos 2 pi v and r sin 2 pi v.
template <class L>
GENKERN_HD void box_muller(typename L::U x, typename L::U y, typename L::F& a, typename L::F& b) {
  typename L::F r, cosine, sine;
  polar<L>(x, y, r, cosine, sine);
  a = r * cosine;
  b = r * sine;
}

struct Normals {
  float z[4];
};

GENKERN_HD Normals normal4(Words b) {
  Normals n;
  box_muller<ScalarLanes>(b.w[0], b.w[1], n.z[0], n.z[1]);
  box_muller<ScalarLanes>(b.w[2], b.w[3], n.z[2], n.z[3]);
  return n;
}

// Low 24 bits times 2^-24: exact, in [0, 1).
GENKERN_HD float uniform_float(uint32_t w) {
  return static_cast<float>(w & 0x00ffffffu) * 0x1p-24f;
}

// ---- float64: two words a number, two numbers a block -------------------------------------------

GENKERN_HD uint64_t join(uint32_t high, uint32_t low) {
  return static_cast<uint64_t>(high) << 32 | low;
}

// Low 53 bits times 2^-53: exact, in [0, 1).
GENKERN_HD double uniform_double(uint32_t high, uint32_t low) {
  return static_cast<double>(join(high, low) & 0x1fffffffffffffULL) * 0x1p-53;
}

struct Normals64 {
  double z[2];
};

// u = (X + 1/2) 2^-64 and v = (Y + 1/2) 2^-64 carry 65 bits. Above 1/2 the logarithm is taken as
// log1p(-(1 - u)), whose argument keeps full relative precision, and the angle is reduced to
// [-pi/4, pi/4] in integers before it is rounded: relative error stays at the rounding level.
GENKERN_HD Normals64 normal2(Words b) {
  const uint64_t x = join(b.w[0], b.w[1]), y = join(b.w[2], b.w[3]);
  const bool upper = x >> 63;
  const double u = std::fma(static_cast<double>(upper ? ~x : x), 0x1p-64, 0x1p-65);
  const double r = std::sqrt(-2.0 * (upper ? std::log1p(-u) : std::log(u)));
  const uint64_t q = (y + (1ULL << 61)) >> 62;  // modulo 4: y + 2^61 may wrap to quarter turn 0
  const double f = static_cast<double>(static_cast<int64_t>(y - (q << 62))) + 0.5;
#if defined(__CUDA_ARCH__)
  // sin and cos carry a reduction of huge arguments that needs local memory; this one does not.
  double s, c;
  ::sincospi(f * 0x1p-63, &s, &c);
#else
  const double theta = f * (6.283185307179586476925 * 0x1p-64);
  const double s = std::sin(theta), c = std::cos(theta);
#endif
  const double cosine = q & 1 ? s : c, sine = q & 1 ? c : s;
  return {{r * ((q + 1) & 2 ? -cosine : cosine), r * (q & 2 ? -sine : sine)}};
}

}  // namespace genkern
