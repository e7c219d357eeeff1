"""The chapter's forward process: Figure 42.1, Table 42.1 and the posterior's mean."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import entropy, norm
from torch import Tensor

from examples.data import load_chapter_draws
from examples.pictures import BLUE, GREEN, ORANGE
from examples.report import Part, Picture, Section, Table
from genkern import diffusion, random

# The chapter counts steps from 1, genkern from 0; the chapter's t = 0 is the data.
SCHEDULE = diffusion.NoiseSchedule.linear(40, 1e-4, 0.06)
PANELS = (0, 5, 15, 40)
TABLE_42_1 = {
    0: ("8.290", "2.509"),
    5: ("8.172", "2.423"),
    10: ("7.810", "2.166"),
    20: ("6.642", "1.402"),
    30: ("5.283", "0.810"),
    40: ("3.857", "0.358"),
}
EDGES = np.linspace(-6, 6, 41)
X0, X_T, STEP, WINDOW = 2.0, 1.0, 20, 0.02


def noised(x0: Tensor, t: int, noise: Tensor | None = None, key: Tensor | None = None) -> Tensor:
    """x_t at the chapter's step t."""
    return diffusion.q_sample(x0, t - 1, SCHEDULE, noise=noise, key=key) if t else x0


def total_variance(x: Tensor) -> float:
    """Summed over the coordinates."""
    return x.var(0).sum().item()


def kl_to_normal(x: Tensor) -> float:
    """KL of the first coordinate's histogram from the normal density at the bins' centres.

    Bins are closed on the right: those of -x, which NumPy closes on the left.
    """
    counts = np.histogram(-x[:, 0].numpy(), -EDGES[::-1])[0][::-1]
    centres = (EDGES[1:] + EDGES[:-1]) / 2
    return float(entropy(counts, norm.pdf(centres)))  # both are normalised there


def figure_42_1(x0: Tensor, eps: Tensor, component: np.ndarray) -> Figure:
    """The mixture dissolves."""
    figure = Figure(figsize=(8, 2.4))
    for axis, t in zip(figure.subplots(1, 4, sharex=True, sharey=True), PANELS, strict=True):
        x = noised(x0, t, eps[t - 1])
        for i, colour in zip(np.unique(component), (BLUE, ORANGE, GREEN), strict=True):
            axis.scatter(*x[component == i].T, s=3, color=colour, linewidths=0)
        axis.set(title=f"$t$ = {t}", aspect="equal", xlim=(-5, 5), ylim=(-4, 5))
    return figure


def table_42_1(x0: Tensor, eps: Tensor, seed: int) -> Table:
    """The chapter's numbers, the same draws through genkern, and genkern's own noise."""
    rows = []
    for t, (variance, kl) in TABLE_42_1.items():
        given = noised(x0, t, noise=eps[t - 1])
        own = noised(x0, t, key=random.fold_in(random.key(seed), t))
        cells = [str(t)]
        for claim, measure in ((variance, total_variance), (kl, kl_to_normal)):
            cells += [claim, f"{measure(given):.3f}", f"{measure(own):.3f}" if t else "-"]
        rows.append(tuple(cells))
    columns = ("t", "Variance", "genkern", "own noise", "KL", "genkern", "own noise")
    return Table(columns, rows, ours="")


def simulated_mean(pairs: int, seed: int) -> tuple[float, float]:
    """E[x_19 | x_20 near 1, x_0 = 2] from pairs of steps, and its standard error."""
    first, second = random.split(random.key(seed), 2)
    before = noised(torch.full((pairs,), X0), STEP - 1, key=first)
    beta = SCHEDULE.betas[STEP - 1].item()
    one_step = diffusion.NoiseSchedule.from_alphas_cumprod([1 - beta, (1 - beta) ** 2])
    after = diffusion.q_sample(before, 0, one_step, key=second)
    kept = before[(after - X_T).abs() < WINDOW].double()
    return kept.mean().item(), kept.std().item() / math.sqrt(len(kept))


def posterior_mean(pairs: int, seed: int) -> Table:
    """In closed form and by simulation."""
    one = torch.ones(1, dtype=torch.float64)
    mean, _, _ = diffusion.q_posterior(X0 * one, X_T * one, STEP - 1, SCHEDULE)
    simulated, error = simulated_mean(pairs, seed)
    return Table(
        ("Posterior mean at t = 20, x0 = 2, xt = 1", "Chapter", "Here"),
        [
            ("closed form", "1.0988", f"{mean.item():.4f}"),
            (
                f"simulation, {pairs:.0e} pairs".replace("e+0", "e"),
                "1.0975",
                f"{simulated:.4f} +- {error:.4f}",
            ),
        ],
    )


def run(seed: int, quick: bool) -> Part:
    """The forward process."""
    draws = load_chapter_draws()
    x0, eps = torch.from_numpy(draws["x0"]), torch.from_numpy(draws["eps"])
    return Part(
        "The forward process",
        "600 points of a mixture of three Gaussians, noised in 40 steps.",
        [
            Section(
                "Figure 42.1",
                "The chapter's own draws at steps 0, 5, 15 and 40, coloured by component.",
                Picture("figure-42-1", lambda: figure_42_1(x0, eps, draws["component"])),
            ),
            Section(
                "Table 42.1",
                "The chapter's number, q_sample on the draws behind it, and q_sample with noise "
                "of its own, which differs as 600 other draws do.",
                table_42_1(x0, eps, seed),
            ),
            Section(
                "The mean of the forward posterior",
                "q_posterior, and the mean of x_19 in simulated pairs with x_20 within 0.02 of 1, "
                "with its standard error.",
                posterior_mean(200_000 if quick else 4_000_000, seed),
            ),
        ],
    )
