"""A VAE, a GAN and a diffusion model of the same digits: trained, sampled, and what they reach.

The bounds of the VAE and of the diffusion model are on one footing: bits a pixel whose black and
white are 255 levels apart, so that a uniform pixel costs 8 bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from tqdm import tqdm

from examples import ddpm_digits, gan_digits, vae_digits
from examples.data import PIXELS, SIDE, Digits, as_images, as_pixels
from examples.ddpm_digits import SCHEDULE, T
from examples.sample_quality import Judge, Quality
from genkern import diffusion, random, vae

SIGMA = 0.2  # of the VAE's Gaussian decoder: about the size of its errors
CHECKS = 7  # of the Frechet distance during training, by DDIM in so many steps
CHECK_STEPS, DDIM_STEPS = 20, 50
BOUND_IMAGES = 36  # held-out ones, drawn anew at each step of the diffusion bound
NEIGHBOURS = 5


@dataclass(frozen=True)
class Samples:
    """What one sampler of a trained model gives."""

    sampler: str
    passes: int  # through the network
    pixels: Tensor
    seconds: float
    quality: Quality


@dataclass(frozen=True)
class Family:
    """A trained model, its samples, and what can be said about it."""

    name: str
    parameters: int
    steps: int
    step_seconds: float
    curve: list[tuple[float, float]]  # share of the training done, Frechet distance then
    samples: list[Samples]
    latents: int
    bits: float | None = None  # a held-out pixel, at most
    told: float | None = None  # share of the held-out digits that neighbours in latent space tell


class Watch:
    """The Frechet distance of samples, now and then during training."""

    def __init__(self, judge: Judge, epochs: int, draw: Callable[[nn.Module], Tensor]) -> None:
        self.judge, self.epochs, self.draw = judge, epochs, draw
        self.curve: list[tuple[float, float]] = []

    def __call__(self, epoch: int, network: nn.Module) -> None:
        """Looks at the network after every so many epochs."""
        if epoch % max(1, self.epochs // CHECKS) == 0:
            self.curve.append((epoch / self.epochs, self.judge.frechet(self.draw(network))))


def judged(judge: Judge, sampler: str, passes: int, draw: Callable[[], Tensor]) -> Samples:
    """Draws samples, with the time it takes and their quality."""
    start = time.perf_counter()
    pixels = draw()
    seconds = time.perf_counter() - start
    return Samples(sampler, passes, pixels, seconds, judge.quality(pixels))


def size(*networks: nn.Module) -> int:
    """How many parameters there are."""
    return sum(p.numel() for network in networks for p in network.parameters())


def bits_a_pixel(nats: float) -> float:
    """Of the negative log-density of an image of pixels in [0, 1]."""
    return nats / PIXELS / math.log(2) + math.log2(255)


# --- VAE -----------------------------------------------------------------------------------------


def gaussian_nll(logits: Tensor, x: Tensor) -> Tensor:
    """The decoder's mean is a probability, as that of the demo's Bernoulli decoder."""
    return vae.gaussian_nll(logits.sigmoid(), x, sigma=SIGMA)


@torch.no_grad()
def decode(decoder: nn.Module, count: int, key: Tensor) -> Tensor:
    """Pixels, (count, 64): the decoder's means at draws of the prior."""
    return decoder(random.normal(key, count, vae_digits.LATENT)).sigmoid()


@torch.no_grad()
def vae_bits(run: vae_digits.Run, x: Tensor, key: Tensor) -> float:
    """The negative ELBO."""
    mu, logvar = run.encoder(x).chunk(2, dim=1)
    z, kl = vae.rsample_kl(mu, logvar, key=key)
    return bits_a_pixel((gaussian_nll(run.decoder(z), x) + kl).item())


@torch.no_grad()
def told_by_latents(run: vae_digits.Run, digits: Digits) -> float:
    """The accuracy of a vote of the nearest training digits in latent space."""
    train, test = (run.encoder(x).chunk(2, dim=1)[0].numpy() for x in (digits.train, digits.test))
    voters = KNeighborsClassifier(NEIGHBOURS).fit(train, digits.train_labels.numpy())
    return voters.score(test, digits.test_labels.numpy())


