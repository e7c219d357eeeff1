"""A DDPM on handwritten digits, trained and sampled with genkern and with the lines it replaces.

A U-Net of 0.3 million parameters predicts the noise of 8 x 8 images at 1000 steps. It is trained
twice from the same weights, on the same batches and the same noise: with genkern, which never
stores the noise, and with the plain lines, which are given it as a tensor. Then each draws samples
from its own network, by DDPM and by DDIM.

`make demo` runs it with `python -m examples.digits`; ddpm_digits_page.py shows what came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from examples.data import BATCH, SIDE, TRAINING_IMAGES, Digits, as_images
from examples.measure import median
from examples.unet import make_unet
from genkern import diffusion, random

T = 1000
SCHEDULE = diffusion.NoiseSchedule.linear(T)
LEARNING_RATE = 2e-3
HELD_OUT_REPEATS = 8  # of every held-out image, each at another step

Network = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> the predicted noise
Seen = Callable[[int, int, Tensor], None]  # (step, t, x) after each sampling step


@dataclass(frozen=True)
class Method:
    """A way to write what happens around the network."""

    name: str
    loss: Callable[[Network, Tensor, Tensor, Tensor], Tensor]  # network, x0, t, key
    sample: Callable[[Network, int, str, int, Tensor, Seen | None], Tensor]


@dataclass(frozen=True)
class Run:
    """A trained network and what was seen on the way."""

    method: Method
    network: nn.Module
    loss: Tensor  # one a step
    held_out: float  # mean squared error of the predicted noise
    step_seconds: float  # median over all steps


# --- with genkern --------------------------------------------------------------------------------


def fused_loss(network: Network, x0: Tensor, t: Tensor, key: Tensor) -> Tensor:
    """A training step's loss; the noise is drawn in both operators and stored in neither."""
    x_t = diffusion.q_sample(x0, t, SCHEDULE, key=key)
    return diffusion.noise_loss(network(x_t, t), x0, t, SCHEDULE, key=key)


def fused_sample(
    network: Network, count: int, sampler: str, steps: int, key: Tensor, seen: Seen | None
) -> Tensor:
    """Images in [-1, 1]."""
    return diffusion.sample(
        network, (count, 1, SIDE, SIDE), SCHEDULE, sampler=sampler, num_steps=steps, key=key,
        clip_range=1.0, callback=seen,
    )  # fmt: skip


# --- the lines replaced --------------------------------------------------------------------------

# Made in float64 and rounded once, as guided-diffusion does.
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), 0)
SQRT_ABAR, SQRT_ONE_MINUS_ABAR = ABAR.sqrt().float(), (1 - ABAR).sqrt().float()
ABAR_AT = [*ABAR.tolist(), 1.0]  # the last, at t = -1, is that of the data


def plain_loss(network: Network, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A training step's loss in the usual lines."""
    x_t = SQRT_ABAR[t].view(-1, 1, 1, 1) * x0 + SQRT_ONE_MINUS_ABAR[t].view(-1, 1, 1, 1) * noise
    return F.mse_loss(network(x_t, t), noise)


def plain_x0(x_t: Tensor, pred: Tensor, t: int) -> Tensor:
    """The clipped estimate of x0."""
    return ((x_t - (1 - ABAR_AT[t]) ** 0.5 * pred) / ABAR_AT[t] ** 0.5).clamp(-1, 1)


def plain_ddpm_step(x_t: Tensor, pred: Tensor, t: int, prev_t: int, noise: Tensor) -> Tensor:
    """One step of Ho et al., arXiv:2006.11239, algorithm 2."""
    abar, before = ABAR_AT[t], ABAR_AT[prev_t]
    alpha = abar / before
    beta = 1 - alpha
    mean = before**0.5 * beta / (1 - abar) * plain_x0(x_t, pred, t)
    mean = mean + alpha**0.5 * (1 - before) / (1 - abar) * x_t
    return mean + (beta * (1 - before) / (1 - abar)) ** 0.5 * noise


def plain_ddim_step(x_t: Tensor, pred: Tensor, t: int, prev_t: int) -> Tensor:
    """One step of Song et al., arXiv:2010.02502, (12), with sigma = 0."""
    before = ABAR_AT[prev_t]
    return before**0.5 * plain_x0(x_t, pred, t) + (1 - before) ** 0.5 * pred


def same_noise_loss(network: Network, x0: Tensor, t: Tensor, key: Tensor) -> Tensor:
    """The usual lines on the noise that genkern draws."""
    return plain_loss(network, x0, t, random.normal(key, *x0.shape))


@torch.no_grad()
def same_noise_sample(
    network: Network, count: int, sampler: str, steps: int, key: Tensor, seen: Seen | None
) -> Tensor:
    """The usual loop on the noise that :func:`genkern.diffusion.sample` draws."""
    shape = (count, 1, SIDE, SIDE)
    keys = random.split(random.split(key, count), steps + 1)
    x = random.normal(keys[0], *shape)
    for step in tqdm(range(steps), desc="plain sample"):
        t = (steps - 1 - step) * (T // steps)
        prev_t = t - T // steps if step + 1 < steps else -1
        pred = network(x, torch.full((count,), t))
        if sampler == "ddim":
            x = plain_ddim_step(x, pred, t, prev_t)
        else:
            noise = random.normal(keys[step + 1], *shape)
            x = plain_ddpm_step(x, pred, t, prev_t, noise)
        if seen is not None:
            seen(step, t, x)
    return x


METHODS = (
    Method("genkern", fused_loss, fused_sample),
    Method("plain, same noise", same_noise_loss, same_noise_sample),
)


# --- training, the same for both -----------------------------------------------------------------


@torch.no_grad()
def held_out_loss(network: nn.Module, x0: Tensor, seed: int) -> float:
    """The loss of held-out images at steps that are spread evenly, on noise of its own."""
    x0 = x0.repeat(HELD_OUT_REPEATS, 1, 1, 1)
    t = torch.arange(len(x0)) * T // len(x0)
    t = t[torch.randperm(len(t), generator=torch.Generator().manual_seed(seed))]
    key = random.fold_in(random.key(seed), -1)  # training's are 0, 1, ...
    return fused_loss(network, x0, t, key).item()


def train(
    method: Method,
    digits: Digits,
    epochs: int,
    seed: int,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Trains one network; the same seed gives every method the same weights, batches and keys.

    `after_epoch` gets the number of epochs done and the network.
    """
    torch.manual_seed(seed)
    network = make_unet()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
    steps = epochs * TRAINING_IMAGES // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = torch.Generator().manual_seed(seed)
    keys = random.split(random.key(seed), steps)
    images = as_images(digits.train)

    losses, seconds = [], []
    with tqdm(total=steps, desc=f"DDPM, {method.name:<17}", unit="step", mininterval=0.5) as bar:
        for epoch in range(epochs):
            for batch in torch.randperm(TRAINING_IMAGES, generator=draws).split(BATCH):
                x0, t = images[batch], torch.randint(T, (BATCH,), generator=draws)
                start = time.perf_counter()
                loss = method.loss(network, x0, t, keys[len(losses)])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seconds.append(time.perf_counter() - start)
                schedule.step()
                losses.append(loss.detach())
                bar.update()
            bar.set_postfix(loss=f"{losses[-1].item():.3f}")
            if after_epoch is not None:
                after_epoch(epoch + 1, network)

    return Run(
        method,
        network,
        torch.stack(losses),
        held_out_loss(network, as_images(digits.test), seed),
        median(seconds),
    )
