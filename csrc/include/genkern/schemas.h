// The operators' schemas, as genkern/_ops registers them under its own namespace.
#pragma once

namespace genkern {

constexpr const char* kSchemas[] = {
    "normal(Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor",
    "uniform(Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor",
    "split(Tensor key, SymInt num) -> Tensor",
    "fold_in(Tensor key, Tensor data) -> Tensor",
    "rsample(Tensor mu, Tensor logvar, Tensor? key, Tensor? noise, SymInt? num_samples, "
    "float logvar_min, float logvar_max) -> Tensor",
    "kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, float prior_mu_value, "
    "float prior_logvar_value, float free_bits, float logvar_min, float logvar_max, "
    "int reduction) -> Tensor",
    "rsample_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor? key, "
    "Tensor? noise, float prior_mu_value, float prior_logvar_value, float free_bits, "
    "float logvar_min, float logvar_max, int reduction) -> (Tensor, Tensor)",
    "rsample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
    "Tensor? prior_mu, Tensor? prior_logvar, Tensor? key, Tensor? noise, SymInt? num_samples, "
    "float prior_mu_value, float prior_logvar_value, float free_bits, float logvar_min, "
    "float logvar_max, int reduction, int output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "bernoulli_nll(Tensor logits, Tensor x, int reduction) -> Tensor",
    "bernoulli_nll_backward(Tensor grad, Tensor logits, Tensor x, int reduction, "
    "int output_mask) -> (Tensor, Tensor)",
    "gaussian_nll(Tensor x_hat, Tensor x, Tensor? logvar, float sigma, float logvar_min, "
    "float logvar_max, int reduction) -> Tensor",
    "gaussian_nll_backward(Tensor grad, Tensor x_hat, Tensor x, Tensor? logvar, float sigma, "
    "float logvar_min, float logvar_max, int reduction, int output_mask) "
    "-> (Tensor, Tensor, Tensor)",
    "affine(Tensor x, Tensor? y, Tensor? z, Tensor? key, Tensor? noise, Tensor coefficients, "
    "Tensor? t) -> Tensor",
    "affine_out(Tensor x, Tensor? y, Tensor? z, Tensor? key, Tensor? noise, Tensor "
    "coefficients, Tensor? t, Tensor(a!) out) -> ()",
    "noise_loss(Tensor pred, Tensor? x0, Tensor? key, Tensor? noise, Tensor coefficients, "
    "Tensor? t, Tensor? sample_weight, int reduction) -> Tensor",
    "noise_loss_forming(Tensor pred, Tensor? x0, Tensor? key, Tensor? noise, Tensor coefficients, "
    "Tensor? t, Tensor? sample_weight, int reduction) -> (Tensor, Tensor)",
    "noise_loss_backward(Tensor grad, Tensor pred, Tensor? x0, Tensor? key, Tensor? noise, "
    "Tensor coefficients, Tensor? t, Tensor? sample_weight, int reduction, int output_mask) "
    "-> (Tensor, Tensor, Tensor)",
    "sampler_step(Tensor x_t, Tensor pred, Tensor? var_values, Tensor? uncond, Tensor? key, "
    "Tensor? noise, Tensor coefficients, Tensor? t, Tensor? guidance_factor, Tensor? "
    "threshold, float guidance_scale, float x0_min, float x0_max) -> Tensor",
    "sampler_step_out(Tensor x_t, Tensor pred, Tensor? var_values, Tensor? uncond, Tensor? "
    "key, Tensor? noise, Tensor coefficients, Tensor? t, Tensor? guidance_factor, Tensor? "
    "threshold, float guidance_scale, float x0_min, float x0_max, Tensor(a!) out) -> ()",
    "sampler_step_x0(Tensor x_t, Tensor pred, Tensor? var_values, Tensor? uncond, Tensor? key, "
    "Tensor? noise, Tensor coefficients, Tensor? t, Tensor? guidance_factor, Tensor? threshold, "
    "float guidance_scale, float x0_min, float x0_max) -> (Tensor, Tensor)",
    "sampler_step_backward(Tensor grad, Tensor x_t, Tensor pred, Tensor? var_values, Tensor? "
    "uncond, Tensor? key, Tensor? noise, Tensor coefficients, Tensor? t, float "
    "guidance_scale, float x0_min, float x0_max, int output_mask) -> (Tensor, Tensor, Tensor, "
    "Tensor, Tensor)",
    "guidance_factor(Tensor pred, Tensor uncond, float guidance_scale, float "
    "guidance_rescale) -> Tensor",
    "dynamic_threshold(Tensor x_t, Tensor pred, Tensor? uncond, Tensor coefficients, Tensor? "
    "t, Tensor? guidance_factor, float guidance_scale, float ratio, float max_value) -> "
    "Tensor",
    "vlb(Tensor pred, Tensor? var_values, Tensor x0, Tensor? key, Tensor? noise, Tensor "
    "coefficients, Tensor? t, float x0_min, float x0_max, float vlb_scale, float "
    "simple_scale, bool detach_mean, int reduction) -> Tensor",
    "vlb_backward(Tensor grad, Tensor pred, Tensor? var_values, Tensor x0, Tensor? key, "
    "Tensor? noise, Tensor coefficients, Tensor? t, float x0_min, float x0_max, float "
    "vlb_scale, float simple_scale, bool detach_mean, int reduction, int output_mask) -> "
    "(Tensor, Tensor)",
    "discriminator_loss(Tensor real_logits, Tensor fake_logits, int kind, float label_smoothing, "
    "int reduction) -> Tensor",
    "discriminator_loss_forming(Tensor real_logits, Tensor fake_logits, int kind, "
    "float label_smoothing, int reduction) -> (Tensor, Tensor, Tensor)",
    "discriminator_loss_backward(Tensor grad, Tensor real_logits, Tensor fake_logits, int kind, "
    "float label_smoothing, int reduction, int output_mask) -> (Tensor, Tensor)",
    "generator_loss(Tensor fake_logits, Tensor? real_logits, int kind, int reduction) -> Tensor",
    "generator_loss_forming(Tensor fake_logits, Tensor? real_logits, int kind, int reduction) "
    "-> (Tensor, Tensor, Tensor)",
    "generator_loss_backward(Tensor grad, Tensor fake_logits, Tensor? real_logits, int kind, "
    "int reduction, int output_mask) -> (Tensor, Tensor)",
    "gradient_penalty(Tensor grads, float center, float weight, int reduction) -> Tensor",
    "gradient_penalty_backward(Tensor grad, Tensor grads, float center, float weight, "
    "int reduction) -> Tensor",
    "gradient_penalty_backward_backward(Tensor grad_out, Tensor grad, Tensor grads, float center, "
    "float weight, int reduction, int output_mask) -> (Tensor, Tensor)",
    "interpolate(Tensor real, Tensor fake, Tensor? key, Tensor? noise) -> Tensor",
    "interpolate_backward(Tensor grad, Tensor real, Tensor fake, Tensor? key, Tensor? noise, "
    "int output_mask) -> (Tensor, Tensor, Tensor)",
    "optimal_discriminator(Tensor log_p, Tensor log_q) -> Tensor",
    "optimal_discriminator_backward(Tensor grad, Tensor log_p, Tensor log_q, int output_mask) "
    "-> (Tensor, Tensor)",
};

}  // namespace genkern
