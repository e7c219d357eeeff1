"""The training steps of GANs, a function each, and a run of every kind on a ring of Gaussians.

    python -m examples.gan_steps [--steps 200]

A step takes the networks, their optimiser and a batch, and returns the loss. `fake` is what the
generator made, detached.
"""

from __future__ import annotations

import argparse
import math

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


# ---- the ring

_MODES, _RADIUS, _SIGMA = 8, 2.0, 0.1
_ANGLES = torch.arange(_MODES) * (2.0 * math.pi / _MODES)
_CENTRES = _RADIUS * torch.stack((_ANGLES.cos(), _ANGLES.sin()), dim=1)

RUNS = (
    "saturating",
    "non_saturating",
    "hinge",
    "least_squares",
    "relativistic",
    "wasserstein, clipped",
    "wasserstein, penalty",
    "non_saturating, lazy R1",
)


def ring(count: int) -> Tensor:
    """Samples of eight Gaussians on a circle."""
    return _CENTRES[torch.randint(_MODES, (count,))] + _SIGMA * torch.randn(count, 2)


def covered(samples: Tensor) -> int:
    """How many of the Gaussians have a sample within three standard deviations."""
    near = torch.cdist(samples, _CENTRES) < 3.0 * _SIGMA
    return int(near.any(dim=0).sum())


def _mlp(inputs: int, outputs: int) -> Module:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, 64),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(64, 64),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(64, outputs),
    )


def train(run: str, steps: int, batch: int = 128) -> tuple[float, float, int]:
    """Trains one of `RUNS`; returns the last two losses and the Gaussians covered."""
    torch.manual_seed(0)
    generator, discriminator = _mlp(8, 2), _mlp(2, 1)
    kind = run.split(",")[0]
    g_optimiser = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.9))
    d_optimiser = torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.5, 0.9))
    d_loss = g_loss = torch.zeros(())
    for step in range(steps):
        real, z = ring(batch), torch.randn(batch, 8)
        fake = generator(z).detach()
        if run == "wasserstein, clipped":
            d_loss = clipping_step(discriminator, d_optimiser, real, fake)
        elif run == "wasserstein, penalty":
            # The authors' weight on toy data.
            d_loss = wgan_gp_step(discriminator, d_optimiser, real, fake, weight=0.1)
        elif run == "non_saturating, lazy R1":
            d_loss = r1_step(discriminator, d_optimiser, real, fake, step)
        else:
            d_loss = discriminator_step(discriminator, d_optimiser, real, fake, kind=kind)
        compared = real if kind == "relativistic" else None
        g_loss = generator_step(generator, discriminator, g_optimiser, z, kind=kind, real=compared)
    with torch.no_grad():
        return d_loss.item(), g_loss.item(), covered(generator(torch.randn(2000, 8)))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.gan_steps", description="Trains small GANs of every kind."
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of each run (default 200)")
    steps = parser.parse_args(argv).steps
    if steps < 1:
        parser.error(f"--steps: expected at least 1, got {steps}")
    print(f"{'kind':26}{'D loss':>9}{'G loss':>9}   Gaussians covered")
    for run in RUNS:
        d_loss, g_loss, modes = train(run, steps)
        print(f"{run:26}{d_loss:9.3f}{g_loss:9.3f}   {modes} of {_MODES}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
