"""What a call costs before it computes anything: import, first calls, calls of one element."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks import calls
from benchmarks.profile import clock
from benchmarks.profile.operators import OPERATORS
from benchmarks.report import Table, seconds

_ROOT = Path(__file__).parents[2]
_IMPORT = """\
import time
start = time.process_time()
import torch
middle = time.process_time()
import genkern
print(middle - start, time.process_time() - middle)
"""


def _imports(runs: int) -> dict[str, float]:
    """Processor's seconds for importing torch, and genkern after it: the best of several."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    best = [math.inf, math.inf]
    for _ in range(runs):
        command = [sys.executable, "-c", _IMPORT]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        best = [min(pair) for pair in zip(best, map(float, shown.stdout.split()), strict=True)]
    return {"torch": best[0], "genkern": best[1]}


def _first_calls(runs: int) -> dict[str, list[float]]:
    """The first and the best later call of each public function, each in a fork of its own."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.profile.first", str(runs)]
    shown = subprocess.run(
        command, env=environment, cwd=_ROOT, capture_output=True, text=True, check=True
    )
    return dict(json.loads(line) for line in shown.stdout.splitlines())


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Seconds, one thread, float32."""
    torch.set_num_threads(1)
    operators = [o for o in OPERATORS if not quick or o.problem.name == "q_sample"]
    task = progress.add_task("latency", total=len(operators) + 2)
    progress.update(task, description="latency: import")
    found: dict[str, Any] = {"import": _imports(1 if quick else 7)}
    progress.advance(task)
    progress.update(task, description="latency: first calls")
    found["first calls"] = _first_calls(1 if quick else 5)
    progress.advance(task)
    found["one element"] = {}
    for operator in operators:
        progress.update(task, description=f"latency: {operator.name}")
        given = calls.arguments(operator.case((1, 1)), torch.device("cpu"))
        steps = {"genkern": calls.genkern_step(given), "eager": calls.eager_step(given)}
        found["one element"][operator.name] = clock.best(steps, turns=3 if quick else 60)
        progress.advance(task)
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """Imports and first calls, and one element beside eager PyTorch."""
    rows = [[f"import {name}", seconds(value), ""] for name, value in found["import"].items()]
    rows += [[name, seconds(a), seconds(b)] for name, (a, b) in found["first calls"].items()]
    one = [
        [
            operator,
            seconds(times["genkern"]),
            seconds(times["eager"]),
            f"{times['eager'] / times['genkern']:.2f}x",
        ]
        for operator, times in found["one element"].items()
    ]
    return [
        Table("First calls in a fresh process, 24 elements", ["call", "first", "later"], rows),
        Table("One element", ["operator", "genkern", "eager", "eager / genkern"], one),
    ]
