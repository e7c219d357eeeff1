"""The roof: the bandwidth that a triad reaches on this machine, in an operator's conditions.

An operator returns new tensors. Memory that was just allocated costs a page fault at its first
touch, which on many machines takes longer than the write itself, so the triad that stands for the
roof writes to a new tensor in every call. The triad into a buffer that is used again is reported
beside it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import compile

_SOURCE = Path(__file__).with_name("roof.cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17")

STREAMS = 3
"""Streams of a triad: two reads and one write."""


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled triads, or None and the reason."""
    path, reason = compile.library(_SOURCE, *_FLAGS)
    if path is None:
        return None, reason
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"the compiled roof.cpp does not load: {error}"
    pointer = ctypes.c_void_p
    for triad in (library.triad_regular, library.triad_non_temporal):
        triad.argtypes = [pointer, pointer, pointer, ctypes.c_float, ctypes.c_int64, ctypes.c_int]
        triad.restype = None
    return library, ""


def missing_reason(device: torch.device) -> str | None:
    """Why there is no roof, or None."""
    return None if device.type == "cuda" else _library()[1] or None


def _plain_triad(n: int, device: torch.device, reuse: bool) -> dict[str, Callable[[], object]]:
    """PyTorch's: on a GPU it is one kernel, with nothing to gain from other writes."""
    b, c, buffer = (torch.ones(n, device=device) for _ in range(3))
    out = buffer if reuse else None
    return {"triad": lambda: torch.add(b, c, alpha=0.5, out=out)}


def triads(
    stream_bytes: int, threads: int, device: torch.device, *, reuse: bool = False
) -> Mapping[str, Callable[[], object]]:
    """The triads on three float32 streams of stream_bytes each; none without a compiler.

    Args:
        stream_bytes: Size of each of the three arrays.
        threads: Number of threads, on a CPU.
        device: Where the arrays are.
        reuse: Write to one buffer again and again, instead of to a new tensor in every call.
    """
    if device.type == "cuda":
        return _plain_triad(stream_bytes // 4, device, reuse)
    library, _ = _library()
    if library is None:
        return {}
    n = stream_bytes // 4
    b, c = torch.ones(n), torch.ones(n)
    buffer = torch.empty(n) if reuse else None

    def call(triad: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            a: Tensor = torch.empty(n) if buffer is None else buffer
            triad(a.data_ptr(), b.data_ptr(), c.data_ptr(), 0.5, n, threads)

        return run

    found = {"triad": call(library.triad_regular)}
    if library.has_non_temporal():
        found["triad, non-temporal"] = call(library.triad_non_temporal)
    return found
