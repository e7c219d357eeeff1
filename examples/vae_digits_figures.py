"""The demo's pictures, each drawn twice: for a light page and for a dark one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from examples.vae_digits import Digits, Run

SIDE = 8  # pixels of a digit's side
CELL = SIDE + 2  # with the frame that keeps digits apart
RECONSTRUCTIONS = 12
GRID = 14  # decoded points along each side of the latent plane
DPI = 160

THEMES = {
    "light": {"text": "#1f2328", "faint": "#d0d7de"},
    "dark": {"text": "#e6edf3", "faint": "#3d444d"},
}
# Okabe and Ito's colours: told apart with any colour vision, on either background.
BLUE, ORANGE, GREEN = "#3a8fd0", "#e69f00", "#009e73"
DIGIT_COLOURS = matplotlib.colormaps["tab10"].colors


@dataclass(frozen=True)
class Picture:
    """A picture as the page shows it: one file for each theme."""

    title: str
    text: str
    wide: bool
    files: dict[str, Path]


def theme_settings(theme: str) -> dict[str, object]:
    """Settings of matplotlib; the background is the page's."""
    text, faint = THEMES[theme]["text"], THEMES[theme]["faint"]
    return {
        "savefig.transparent": True,
        "font.size": 10,
        "text.color": text,
        "axes.labelcolor": text,
        "axes.edgecolor": faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": faint,
        "grid.linewidth": 0.5,
        "xtick.color": text,
        "ytick.color": text,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }


def smooth(loss: torch.Tensor, window: int) -> torch.Tensor:
    """A running mean, shorter at the start."""
    total = torch.cat([torch.zeros(1, dtype=torch.float64), loss.double().cumsum(0)])
    end = torch.arange(1, len(loss) + 1)
    start = (end - window).clamp(min=0)
    return (total[end] - total[start]) / (end - start)


