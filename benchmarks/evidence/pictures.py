"""The report's pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import plot
from benchmarks.gpu_model import GPUS
from benchmarks.numerics.__main__ import MODERATE, merged

Results = dict[str, Any]
_OURS, _OTHER = "#0072b2", "#e69f00"


def _speed(results: Results, path: Path) -> None:
    judged = [r for r in results["records"] if r["targets"]]
    plot.save(judged or results["records"], results["environment"], str(path))


def _gpu_static(results: Results, path: Path) -> None:
    chosen = [r for r in results["records"] if r["backend"] == "cuda" and r["dtype"] == "bfloat16"]
    kernels = list(dict.fromkeys(r["kernel"] for r in chosen))
    targets = list(dict.fromkeys(r["target"] for r in chosen))
    figure, axes = plt.subplots(figsize=(9, 0.26 * len(kernels) + 1.2), layout="constrained")
    for i, target in enumerate(targets):
        roof = {r["kernel"]: r["roof"] for r in chosen if r["target"] == target}
        y = np.arange(len(kernels)) + 0.25 * (i - (len(targets) - 1) / 2)
        axes.barh(y, [100 * roof.get(k, 0) for k in kernels], 0.25, label=GPUS[target].name)
    axes.set_yticks(range(len(kernels)), [k.replace("Noise::", "") for k in kernels], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("share of the memory's speed by the model, %, bfloat16")
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
    axes.set_xlabel("worst error, float32, in ulp of the sum of the terms")
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
    "gpu_static": _gpu_static,
    "numerics": _numerics,
    "randomness": _randomness,
    "soak": _soak,
}
