"""Random tensors: shapes, values and layouts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_SIZES = st.sampled_from((0, 1, 1, 2, 3, 4, 5, 8, 17))
# Several chunks, several threads, sizes that no vector divides.
_LARGE = ((1025,), (1, 2049), (2, 1031), (3, 5, 7, 11), (67, 257))
_SMALL = st.lists(_SIZES, max_size=4).map(tuple).filter(lambda shape: math.prod(shape) <= 4096)
SHAPES = st.one_of(
    _SMALL,
    _SMALL,
    _SMALL,
    st.lists(st.sampled_from((1, 2, 3)), min_size=5, max_size=7).map(tuple),
    st.sampled_from(_LARGE),
)

_SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 100.0, -100.0, 3e38, -3e38)


def _values(kind: str, x: Tensor) -> Tensor:
    if kind == "special" and x.numel():
        places = torch.arange(x.numel()).reshape(x.shape)
        special = torch.tensor(_SPECIAL, dtype=x.dtype)
        return torch.where(places % 5 == 1, special[places // 5 % len(special)], x)
    if kind == "equal":
        return torch.full_like(x, 0.75)
    return x * {"small": 0.05, "large": 6.0}.get(kind, 1.0)


VALUES = ("normal", "normal", "small", "large", "special", "equal")


def values(seed: int, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of a shape, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return _values(kind, x).to(dtype)


def _embedded(x: Tensor) -> Tensor:
    whole = torch.full([n + 3 for n in x.shape], math.nan, dtype=x.dtype)
    return whole[tuple(slice(1, 1 + n) for n in x.shape)].copy_(x)


def _stepped(x: Tensor) -> Tensor:
    return torch.full((*x.shape, 2), math.nan, dtype=x.dtype)[..., 1].copy_(x)


def _chunk(x: Tensor) -> Tensor:
    if x.dim() < 2:
        return x
    return torch.cat((torch.full_like(x, math.nan), x), 1).chunk(2, 1)[1]


def _reversed(x: Tensor) -> Tensor:
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def _expanded(x: Tensor) -> Tensor:
    """Other values: the first row for all."""
    return x[:1].expand(x.shape) if x.dim() and x.shape[0] else x


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "reversed": _reversed,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() else x,
    "embedded": _embedded,
    "stepped": _stepped,
    "chunk": _chunk,
    "offset": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    "expanded rows": _expanded,
    "expanded columns": lambda x: x[..., :1].expand(x.shape) if x.dim() and x.shape[-1] else x,
    "one number": lambda x: x.flatten()[0].expand(x.shape) if x.numel() else x,
}
