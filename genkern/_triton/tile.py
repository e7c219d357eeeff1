"""What every kernel does around its mathematics: find its tile, load, draw noise, store.

A program works on a tile of ROWS x COLUMNS elements of the tensors' common two-dimensional form,
which `genkern._triton.launch.Form` describes. Offsets are int64 before any multiplication.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from genkern._triton.normal import noise_tile
from genkern._triton.ptx import wide_product


def arithmetic(tensor: Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


@triton.constexpr_function
def is_half(pointer):
    """Whether a tensor has a type of 16 bits."""
    return pointer.dtype.element_ty.primitive_bitwidth == 16


@triton.jit
def this_program(form):
    """Which tile of rows is this program's, and which of the programs that share it it is."""
    program = tl.program_id(0)
    twice = (program << 1).to(tl.uint32)
    high = tl.umulhi(twice, tl.cast(form.reciprocal, tl.uint32))
    row_tile = (high >> tl.cast(form.shift, tl.uint32)).to(tl.int32)
    return row_tile, program - row_tile * form.column_programs


@triton.jit
def this_tile(form, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr):
    """This program's rows, its first column, and which of its elements exist."""
    if form.rows is None:
        row = tl.zeros((ROWS,), tl.int64)
        start = tl.program_id(0).to(tl.int64) * COLUMNS
    else:
        row_tile, column_tile = this_program(form)
        row = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        start = column_tile.to(tl.int64) * COLUMNS
    return row, start, which_exist(row, start, form, COLUMNS, VECTOR)


@triton.jit
def which_exist(row, start, form, COLUMNS: tl.constexpr, VECTOR: tl.constexpr):
    """Of the elements of COLUMNS columns from `start`; (1, COLUMNS) if there is one row."""
    if form.columns is None:
        mask = tl.full((1, COLUMNS), True, tl.int1)
    else:
        columns = tl.cast(form.columns, tl.int64) * VECTOR
        mask = start + tl.arange(0, COLUMNS)[None, :] < columns
    if row.shape[0] > 1:
        mask &= which_rows_exist(row, form)[:, None]
    return mask


@triton.jit
def width(start, form, COLUMNS: tl.constexpr, VECTOR: tl.constexpr):
    """How many columns there are of COLUMNS from `start`."""
    if form.columns is None:
        return COLUMNS
    else:
        return tl.minimum(tl.cast(form.columns, tl.int64) * VECTOR - start, COLUMNS).to(tl.int32)


@triton.jit
def which_rows_exist(row, form):
    # Only a tile of several can reach beyond the last.
    return row < form.rows if row.shape[0] > 1 else row >= 0


@triton.constexpr_function
def has_32_bits(stride):
    return stride.dtype == tl.int32 if isinstance(stride, tl.tensor) else stride < 1 << 31


@triton.jit
def scaled(index, stride):
    """index * stride, for an index of 32 bits."""
    if has_32_bits(stride):
        # One instruction; LLVM does not see through its blocks what has 32 bits.
        return wide_product(index.to(tl.uint32), tl.cast(stride, tl.uint32)).to(tl.int64)
    else:
        return index * stride


@triton.jit
def row_offset(strides, row, form):
    """Where each row starts; for a row that does not exist, where the last one does."""
    rest = row
    if row.shape[0] > 1:
        rest = tl.minimum(row, form.rows - 1)
    offset = tl.zeros_like(row)
    for i in tl.static_range(len(form.sizes)):
        offset += rest % form.sizes[i] * strides[i]
        rest = rest // form.sizes[i]
    if row.shape[0] > 1:
        offset += rest * strides[len(form.sizes)]
    elif form.rows is not None:
        offset += scaled(rest, strides[len(form.sizes)])
    return offset


