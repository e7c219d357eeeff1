"""The chapter's GANs on a ring of Gaussians: how many of them three ways to train cover."""

from __future__ import annotations

from matplotlib.figure import Figure
from torch import Tensor

from examples.gan_ring import CENTRES, CRITIC_STEPS, MODES, coverage, train
from examples.pictures import BLUE, ORANGE
from examples.report import Part, Picture, Section, Table

# The run's name, the page's, and what the chapter says of it.
WAYS = (
    ("minimax", "minimax", "saturates"),
    ("non_saturating", "non-saturating", "has a gradient"),
    ("wasserstein, penalty", "WGAN-GP", "W is smooth"),
)

Found = dict[str, list[Tensor]]  # samples of a run's seeds


def coverage_table(found: Found) -> Table:
    """One row a way to train."""
    rows = []
    for run, name, claim in WAYS:
        covered, near = zip(*(coverage(samples) for samples in found[run]), strict=True)
        counts = ", ".join(f"{count} of {MODES}" for count in covered)
        rows.append((name, claim, counts, f"{sum(near) / len(near):.0%}"))
    return Table(("Training", "Chapter", "Gaussians covered", "Samples near one"), rows)


def samples_figure(found: Found) -> Figure:
    """The first seed's samples over the centres."""
    figure = Figure(figsize=(8, 2.9))
    for axis, (run, name, _) in zip(figure.subplots(1, len(WAYS)), WAYS, strict=True):
        axis.scatter(*CENTRES.T, s=60, color=ORANGE, alpha=0.6, linewidths=0)
        axis.scatter(*found[run][0].T, s=2, color=BLUE, linewidths=0)
        axis.set(title=name, aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    return figure


def run(seed: int, quick: bool) -> Part:
    """Trains each way from several seeds."""
    steps, seeds = (20, 1) if quick else (1500, 3)
    found = {way[0]: [train(way[0], steps, seed + i) for i in range(seeds)] for way in WAYS}
    return Part(
        "A GAN on a ring of Gaussians",
        f"Eight narrow Gaussians on a circle; {steps} steps of the generator with {CRITIC_STEPS} "
        "of the discriminator before each, from the same weights.",
        [
            Section(
                "Modes covered",
                f"Of {len(next(iter(found.values()))[0])} samples, a row's seeds side by side. A "
                "Gaussian is covered that has a tenth of its even share of samples within three "
                "standard deviations. The chapter: log(1 - D) gives no gradient where the "
                "discriminator wins, log D does, and W tells the distance where JS does not.",
                coverage_table(found),
            ),
            Section(
                "Samples of the first seed",
                "Over the centres of the eight Gaussians.",
                Picture("ring", lambda: samples_figure(found)),
            ),
        ],
    )
