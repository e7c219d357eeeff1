"""One call of every public function that computes on tensors, for tests of PyTorch's systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genkern import diffusion, gan, random, vae

SHAPE = (4, 2, 3)
SCHEDULE = diffusion.NoiseSchedule.linear(50, 1e-3, 0.2)
FLOW = diffusion.FlowSchedule(9)
EDM = diffusion.EDMSchedule(9)


@dataclass
class Inputs:
    """Tensors on one device: two of data, steps and the ones to go to, a key a sample."""

    x: Tensor
    y: Tensor
    t: Tensor
    prev_t: Tensor
    keys: Tensor

    @property
    def both(self) -> Tensor:
        """A network's output with variances, or an encoder's."""
        return torch.cat((self.x, self.y), 1)


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    t, prev_t = torch.tensor([49, 3, 0, 20]), torch.tensor([7, 2, -1, -1])
    return Inputs(x, y, t, prev_t, random.split(random.key(1), 4))


def _step_in_place(i: Inputs) -> Tensor:
    out = i.x.detach().clone()
    return diffusion.ddpm_step(out, i.y.detach(), i.t, SCHEDULE, key=i.keys, out=out)


def _clip(i: Inputs) -> Tensor:
    x = i.x.detach().clone()
    gan.clip_weights_([x], 0.5)
    return x


def _sample(i: Inputs, **options: Any) -> Tensor:
    return diffusion.sample(
        lambda x, t: 0.3 * x + 0.01 * t.reshape(-1, 1, 1).to(x.dtype),
        SHAPE, SCHEDULE, key=i.keys, num_steps=3, progress=False, **options,
    )  # fmt: skip


def _posterior(i: Inputs) -> tuple[Tensor, ...]:
    q = vae.DiagonalGaussian(i.both)
    p = vae.DiagonalGaussian(i.both.detach().flip(0), logvar_clamp=None)
    return q.sample(key=i.keys), q.mode(), q.logvar, q.kl(), q.kl(p), q.nll(i.x)


# The function's name, then what is special about the call.
CALLS: dict[str, Callable[[Inputs], Any]] = {
    "random.fold_in": lambda i: random.fold_in(i.keys, i.t),
    "random.fold_in number": lambda i: random.fold_in(i.keys, 7),
    "random.new_key": lambda i: random.new_key(3, device=i.x.device),
    "random.normal": lambda i: random.normal(i.keys, *SHAPE),
    "random.split": lambda i: random.split(i.keys, 3),
    "random.uniform": lambda i: random.uniform(i.keys, *SHAPE),
    "vae.DiagonalGaussian": _posterior,
    "vae.active_units": lambda i: vae.active_units(i.x),
    "vae.bernoulli_nll": lambda i: vae.bernoulli_nll(i.x, i.y.sigmoid()),
    "vae.elbo_loss": lambda i: vae.elbo_loss(i.x, i.y.sigmoid(), i.x, i.y, free_bits=0.1),
    "vae.gaussian_nll": lambda i: vae.gaussian_nll(i.x, i.y, sigma=2.0),
    "vae.kl": lambda i: vae.kl(i.x, i.y, i.y, 0.3, logvar_clamp=(-1.0, 1.0), reduction="none"),
    "vae.rsample": lambda i: vae.rsample(i.x, i.y, key=i.keys),
    "vae.rsample many": lambda i: vae.rsample(i.x, i.y, key=i.keys, num_samples=2),
    "vae.rsample_kl": lambda i: vae.rsample_kl(i.x, i.y, key=i.keys, reduction="sample"),
    "diffusion.ddim_step": lambda i: diffusion.ddim_step(i.x, i.y, 20, SCHEDULE),
    "diffusion.ddim_step eta": lambda i: diffusion.ddim_step(
        i.x, i.y, i.t, SCHEDULE, prev_t=i.prev_t, key=i.keys, eta=0.5
    ),
    "diffusion.ddim_step threshold": lambda i: diffusion.ddim_step(
        i.x, i.y, i.t, SCHEDULE, threshold=(0.8, 3.0)
    ),
    "diffusion.ddim_step flow": lambda i: diffusion.ddim_step(i.x, i.y, 0.7, FLOW, prev_t=0.5),
    "diffusion.ddim_step edm": lambda i: diffusion.ddim_step(
        i.x, i.y, 5, EDM, prediction_type="edm"
    ),
    "diffusion.ddpm_step": lambda i: diffusion.ddpm_step(
        i.x, i.y, i.t, SCHEDULE, prev_t=i.prev_t, key=i.keys, clip_range=0.5
    ),
    "diffusion.ddpm_step learned": lambda i: diffusion.ddpm_step(
        i.x, i.both, i.t, SCHEDULE, key=i.keys, variance_type="learned_range"
    ),
    "diffusion.ddpm_step guided": lambda i: diffusion.ddpm_step(
        i.x, i.y, 20, SCHEDULE, key=i.keys, uncond=i.x * i.y, guidance_scale=2.0,
        guidance_rescale=0.5,
    ),
    "diffusion.ddpm_step in place": _step_in_place,
    "diffusion.hybrid_loss": lambda i: diffusion.hybrid_loss(
        i.both, i.x.detach(), i.t, SCHEDULE, key=i.keys
    ),
    "diffusion.noise_loss": lambda i: diffusion.noise_loss(
        i.y, i.x.detach(), i.t, SCHEDULE, key=i.keys, weighting="min_snr"
    ),
    "diffusion.noise_loss weights": lambda i: diffusion.noise_loss(
        i.y, i.x, i.t, SCHEDULE, key=i.keys, prediction_type="v_prediction",
        weighting=torch.ones(50, device=i.x.device), reduction="sample",
    ),
    "diffusion.predict_x0": lambda i: diffusion.predict_x0(i.x, i.y, i.t, SCHEDULE),
    "diffusion.prior_kl": lambda i: diffusion.prior_kl(i.x, SCHEDULE),
    "diffusion.q_posterior": lambda i: diffusion.q_posterior(
        i.x, i.y, i.t, SCHEDULE, prev_t=i.prev_t
    ),
    "diffusion.q_sample": lambda i: diffusion.q_sample(i.x, i.t, SCHEDULE, key=i.keys),
    "diffusion.q_sample new key": lambda i: diffusion.q_sample(i.x, i.t, SCHEDULE),
    "diffusion.sample": _sample,
    "diffusion.sample ddim": lambda i: _sample(i, sampler="ddim", eta=0.5),
    "diffusion.sample ode": lambda i: _sample(i, sampler="ode"),
    "diffusion.score": lambda i: diffusion.score(i.x, i.t, SCHEDULE),
    "diffusion.vlb_terms": lambda i: diffusion.vlb_terms(
        i.both, 0.3 * i.x.detach(), i.t, SCHEDULE, key=i.keys, variance_type="learned_range"
    ),
    "gan.clip_weights_": _clip,
    "gan.discriminator_loss": lambda i: gan.discriminator_loss(i.x, i.y, label_smoothing=0.1),
    "gan.generator_loss": lambda i: gan.generator_loss(i.x, i.y, kind="relativistic"),
    "gan.gradient_penalty": lambda i: gan.gradient_penalty(i.x),
    "gan.interpolate": lambda i: gan.interpolate(i.x, i.y, key=i.keys),
    "gan.js_divergence": lambda i: gan.js_divergence(i.x, i.y),
    "gan.optimal_discriminator": lambda i: gan.optimal_discriminator(i.x, i.y),
    "gan.r1_penalty": lambda i: gan.r1_penalty(i.x),
}  # fmt: skip

# No tensors in, or made on the host.
OTHERS = {
    "random.STREAM_VERSION", "random.key", "vae.Elbo", "vae.kl_weight",
    "diffusion.EDMSchedule", "diffusion.FlowSchedule", "diffusion.NoiseSchedule",
}  # fmt: skip

# A new key each time.
RANDOM = {"random.new_key", "diffusion.q_sample new key"}


def tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def value_and_gradients(call: Callable[[Inputs], Any], i: Inputs) -> tuple[Tensor, ...]:
    """What the call gives, and the gradients of x and y where it has any."""
    i.x, i.y = i.x.detach().requires_grad_(), i.y.detach().requires_grad_()
    results = tensors(call(i))
    total = [r.sum() for r in results if r.requires_grad]
    if not total:
        return results
    found = torch.autograd.grad(sum(total[1:], total[0]), (i.x, i.y), allow_unused=True)
    return (*results, *(g for g in found if g is not None))
