"""Checks of user input, with one form of message: `<function>: <expected>, got <what came>`."""

from __future__ import annotations

import functools
import math
import numbers
import operator
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from genkern._ops.elements import REDUCTIONS

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# The least positive float, and the greatest finite one.
LEAST, GREATEST = math.ulp(0.0), sys.float_info.max


def one_of(function: str, name: str, word: object, words: Collection[str]) -> None:
    """Raises unless `word` is one of `words`."""
    if not isinstance(word, str) or word not in words:
        raise ValueError(f"{function}: {name} must be one of {', '.join(words)}, got {word!r}")


def reduction_code(function: str, reduction: str) -> int:
    """The operators' number for a reduction's word."""
    one_of(function, "reduction", reduction, REDUCTIONS)
    return REDUCTIONS[reduction]


def _is_number(x: object) -> bool:
    """Also one of NumPy's, but no bool; slow."""
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def number(
    function: str,
    name: str,
    x: Any,
    low: float = -GREATEST,
    high: float = GREATEST,
    expected: str = "finite",
) -> float:
    """x as a float; raises unless it is a number, no tensor, in [low, high]."""
    if type(x) is not float and type(x) is not int and not _is_number(x):
        raise TypeError(f"{function}: {name} must be a number, got {type(x).__name__}")
    if not low <= x <= high:
        raise ValueError(f"{function}: {name} must be {expected}, got {x}")
    return float(x)


def two_numbers(function: str, name: str, x: Any, expected: str) -> tuple[float, float]:
    """The two numbers of a tuple or list; raises unless it is one."""
    if not isinstance(x, (tuple, list)):
        raise TypeError(f"{function}: {name} must be {expected}, got {type(x).__name__}")
    if len(x) != 2:
        raise ValueError(f"{function}: {name} must be {expected}, got {x}")
    first, second = x
    if type(first) is type(second) is float:
        return first, second
    if not (_is_number(first) and _is_number(second)):
        raise TypeError(f"{function}: {name} must be {expected} of numbers, got {x}")
    return float(first), float(second)


def _index(x: Any) -> int | None:
    if isinstance(x, bool):
        return None
    try:
        return operator.index(x)
    except TypeError:
        return None


def integer(
    function: str,
    name: str,
    x: Any,
    low: int | None = None,
    high: int | None = None,
    expected: str = "",
) -> int:
    """x as an int; raises unless it is an integer in [low, high], of any type but bool."""
    found = x if type(x) is int or isinstance(x, torch.SymInt) else _index(x)
    if found is None:
        raise TypeError(f"{function}: {name} must be an integer, got {type(x).__name__}")
    if (low is not None and found < low) or (high is not None and found > high):
        raise ValueError(f"{function}: {name} must be {expected or f'at least {low}'}, got {found}")
    return found  # type: ignore[return-value]


def sizes(function: str, name: str, shape: Any, expected: str) -> list[int]:
    """A shape as a list; raises unless it is a sequence of integers, none negative."""
    try:
        shape = tuple(shape)
        for n in shape:
            if type(n) is not int or n < 0:
                break
        else:  # the common case, fast
            return list(shape)
        found = [integer(function, name, n) for n in shape]
    except TypeError:
        raise TypeError(f"{function}: {name} must be a sequence of integers, got {shape}") from None
    if min(found) < 0:
        raise ValueError(f"{function}: {name} must be {expected}, got {shape}")
    return found


def generator(function: str, generator: object) -> None:
    """Raises unless it is a torch.Generator."""
    if not isinstance(generator, torch.Generator):
        got = type(generator).__name__
        raise TypeError(f"{function}: generator must be a torch.Generator, got {got}")


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


def key_words(function: str, key: object, shape: Sequence[int] | None = None) -> None:
    """Raises unless key is a uint64 or int64 tensor (2,) or (B, 2), B as in the data's shape."""
    if not isinstance(key, Tensor):
        raise TypeError(f"{function}: key must be a tensor, got {type(key).__name__}")
    if key.dtype not in (torch.uint64, torch.int64):
        raise TypeError(f"{function}: key must be uint64 or int64, got {key.dtype}")
    if key.dim() not in (1, 2) or key.shape[-1] != 2:
        raise ValueError(f"{function}: key must have shape (2,) or (B, 2), got {tuple(key.shape)}")
    if key.dim() == 2 and shape is not None and key.shape[:1] != tuple(shape[:1]):
        expected = f"({shape[0]}, 2)" if shape else "(2,) where the data has no dimension"
        raise ValueError(
            f"{function}: keys, one a sample, must have shape {expected}, got {tuple(key.shape)}"
        )


def promoted(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype torch promotes to: 0-d tensors count only among themselves."""
    tensors = tuple(tensors)
    ranked = [t for t in tensors if t.dim()] or tensors
    return functools.reduce(torch.promote_types, (t.dtype for t in ranked))


def own_memory(function: str, name: str, x: Tensor) -> None:
    """Raises unless every element of a tensor to be written has memory of its own.

    Sufficient, not exact: where the elements of two dimensions interleave, x is refused too.
    """
    if x.is_contiguous():
        return
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                raise ValueError(
                    f"{function}: {name} must have memory for each element,"
                    f" got shape {tuple(x.shape)} with strides {x.stride()}"
                )
            reach += (size - 1) * stride


def share_memory(x: Tensor, out: Tensor) -> bool:
    """Whether an element of x may lie in `out`, which has x's shape and its own memory.

    Exact where the strides are equal, as those of a `chunk`'s parts are; otherwise whether the
    ranges of their addresses overlap.
    """
    begin, end = _memory(x)
    first, last = _memory(out)
    if end <= first or last <= begin:
        return False
    steps = [(s, n) for s, n in zip(out.stride(), out.shape, strict=True) if n > 1]
    if steps != [(s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1]:
        return True
    # A sum of strides, each taken up to size - 1 times forwards or backwards, that leads from one
    # tensor's first byte to less than an element from the other's.
    width = out.element_size()
    return _reached(begin - first, width, sorted(((s * width, n - 1) for s, n in steps)))


def _reached(distance: int, width: int, steps: list[tuple[int, int]]) -> bool:
    if not steps:
        return abs(distance) < width
    *others, (stride, count) = steps
    reach = width - 1 + sum(s * n for s, n in others)
    fewest = max(-count, -((reach - distance) // stride))
    most = min(count, (reach + distance) // stride)
    return any(_reached(distance - k * stride, width, others) for k in range(fewest, most + 1))


def _memory(x: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the one after its last."""
    first = x.data_ptr()
    if x.numel() == 0:
        return first, first
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return first, first + (last + 1) * x.element_size()
