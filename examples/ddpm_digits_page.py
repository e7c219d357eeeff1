"""The diffusion model's part of the demo: trains, samples, measures, and says what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from examples import pictures
from examples.data import BATCH, SIDE, Digits, as_pixels
from examples.ddpm_digits import METHODS, SCHEDULE, Run, T, train
from examples.ddpm_digits_cost import DDIM_STEPS, Cost, compare
from examples.report import Part, Picture, Section, Table, bytes_text, shape_text, time_text
from genkern import diffusion, random

COLUMNS, ROWS = 10, 4  # of the sampled images
STRIP_IMAGES, STRIP_COLUMNS = 3, 12
# Images, latents and pixels of the usual sizes beside the demo's own batch.
SHAPES = ((BATCH, 1, SIDE, SIDE), (16, 4, 64, 64), (16, 3, 256, 256))


@dataclass(frozen=True)
class Samples:
    """Images that one method drew, in [-1, 1]."""

    method: str
    sampler: str
    steps: int
    images: Tensor
    seconds: float
    seen: dict[int, Tensor]  # the first images on their way: x_t by t, -1 for the data


def draw_samples(run: Run, sampler: str, steps: int, seed: int) -> Samples:
    """Draws from the method's own network; the same seed gives both methods the same noise."""
    seen: dict[int, Tensor] = {}

    def keep(step: int, t: int, x: Tensor) -> None:
        if (step + 1) % max(1, steps // STRIP_COLUMNS) == 0 or step + 1 == steps:
            seen[t - T // steps] = x[:STRIP_IMAGES].clone()  # a step of t ends below t

    key = random.fold_in(random.key(seed), -2)  # training's are 0, 1, ...
    start = time.perf_counter()
    images = run.method.sample(run.network, COLUMNS * ROWS, sampler, steps, key, keep)
    return Samples(
        run.method.name, sampler.upper(), steps, images, time.perf_counter() - start, seen
    )


def strip(samples: Samples, network: torch.nn.Module) -> Figure:
    """x on its way from noise to data, and the estimate of x0 at each point."""
    estimates = []
    for t, x in samples.seen.items():
        if t >= 0:
            pred = network(x, torch.full((len(x),), t))
            x = diffusion.predict_x0(x, pred, t, SCHEDULE)
        estimates.append(x)
    figure = Figure(figsize=(8, 5.2))
    for axis, x, title in zip(
        figure.subplots(2, 1),
        (torch.stack(list(samples.seen.values()), 1), torch.stack(estimates, 1)),
        (r"$x_t$, left to right from noise to data", r"the estimate of $x_0$ from it"),
        strict=True,
    ):
        pictures.show(axis, as_pixels(x.flatten(0, 1)).view(*x.shape[:2], -1))
        centres = (torch.arange(len(estimates)) + 0.5) * pictures.CELL - 0.5
        axis.set_xticks(centres, ["data" if t < 0 else str(t) for t in samples.seen], fontsize=8)
        axis.set_title(title)
        axis.set_xlabel("$t$")
    return figure


def sample_grids(drawn: Sequence[Samples]) -> Figure:
    """Four grids: both samplers of both methods."""
    figure = Figure(figsize=(8, 4.2))
    for axis, samples in zip(figure.subplots(2, 2).flat, drawn, strict=True):
        pictures.show(axis, as_pixels(samples.images).view(ROWS, COLUMNS, -1))
        axis.set_title(f"{samples.sampler}, {samples.steps} steps: {samples.method}")
    return figure


def results(runs: Sequence[Run]) -> Table:
    """One row a run."""
    return Table(
        ("Method", "Held-out loss", "Step, ms"),
        [(r.method.name, f"{r.held_out:.4f}", f"{r.step_seconds * 1e3:.1f}") for r in runs],
    )


def sample_table(drawn: Sequence[Samples]) -> Table:
    """One row a sampler and method; differences are from the first method's images."""
    first = {samples.sampler: samples.images for samples in reversed(drawn)}
    rows = []
    for samples in drawn:
        difference = (samples.images - first[samples.sampler]).abs()
        same = samples.images is first[samples.sampler]
        rows.append(
            (
                f"{samples.sampler}, {samples.steps} steps",
                samples.method,
                time_text(samples.seconds),
                "-" if same else f"{difference.median().item():.0e}",
                "-" if same else f"{difference.max().item():.0e}",
            )
        )
    columns = ("Sampler", "Method", "Time", "Median difference", "Largest")
    return Table(columns, rows, labels=2)


def cost_table(costs: Sequence[Cost], what: str) -> Table:
    """One row a method and shape; times are relative to genkern's."""
    chosen = [cost for cost in costs if cost.what == what]
    ours = {cost.shape: cost.timing.median for cost in chosen if cost.method == "genkern"}
    held = all(cost.bytes_held is not None for cost in chosen)
    rows = []
    for cost in chosen:
        row = (
            shape_text(cost.shape),
            cost.method,
            time_text(cost.timing.median),
            f"{cost.timing.spread:.0%}",
            f"{cost.timing.median / ours[cost.shape]:.2f}x",
        )
        rows.append((*row, bytes_text(cost.bytes_held)) if cost.bytes_held is not None else row)
    columns = ("Shape", "Method", "Time", "Spread", "/ genkern")
    return Table((*columns, "Held") if held else columns, rows, labels=2)


def sections(runs: Sequence[Run], drawn: Sequence[Samples], costs: Sequence[Cost]) -> list[Section]:
    """The tables and pictures."""
    losses = {run.method.name: run.loss for run in runs}
    first, second = (run.loss.double() for run in runs)
    difference = (first - second).abs().max().item()
    network = runs[0].network
    return [
        Section(
            "DDPM: training",
            "Mean squared error of the predicted noise of held-out images, over all steps, and the "
            "median time of a whole training step, nearly all of it the network's.",
            results(runs),
            f"DDPM: losses of the last step: {first[-1]:.4f} and {second[-1]:.4f}; largest "
            f"difference at any step: {difference:.1e}",
        ),
        Section(
            "DDPM: samples",
            "Images of either method from its own network, on the same noise, and how far they "
            f"are from genkern's. Pixels are in [-1, 1]. Time is that of {ROWS * COLUMNS} images, "
            "with the network's.",
            sample_table(drawn),
        ),
        Section(
            "Training step: outside the network",
            "Noising, loss and its gradient, with noise drawn in the step; medians of alternating "
            "calls. Held: what the step holds in memory while the network runs, beyond the images "
            "and the network's input: the noise, or its key.",
            cost_table(costs, "training step"),
        ),
        Section(
            "DDPM sampling step: outside the network",
            "From the prediction at one step to the next x, estimate of x0 clipped, noise drawn.",
            cost_table(costs, "DDPM step"),
        ),
        Section(
            "DDIM sampling step: outside the network",
            "The same without noise.",
            cost_table(costs, "DDIM step"),
        ),
        Section(
            "Loss of the diffusion model",
            "The two runs, on the same noise, over each other; below, how far apart they are.",
            Picture("ddpm-loss", lambda: pictures.loss_curves(losses, "loss", margin=0.02)),
        ),
        Section(
            "Samples of the diffusion model",
            "The same noise in all four.",
            Picture("ddpm-samples", lambda: sample_grids(drawn)),
        ),
        Section(
            "From noise to data",
            "Three images on their way through DDPM's steps.",
            Picture("ddpm-strip", lambda: strip(drawn[0], network)),
        ),
    ]


def run(digits: Digits, seed: int, quick: bool) -> Part:
    """Trains with both methods, draws from both, and measures."""
    runs = [train(method, digits, 1 if quick else 70, seed) for method in METHODS]
    ddpm_steps, ddim_steps = (50, 10) if quick else (T, DDIM_STEPS)
    drawn = [
        draw_samples(run, sampler, steps, seed)
        for sampler, steps in (("ddpm", ddpm_steps), ("ddim", ddim_steps))
        for run in runs
    ]
    shapes = SHAPES[:1] if quick else SHAPES
    costs = compare(shapes, seconds_each=0.1 if quick else 1.0)
    size = sum(p.numel() for p in runs[0].network.parameters())
    return Part(
        "A diffusion model",
        f"A U-Net of {size:,} parameters, trained {len(runs[0].loss)} steps twice from the same "
        "weights, on the same batches and noise: with genkern, and with the plain PyTorch lines "
        "that it replaces.",
        sections(runs, drawn, costs),
    )
