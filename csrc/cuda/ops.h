// The operators of libgenkern_cuda: their schemas are in genkern/schemas.h.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace genkern::cuda {

using Tensor = torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using ScalarType = torch::headeronly::ScalarType;

// torch's numbering, extended.
enum Reduction : int64_t { kNone, kMean, kSum, kBatchMean, kSample };

Tensor normal(Tensor key, std::vector<int64_t> shape, ScalarType dtype);
Tensor uniform(Tensor key, std::vector<int64_t> shape, ScalarType dtype);
Tensor split(Tensor key, int64_t num);
Tensor fold_in(Tensor key, Tensor data);

Tensor rsample(Tensor mu, Tensor logvar, OptionalTensor key, OptionalTensor noise,
               std::optional<int64_t> num_samples, double logvar_min, double logvar_max);
Tensor kl(Tensor mu, Tensor logvar, OptionalTensor prior_mu, OptionalTensor prior_logvar,
          double prior_mu_value, double prior_logvar_value, double free_bits, double logvar_min,
          double logvar_max, int64_t reduction);
std::tuple<Tensor, Tensor> rsample_kl(Tensor mu, Tensor logvar, OptionalTensor prior_mu,
                                      OptionalTensor prior_logvar, OptionalTensor key,
                                      OptionalTensor noise, double prior_mu_value,
                                      double prior_logvar_value, double free_bits,
                                      double logvar_min, double logvar_max, int64_t reduction);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rsample_kl_backward(
    OptionalTensor grad_z, OptionalTensor grad_kl, Tensor mu, Tensor logvar,
    OptionalTensor prior_mu, OptionalTensor prior_logvar, OptionalTensor key, OptionalTensor noise,
    std::optional<int64_t> num_samples, double prior_mu_value, double prior_logvar_value,
    double free_bits, double logvar_min, double logvar_max, int64_t reduction, int64_t output_mask);
Tensor bernoulli_nll(Tensor logits, Tensor x, int64_t reduction);
std::tuple<Tensor, Tensor> bernoulli_nll_backward(Tensor grad, Tensor logits, Tensor x,
                                                  int64_t reduction, int64_t output_mask);
