// What a thread does with a slot in the kernels of the VAE family. One element's mathematics is in
// genkern/vae.h.
#pragma once

#include <cmath>

#include "cuda/slot.cuh"
#include "genkern/vae.h"

namespace genkern::cuda {

enum class Noise { kNone, kKey, kTensor };

// A sum of repeats whose error does not grow with their number: Neumaier, ZAMM 54 (1974), with
// Knuth's branch-free two-sum.
template <class Acc>
struct CompensatedSum {
  Acc sum = 0, error = Acc(-0.0);  // x + -0.0 is x, which the compiler knows
  __device__ void add(Acc x, bool first) {
    if (first) {
      sum = x;
      error = Acc(-0.0);
      return;
    }
    const Acc s = sum + x, t = s - sum;
    error += (sum - (s - t)) + (x - t);
    sum = s;
  }
  __device__ Acc value() const { return sum + error; }
};

template <Noise kNoise, class S>
__device__ void draw(const S& slot, int tensor, typename S::Numbers& eps, int64_t repeat = 0) {
  if constexpr (kNoise == Noise::kKey) {
    slot.normals(eps, repeat);
  } else {
    slot.load(tensor, eps, repeat);
  }
}

template <class Acc, Noise kNoise>
struct Rsample {
  enum { kMu, kLogvar, kEps, kZ, kTensors };
  static constexpr bool kSums = false, kDraws = kNoise == Noise::kKey, kBySample = false;
  LogvarClamp<Acc> clamp;

  template <class S>
  __device__ void operator()(const S& slot) const {
    typename S::Numbers mu, sigma;
    slot.load(kMu, mu);
    slot.load(kLogvar, sigma);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v)
      sigma[v] = standard_deviation<typename S::Exp>(clamp(sigma[v]));
#pragma unroll 1
    for (int64_t k = 0; k < slot.repeats(); ++k) {
      typename S::Numbers z;
      draw<kNoise>(slot, kEps, z, k);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) z[v] = reparameterise(mu[v], sigma[v], z[v]);
      slot.store(kZ, z, k);
    }
  }
};

template <Noise kNoise>
constexpr int kBlocks<Rsample<float, kNoise>, float, Walk::kFlat> =
    kPairInstructions ? (kNoise == Noise::kKey ? 4 : 8) : 1;

// The prior N(0, 1), or whatever tensors and values say.
template <class Acc, bool kGeneral>
struct Prior {
  Acc mu, logvar, free_bits;

  template <class Exp, class N>
  __device__ Kl<N> divergence(N posterior_mu, N l, N sigma, N m2, N lv2) const {
    if constexpr (kGeneral) {
      return kl_prior<Exp>(posterior_mu, l, m2, lv2);
    } else {
      return kl_standard(posterior_mu, expm1(l, sigma * sigma));
    }
  }
};

template <class Acc, Noise kNoise, bool kGeneral>
struct RsampleKl {
  enum { kMu, kLogvar, kPriorMu, kPriorLogvar, kEps, kKl, kZ, kTensors };
  static constexpr bool kSums = true, kDraws = kNoise == Noise::kKey, kBySample = false;
  LogvarClamp<Acc> clamp;
  Prior<Acc, kGeneral> prior;

  template <class S>
  __device__ Acc operator()(const S& slot) const {
    typename S::Numbers mu, l, m2, lv2, z, kl;
    slot.load(kMu, mu);
    slot.load(kLogvar, l);
    if constexpr (kGeneral) {
      slot.load_or(kPriorMu, prior.mu, m2);
      slot.load_or(kPriorLogvar, prior.logvar, lv2);
    }
    if constexpr (kNoise != Noise::kNone) draw<kNoise>(slot, kEps, z);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v) {
      l[v] = clamp(l[v]);
      const auto sigma = standard_deviation<typename S::Exp>(l[v]);
      if constexpr (kNoise != Noise::kNone) z[v] = reparameterise(mu[v], sigma, z[v]);
      kl[v] = with_free_bits(
          prior.template divergence<typename S::Exp>(mu[v], l[v], sigma, m2[v], lv2[v]).value,
          typename S::Number(prior.free_bits));
    }
    if constexpr (kNoise != Noise::kNone) slot.store(kZ, z);
    if (slot.has(kKl)) slot.store(kKl, kl);
    return slot.sum(kl);
  }
};

template <>
constexpr int kBlocks<RsampleKl<float, Noise::kTensor, true>, float, Walk::kFlat> = 4;
template <class T>
constexpr int kBlocks<RsampleKl<float, Noise::kTensor, false>, T, Walk::kFlat> =
    kPairInstructions ? 4 : 1;
template <>
constexpr int kBlocks<RsampleKl<float, Noise::kNone, true>, __half, Walk::kFlat> = kAmpere ? 5 : 1;
template <>
constexpr int kBlocks<RsampleKl<float, Noise::kNone, true>, float, Walk::kFlat> =
    kPairInstructions ? 1 : 5;

