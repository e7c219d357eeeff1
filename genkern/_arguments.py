"""What the public functions of several families do with their arguments before a call."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

from genkern._ops import checks
from genkern._ops.random import new_words

NO_CLIP = (-math.inf, math.inf)


def noise_source(
    function: str,
    name: str,
    like: Tensor,
    shape: tuple[int, ...],
    key: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Checks the three ways to give noise, and returns (key, noise), one of them None."""
    key, noise = given_noise(function, name, like, shape, key, noise, generator)
    if key is None and noise is None:
        key = new_words(None, like.device, generator)
    return key, noise


def given_noise(
    function: str,
    name: str,
    like: Tensor,
    shape: tuple[int, ...],
    key: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The same without drawing a key: both may be None."""
    if (key is not None) + (noise is not None) + (generator is not None) > 1:
        named = {"key": key, "noise": noise, "generator": generator}
        given = " and ".join(word for word, value in named.items() if value is not None)
        raise ValueError(f"{function}: expected at most one of key, noise, generator, got {given}")
    if generator is not None:
        checks.generator(function, generator)
    elif noise is not None:
        checks.floating(function, "noise", noise)
        if noise.shape != shape:
            raise ValueError(
                f"{function}: noise must have shape {tuple(shape)}, got {tuple(noise.shape)}"
            )
        checks.same_device(function, "noise", noise, name, like)
    elif key is not None:
        checks.key_words(function, key, like.shape)
        checks.same_device(function, "key", key, name, like)
    return key, noise


def promoted(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors, of which the first is one, in the dtype torch promotes them to."""
    first = tensors[0].dtype  # type: ignore[union-attr]
    for t in tensors:
        if t is not None and t.dtype != first:
            break
    else:
        return tensors
    dtype = checks.promoted(t for t in tensors if t is not None)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def clip_bounds(
    function: str, clip_range: float | tuple[float, float] | None
) -> tuple[float, float]:
    """The bounds of a clip_range: c, (low, high) or None."""
    if clip_range is None:
        return NO_CLIP
    expected = "c > 0 or (low, high)"
    if isinstance(clip_range, numbers.Real):
        high = checks.number(function, "clip_range", clip_range, checks.LEAST, math.inf, expected)
        return -high, high
    low, high = checks.two_numbers(function, "clip_range", clip_range, expected)
    if not low < high:
        raise ValueError(f"{function}: clip_range must be {expected}, got {clip_range}")
    return low, high


def clips(bounds: tuple[float, float]) -> bool:
    """Whether the kernels will clamp x0: in exported programs, which have no infinity, always."""
    return bounds != NO_CLIP or torch.compiler.is_exporting()
