"""The ten tests of SmallCrush: the laws of the counts that battery.cpp makes.

Each statistic becomes the probability, if the words are random, of a value at least as far up. A
table of counts is judged by Pearson's chi-square, after its rare classes were merged.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Array = npt.NDArray[np.float64]

_SOURCE = Path(__file__).with_name("battery.cpp")
_FLAGS = ("-O3", "-std=c++17")
# The fewest that a class of a chi-square test should expect (Knuth, vol. 2, 3.3.1, asks for 5).
_FEWEST = 10.0


def compiler() -> list[str] | None:
    """The C++ compiler's command, or None."""
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    return command if shutil.which(command[0]) else None


def build(folder: Path) -> Path:
    """Compiles the battery."""
    command = compiler()
    if command is None:
        raise RuntimeError("battery: a C++ compiler is needed, found neither CXX nor c++")
    program = folder / "battery"
    subprocess.run([*command, *_FLAGS, str(_SOURCE), "-o", str(program)], check=True)
    return program


def feed(command: list[str], words: Iterable[npt.NDArray[np.uint32]]) -> str:
    """What a program prints that reads as many words as it wants."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            for chunk in words:
                process.stdin.write(chunk.tobytes())
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if process.wait():
            raise RuntimeError(f"{command[0]} failed with exit code {process.returncode}")
        out.seek(0)
        return out.read()


def anderson_darling(statistic: float) -> float:
    """The probability of a larger A^2, for many values.

    Marsaglia and Marsaglia, "Evaluating the Anderson-Darling distribution", J. Stat. Softw. 9
    (2004): within 2e-6.
    """
    z = statistic
    if z < 2.0:
        p = np.polynomial.Polynomial(
            [2.00012, 0.247105, -0.0649821, 0.0347962, -0.011672, 0.00168691]
        )
        return float(1.0 - np.exp(-1.2337141 / z) / np.sqrt(z) * p(z))
    q = np.polynomial.Polynomial([1.0776, -2.30695, 0.43424, -0.082433, 0.008056, -0.0003146])
    return float(-np.expm1(-np.exp(q(z))))


def _chi_square(counts: Array, law: Array) -> float:
    expected = law * counts.sum()
    rare = expected < _FEWEST
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < _FEWEST:
        smallest = int(expected[:-1].argmin())
        for values in (observed, expected):
            values[smallest] += values[-1]
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def _poisson(count: float, mean: float) -> float:
    return float(stats.poisson.sf(count - 1, mean))


def _choose(n: Array | int, k: Array | int) -> Array:
    """Logarithms of binomial coefficients; -inf where there is none."""
    n, k = np.broadcast_arrays(np.asarray(n, float), np.asarray(k, float))
    inside = (k >= 0) & (k <= n)
    n, k = np.where(inside, n, 0), np.where(inside, k, 0)
    value = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return np.where(inside, value, -np.inf)


def _distinct(values: int, draws: int) -> Array:
    """Rows: the probabilities of 0, 1, ... different values after so many draws."""
    p = np.zeros((draws + 1, values + 1))
    p[0, 0] = 1.0
    seen = np.arange(values + 1) / values
    for n in range(draws):
        p[n + 1] = p[n] * seen
        p[n + 1, 1:] += p[n, :-1] * (1.0 - seen[:-1])
    return p


def _gap_law(classes: int) -> Array:
    law = np.asarray(stats.geom.pmf(np.arange(1, classes + 1), 1.0 / 256.0))
    law[-1] = 1.0 - law[:-1].sum()
    return law


def _coupon_law(classes: int) -> Array:
    done = _distinct(16, classes)[:, 16]
    law = np.diff(done, prepend=0.0)[:classes]
    law[-1] = 1.0 - law[:-1].sum()
    return law


def _rank_law(n: int) -> Array:
    def log_probability(r: int) -> float:
        i = np.arange(r)
        factors = 2.0 * np.log1p(-(2.0 ** (i - n))) - np.log1p(-(2.0 ** (i - r)))
        return float(-((n - r) ** 2) * np.log(2.0) + factors.sum())

    return np.exp([log_probability(r) for r in range(n + 1)])


def walk_laws(steps: int) -> dict[str, Array]:
    """The laws of a symmetric walk of an even number of steps: Feller, vol. 1, chapter III."""
    n = np.arange(steps + 1)
    log2 = np.log(2.0)
    half = n // 2

    def to_zero(m: Array) -> Array:
        return np.exp(_choose(m, m // 2) - m * log2)

    above = np.where(n % 2 == 0, to_zero(2 * half) * to_zero(steps - 2 * half), 0.0)
    return {
        "walk_ups": np.exp(_choose(steps, n) - steps * log2),
        "walk_maximum": np.exp(_choose(steps, (steps + n + 1) // 2) - steps * log2),
        "walk_above": above,
        "walk_returns": np.exp(_choose(steps - n, steps // 2) - (steps - n) * log2),
        "walk_sign_changes": np.exp(_choose(steps - 1, steps // 2 + n) - (steps - 2) * log2),
    }


def _probability(name: str, counts: Array, scale: int) -> float:
    if name == "birthday_spacings":
        return _poisson(counts[0], scale * 5e6**3 / (4.0 * 2.0**60))
    if name == "collision":
        n, k = 5e6, 2.0**32
        return _poisson(counts[0], scale * (n + k * np.expm1(n * np.log1p(-1.0 / k))))
    if name == "max_of_t_anderson_darling":
        return anderson_darling(counts[0])
    weights = stats.binom.pmf(np.arange(301), 300, 0.5)
    laws = walk_laws(150) | {
        "gap": _gap_law(len(counts)),
        "poker": _distinct(64, 64)[64],
        "coupon_collector": _coupon_law(len(counts)),
        "max_of_t": np.full(len(counts), 1.0 / len(counts)),
        "weight_distribution": stats.binom.pmf(np.arange(257), 256, 0.125),
        "matrix_rank": _rank_law(60),
        "hamming_independence": np.outer(weights, weights).ravel(),
    }
    return _chi_square(counts, laws[name])


def run(program: Path, words: Iterable[npt.NDArray[np.uint32]], scale: int = 1) -> dict[str, float]:
    """The probability of each of the fifteen statistics, on `scale` times SmallCrush's samples."""
    text = feed([str(program), str(scale)], words)
    lines = (line.split() for line in text.splitlines())
    return {name: _probability(name, np.array(counts, float), scale) for name, *counts in lines}
