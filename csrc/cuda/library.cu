// Registration of the operators of libgenkern_cuda.
#include <torch/csrc/stable/library.h>

#include "cuda/ops.h"

STABLE_TORCH_LIBRARY(_genkern_cuda, m) {
  m.def("normal(Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor");
  m.def("uniform(Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor");
  m.def("split(Tensor key, SymInt num) -> Tensor");
  m.def("fold_in(Tensor key, Tensor data) -> Tensor");
  m.def(
      "rsample(Tensor mu, Tensor logvar, Tensor? key, Tensor? noise, SymInt? num_samples, "
      "float logvar_min, float logvar_max) -> Tensor");
  m.def(
      "kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, float prior_mu_value, "
      "float prior_logvar_value, float free_bits, float logvar_min, float logvar_max, "
      "int reduction) -> Tensor");
  m.def(
      "rsample_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor? key, "
      "Tensor? noise, float prior_mu_value, float prior_logvar_value, float free_bits, "
      "float logvar_min, float logvar_max, int reduction) -> (Tensor, Tensor)");
  m.def(
      "rsample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
      "Tensor? prior_mu, Tensor? prior_logvar, Tensor? key, Tensor? noise, SymInt? num_samples, "
      "float prior_mu_value, float prior_logvar_value, float free_bits, float logvar_min, "
      "float logvar_max, int reduction, int output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("bernoulli_nll(Tensor logits, Tensor x, int reduction) -> Tensor");
  m.def(
      "bernoulli_nll_backward(Tensor grad, Tensor logits, Tensor x, int reduction, "
      "int output_mask) -> (Tensor, Tensor)");
  m.def(
      "gaussian_nll(Tensor x_hat, Tensor x, Tensor? logvar, float sigma, float logvar_min, "
      "float logvar_max, int reduction) -> Tensor");
  m.def(
      "gaussian_nll_backward(Tensor grad, Tensor x_hat, Tensor x, Tensor? logvar, float sigma, "
      "float logvar_min, float logvar_max, int reduction, int output_mask) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(_genkern_cuda, CUDA, m) {
  m.impl("normal", TORCH_BOX(&genkern::cuda::normal));
  m.impl("uniform", TORCH_BOX(&genkern::cuda::uniform));
  m.impl("split", TORCH_BOX(&genkern::cuda::split));
  m.impl("fold_in", TORCH_BOX(&genkern::cuda::fold_in));
  m.impl("rsample", TORCH_BOX(&genkern::cuda::rsample));
  m.impl("kl", TORCH_BOX(&genkern::cuda::kl));
  m.impl("rsample_kl", TORCH_BOX(&genkern::cuda::rsample_kl));
  m.impl("rsample_kl_backward", TORCH_BOX(&genkern::cuda::rsample_kl_backward));
  m.impl("bernoulli_nll", TORCH_BOX(&genkern::cuda::bernoulli_nll));
  m.impl("bernoulli_nll_backward", TORCH_BOX(&genkern::cuda::bernoulli_nll_backward));
  m.impl("gaussian_nll", TORCH_BOX(&genkern::cuda::gaussian_nll));
  m.impl("gaussian_nll_backward", TORCH_BOX(&genkern::cuda::gaussian_nll_backward));
}
