// The VAE family on CUDA devices. One element's mathematics is in genkern/vae.h.
#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/ops.h"
#include "genkern/vae.h"

namespace genkern::cuda {
namespace {

enum class Noise { kNone, kKey, kTensor };

// A sum of repeats whose error does not grow with their number: Neumaier, ZAMM 54 (1974), with
// Knuth's branch-free two-sum.
template <class Acc>
struct CompensatedSum {
  Acc sum, error;
  __device__ void add(Acc x, bool first) {
    if (first) {
      sum = x;
      error = Acc(-0.0);  // x + -0.0 is x, which the compiler knows
      return;
    }
    const Acc s = sum + x, t = s - sum;
    error += (sum - (s - t)) + (x - t);
    sum = s;
  }
  __device__ Acc value() const { return sum + error; }
};

template <Noise kNoise, class S, class Acc>
__device__ void draw(const S& slot, int tensor, Acc (&eps)[S::kLanes], int64_t repeat = 0) {
  if constexpr (kNoise == Noise::kKey) {
    slot.normals(eps, repeat);
  } else {
    slot.load(tensor, eps, repeat);
  }
}

template <class Acc, Noise kNoise>
struct Rsample {
  enum { kMu, kLogvar, kEps, kZ, kTensors };
  static constexpr bool kSums = false, kDraws = kNoise == Noise::kKey;
  LogvarClamp<Acc> clamp;

  template <class S>
  __device__ void operator()(const S& slot) const {
    Acc mu[S::kLanes], sigma[S::kLanes];
    slot.load(kMu, mu);
    slot.load(kLogvar, sigma);
#pragma unroll
    for (int v = 0; v < S::kLanes; ++v) sigma[v] = standard_deviation(clamp(sigma[v]));
#pragma unroll 1
    for (int64_t k = 0; k < slot.repeats(); ++k) {
      Acc z[S::kLanes];
      draw<kNoise>(slot, kEps, z, k);
#pragma unroll
      for (int v = 0; v < S::kLanes; ++v) z[v] = reparameterise(mu[v], sigma[v], z[v]);
      slot.store(kZ, z, k);
    }
  }
};

// The prior N(0, 1), or whatever tensors and values say.
template <class Acc, bool kGeneral>
struct Prior {
  Acc mu, logvar, free_bits;

  __device__ auto divergence(Acc posterior_mu, Acc l, Acc sigma, Acc m2, Acc lv2) const {
    if constexpr (kGeneral) {
      return kl_prior(posterior_mu, l, m2, lv2);
    } else {
      return kl_standard(posterior_mu, l, sigma);
    }
  }
};

template <class Acc, Noise kNoise, bool kGeneral>
struct RsampleKl {
  enum { kMu, kLogvar, kPriorMu, kPriorLogvar, kEps, kKl, kZ, kTensors };
  static constexpr bool kSums = true, kDraws = kNoise == Noise::kKey;
  LogvarClamp<Acc> clamp;
  Prior<Acc, kGeneral> prior;

  template <class S>
  __device__ Acc operator()(const S& slot) const {
    Acc mu[S::kLanes], l[S::kLanes], m2[S::kLanes], lv2[S::kLanes], z[S::kLanes], kl[S::kLanes];
    slot.load(kMu, mu);
    slot.load(kLogvar, l);
    if constexpr (kGeneral) {
      slot.load_or(kPriorMu, prior.mu, m2);
      slot.load_or(kPriorLogvar, prior.logvar, lv2);
    }
    if constexpr (kNoise != Noise::kNone) draw<kNoise>(slot, kEps, z);
#pragma unroll
    for (int v = 0; v < S::kLanes; ++v) {
      l[v] = clamp(l[v]);
      const Acc sigma = standard_deviation(l[v]);
      if constexpr (kNoise != Noise::kNone) z[v] = reparameterise(mu[v], sigma, z[v]);
      kl[v] = with_free_bits(prior.divergence(mu[v], l[v], sigma, m2[v], lv2[v]).value,
                             prior.free_bits);
    }
    if constexpr (kNoise != Noise::kNone) slot.store(kZ, z);
    if (slot.has(kKl)) slot.store(kKl, kl);
    return slot.sum(kl);
  }
};

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
  static constexpr bool kSums = false, kDraws = kNoise == Noise::kKey;
  LogvarClamp<Acc> clamp;
  Prior<Acc, kGeneral> prior;
  Acc grad_kl_factor;
  bool grad_kl;  // there is one: a tensor, or a reduced value's

