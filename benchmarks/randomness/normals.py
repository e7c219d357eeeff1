"""Statistics of many normal numbers, drawn a chunk at a time, and the law that they follow exactly.

The law of float32 normals is discrete: u and v take the values that 2^32 words give. What that
changes is computed here from all of the words, so no tolerance has to cover it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from scipy import special, stats
from torch import Tensor

from benchmarks.randomness.battery import anderson_darling
from benchmarks.randomness.streams import advanced
from genkern import random

Array = npt.NDArray[np.float64]

ORDERS = 8
TAILS = (3.0, 4.0, 5.0, 5.5, 6.0, 6.25, 6.5, 6.7)
_CHUNK = 1 << 22
# Cells of width 2^-15 on [-8, 8): no cell has more than 1.3e-5 of the mass. Between two edges a
# distribution function of n draws moves by sqrt(1.3e-5 / n), so the greatest distance at the edges
# is that of Kolmogorov and Smirnov to 0.004 / sqrt(n), half a percent of its median.
_CELLS_A_UNIT = 1 << 15
_REACH = 8


def _moment(k: int) -> float:
    """Of a normal number: (k - 1)!! for an even k."""
    return 0.0 if k % 2 else float(math.prod(range(k - 1, 0, -2)))


def statistics(key: Tensor, draws: int, dtype: torch.dtype) -> dict[str, Any]:
    """Moments, Kolmogorov-Smirnov, Anderson-Darling and tails of the first numbers of a stream."""
    sums, beyond, largest = [0.0] * ORDERS, dict.fromkeys(TAILS, 0), 0.0
    counts = torch.zeros(2 * _REACH * _CELLS_A_UNIT, dtype=torch.int64)
    chunks = [min(_CHUNK, draws - first) for first in range(0, draws, _CHUNK)]
    for chunk in track(chunks, f"{str(dtype).removeprefix('torch.')} normals", transient=True):
        z = random.normal(key, chunk, dtype=dtype)
        key = advanced(key, chunk // (2 if dtype == torch.float64 else 4))
        cells = (z * _CELLS_A_UNIT).floor_().to(torch.int64).add_(_REACH * _CELLS_A_UNIT)
        counts += torch.bincount(cells.clamp_(0, len(counts) - 1), minlength=len(counts))
        far = z[z.abs() > TAILS[0]].abs()
        largest = max(largest, float(far.max())) if len(far) else largest
        for t in TAILS:
            beyond[t] += int((far > t).sum())
        wide = z.double()
        power = wide.clone()
        for k in range(ORDERS):
            sums[k] += float(power.sum())
            power *= wide
    return {
        "draws": draws,
        "moments": [_judged_moment(k + 1, s / draws, draws) for k, s in enumerate(sums)],
        **_distances(counts.numpy().astype(np.float64)),
        "tails": [_judged_tail(t, n, draws, dtype) for t, n in beyond.items()],
        "largest": {
            "value": largest,
            # That of all draws is larger.
            "p": -math.expm1(draws * math.log1p(-tail(largest, dtype))),
        },
    }


def _judged_moment(k: int, value: float, draws: int) -> dict[str, float]:
    error = math.sqrt((_moment(2 * k) - _moment(k) ** 2) / draws)
    return {
        "order": k, "expected": _moment(k), "found": value, "z": (value - _moment(k)) / error,
    }  # fmt: skip


def _distances(counts: Array) -> dict[str, Any]:
    n = counts.sum()
    edges = np.arange(1, len(counts)) / _CELLS_A_UNIT - _REACH
    below, above = special.ndtr(edges), special.ndtr(-edges)
    difference = counts.cumsum()[:-1] / n - below
    root = math.sqrt(n) * float(np.abs(difference).max())
    weighted = difference**2 / (below * above)
    square = float(n * (0.5 * (weighted[1:] + weighted[:-1]) * np.diff(below)).sum())
    return {
        "kolmogorov_smirnov": {"root_n_d": root, "p": float(stats.kstwobign.sf(root))},
        "anderson_darling": {"a2": square, "p": anderson_darling(square)},
    }


def _judged_tail(t: float, count: int, draws: int, dtype: torch.dtype) -> dict[str, float]:
    normal, law = 2.0 * float(special.ndtr(-t)), tail(t, dtype)
    mean = draws * law
    # Twice the smaller of the two sides.
    sides = stats.poisson.cdf(count, mean), stats.poisson.sf(count - 1, mean)
    return {
        "beyond": t, "normal": normal, "law": law, "expected": mean, "found": count,
        "p": min(1.0, 2.0 * float(min(sides))),
    }  # fmt: skip


# ---- the law


def tail(t: float, dtype: torch.dtype) -> float:
    """P(|z| > t) of the discrete law, z before it is rounded."""
    # |cos| and |sin| have the same law, and an eighth of a turn of either has it all. The law is a
    # mean over the angle's words; the probability for each is smooth but for its own steps.
    angle = (np.arange(1 << 20) + 0.5) * (0.5 * math.pi / (1 << 20))
    u = np.exp(-0.5 * (t / np.cos(angle)) ** 2)
    if dtype == torch.float64:
        return float(np.clip(np.ceil(u * 2.0**64 - 0.5), 0, None).mean() * 2.0**-64)
    # Below 2^-8 u is (x + 1/2) 2^-32 to the last bit but one; how many words are below u.
    return float(np.clip(np.ceil(u * 2.0**32 - 0.5), 0, None).mean() * 2.0**-32)


def _units() -> Iterator[tuple[Array, Array]]:
    """The float32 values of (x + 1/2) 2^-32, and how many of the 2^32 words give each."""

    def unit(x: Array) -> Array:
        return (x * 2.0**-32 + 2.0**-33).astype(np.float32).astype(np.float64)

    low = np.arange(1 << 24, dtype=np.float64)
    yield unit(low), np.ones_like(low)
    m = np.arange(1 << 23, dtype=np.float64)
    for octave in range(8):
        # Floats `step` apart. A word halfway between two goes to the even one.
        step = 2.0 ** (octave + 1)
        words = np.where(m % 2 == 0, step + 1, step - 1)
        words[0] = step // 2 + 1 + step // 4  # below it they are half as far apart
        yield unit((2.0**23 + m) * step), words
    yield np.array([1.0]), np.array([128.0])


def law_moments() -> list[dict[str, float]]:
    """The moments of the discrete law, from all words: of r cos 2 pi v and of r sin 2 pi v."""
    sums, words = np.zeros((3, ORDERS)), 0.0
    for u, count in track(_units(), "the law of float32 normals", total=10, transient=True):
        # From the nearest quarter turn, which is exact.
        quarter = np.rint(4.0 * u)
        theta = (4.0 * u - quarter) * (0.5 * math.pi)
        s, c = np.sin(theta), np.cos(theta)
        q = quarter.astype(int) % 4
        cosine, sine = np.choose(q, (c, -s, -c, s)), np.choose(q, (s, c, -s, -c))
        radius = np.sqrt(-2.0 * np.log(u))
        words += count.sum()
        for i, x in enumerate((radius, cosine, sine)):
            power = count.copy()
            for k in range(ORDERS):
                power *= x
                sums[i, k] += power.sum()
    if words != 2.0**32:
        raise AssertionError(f"law_moments: expected 2^32 words, got {words}")
    radius, cosine, sine = sums / words
    return [
        {"order": k + 1, "normal": _moment(k + 1), "cosine": float(r * c), "sine": float(r * s)}
        for k, (r, c, s) in enumerate(zip(radius, cosine, sine, strict=True))
    ]
