"""The chapter's claims about VAEs: the variance of gradient estimators, and posterior collapse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from examples.data import BATCH, PIXELS, TRAINING_IMAGES, Digits
from examples.pictures import BLUE, GREEN, ORANGE
from examples.report import Part, Picture, Section, Table
from genkern import random, vae

DIMENSIONS = (1, 10, 100)
HIDDEN, LATENT = 256, 16
SIGMA = 0.4  # of the Gaussian decoder, pixels in [0, 1]
FREE_BITS = 0.5  # nats a coordinate
LEARNING_RATE = 3e-3


# --- gradient estimators -------------------------------------------------------------------------


def estimates(d: int, count: int, key: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by mu of E_q |z|^2 / 2 at mu = 1, sigma = 1, each from one sample, (count, d).

    Exactly mu, by the chain rule through z = mu + sigma eps, and by E_q[f(z) grad log q(z)].
    """
    mu = torch.ones(d, dtype=torch.float64, requires_grad=True)
    z = vae.rsample(mu, torch.zeros_like(mu), key=key, num_samples=count)
    f = z.square().sum(1) / 2
    through_z = torch.autograd.grad(f.sum(), z, retain_graph=True)[0]  # dz / dmu = 1
    score = (z - mu).detach()  # of q, over sigma^2 = 1
    return through_z, (f[:, None] * score).detach()


def gradient_table(count: int, seed: int) -> Table:
    """Variances of a coordinate's estimate, averaged over coordinates."""
    rows = []
    for d, key in zip(DIMENSIONS, random.split(random.key(seed), len(DIMENSIONS)), strict=True):
        both = estimates(d, count, key)
        means = [f"{x.mean().item():.3f}" for x in both]
        first, second = (x.var(0).mean().item() for x in both)
        rows.append((str(d), *means, f"{first:.2f}", f"{second:,.1f}", f"{second / first:,.0f}x"))
    columns = ("d", "mean, repar.", "score f.", "variance, repar.", "score f.", "ratio")
    return Table(columns, rows)


# --- posterior collapse --------------------------------------------------------------------------


class Gaussian(nn.Module):
    """Grey pixels from z alone, with a wide Gaussian: few coordinates are worth their KL."""

    likelihood, binary = "gaussian", False

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(B, LATENT) to (B, 64)."""
        return self.layers(z)


class Autoregressive(nn.Module):
    """Binary pixels, each from z and the pixels before it, so that it can do without z.

    Masked layers of Germain et al., arXiv:1502.03509.
    """

    likelihood, binary = "bernoulli", True

    def __init__(self) -> None:
        super().__init__()
        order, unit = torch.arange(PIXELS), torch.arange(HIDDEN) % (PIXELS - 1)
        self.first, self.second = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.latent, self.head = nn.Linear(LATENT, HIDDEN), nn.Linear(HIDDEN, PIXELS)
        self.masks = [
            (before[None] <= after[:, None]).float()
            for before, after in ((order, unit), (unit, unit), (unit, order - 1))
        ]

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(B, LATENT) and (B, 64) to logits, (B, 64)."""
        first, second, head = (
            (layer.weight * mask, layer.bias)
            for layer, mask in zip((self.first, self.second, self.head), self.masks, strict=True)
        )
        h = F.linear(F.linear(x, *first).tanh(), *second) + self.latent(z)
        return F.linear(h.tanh(), *head)


DECODERS = {"Gaussian": Gaussian, "autoregressive": Autoregressive}


@dataclass(frozen=True)
class Way:
    """A way to train: over which share of it beta rises to 1, and the free bits."""

    name: str
    warmup: float
    free_bits: float


WAYS = (Way("plain", 0, 0), Way("annealing", 0.5, 0), Way("free bits", 0, FREE_BITS))


@dataclass(frozen=True)
class Collapse:
    """What a decoder and a way to train came to, on held-out images."""

    decoder: str
    way: str
    kl: Tensor  # (epochs, LATENT), nats
    nll: float
    active: int  # coordinates