  template <class S>
  __device__ void operator()(const S& slot) const {
    Acc logvar[S::kLanes], sigma[S::kLanes], grad_mu[S::kLanes], grad_logvar[S::kLanes];
    slot.load(kLogvar, logvar);
#pragma unroll
    for (int v = 0; v < S::kLanes; ++v) {
      sigma[v] = standard_deviation(clamp(logvar[v]));
      grad_mu[v] = grad_logvar[v] = 0;
    }
    through_sample(slot, sigma, grad_mu, grad_logvar);
    through_kl(slot, logvar, sigma, grad_mu, grad_logvar);
    if (slot.has(kGradMu)) slot.store(kGradMu, grad_mu);
    if (slot.has(kGradLogvar)) {
#pragma unroll
      for (int v = 0; v < S::kLanes; ++v)
        if (clamp.gradient(logvar[v]) == Acc(0)) grad_logvar[v] = 0;
      slot.store(kGradLogvar, grad_logvar);
    }
  }

 private:
  template <class S>
  __device__ void through_sample(const S& slot, const Acc (&sigma)[S::kLanes],
                                 Acc (&grad_mu)[S::kLanes], Acc (&grad_logvar)[S::kLanes]) const {
    if (!slot.has(kGradZ) && !slot.has(kGradEps)) return;
    CompensatedSum<Acc> sum[S::kLanes] = {}, product[S::kLanes] = {};
#pragma unroll 1
    for (int64_t k = 0; k < slot.repeats(); ++k) {
      Acc gz[S::kLanes], eps[S::kLanes];
      slot.load_or(kGradZ, Acc(0), gz, k);
      if (slot.has(kGradZ) && slot.has(kGradLogvar)) {
        draw<kNoise>(slot, kEps, eps, k);
#pragma unroll
        for (int v = 0; v < S::kLanes; ++v) product[v].add(gz[v] * eps[v], k == 0);
      }
#pragma unroll
      for (int v = 0; v < S::kLanes; ++v) {
        sum[v].add(gz[v], k == 0);
        gz[v] *= sigma[v];
      }
      if constexpr (kNoise == Noise::kTensor)
        if (slot.has(kGradEps)) slot.store(kGradEps, gz, k);
    }
#pragma unroll
    for (int v = 0; v < S::kLanes; ++v) {
      grad_mu[v] = sum[v].value();
      grad_logvar[v] = product[v].value() * (Acc(0.5) * sigma[v]);
    }
  }

  template <class S>
  __device__ void through_kl(const S& slot, const Acc (&logvar)[S::kLanes],
                             const Acc (&sigma)[S::kLanes], Acc (&grad_mu)[S::kLanes],
                             Acc (&grad_logvar)[S::kLanes]) const {
    Acc mu[S::kLanes], m2[S::kLanes] = {}, lv2[S::kLanes] = {}, g[S::kLanes];
    if (grad_kl) {
      slot.load(kMu, mu);
      if constexpr (kGeneral) {
        slot.load_or(kPriorMu, prior.mu, m2);
        slot.load_or(kPriorLogvar, prior.logvar, lv2);
      }
      slot.load_upstream(kGradKl, grad_kl_factor, g);
#pragma unroll
      for (int v = 0; v < S::kLanes; ++v) {
        const auto kl = prior.divergence(mu[v], clamp(logvar[v]), sigma[v], m2[v], lv2[v]);
        g[v] *= free_bits_gradient(kl.value, prior.free_bits);
        m2[v] = -g[v] * kl.mu;
        grad_mu[v] = madd(g[v], kl.mu, grad_mu[v]);
        grad_logvar[v] = madd(g[v], kl.logvar, grad_logvar[v]);
        lv2[v] = g[v] * kl.prior_logvar;
      }
    }
    if constexpr (kGeneral) {
      if (slot.has(kGradPriorMu)) slot.store(kGradPriorMu, m2);
      if (slot.has(kGradPriorLogvar)) slot.store(kGradPriorLogvar, lv2);
    }
  }
};

template <class Acc>
struct BernoulliNllOp {
  enum { kLogits, kX, kNll, kTensors };
  static constexpr bool kSums = true, kDraws = false;

