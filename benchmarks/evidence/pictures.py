"""The report's pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks import plot
from benchmarks.gpu_model import GPUS
from benchmarks.numerics.__main__ import MODERATE, merged

Results = dict[str, Any]
_OURS, _OTHER = "#0072b2", "#e69f00"


def _speed(results: Results, path: Path) -> None:
    """The cases with floors, and those in which another is faster."""
    others = ("eager", "compile", "diffusers")
    shown = [
        r for r in results["records"]
        if r["targets"] or any(r["ratios"].get(name, 1.0) < 1.0 for name in others)
    ]  # fmt: skip
    plot.save(shown or results["records"], results["environment"], str(path))


def _dots(axes: Any, values: dict[str, float], names: list[str], label: str, to: float) -> None:
    """A column of ratios; those below 1 in another colour."""
    y = [names.index(name) for name in values]
    colours = [_OURS if value >= 1 else _OTHER for value in values.values()]
    axes.axvline(1.0, color="gray", lw=0.8)
    axes.axvline(to, color="gray", lw=0.8, ls=":")
    axes.hlines(y, 1.0, list(values.values()), color="lightgray", lw=1.5)
    axes.scatter(list(values.values()), y, c=colours, s=16, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7)


def _profile(results: Results, path: Path) -> None:
    found = {name: part["found"] for name, part in results.items() if "found" in part}
    columns: list[tuple[dict[str, float], str, float]] = []
    if "skipped" not in found["vectorised"]:
        ratios = {
            name: by["float32"]["compiler"] / by["float32"]["explicit"]
            for name, by in found["vectorised"]["operators"].items()
        }
        columns.append((ratios, "AVX2, over the compiler's vectors", 1.5))
    one = {n: t["eager"] / t["genkern"] for n, t in found["latency"]["one element"].items()}
    columns.append((one, "one element, over eager PyTorch", 1.0))
    most = max(next(iter(found["scaling"].values())), key=int)
    scaling = {name: t["1"] / t[most] for name, t in found["scaling"].items()}
    columns.append((scaling, f"1M elements, {most} threads over one", 1.7))
    names = list(dict.fromkeys(name for values, _, _ in columns for name in values))
    figure, axes = plt.subplots(
        1, len(columns), figsize=(11, 0.17 * len(names) + 1.2), sharey=True, layout="constrained"
    )
    for axis, (values, label, to) in zip(axes, columns, strict=True):
        _dots(axis, values, names, label, to)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _gpu_static(results: Results, path: Path) -> None:
    """Of each backend the kernels below the memory's speed on some GPU, in bfloat16."""
    chosen = [r for r in results["records"] if r["dtype"] == "bfloat16"]
    below = {(r["backend"], r["kernel"]) for r in chosen if r["roof"] < 0.995}
    names = [n for n in dict.fromkeys((r["backend"], r["kernel"]) for r in chosen) if n in below]
    targets = [t for t in GPUS if any(r["target"] == t for r in chosen)]
    figure, axes = plt.subplots(figsize=(9, 0.24 * len(names) + 1.4), layout="constrained")
    for i, target in enumerate(targets):
        points = [
            (names.index(n), 100 * r["roof"])
            for r in chosen
            if r["target"] == target and (n := (r["backend"], r["kernel"])) in below
        ]
        if points:
            y, x = zip(*points, strict=True)
            axes.plot(x, y, "os^Dv"[i % 5], ms=5, label=GPUS[target].name, alpha=0.8)
    labels = [f"{b}: {k.replace('_kernel', '').replace('Noise::', '')}" for b, k in names]
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", color="lightgray", lw=0.6)
    axes.set_xlim(0, 103)
    axes.set_xlabel(
        "share of the memory's speed by the model, %, bfloat16; the other kernels reach it"
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _numerics(results: Results, path: Path) -> None:
    rows = [r for r in results["errors"] if r["dtype"] == "float32" and r["sweep"] in MODERATE]
    points = {}
    for op in dict.fromkeys(r["op"] for r in rows):
        own = [r for r in rows if r["op"] == op]
        ours, theirs = merged(own, "genkern"), merged(own, "eager")
        if ours and theirs:
            points[op] = ours["worst_of_terms"], theirs["worst_of_terms"]
    figure, axes = plt.subplots(figsize=(8, 0.24 * len(points) + 1.2), layout="constrained")
    y = np.arange(len(points))
    both = np.maximum(np.array(list(points.values())), 0.05)
    axes.hlines(y, both.min(axis=1), both.max(axis=1), color="lightgray", lw=1.5)
    axes.plot(both[:, 1], y, "o", color=_OTHER, label="eager PyTorch")
    axes.plot(both[:, 0], y, "o", color=_OURS, label="genkern")
    axes.set_yticks(y, list(points), fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("worst error, float32, in ulp of the sum of the terms (at least 0.05)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _randomness(results: Results, path: Path) -> None:
    p = np.sort([v for s in results["battery"]["streams"].values() for v in s.values()])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    n = len(p)
    left.plot([0, 1], [0, 1], color="gray", lw=0.8)
    left.plot((np.arange(n) + 0.5) / n, p, ".", color=_OURS)
    left.set_xlabel("expected of uniform p values")
    left.set_ylabel("p values of the battery, in order")
    tails = [t for t in results["normals"]["float32"]["tails"] if t["expected"] > 0]
    beyond = [t["beyond"] for t in tails]
    right.plot(beyond, [t["expected"] for t in tails], color="gray", lw=0.8, label="exact law")
    found = [(t["beyond"], t["found"]) for t in tails if t["found"]]
    right.plot(*zip(*found, strict=True), "o", color=_OURS, label="found")
    right.set_yscale("log")
    draws = results["normals"]["float32"]["draws"]
    right.set_xlabel(f"numbers beyond, of {draws:.0e} float32 normals")
    right.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _soak(results: Results, path: Path) -> None:
    resident = np.array(results["resident kB"]) / 1e3
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    axes.plot(np.linspace(0, results["minutes"], len(resident)), resident, color=_OURS)
    axes.set_ylim(0, 1.2 * resident.max())
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("resident memory, MB")
    figure.savefig(path, dpi=110)
    plt.close(figure)


PICTURES: dict[str, Callable[[Results, Path], None]] = {
    "speed": _speed,
    "profile": _profile,
    "gpu_static": _gpu_static,
    "numerics": _numerics,
    "randomness": _randomness,
    "soak": _soak,
}
