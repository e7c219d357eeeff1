"""Sums in an order that the shapes and strides fix: a partial a program, then a second launch."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from collections.abc import Sequence
from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from genkern._triton.launch import BATCHMEAN, MEAN, NONE, SAMPLE, TILE, Tiles, launch
from genkern._triton.tile import this_program, which_rows_exist


@triton.jit
def store_partial(partial, value, row, mask, form, BY_ROW: tl.constexpr):
    """Sums the tile: to one number, or with BY_ROW to one a row."""
    store_sums(partial, row_sums(value, mask), row, form, BY_ROW)


@triton.jit
def row_sums(value, mask):
    return tl.sum(tl.where(mask, value, 0.0), axis=1)


@triton.jit
def store_sums(partial, sums, row, form, BY_ROW: tl.constexpr):
    if BY_ROW:
        _, column_program = this_program(form)
        pointers = partial + row * form.column_programs + column_program
        tl.store(pointers, sums, mask=which_rows_exist(row, form))
    else:
        tl.store(partial + tl.program_id(0), tl.sum(sums, axis=0))


@triton.jit
def row_totals(partial, row, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of partial[row, :] in float64: a lane takes its columns in order."""
    sums = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        x = tl.load(partial + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
        sums += x.to(tl.float64)
    return tl.sum(sums, axis=1)


@triton.jit
def sum_rows_kernel(
    partial, total, rows, columns, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """total[r] = (sum of partial[r, :]) / count."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    sums = row_totals(partial, row, rows, columns, ROWS, COLUMNS)
    result = sums / tl.full((), count, tl.float64)
    tl.store(total + row, result.to(total.dtype.element_ty), mask=row < rows)


def divisor(shape: Sequence[int], reduction: int) -> int:
    """What a reduction divides its sum by."""
    batch = shape[0] if shape else 1
    numel = torch.Size(shape).numel()
    return {MEAN: numel, BATCHMEAN: batch}.get(reduction, 1)


def new_partial(like: Tensor, tiles: Tiles, reduction: int) -> Tensor:
    """Room for what `store_partial` stores."""
    count = tiles.rows * tiles.column_programs if reduction == SAMPLE else tiles.programs
    return like.new_empty(count, dtype=sum_dtype(like))


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of sums over a tensor."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def finish(partial: Tensor, shape: Sequence[int], reduction: int) -> Tensor:
    """The reduced value from a call's partials."""
    by_sample = reduction == SAMPLE
    rows = (shape[0] if shape else 1) if by_sample else 1
    if by_sample and partial.numel() == rows:
        return partial
    total = partial.new_empty((rows,) if by_sample else ())
    columns = partial.numel() // max(rows, 1)
    if columns == 0:
        return total.zero_().div_(divisor(shape, reduction))
    tile_columns = min(TILE // 2, triton.next_power_of_2(columns))
    tile_rows = TILE // 2 // tile_columns
    launch(
        sum_rows_kernel, triton.cdiv(rows, tile_rows), partial.device,
        partial, total, rows, columns, divisor(shape, reduction),
        ROWS=tile_rows, COLUMNS=tile_columns,
    )  # fmt: skip
    return total


def value_of(out: Tensor | None, partial: Tensor | None, like: Tensor, reduction: int) -> Tensor:
    """The elementwise value, or the partial sums summed up."""
    if partial is None:
        return cast(Tensor, out)
    return finish(partial, like.shape, reduction)


def new_gradient(like: Tensor | None, wanted: int, flows: bool = True) -> Tensor | None:
    """Room for a gradient; zeros where nothing flows into it."""
    if like is None or not wanted:
        return None
    return torch.empty_like(like) if flows else torch.zeros_like(like)


def new_gradients(likes: Sequence[Tensor | None], output_mask: int) -> list[Tensor | None]:
    """Room for the gradients that the mask asks for."""
    return [new_gradient(like, output_mask >> i & 1) for i, like in enumerate(likes)]


def over(scale: float, count: int) -> float:
    """scale / count; the quotient of an empty call is not used."""
    return scale / max(count, 1)


def upstream(grad: Tensor | None, like: Tensor, reduction: int) -> Tensor | None:
    """The gradient of a reduced value as a view in the shape of `like`."""
    if grad is None or reduction == NONE:
        return grad
    if reduction == SAMPLE:
        grad = grad.view(-1, *[1] * (like.dim() - 1)) if like.dim() else grad[0]
    return grad.expand(like.shape)
