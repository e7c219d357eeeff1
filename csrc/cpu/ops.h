// The operators of libgenkern_cpu.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace genkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

Tensor normal(const Tensor& key, std::vector<int64_t> shape, ScalarType dtype);
Tensor uniform(const Tensor& key, std::vector<int64_t> shape, ScalarType dtype);
Tensor split(const Tensor& key, int64_t num);
Tensor fold_in(const Tensor& key, const Tensor& data);

Tensor rsample(const Tensor& mu, const Tensor& logvar, const Optional& key, const Optional& noise,
               std::optional<int64_t> num_samples, double logvar_min, double logvar_max);
Tensor kl(const Tensor& mu, const Tensor& logvar, const Optional& prior_mu,
          const Optional& prior_logvar, double prior_mu_value, double prior_logvar_value,
          double free_bits, double logvar_min, double logvar_max, int64_t reduction);
std::tuple<Tensor, Tensor> rsample_kl(const Tensor& mu, const Tensor& logvar,
                                      const Optional& prior_mu, const Optional& prior_logvar,
                                      const Optional& key, const Optional& noise,
                                      double prior_mu_value, double prior_logvar_value,
                                      double free_bits, double logvar_min, double logvar_max,
                                      int64_t reduction);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rsample_kl_backward(
    const Optional& grad_z, const Optional& grad_kl, const Tensor& mu, const Tensor& logvar,
    const Optional& prior_mu, const Optional& prior_logvar, const Optional& key,
    const Optional& noise, std::optional<int64_t> num_samples, double prior_mu_value,
    double prior_logvar_value, double free_bits, double logvar_min, double logvar_max,
    int64_t reduction, int64_t output_mask);
Tensor bernoulli_nll(const Tensor& logits, const Tensor& x, int64_t reduction);
std::tuple<Tensor, Tensor> bernoulli_nll_backward(const Tensor& grad, const Tensor& logits,
                                                  const Tensor& x, int64_t reduction,
                                                  int64_t output_mask);
