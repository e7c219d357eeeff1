"""Threads: from one to all cores, at 1M elements."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from rich.progress import Progress

from benchmarks import calls
from benchmarks.profile import clock
from benchmarks.profile.operators import OPERATORS
from benchmarks.report import Table, seconds

_SHAPE = (16, 65536)
_QUICK = (16, 256)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Seconds a call by operator and number of threads, float32."""
    # All of a machine with many cores would take long: powers of two, and all.
    counts = sorted({1 << i for i in range(cores().bit_length()) if 1 << i <= cores()} | {cores()})
    operators = [o for o in OPERATORS if not quick or o.problem.name == "q_sample"]
    task = progress.add_task("scaling", total=len(operators))
    found: dict[str, Any] = {}
    for operator in operators:
        progress.update(task, description=f"scaling: {operator.name}")
        case = operator.case(_QUICK if quick else _SHAPE)
        step = calls.genkern_step(calls.arguments(case, torch.device("cpu")))
        steps = {str(n): step for n in counts}
        turns = 3 if quick else 100
        found[operator.name] = clock.best(
            steps, turns, time.perf_counter, lambda name: torch.set_num_threads(int(name))
        )
        progress.advance(task)
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """Speedups over one thread."""
    counts = list(next(iter(found.values())))
    rows = [
        [operator, seconds(times["1"]), *(f"{times['1'] / times[n]:.2f}" for n in counts[1:])]
        for operator, times in found.items()
    ]
    headings = ["operator", "1 thread", *(f"{n} threads" for n in counts[1:])]
    return [Table("Scaling (speedup over one thread, 1M elements)", headings, rows)]
