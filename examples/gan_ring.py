"""A run of every kind of GAN on a ring of eight Gaussians, and how many of them it covers.

python -m examples.gan_ring [--steps 1500] [--seed 0]
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.gan_steps import (
    clipping_step,
    discriminator_step,
    generator_step,
    r1_step,
    wgan_gp_step,
)
from genkern import random

MODES, RADIUS, SIGMA = 8, 2.0, 0.05
ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
CENTRES = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
HIDDEN, LATENT, BATCH = 64, 8, 128
CRITIC_STEPS = 5  # a step of the generator, as in WGAN-GP's algorithm 1
SAMPLES = 2000

RUNS = (
    "minimax",
    "non_saturating",
    "hinge",
    "least_squares",
    "relativistic",
    "wasserstein, clipped",
    "wasserstein, penalty",
    "non_saturating, lazy R1",
)


def ring(count: int) -> Tensor:
    """Draws of the eight Gaussians, (count, 2)."""
    centres = CENTRES[torch.randint(MODES, (count,))]
    return centres + SIGMA * random.normal(random.new_key(), count, 2)


def coverage(samples: Tensor) -> tuple[int, float]:
    """The Gaussians covered, and the share of samples within three standard deviations of one.

    One is covered that has a tenth of its even share of samples so near.
    """
    near = torch.cdist(samples, CENTRES) < 3 * SIGMA
    covered = near.sum(0) >= len(samples) / MODES / 10
    return int(covered.sum()), near.any(1).float().mean().item()


def make_network(inputs: int, outputs: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.LeakyReLU(0.2),
        nn.Linear(HIDDEN, HIDDEN),
        nn.LeakyReLU(0.2),
        nn.Linear(HIDDEN, outputs),
    )


def draw_latents(count: int) -> Tensor:
    """The generator's input."""
    return random.normal(random.new_key(), count, LATENT)


def train(run: str, steps: int, seed: int) -> Tensor:
    """Trains one of `RUNS`; returns samples of its generator, (SAMPLES, 2)."""
    torch.manual_seed(seed)
    generator, critic = make_network(LATENT, 2), make_network(2, 1)
    kind = run.split(",")[0]
    g_optimiser, c_optimiser = (
        torch.optim.Adam(network.parameters(), 1e-3, betas=(0.5, 0.9), fused=True)
        for network in (generator, critic)
    )
    for step in tqdm(range(steps), desc=f"ring, {run}", unit="step", mininterval=0.5):
        for i in range(CRITIC_STEPS):
            real = ring(BATCH)
            fake = generator(draw_latents(BATCH)).detach()
            if run == "wasserstein, clipped":
                clipping_step(critic, c_optimiser, real, fake)
            elif run == "wasserstein, penalty":
                # The authors' weight on toy data.
                wgan_gp_step(critic, c_optimiser, real, fake, weight=0.1)
            elif run == "non_saturating, lazy R1":
                r1_step(critic, c_optimiser, real, fake, step * CRITIC_STEPS + i)
            else:
                discriminator_step(critic, c_optimiser, real, fake, kind=kind)
        compared = real if kind == "relativistic" else None
        z = draw_latents(BATCH)
        generator_step(generator, critic, g_optimiser, z, kind=kind, real=compared)
    with torch.no_grad():
        return generator(draw_latents(SAMPLES))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.gan_ring", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=1500, help="of the generator, in each run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = {run: coverage(train(run, arguments.steps, arguments.seed)) for run in RUNS}
    print(f"{'kind':<26}Gaussians   samples near one")
    for run, (covered, near) in found.items():
        print(f"{run:<26}{covered} of {MODES}{near:>18.0%}")


if __name__ == "__main__":
    main()