Tensor gaussian_nll(const Tensor& x_hat, const Tensor& x, const Optional& logvar, double sigma,
                    double logvar_min, double logvar_max, int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> gaussian_nll_backward(const Tensor& grad, const Tensor& x_hat,
                                                         const Tensor& x, const Optional& logvar,
                                                         double sigma, double logvar_min,
                                                         double logvar_max, int64_t reduction,
                                                         int64_t output_mask);

Tensor affine(const Tensor& x, const Optional& y, const Optional& z, const Optional& key,
              const Optional& noise, const Tensor& coefficients, const Optional& t);
void affine_out(const Tensor& x, const Optional& y, const Optional& z, const Optional& key,
                const Optional& noise, const Tensor& coefficients, const Optional& t,
                const Tensor& out);
Tensor noise_loss(const Tensor& pred, const Optional& x0, const Optional& key,
                  const Optional& noise, const Tensor& coefficients, const Optional& t,
                  const Optional& sample_weight, int64_t reduction);
std::tuple<Tensor, Tensor> noise_loss_forming(const Tensor& pred, const Optional& x0,
                                              const Optional& key, const Optional& noise,
                                              const Tensor& coefficients, const Optional& t,
                                              const Optional& sample_weight, int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> noise_loss_backward(
    const Tensor& grad, const Tensor& pred, const Optional& x0, const Optional& key,
    const Optional& noise, const Tensor& coefficients, const Optional& t,
    const Optional& sample_weight, int64_t reduction, int64_t output_mask);
Tensor sampler_step(const Tensor& x_t, const Tensor& pred, const Optional& var_values,
                    const Optional& uncond, const Optional& key, const Optional& noise,
                    const Tensor& coefficients, const Optional& t, const Optional& guidance_factor,
                    const Optional& threshold, double guidance_scale, double x0_min, double x0_max);
void sampler_step_out(const Tensor& x_t, const Tensor& pred, const Optional& var_values,
                      const Optional& uncond, const Optional& key, const Optional& noise,
                      const Tensor& coefficients, const Optional& t,
                      const Optional& guidance_factor, const Optional& threshold,
                      double guidance_scale, double x0_min, double x0_max, const Tensor& out);
std::tuple<Tensor, Tensor> sampler_step_x0(const Tensor& x_t, const Tensor& pred,
                                           const Optional& var_values, const Optional& uncond,
                                           const Optional& key, const Optional& noise,
                                           const Tensor& coefficients, const Optional& t,
                                           const Optional& guidance_factor,
                                           const Optional& threshold, double guidance_scale,
                                           double x0_min, double x0_max);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sampler_step_backward(
    const Tensor& grad, const Tensor& x_t, const Tensor& pred, const Optional& var_values,
    const Optional& uncond, const Optional& key, const Optional& noise, const Tensor& coefficients,
    const Optional& t, double guidance_scale, double x0_min, double x0_max, int64_t output_mask);
Tensor guidance_factor(const Tensor& pred, const Tensor& uncond, double guidance_scale,
                       double guidance_rescale);
Tensor dynamic_threshold(const Tensor& x_t, const Tensor& pred, const Optional& uncond,
                         const Tensor& coefficients, const Optional& t,
                         const Optional& guidance_factor, double guidance_scale, double ratio,
                         double max_value);
Tensor vlb(const Tensor& pred, const Optional& var_values, const Tensor& x0, const Optional& key,
           const Optional& noise, const Tensor& coefficients, const Optional& t, double x0_min,
           double x0_max, double vlb_scale, double simple_scale, bool detach_mean,
           int64_t reduction);
std::tuple<Tensor, Tensor> vlb_backward(const Tensor& grad, const Tensor& pred,
                                        const Optional& var_values, const Tensor& x0,
                                        const Optional& key, const Optional& noise,
                                        const Tensor& coefficients, const Optional& t,
                                        double x0_min, double x0_max, double vlb_scale,
                                        double simple_scale, bool detach_mean, int64_t reduction,
                                        int64_t output_mask);
Tensor discriminator_loss(const Tensor& real_logits, const Tensor& fake_logits, int64_t kind,
                          double label_smoothing, int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> discriminator_loss_forming(const Tensor& real_logits,
                                                              const Tensor& fake_logits,
                                                              int64_t kind, double label_smoothing,
                                                              int64_t reduction);
std::tuple<Tensor, Tensor> discriminator_loss_backward(const Tensor& grad,
                                                       const Tensor& real_logits,
                                                       const Tensor& fake_logits, int64_t kind,
                                                       double label_smoothing, int64_t reduction,
                                                       int64_t output_mask);
Tensor generator_loss(const Tensor& fake_logits, const Optional& real_logits, int64_t kind,
                      int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> generator_loss_forming(const Tensor& fake_logits,
                                                          const Optional& real_logits, int64_t kind,
                                                          int64_t reduction);
std::tuple<Tensor, Tensor> generator_loss_backward(const Tensor& grad, const Tensor& fake_logits,
                                                   const Optional& real_logits, int64_t kind,
                                                   int64_t reduction, int64_t output_mask);
Tensor gradient_penalty(const Tensor& grads, double center, double weight, int64_t reduction);
Tensor gradient_penalty_backward(const Tensor& grad, const Tensor& grads, double center,
                                 double weight, int64_t reduction);
std::tuple<Tensor, Tensor> gradient_penalty_backward_backward(const Tensor& grad_out,
                                                              const Tensor& grad,
                                                              const Tensor& grads, double center,
                                                              double weight, int64_t reduction,
                                                              int64_t output_mask);
Tensor interpolate(const Tensor& real, const Tensor& fake, const Optional& key,
                   const Optional& noise);
std::tuple<Tensor, Tensor, Tensor> interpolate_backward(const Tensor& grad, const Tensor& real,
                                                        const Tensor& fake, const Optional& key,
                                                        const Optional& noise, int64_t output_mask);
Tensor optimal_discriminator(const Tensor& log_p, const Tensor& log_q);
std::tuple<Tensor, Tensor> optimal_discriminator_backward(const Tensor& grad, const Tensor& log_p,
                                                          const Tensor& log_q, int64_t output_mask);

}  // namespace genkern