  template <class S>
  __device__ Acc operator()(const S& slot) const {
    Acc logits[S::kLanes], x[S::kLanes];
    slot.load(kLogits, logits);
    slot.load(kX, x);
#pragma unroll
    for (int v = 0; v < S::kLanes; ++v) x[v] = genkern::bernoulli_nll(logits[v], x[v]).value;
    if (slot.has(kNll)) slot.store(kNll, x);
    return slot.sum(x);
  }
};

template <class Acc>
struct BernoulliNllBackward {
  enum { kGrad, kLogits, kX, kGradX, kGradLogits, kTensors };
  static constexpr bool kSums = false, kDraws = false;
  Acc grad_factor;

  template <class S>
  __device__ void operator()(const S& slot) const {
    Acc g[S::kLanes], logits[S::kLanes], x[S::kLanes];
    slot.load_upstream(kGrad, grad_factor, g);
    slot.load(kLogits, logits);
    slot.load(kX, x);
#pragma unroll
    for (int v = 0; v < S::kLanes; ++v) {
      x[v] = g[v] * genkern::bernoulli_nll(logits[v], x[v]).logit;
      logits[v] = -g[v] * logits[v];
    }
    if (slot.has(kGradLogits)) slot.store(kGradLogits, x);
    if (slot.has(kGradX)) slot.store(kGradX, logits);
  }
};

template <class Acc, bool kLearned>
struct Decoder {
  LogvarClamp<Acc> clamp;
  Acc inverse_sigma, half_log_2_pi_variance;

  __device__ auto nll(Acc x_hat, Acc x, Acc logvar) const {
    if constexpr (kLearned) {
      return genkern::gaussian_nll(x_hat, x, clamp(logvar));
    } else {
      return genkern::gaussian_nll(x_hat, x, inverse_sigma, half_log_2_pi_variance);
    }
  }
};

template <class Acc, bool kLearned>
struct GaussianNllOp {
  enum { kXHat, kX, kLogvar, kNll, kTensors };
  static constexpr bool kSums = true, kDraws = false;
  Decoder<Acc, kLearned> decoder;

  template <class S>
  __device__ Acc operator()(const S& slot) const {
    Acc x_hat[S::kLanes], x[S::kLanes], logvar[S::kLanes];
    slot.load(kXHat, x_hat);
    slot.load(kX, x);
    if constexpr (kLearned) slot.load(kLogvar, logvar);
#pragma unroll
    for (int v = 0; v < S::kLanes; ++v) x[v] = decoder.nll(x_hat[v], x[v], logvar[v]).value;
    if (slot.has(kNll)) slot.store(kNll, x);
    return slot.sum(x);
  }
};

template <class Acc, bool kLearned>
struct GaussianNllBackward {
  enum { kGrad, kXHat, kX, kLogvar, kGradLogvar, kGradX, kGradXHat, kTensors };
  static constexpr bool kSums = false, kDraws = false;
  Decoder<Acc, kLearned> decoder;
  Acc grad_factor;

