// The diffusion family, one element at a time; T as in math.h. Equations: docs/diffusion.md.
//
// What is affine needs no function here: it is a sum of products with coefficients of the sample.
#pragma once

#include "genkern/host_device.h"
#include "genkern/math.h"

namespace genkern {

// uncond + scale (pred - uncond): Ho and Salimans, arXiv:2207.12598, (6).
template <class T>
GENKERN_HD T guide(T pred, T uncond, T scale) {
  return madd(scale, pred - uncond, uncond);
}

// weight difference^2 + offset, difference = pred - target.
template <class T>
GENKERN_HD T weighted_square(T difference, T weight, T offset) {
  return madd(weight * difference, difference, offset);
}

// KL(N(x, e^true_lv) || N(x + step, e^lv)), step = mean_x0 d: Ho et al., arXiv:2006.11239, (5).
template <class T>
struct StepKl {
  T value;
  T d;  // its derivatives
  T lv;
};
template <class T>
GENKERN_HD StepKl<T> step_kl(T d, T mean_x0, T true_lv, T lv) {
  const T r = true_lv - lv;
  const Expm1<T> g = expm1(r);
  // In two steps, by e^(-lv/4) kept finite, as in kl_prior (vae.h).
  const T q = exp_saturated(T(-0.25f) * lv);
  const T s = ((mean_x0 * d) * q) * q;
  const T half = T(0.5f);
  return {half * madd(s, s, g.minus_x), (mean_x0 * s * q) * q, -half * madd(s, s, g.value)};
}

// Half the width of a bin of 8-bit images scaled to [-1, 1], and where the outermost bins, which
// are open, begin.
constexpr double kHalfBin = 1.0 / 255.0, kLastBin = 0.999;

// e^(x^2) erfc(x) for x >= 0.
#if defined(__CUDA_ARCH__)
GENKERN_HD float erfcx(float x) { return ::erfcxf(x); }
GENKERN_HD double erfcx(double x) { return ::erfcx(x); }
#else
GENKERN_HD double erfcx(double x) {
  if (x < 10.0) {
    const double square = x * x;
    // The square's rounding error is multiplied by up to 100 in the exponential: put it back.
    return ::exp(square) * (1.0 + std::fma(x, x, -square)) * ::erfc(x);
  }
  // Asymptotic: 1 / (x sqrt(pi)) sum of (-1)^k (2k - 1)!! / (2 x^2)^k. At 10 the terms fall until
  // k = 100; the one after these ten is below 6e-15 and falls with x^-22.
  const double y = 0.5 / (x * x);
  double sum = 1.0;
  for (int k = 10; k > 0; --k) sum = 1.0 - (2 * k - 1) * y * sum;
  return 0.56418958354775628695 / x * sum;  // 1 / sqrt(pi)
}
#endif

// -log of the probability that the discretised N(x0 - d, e^lv) gives to x0's bin: Ho et al.,
// arXiv:2006.11239, (13), with the exact normal distribution.
template <class T>
struct DecoderNll {
  T value;
  T d;  // its derivatives
  T lv;
};

// Of a bin that is narrow against the bell, w wide and s from the mean in standard deviations. Its
// probability is w times the density at its centre times S = 1 + w^2 He_2(s) / 24 +
// w^4 He_4(s) / 1920 + ..., the integral of the density's Taylor series. The terms left out are
// below 2e-14 of value and derivatives where w and w s are below 0.02, and 2e-8 below 0.2.
template <class T>
GENKERN_HD DecoderNll<T> narrow_bin_nll(T lv, T inverse, T w, T s) {
  const T u = w * w, v = (w * s) * (w * s);
  const T second = v - u, fourth = v * v - T(6) * u * v + T(3) * u * u;
  const T sum = T(1) + second * T(1.0 / 24) + fourth * T(1.0 / 1920);
  const T slope_s = u * (T(1.0 / 12) + (v - T(3) * u) * T(1.0 / 480)) / sum - T(1);  // over s
  const T slope_w = (second * T(1.0 / 12) + fourth * T(1.0 / 480)) / sum + T(1);     // times w
  const T half = T(0.5);
  // log w with lv itself: w underflows. The number is 1/2 log 2 pi - log(2 / 255).
  const T value = T(5.7670548978031535786) + half * (lv + s * s) - T(::log(sum));
  return {value, -s * slope_s * inverse, half * (s * s * slope_s + slope_w)};
}

// Where it is not the float of a GPU, in double: it runs on one time step of all, and the
// difference of two tails loses digits.
template <class T>
GENKERN_HD DecoderNll<T> decoder_nll(T d, T x0, T lv) {
  const T inverse = exp_saturated(T(-0.5) * lv);
  // Mirrored so that the bin lies on the positive side, where the tail is small.
  const bool mirrored = d < T(0);
  const T c = mirrored ? -d : d;
  const bool below = x0<T(-kLastBin), above = x0> T(kLastBin);
  DecoderNll<T> nll;
  const T w = T(2 * kHalfBin) * inverse, s = c * inverse;
  const T narrow = sizeof(T) == sizeof(float) ? T(0.2) : T(0.02);
  if (!below && !above && w < narrow && w * s < narrow) {
    nll = narrow_bin_nll(lv, inverse, w, s);
  } else {
    const bool open_near = mirrored ? above : below, open_far = mirrored ? below : above;
    const T a = (c - T(kHalfBin)) * inverse, b = (c + T(kHalfBin)) * inverse;
    const T root = T(0.70710678118654752440), half = T(0.5);
    // Probability and densities at the ends; in a tail, over the exponential at the near end.
    T p, at_a, at_b, exponent = T(0);
    if (a <= T(0) || open_near) {
      // The bin holds the mean, or all that is before it: two parts of the bell, added.
      const T near = open_near ? T(1) : T(::erf(-root * a)),
              far = open_far ? T(1) : T(::erf(root * b));
      p = half * (near + far);
      at_a = exp(-half * a * a);
      at_b = exp(-half * b * b);
    } else {
      exponent = half * a * a;
      at_a = T(1);
      at_b = exp(-(T(2 * kHalfBin) * c * inverse) * inverse);
      p = half * (erfcx(root * a) - (open_far ? T(0) : erfcx(root * b) * at_b));
    }
    const T over_p = T(0.39894228040143267794) / p;  // 1 / sqrt(2 pi)
    at_a = open_near ? T(0) : at_a * over_p;
    at_b = open_far ? T(0) : at_b * over_p;
    nll = {exponent - T(::log(p)), (at_a - at_b) * inverse, half * (b * at_b - a * at_a)};
  }
  if (mirrored) nll.d = -nll.d;
  return nll;
}

}  // namespace genkern
