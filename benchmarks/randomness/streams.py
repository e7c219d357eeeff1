"""Streams of 32-bit words made by genkern.random, without end.

`split` returns whole blocks, so a key's children, read as 32-bit words, are its words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genkern import random

Words = npt.NDArray[np.uint32]

_BLOCKS = 1 << 18
_KEYS = 256


def advanced(key: Tensor, blocks: int) -> Tensor:
    """The key of the same stream from a later block on."""
    words = key.view(torch.int64) + torch.tensor([0, blocks])
    return words.view(torch.uint64)


def _words(blocks: Tensor) -> Words:
    """(..., 4) words of (..., 2) 64-bit words."""
    return blocks.contiguous().view(torch.int32).numpy().view(np.uint32)


def one_key(key: Tensor) -> Iterator[Words]:
    """All words of a key, in order."""
    while True:
        yield _words(random.split(key, _BLOCKS))
        key = advanced(key, _BLOCKS)


def one_lane(key: Tensor) -> Iterator[Words]:
    """The first word of each block."""
    for words in one_key(key):
        yield words[:, 0].copy()


def split_keys(key: Tensor) -> Iterator[Words]:
    """A block of each of 256 keys made by split, then the next block of each."""
    keys, step = random.split(key, _KEYS), _BLOCKS // _KEYS
    while True:
        yield _words(random.split(keys, step))
        keys = advanced(keys, step)


def fold_in_keys(key: Tensor) -> Iterator[Words]:
    """The first word of fold_in(key, 0), of fold_in(key, 1), and so on."""
    first = 0
    while True:
        children = random.fold_in(key, torch.arange(first, first + _BLOCKS))
        yield _words(random.split(children, 1))[0, :, 0].copy()
        first += _BLOCKS


def seeds(key: Tensor) -> Iterator[Words]:
    """The first word of consecutive seeds, from the key's on."""
    start = key.view(torch.int64)
    while True:
        keys = torch.stack((start[0] + torch.arange(_BLOCKS), start[1].expand(_BLOCKS)), 1)
        yield _words(random.split(keys.view(torch.uint64), 1))[0, :, 0].copy()
        start = start + torch.tensor([_BLOCKS, 0])


def _normal_words(z: Tensor, width: int) -> Tensor:
    """The first `width` bits of Phi(z)."""
    return (torch.special.ndtr(z.double()) * 2.0**width).long().clamp_(max=2**width - 1)


def normals(key: Tensor) -> Iterator[Words]:
    """Phi of float32 normals, 16 bits of each of two."""
    while True:
        halves = _normal_words(random.normal(key, _BLOCKS, 4), 16)
        yield (halves[:, 0::2] << 16 | halves[:, 1::2]).numpy().astype(np.uint32)
        key = advanced(key, _BLOCKS)


def normals64(key: Tensor) -> Iterator[Words]:
    """Phi of float64 normals, 32 bits of each."""
    while True:
        z = random.normal(key, _BLOCKS, 2, dtype=torch.float64)
        yield _normal_words(z, 32).numpy().astype(np.uint32)
        key = advanced(key, _BLOCKS)


STREAMS: dict[str, Callable[[Tensor], Iterator[Words]]] = {
    f.__name__: f for f in (one_key, one_lane, split_keys, fold_in_keys, seeds, normals, normals64)
}
