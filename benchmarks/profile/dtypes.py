"""Narrow and wide dtypes against float32: time a call, and time for each byte that is moved."""

from __future__ import annotations

from typing import Any

import torch
from rich.progress import Progress

from benchmarks import calls
from benchmarks.profile import clock
from benchmarks.profile.operators import DTYPES, OPERATORS, short
from benchmarks.report import Table

_SHAPE = (16, 65536)
_QUICK = (16, 256)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Seconds a call and bytes moved, by operator and dtype, 1M elements, one thread."""
    torch.set_num_threads(1)
    operators = [o for o in OPERATORS if not quick or o.problem.name == "q_sample"]
    task = progress.add_task("dtypes", total=len(operators))
    found: dict[str, Any] = {}
    for operator in operators:
        progress.update(task, description=f"dtypes: {operator.name}")
        steps, moved = {}, {}
        for dtype in DTYPES:
            case = operator.case(_QUICK if quick else _SHAPE, dtype)
            step = calls.genkern_step(calls.arguments(case, torch.device("cpu")))
            steps[short(dtype)] = step
            moved[short(dtype)] = calls.traffic(step)[0]
        times = clock.best(steps, turns=3 if quick else 40)
        found[operator.name] = {d: {"seconds": times[d], "bytes": moved[d]} for d in steps}
        progress.advance(task)
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """Each dtype's time over float32's: of a call, and for a byte."""
    others = [short(d) for d in DTYPES[1:]]
    rows = []
    for operator, by in found.items():
        base = by["float32"]
        whole = [by[d]["seconds"] / base["seconds"] for d in others]
        each = [r * base["bytes"] / by[d]["bytes"] for r, d in zip(whole, others, strict=True)]
        cells = (f"{r:.2f}" for pair in zip(whole, each, strict=True) for r in pair)
        rows.append([operator, f"{base['bytes'] / base['seconds'] / 1e9:.1f}", *cells])
    headings = ["operator", "float32 GB/s"]
    headings += [f"{d}: {what}" for d in others for what in ("a call", "a byte")]
    return [Table("Dtypes (time over float32's)", headings, rows)]