// Clamps, where there are bounds. Gives a bit for each lane, set where it is outside.
template <class S, class Acc>
__device__ unsigned clamp_lanes(const LogvarClamp<Acc>& clamp, typename S::Numbers& logvar) {
  unsigned outside = 0;
  if (clamp.min == Acc(-INFINITY) && clamp.max == Acc(INFINITY)) return outside;
#pragma unroll
  for (int v = 0; v < S::kLanes; ++v) {
    Acc& lane = S::lane(logvar, v);
    if (clamp.gradient(lane, Acc(1)) == Acc(0)) outside |= 1u << v;
    lane = clamp(lane);
  }
  return outside;
}

template <class Acc, Noise kNoise, bool kGeneral>
struct RsampleKlBackward {
  enum {
    kGradZ,
    kGradKl,
    kMu,
    kLogvar,
    kPriorMu,
    kPriorLogvar,
    kEps,
    kGradEps,
    kGradPriorLogvar,
    kGradPriorMu,
    kGradLogvar,
    kGradMu,
    kTensors
  };
  static constexpr bool kSums = false, kDraws = kNoise == Noise::kKey, kBySample = false;
  LogvarClamp<Acc> clamp;
  Prior<Acc, kGeneral> prior;
  Acc grad_kl_factor;
  bool grad_kl;  // there is one: a tensor, or a reduced value's

  template <class S>
  __device__ void operator()(const S& slot) const {
    typename S::Numbers logvar, sigma, grad_mu, grad_logvar;
    slot.load(kLogvar, logvar);
    const unsigned outside = clamp_lanes<S>(clamp, logvar);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v) {
      sigma[v] = standard_deviation<typename S::Exp>(logvar[v]);
      grad_mu[v] = grad_logvar[v] = 0;
    }
    through_sample(slot, sigma, grad_mu, grad_logvar);
    through_kl(slot, logvar, sigma, grad_mu, grad_logvar);
    if (slot.has(kGradMu)) slot.store(kGradMu, grad_mu);
    if (slot.has(kGradLogvar)) {
      if (outside != 0) {
#pragma unroll
        for (int v = 0; v < S::kLanes; ++v)
          if (outside >> v & 1) S::lane(grad_logvar, v) = 0;
      }
      slot.store(kGradLogvar, grad_logvar);
    }
  }

 private:
  template <class S>
  __device__ void through_sample(const S& slot, const typename S::Numbers& sigma,
                                 typename S::Numbers& grad_mu,
                                 typename S::Numbers& grad_logvar) const {
    if (!slot.has(kGradZ) && !slot.has(kGradEps)) return;
    CompensatedSum<typename S::Number> sum[S::kNumbers], product[S::kNumbers];
#pragma unroll 1
    for (int64_t k = 0; k < slot.repeats(); ++k) {
      typename S::Numbers gz, eps;
      slot.load_or(kGradZ, Acc(0), gz, k);
      if (slot.has(kGradZ) && slot.has(kGradLogvar)) {
        draw<kNoise>(slot, kEps, eps, k);
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) product[v].add(gz[v] * eps[v], k == 0);
      }
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        sum[v].add(gz[v], k == 0);
        gz[v] *= sigma[v];
      }
      if constexpr (kNoise == Noise::kTensor)
        if (slot.has(kGradEps)) slot.store(kGradEps, gz, k);
    }
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v) {
      grad_mu[v] = sum[v].value();
      grad_logvar[v] = product[v].value() * (Acc(0.5) * sigma[v]);
    }
  }

  template <class S>
  __device__ void through_kl(const S& slot, const typename S::Numbers& logvar,
                             const typename S::Numbers& sigma, typename S::Numbers& grad_mu,
                             typename S::Numbers& grad_logvar) const {
    typename S::Numbers mu, m2, lv2, g;
    slot.fill(0, m2);
    slot.fill(0, lv2);
    if (grad_kl) {
      slot.load(kMu, mu);
      if constexpr (kGeneral) {
        slot.load_or(kPriorMu, prior.mu, m2);
        slot.load_or(kPriorLogvar, prior.logvar, lv2);
      }
      slot.load_upstream(kGradKl, grad_kl_factor, g);
      Kl<typename S::Number> kl[S::kNumbers];
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v)
        kl[v] =
            prior.template divergence<typename S::Exp>(mu[v], logvar[v], sigma[v], m2[v], lv2[v]);
      if (prior.free_bits > Acc(0)) {  // else none is below, and its value does not matter
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v)
          g[v] = free_bits_gradient(kl[v].value, typename S::Number(prior.free_bits), g[v]);
      }
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        m2[v] = -g[v] * kl[v].mu;
        grad_mu[v] = madd(g[v], kl[v].mu, grad_mu[v]);
        grad_logvar[v] = madd(g[v], kl[v].logvar, grad_logvar[v]);
        lv2[v] = g[v] * kl[v].prior_logvar;
      }
    }
    if constexpr (kGeneral) {
      if (slot.has(kGradPriorMu)) slot.store(kGradPriorMu, m2);
      if (slot.has(kGradPriorLogvar)) slot.store(kGradPriorLogvar, lv2);
    }
  }
};

