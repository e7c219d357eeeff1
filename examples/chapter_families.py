"""The chapter's comparison of the three families, measured on digits."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from examples import families, pictures
from examples.data import Digits
from examples.families import Family
from examples.pictures import BLUE, GREEN, ORANGE
from examples.report import Part, Picture, Section, Table, time_text
from examples.sample_quality import Judge, Quality

SHOWN = 16  # digits a row


def setback(family: Family) -> float:
    """How far the Frechet distance rose above the smallest one before, as a share of that."""
    best, worst = float("inf"), 0.0
    for _, distance in family.curve:
        worst = max(worst, distance / best - 1)
        best = min(best, distance)
    return worst


def training_table(found: Sequence[Family]) -> Table:
    """One row a family."""
    rows = [
        (
            family.name,
            f"{family.parameters:,}",
            f"{family.steps:,}",
            time_text(family.steps * family.step_seconds),
            "-" if family.bits is None else f"{family.bits:.2f}",
        )
        for family in found
    ]
    return Table(("Family", "Parameters", "Steps", "Time", "Bits a pixel"), rows)


def quality_cells(quality: Quality) -> tuple[str, ...]:
    """Two digits each."""
    numbers = (quality.frechet, quality.precision, quality.recall, quality.sharpness)
    return tuple(f"{number:.2f}" for number in numbers)


def sample_table(found: Sequence[Family], real: Quality) -> Table:
    """One row a sampler."""
    rows = [("digits", "held-out", "-", *quality_cells(real))]
    for family in found:
        for samples in family.samples:
            each = time_text(samples.seconds / len(samples.pixels))
            rows.append((family.name, samples.sampler, each, *quality_cells(samples.quality)))
    columns = ("Images", "Sampler", "Time", "Frechet", "Precision", "Recall", "Sharpness")
    return Table(columns, rows, labels=2)


def verdicts(found: Sequence[Family]) -> Table:
    """What is said of the families in words, and the number that says it here."""
    words = {
        "VAE": ("blurred", "stable", "a bound", "one pass", "small, with encoder"),
        "GAN": ("sharp", "unstable", "none", "one pass", "no encoder"),
        "diffusion": ("best", "stable", "a bound", "many passes", "large as the data"),
    }
    measured = {}
    for family in found:
        first, last = family.samples[0], family.samples[-1]
        quality, passes = first.quality, f"{first.passes}"
        if last is not first:
            passes += f" or {last.passes}"
        told = "" if family.told is None else f", tell {family.told:.0%} of digits"
        measured[family.name] = (
            f"Frechet {quality.frechet:.2f}, sharpness {quality.sharpness:.2f}",
            f"Frechet rose by {setback(family):.0%}",
            "-" if family.bits is None else f"{family.bits:.2f} bits a pixel",
            f"passes: {passes}",
            f"{family.latents} numbers{told}",
        )
    properties = ("Samples", "Training", "Likelihood", "Sampling", "Latent space")
    rows = [
        (name, family.name, words[family.name][i], measured[family.name][i])
        for i, name in enumerate(properties)
        for family in found
    ]
    return Table(("Property", "Family", "In words", "Here"), rows, labels=2, ours="")


def sample_figure(found: Sequence[Family], digits: Digits) -> Figure:
    """A row of digits a sampler, under real ones."""
    rows = {"held-out": digits.test[:SHOWN]}
    for family in found:
        for samples in family.samples:
            name = family.name if len(family.samples) == 1 else samples.sampler
            rows[name] = samples.pixels[:SHOWN]
    return pictures.labelled_rows(rows, height=3.2)


def curve_figure(found: Sequence[Family], real: Quality) -> Figure:
    """The Frechet distance during training."""
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    for family, colour in zip(found, (GREEN, ORANGE, BLUE), strict=True):
        axis.plot(*zip(*family.curve, strict=True), "o-", color=colour, label=family.name)
    axis.axhline(real.frechet, linestyle="--", linewidth=1, color="gray", label="held-out digits")
    axis.set(xlabel="share of the training", ylabel="Frechet distance", yscale="log")
    axis.legend()
    return figure


def run(digits: Digits, seed: int, quick: bool) -> Part:
    """Trains, samples and compares."""
    judge = Judge(digits)
    real = judge.quality(digits.test)
    studies = (families.study_vae, families.study_gan, families.study_diffusion)
    found = [study(digits, judge, seed, quick) for study in studies]
    return Part(
        "The three families on digits",
        "The demo's VAE with two latent numbers (its decoder Gaussian here), the chapter's GAN in "
        "the digits' size, and the demo's diffusion model.",
        [
            Section(
                "The families: training",
                "Median time of a step times the steps. Bits a pixel: the bound on held-out "
                "digits, for pixels with 256 levels, where a uniform pixel costs 8. A GAN has no "
                "likelihood.",
                training_table(found),
            ),
            Section(
                "The families: samples",
                f"{len(digits.test)} images of each against the training digits, in the hidden "
                f"layer of a classifier that knows {judge.accuracy:.1%} of the held-out digits. "
                "Frechet distance; precision, the share of images among the real ones; recall, "
                "the share of real ones among the images; differences of neighbouring pixels as a "
                "share of the real ones'. Time an image, networks included.",
                sample_table(found, real),
            ),
            Section(
                "The families: verdicts",
                "The comparison as it is put in words, and what came out here. Frechet rose: the "
                "largest rise above the best so far, at the points of the curve below. Tell: a "
                "vote of the nearest training digits in latent space.",
                verdicts(found),
            ),
            Section(
                "Samples of the families",
                "Not chosen: the first of each sampler.",
                Picture("families-samples", lambda: sample_figure(found, digits)),
            ),
            Section(
                "Quality during training",
                f"Frechet distance of {len(digits.test)} samples, from the same key each time; the "
                f"diffusion model's by DDIM in {families.CHECK_STEPS} steps.",
                Picture("families-curves", lambda: curve_figure(found, real)),
            ),
        ],
    )
