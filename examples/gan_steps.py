"""The training steps of GANs, a function each; gan_ring.py and gan_digits.py train with them.

A step takes the networks, their optimiser and a batch, and returns the loss. `fake` is what the
generator made, detached.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from genkern import gan


def _update(optimiser: Optimizer, loss: Tensor) -> Tensor:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


def _slopes(network: Module, x: Tensor) -> Tensor:
    """Gradients of the network's outputs with respect to its inputs, differentiable again."""
    x = x.detach().requires_grad_()
    (grads,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    return grads


def discriminator_step(
    discriminator: Module, optimiser: Optimizer, real: Tensor, fake: Tensor, *, kind: str
) -> Tensor:
    """One step of a discriminator or critic, of any kind."""
    loss = gan.discriminator_loss(discriminator(real), discriminator(fake), kind=kind)
    return _update(optimiser, loss)


def generator_step(
    generator: Module,
    discriminator: Module,
    optimiser: Optimizer,
    z: Tensor,
    *,
    kind: str,
    real: Tensor | None = None,
) -> Tensor:
    """One step of the generator; the relativistic kind compares with real data."""
    real_logits = None if real is None else discriminator(real).detach()
    loss = gan.generator_loss(discriminator(generator(z)), real_logits, kind=kind)
    return _update(optimiser, loss)


def wgan_gp_step(
    critic: Module, optimiser: Optimizer, real: Tensor, fake: Tensor, *, weight: float = 10.0
) -> Tensor:
    """One step of a critic held to slopes of 1: Gulrajani et al., arXiv:1704.00028, algorithm 1."""
    loss = gan.discriminator_loss(critic(real), critic(fake), kind="wasserstein")
    penalty = gan.gradient_penalty(_slopes(critic, gan.interpolate(real, fake)))
    return _update(optimiser, loss + weight * penalty)


def r1_step(
    discriminator: Module,
    optimiser: Optimizer,
    real: Tensor,
    fake: Tensor,
    step: int,
    *,
    gamma: float = 1.0,
    every: int = 16,
) -> Tensor:
    """One step with R1 every so many steps, as much heavier then: arXiv:1912.04958, appendix B."""
    loss = gan.discriminator_loss(discriminator(real), discriminator(fake), kind="non_saturating")
    if step % every == 0:
        loss = loss + every * gamma * gan.r1_penalty(_slopes(discriminator, real))
    return _update(optimiser, loss)


def clipping_step(
    critic: Module, optimiser: Optimizer, real: Tensor, fake: Tensor, *, bound: float = 0.1
) -> Tensor:
    """One step of a critic with clipped weights: Arjovsky et al., arXiv:1701.07875, algorithm 1."""
    loss = discriminator_step(critic, optimiser, real, fake, kind="wasserstein")
    gan.clip_weights_(critic.parameters(), bound)
    return loss
