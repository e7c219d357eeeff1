"""Checks of user input, with one form of message: `<function>: <expected>, got <what came>`."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from genkern._ops.elements import REDUCTIONS

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def one_of(function: str, name: str, word: object, words: Collection[str]) -> None:
    """Raises unless `word` is one of `words`."""
    if not isinstance(word, str) or word not in words:
        raise ValueError(f"{function}: {name} must be one of {', '.join(words)}, got {word!r}")


def reduction_code(function: str, reduction: str) -> int:
    """The operators' number for a reduction's word."""
    one_of(function, "reduction", reduction, REDUCTIONS)
    return REDUCTIONS[reduction]


def floating(function: str, name: str, x: object) -> None:
    """Raises unless x is a tensor of a supported floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{function}: {name} must be float32, float64, bfloat16 or float16, got {x.dtype}"
        )


def floating_dtype(function: str, dtype: object) -> None:
    """Raises unless dtype is a supported floating dtype."""
    if dtype not in FLOATING:
        raise TypeError(
            f"{function}: dtype must be float32, float64, bfloat16 or float16, got {dtype}"
        )


def same_device(function: str, name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless both tensors are on one device."""
    if x.device != other.device:
        raise ValueError(
            f"{function}: {name} and {other_name} must be on one device,"
            f" got {x.device} and {other.device}"
        )


def pair(function: str, name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raises unless both are floating tensors of one shape on one device."""
    floating(function, name, x)
    floating(function, other_name, other)
    if x.shape != other.shape:
        raise ValueError(
            f"{function}: {name} and {other_name} must have one shape,"
            f" got {tuple(x.shape)} and {tuple(other.shape)}"
        )
    same_device(function, name, x, other_name, other)


def key_words(function: str, key: object, *, batch: int | None = None) -> None:
    """Raises unless key is a uint64 or int64 tensor (2,), or (batch, 2) where batch is given."""
    if not isinstance(key, Tensor):
        raise TypeError(f"{function}: key must be a tensor, got {type(key).__name__}")
    if key.dtype not in (torch.uint64, torch.int64):
        raise TypeError(f"{function}: key must be uint64 or int64, got {key.dtype}")
    if key.dim() not in (1, 2) or key.shape[-1] != 2:
        raise ValueError(f"{function}: key must have shape (2,) or (B, 2), got {tuple(key.shape)}")
    if key.dim() == 2 and batch is not None and key.shape[0] != batch:
        raise ValueError(
            f"{function}: keys, one a sample, must have shape ({batch}, 2), got {tuple(key.shape)}"
        )


def promoted(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype torch promotes to: 0-d tensors count only among themselves."""
    tensors = tuple(tensors)
    ranked = [t for t in tensors if t.dim()] or tensors
    return functools.reduce(torch.promote_types, (t.dtype for t in ranked))
