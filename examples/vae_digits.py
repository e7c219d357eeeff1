"""A VAE on handwritten digits, trained with genkern and with the lines that genkern replaces.

The model is the smallest one of the textbooks: 64 pixels - 256 - 2 latent coordinates - 256 - 64,
Bernoulli decoder. It is trained three times from the same weights, on the same batches:

1. `genkern`: the fused operators, noise from a key.
2. `plain, same noise`: the lines that they replace, fed the same noise.
3. `plain, randn`: the same lines as most people write them, noise from `torch.randn_like`.

`make demo` runs it with `python -m examples.digits`; vae_digits_page.py shows what came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from examples.data import BATCH, PIXELS, TRAINING_IMAGES, Digits
from examples.measure import median
from genkern import random, vae

HIDDEN, LATENT = 256, 2
LEARNING_RATE = 3e-3
ELBO_SAMPLES = 64

# mu, logvar, keys, step
SampleKL = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Method:
    """A way to write the noisy part of a VAE's training step."""

    name: str
    sample_kl: SampleKL
    nll: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Run:
    """A trained model and what was seen on the way."""

    method: Method
    encoder: nn.Module
    decoder: nn.Module
    loss: Tensor  # one a step
    kl: Tensor  # (epochs, LATENT), nats, mean over the held-out images
    elbo: float  # nats, mean over the held-out images
    step_seconds: float  # median over all steps


def fused(mu: Tensor, logvar: Tensor, keys: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Sample and KL in one operator, which draws its noise from the step's key."""
    return vae.rsample_kl(mu, logvar, key=keys[step])


def plain(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample and KL in the usual lines."""
    std = torch.exp(0.5 * logvar)
    z = mu + noise * std
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / len(mu)
    return z, kl


def plain_same_noise(mu: Tensor, logvar: Tensor, keys: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The usual lines with the noise that the fused operator draws."""
    return plain(mu, logvar, random.normal(keys[step], *mu.shape))


def plain_randn(mu: Tensor, logvar: Tensor, keys: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The usual lines with PyTorch's own noise; keys are not used."""
    return plain(mu, logvar, torch.randn_like(mu))


def plain_nll(logits: Tensor, x: Tensor) -> Tensor:
    """Negative log-likelihood of a Bernoulli decoder, summed over pixels, averaged over images."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


METHODS = (
    Method("genkern", fused, vae.bernoulli_nll),
    Method("plain, same noise", plain_same_noise, plain_nll),
    Method("plain, randn", plain_randn, plain_nll),
)


def make_model() -> tuple[nn.Module, nn.Module]:
    """Encoder to (mu, logvar) and decoder to logits.

    tanh, as in Kingma and Welling (2014). A kinked activation such as ReLU would magnify rounding
    differences until two runs on equal noise part.
    """
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS))
    return encoder, decoder


@torch.no_grad()
def held_out_elbo(encoder: nn.Module, decoder: nn.Module, x: Tensor, seed: int) -> float:
    """The mean ELBO in nats, from ELBO_SAMPLES samples an image, on noise of its own."""
    mu, logvar = encoder(x).chunk(2, dim=1)
    key = random.fold_in(random.key(seed), -1)  # training's are 0, 1, ...
    z = vae.rsample(mu, logvar, key=key, num_samples=ELBO_SAMPLES)
    targets = x.expand(ELBO_SAMPLES, *x.shape).flatten(0, 1)
    nll = vae.bernoulli_nll(decoder(z).flatten(0, 1), targets)
    return -(nll + vae.kl(mu, logvar)).item()


@torch.no_grad()
def held_out_kl(encoder: nn.Module, x: Tensor) -> Tensor:
    """The KL of each latent coordinate, averaged over images."""
    mu, logvar = encoder(x).chunk(2, dim=1)
    return vae.kl(mu, logvar, reduction="none").mean(0)


def train(
    method: Method,
    digits: Digits,
    epochs: int,
    seed: int,
    after_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Trains one model; the same seed gives every method the same weights, batches and keys.

    `after_epoch` gets the number of epochs done and the decoder.
    """
    torch.manual_seed(seed)
    encoder, decoder = make_model()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
    steps = epochs * TRAINING_IMAGES // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shuffle = torch.Generator().manual_seed(seed)
    keys = random.split(random.key(seed), steps)

    losses, kls, seconds = [], [], []
    with tqdm(total=steps, desc=f"{method.name:<17}", unit="step", mininterval=0.5) as bar:
        for epoch in range(epochs):
            for batch in torch.randperm(TRAINING_IMAGES, generator=shuffle).split(BATCH):
                x = digits.train[batch]
                start = time.perf_counter()
                mu, logvar = encoder(x).chunk(2, dim=1)
                z, kl = method.sample_kl(mu, logvar, keys, len(losses))
                loss = method.nll(decoder(z), x) + kl
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seconds.append(time.perf_counter() - start)
                schedule.step()
                losses.append(loss.detach())
                bar.update()
            kls.append(held_out_kl(encoder, digits.test))
            bar.set_postfix(loss=f"{losses[-1].item():.2f}")
            if after_epoch is not None:
                after_epoch(epoch + 1, decoder)

    return Run(
        method,
        encoder,
        decoder,
        torch.stack(losses),
        torch.stack(kls),
        held_out_elbo(encoder, decoder, digits.test, seed),
        median(seconds),
    )
