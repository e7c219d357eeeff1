"""From tensors of any strides to a grid: what the host does before a kernel runs.

The tensors of a call, all of one logical shape, are coalesced together: neighbouring dimensions
merge where they do so in every tensor. The innermost that is left becomes the columns, the others
the rows of a two-dimensional form, and a program works on a tile of it. Contiguous tensors, the
halves of a chunk and expanded gradients thus have columns of stride 1 (or 0), read and written
128 bits at a time; any other layout works the same way, one element at a time, without a copy.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

NONE, MEAN, SUM, BATCHMEAN, SAMPLE = range(5)


def interpreted() -> bool:
    """Whether Triton runs kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


# Threads of a program, and elements it works on: 16 a thread, two 128-bit accesses of 16-bit types,
# which halves what finding the tile costs each; half as many in float64, whose numbers take two
# registers. The interpreter pays for each program, whatever its size.
THREADS = 128
TILE = 4096 if interpreted() else 2048

# Programs that fill a GPU; if there are more tiles, one may work on up to TURNS of a row: that sums
# up, or has much to find out about a row's sample.
PROGRAMS = 1024
TURNS = 8


def unavailable_reason() -> str | None:
    """Why Triton cannot be used here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "no GPU that torch can use was found (TRITON_INTERPRET=1 runs kernels on the CPU)"
    return None


def refuses(*args: Any) -> str | None:
    """Why Triton cannot run on these arguments, or None."""
    for a in args:
        if isinstance(a, Tensor) and a.device.type != ("cpu" if interpreted() else "cuda"):
            return f"a tensor is on {a.device}"
    return None


class Form(NamedTuple):
    """The two-dimensional form of a call's tensors, as kernels see it.

    Attributes:
        rows: Number of rows; None for one.
        columns: Number of columns, in units of the constant VECTOR; None if tiles end with them.
        column_tiles: Number of tiles in a row.
        column_programs: Number of programs that share them.
        reciprocal, shift: To divide by `column_programs`: see `_reciprocal`.
        sizes: Sizes of the dimensions that make up the rows but the outermost, inner ones first.
    """

    rows: int | None
    columns: int | None
    column_tiles: int
    column_programs: int
    reciprocal: int
    shift: int
    sizes: tuple[int, ...]


class Operand(NamedTuple):
    """A tensor with its strides in the form.

    Attributes:
        outer: Strides of the dimensions that make up the rows, inner ones first.
        inner: Stride of the columns; nothing for 0.
        draw: Stride of the draws, in a tensor that has this dimension (`num_samples`).

    What may be missing is an empty tuple: Triton 3.6 cannot tell a tuple with a None from None.
    """

    tensor: Tensor
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    draw: tuple[int, ...]


class Stream(NamedTuple):
    """A key, and where in its stream the form's elements are.

    Attributes:
        word: Stride from a key's seed to its offset.
        per_sample: Strides of the rows in a (B, 2) key; nothing for one key for all.
        position: Strides of the rows in the stream; the columns follow each other.
        draw: Stride of the draws in the stream.
    """

    key: Tensor
    word: int
    per_sample: tuple[int, ...]
    position: tuple[int, ...]
    draw: tuple[int, ...]


class PerSample(NamedTuple):
    """A tensor's first dimension, indexed by the sample.

    Attributes:
        outer: Strides of the rows; nothing for one value for all.
    """

    tensor: Tensor
    outer: tuple[int, ...]


class Table(NamedTuple):
    """Rows of coefficients, with what PerSample has.

    Attributes:
        row: Stride of the rows.
        column: Stride of the columns.
    """

    tensor: Tensor
    outer: tuple[int, ...]
    rows: int
    row: int
    column: int


class Tiles:
    """The form and the tiling of a call.

    Args:
        shape: The tensors' common shape, without draws.
        tensors: Every tensor of the call; those with one dimension more than `shape` have the
            draws first.
        key: The key of noise drawn in the kernel: keeps the elements in their logical order.
        by_sample: Keep different samples in different rows, for what is of a sample.
        turns: How many tiles of a row a program may work on, one after the other.

    Attributes:
        tile: How many elements a program works on at most.
        form: What kernels need to know.
        column_tiles, column_programs: As in `Form`.
        programs: How many programs cover the form.
        rows: Number of rows.
        columns: Number of columns.
        meta: The kernels' constants.
    """

    def __init__(
        self,
        shape: Sequence[int],
        tensors: Sequence[Tensor | None],
        key: Tensor | None = None,
        by_sample: bool = False,
        turns: int = 1,
    ) -> None:
        self._dim = len(shape)
        self._shape = tuple(shape) or (1,)
        self._key = key
        self._pinned = by_sample or (key is not None and key.dim() == 2)
        present = [t for t in tensors if t is not None]
        strides = [self._strides(t) for t in present]
        order = [d for d in reversed(range(len(self._shape))) if self._shape[d] != 1]
        if key is None:
            # Memory order, so that channels-last tensors too have columns of stride 1.
            order.sort(key=lambda d: (d == 0 and self._pinned, max(s[d] for s in strides)))
        self._columns, *self._outer = self._coalesce(order, strides)

        self.tile = TILE // 2 if any(t.dtype == torch.float64 for t in present) else TILE
        columns = self.columns = self._size(self._columns)
        outer = [self._size(group) for group in self._outer]
        self.rows = math.prod(outer)
        tile_columns = max(8, min(self.tile, _next_power_of_2(columns)))
        tile_rows = min(self.tile // tile_columns, _next_power_of_2(self.rows))
        self.column_tiles = -(-columns // tile_columns)
        row_tiles = -(-self.rows // tile_rows)
        turns = max(1, min(turns, row_tiles * self.column_tiles // PROGRAMS))
        self.column_programs = -(-self.column_tiles // turns)
        self.programs = row_tiles * self.column_programs
        # Triton by itself recognises only numbers that 16 divides.
        vector = math.gcd(16, columns, *(n for s in strides for n in self._row_strides(s)))
        self.form = Form(
            self.rows if self.rows > 1 else None,
            columns // vector if columns % self.tile else None,
            self.column_tiles,
            self.column_programs,
            *_reciprocal(max(self.column_programs, 1)),
            tuple(outer[:-1]),
        )
        self.meta = {"ROWS": tile_rows, "COLUMNS": tile_columns, "VECTOR": vector}

    def operand(self, tensor: Tensor | None) -> Operand | None:
        """A tensor as kernels take it."""
        if tensor is None:
            return None
        strides = self._strides(tensor)
        inner = strides[self._columns[0]] if self._columns else 1
        draw = (tensor.stride(0),) if tensor.dim() > self._dim else ()
        return Operand(tensor, self._row_strides(strides), (inner,) if inner else (), draw)

    def per_sample(self, tensor: Tensor | None) -> PerSample | None:
        """A tensor of one value a sample, or one for all, as kernels take it."""
        if tensor is None:
            return None
        if not varies(tensor):
            return PerSample(tensor, ())
        strides = (tensor.stride(0),) + (0,) * (len(self._shape) - 1)
        return PerSample(tensor, self._row_strides(strides))

    def table(self, coefficients: Tensor, t: Tensor | None) -> tuple[Table, PerSample | None]:
        """Coefficients as kernels take them: rows `t`, or one a sample, or one for all."""
        rows = self.per_sample(coefficients) if t is None else None
        outer = () if rows is None else rows.outer
        table = Table(coefficients, outer, len(coefficients), *coefficients.stride())
        return table, self.per_sample(t)

    def stream(self, key: Tensor | None, draws: int | None = None) -> Stream | None:
        """A key as kernels take it, for the elements of `draws` tensors of the call's shape."""
        if key is None:
            return None
        index = [math.prod(self._shape[d + 1 :]) for d in range(len(self._shape))]
        size = math.prod(self._shape)
        per_sample: tuple[int, ...] = ()
        if key.dim() == 2:
            size = index[0]
            index[0] = 0
            keys = (key.stride(0),) + (0,) * (len(self._shape) - 1)
            per_sample = self._row_strides(keys)
        return Stream(
            key.view(torch.int64),
            key.stride(-1),
            per_sample,
            self._row_strides(tuple(index)),
            () if draws is None else (size,),
        )

    def sample_stream(self, key: Tensor | None) -> Stream | None:
        """A key as kernels take it, for one element a sample."""
        if key is None:
            return None
        rest = (0,) * (len(self._shape) - 1)
        keys: tuple[int, ...] = ()
        sample = 1
        if key.dim() == 2:
            keys, sample = self._row_strides((key.stride(0), *rest)), 0
        position = self._row_strides((sample, *rest))
        return Stream(key.view(torch.int64), key.stride(-1), keys, position, ())

    def _strides(self, tensor: Tensor) -> tuple[int, ...]:
        return tensor.stride()[-self._dim :] if self._dim else (1,)

    def _size(self, group: list[int]) -> int:
        return math.prod(self._shape[d] for d in group)

    def _row_strides(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(strides[group[0]] for group in self._outer) or (0,)

    def _coalesce(self, order: list[int], strides: list[tuple[int, ...]]) -> list[list[int]]:
        """Groups of dimensions, inner ones first, that each are one dimension in every tensor."""
        groups: list[list[int]] = [[]]
        for d in order:
            group = groups[-1]
            size = self._size(group)
            if self._pinned and d == 0:
                groups.append([d])
            elif not group or all(s[d] == s[group[0]] * size for s in strides):
                group.append(d)
            else:
                groups.append([d])
        return groups


def _reciprocal(divisor: int) -> tuple[int, int]:
    """A 32-bit factor and a shift: (n * factor >> 31) >> shift is n // divisor for n < 2^31.

    Granlund and Montgomery, PLDI 1994. A division takes 20 instructions.
    """
    shift = (divisor - 1).bit_length()
    return -(-(1 << 31 + shift) // divisor), shift


def _next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def varies(*values: Tensor | None) -> bool:
    """Whether any has more than one value for a call's samples."""
    return any(v is not None and v.dim() > 0 and v.shape[0] > 1 for v in values)


def clamps(lo: float, hi: float) -> bool:
    return lo > -math.inf or hi < math.inf


def blocks_together(stream: Stream | None, dtype: torch.dtype) -> int:
    """How many Philox blocks make up a 128-bit access; 0 if a row may start inside a block."""
    per_block = 2 if dtype == torch.float64 else 4
    if stream is None or any(n % per_block for n in (*stream.position, *stream.draw)):
        return 0
    return 2 if dtype.itemsize == 2 else 1


@functools.cache
def _warp_size(device: torch.device) -> int:
    """Threads of a warp: 32, but 64 on AMD's data-centre GPUs."""
    if device.type == "cpu":
        return 32
    return int(torch.cuda.get_device_properties(device).warp_size)


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **meta: Any) -> None:
    """Runs `programs` programs of a kernel on the current stream of `device`.

    Contraction is off because noise must have the same bits everywhere.
    """
    if programs == 0:
        return
    on_device = (
        contextlib.nullcontext()
        if device.type == "cpu"
        else torch.accelerator.device_index(device.index)
    )
    with on_device:
        kernel[(programs,)](
            *args, **meta, num_warps=THREADS // _warp_size(device), enable_fp_fusion=False
        )