def loss_curves(runs: Sequence[Run], digits: Digits) -> Figure:
    """All curves over each other, and the distance of those on equal noise."""
    figure = Figure(figsize=(8, 5.2))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    steps = torch.arange(1, len(runs[0].loss) + 1)
    window = max(1, len(steps) // 100)
    styles = (
        {"color": BLUE, "linewidth": 5, "alpha": 0.6},
        {"color": ORANGE, "linewidth": 1.4},
        {"color": GREEN, "linewidth": 1.2},
    )
    for run, style in zip(runs, styles, strict=True):
        above.plot(steps, smooth(run.loss, window), label=run.method.name, **style)
    # Scaled to what follows the first steps, which fall so far that the rest would look flat.
    tail = torch.cat([smooth(run.loss, window)[len(steps) // 50 :] for run in runs])
    above.set_ylim(tail.min().item() - 0.5, tail.max().item() + 0.5)
    above.set_ylabel("loss, nats per image")
    above.legend()
    difference = runs[0].loss.double() - runs[1].loss.double()
    below.plot(steps, difference * 1e6, ".", color=BLUE, ms=2)
    below.set_ylabel(r"difference, $10^{-6}$")
    below.set_xlabel("training step")
    return figure


def as_image(rows: torch.Tensor) -> torch.Tensor:
    """(rows, columns, 64) pixels as one picture, with black between the digits."""
    height, width, _ = rows.shape
    framed = F.pad(rows.view(height, width, SIDE, SIDE), (1, 1, 1, 1))
    return framed.transpose(1, 2).reshape(height * CELL, width * CELL)


def reconstructions(runs: Sequence[Run], digits: Digits) -> Figure:
    """Held-out images above what each model makes of them."""
    x = digits.test[:RECONSTRUCTIONS]
    rows = {"input": x}
    for run in runs:
        mu, _ = run.encoder(x).chunk(2, dim=1)
        rows[run.method.name] = run.decoder(mu).sigmoid()
    figure = Figure(figsize=(8, 2.9))
    axes = figure.subplots(len(rows), 1)
    for axis, (name, row) in zip(axes, rows.items(), strict=True):
        axis.imshow(as_image(row[None]), cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    return figure


def prior_samples(runs: Sequence[Run], digits: Digits) -> Figure:
    """The decoded latent plane, at equally probable points of the prior."""
    probability = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    ticks = torch.special.ndtri(probability).float()
    z = torch.cartesian_prod(ticks.flip(0), ticks).flip(1)  # rows: z_2 falling, columns: z_1 rising
    image = as_image(runs[0].decoder(z).sigmoid().view(GRID, GRID, -1))
    figure = Figure(figsize=(4.8, 4.8))
    axis = figure.subplots()
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    centres = (torch.arange(GRID) + 0.5) * CELL - 0.5
    labels = [f"{t:.1f}" for t in ticks]
    axis.set_xticks(centres, labels, fontsize=7)
    axis.set_yticks(centres, labels[::-1], fontsize=7)
    axis.set(xlabel="$z_1$", ylabel="$z_2$")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure


def latent_space(runs: Sequence[Run], digits: Digits) -> Figure:
    """The posterior means of the training images, coloured by digit."""
    mu, _ = runs[0].encoder(digits.train).chunk(2, dim=1)
    figure = Figure(figsize=(4.8, 4.8))
    axis = figure.subplots()
    for digit, colour in enumerate(DIGIT_COLOURS):
        points = mu[digits.train_labels == digit]
        axis.scatter(*points.T, s=5, color=colour, linewidths=0, label=digit)
    axis.set_aspect("equal", adjustable="datalim")
    axis.set(xlabel=r"$\mu_1$", ylabel=r"$\mu_2$")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2, handletextpad=0.1)
    return figure


def kl_by_coordinate(runs: Sequence[Run], digits: Digits) -> Figure:
    """The held-out KL of each coordinate, epoch by epoch."""
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    kl = runs[0].kl
    epochs = torch.arange(1, len(kl) + 1)
    for j, colour in enumerate((BLUE, ORANGE)):  # two latent coordinates
        label = f"coordinate {j + 1}: {kl[-1, j]:.2f} at the end"
        axis.plot(epochs, kl[:, j], color=colour, label=label)
    axis.set_ylim(bottom=0)
    axis.set(xlabel="epoch", ylabel="KL, nats")
    axis.legend()
    return figure


# File name, title, text, whether it takes the page's whole width, and the drawing.
FIGURES: tuple[tuple[str, str, str, bool, Callable[[Sequence[Run], Digits], Figure]], ...] = (
    (
        "loss",
        "Loss",
        "The three runs over each other. The first two get the same noise and lie on one line; "
        "below, how far apart they are at each step: a few float32 roundings.",
        True,
        loss_curves,
    ),
    (
        "reconstructions",
        "Reconstructions",
        "Held-out digits, and each model's decoding of their posterior mean.",
        True,
        reconstructions,
    ),
    (
        "prior",
        "Samples from the prior",
        "The decoder over the latent plane, at points that are equally probable under the prior.",
        False,
        prior_samples,
    ),
    (
        "latent",
        "Latent space",
        "Posterior means of the training digits, coloured by digit; no label was used in training.",
        False,
        latent_space,
    ),
    (
        "kl",
        "KL per coordinate",
        "What each latent coordinate tells about a held-out digit; "
        "a collapsed coordinate would fall to 0.",
        True,
        kl_by_coordinate,
    ),
)


@torch.no_grad()
def draw_all(runs: Sequence[Run], digits: Digits, folder: Path) -> list[Picture]:
    """Writes every picture to `folder`."""
    pictures = []
    for name, title, text, wide, draw in FIGURES:
        files = {}
        for theme in THEMES:
            files[theme] = folder / f"{name}-{theme}.png"
            with matplotlib.rc_context(theme_settings(theme)):
                draw(runs, digits).savefig(files[theme], dpi=DPI)
        pictures.append(Picture(title, text, wide, files))
    return pictures
