// The VAE family on CUDA devices: from tensors to the kernels of vae.cuh.
#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/operands.cuh"
#include "cuda/vae.cuh"

namespace genkern::cuda {
namespace {

template <class F>
void with_noise(const OptionalTensor& key, F f) {
  if (key) {
    f(std::integral_constant<Noise, Noise::kKey>{});
  } else {
    f(std::integral_constant<Noise, Noise::kTensor>{});
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
              mu, {});
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
                            mu, {});
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
    launch<T>(planner, Body{}, logits, {});
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
                x_hat, {});
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