def train(decoder_name: str, way: Way, digits: Digits, epochs: int, seed: int) -> Collapse:
    """Trains a VAE."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = DECODERS[decoder_name]()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
    shuffle = torch.Generator().manual_seed(seed)
    steps = TRAINING_IMAGES // BATCH
    key, kls = random.key(seed), []
    images, held_out = (
        (x > 0.5).float() if decoder.binary else x for x in (digits.train, digits.test)
    )

    def elbo(x: Tensor, key: Tensor, **options: float) -> tuple[vae.Elbo, Tensor, Tensor]:
        mu, logvar = encoder(x).chunk(2, dim=1)
        x_hat = decoder(vae.rsample(mu, logvar, key=key), x)
        loss = vae.elbo_loss(
            x_hat, x, mu, logvar, likelihood=decoder.likelihood, sigma=SIGMA, **options
        )
        return loss, mu, logvar

    for epoch in tqdm(range(epochs), desc=f"{decoder_name}, {way.name}", unit="epoch"):
        for i, batch in enumerate(torch.randperm(TRAINING_IMAGES, generator=shuffle).split(BATCH)):
            step, beta = epoch * steps + i, 1.0
            if way.warmup:
                beta = vae.kl_weight(step, warmup=way.warmup * epochs * steps)
            keys = random.fold_in(key, step)
            loss = elbo(images[batch], keys, beta=beta, free_bits=way.free_bits)[0].loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            result, mu, logvar = elbo(held_out, random.fold_in(key, -1))
            kls.append(vae.kl(mu, logvar, reduction="none").mean(0))
    active = int(vae.active_units(mu).sum())
    return Collapse(decoder_name, way.name, torch.stack(kls), result.nll.item(), active)


def collapse_table(runs: list[Collapse]) -> Table:
    """One row a decoder and a way to train."""
    rows = []
    for run in runs:
        kl = run.kl[-1]
        active, smallest = f"{run.active} of {LATENT}", f"{kl.min().item():.4f}"
        elbo = f"{-run.nll - kl.sum().item():.2f}"
        rows.append((run.decoder, run.way, f"{kl.sum().item():.2f}", smallest, active, elbo))
    columns = ("Decoder", "Training", "KL, nats", "Smallest", "Active", "ELBO")
    return Table(columns, rows, labels=2, ours="")


def kl_curves(runs: list[Collapse]) -> Figure:
    """The held-out KL, epoch by epoch."""
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots(1, len(DECODERS), sharex=True)
    colours = dict(zip((way.name for way in WAYS), (BLUE, ORANGE, GREEN), strict=True))
    for axis, decoder in zip(axes, DECODERS, strict=True):
        for run in (run for run in runs if run.decoder == decoder):
            kl = run.kl.sum(1)
            axis.plot(torch.arange(1, len(kl) + 1), kl, color=colours[run.way], label=run.way)
        axis.set(title=f"{decoder} decoder", xlabel="epoch", ylabel="KL, nats", ylim=(0, None))
        axis.legend()
    return figure


def run(digits: Digits, seed: int, quick: bool) -> Part:
    """Claims about VAEs."""
    epochs = 3 if quick else 60
    runs = [train(name, way, digits, epochs, seed) for name in DECODERS for way in WAYS]
    return Part(
        "Training a VAE",
        "Why the noise is written as mu + sigma eps, and what keeps a latent code in use.",
        [
            Section(
                "Two estimators of one gradient",
                "The gradient of E |z|^2 / 2 by the mean of z ~ N(1, I) in d dimensions, exactly 1 "
                "a coordinate, from one sample at a time. The chapter: reparameterised gradients "
                "vary far less than the score function's, often by orders of magnitude.",
                gradient_table(10_000 if quick else 100_000, seed),
            ),
            Section(
                "Posterior collapse",
                "The chapter: the KL of a collapsed coordinate goes to 0; annealing (here beta "
                f"rises over the first half) and free bits ({FREE_BITS} nats a coordinate) work "
                "against it. Two reasons to collapse: a Gaussian decoder so wide that only a few "
                "coordinates are worth their KL, where collapse is the optimum and annealing only "
                "puts it off; and a decoder that sees the pixels before each one and can do "
                "without the code. Held-out images, beta = 1, no free bits.",
                collapse_table(runs),
            ),
            Section(
                "Held-out KL",
                "Annealing fills the code at first; free bits hold it up to the end.",
                Picture("collapse", lambda: kl_curves(runs)),
            ),
        ],
    )
