"""What the references, fakes and samples of every family share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# torch's numbering (aten/src/ATen/core/Reduction.h), extended.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3, "sample": 4}
NONE, MEAN, SUM, BATCHMEAN, SAMPLE = REDUCTIONS.values()


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    return x.to(arithmetic(x.dtype))


def batch(x: Tensor) -> int:
    return x.shape[0] if x.dim() else 1


# torch.sum of one value splits long inputs among the threads; no row here is that long.
_ROW = 4096


def row_sums(x: Tensor) -> Tensor:
    """Sums of the rows of (B, n), in an order fixed by the shape."""
    while x.shape[1] > _ROW:
        padded = torch.nn.functional.pad(x, (0, -x.shape[1] % _ROW))
        x = padded.reshape(x.shape[0], padded.shape[1] // _ROW, _ROW).sum(2)
    return x.sum(1)


def reduce(x: Tensor, reduction: int, dtype: torch.dtype) -> Tensor:
    """Reduces float32 (float64) values; `none` rounds them to dtype."""
    if reduction == NONE:
        return x.to(dtype)
    if reduction == SAMPLE:
        return row_sums(x.reshape(batch(x), math.prod(x.shape[1:])))
    total = row_sums(x.reshape(1, x.numel()))[0]
    if reduction == SUM:
        return total
    return total / (x.numel() if reduction == MEAN else batch(x))


def spread(grad: Tensor, like: Tensor, reduction: int) -> Tensor:
    """The gradient of the reduced values, broadcast over the elements of `like`."""
    if reduction == NONE:
        return grad
    if reduction == SAMPLE:
        return grad.reshape(batch(like), *[1] * (like.dim() - 1)) if like.dim() else grad[0]
    if reduction == MEAN:
        return grad / like.numel()
    return grad / batch(like) if reduction == BATCHMEAN else grad


def reduced_fake(like: Tensor, reduction: int) -> Tensor:
    if reduction == NONE:
        return torch.empty_like(like)
    shape = [batch(like)] if reduction == SAMPLE else []
    return like.new_empty(shape, dtype=arithmetic(like.dtype))


def expm1_minus(x: Tensor) -> Tensor:
    """expm1(x) - x by its Taylor series near 0, where the difference cancels."""
    near = x.abs() < 0.5
    # The branch not taken gets a harmless argument: its gradient must not be 0 times infinity.
    y = torch.where(near, x, 0.0)
    series = torch.zeros_like(y)
    for n in range(17, 1, -1):
        series = series * y + 1.0 / math.factorial(n)
    far = torch.where(near, 1.0, x)
    # e^88 absorbs 88 in either precision: the bound only keeps infinity minus infinity away.
    return torch.where(near, series * y * y, torch.expm1(far) - far.clamp(max=88.0))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x); torch.sigmoid rounds differently at the end of a thread's share of x."""
    negative = x < 0.0
    up = torch.exp(torch.where(negative, x, 0.0))
    down = torch.exp(-torch.where(negative, 0.0, x))
    return torch.where(negative, up / (1.0 + up), 1.0 / (1.0 + down))


def with_layout(x: Tensor, layout: Tensor) -> Tensor:
    """x with the strides of `layout`."""
    return x if x.stride() == layout.stride() else layout.copy_(x)


def mask_of(needs: Sequence[bool]) -> int:
    return sum(1 << i for i, need in enumerate(needs) if need)


def masked_fake(
    likes: Sequence[Tensor | None], output_mask: int, other: Tensor
) -> tuple[Tensor, ...]:
    """Gradients' fakes: one like each tensor that the mask asks for, empty ones for the others."""
    return tuple(
        torch.empty_like(x) if output_mask >> i & 1 and x is not None else other.new_empty(0)
        for i, x in enumerate(likes)
    )


def masked(values: Sequence[Tensor], fakes: Sequence[Tensor], output_mask: int) -> tuple[Any, ...]:
    """The values that the mask asks for, in the layouts and dtypes of `masked_fake`."""
    return tuple(
        with_layout(v.expand(out.shape).to(out.dtype), out) if output_mask >> i & 1 else out
        for i, (v, out) in enumerate(zip(values, fakes, strict=True))
    )


def asked(grads: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))


def sample_layouts(
    device: torch.device, dtype: torch.dtype, count: int
) -> Iterator[tuple[str, list[Tensor]]]:
    """`count` tensors of one shape in each layout an operator must take."""
    generator = torch.Generator().manual_seed(0)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    yield "contiguous", [new(4, 3, 5, 7) for _ in range(count)]
    yield "large", [new(3, 5000) for _ in range(count)]
    yield "small", [new(9, 2) for _ in range(count)]
    yield (
        "channels_last",
        [new(2, 6, 4, 8).to(memory_format=torch.channels_last) for _ in range(count)],
    )
    yield "chunk", list(new(2, 4 * count, 6, 6).chunk(count, dim=1))
    yield "mixed", [new(4, 6) if i % 2 == 0 else new(6, 4).t() for i in range(count)]
    yield "strided", [new(3, 8, 10)[:, ::2, 1::3] for _ in range(count)]
    yield "expanded", [new(3, 1, 5).expand(3, 4, 5) for _ in range(count)]
    yield "5d", [new(2, 3, 2, 4, 2) for _ in range(count)]
    yield "empty", [new(0, 3) for _ in range(count)]
    yield "empty_rest", [new(3, 0) for _ in range(count)]
    yield "0d", [new() for _ in range(count)]


def upstream(out: Tensor, name: str) -> Tensor:
    """An upstream gradient: dense, or stride 0 as from `out.sum()`."""
    generator = torch.Generator().manual_seed(1)
    if name.startswith(("large", "small")):
        return torch.full((), 0.5, dtype=out.dtype, device=out.device).expand(out.shape)
    values = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return values.to(out.device, out.dtype)
