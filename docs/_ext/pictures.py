"""The pictures of the site, made by genkern itself in a few seconds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor

from examples import chapter_diffusion, chapter_gan, vae_digits
from examples.data import load_chapter_draws, load_digits
from examples.pictures import BLUE, GREEN, ORANGE, PINK, loss_curves
from genkern import diffusion, gan, random, vae

EPOCHS = 20  # of 15 steps

# --- VAE -----------------------------------------------------------------------------------------


@functools.cache
@torch.enable_grad()  # pictures are drawn without
def vae_runs() -> list[vae_digits.Run]:
    """The demo's VAE, trained for a moment with genkern and with the plain lines."""
    digits = load_digits()
    return [vae_digits.train(method, digits, EPOCHS, seed=0) for method in vae_digits.METHODS[:2]]


def vae_loss() -> Figure:
    """Two curves that lie on each other, and their difference."""
    losses = {run.method.name: run.loss for run in vae_runs()}
    return loss_curves(losses, "loss, nats an image", margin=2.0)


def kl_near_prior() -> Figure:
    """The relative error of the KL as the posterior nears the prior, by two formulas."""
    logvar = torch.logspace(-5, 0, 400, dtype=torch.float64).float()
    mu = torch.zeros_like(logvar)
    plain = -0.5 * (1 + logvar - mu.square() - logvar.exp())
    ours = vae.kl(mu, logvar, reduction="none")
    wide = logvar.double()
    exact = 0.5 * (torch.expm1(wide) - wide)
    exact = torch.where(wide < 1e-3, wide**2 * (1 / 4 + wide / 12 + wide**2 / 48), exact)
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    for name, value, colour in (
        ("1 + logvar - mu² - exp(logvar), float32", plain, ORANGE),
        ("genkern.vae.kl, float32", ours, BLUE),
    ):
        error = ((value.double() - exact) / exact).abs().clamp(min=1e-9)
        axis.loglog(wide, error, ".", ms=3, color=colour, label=name)
    axis.set(xlabel="log-variance, with mean 0", ylabel="relative error")
    axis.legend()
    return figure


def annealing() -> Figure:
    """The KL's weight."""
    figure = Figure(figsize=(8, 2.6))
    axis = figure.subplots()
    steps = range(1201)
    for kind, colour in zip(
        ("linear", "cosine", "sigmoid", "cyclical"), (BLUE, ORANGE, GREEN, PINK), strict=True
    ):
        cycles = 4 if kind == "cyclical" else 1
        weights = [vae.kl_weight(s, warmup=1000, kind=kind, cycles=cycles) for s in steps]
        axis.plot(steps, weights, color=colour, label=kind)
    axis.set(xlabel="step, with a warmup of 1000", ylabel="weight of the KL")
    axis.legend(loc="lower right")
    return figure


# --- diffusion -----------------------------------------------------------------------------------


def noised() -> Figure:
    """The chapter's figure 42.1."""
    draws = load_chapter_draws()
    x0, eps = torch.from_numpy(draws["x0"]), torch.from_numpy(draws["eps"])
    return chapter_diffusion.figure_42_1(x0, eps, draws["component"])


def schedules() -> Figure:
    """What is left of the data, and the signal-to-noise ratio."""
    figure = Figure(figsize=(8, 3))
    signal, ratio = figure.subplots(1, 2)
    for kind, colour in zip(
        ("linear", "scaled_linear", "cosine", "sigmoid"), (BLUE, ORANGE, GREEN, PINK), strict=True
    ):
        schedule = getattr(diffusion.NoiseSchedule, kind)(1000)
        signal.plot(schedule.alphas_cumprod, color=colour, label=kind)
        ratio.semilogy(schedule.snr, color=colour)
    signal.set(xlabel="step", title=r"$\bar\alpha_t$")
    ratio.set(xlabel="step", title="signal-to-noise ratio", ylim=(1e-6, 1e5))
    signal.legend()
    return figure


