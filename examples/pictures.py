"""How the pages draw: each picture twice, for a light page and for a dark one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from examples.data import SIDE

CELL = SIDE + 2  # with the frame that keeps digits apart
DPI = 160

THEMES = {
    "light": {"text": "#1f2328", "faint": "#d0d7de"},
    "dark": {"text": "#e6edf3", "faint": "#3d444d"},
}
# Okabe and Ito's colours: told apart with any colour vision, on either background.
BLUE, ORANGE, GREEN, PINK = "#3a8fd0", "#e69f00", "#009e73", "#cc79a7"


def theme_settings(theme: str) -> dict[str, object]:
    """Settings of matplotlib; the background is the page's."""
    text, faint = THEMES[theme]["text"], THEMES[theme]["faint"]
    return {
        "savefig.transparent": True,
        "font.size": 10,
        "text.color": text,
        "axes.labelcolor": text,
        "axes.titlecolor": text,
        "axes.titlesize": 10,
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


@torch.no_grad()
def save(draw: Callable[[], Figure], name: str, folder: Path) -> dict[str, Path]:
    """Draws for both themes; gives the files."""
    files = {}
    for theme in THEMES:
        files[theme] = folder / f"{name}-{theme}.png"
        with matplotlib.rc_context(theme_settings(theme)):
            draw().savefig(files[theme], dpi=DPI)
    return files


def smooth(values: Tensor, window: int) -> Tensor:
    """A running mean, shorter at the start."""
    total = torch.cat([torch.zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    end = torch.arange(1, len(values) + 1)
    start = (end - window).clamp(min=0)
    return (total[end] - total[start]) / (end - start)


def loss_curves(losses: Mapping[str, Tensor], label: str, margin: float) -> Figure:
    """All curves over each other; below, the distance of the first two, on equal noise."""
    figure = Figure(figsize=(8, 5.2))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    first, second, *_ = losses.values()
    steps = torch.arange(1, len(first) + 1)
    window = max(1, len(steps) // 100)
    styles = (
        {"color": BLUE, "linewidth": 5, "alpha": 0.6},
        {"color": ORANGE, "linewidth": 1.4},
        {"color": GREEN, "linewidth": 1.2},
    )
    for (name, loss), style in zip(losses.items(), styles, strict=False):
        above.plot(steps, smooth(loss, window), label=name, **style)
    # Scaled to what follows the first steps, which fall so far that the rest would look flat.
    tail = torch.cat([smooth(loss, window)[len(steps) // 50 :] for loss in losses.values()])
    above.set_ylim(tail.min().item() - margin, tail.max().item() + margin)
    above.set_ylabel(label)
    above.legend()
    below.plot(steps, (first.double() - second.double()) * 1e6, ".", color=BLUE, ms=2)
    below.set_ylabel(r"difference, $10^{-6}$")
    below.set_xlabel("training step")
    return figure


def as_image(rows: Tensor) -> Tensor:
    """(rows, columns, 64) pixels as one picture, with black between the digits."""
    height, width, _ = rows.shape
    framed = F.pad(rows.view(height, width, SIDE, SIDE), (1, 1, 1, 1))
    return framed.transpose(1, 2).reshape(height * CELL, width * CELL)


def show(axis: Axes, rows: Tensor) -> None:
    """Digits on an axis without ticks."""
    axis.imshow(as_image(rows), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def labelled_rows(rows: Mapping[str, Tensor], height: float) -> Figure:
    """One row of digits, (columns, 64), a name."""
    figure = Figure(figsize=(8, height))
    axes: Sequence[Axes] = figure.subplots(len(rows), 1)
    for axis, (name, row) in zip(axes, rows.items(), strict=True):
        show(axis, row[None])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
