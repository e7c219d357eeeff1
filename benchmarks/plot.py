"""A picture of a run: speed over eager PyTorch and others, with floors and goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

_COLOURS = {
    "eager": "#0072b2",
    "compile": "#e69f00",
    "diffusers": "#d55e00",
    "roof": "#009e73",
    "limit": "#cc79a7",
}
_ROW = 0.72


def _bars(
    axes: Any, records: Sequence[dict[str, Any]], against: Sequence[str], start: float
) -> None:
    height = _ROW / len(against)
    for row, record in enumerate(records):
        targets = {t["against"]: t for t in record["targets"]}
        for i, name in enumerate(against):
            y = row + (i - (len(against) - 1) / 2) * height
            ratio = record["ratios"].get(name)
            if ratio is None:
                continue
            axes.barh(y, ratio - start, height, left=start, color=_COLOURS[name])
            side = 1 if ratio >= start else -1
            axes.annotate(
                f"{ratio:.2g}",
                (ratio, y),
                (3 * side, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=7,
            )
            if name in targets:
                ends = (y - height / 2, y + height / 2)
                axes.vlines(targets[name]["floor"], *ends, color="black", lw=1.6)
                axes.vlines(targets[name]["goal"], *ends, color="black", lw=1.2, ls=":")


def save(records: Sequence[dict[str, Any]], facts: dict[str, Any], path: str) -> None:
    """Writes the picture of the cases that were timed to a PNG file."""
    shown = [r for r in records if r["times"]]
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(14, 1.8 + 0.36 * max(len(shown), 4)),
        width_ratios=(3, 1),
        sharey=True,
        layout="constrained",
    )
    # From 1: a bar's side says who is faster.
    _bars(left, shown, ("eager", "compile", "diffusers"), start=1.0)
    _bars(right, shown, ("roof", "limit"), start=0.0)
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.axvline(1.0, color="gray", lw=0.8)
    left.set_xlabel("times faster (log scale)")
    left.margins(x=0.08)
    right.margins(x=0.2)
    right.axvline(1.0, color="gray", lw=0.8)
    right.set_xlabel("fraction of the speed limit")
    left.set_yticks(range(len(shown)), [r["case"] for r in shown], fontsize=8)
    left.set_ylim(len(shown) - 0.4, -0.6)
    handles: list[Any] = [Patch(color=c) for c in _COLOURS.values()]
    handles += [Line2D([], [], color="black"), Line2D([], [], color="black", ls=":")]
    names = [
        "over eager PyTorch", "over torch.compile", "over diffusers",
        "of the memory's speed", "of the slower of memory and noise", "floor", "goal",
    ]  # fmt: skip
    figure.legend(handles, names, loc="outside lower center", ncols=7, frameon=False)
    figure.suptitle(
        f"genkern {facts['genkern']}, torch {facts['torch']}, {facts['cpu']},"
        f" {facts['instruction set']}, {facts['threads']} threads",
        x=0.01,
        ha="left",
        fontsize=8,
    )
    figure.savefig(path, dpi=140)
    plt.close(figure)