template <bool kGeneral, class T>
constexpr int kBlocks<RsampleKlBackward<float, Noise::kTensor, kGeneral>, T, Walk::kFlat> =
    kPairInstructions ? (kGeneral || sizeof(T) == 2 ? 3 : 5) : 1;

template <class Acc>
struct BernoulliNllOp {
  enum { kLogits, kX, kNll, kTensors };
  static constexpr bool kSums = true, kDraws = false, kBySample = false;

  template <class S>
  __device__ Acc operator()(const S& slot) const {
    typename S::Numbers logits, x;
    slot.load(kLogits, logits);
    slot.load(kX, x);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v)
      x[v] = genkern::bernoulli_nll<typename S::Exp>(logits[v], x[v]).value;
    if (slot.has(kNll)) slot.store(kNll, x);
    return slot.sum(x);
  }
};

template <class Acc>
struct BernoulliNllBackward {
  enum { kGrad, kLogits, kX, kGradX, kGradLogits, kTensors };
  static constexpr bool kSums = false, kDraws = false, kBySample = false;
  Acc grad_factor;

  template <class S>
  __device__ void operator()(const S& slot) const {
    typename S::Numbers g, logits, x;
    slot.load_upstream(kGrad, grad_factor, g);
    slot.load(kLogits, logits);
    slot.load(kX, x);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v) {
      x[v] = g[v] * genkern::bernoulli_nll<typename S::Exp>(logits[v], x[v]).logit;
      logits[v] = -g[v] * logits[v];
    }
    if (slot.has(kGradLogits)) slot.store(kGradLogits, x);
    if (slot.has(kGradX)) slot.store(kGradX, logits);
  }
};

template <>
constexpr int kBlocks<BernoulliNllBackward<float>, float, Walk::kFlat> = kPairInstructions ? 5 : 6;

template <class Acc, bool kLearned>
struct Decoder {
  LogvarClamp<Acc> clamp;
  Acc inverse_sigma, half_log_2_pi_variance;

  template <class Exp, class N>
  __device__ GaussianNll<N> nll(N x_hat, N x, N logvar) const {
    if constexpr (kLearned) {
      return genkern::gaussian_nll<Exp>(x_hat, x, clamp(logvar));
    } else {
      return genkern::gaussian_nll(x_hat, x, N(inverse_sigma), N(half_log_2_pi_variance));
    }
  }
};

template <class Acc, bool kLearned>
struct GaussianNllOp {
  enum { kXHat, kX, kLogvar, kNll, kTensors };
  static constexpr bool kSums = true, kDraws = false, kBySample = false;
  Decoder<Acc, kLearned> decoder;

  template <class S>
  __device__ Acc operator()(const S& slot) const {
    typename S::Numbers x_hat, x, logvar;
    slot.load(kXHat, x_hat);
    slot.load(kX, x);
    if constexpr (kLearned) slot.load(kLogvar, logvar);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v)
      x[v] = decoder.template nll<typename S::Exp>(x_hat[v], x[v], logvar[v]).value;
    if (slot.has(kNll)) slot.store(kNll, x);
    return slot.sum(x);
  }
};

template <class Acc, bool kLearned>
struct GaussianNllBackward {
  enum { kGrad, kXHat, kX, kLogvar, kGradLogvar, kGradX, kGradXHat, kTensors };
  static constexpr bool kSums = false, kDraws = false, kBySample = false;
  Decoder<Acc, kLearned> decoder;
  Acc grad_factor;

  template <class S>
  __device__ void operator()(const S& slot) const {
    typename S::Numbers g, x_hat, x, logvar;
    slot.load_upstream(kGrad, grad_factor, g);
    slot.load(kXHat, x_hat);
    slot.load(kX, x);
    if constexpr (kLearned) slot.load(kLogvar, logvar);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v) {
      const auto nll = decoder.template nll<typename S::Exp>(x_hat[v], x[v], logvar[v]);
      x[v] = g[v] * nll.x;
      x_hat[v] = -x[v];
      if constexpr (kLearned) logvar[v] = decoder.clamp.gradient(logvar[v], g[v] * nll.logvar);
    }
    if (slot.has(kGradXHat)) slot.store(kGradXHat, x_hat);
    if (slot.has(kGradX)) slot.store(kGradX, x);
    if constexpr (kLearned)
      if (slot.has(kGradLogvar)) slot.store(kGradLogvar, logvar);
  }
};

template <class T>
constexpr int kBlocks<GaussianNllBackward<float, true>, T, Walk::kFlat> = sizeof(T) == 4 ? 6 : 5;

}  // namespace genkern::cuda
