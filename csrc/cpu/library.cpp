// Registration of the operators of libgenkern_cpu.
#include <torch/csrc/stable/library.h>

#include "cpu/capability.h"
#include "cpu/ops.h"
#include "genkern/schemas.h"

static int64_t capability_code() { return static_cast<int64_t>(genkern::capability()); }

STABLE_TORCH_LIBRARY(_genkern_cpu, m) {
  for (const char* schema : genkern::kSchemas) m.def(schema);
  m.def("capability() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(_genkern_cpu, CPU, m) {
  m.impl("normal", TORCH_BOX(&genkern::normal));
  m.impl("uniform", TORCH_BOX(&genkern::uniform));
  m.impl("split", TORCH_BOX(&genkern::split));
  m.impl("fold_in", TORCH_BOX(&genkern::fold_in));
  m.impl("rsample", TORCH_BOX(&genkern::rsample));
  m.impl("kl", TORCH_BOX(&genkern::kl));
  m.impl("rsample_kl", TORCH_BOX(&genkern::rsample_kl));
  m.impl("rsample_kl_backward", TORCH_BOX(&genkern::rsample_kl_backward));
  m.impl("bernoulli_nll", TORCH_BOX(&genkern::bernoulli_nll));
  m.impl("bernoulli_nll_backward", TORCH_BOX(&genkern::bernoulli_nll_backward));
  m.impl("gaussian_nll", TORCH_BOX(&genkern::gaussian_nll));
  m.impl("gaussian_nll_backward", TORCH_BOX(&genkern::gaussian_nll_backward));
  m.impl("affine", TORCH_BOX(&genkern::affine));
  m.impl("affine_out", TORCH_BOX(&genkern::affine_out));
  m.impl("noise_loss", TORCH_BOX(&genkern::noise_loss));
  m.impl("noise_loss_forming", TORCH_BOX(&genkern::noise_loss_forming));
  m.impl("noise_loss_backward", TORCH_BOX(&genkern::noise_loss_backward));
  m.impl("sampler_step", TORCH_BOX(&genkern::sampler_step));
  m.impl("sampler_step_out", TORCH_BOX(&genkern::sampler_step_out));
  m.impl("sampler_step_x0", TORCH_BOX(&genkern::sampler_step_x0));
  m.impl("sampler_step_backward", TORCH_BOX(&genkern::sampler_step_backward));
  m.impl("guidance_factor", TORCH_BOX(&genkern::guidance_factor));
  m.impl("dynamic_threshold", TORCH_BOX(&genkern::dynamic_threshold));
  m.impl("vlb", TORCH_BOX(&genkern::vlb));
  m.impl("vlb_backward", TORCH_BOX(&genkern::vlb_backward));
  m.impl("discriminator_loss", TORCH_BOX(&genkern::discriminator_loss));
  m.impl("discriminator_loss_forming", TORCH_BOX(&genkern::discriminator_loss_forming));
  m.impl("discriminator_loss_backward", TORCH_BOX(&genkern::discriminator_loss_backward));
  m.impl("generator_loss", TORCH_BOX(&genkern::generator_loss));
  m.impl("generator_loss_forming", TORCH_BOX(&genkern::generator_loss_forming));
  m.impl("generator_loss_backward", TORCH_BOX(&genkern::generator_loss_backward));
  m.impl("gradient_penalty", TORCH_BOX(&genkern::gradient_penalty));
  m.impl("gradient_penalty_backward", TORCH_BOX(&genkern::gradient_penalty_backward));
  m.impl("gradient_penalty_backward_backward",
         TORCH_BOX(&genkern::gradient_penalty_backward_backward));
  m.impl("interpolate", TORCH_BOX(&genkern::interpolate));
  m.impl("interpolate_backward", TORCH_BOX(&genkern::interpolate_backward));
  m.impl("optimal_discriminator", TORCH_BOX(&genkern::optimal_discriminator));
  m.impl("optimal_discriminator_backward", TORCH_BOX(&genkern::optimal_discriminator_backward));
}

STABLE_TORCH_LIBRARY_IMPL(_genkern_cpu, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&capability_code));
}