  template <class S>
  __device__ void operator()(const S& slot) const {
    Acc g[S::kLanes], x_hat[S::kLanes], x[S::kLanes], logvar[S::kLanes];
    slot.load_upstream(kGrad, grad_factor, g);
    slot.load(kXHat, x_hat);
    slot.load(kX, x);
    if constexpr (kLearned) slot.load(kLogvar, logvar);
#pragma unroll
    for (int v = 0; v < S::kLanes; ++v) {
      const auto nll = decoder.nll(x_hat[v], x[v], logvar[v]);
      x[v] = g[v] * nll.x;
      x_hat[v] = -x[v];
      if constexpr (kLearned)
        logvar[v] = decoder.clamp.gradient(logvar[v]) == Acc(0) ? Acc(0) : g[v] * nll.logvar;
    }
    if (slot.has(kGradXHat)) slot.store(kGradXHat, x_hat);
    if (slot.has(kGradX)) slot.store(kGradX, x);
    if constexpr (kLearned)
      if (slot.has(kGradLogvar)) slot.store(kGradLogvar, logvar);
  }
};

// ---- host
// ----------------------------------------------------------------------------------------

ScalarType reduced_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What a reduction divides the sum by. Dividing an empty sum by 0 gives NaN, as torch does.
template <int kTensors>
double divisor(const Planner<kTensors>& planner, int64_t reduction) {
  if (reduction == kMean) return static_cast<double>(planner.numel());
  if (reduction == kBatchMean) return static_cast<double>(planner.batch());
  return 1;
}

// The result of a reduction, or the tensor of unreduced values; the plan writes to it.
template <int kTensors>
Tensor reduced_output(Planner<kTensors>& planner, int tensor, const Tensor& like,
                      int64_t reduction) {
  if (reduction == kNone) {
    Tensor out = torch::stable::empty_like(like);
    planner.output(tensor, out);
    return out;
  }
  std::vector<int64_t> shape;
  if (reduction == kSample) shape.push_back(planner.batch());
  Tensor out = torch::stable::new_empty(like, shape, reduced_type(like));
  planner.plan.result = out.mutable_data_ptr();
  planner.plan.divisor = divisor(planner, reduction);
  return out;
}

template <int kTensors>
void upstream(Planner<kTensors>& planner, int tensor, const Tensor& grad, int64_t reduction) {
  if (reduction == kNone) {
    planner.input(tensor, grad);
  } else {
    planner.scale(grad);
  }
}

template <int kTensors>
void optional_input(Planner<kTensors>& planner, int tensor, const OptionalTensor& t) {
  if (t) planner.input(tensor, *t);
}

// The gradient of `of` if bit `bit` of the mask asks for it, else an empty tensor like `like`.
template <int kTensors>
Tensor gradient(Planner<kTensors>& planner, int tensor, const OptionalTensor& of,
                const Tensor& like, int64_t mask, int bit) {
  if (!of || !(mask >> bit & 1)) {
    const int64_t empty[] = {0};
    return torch::stable::new_empty(like, empty);
  }
  Tensor out = torch::stable::empty_like(*of);
  planner.output(tensor, out);
  return out;
}

template <class F>
void with_noise(const OptionalTensor& key, F f) {
  if (key) {
    f(std::integral_constant<Noise, Noise::kKey>{});
  } else {
    f(std::integral_constant<Noise, Noise::kTensor>{});
  }
}

template <class F>
void with_flag(bool flag, F f) {
  if (flag) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

bool is_general(const OptionalTensor& prior_mu, const OptionalTensor& prior_logvar,
                double prior_mu_value, double prior_logvar_value) {
  return prior_mu || prior_logvar || prior_mu_value != 0 || prior_logvar_value != 0;
}

template <class Acc>
LogvarClamp<Acc> logvar_clamp(double lo, double hi) {
  return {static_cast<Acc>(lo), static_cast<Acc>(hi)};
}

template <bool kGeneral, class Acc>
Prior<Acc, kGeneral> make_prior(double mu, double logvar, double free_bits, Acc) {
  return {static_cast<Acc>(mu), static_cast<Acc>(logvar), static_cast<Acc>(free_bits)};
}

template <class Acc, bool kLearned>
Decoder<Acc, kLearned> make_decoder(double sigma, double logvar_min, double logvar_max) {
  return {logvar_clamp<Acc>(logvar_min, logvar_max), static_cast<Acc>(1 / sigma),
          static_cast<Acc>(std::log(sigma) + 0.5 * kLog2Pi)};
}

}  // namespace

Tensor rsample(Tensor mu, Tensor logvar, OptionalTensor key, OptionalTensor noise,
               std::optional<int64_t> num_samples, double logvar_min, double logvar_max) {
  const torch::stable::accelerator::DeviceGuard guard(mu.get_device_index());
  Tensor z;
  if (num_samples) {
    std::vector<int64_t> shape{*num_samples};
    for (const int64_t n : mu.sizes()) shape.push_back(n);
    z = torch::stable::new_empty(mu, shape);
  } else {
    z = torch::stable::empty_like(mu);
  }
  // One thread for all samples of an element moves mu and logvar once, but needs elements enough to
  // fill a GPU.
  const bool loop = mu.numel() >= 1 << 18;
  dispatch(mu.scalar_type(), "rsample", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    with_noise(key, [&](auto source) {
      using Body = Rsample<Acc, source.value>;
      Planner<Body::kTensors> planner(mu.sizes(), num_samples.value_or(1));
      planner.input(Body::kMu, mu);
      planner.input(Body::kLogvar, logvar);
      optional_input(planner, Body::kEps, noise);
      if (key) planner.key(*key);
      planner.output(Body::kZ, z);
      launch<T>(planner, Body{logvar_clamp<Acc>(logvar_min, logvar_max)}, mu, {loop, false});
    });
  });
  return z;
}

