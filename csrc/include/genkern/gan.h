// The GAN family, one element at a time; T as in math.h. Equations: docs/gan.md.
#pragma once

#include <cmath>
#include <cstdint>

#include "genkern/host_device.h"
#include "genkern/math.h"

namespace genkern {

// ---- functions of a logit
//
// Of u: a logit with the sign for which large is good, x of real data and -x of generated ones. s
// is the label smoothing.
template <class T>
struct OfLogit {
  T value;
  T u;  // d value / d u
};

// softplus(-u) + s u = (1 - s) softplus(-u) + s softplus(u): Goodfellow et al., arXiv:1406.2661,
// (1). e^|u| is never formed, so the value is finite wherever u is.
template <class Exp = FullExp, class T>
GENKERN_HD OfLogit<T> logistic_loss(T u, T s) {
  const T zero = T(0.0f), one = T(1.0f);
  const T e = Exp::decay_of(u);
  const T sigmoid = ratio(select_less(u, zero, one, e), one + e);  // of -u
  // Without smoothing an infinite u must not meet the 0.
  const T smoothed = select_less(zero, s, s * u, zero);
  return {at_least(-u, zero) + log1p_exp(e) + smoothed, s - sigmoid};
}

// max(1 - u, 0): Lim and Ye, arXiv:1705.02894. NaN stays NaN.
template <class T>
GENKERN_HD OfLogit<T> hinge_loss(T u) {
  const T zero = T(0.0f), one = T(1.0f);
  const T margin = at_least(one - u, zero);
  return {margin, select_less(zero, margin, -one, zero * margin)};
}

// -u: Arjovsky, Chintala and Bottou, arXiv:1701.07875, (2).
template <class T>
GENKERN_HD OfLogit<T> linear_loss(T u) {
  return {-u, T(-1.0f)};
}

// 1/2 (u - 1 + s)^2: Mao et al., arXiv:1611.04076, (9), with targets 1 - s and, for s = 1, 0.
template <class T>
GENKERN_HD OfLogit<T> square_loss(T u, T s) {
  const T difference = u - (T(1.0f) - s);
  // In this order the square does not overflow where its half does not.
  return {(T(0.5f) * difference) * difference, difference};
}

// 1 / (1 + e^-u). At u = log p - log q it is D* = p / (p + q): Goodfellow et al., proposition 1.
template <class Exp = FullExp, class T>
GENKERN_HD OfLogit<T> probability(T u) {
  const T zero = T(0.0f), one = T(1.0f);
  const T e = Exp::decay_of(u);
  const T larger = ratio(one, one + e), smaller = ratio(e, one + e);
  return {select_less(u, zero, smaller, larger), larger * smaller};
}

enum class LogitForm { kLogistic, kHinge, kLinear, kSquare, kProbability };

// factor * form(sign * logit).
struct LogitTerm {
  LogitForm form;
  double sign, factor, smoothing;
};

template <LogitForm kForm, class Exp = FullExp, class T>
GENKERN_HD OfLogit<T> logit_form(T u, T smoothing) {
  if constexpr (kForm == LogitForm::kLogistic) return logistic_loss<Exp>(u, smoothing);
  if constexpr (kForm == LogitForm::kHinge) return hinge_loss(u);
  if constexpr (kForm == LogitForm::kLinear) return linear_loss(u);
  if constexpr (kForm == LogitForm::kSquare) return square_loss(u, smoothing);
  if constexpr (kForm == LogitForm::kProbability) return probability<Exp>(u);
}
// The term at a logit: the value, and its derivative with respect to the logit.
template <LogitForm kForm, class T>
GENKERN_HD OfLogit<T> logit_term(T logit, T sign, T factor, T smoothing) {
  const auto f = logit_form<kForm>(sign * logit, smoothing);
  return {factor * f.value, (factor * sign) * f.u};
}

// The operators' kinds, as in genkern/_ops/gan.py.
enum class GanKind : int64_t {
  kMinimax = 0,
  kNonSaturating = 1,
  kHinge = 2,
  kWasserstein = 3,
  kLeastSquares = 4,
  kRelativistic = 5,
};

// The discriminator's terms at r and f. The relativistic loss is the first at r - f.
GENKERN_HD LogitForm discriminator_form(GanKind kind) {
  switch (kind) {
    case GanKind::kHinge:
      return LogitForm::kHinge;
    case GanKind::kWasserstein:
      return LogitForm::kLinear;
    case GanKind::kLeastSquares:
      return LogitForm::kSquare;
    default:
      return LogitForm::kLogistic;
  }
}
GENKERN_HD LogitTerm discriminator_real(GanKind kind, double label_smoothing) {
  return {discriminator_form(kind), 1.0, 1.0, label_smoothing};
}
GENKERN_HD LogitTerm discriminator_fake(GanKind kind) {
  return {discriminator_form(kind), -1.0, 1.0, kind == GanKind::kLeastSquares ? 1.0 : 0.0};
}
// The generator's term at f. The relativistic loss is it at f - r.
GENKERN_HD LogitTerm generator_term(GanKind kind) {
  switch (kind) {
    case GanKind::kMinimax:  // log(1 - D) = -softplus(f)
      return {LogitForm::kLogistic, -1.0, -1.0, 0.0};
    case GanKind::kLeastSquares:
      return {LogitForm::kSquare, 1.0, 1.0, 0.0};
    case GanKind::kNonSaturating:
    case GanKind::kRelativistic:
      return {LogitForm::kLogistic, 1.0, 1.0, 0.0};
    default:
      return {LogitForm::kLinear, 1.0, 1.0, 0.0};
  }
}

// ---- penalties, a sample at a time: p = weight (n - center)^2, n = ||g||
//
// In double, where no square of a float overflows or vanishes. dp/dg = slope g; along v it changes
// by slope v + turn (g . v) g. At g = 0 the derivatives are 0, but for center = 0: p is
// weight ||g||^2 then, smooth.
struct Penalty {
  double value, slope, turn;
  // The coefficient of g, given g . v: without a turn it is 0 though that be infinite.
  GENKERN_HD double turned(double along) const { return turn == 0.0 ? 0.0 : turn * along; }
};
GENKERN_HD Penalty penalty(double squares, double center, double weight) {
  if (center == 0.0) return {weight * squares, 2.0 * weight, 0.0};
  if (squares == 0.0) return {weight * center * center, 0.0, 0.0};
  const double n = std::sqrt(squares), difference = n - center;
  return {weight * difference * difference, 2.0 * weight * (1.0 - center / n),
          2.0 * weight * center / n / squares};
}
template <class T>
GENKERN_HD constexpr double largest() {
  return sizeof(T) == sizeof(double) ? 1.7976931348623157e308 : 0x1.fffffep127;
}
// A coefficient in the arithmetic's type. It multiplies gradients as small as it is large: kept
// finite, the product of the two is no NaN.
template <class T>
GENKERN_HD T coefficient(double x) {
  return static_cast<T>(clamp(x, -largest<T>(), largest<T>()));
}
// Whether it can be rounded to T.
template <class T>
GENKERN_HD bool holds(double x) {
  return magnitude(x) <= largest<T>();
}

// ---- points between real and generated data: Gulrajani et al., arXiv:1704.00028, section 4

template <class T>
GENKERN_HD T interpolate(T real, T fake, T w) {
  return madd(w, real, (T(1.0f) - w) * fake);
}

}  // namespace genkern
