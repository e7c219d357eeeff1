"""Noise from keys: the same numbers on every device, backend, thread count and batch split.

A key is a uint64 tensor `[seed, offset]`, or one such row a sample; int64 tensors with the same
bits are accepted. A key stands for one endless stream, so draw from it once and `split` it where
several streams are needed. The algorithm is Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011) in counter mode with the Box-Muller transform, laid out as in
PyTorch's stateless generator; docs/noise.md states it in full.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genkern._ops import checks
from genkern._ops import random as ops

__all__ = ["STREAM_VERSION", "fold_in", "key", "new_key", "normal", "split", "uniform"]

STREAM_VERSION = 1
"""Version of the mapping from keys to numbers. It changes only with a major release."""

_WORDS = 2**64


def key(seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """Makes a key from a seed.

    Args:
        seed: An integer in [-2^63, 2^64); negative ones stand for their two's complement.
        device: Device of the key, and of what is drawn from it.

    Returns:
        The key `[seed, 0]`, uint64 of shape (2,).

    Raises:
        TypeError: If seed is not an integer.
        ValueError: If seed is out of range.

    Example:
        >>> import genkern
        >>> genkern.random.key(42)
        tensor([42,  0], dtype=torch.uint64)
    """
    seed = checks.integer("key", "seed", seed, -(2**63), _WORDS - 1, "in [-2**63, 2**64)")
    return torch.tensor([seed % _WORDS, 0], dtype=torch.uint64, device=device)


def new_key(
    batch: int | None = None,
    *,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws a new key from PyTorch's generator, without waiting for the device.

    One `torch.randint` gives both words, so `torch.manual_seed` governs it, and activation
    checkpointing, `torch.compile` and CUDA graphs treat it as any other random draw.

    Args:
        batch: B, for B keys, one a sample; None for one key.
        device: Device of the key; the generator's by default, else PyTorch's default device.
        generator: Source of the key; the device's default generator when None. A generator of
            another device draws there and the key is copied.

    Returns:
        uint64 of shape (2,), or (B, 2).

    Raises:
        TypeError: If batch is not an integer, or generator not a torch.Generator.
        ValueError: If batch is negative.

    Example:
        >>> import torch, genkern
        >>> _ = torch.manual_seed(0)
        >>> genkern.random.new_key(3).shape
        torch.Size([3, 2])
    """
    if batch is not None:
        batch = checks.integer("new_key", "batch", batch, 0)
    if generator is not None:
        checks.generator("new_key", generator)
    return ops.new_words(batch, device, generator).view(torch.uint64)


def split(key: Tensor, num: int = 2) -> Tensor:
    """Makes `num` keys from one; draw from these and not from `key` any more.

    Child i is the first 128 bits of block i of the key's stream, so `split(key, n)[i]` equals
    `fold_in(key, i)`.

    Args:
        key: uint64 or int64, (2,) or (B, 2).
        num: Number of children.

    Returns:
        The keys, (num, 2) or (num, B, 2), of the key's dtype.

    Raises:
        TypeError: If key is not an integer tensor of 64 bits, or num not an integer.
        ValueError: If the key's shape is wrong or num is negative.

    Example:
        >>> import genkern
        >>> a, b = genkern.random.split(genkern.random.key(0))
        >>> genkern.random.normal(a, 2), genkern.random.normal(b, 2)
        (tensor([0.0611, 0.2785]), tensor([-1.0427,  1.2758]))
    """
    checks.key_words("split", key)
    return ops.split(key, checks.integer("split", "num", num, 0))


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """Makes the key of an item, such as a step or an index into a data set.

    Args:
        key: uint64 or int64, (2,) or (B, 2).
        data: An integer in [-2^63, 2^63), or an int64 tensor () or (B,). (B,) with a (2,) key
            gives one key an item.

    Returns:
        The key, (2,), or (B, 2).

    Raises:
        TypeError: If key or data is of the wrong type.
        ValueError: If the shapes are wrong, or an integer is out of range.

    Example:
        >>> import torch, genkern
        >>> indices = torch.tensor([17, 4, 256])
        >>> genkern.random.fold_in(genkern.random.key(0), indices).shape
        torch.Size([3, 2])
    """
    checks.key_words("fold_in", key)
    if not isinstance(data, Tensor):
        if type(data) is not int and (isinstance(data, bool) or not hasattr(data, "__index__")):
            got = type(data).__name__
            raise TypeError(f"fold_in: data must be an integer or a tensor, got {got}")
        data = checks.integer("fold_in", "data", data, -(2**63), 2**63 - 1, "in [-2**63, 2**63)")
        data = torch.full((), data, dtype=torch.int64, device=key.device)
    elif data.dtype != torch.int64:
        raise TypeError(f"fold_in: data must be int64, got {data.dtype}")
    if data.dim() > 1 or (key.dim() == 2 and data.dim() == 1 and len(data) != len(key)):
        raise ValueError(
            "fold_in: data must have shape () or (B,) to go with the key,"
            f" got data {tuple(data.shape)} and key {tuple(key.shape)}"
        )
    checks.same_device("fold_in", "key", key, "data", data)
    return ops.fold_in(key, data)


