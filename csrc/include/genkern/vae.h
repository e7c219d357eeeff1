// The VAE family, one element at a time; T as in math.h. Equations: docs/vae.md.
//
// N(mu, e^l) is the posterior, l its log-variance clamped to [logvar_min, logvar_max];
// N(m2, e^lv2) is the prior.
#pragma once

#include "genkern/host_device.h"
#include "genkern/math.h"

namespace genkern {

template <class T>
struct LogvarClamp {
  T min, max;
  template <class N>
  GENKERN_HD N operator()(N logvar) const {
    return clamp(logvar, N(min), N(max));
  }
  // g inside and at the bounds, 0 outside, even for an infinite g; NaN counts as inside.
  template <class N>
  GENKERN_HD N gradient(N logvar, N g) const {
    const N zero = N(0.0f);
    return select_less(logvar, N(min), zero, select_less(N(max), logvar, zero, g));
  }
};

// z = mu + e^(l / 2) eps: Kingma and Welling, arXiv:1312.6114, section 2.4.
template <class Exp = FullExp, class T>
GENKERN_HD T standard_deviation(T l) {
  return Exp::root(l);
}
template <class T>
GENKERN_HD T reparameterise(T mu, T sigma, T eps) {
  return madd(sigma, eps, mu);
}

// KL(N(mu, e^l) || N(m2, e^lv2)) = 1/2 (s^2 + expm1(d) - d), d = l - lv2, s = (mu - m2) e^(-lv2/2),
// with the derivatives its gradients need.
template <class T>
struct Kl {
  T value;   // never negative
  T mu;      // d value / d mu = -d value / d m2
  T logvar;  // d value / d l = 1/2 expm1(d)
  T prior_logvar;
};

// Against N(0, 1), g that of l.
template <class T>
GENKERN_HD Kl<T> kl_standard(T mu, Expm1<T> g) {
  const T derivative = T(0.5f) * g.value;
  return {T(0.5f) * madd(mu, mu, g.minus_x), mu, derivative, -madd(T(0.5f) * mu, mu, derivative)};
}

template <class Exp = FullExp, class T>
GENKERN_HD Kl<T> kl_prior(T mu, T l, T m2, T lv2) {
  const T d = l - lv2;
  const Expm1<T> g = Exp::expm1_of(d);
  // In two steps, by e^(-lv2/4) kept finite: the square of mu - m2, or e^(-lv2), may overflow
  // where the product does not, and 0 times infinity would make a NaN.
  const T q = Exp::saturated(-0.25f, lv2);
  const T s = ((mu - m2) * q) * q;
  const T derivative = T(0.5f) * g.value;
  return {T(0.5f) * madd(s, s, g.minus_x), (s * q) * q, derivative,
          -madd(T(0.5f) * s, s, derivative)};
}

// Free bits (Kingma et al., arXiv:1606.04934, appendix C.8), a coordinate: max(kl, free_bits),
// whose gradient is 0 below and g elsewhere, even for an infinite g.
template <class T>
GENKERN_HD T with_free_bits(T kl, T free_bits) {
  return at_least(kl, free_bits);
}
template <class T>
GENKERN_HD T free_bits_gradient(T kl, T free_bits, T g) {
  return select_less(kl, free_bits, T(0.0f), g);
}

// -log Bernoulli(x; sigmoid(logit)) = max(logit, 0) - logit x + log(1 + e^-|logit|).
template <class T>
struct BernoulliNll {
  T value;
  T logit;  // sigmoid(logit) - x
};
template <class Exp = FullExp, class T>
GENKERN_HD BernoulliNll<T> bernoulli_nll(T logit, T x) {
  const T zero = T(0.0f), one = T(1.0f);
  const T e = Exp::decay_of(logit);
  const T top = select_less(zero, logit, one, e);
  return {madd(-logit, x, at_least(logit, zero)) + log1p_exp(e), ratio(top, one + e) - x};
}

constexpr double kLog2Pi = 1.8378770664093454836;

// -log N(x; x_hat, sigma^2) = 1/2 (r^2 + log sigma^2 + log 2 pi), r = (x - x_hat) / sigma.
template <class T>
struct GaussianNll {
  T value;
  T x;       // = -d value / d x_hat
  T logvar;  // 1/2 (1 - r^2)
};
template <class T>
GENKERN_HD GaussianNll<T> gaussian_nll(T x_hat, T x, T inverse_sigma, T half_log_2_pi_variance) {
  const T r = (x - x_hat) * inverse_sigma;
  return {madd(T(0.5f) * r, r, half_log_2_pi_variance), r * inverse_sigma, T(0.0f)};
}
template <class Exp = FullExp, class T>
GENKERN_HD GaussianNll<T> gaussian_nll(T x_hat, T x, T l) {
  const T q = Exp::saturated(-0.25f, l);  // as in kl_prior
  const T r = ((x - x_hat) * q) * q;
  const T half_square = T(0.5f) * r * r;
  return {half_square + T(0.5f) * (l + T(kLog2Pi)), (r * q) * q, T(0.5f) - half_square};
}

}  // namespace genkern
