"""Whether numbers that ought to be independent are: products of Hermite polynomials.

For independent normal x and y, He_j(x) He_k(y) / sqrt(j! k!) has mean 0 and variance 1, whatever
j, k >= 1, and two such products that differ in an index are uncorrelated. So each mean of n of
them, times sqrt(n), is a standard normal number if n is large, and their squares add to a
chi-square. He_3 has a fourth moment of 93 (He_4: 639), so a product's is at most 93^2 and its
mean's within 93^2 / n of 3.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from genkern import random

_ORDERS = 3
_LAGS = 4
_KEY_ORDERS = ((1, 1), (2, 2), (1, 2))


def _hermite(z: Tensor) -> Tensor:
    """He_1 to He_3 of z, each with variance 1, in a new first dimension."""
    values = [torch.ones_like(z), z]
    for k in range(1, _ORDERS):
        values.append(z * values[k] - k * values[k - 1])
    return torch.stack([v / math.sqrt(math.factorial(k)) for k, v in enumerate(values)][1:])


def _judged(z: npt.NDArray[np.float64], draws: int) -> dict[str, Any]:
    largest = float(np.abs(z).max())
    return {
        "draws": draws,
        "products": z.size,
        "p": float(stats.chi2.sf((z**2).sum(), z.size)),
        "largest": largest,
        # That the largest of so many is larger.
        "largest_p": float(-np.expm1(z.size * np.log1p(-2.0 * stats.norm.sf(largest)))),
    }


def lanes(key: Tensor, blocks: int) -> dict[str, Any]:
    """Of the four lanes of a stream's blocks, and of blocks up to three apart."""
    h = _hermite(random.normal(key, blocks, 4).double())
    n = blocks - _LAGS + 1
    found = []
    for lag in range(_LAGS):
        a, b = (h[:, start : start + n].permute(0, 2, 1).flatten(0, 1) for start in (0, lag))
        means = (a @ b.T).reshape(_ORDERS, 4, _ORDERS, 4) / math.sqrt(n)
        pairs = [(i, j) for i, j in itertools.product(range(4), repeat=2) if lag or i < j]
        found += [means[:, i, :, j].flatten() for i, j in pairs]
    return _judged(torch.cat(found).numpy(), n)


def rows(z: Tensor) -> dict[str, Any]:
    """Of each pair of rows, the numbers at the same place."""
    h = _hermite(z.double())
    n = z.shape[1]
    apart = ~torch.eye(len(z), dtype=torch.bool)
    above = apart.triu()
    found = [
        ((h[j - 1] @ h[k - 1].T) / math.sqrt(n))[above if j == k else apart] for j, k in _KEY_ORDERS
    ]
    return _judged(torch.cat(found).numpy(), n)


def _chain(key: Tensor, length: int) -> Tensor:
    keys = [random.fold_in(key, 0)]
    while len(keys) < length:
        keys.append(random.fold_in(keys[-1], 0))
    return torch.stack(keys)


def families(key: Tensor, count: int, draws: int) -> dict[str, dict[str, Any]]:
    """Of `count` keys made in each of several ways, and of samples that share a key."""
    half = count // 2
    children = random.split(key, count)
    sparse = torch.arange(count) * 1_000_003
    with_seeds = torch.stack([random.key(s) for s in range(count)])
    cousins = random.split(random.split(key, half), 2).transpose(0, 1).reshape(-1, 2)
    keys = {
        "split": children,
        "fold_in of far indices": random.fold_in(key, sparse),
        "a key's children, then their children": torch.cat((children[:half], cousins[:half])),
        "fold_in of fold_in of ...": _chain(key, count),
        "seeds 0, 1, 2, ...": with_seeds,
    }
    found = {name: rows(random.normal(k, len(k), draws)) for name, k in keys.items()}
    found["samples of one key"] = rows(random.normal(key, count, draws))
    return found
