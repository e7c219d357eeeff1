"""The pictures of the VAE's part of the demo."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.figure import Figure

from examples import pictures
from examples.data import Digits
from examples.pictures import BLUE, CELL, ORANGE
from examples.vae_digits import Run

RECONSTRUCTIONS = 12
GRID = 14  # decoded points along each side of the latent plane
DIGIT_COLOURS = matplotlib.colormaps["tab10"].colors


def reconstructions(runs: Sequence[Run], digits: Digits) -> Figure:
    """Held-out images above what each model makes of them."""
    x = digits.test[:RECONSTRUCTIONS]
    rows = {"input": x}
    for run in runs:
        mu, _ = run.encoder(x).chunk(2, dim=1)
        rows[run.method.name] = run.decoder(mu).sigmoid()
    return pictures.labelled_rows(rows, height=2.9)


def prior_samples(run: Run) -> Figure:
    """The decoded latent plane, at equally probable points of the prior."""
    probability = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    ticks = torch.special.ndtri(probability).float()
    z = torch.cartesian_prod(ticks.flip(0), ticks).flip(1)  # rows: z_2 falling, columns: z_1 rising
    rows = run.decoder(z).sigmoid().view(GRID, GRID, -1)
    figure = Figure(figsize=(4.8, 4.8))
    axis = figure.subplots()
    pictures.show(axis, rows)
    centres = (torch.arange(GRID) + 0.5) * CELL - 0.5
    labels = [f"{t:.1f}" for t in ticks]
    axis.set_xticks(centres, labels, fontsize=7)
    axis.set_yticks(centres, labels[::-1], fontsize=7)
    axis.set(xlabel="$z_1$", ylabel="$z_2$")
    return figure


def latent_space(run: Run, digits: Digits) -> Figure:
    """The posterior means of the training images, coloured by digit."""
    mu, _ = run.encoder(digits.train).chunk(2, dim=1)
    figure = Figure(figsize=(4.8, 4.8))
    axis = figure.subplots()
    for digit, colour in enumerate(DIGIT_COLOURS):
        points = mu[digits.train_labels == digit]
        axis.scatter(*points.T, s=5, color=colour, linewidths=0, label=digit)
    axis.set_aspect("equal", adjustable="datalim")
    axis.set(xlabel=r"$\mu_1$", ylabel=r"$\mu_2$")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2, handletextpad=0.1)
    return figure


def kl_by_coordinate(run: Run) -> Figure:
    """The held-out KL of each coordinate, epoch by epoch."""
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    kl = run.kl
    epochs = torch.arange(1, len(kl) + 1)
    for j, colour in enumerate((BLUE, ORANGE)):  # two latent coordinates
        label = f"coordinate {j + 1}: {kl[-1, j]:.2f} at the end"
        axis.plot(epochs, kl[:, j], color=colour, label=label)
    axis.set_ylim(bottom=0)
    axis.set(xlabel="epoch", ylabel="KL, nats")
    axis.legend()
    return figure
