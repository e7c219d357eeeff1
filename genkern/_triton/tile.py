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


def arithmetic(tensor: Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


@triton.constexpr_function
def is_half(pointer):
    """Whether a tensor has a type of 16 bits."""
    return pointer.dtype.element_ty.primitive_bitwidth == 16


@triton.jit
def this_tile(form, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr):
    """This program's rows, its first column, and which of its elements exist."""
    program = tl.program_id(0)
    if form.rows is None:
        row = tl.zeros((ROWS,), tl.int64)
        start = program.to(tl.int64) * COLUMNS
    else:
        row = (program // form.column_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        start = (program % form.column_tiles).to(tl.int64) * COLUMNS
    return row, start, which_exist(row, start, form, COLUMNS, VECTOR)


@triton.jit
def which_exist(row, start, form, COLUMNS: tl.constexpr, VECTOR: tl.constexpr):
    """Of the elements of COLUMNS columns from `start`; (1, COLUMNS) if there is one row."""
    mask = start + tl.arange(0, COLUMNS)[None, :] < form.columns * VECTOR
    if form.rows is None:
        return mask
    else:
        return mask & (row < form.rows)[:, None]


@triton.jit
def row_offset(strides, row, form, VECTOR: tl.constexpr):
    """Where each row starts, (ROWS, 1); for a row that does not exist, where the last one does."""
    rest = row
    if form.rows is not None:
        rest = tl.minimum(row, form.rows - 1)
    offset = tl.zeros_like(row)
    for i in tl.static_range(len(form.sizes)):
        offset += rest % form.sizes[i] * strides[i]
        rest = rest // form.sizes[i]
    offset += rest * strides[len(form.sizes)]
    return tl.multiple_of(offset, VECTOR)[:, None]


@triton.jit
def address(x, row, start, mask, form, draw, VECTOR: tl.constexpr):
    """Pointers to the tile; (ROWS, 1) if the operand is the same in all columns."""
    first = x.tensor + row_offset(x.outer, row, form, VECTOR)
    if len(x.draw) > 0:
        first += tl.cast(draw, tl.int64) * x.draw[0]
    if len(x.inner) == 0:
        return first
    else:
        # Last what differs from thread to thread, with few bits.
        column = tl.arange(0, mask.shape[1]).to(tl.int64)[None, :]
        return first + start * x.inner[0] + column * x.inner[0]


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
        return x.tensor + row_offset(x.outer, row, form, 1)


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
        return first + tl.minimum(tl.maximum(index, 0), table.rows - 1) * table.row


@triton.jit
def coefficient(first, table, column: tl.constexpr):
    return tl.load(first + column * table.column)


@triton.jit
def noise(
    stream, row, start, form, draw, T: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr, NORMAL: tl.constexpr,
):  # fmt: skip
    """The tile's noise from a key, at each element's index in its stream."""
    key = stream.key
    if len(stream.per_sample) > 0:
        key += row_offset(stream.per_sample, row, form, 1)
    index = row_offset(stream.position, row, form, 1) + start
    if len(stream.draw) > 0:
        index += tl.cast(draw, tl.int64) * stream.draw[0]
    return noise_tile(tl.load(key), tl.load(key + stream.word), index, COLUMNS, T, BLOCKS, NORMAL)


@triton.jit
def noise_or_load(
    given, stream, row, start, mask, form, draw, T: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    if stream is None:
        return load(given, row, start, mask, form, T, VECTOR, draw)
    else:
        return noise(stream, row, start, form, draw, T, mask.shape[1], BLOCKS, True)