def study_vae(digits: Digits, judge: Judge, seed: int, quick: bool) -> Family:
    """The demo's VAE with a Gaussian decoder."""
    epochs, key = 2 if quick else 200, random.fold_in(random.key(seed), -3)
    draw = partial(decode, count=len(digits.test), key=key)
    watch = Watch(judge, epochs, draw)
    method = vae_digits.Method("VAE", vae_digits.fused, gaussian_nll)
    run = vae_digits.train(method, digits, epochs, seed, watch)
    return Family(
        "VAE",
        size(run.encoder, run.decoder),
        len(run.loss),
        run.step_seconds,
        watch.curve,
        [judged(judge, "decoder", 1, lambda: draw(run.decoder))],
        vae_digits.LATENT,
        vae_bits(run, digits.test, key),
        told_by_latents(run, digits),
    )


# --- GAN -----------------------------------------------------------------------------------------


@torch.no_grad()
def generate(generator: nn.Module, count: int, key: Tensor) -> Tensor:
    """Pixels, (count, 64)."""
    return as_pixels(generator(random.normal(key, count, gan_digits.LATENT)))


def study_gan(digits: Digits, judge: Judge, seed: int, quick: bool) -> Family:
    """The chapter's GAN."""
    epochs, key = 2 if quick else 400, random.fold_in(random.key(seed), -3)
    draw = partial(generate, count=len(digits.test), key=key)
    watch = Watch(judge, epochs, draw)
    run = gan_digits.train(digits, epochs, seed, watch)
    return Family(
        "GAN",
        size(run.generator, run.discriminator),
        run.steps,
        run.step_seconds,
        watch.curve,
        [judged(judge, "generator", 1, lambda: draw(run.generator))],
        gan_digits.LATENT,
    )


# --- diffusion -----------------------------------------------------------------------------------


@torch.no_grad()
def denoise(
    network: nn.Module, count: int, key: Tensor, sampler: str, steps: int, progress: bool = True
) -> Tensor:
    """Pixels, (count, 64)."""
    images = diffusion.sample(
        network, (count, 1, SIDE, SIDE), SCHEDULE, sampler=sampler, num_steps=steps, key=key,
        clip_range=1.0, progress=progress,
    )  # fmt: skip
    return as_pixels(images)


@torch.no_grad()
def diffusion_bits(network: nn.Module, x0: Tensor, seed: int, every: int) -> float:
    """The bound (42.7), of which every so many terms are evaluated and stand for the others.

    L_0, the largest, is always one of them and stands for itself.
    """
    draws = torch.Generator().manual_seed(seed)
    keys = random.split(random.fold_in(random.key(seed), -4), T)

    def term(t: int) -> float:
        x = x0[torch.randperm(len(x0), generator=draws)[:BOUND_IMAGES]]
        x_t = diffusion.q_sample(x, t, SCHEDULE, key=keys[t])
        pred = network(x_t, torch.full((len(x),), t))
        bits = diffusion.vlb_terms(
            pred,
            x,
            t,
            SCHEDULE,
            key=keys[t],
            clip_range=1.0,
            units="bits/dim",
            reduction="batchmean",
        )
        return bits.item()

    steps = range(1, T, every)
    rest = sum(term(t) for t in tqdm(steps, desc="diffusion bound", unit="step"))
    prior = diffusion.prior_kl(x0, SCHEDULE, units="bits/dim", reduction="batchmean").item()
    return term(0) + rest * (T - 1) / len(steps) + prior


def study_diffusion(digits: Digits, judge: Judge, seed: int, quick: bool) -> Family:
    """The demo's DDPM."""
    epochs, key = 1 if quick else 70, random.fold_in(random.key(seed), -3)
    draw = partial(denoise, count=len(digits.test), key=key)
    watch = Watch(
        judge,
        epochs,
        partial(draw, sampler="ddim", steps=4 if quick else CHECK_STEPS, progress=False),
    )
    run = ddpm_digits.train(ddpm_digits.METHODS[0], digits, epochs, seed, watch)
    samplers = (("ddpm", 10 if quick else T), ("ddim", 5 if quick else DDIM_STEPS))
    return Family(
        "diffusion",
        size(run.network),
        len(run.loss),
        run.step_seconds,
        watch.curve,
        [
            judged(
                judge,
                f"{sampler.upper()}, {steps} steps",
                steps,
                partial(draw, run.network, sampler=sampler, steps=steps),
            )
            for sampler, steps in samplers
        ],
        PIXELS,
        diffusion_bits(run.network, as_images(digits.test), seed, every=50 if quick else 1),
    )
