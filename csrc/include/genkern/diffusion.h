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
template <class Exp = FullExp, class T>
GENKERN_HD StepKl<T> step_kl(T d, T mean_x0, T true_lv, T lv) {
  const T r = true_lv - lv;
  const Expm1<T> g = Exp::expm1_of(r);
  // In two steps, by e^(-lv/4) kept finite, as in kl_prior (vae.h).
  const T q = Exp::saturated(-0.25f, lv);
  const T s = ((mean_x0 * d) * q) * q;
  const T half = T(0.5f);
  return {half * madd(s, s, g.minus_x), (mean_x0 * s * q) * q, -half * madd(s, s, g.value)};
}

// Twice the value, given s = mean_x0 d e^(-true_lv/2) and y = (true_lv - lv) / (2 ln 2), whose
// coefficients are worked out once a sample.
template <class Exp, class T>
GENKERN_HD T twice_step_kl(T s, T y) {
  // e^((true_lv - lv)/2) is kept finite: 0 times infinity would make a NaN.
  y = at_most(y, T(Limits<T>::kLargestExponent2));
  const T root = exp2_fast(y);
  const T minus_x = expm1_minus_x<Exp>(y, root);
  s *= root;
  return madd(s, s, minus_x);
}

// The derivative of the value by s, and twice that by true_lv - lv, given z = 2 y.
template <class T>
struct StepKlGradient {
  T s, twice_lv;
};
template <class Exp, class T>
GENKERN_HD StepKlGradient<T> step_kl_gradient(T s, T z) {
  const T ratio = exp2_fast(z);
  const T by_s = s * at_most(ratio, T(Limits<T>::kLargest));
  return {by_s, madd(s, by_s, expm1_given<Exp>(z, ratio))};
}

// Half the width of a bin of 8-bit images scaled to [-1, 1], and where the outermost bins, which
// are open, begin.
constexpr double kHalfBin = 1.0 / 255.0, kLastBin = 0.999;

// e^(x^2) erfc(x) for x >= 0.
#if defined(__CUDA_ARCH__)
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
struct DecoderNll {
  double value;
  double d;  // its derivatives
  double lv;
};

// Of a bin that is narrow against the bell, w wide and s from the mean in standard deviations. Its
// probability is w times the density at its centre times S, the integral of the density's Taylor
// series: S = 1 + sum over k of w^2k He_2k(s) / (4^k (2k + 1)!). The terms left out are below 1e-16
// of S where w and w s are below 1/4.
GENKERN_HD DecoderNll narrow_bin_nll(double lv, double inverse, double w, double s) {
  // w^n He_n(s), by He_n+1(s) = s He_n(s) - n He_n-1(s).
  const double u = w * w, h1 = w * s;
  const double h2 = h1 * h1 - u, h3 = h1 * h2 - 2 * u * h1, h4 = h1 * h3 - 3 * u * h2;
  const double h5 = h1 * h4 - 4 * u * h3, h6 = h1 * h5 - 5 * u * h4, h7 = h1 * h6 - 6 * u * h5;
  const double h8 = h1 * h7 - 7 * u * h6, h9 = h1 * h8 - 8 * u * h7, h10 = h1 * h9 - 9 * u * h8;
  const double sum = 1 + h2 * (1.0 / 24) + h4 * (1.0 / 1920) + h6 * (1.0 / 322560) +
                     h8 * (1.0 / 92897280) + h10 * (1.0 / 40874803200);
  // He_n' = n He_n-1: the derivative of S by s, over w, and that by w, times w.
  const double by_s = h1 * (1.0 / 12) + h3 * (1.0 / 480) + h5 * (1.0 / 53760) +
                      h7 * (1.0 / 11612160) + h9 * (1.0 / 4087480320);
  const double by_w = h2 * (1.0 / 12) + h4 * (1.0 / 480) + h6 * (1.0 / 53760) +
                      h8 * (1.0 / 11612160) + h10 * (1.0 / 4087480320);
  const double half = 0.5, inverse_sum = 1 / sum;
  // log w with lv itself: w underflows. The number is 1/2 log 2 pi - log(2 / 255).
  const double value = 5.7670548978031535786 + half * (lv + s * s) - ::log(sum);
  return {value, (s - w * by_s * inverse_sum) * inverse,
          half * (1 - s * s + (h1 * by_s + by_w) * inverse_sum)};
}

// In double for every type: it runs on one time step of all, and the difference of two tails loses
// digits.
GENKERN_HD DecoderNll decoder_nll(double d, double x0, double lv) {
  const double inverse = FullExp::saturated(-0.5f, lv);
  // Mirrored so that the bin lies on the positive side, where the tail is small.
  const bool mirrored = d < 0;
  const double c = mirrored ? -d : d;
  const bool below = x0 < -kLastBin;
  const bool above = x0 > kLastBin;
  DecoderNll nll;
  const double w = 2 * kHalfBin * inverse, s = c * inverse;
  constexpr double kNarrow = 0.25;
  if (!below && !above && w < kNarrow && w * s < kNarrow) {
    nll = narrow_bin_nll(lv, inverse, w, s);
  } else {
    const bool open_near = mirrored ? above : below, open_far = mirrored ? below : above;
    const double a = (c - kHalfBin) * inverse, b = (c + kHalfBin) * inverse;
    const double root = 0.70710678118654752440, half = 0.5;
    // Probability and densities at the ends; in a tail, over the exponential at the near end.
    double p, at_a, at_b, exponent = 0;
    if (a <= 0 || open_near) {
      // The bin holds the mean, or all that is before it: two parts of the bell, added.
      const double near = open_near ? 1 : ::erf(-root * a), far = open_far ? 1 : ::erf(root * b);
      p = half * (near + far);
      at_a = exp(-half * a * a);
      at_b = exp(-half * b * b);
    } else {
      exponent = half * a * a;
      at_a = 1;
      at_b = exp(-(2 * kHalfBin * c * inverse) * inverse);
      p = half * (erfcx(root * a) - (open_far ? 0 : erfcx(root * b) * at_b));
    }
    const double over_p = 0.39894228040143267794 / p;  // 1 / sqrt(2 pi)
    at_a = open_near ? 0 : at_a * over_p;
    at_b = open_far ? 0 : at_b * over_p;
    nll = {exponent - ::log(p), (at_a - at_b) * inverse, half * (b * at_b - a * at_a)};
  }
  if (mirrored) nll.d = -nll.d;
  return nll;
}

}  // namespace genkern
