"""The streams of noise: exact values, and what plain PyTorch makes of the same bits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genkern.testing._common import PI, REAL, Array, Expected, Shape, arithmetic


def philox4x32(counter: Sequence[Array], key: Sequence[Array]) -> tuple[Array, ...]:
    """Philox4x32-10, from the paper.

    Args:
        counter: Four words, uint64 arrays below 2^32.
        key: Two words, likewise.

    Returns:
        The block's four words.
    """
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        a = np.uint64(0xD2511F53) * x0
        b = np.uint64(0xCD9E8D57) * x2
        x0, x1, x2, x3 = (b >> half) ^ x1 ^ k0, b & low, (a >> half) ^ x3 ^ k1, a & low
        k0 = (k0 + np.uint64(0x9E3779B9)) & low
        k1 = (k1 + np.uint64(0xBB67AE85)) & low
    return x0, x1, x2, x3


def key_words(key: Tensor) -> Array:
    words: Array = key.cpu().contiguous().view(torch.int64).numpy().view(np.uint64)
    return words


def _blocks(key: Array, index: Array) -> Array:
    """Words (..., 4) of the blocks `index` of the keys (..., 2)."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    seed, n = key[..., 0], key[..., 1] + index.astype(np.uint64)
    seed, n = np.broadcast_arrays(seed, n)
    zero = np.zeros_like(n)
    words = philox4x32((n & low, n >> half, zero, zero), (seed & low, seed >> half))
    return np.stack(words, axis=-1)


def stream_words(key: Array, length: int, per_block: int) -> Array:
    """The words of a stream of `length` elements, (blocks, 4) or (B, blocks, 4)."""
    index = np.arange(-(-length // per_block), dtype=np.uint64)
    return _blocks(key[..., None, :], index)


def _pairs64(words: Array) -> Array:
    """64-bit words (..., 2)."""
    pairs: Array = (words[..., 0::2] << np.uint64(32)) | words[..., 1::2]
    return pairs


def _box_muller(log_u: Array, v: Array) -> Array:
    r, angle = np.sqrt(-2 * log_u), 2 * PI * v
    return np.stack((r * np.cos(angle), r * np.sin(angle)), axis=-1)


def _unit32(words: Array) -> Array:
    """U and v of float32 normals; these are float32 numbers by the stream's definition."""
    x: Array = words.astype(np.float32).astype(np.float64)
    # Exact in float64 (33 bits at most), so the rounding to float32 is the only one.
    uv: Array = (x * 2.0**-32 + 2.0**-33).astype(np.float32)
    return uv


def _normal32(words: Array) -> Array:
    uv = _unit32(words).astype(REAL)
    return _box_muller(np.log(uv[..., 0::2]), uv[..., 1::2])


def _normal64(words: Array) -> Array:
    x, y = (p.astype(np.uint64) for p in np.moveaxis(_pairs64(words), -1, 0))
    upper = x >= np.uint64(2**63)
    # u = (x + 1/2) 2^-64; 1 - u = (~x + 1/2) 2^-64 keeps its digits where u is near 1.
    small = np.where(upper, ~x, x).astype(REAL)
    small = (small + REAL(0.5)) * REAL(2) ** -64
    log_u = np.where(upper, np.log1p(-small), np.log(small))
    return _box_muller(log_u, (y.astype(REAL) + REAL(0.5)) * REAL(2) ** -64)


def _stream(key: Array, shape: Shape, wide: bool, normal: bool) -> Array:
    """Numbers of a stream, exactly; `wide` for the stream of float64."""
    per_sample = key.ndim == 2
    length = math.prod(shape[1:] if per_sample else shape)
    words = stream_words(key, length, 2 if wide else 4)
    if normal:
        values = _normal64(words) if wide else _normal32(words)
    elif wide:
        values = (_pairs64(words) & np.uint64(2**53 - 1)).astype(REAL) * REAL(2) ** -53
    else:
        values = (words & np.uint64(2**24 - 1)).astype(REAL) * REAL(2) ** -24
    flat = values.reshape(*words.shape[:-2], math.prod(values.shape[words.ndim - 2 :]))
    return flat[..., :length].reshape(tuple(shape))


def standard_normal(key: Tensor, shape: Shape, dtype: torch.dtype) -> Array:
    """The exact normal numbers of a key's stream, before any rounding.

    Args:
        key: uint64 or int64, (2,) or (B, 2).
        shape: Sizes.
        dtype: Which stream: float64 has its own, the others share one.

    Returns:
        A longdouble array.
    """
    words = key_words(key)
    return _cached_normal(words.tobytes(), words.shape, tuple(shape), dtype == torch.float64)


@functools.lru_cache(maxsize=64)
def _cached_normal(key: bytes, key_shape: Shape, shape: Shape, wide: bool) -> Array:
    words = np.frombuffer(key, dtype=np.uint64).reshape(key_shape)
    return _stream(words, shape, wide, normal=True)


def _normal(key: Tensor, shape: Shape, dtype: torch.dtype) -> list[Expected | None]:
    value = standard_normal(key, shape, dtype)
    return [Expected(value, np.maximum(np.abs(value), 1))]


def _uniform(key: Tensor, shape: Shape, dtype: torch.dtype) -> list[Expected | None]:
    value = _stream(key_words(key), shape, dtype == torch.float64, normal=False)
    return [Expected(value, np.zeros_like(value))]


def _children(key: Array, index: Array) -> list[Expected | None]:
    w = _blocks(key, index)
    half = np.uint64(32)
    child = np.stack((w[..., 0] | w[..., 1] << half, w[..., 2] | w[..., 3] << half), axis=-1)
    return [Expected(child, np.zeros(child.shape))]


def _split(key: Tensor, num: int) -> list[Expected | None]:
    words = key_words(key)
    index = np.arange(num, dtype=np.uint64)
    return _children(words, index if words.ndim == 1 else index[:, None])


def _fold_in(key: Tensor, data: Tensor) -> list[Expected | None]:
    return _children(key_words(key), data.cpu().numpy().view(np.uint64))


def eager_normal(key: Array, shape: Shape, dtype: torch.dtype) -> Tensor:
    wide = dtype == torch.float64
    length = math.prod(shape[1:] if key.ndim == 2 else shape)
    words = stream_words(key, length, 2 if wide else 4)
    uv = (_pairs64(words).astype(np.float64) + 0.5) * 2.0**-64 if wide else _unit32(words)
    u, v = torch.from_numpy(uv[..., 0::2].copy()), torch.from_numpy(uv[..., 1::2].copy())
    r, angle = torch.sqrt(-2.0 * torch.log(u)), 2.0 * math.pi * v
    values = torch.stack((r * torch.cos(angle), r * torch.sin(angle)), dim=-1)
    flat = values.flatten(words.ndim - 2)
    return flat[..., :length].reshape(list(shape))


EXPECTED: dict[str, Callable[..., list[Expected | None]]] = {
    "normal": _normal,
    "uniform": _uniform,
    "split": _split,
    "fold_in": _fold_in,
}

# The integer operators and `uniform` are exact.
EAGER: dict[str, Callable[..., Any]] = {
    "normal": lambda key, shape, dtype: eager_normal(key_words(key), shape, arithmetic(dtype)),
}
