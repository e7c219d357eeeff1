"""`genkern.random`'s operators in Triton."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from genkern._triton.launch import TILE, Tiles, blocks_together, launch
from genkern._triton.philox import join_words, philox_block
from genkern._triton.tile import noise, store, this_tile


@triton.jit
def noise_kernel(
    out, stream, form, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr, NORMAL: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    T: tl.constexpr = tl.float64 if out.tensor.dtype.element_ty == tl.float64 else tl.float32
    value = noise(stream, row, start, form, 0, T, COLUMNS, BLOCKS, NORMAL)
    store(out, value, row, start, mask, form, VECTOR)


@triton.jit
def children_kernel(
    key, key_stride, word, keys, data, data_stride, out, children, TILE: tl.constexpr
):
    """Child e is child `data[e]` of key e; without data, child `e // keys` of key `e % keys`."""
    e = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = e < children
    if data is None:
        index = e // keys
        parent = key + e % keys * key_stride
    else:
        index = tl.load(data + e * data_stride, mask=mask, other=0)
        parent = key + e * key_stride
    seed = tl.load(parent, mask=mask, other=0)
    offset = tl.load(parent + word, mask=mask, other=0)
    w0, w1, w2, w3 = philox_block(seed, offset, index)
    tl.store(out + 2 * e, join_words(w1, w0).to(tl.int64), mask=mask)
    tl.store(out + 2 * e + 1, join_words(w3, w2).to(tl.int64), mask=mask)


def normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _noise(key, shape, dtype, True)


def uniform(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _noise(key, shape, dtype, False)


def split(key: Tensor, num: int) -> Tensor:
    return _children(key, None, (num, *key.shape))


def fold_in(key: Tensor, data: Tensor) -> Tensor:
    batch = key.shape[:-1] or data.shape
    return _children(key.expand(*batch, 2), data.expand(batch), (*batch, 2))


def _noise(key: Tensor, shape: Sequence[int], dtype: torch.dtype, normal: bool) -> Tensor:
    out = torch.empty(shape, dtype=dtype, device=key.device)
    tiles = Tiles(shape, [out], key)
    stream = tiles.stream(key)
    launch(
        noise_kernel, tiles.programs, key.device,
        tiles.operand(out), stream, tiles.form,
        **tiles.meta, BLOCKS=blocks_together(stream, dtype), NORMAL=normal,
    )  # fmt: skip
    return out


def _children(key: Tensor, data: Tensor | None, shape: Sequence[int]) -> Tensor:
    out = torch.empty(shape, dtype=key.dtype, device=key.device)
    children = out.numel() // 2
    tile = TILE // 8  # 64-bit divisions want registers
    launch(
        children_kernel, triton.cdiv(children, tile), key.device,
        key.view(torch.int64), key.stride(0) if key.dim() == 2 else 0, key.stride(-1),
        key.shape[0] if key.dim() == 2 else 1,
        data, data.stride(0) if data is not None and data.dim() else 0,
        out.view(torch.int64), children, TILE=tile,
    )  # fmt: skip
    return out
