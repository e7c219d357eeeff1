"""The VAE's part of the demo: trains, measures, and says what came out."""

from __future__ import annotations

from collections.abc import Sequence

from examples import vae_digits_figures as figures
from examples.data import BATCH, Digits
from examples.pictures import loss_curves
from examples.report import Part, Picture, Section, Table, bytes_text, shape_text, time_text
from examples.vae_digits import LATENT, METHODS, Run, train
from examples.vae_digits_cost import Cost, compare

# Two coordinates are few: the cost is also measured at the latents that an image autoencoder of
# factor 8 makes of 16 and 64 images of 512 x 512 pixels.
IMAGE_LATENTS = ((16, 4, 64, 64), (64, 4, 64, 64))


def results(runs: Sequence[Run]) -> Table:
    """One row a run."""
    return Table(
        ("Method", "ELBO, nats", "Step, ms"),
        [(r.method.name, f"{r.elbo:.4f}", f"{r.step_seconds * 1e3:.2f}") for r in runs],
    )


def cost_table(costs: Sequence[Cost]) -> Table:
    """One row a method and latent shape; times are relative to the last method at that shape."""
    baseline = {cost.shape: cost.timing.median for cost in costs}
    rows = [
        (
            shape_text(cost.shape),
            cost.method,
            time_text(cost.timing.median),
            f"{cost.timing.spread:.0%}",
            f"{baseline[cost.shape] / cost.timing.median:.2f}x",
            bytes_text(cost.bytes_kept),
            bytes_text(cost.bytes_added),
        )
        for cost in costs
    ]
    columns = ("Latent", "Method", "Time", "Spread", "Speed", "Kept", "Added")
    return Table(columns, rows, labels=2)


def sections(runs: Sequence[Run], costs: Sequence[Cost], digits: Digits) -> list[Section]:
    """The tables and pictures."""
    difference = (runs[0].loss.double() - runs[1].loss.double()).abs().max().item()
    losses = {run.method.name: run.loss for run in runs}
    return [
        Section(
            "VAE: training",
            "Held-out ELBO, and the median time of a whole training step. In a model this small "
            "the networks take most of a step.",
            results(runs),
            "VAE: largest difference of the losses of the two runs on equal noise: "
            f"{difference:.1e} nats",
        ),
        Section(
            "VAE: sampling + KL alone",
            "Forward and backward of that part: medians of alternating calls, the distance of "
            "their quartiles, and the speed relative to plain lines with randn. With two "
            "coordinates all of it is overhead of calls; the larger latents are those of an image "
            "autoencoder. Kept: every tensor that autograd saves for backward. Added: those of "
            "them that are not mu and logvar themselves, which are there in any case.",
            cost_table(costs),
        ),
        Section(
            "Loss",
            "The three runs over each other. The first two get the same noise and lie on one line; "
            "below, how far apart they are at each step: a few float32 roundings.",
            Picture("vae-loss", lambda: loss_curves(losses, "loss, nats per image", margin=0.5)),
        ),
        Section(
            "Reconstructions",
            "Held-out digits, and each model's decoding of their posterior mean.",
            Picture("vae-reconstructions", lambda: figures.reconstructions(runs, digits)),
        ),
        Section(
            "Samples from the prior",
            "The decoder over the latent plane, at points that are equally probable under the "
            "prior.",
            Picture("vae-prior", lambda: figures.prior_samples(runs[0]), wide=False),
        ),
        Section(
            "Latent space",
            "Posterior means of the training digits, coloured by digit; no label was used in "
            "training.",
            Picture("vae-latent", lambda: figures.latent_space(runs[0], digits), wide=False),
        ),
        Section(
            "KL per coordinate",
            "What each latent coordinate tells about a held-out digit; a collapsed coordinate "
            "would fall to 0.",
            Picture("vae-kl", lambda: figures.kl_by_coordinate(runs[0])),
        ),
    ]


def run(digits: Digits, seed: int, quick: bool) -> Part:
    """Trains with every method and measures them."""
    runs = [train(method, digits, 2 if quick else 200, seed) for method in METHODS]
    shapes = ((BATCH, LATENT), *IMAGE_LATENTS[: 1 if quick else None])
    costs = compare(shapes, seconds_each=0.1 if quick else 2.0)
    return Part(
        "A VAE",
        f"One model (64-256-2-256-64, Bernoulli decoder), trained {len(runs[0].loss)} steps three "
        "times from the same weights on the same batches: with genkern, with the plain PyTorch "
        "lines that it replaces on the same noise, and with those lines on PyTorch's own noise.",
        sections(runs, costs, digits),
    )
