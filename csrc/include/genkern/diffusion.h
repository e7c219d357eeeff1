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
  const Expm1<T> g = expm1(r, exp(r));
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
// Where it is not the float of a GPU, in double: it runs on one time step of all, and the
// difference of two tails loses digits.
template <class T>
GENKERN_HD DecoderNll<T> decoder_nll(T d, T x0, T lv) {
  const T inverse = exp_saturated(T(-0.5) * lv);
  // Mirrored so that the bin lies on the positive side, where the tail is small.
  const bool mirrored = d < T(0);
  const T c = mirrored ? -d : d;
  const bool below = x0<T(-kLastBin), above = x0> T(kLastBin);
  const bool open_near = mirrored ? above : below, open_far = mirrored ? below : above;
  const T a = (c - T(kHalfBin)) * inverse, b = (c + T(kHalfBin)) * inverse;
  const T root = T(0.70710678118654752440), half = T(0.5);
  T log_p;
  if (a <= T(0) || open_near) {
    // The bin holds the mean, or all that is before it: two parts of the bell, added.
    const T near = open_near ? T(1) : T(::erf(-root * a)),
            far = open_far ? T(1) : T(::erf(root * b));
    log_p = T(::log(half * (near + far)));
  } else {
    // A difference of tails, scaled by the density at the near end.
    const T ratio = exp(-(T(2 * kHalfBin) * c * inverse) * inverse);
    const T tail = open_far ? T(0) : erfcx(root * b) * ratio;
    log_p = T(::log(half * (erfcx(root * a) - tail))) - half * a * a;
  }
  // Densities at the ends over the probability.
  const T shift = T(0.91893853320467274178) + log_p;  // 1/2 log 2 pi
  const T at_a = open_near ? T(0) : exp(-half * a * a - shift);
  const T at_b = open_far ? T(0) : exp(-half * b * b - shift);
  const T along_c = (at_a - at_b) * inverse;
  const T along_lv = half * ((open_far ? T(0) : b * at_b) - (open_near ? T(0) : a * at_a));
  return {-log_p, mirrored ? -along_c : along_c, along_lv};
}

}  // namespace genkern
