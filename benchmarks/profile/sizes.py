"""Time an element at even and odd sizes: no cliff where a size divides by nothing."""

from __future__ import annotations

from typing import Any

import torch
from rich.progress import Progress

from benchmarks import calls
from benchmarks.profile import clock
from benchmarks.profile.operators import OPERATORS
from benchmarks.report import Table, seconds

# Elements of one sample, each odd one with its even neighbour, and samples of odd lengths.
_LENGTHS = (
    1, 2, 3, 4, 7, 8, 63, 64, 65, 1000, 1001, 1023, 1024, 1025, 4096, 4097, 65536, 65537,
    1048575, 1048576, 1048577,
)  # fmt: skip
_SHAPES = (*((1, n) for n in _LENGTHS), (64, 1023), (64, 1024), (64, 1025))
_QUICK = 4097


def neighbour(shape: tuple[int, int]) -> tuple[int, int] | None:
    """The even size that an odd one is compared with: the measured one next to it."""
    rows, n = shape
    found = [(rows, n + by) for by in (-1, 1) if (rows, n + by) in _SHAPES]
    return found[0] if n % 2 and found else None


def name(shape: tuple[int, int]) -> str:
    """How tables call a size."""
    return str(shape[1]) if shape[0] == 1 else f"{shape[0]} x {shape[1]}"


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Seconds a call by operator and size, one thread, float32."""
    torch.set_num_threads(1)
    shapes = [s for s in _SHAPES if not quick or s[0] * s[1] <= _QUICK]
    operators = [o for o in OPERATORS if not quick or o.problem.name == "q_sample"]
    task = progress.add_task("sizes", total=len(operators))
    found: dict[str, Any] = {}
    for operator in operators:
        progress.update(task, description=f"sizes: {operator.name}")
        steps = {
            name(shape): calls.genkern_step(
                calls.arguments(operator.case(shape), torch.device("cpu"))
            )
            for shape in shapes
        }
        found[operator.name] = clock.best(steps, turns=3 if quick else 40)
        progress.advance(task)
    return found


def ratios(times: dict[str, float]) -> dict[str, float]:
    """Time an element at each odd size, over that at its even neighbour."""
    found = {}
    for shape in _SHAPES:
        even = neighbour(shape)
        if even is not None and name(shape) in times and name(even) in times:
            found[name(shape)] = times[name(shape)] / shape[1] / (times[name(even)] / even[1])
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """The worst odd size from 63 elements on, rows of odd lengths, and time an element."""
    rows = []
    for operator, times in found.items():
        # Below that a call's overhead is all there is: it is the same for 1 element and for 2.
        odd = {at: r for at, r in ratios(times).items() if int(at.split()[-1]) >= 63}
        single = {at: r for at, r in odd.items() if " x " not in at}
        worst = max(single, key=single.__getitem__)
        many = (f"{r:.2f}" for at, r in odd.items() if at not in single)
        even = [s for s in _SHAPES if s[1] % 2 == 0 and name(s) in times][-3:]
        each = (f"{times[name(s)] / (s[0] * s[1]) * 1e9:.3g}" for s in even)
        overhead = seconds(times["1"])
        rows.append([operator, overhead, f"{single[worst]:.2f} at {worst}", ", ".join(many), *each])
    headings = ["operator", "1 element", "worst odd size", "64 rows of 1023, 1025"]
    return [
        Table(
            "Sizes (time an element over the even size's beside; ns an element)",
            [*headings, *(f"ns at {name(s)}" for s in even)],
            rows,
        )
    ]
