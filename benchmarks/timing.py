"""Times calls: interleaved rounds, the best, the median and the worst of each contender."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import genkern

# A round of a quick call repeats it for this long, far above the clock's resolution and cost.
_ROUND_SECONDS = 0.01
# Larger than the last-level cache of any GPU: written before each timed call.
_FLUSH_BYTES = 512 << 20
# Writing it takes far longer than a quick call.
_CUDA_REPEATS = 50


@dataclass(frozen=True)
class Contender:
    """A call to time, the number of threads it may use, and the backend it asks for."""

    run: Callable[[], Any]
    threads: int
    backend: str | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over rounds."""

    best: float
    median: float
    worst: float
    rounds: int


@contextlib.contextmanager
def running(contender: Contender) -> Iterator[Callable[[], Any]]:
    """Sets the contender's threads and backend, and gives its call."""
    if torch.get_num_threads() != contender.threads:
        torch.set_num_threads(contender.threads)
    if contender.backend is None:
        yield contender.run
    else:
        with genkern.use_backend(contender.backend):
            yield contender.run


def _on_cpu(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


class _OnCuda:
    """Times single calls with events, after the L2 cache was overwritten."""

    def __init__(self) -> None:
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def __call__(self, run: Callable[[], Any], repeats: int) -> float:
        pairs = []
        for _ in range(min(repeats, _CUDA_REPEATS)):
            self._flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in pairs) / 1e3


Clock = Callable[[Callable[[], Any], int], float]


def estimate(run: Callable[[], Any], clock: Clock = _on_cpu) -> float:
    """Seconds that a call takes, roughly; it is called twice."""
    run()  # compiles, loads, allocates
    return clock(run, 1)


def repeats(seconds: float) -> int:
    """How often a round repeats a call that takes about `seconds`."""
    return max(1, math.ceil(_ROUND_SECONDS / seconds))


def interleave(
    contenders: Mapping[str, Contender], *, rounds: int, seconds: float, device: torch.device
) -> dict[str, Timing]:
    """Times the contenders by turns, so that a disturbance of the machine meets them all.

    Args:
        contenders: What to time, by name.
        rounds: Most rounds of a contender.
        seconds: Time for each contender's rounds; at least two are run.
        device: Where the calls run.
    """
    clock: Clock = _OnCuda() if device.type == "cuda" else _on_cpu
    calls, limits = {}, {}
    for name, contender in contenders.items():
        with running(contender) as run:
            once = estimate(run, clock)
        calls[name] = repeats(once)
        limits[name] = min(rounds, max(2, int(seconds / (once * calls[name]))))
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            # Another order each time: what ran before leaves its traces in the caches.
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if turn < limits[name]:
                    with running(contenders[name]) as run:
                        measured[name].append(clock(run, calls[name]))
    finally:
        if collecting:
            gc.enable()
    return {
        name: Timing(min(times), statistics.median(times), max(times), len(times))
        for name, times in measured.items()
    }
