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
};

}  // namespace genkern
