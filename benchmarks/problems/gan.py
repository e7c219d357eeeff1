"""The GAN family: losses with their gradients, and penalties differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import Outputs, Problem, randn
from genkern import gan


def _logits(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Real and generated data's, and the labels, which training code keeps."""
    labels = torch.ones(*shape, dtype=torch.float64), torch.zeros(*shape, dtype=torch.float64)
    return 3.0 * randn(shape, generator), 3.0 * randn(shape, generator), *labels


def _pair(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    return randn(shape, generator), randn(shape, generator)


# ---- plain PyTorch


def _relativistic(better: Tensor, worse: Tensor) -> Tensor:
    return F.softplus(worse - better).mean()


_DISCRIMINATOR: dict[str, Callable[..., Tensor]] = {
    "minimax": lambda r, f, one, zero: F.softplus(-r).mean() + F.softplus(f).mean(),
    "hinge": lambda r, f, one, zero: F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean(),
    "wasserstein": lambda r, f, one, zero: f.mean() - r.mean(),
    "least_squares": lambda r, f, one, zero: 0.5 * (F.mse_loss(r, one) + F.mse_loss(f, zero)),
    "relativistic": lambda r, f, one, zero: _relativistic(r, f),
}
_GENERATOR: dict[str, Callable[..., Tensor]] = {
    "minimax": lambda r, f, one, zero: -F.softplus(f).mean(),
    "non_saturating": lambda r, f, one, zero: F.softplus(-f).mean(),
    "wasserstein": lambda r, f, one, zero: -f.mean(),
    "least_squares": lambda r, f, one, zero: 0.5 * F.mse_loss(f, one),
}


def _gradient_penalty(grads: Tensor) -> Tensor:
    return (torch.linalg.vector_norm(grads.flatten(1), dim=1) - 1.0).square().mean()


def _r1_penalty(grads: Tensor) -> Tensor:
    return 0.5 * grads.square().sum() / grads.shape[0]


def _interpolate(real: Tensor, fake: Tensor, noise: Tensor | None) -> Outputs:
    shape = (real.shape[0], *[1] * (real.dim() - 1))
    w = torch.rand(shape, dtype=real.dtype, device=real.device) if noise is None else noise
    return (torch.lerp(fake, real, w),)


def _optimal_discriminator(log_p: Tensor, log_q: Tensor, noise: Tensor | None = None) -> Outputs:
    return (torch.sigmoid(log_p - log_q),)


# ---- both ways


def _twice(penalty: Callable[[Tensor], Tensor]) -> Callable[..., Outputs]:
    """The penalty's gradient, to be differentiated again: forward, backward, double backward."""

    def gradient(grads: Tensor, *rest: Tensor | None) -> Outputs:
        return torch.autograd.grad(penalty(grads), grads, create_graph=True)

    return gradient


def _discriminator(kind: str) -> Problem:
    loss = _DISCRIMINATOR[kind]
    return Problem(
        f"discriminator_{kind}",
        lambda r, f, one, zero, key, noise: (gan.discriminator_loss(r, f, kind=kind),),
        lambda r, f, one, zero, noise=None: (loss(r, f, one, zero),),
        _logits,
    )


def _generator(kind: str) -> Problem:
    loss = _GENERATOR[kind]
    return Problem(
        f"generator_{kind}",
        lambda r, f, one, zero, key, noise: (gan.generator_loss(f, kind=kind),),
        lambda r, f, one, zero, noise=None: (loss(r, f, one, zero),),
        _logits,
        wrt=(1,),
    )


LOSSES = (*map(_discriminator, _DISCRIMINATOR), *map(_generator, _GENERATOR))
GRADIENT_PENALTY = Problem(
    "gradient_penalty_twice",
    _twice(gan.gradient_penalty),
    _twice(_gradient_penalty),
    lambda shape, generator: (randn(shape, generator),),
    wrt=(0,),
)
R1_PENALTY = Problem(
    "r1_penalty_twice",
    _twice(gan.r1_penalty),
    _twice(_r1_penalty),
    lambda shape, generator: (randn(shape, generator),),
    wrt=(0,),
)
INTERPOLATE = Problem(
    "interpolate",
    lambda real, fake, key, noise: (gan.interpolate(real, fake, key=key, noise=noise),),
    _interpolate,
    _pair,
)
OPTIMAL_DISCRIMINATOR = Problem(
    "optimal_discriminator",
    lambda log_p, log_q, key, noise: (gan.optimal_discriminator(log_p, log_q),),
    _optimal_discriminator,
    _pair,
)
