// Registration of the operators of libgenkern_cuda.
#include <torch/csrc/stable/library.h>

#include "cuda/ops.h"
#include "genkern/schemas.h"

STABLE_TORCH_LIBRARY(_genkern_cuda, m) {
  for (const char* schema : genkern::kSchemas) m.def(schema);
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
  m.impl("affine", TORCH_BOX(&genkern::cuda::affine));
  m.impl("affine_out", TORCH_BOX(&genkern::cuda::affine_out));
  m.impl("noise_loss", TORCH_BOX(&genkern::cuda::noise_loss));
  m.impl("noise_loss_forming", TORCH_BOX(&genkern::cuda::noise_loss_forming));
  m.impl("noise_loss_backward", TORCH_BOX(&genkern::cuda::noise_loss_backward));
  m.impl("sampler_step", TORCH_BOX(&genkern::cuda::sampler_step));
  m.impl("sampler_step_out", TORCH_BOX(&genkern::cuda::sampler_step_out));
  m.impl("sampler_step_x0", TORCH_BOX(&genkern::cuda::sampler_step_x0));
  m.impl("sampler_step_backward", TORCH_BOX(&genkern::cuda::sampler_step_backward));
  m.impl("guidance_factor", TORCH_BOX(&genkern::cuda::guidance_factor));
  m.impl("dynamic_threshold", TORCH_BOX(&genkern::cuda::dynamic_threshold));
  m.impl("vlb", TORCH_BOX(&genkern::cuda::vlb));
  m.impl("vlb_backward", TORCH_BOX(&genkern::cuda::vlb_backward));
  m.impl("discriminator_loss", TORCH_BOX(&genkern::cuda::discriminator_loss));
  m.impl("discriminator_loss_forming", TORCH_BOX(&genkern::cuda::discriminator_loss_forming));
  m.impl("discriminator_loss_backward", TORCH_BOX(&genkern::cuda::discriminator_loss_backward));
  m.impl("generator_loss", TORCH_BOX(&genkern::cuda::generator_loss));
  m.impl("generator_loss_forming", TORCH_BOX(&genkern::cuda::generator_loss_forming));
  m.impl("generator_loss_backward", TORCH_BOX(&genkern::cuda::generator_loss_backward));
  m.impl("gradient_penalty", TORCH_BOX(&genkern::cuda::gradient_penalty));
  m.impl("gradient_penalty_backward", TORCH_BOX(&genkern::cuda::gradient_penalty_backward));
  m.impl("gradient_penalty_backward_backward",
         TORCH_BOX(&genkern::cuda::gradient_penalty_backward_backward));
  m.impl("interpolate", TORCH_BOX(&genkern::cuda::interpolate));
  m.impl("interpolate_backward", TORCH_BOX(&genkern::cuda::interpolate_backward));
  m.impl("optimal_discriminator", TORCH_BOX(&genkern::cuda::optimal_discriminator));
  m.impl("optimal_discriminator_backward",
         TORCH_BOX(&genkern::cuda::optimal_discriminator_backward));
}