CENTRES = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
WIDTH = 0.35  # standard deviation of each Gaussian
POINTS = 600


def best_noise(x: Tensor, t: Tensor, schedule: diffusion.NoiseSchedule) -> Tensor:
    """The expected noise in x_t for the mixture: the network that training looks for."""
    a = schedule.alphas_cumprod.float()[t[0]]
    variance = a * WIDTH**2 + 1 - a
    offsets = x[:, None] - a.sqrt() * CENTRES
    share = torch.softmax(-offsets.square().sum(-1) / (2 * variance), 1)
    return (share[..., None] * offsets).sum(1) * (1 - a).sqrt() / variance


def samplers() -> Figure:
    """The mixture, drawn by each sampler with the best network, from the same noise."""
    schedule = diffusion.NoiseSchedule.linear(1000)
    key = random.key(0)
    which = torch.arange(POINTS) % len(CENTRES)
    panels = {"data": CENTRES[which] + WIDTH * random.normal(random.key(1), POINTS, 2)}
    for name, steps in (("ddpm", 1000), ("ddim", 20), ("ode", 10)):
        panels[f"{name}, {steps} steps"] = diffusion.sample(
            lambda x, t: best_noise(x, t, schedule),
            (POINTS, 2),
            schedule,
            sampler=name,
            num_steps=steps,
            spacing="trailing",
            key=key,
            progress=False,
        )
    figure = Figure(figsize=(8, 2.4))
    for axis, (name, x) in zip(
        figure.subplots(1, 4, sharex=True, sharey=True), panels.items(), strict=True
    ):
        axis.scatter(*x.T, s=3, linewidths=0, color=BLUE if name != "data" else ORANGE)
        axis.set(title=name, aspect="equal", xlim=(-5, 5), ylim=(-2, 5))
    return figure


# --- GAN -----------------------------------------------------------------------------------------


@torch.enable_grad()
def generator_losses() -> Figure:
    """Each loss of a generator and its derivative, over the logit of what it made."""
    logits = torch.linspace(-6, 6, 241).requires_grad_()
    figure = Figure(figsize=(8, 3))
    value, slope = figure.subplots(1, 2, sharex=True)
    for kind, colour in zip(
        ("saturating", "non_saturating", "wasserstein", "least_squares"),
        (ORANGE, BLUE, GREEN, PINK),
        strict=True,
    ):
        loss = gan.generator_loss(logits, kind=kind, reduction="none")
        (derivative,) = torch.autograd.grad(loss.sum(), logits)
        value.plot(logits.detach(), loss.detach(), color=colour, label=kind)
        slope.plot(logits.detach(), derivative, color=colour)
    value.set(xlabel="logit of a generated sample", title="loss", ylim=(-6, 8))
    slope.set(xlabel="logit of a generated sample", title="its derivative", ylim=(-3, 1))
    value.legend()
    return figure


def best_discriminator() -> Figure:
    """The chapter's figure 42.2."""
    keys = random.split(random.key(0), 3)
    return chapter_gan.figure_42_2([chapter_gan.fit_discriminator(key) for key in keys])


# --- noise ---------------------------------------------------------------------------------------


def normals() -> Figure:
    """A million float32 normals against the density."""
    x = random.normal(random.key(0), 1_000_000)
    grid = torch.linspace(-5, 5, 401)
    figure = Figure(figsize=(8, 2.6))
    axis = figure.subplots()
    axis.hist(x.numpy(), bins=201, range=(-5, 5), density=True, color=BLUE, alpha=0.6)
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    axis.plot(grid, density, color=ORANGE, linewidth=1.2)
    axis.set(xlabel="value", ylabel="density", yscale="log")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "vae-loss": vae_loss,
    "kl-near-prior": kl_near_prior,
    "annealing": annealing,
    "noised": noised,
    "schedules": schedules,
    "samplers": samplers,
    "generator-losses": generator_losses,
    "best-discriminator": best_discriminator,
    "normals": normals,
}