Tensor kl(Tensor mu, Tensor logvar, OptionalTensor prior_mu, OptionalTensor prior_logvar,
          double prior_mu_value, double prior_logvar_value, double free_bits, double logvar_min,
          double logvar_max, int64_t reduction) {
  const torch::stable::accelerator::DeviceGuard guard(mu.get_device_index());
  Tensor out;
  dispatch(mu.scalar_type(), "kl", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    with_flag(
        is_general(prior_mu, prior_logvar, prior_mu_value, prior_logvar_value), [&](auto general) {
          using Body = RsampleKl<Acc, Noise::kNone, general.value>;
          Planner<Body::kTensors> planner(mu.sizes());
          planner.input(Body::kMu, mu);
          planner.input(Body::kLogvar, logvar);
          optional_input(planner, Body::kPriorMu, prior_mu);
          optional_input(planner, Body::kPriorLogvar, prior_logvar);
          out = reduced_output(planner, Body::kKl, mu, reduction);
          launch<T>(
              planner,
              Body{logvar_clamp<Acc>(logvar_min, logvar_max),
                   make_prior<general.value>(prior_mu_value, prior_logvar_value, free_bits, Acc{})},
              mu, {false, reduction == kSample});
        });
  });
  return out;
}

std::tuple<Tensor, Tensor> rsample_kl(Tensor mu, Tensor logvar, OptionalTensor prior_mu,
                                      OptionalTensor prior_logvar, OptionalTensor key,
                                      OptionalTensor noise, double prior_mu_value,
                                      double prior_logvar_value, double free_bits,
                                      double logvar_min, double logvar_max, int64_t reduction) {
  const torch::stable::accelerator::DeviceGuard guard(mu.get_device_index());
  Tensor z = torch::stable::empty_like(mu), out;
  dispatch(mu.scalar_type(), "rsample_kl", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    with_noise(key, [&](auto source) {
      with_flag(is_general(prior_mu, prior_logvar, prior_mu_value, prior_logvar_value),
                [&](auto general) {
                  using Body = RsampleKl<Acc, source.value, general.value>;
                  Planner<Body::kTensors> planner(mu.sizes());
                  planner.input(Body::kMu, mu);
                  planner.input(Body::kLogvar, logvar);
                  optional_input(planner, Body::kPriorMu, prior_mu);
                  optional_input(planner, Body::kPriorLogvar, prior_logvar);
                  optional_input(planner, Body::kEps, noise);
                  if (key) planner.key(*key);
                  planner.output(Body::kZ, z);
                  out = reduced_output(planner, Body::kKl, mu, reduction);
                  launch<T>(planner,
                            Body{logvar_clamp<Acc>(logvar_min, logvar_max),
                                 make_prior<general.value>(prior_mu_value, prior_logvar_value,
                                                           free_bits, Acc{})},
                            mu, {false, reduction == kSample});
                });
    });
  });
  return {z, out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rsample_kl_backward(
    OptionalTensor grad_z, OptionalTensor grad_kl, Tensor mu, Tensor logvar,
    OptionalTensor prior_mu, OptionalTensor prior_logvar, OptionalTensor key, OptionalTensor noise,
    std::optional<int64_t> num_samples, double prior_mu_value, double prior_logvar_value,
    double free_bits, double logvar_min, double logvar_max, int64_t reduction,
    int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(mu.get_device_index());
  Tensor grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar, grad_noise;
  dispatch(mu.scalar_type(), "rsample_kl_backward", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    with_noise(key, [&](auto source) {
      with_flag(
          is_general(prior_mu, prior_logvar, prior_mu_value, prior_logvar_value),
          [&](auto general) {
            using Body = RsampleKlBackward<Acc, source.value, general.value>;
            Planner<Body::kTensors> planner(mu.sizes(), num_samples.value_or(1));
            planner.input(Body::kMu, mu);
            planner.input(Body::kLogvar, logvar);
            optional_input(planner, Body::kPriorMu, prior_mu);
            optional_input(planner, Body::kPriorLogvar, prior_logvar);
            optional_input(planner, Body::kEps, noise);
            optional_input(planner, Body::kGradZ, grad_z);
            if (key) planner.key(*key);
            if (grad_kl) upstream(planner, Body::kGradKl, *grad_kl, reduction);
            grad_mu = gradient(planner, Body::kGradMu, mu, mu, output_mask, 0);
            grad_logvar = gradient(planner, Body::kGradLogvar, logvar, mu, output_mask, 1);
            grad_prior_mu = gradient(planner, Body::kGradPriorMu, prior_mu, mu, output_mask, 2);
            grad_prior_logvar =
                gradient(planner, Body::kGradPriorLogvar, prior_logvar, mu, output_mask, 3);
            grad_noise = gradient(planner, Body::kGradEps, noise, mu, output_mask, 4);
            launch<T>(planner,
                      Body{logvar_clamp<Acc>(logvar_min, logvar_max),
                           make_prior<general.value>(prior_mu_value, prior_logvar_value, free_bits,
                                                     Acc{}),
                           static_cast<Acc>(1 / divisor(planner, reduction)), grad_kl.has_value()},
                      mu, {true, false});
          });
    });
  });
  return {grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar, grad_noise};
}