Tensor gaussian_nll(Tensor x_hat, Tensor x, OptionalTensor logvar, double sigma, double logvar_min,
                    double logvar_max, int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> gaussian_nll_backward(Tensor grad, Tensor x_hat, Tensor x,
                                                         OptionalTensor logvar, double sigma,
                                                         double logvar_min, double logvar_max,
                                                         int64_t reduction, int64_t output_mask);

Tensor affine(Tensor x, OptionalTensor y, OptionalTensor z, OptionalTensor key,
              OptionalTensor noise, Tensor coefficients, OptionalTensor t);
void affine_out(Tensor x, OptionalTensor y, OptionalTensor z, OptionalTensor key,
                OptionalTensor noise, Tensor coefficients, OptionalTensor t, Tensor out);
Tensor noise_loss(Tensor pred, OptionalTensor x0, OptionalTensor key, OptionalTensor noise,
                  Tensor coefficients, OptionalTensor t, OptionalTensor sample_weight,
                  int64_t reduction);
std::tuple<Tensor, Tensor> noise_loss_forming(Tensor pred, OptionalTensor x0, OptionalTensor key,
                                              OptionalTensor noise, Tensor coefficients,
                                              OptionalTensor t, OptionalTensor sample_weight,
                                              int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> noise_loss_backward(Tensor grad, Tensor pred, OptionalTensor x0,
                                                       OptionalTensor key, OptionalTensor noise,
                                                       Tensor coefficients, OptionalTensor t,
                                                       OptionalTensor sample_weight,
                                                       int64_t reduction, int64_t output_mask);
Tensor sampler_step(Tensor x_t, Tensor pred, OptionalTensor var_values, OptionalTensor uncond,
                    OptionalTensor key, OptionalTensor noise, Tensor coefficients, OptionalTensor t,
                    OptionalTensor guidance_factor, OptionalTensor threshold, double guidance_scale,
                    double x0_min, double x0_max);
void sampler_step_out(Tensor x_t, Tensor pred, OptionalTensor var_values, OptionalTensor uncond,
                      OptionalTensor key, OptionalTensor noise, Tensor coefficients,
                      OptionalTensor t, OptionalTensor guidance_factor, OptionalTensor threshold,
                      double guidance_scale, double x0_min, double x0_max, Tensor out);
std::tuple<Tensor, Tensor> sampler_step_x0(Tensor x_t, Tensor pred, OptionalTensor var_values,
                                           OptionalTensor uncond, OptionalTensor key,
                                           OptionalTensor noise, Tensor coefficients,
                                           OptionalTensor t, OptionalTensor guidance_factor,
                                           OptionalTensor threshold, double guidance_scale,
                                           double x0_min, double x0_max);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sampler_step_backward(
    Tensor grad, Tensor x_t, Tensor pred, OptionalTensor var_values, OptionalTensor uncond,
    OptionalTensor key, OptionalTensor noise, Tensor coefficients, OptionalTensor t,
    double guidance_scale, double x0_min, double x0_max, int64_t output_mask);
Tensor guidance_factor(Tensor pred, Tensor uncond, double guidance_scale, double guidance_rescale);
Tensor dynamic_threshold(Tensor x_t, Tensor pred, OptionalTensor uncond, Tensor coefficients,
                         OptionalTensor t, OptionalTensor guidance_factor, double guidance_scale,
                         double ratio, double max_value);
Tensor vlb(Tensor pred, OptionalTensor var_values, Tensor x0, OptionalTensor key,
           OptionalTensor noise, Tensor coefficients, OptionalTensor t, double x0_min,
           double x0_max, double vlb_scale, double simple_scale, bool detach_mean,
           int64_t reduction);
std::tuple<Tensor, Tensor> vlb_backward(Tensor grad, Tensor pred, OptionalTensor var_values,
                                        Tensor x0, OptionalTensor key, OptionalTensor noise,
                                        Tensor coefficients, OptionalTensor t, double x0_min,
                                        double x0_max, double vlb_scale, double simple_scale,
                                        bool detach_mean, int64_t reduction, int64_t output_mask);

Tensor discriminator_loss(Tensor real_logits, Tensor fake_logits, int64_t kind,
                          double label_smoothing, int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> discriminator_loss_forming(Tensor real_logits,
                                                              Tensor fake_logits, int64_t kind,
                                                              double label_smoothing,
                                                              int64_t reduction);
std::tuple<Tensor, Tensor> discriminator_loss_backward(Tensor grad, Tensor real_logits,
                                                       Tensor fake_logits, int64_t kind,
                                                       double label_smoothing, int64_t reduction,
                                                       int64_t output_mask);
Tensor generator_loss(Tensor fake_logits, OptionalTensor real_logits, int64_t kind,
                      int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> generator_loss_forming(Tensor fake_logits,
                                                          OptionalTensor real_logits, int64_t kind,
                                                          int64_t reduction);
std::tuple<Tensor, Tensor> generator_loss_backward(Tensor grad, Tensor fake_logits,
                                                   OptionalTensor real_logits, int64_t kind,
                                                   int64_t reduction, int64_t output_mask);
Tensor gradient_penalty(Tensor grads, double center, double weight, int64_t reduction);
Tensor gradient_penalty_backward(Tensor grad, Tensor grads, double center, double weight,
                                 int64_t reduction);
std::tuple<Tensor, Tensor> gradient_penalty_backward_backward(Tensor grad_out, Tensor grad,
                                                              Tensor grads, double center,
                                                              double weight, int64_t reduction,
                                                              int64_t output_mask);
Tensor interpolate(Tensor real, Tensor fake, OptionalTensor key, OptionalTensor noise);
std::tuple<Tensor, Tensor, Tensor> interpolate_backward(Tensor grad, Tensor real, Tensor fake,
                                                        OptionalTensor key, OptionalTensor noise,
                                                        int64_t output_mask);
Tensor optimal_discriminator(Tensor log_p, Tensor log_q);
std::tuple<Tensor, Tensor> optimal_discriminator_backward(Tensor grad, Tensor log_p, Tensor log_q,
                                                          int64_t output_mask);

}  // namespace genkern::cuda
