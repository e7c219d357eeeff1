"""A GAN on handwritten digits: the smallest one of the textbooks, with the non-saturating loss.

Generator 100 - 128 - 64 with tanh at the end, discriminator 64 - 128 - 1, one step of each in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.data import BATCH, PIXELS, TRAINING_IMAGES, Digits, as_images
from examples.gan_steps import discriminator_step, generator_step
from examples.measure import median
from genkern import random

HIDDEN, LATENT = 128, 100
LEARNING_RATE = 1e-3
KIND = "non_saturating"


@dataclass(frozen=True)
class Run:
    """Trained networks and what was seen on the way."""

    generator: nn.Module
    discriminator: nn.Module
    steps: int
    step_seconds: float  # median over all steps, of both networks


def make_networks() -> tuple[nn.Module, nn.Module]:
    """Generator of images in [-1, 1], (B, 64), and discriminator, to logits (B, 1)."""
    generator = nn.Sequential(
        nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS), nn.Tanh()
    )
    discriminator = nn.Sequential(
        nn.Linear(PIXELS, HIDDEN), nn.LeakyReLU(0.2), nn.Linear(HIDDEN, 1)
    )
    return generator, discriminator


def train(
    digits: Digits,
    epochs: int,
    seed: int,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Trains both networks; `after_epoch` gets the number of epochs done and the generator."""
    torch.manual_seed(seed)
    generator, discriminator = make_networks()
    optimisers = [
        torch.optim.Adam(network.parameters(), LEARNING_RATE, betas=(0.5, 0.9), fused=True)
        for network in (generator, discriminator)
    ]
    steps = epochs * TRAINING_IMAGES // BATCH
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimisers]
    shuffle = torch.Generator().manual_seed(seed)
    keys = random.split(random.key(seed), steps)
    images = as_images(digits.train).flatten(1)

    seconds: list[float] = []
    losses: tuple[Tensor, Tensor]
    with tqdm(total=steps, desc="GAN", unit="step", mininterval=0.5) as bar:
        for epoch in range(epochs):
            for batch in torch.randperm(TRAINING_IMAGES, generator=shuffle).split(BATCH):
                real = images[batch]
                start = time.perf_counter()
                z = random.normal(keys[len(seconds)], BATCH, LATENT)
                fake = generator(z).detach()
                losses = (
                    discriminator_step(discriminator, optimisers[1], real, fake, kind=KIND),
                    generator_step(generator, discriminator, optimisers[0], z, kind=KIND),
                )
                seconds.append(time.perf_counter() - start)
                for schedule in schedules:
                    schedule.step()
                bar.update()
            bar.set_postfix_str("D and G {:.2f}, {:.2f}".format(*(x.item() for x in losses)))
            if after_epoch is not None:
                after_epoch(epoch + 1, generator)
    return Run(generator, discriminator, steps, median(seconds))