Tensor bernoulli_nll(Tensor logits, Tensor x, int64_t reduction) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor out;
  dispatch(logits.scalar_type(), "bernoulli_nll", [&](auto storage) {
    using T = decltype(storage);
    using Body = BernoulliNllOp<typename Arithmetic<T>::type>;
    Planner<Body::kTensors> planner(logits.sizes());
    planner.input(Body::kLogits, logits);
    planner.input(Body::kX, x);
    out = reduced_output(planner, Body::kNll, logits, reduction);
    launch<T>(planner, Body{}, logits, {false, reduction == kSample});
  });
  return out;
}

std::tuple<Tensor, Tensor> bernoulli_nll_backward(Tensor grad, Tensor logits, Tensor x,
                                                  int64_t reduction, int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor grad_logits, grad_x;
  dispatch(logits.scalar_type(), "bernoulli_nll_backward", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    using Body = BernoulliNllBackward<Acc>;
    Planner<Body::kTensors> planner(logits.sizes());
    upstream(planner, Body::kGrad, grad, reduction);
    planner.input(Body::kLogits, logits);
    planner.input(Body::kX, x);
    grad_logits = gradient(planner, Body::kGradLogits, logits, logits, output_mask, 0);
    grad_x = gradient(planner, Body::kGradX, x, logits, output_mask, 1);
    launch<T>(planner, Body{static_cast<Acc>(1 / divisor(planner, reduction))}, logits, {});
  });
  return {grad_logits, grad_x};
}

Tensor gaussian_nll(Tensor x_hat, Tensor x, OptionalTensor logvar, double sigma, double logvar_min,
                    double logvar_max, int64_t reduction) {
  const torch::stable::accelerator::DeviceGuard guard(x_hat.get_device_index());
  Tensor out;
  dispatch(x_hat.scalar_type(), "gaussian_nll", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    with_flag(logvar.has_value(), [&](auto learned) {
      using Body = GaussianNllOp<Acc, learned.value>;
      Planner<Body::kTensors> planner(x_hat.sizes());
      planner.input(Body::kXHat, x_hat);
      planner.input(Body::kX, x);
      optional_input(planner, Body::kLogvar, logvar);
      out = reduced_output(planner, Body::kNll, x_hat, reduction);
      launch<T>(planner, Body{make_decoder<Acc, learned.value>(sigma, logvar_min, logvar_max)},
                x_hat, {false, reduction == kSample});
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gaussian_nll_backward(Tensor grad, Tensor x_hat, Tensor x,
                                                         OptionalTensor logvar, double sigma,
                                                         double logvar_min, double logvar_max,
                                                         int64_t reduction, int64_t output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(x_hat.get_device_index());
  Tensor grad_x_hat, grad_x, grad_logvar;
  dispatch(x_hat.scalar_type(), "gaussian_nll_backward", [&](auto storage) {
    using T = decltype(storage);
    using Acc = typename Arithmetic<T>::type;
    with_flag(logvar.has_value(), [&](auto learned) {
      using Body = GaussianNllBackward<Acc, learned.value>;
      Planner<Body::kTensors> planner(x_hat.sizes());
      upstream(planner, Body::kGrad, grad, reduction);
      planner.input(Body::kXHat, x_hat);
      planner.input(Body::kX, x);
      optional_input(planner, Body::kLogvar, logvar);
      grad_x_hat = gradient(planner, Body::kGradXHat, x_hat, x_hat, output_mask, 0);
      grad_x = gradient(planner, Body::kGradX, x, x_hat, output_mask, 1);
      grad_logvar = gradient(planner, Body::kGradLogvar, logvar, x_hat, output_mask, 2);
      launch<T>(planner,
                Body{make_decoder<Acc, learned.value>(sigma, logvar_min, logvar_max),
                     static_cast<Acc>(1 / divisor(planner, reduction))},
                x_hat, {});
    });
  });
  return {grad_x_hat, grad_x, grad_logvar};
}

}  // namespace genkern::cuda
