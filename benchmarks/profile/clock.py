"""The best of many short runs, on a machine that does other things as well."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Shorter than a scheduler's slice: some runs are not interrupted.
_RUN_SECONDS = 5e-4

Call = Callable[[], Any]
Clock = Callable[[], float]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Python's garbage collector."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def repeats(call: Call) -> int:
    """How often a run repeats a call."""
    call()  # compiles, loads, allocates
    start = time.perf_counter()
    call()
    return max(1, math.ceil(_RUN_SECONDS / max(time.perf_counter() - start, 1e-9)))


def run(call: Call, times: int, clock: Clock) -> float:
    """Seconds a call, over one run."""
    start = clock()
    for _ in range(times):
        call()
    return (clock() - start) / times


def best(
    calls: Mapping[str, Call],
    turns: int,
    clock: Clock = time.process_time,
    before: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """Seconds a call of each, the best of `turns` runs by turns.

    The clock of the processor's time stands still while other programs run; calls of several
    threads need `time.perf_counter`. `before` is called with a name ahead of its run.
    """
    times = {name: repeats(call) for name, call in calls.items()}
    found = dict.fromkeys(calls, math.inf)
    with quiet():
        for _ in range(turns):
            for name, call in calls.items():
                before(name)
                call()  # the calls before it left the caches to their own data
                found[name] = min(found[name], run(call, times[name], clock))
    return found


def load() -> float:
    """Programs that are running or waiting to, over the last minute."""
    return round(os.getloadavg()[0], 2)
