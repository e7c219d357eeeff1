"""What the oracles and the plain PyTorch expressions of every family share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Shape = Sequence[int]

REAL = np.longdouble
NONE, MEAN, SUM, BATCHMEAN, SAMPLE = range(5)
PI = REAL(4) * np.arctan(REAL(1))


class Expected(NamedTuple):
    """One output of an operator: its exact value and the scale of its rounding errors."""

    value: Array
    scale: Array


def real(x: Tensor) -> Array:
    return x.detach().cpu().double().numpy().astype(REAL)


def expm1_minus(x: Array) -> Array:
    """exp(x) - 1 - x to full relative accuracy."""
    term = np.where(np.abs(x) < 1, x * x / 2, 0)
    total = np.zeros_like(x)
    for n in range(3, 32):  # 1 / 31! is below the epsilon of any longdouble
        total = total + term
        term = term * np.where(np.abs(x) < 1, x, 0) / n
    return np.where(np.abs(x) < 1, total, np.expm1(x) - x)


def square(x: Expected, dtype: torch.dtype) -> Expected:
    """x^2 of a sum x, whose terms come to a scale s.

    n roundings of the terms, each at most eps s / 2, move x^2 by n eps (|x| s + n eps s^2 / 4). A
    tolerance counts the n in front; the other is at most 4. Where the terms cancel it is all.
    """
    epsilon = torch.finfo(arithmetic(dtype)).eps
    return Expected(x.value**2, np.abs(x.value) * x.scale + epsilon * x.scale**2)


def reduced(value: Array, scale: Array, reduction: int) -> Expected:
    """Of n numbers in pairs, each is in log2(n) additions, which round their sum."""
    if reduction == NONE:
        return Expected(value, scale)
    batch = value.shape[0] if value.ndim else 1
    count = value.size // max(batch, 1) if reduction == SAMPLE else value.size
    scale = scale + math.ceil(math.log2(max(count, 1))) / 2 * np.abs(value)
    if reduction == SAMPLE:
        axes = tuple(range(1, value.ndim))
        sums = [a.sum(axes) if a.ndim else a[None] for a in (value, scale)]
        return Expected(*sums)
    divisor = {MEAN: value.size, SUM: 1, BATCHMEAN: batch}[reduction]
    return Expected(np.divide(value.sum(), REAL(divisor)), np.divide(scale.sum(), REAL(divisor)))


def spread(grad: Tensor, shape: Shape, reduction: int) -> Array:
    """The upstream gradient of the elements."""
    g = real(grad)
    batch = shape[0] if shape else 1
    if reduction == SAMPLE:
        g = g.reshape(batch, *[1] * (len(shape) - 1)) if shape else g[0]
    divisor = {MEAN: math.prod(shape), BATCHMEAN: batch}.get(reduction, 1)
    return np.broadcast_to(np.divide(g, REAL(divisor)), tuple(shape))


def asked(values: list[Array], scales: list[Array], mask: int) -> list[Expected | None]:
    return [
        Expected(value, scale) if mask >> i & 1 else None
        for i, (value, scale) in enumerate(zip(values, scales, strict=True))
    ]


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def eager_reduced(x: Tensor, reduction: int) -> Tensor:
    if reduction == NONE:
        return x
    batch = x.shape[0] if x.dim() else 1
    if reduction == SAMPLE:
        return x.reshape(batch, math.prod(x.shape[1:])).sum(1)
    if reduction == MEAN:
        return x.mean()
    return x.sum() / batch if reduction == BATCHMEAN else x.sum()


def as_leaves(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


def eager_gradients(
    outputs: list[tuple[Tensor, Tensor]], leaves: list[Any]
) -> tuple[Tensor | None, ...]:
    given = [leaf for leaf in leaves if leaf is not None]
    values, upstream = zip(*outputs, strict=True)
    found = iter(torch.autograd.grad(values, given, upstream, allow_unused=True))
    return tuple(None if leaf is None else next(found) for leaf in leaves)
