// Elementary functions on plain numbers, without branches, so that a loop over them vectorises.
//
// float: own polynomials. double: the C library's functions, whose speed no op here depends on.
#pragma once

#include <cmath>
#include <cstdint>

#include "genkern/host_device.h"
#include "genkern/normal.h"

namespace genkern {

// a * b + c, fused where the target has the instruction. Unlike in normal.h no bits are promised,
// and a software fma would cost more than all the rest.
GENKERN_HD float madd(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return ScalarLanes::fma(a, b, c);
#else
  return a * b + c;
#endif
}
GENKERN_HD double madd(double a, double b, double c) { return a * b + c; }

// lo <= x <= hi, NaN kept. In two statements, each of which is one instruction on x86.
template <class T>
GENKERN_HD T clamp(T x, T lo, T hi) {
  x = x < lo ? lo : x;
  return x > hi ? hi : x;
}
#if defined(__CUDACC__)
// Two instructions where the comparisons are four.
GENKERN_HD float clamp(float x, float lo, float hi) {
#if defined(__CUDA_ARCH__)
  asm("max.NaN.f32 %0, %0, %1;\n\tmin.NaN.f32 %0, %0, %2;" : "+f"(x) : "f"(lo), "f"(hi));
  return x;
#else
  return clamp<float>(x, lo, hi);
#endif
}
#endif

// e^x within 1.5 ulp, with overflow to infinity and NaN kept; below 2^-125 it is 0.
GENKERN_HD float exp(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);  // 1 ulp, a third of the instructions: ex2 in hardware after its own reduction
#else
  // Beyond these the result is 0 or infinite all the same; the bounds keep n in [-126, 128].
  const float y = clamp(x, -87.5f, 89.0f);
  // n = round(y / ln 2) by the 1.5 * 2^23 trick; ln 2 in two parts (Cody and Waite), the first
  // with 15 significant bits so that n times it is exact.
  const float shifted = madd(y, 0x1.715476p+0f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  const float r = madd(n, -0x1.7f7d1cp-20f, madd(n, -0x1.62e4p-1f, y));
  // (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, minimax relative to e^r: 0.05 * 2^-24.
  float p = 0.001381459878757596f;
  p = madd(p, r, 0.008368716575205326f);
  p = madd(p, r, 0.04166838899254799f);
  p = madd(p, r, 0.1666652113199234f);
  p = madd(p, r, 0.4999999403953552f);
  p = madd(p * r, r, r) + 1.0f;
  // By 2 and 2^(n-1), which the exponent field holds up to n = 128; it is 0 at n = -126. Shifted
  // left, all that stays of `shifted` is n.
  const uint32_t scale = (ScalarLanes::as_uint(shifted) << 23) + (126u << 23);
  return (p + p) * ScalarLanes::as_float(scale);
#endif
}
GENKERN_HD double exp(double x) { return ::exp(x); }

// e^x for x <= 88, saturated at e^88 above: never infinite, so 0 times it is 0.
GENKERN_HD float exp_saturated(float x) { return exp(x > 88.0f ? 88.0f : x); }
GENKERN_HD double exp_saturated(double x) { return ::exp(x > 709.0 ? 709.0 : x); }

// e^x - 1, and e^x - 1 - x = x^2 / 2 + x^3 / 6 + ..., which cancels near 0 and is summed there.
// Limits: infinity at both ends for the second, infinity and -1 for the first.
template <class T>
struct Expm1 {
  T value, minus_x;
};
template <class T>
GENKERN_HD Expm1<T> expm1_parts(T x, T e, T series, T largest) {
  const bool near = std::fabs(x) < T(0.5);
  const T far = e - T(1);
  // x kept finite: infinity minus infinity would be a NaN.
  return {near ? x + series : far, near ? series : far - (x > largest ? largest : x)};
}
// Given e = e^x.
GENKERN_HD Expm1<float> expm1(float x, float e) {
  // Minimax in relative error (0.41 * 2^-24) on |x| < 1/2.
  float p = 0.0001987562864087522f;
  p = madd(p, x, 0.0013981997035443783f);
  p = madd(p, x, 0.008333452045917511f);
  p = madd(p, x, 0.04166579619050026f);
  p = madd(p, x, 0.1666666567325592f);
  p = madd(p, x, 0.5f);
  return expm1_parts(x, e, x * x * p, 3.4028235e38f);
}
GENKERN_HD Expm1<double> expm1(double x, double e) {
  // Taylor to x^15 / 15!: the next term is below 2^-53 of the sum on |x| < 1/2.
  double p = 1.0 / 1307674368000.0;
  p = madd(p, x, 1.0 / 87178291200.0);
  p = madd(p, x, 1.0 / 6227020800.0);
  p = madd(p, x, 1.0 / 479001600.0);
  p = madd(p, x, 1.0 / 39916800.0);
  p = madd(p, x, 1.0 / 3628800.0);
  p = madd(p, x, 1.0 / 362880.0);
  p = madd(p, x, 1.0 / 40320.0);
  p = madd(p, x, 1.0 / 5040.0);
  p = madd(p, x, 1.0 / 720.0);
  p = madd(p, x, 1.0 / 120.0);
  p = madd(p, x, 1.0 / 24.0);
  p = madd(p, x, 1.0 / 6.0);
  p = madd(p, x, 0.5);
  return expm1_parts(x, e, x * x * p, 1.7976931348623157e308);
}

// log(1 + e) for e in [0, 1], within 2 ulp.
GENKERN_HD float log1p_exp(float e) {
  // log(1 + e) = 2 atanh(s) with s = e / (2 + e) <= 1/3; 2 atanh(s) / s in powers of s^2, minimax
  // in relative error (0.07 * 2^-24).
  const float s = e / (2.0f + e);
  const float q = s * s;
  float p = 0.2817833125591278f;
  p = madd(p, q, 0.27960604429244995f);
  p = madd(p, q, 0.40024909377098083f);
  p = madd(p, q, 0.6666631698608398f);
  p = madd(p, q, 2.0f);
  return p * s;
}
GENKERN_HD double log1p_exp(double e) { return ::log1p(e); }

}  // namespace genkern