@triton.jit
def address(x, row, start, mask, form, draw, VECTOR: tl.constexpr):
    """Pointers to the tile; (ROWS, 1) if the operand is the same in all columns."""
    offset = row_offset(x.outer, row, form)
    if len(x.inner) > 0:
        # `start` is a multiple of the number of columns, a power of two as VECTOR is.
        offset += start * x.inner[0]
        offset = tl.multiple_of(offset, VECTOR if VECTOR < mask.shape[1] else mask.shape[1])
    if len(x.draw) > 0:
        offset += tl.cast(draw, tl.int64) * x.draw[0]
    if len(x.inner) == 0:
        return (x.tensor + offset)[:, None]
    else:
        # Last what differs from thread to thread, with few bits.
        column = tl.arange(0, mask.shape[1]).to(tl.int64)[None, :]
        return (x.tensor + offset)[:, None] + column * x.inner[0]


@triton.jit
def widen(x, T: tl.constexpr):
    if x.dtype == tl.bfloat16:
        # The upper half of a float: one instruction for either half of a word.
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(T, bitcast=True)
    else:
        return x.to(T)


@triton.jit
def load(x, row, start, mask, form, T: tl.constexpr, VECTOR: tl.constexpr, draw=0):
    pointers = address(x, row, start, mask, form, draw, VECTOR)
    if len(x.inner) == 0:
        return tl.load(pointers).to(T)
    else:
        return widen(tl.load(pointers, mask=mask, other=0.0), T)


@triton.jit
def store(x, value, row, start, mask, form, VECTOR: tl.constexpr, draw=0):
    pointers = address(x, row, start, mask, form, draw, VECTOR)
    tl.store(pointers, value.to(x.tensor.dtype.element_ty), mask=mask)


@triton.jit
def sample_pointers(x, row, form):
    """Pointers to the value of each row's sample, (ROWS, 1); (1, 1) if there is one for all."""
    if len(x.outer) == 0:
        return x.tensor + tl.zeros((1, 1), tl.int64)
    else:
        return (x.tensor + row_offset(x.outer, row, form))[:, None]


@triton.jit
def load_sample(x, row, form):
    return tl.load(sample_pointers(x, row, form))


@triton.jit
def coefficients(table, t, row, form):
    """Pointers to the row of the table for each row's sample, as from `sample_pointers`."""
    first = sample_pointers(table, row, form)
    if t is None:
        return first
    else:
        index = load_sample(t, row, form)
        tl.device_assert((index >= 0) & (index < table.rows), "t is not in the table")
        # Without its sign a negative number is a large one: what is left has 32 bits.
        nearest = tl.minimum(index.to(tl.uint64, bitcast=True), table.rows - 1)
        return first + scaled(tl.where(index < 0, 0, nearest), table.row)


@triton.jit
def coefficient(first, table, column: tl.constexpr):
    return tl.load(first + column * table.column)


@triton.jit
def key_of_rows(stream, row, form):
    """The key's words, and each row's index in its stream, (ROWS, 1)."""
    key = stream.key
    if len(stream.per_sample) > 0:
        key += row_offset(stream.per_sample, row, form)[:, None]
    index = row_offset(stream.position, row, form)[:, None]
    return tl.load(key), tl.load(key + stream.word), index


@triton.jit
def key_of_tiles(stream, row, form, T: tl.constexpr, BLOCKS: tl.constexpr):
    """The same for tiles in a loop: the blocks before a row are in the key's offset."""
    seed, offset, index = key_of_rows(stream, row, form)
    if BLOCKS > 0:
        offset += index >> (1 if T == tl.float64 else 2)
        index = tl.zeros_like(index)
    return seed, offset, index


@triton.jit
def noise(
    stream, row, start, form, draw, T: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr, NORMAL: tl.constexpr,
):  # fmt: skip
    """The tile's noise from a key, at each element's index in its stream."""
    seed, offset, index = key_of_rows(stream, row, form)
    index += start
    if len(stream.draw) > 0:
        index += tl.cast(draw, tl.int64) * stream.draw[0]
    return noise_tile(seed, offset, index, COLUMNS, T, BLOCKS, NORMAL)


@triton.jit
def noise_or_load(
    given, stream, row, start, mask, form, draw, T: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    if stream is None:
        return load(given, row, start, mask, form, T, VECTOR, draw)
    else:
        return noise(stream, row, start, form, draw, T, mask.shape[1], BLOCKS, True)
