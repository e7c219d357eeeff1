#include "cpu/arguments.h"

namespace genkern {
namespace {

void require_one_source(const char* function, const Optional& key, const Optional& noise) {
  STD_TORCH_CHECK(key.has_value() != noise.has_value(), function,
                  ": expected exactly one of key and noise");
}

struct PosteriorOptions {
  double prior_mu_value = 0.0, prior_logvar_value = 0.0, free_bits = 0.0;
  double logvar_min, logvar_max;
  Reduction reduction = Reduction::kNone;
};

Posterior posterior_call(Arguments& arguments, const Tensor& mu, const Tensor& logvar,
                         const Optional& prior_mu, const Optional& prior_logvar,
                         const Optional& key, const Optional& noise, std::optional<int64_t> draws,
                         const PosteriorOptions& options) {
  Posterior call{};
  call.type = arguments.type();
  call.shape = arguments.shape();
  call.reduction = options.reduction;
  call.parallel = parallel;
  call.mu = arguments.view(mu);
  call.logvar = arguments.view(logvar);
  call.prior_mu = arguments.view(prior_mu);
  call.prior_logvar = arguments.view(prior_logvar);
  if (noise) call.noise = arguments.drawn(*noise, draws);
  call.keys = arguments.keys(key);
  call.draws = draws.value_or(1);
  call.prior_mu_value = options.prior_mu_value;
  call.prior_logvar_value = options.prior_logvar_value;
  call.free_bits = options.free_bits;
  call.logvar_min = options.logvar_min;
  call.logvar_max = options.logvar_max;
  return call;
}

// A result that is a value an element or reduced.
Tensor result(Arguments& arguments, const Tensor& like, Call& call, View& view) {
  const bool whole = call.reduction == Reduction::kNone;
  const Tensor out = whole ? new_like(like) : reduced(like, call.reduction);
  view = whole ? arguments.view(out) : View{out.data_ptr()};
  return out;
}

// The gradient of `like` if output_mask asks for it, else an empty tensor. Zeros if no upstream
// gradient reaches it: kernels then leave it alone.
Tensor gradient(const Optional& like, const Tensor& dtype_of, int64_t output_mask, int bit,
                bool reached = true) {
  if (!like || !(output_mask >> bit & 1)) return new_tensor({0}, dtype_of.scalar_type());
  Tensor out = new_like(*like);
  if (!reached) torch::stable::zero_(out);
  return out;
}

Likelihood likelihood_call(Arguments& arguments, const Tensor& x_hat, const Tensor& x,
                           const Optional& logvar, double sigma, double logvar_min,
                           double logvar_max, int64_t reduction) {
  Likelihood call{};
  call.type = arguments.type();
  call.shape = arguments.shape();
  call.reduction = arguments.reduction(reduction);
  call.parallel = parallel;
  call.x_hat = arguments.view(x_hat);
  call.x = arguments.view(x);
  call.logvar = arguments.view(logvar);
  call.sigma = sigma;
  call.logvar_min = logvar_min;
  call.logvar_max = logvar_max;
  return call;
}

}  // namespace

Tensor rsample(const Tensor& mu, const Tensor& logvar, const Optional& key, const Optional& noise,
               std::optional<int64_t> num_samples, double logvar_min, double logvar_max) {
  require_one_source("rsample", key, noise);
  Arguments arguments("rsample", mu);
  PosteriorOptions options;
  options.logvar_min = logvar_min;
  options.logvar_max = logvar_max;
  Posterior call = posterior_call(arguments, mu, logvar, {}, {}, key, noise, num_samples, options);
  std::vector<int64_t> shape(mu.sizes().begin(), mu.sizes().end());
  if (num_samples) shape.insert(shape.begin(), *num_samples);
  const Tensor z = num_samples ? new_tensor(shape, mu.scalar_type()) : new_like(mu);
  call.z = arguments.drawn(z, num_samples);
  if (z.numel()) GENKERN_KERNELS(vae).posterior(call);
  return z;
}

Tensor kl(const Tensor& mu, const Tensor& logvar, const Optional& prior_mu,
          const Optional& prior_logvar, double prior_mu_value, double prior_logvar_value,
          double free_bits, double logvar_min, double logvar_max, int64_t reduction) {
  Arguments arguments("kl", mu);
  Posterior call = posterior_call(arguments, mu, logvar, prior_mu, prior_logvar, {}, {}, {},
                                  {prior_mu_value, prior_logvar_value, free_bits, logvar_min,
                                   logvar_max, arguments.reduction(reduction)});
  const Tensor out = result(arguments, mu, call, call.kl);
  const auto scratch = partials(call);
  if (out.numel()) GENKERN_KERNELS(vae).posterior(call);
  return out;
}

std::tuple<Tensor, Tensor> rsample_kl(const Tensor& mu, const Tensor& logvar,
                                      const Optional& prior_mu, const Optional& prior_logvar,
                                      const Optional& key, const Optional& noise,
                                      double prior_mu_value, double prior_logvar_value,
                                      double free_bits, double logvar_min, double logvar_max,
                                      int64_t reduction) {
  require_one_source("rsample_kl", key, noise);
  Arguments arguments("rsample_kl", mu);
  Posterior call = posterior_call(arguments, mu, logvar, prior_mu, prior_logvar, key, noise, {},
                                  {prior_mu_value, prior_logvar_value, free_bits, logvar_min,
                                   logvar_max, arguments.reduction(reduction)});
  const Tensor z = new_like(mu);
  call.z = arguments.view(z);
  const Tensor out = result(arguments, mu, call, call.kl);
  const auto scratch = partials(call);
  if (out.numel()) GENKERN_KERNELS(vae).posterior(call);
  return {z, out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rsample_kl_backward(
    const Optional& grad_z, const Optional& grad_kl, const Tensor& mu, const Tensor& logvar,
    const Optional& prior_mu, const Optional& prior_logvar, const Optional& key,
    const Optional& noise, std::optional<int64_t> num_samples, double prior_mu_value,
    double prior_logvar_value, double free_bits, double logvar_min, double logvar_max,
    int64_t reduction, int64_t output_mask) {
  const char* const function = "rsample_kl_backward";
  if (grad_z) require_one_source(function, key, noise);
  STD_TORCH_CHECK(grad_z || grad_kl, function, ": expected grad_z or grad_kl");
  Arguments arguments(function, mu);
  Posterior call =
      posterior_call(arguments, mu, logvar, prior_mu, prior_logvar, key, noise, num_samples,
                     {prior_mu_value, prior_logvar_value, free_bits, logvar_min, logvar_max,
                      arguments.reduction(reduction)});
  if (grad_z) call.grad_z = arguments.drawn(*grad_z, num_samples);
  if (grad_kl) call.grad_kl = arguments.upstream(*grad_kl, call.reduction);
  const Tensor grad_mu = gradient(mu, mu, output_mask, 0);
  const Tensor grad_logvar = gradient(logvar, mu, output_mask, 1);
  const Tensor grad_prior_mu = gradient(prior_mu, mu, output_mask, 2, grad_kl.has_value());
  const Tensor grad_prior_logvar = gradient(prior_logvar, mu, output_mask, 3, grad_kl.has_value());
  const Tensor grad_noise = gradient(noise, mu, output_mask, 4, grad_z.has_value());
  if (output_mask & 1) call.grad_mu = arguments.view(grad_mu);
  if (output_mask & 2) call.grad_logvar = arguments.view(grad_logvar);
  if (grad_kl && prior_mu && output_mask & 4) call.grad_prior_mu = arguments.view(grad_prior_mu);
  if (grad_kl && prior_logvar && output_mask & 8)
    call.grad_prior_logvar = arguments.view(grad_prior_logvar);
  if (grad_z && noise && output_mask & 16)
    call.grad_noise = arguments.drawn(grad_noise, num_samples);
  if (mu.numel()) GENKERN_KERNELS(vae).posterior_backward(call);
  return {grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar, grad_noise};
}

Tensor bernoulli_nll(const Tensor& logits, const Tensor& x, int64_t reduction) {
  Arguments arguments("bernoulli_nll", logits);
  Likelihood call = likelihood_call(arguments, logits, x, {}, 1.0, 0.0, 0.0, reduction);
  const Tensor out = result(arguments, logits, call, call.nll);
  const auto scratch = partials(call);
  if (out.numel()) GENKERN_KERNELS(vae).bernoulli(call);
  return out;
}

std::tuple<Tensor, Tensor> bernoulli_nll_backward(const Tensor& grad, const Tensor& logits,
                                                  const Tensor& x, int64_t reduction,
                                                  int64_t output_mask) {
  Arguments arguments("bernoulli_nll_backward", logits);
  Likelihood call = likelihood_call(arguments, logits, x, {}, 1.0, 0.0, 0.0, reduction);
  call.grad = arguments.upstream(grad, call.reduction);
  const Tensor grad_logits = gradient(logits, logits, output_mask, 0);
  const Tensor grad_x = gradient(x, logits, output_mask, 1);
  if (output_mask & 1) call.grad_x_hat = arguments.view(grad_logits);
  if (output_mask & 2) call.grad_x = arguments.view(grad_x);
  if (logits.numel()) GENKERN_KERNELS(vae).bernoulli_backward(call);
  return {grad_logits, grad_x};
}

Tensor gaussian_nll(const Tensor& x_hat, const Tensor& x, const Optional& logvar, double sigma,
                    double logvar_min, double logvar_max, int64_t reduction) {
  Arguments arguments("gaussian_nll", x_hat);
  Likelihood call =
      likelihood_call(arguments, x_hat, x, logvar, sigma, logvar_min, logvar_max, reduction);
  const Tensor out = result(arguments, x_hat, call, call.nll);
  const auto scratch = partials(call);
  if (out.numel()) GENKERN_KERNELS(vae).gaussian(call);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gaussian_nll_backward(const Tensor& grad, const Tensor& x_hat,
                                                         const Tensor& x, const Optional& logvar,
                                                         double sigma, double logvar_min,
                                                         double logvar_max, int64_t reduction,
                                                         int64_t output_mask) {
  Arguments arguments("gaussian_nll_backward", x_hat);
  Likelihood call =
      likelihood_call(arguments, x_hat, x, logvar, sigma, logvar_min, logvar_max, reduction);
  call.grad = arguments.upstream(grad, call.reduction);
  const Tensor grad_x_hat = gradient(x_hat, x_hat, output_mask, 0);
  const Tensor grad_x = gradient(x, x_hat, output_mask, 1);
  const Tensor grad_logvar = gradient(logvar, x_hat, output_mask, 2);
  if (output_mask & 1) call.grad_x_hat = arguments.view(grad_x_hat);
  if (output_mask & 2) call.grad_x = arguments.view(grad_x);
  if (logvar && output_mask & 4) call.grad_logvar = arguments.view(grad_logvar);
  if (x_hat.numel()) GENKERN_KERNELS(vae).gaussian_backward(call);
  return {grad_x_hat, grad_x, grad_logvar};
}

}  // namespace genkern