def _shape(function: str, key: Tensor, sizes: tuple[int | tuple[int, ...], ...]) -> list[int]:
    checks.key_words(function, key)
    given = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    shape = checks.sizes(function, "sizes", given, "at least 0")
    if key.dim() == 2 and (not shape or shape[0] != key.shape[0]):
        raise ValueError(
            f"{function}: with a key of shape {tuple(key.shape)} the first size must be"
            f" {key.shape[0]}, got {tuple(shape)}"
        )
    return shape


def _dtype(function: str, dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    checks.floating_dtype(function, dtype)
    return dtype


def normal(key: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    r"""Draws standard normal numbers from a key's stream.

    .. math:: r = \sqrt{-2 \ln u}, \qquad (z_0, z_1) = (r \cos 2 \pi v, r \sin 2 \pi v)

    Box and Muller, Ann. Math. Stat. 29 (1958), p. 610, on the words of Philox4x32-10.

    Args:
        key: uint64 or int64, (2,) or (B, 2). With (B, 2) the first size is B and each sample
            starts its own key's stream.
        shape: Sizes.
        dtype: float32, float64, bfloat16 or float16; PyTorch's default dtype when None.

    Returns:
        The numbers, on the key's device.

    Raises:
        TypeError: If the key, a size or dtype is of the wrong type.
        ValueError: If the key's or the output's shape is wrong.

    Note:
        float32 values have the same bits on every backend, instruction set and thread count, and
        lie within 4 ulp of the exact value; bfloat16 and float16 are these, rounded once. float64
        is a stream of its own, within 1e-14 of the exact value. A longer draw starts with the
        shorter one.

    Example:
        >>> import genkern
        >>> genkern.random.normal(genkern.random.key(42), 4)
        tensor([-0.9702,  0.1940, -1.2356,  1.9239])
    """
    sizes = _shape("normal", key, shape)
    return ops.normal(key, sizes, _dtype("normal", dtype))


def uniform(key: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Draws uniform numbers in [0, 1) from a key's stream.

    Args:
        key: uint64 or int64, (2,) or (B, 2). With (B, 2) the first size is B and each sample
            starts its own key's stream.
        shape: Sizes.
        dtype: float32, float64, bfloat16 or float16; PyTorch's default dtype when None.

    Returns:
        The numbers, on the key's device: the low 24 bits of a word times 2^-24 (float64: 53 bits
        times 2^-53), exactly. Rounded to bfloat16 and float16 they can reach 1.

    Raises:
        TypeError: If the key, a size or dtype is of the wrong type.
        ValueError: If the key's or the output's shape is wrong.

    Example:
        >>> import genkern
        >>> genkern.random.uniform(genkern.random.key(42), 3)
        tensor([0.9177, 0.9581, 0.7473])
    """
    sizes = _shape("uniform", key, shape)
    return ops.uniform(key, sizes, _dtype("uniform", dtype))
