// The GAN family, one element at a time; T as in math.h. Equations: docs/gan.md.
#pragma once

#include "genkern/host_device.h"
#include "genkern/math.h"

namespace genkern {

// ---- losses
//
// A loss of u: a logit with the sign for which large is good, x of real data and -x of generated
// ones. s is the label smoothing.
template <class T>
struct LogitLoss {
  T value;
  T u;  // d value / d u
};

// softplus(-u) + s u = (1 - s) softplus(-u) + s softplus(u): Goodfellow et al., arXiv:1406.2661,
// (1). Every term is positive or small, so the value is accurate wherever it is small; e^|u| is
// never formed, so it is finite wherever u is.
template <class T>
GENKERN_HD LogitLoss<T> logistic_loss(T u, T s) {
  const T zero = T(0.0f), one = T(1.0f);
  const T e = exp(-magnitude(u));
  const T sigmoid = ratio(select_less(u, zero, one, e), one + e);  // of -u
  // Without smoothing an infinite u must not meet the 0.
  const T smoothed = select_less(zero, s, s * u, zero);
  return {at_least(-u, zero) + log1p_exp(e) + smoothed, s - sigmoid};
}

// max(1 - u, 0): Lim and Ye, arXiv:1705.02894. NaN stays NaN.
template <class T>
GENKERN_HD LogitLoss<T> hinge_loss(T u) {
  const T zero = T(0.0f), one = T(1.0f);
  const T margin = at_least(one - u, zero);
  return {margin, select_less(zero, margin, -one, zero * margin)};
}

// -u: Arjovsky, Chintala and Bottou, arXiv:1701.07875, (2).
template <class T>
GENKERN_HD LogitLoss<T> linear_loss(T u) {
  return {-u, T(-1.0f)};
}

// 1/2 (u - 1 + s)^2: Mao et al., arXiv:1611.04076, (9) with targets 1 - s and, for s = 1, 0.
template <class T>
GENKERN_HD LogitLoss<T> square_loss(T u, T s) {
  const T difference = u - (T(1.0f) - s);
  // In this order the square does not overflow where its half does not.
  return {(T(0.5f) * difference) * difference, difference};
}

// The kinds of the operators, genkern/_ops/gan.py's KINDS.
enum class GanKind : int64_t {
  kMinimax = 0,
  kNonSaturating = 1,
  kHinge = 2,
  kWasserstein = 3,
  kLeastSquares = 4,
  kRelativistic = 5,
};
constexpr int64_t kGanKinds = 6;

enum class LossForm { kLogistic, kHinge, kLinear, kSquare };

// factor * loss(sign * logit).
struct LogitTerm {
  LossForm form;
  double sign, factor, smoothing;
};

// The discriminator's terms; the relativistic loss is the real term at r - f alone.
inline LossForm discriminator_form(GanKind kind) {
  switch (kind) {
    case GanKind::kHinge:
      return LossForm::kHinge;
    case GanKind::kWasserstein:
      return LossForm::kLinear;
    case GanKind::kLeastSquares:
      return LossForm::kSquare;
    default:
      return LossForm::kLogistic;
  }
}
inline LogitTerm discriminator_real(GanKind kind, double label_smoothing) {
  return {discriminator_form(kind), 1.0, 1.0, label_smoothing};
}
inline LogitTerm discriminator_fake(GanKind kind) {
  return {discriminator_form(kind), -1.0, 1.0, kind == GanKind::kLeastSquares ? 1.0 : 0.0};
}
// The generator's term, at f, or at r - f for the relativistic loss.
inline LogitTerm generator_term(GanKind kind) {
  switch (kind) {
    case GanKind::kMinimax:  // log(1 - D) = -softplus(f)
      return {LossForm::kLogistic, -1.0, -1.0, 0.0};
    case GanKind::kNonSaturating:
      return {LossForm::kLogistic, 1.0, 1.0, 0.0};
    case GanKind::kLeastSquares:
      return {LossForm::kSquare, 1.0, 1.0, 0.0};
    case GanKind::kRelativistic:
      return {LossForm::kLogistic, -1.0, 1.0, 0.0};
    default:
      return {LossForm::kLinear, 1.0, 1.0, 0.0};
  }
}

// The term at a logit: the value, and its derivative with respect to the logit.
template <LossForm kForm, class T>
GENKERN_HD LogitLoss<T> logit_term(T logit, T sign, T factor, T smoothing) {
  const T u = sign * logit;
  LogitLoss<T> loss;
  if constexpr (kForm == LossForm::kLogistic) loss = logistic_loss(u, smoothing);
  if constexpr (kForm == LossForm::kHinge) loss = hinge_loss(u);
  if constexpr (kForm == LossForm::kLinear) loss = linear_loss(u);
  if constexpr (kForm == LossForm::kSquare) loss = square_loss(u, smoothing);
  return {factor * loss.value, (factor * sign) * loss.u};
}

// ---- penalties, a sample at a time: p = weight (n - center)^2, n = ||g||
//
// In double, where no square of a float overflows or vanishes. dp/dg = slope g; along v it changes
// by slope v + turn (g . v) g. At g = 0 the derivatives are 0, but for center = 0: p is
// weight ||g||^2 then, smooth.
struct Penalty {
  double value, slope, turn;
};
GENKERN_HD Penalty penalty(double squares, double center, double weight) {
  if (center == 0.0) return {weight * squares, 2.0 * weight, 0.0};
  if (squares == 0.0) return {weight * center * center, 0.0, 0.0};
  const double n = std::sqrt(squares), difference = n - center;
  return {weight * difference * difference, 2.0 * weight * (1.0 - center / n),
          2.0 * weight * center / n / squares};
}
// A coefficient in the arithmetic's type. It multiplies gradients as small as it is large: kept
// finite, the product of the two is no NaN.
template <class T>
GENKERN_HD T coefficient(double x) {
  constexpr double kLargest = sizeof(T) == sizeof(double) ? 1.7976931348623157e308 : 0x1.fffffep127;
  return static_cast<T>(clamp(x, -kLargest, kLargest));
}

// ---- points between real and generated data: Gulrajani et al., arXiv:1704.00028, section 4.

template <class T>
GENKERN_HD T interpolate(T real, T fake, T w) {
  return madd(w, real, (T(1.0f) - w) * fake);
}

// ---- D*(x) = p(x) / (p(x) + q(x)) from log-densities: Goodfellow et al., arXiv:1406.2661,
// proposition 1.
template <class T>
struct OptimalDiscriminator {
  T value;
  T log_p;  // d value / d log p = -d value / d log q
};
template <class T>
GENKERN_HD OptimalDiscriminator<T> optimal_discriminator(T log_p, T log_q) {
  const T zero = T(0.0f), one = T(1.0f);
  const T difference = log_p - log_q;
  const T e = exp(-magnitude(difference));
  const T larger = ratio(one, one + e), smaller = ratio(e, one + e);
  // NaN, as from two densities of 0, stays NaN: both are NaN then.
  return {select_less(difference, zero, smaller, larger), larger * smaller};
}

}  // namespace genkern
