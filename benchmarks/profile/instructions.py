"""Instructions an element of every kernel, counted by valgrind's callgrind.

Valgrind runs one process for each instruction set, which calls every operator at two sizes; the
difference of the counts is the elements' own, without Python and the dispatcher.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import compile
from benchmarks.profile.counted import SIZES
from benchmarks.profile.operators import DTYPES, OPERATORS, short
from benchmarks.report import Table

# Valgrind knows no AVX-512.
_CAPABILITIES = ("avx2", "baseline")
# Kernels call the C library for copies and float64's elementary functions. Other objects are
# Python's and torch's: their work does not grow with the elements.
_OBJECTS = re.compile(r"/(libgenkern_cpu|libm[.-]|libmvec|libc[.-])")
_SOURCE = Path(__file__).parent.parent / "callgrind.cpp"
_ROOT = Path(__file__).parents[2]


def missing_reason() -> str | None:
    """Why nothing can be counted, or None."""
    if shutil.which("valgrind") is None:
        return "valgrind was not found"
    return compile.library(_SOURCE, "-O1")[1] or None


def read(lines: Iterator[str]) -> tuple[str, int] | None:
    """The label of one of callgrind's files, and the instructions of the kernels' objects in it."""
    label, total, names, counted = None, 0, {}, False
    for line in lines:
        if line.startswith("desc: Trigger: Client Request: "):
            label = line.split(": ", 3)[3].strip()
        elif line.startswith("ob="):
            number, _, name = line[3:].strip().partition(" ")
            # A name is written out once, with a number that stands for it from there on.
            counted = bool(_OBJECTS.search(names.setdefault(number, name)))
        elif line.startswith("cob="):
            number, _, name = line[4:].strip().partition(" ")
            names.setdefault(number, name)
        elif line.startswith("calls="):
            next(lines)  # what the callee took
        elif counted and line[0] in "0123456789+-*":
            total += int(line.split()[1])
    return None if label is None else (label, total)


def _count(capability: str, pattern: str) -> dict[str, dict[str, float]]:
    library, _ = compile.library(_SOURCE, "-O1")
    environment = os.environ | {
        "GENKERN_CPU_CAPABILITY": capability,
        "GENKERN_BACKEND": "native",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(_ROOT),
    }
    counts: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no",
            f"--callgrind-out-file={folder}/out", sys.executable,
            "-m", "benchmarks.profile.counted", str(library), pattern,
        ]  # fmt: skip
        subprocess.run(command, env=environment, cwd=_ROOT, check=True, stderr=subprocess.DEVNULL)
        for path in Path(folder).iterdir():
            with path.open() as lines:
                found = read(lines)
            if found is not None:
                operator, dtype, size = found[0].split()
                counts[operator, dtype][int(size)] = found[1]
    small, large = SIZES
    result: dict[str, dict[str, float]] = defaultdict(dict)
    for (operator, dtype), at in counts.items():
        result[operator][dtype] = round((at[large] - at[small]) / (large - small), 3)
    return dict(result)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Instructions an element, by instruction set, operator and dtype."""
    reason = missing_reason()
    if reason is not None:
        return {"skipped": reason}
    pattern = "q_sample-" if quick else ""
    task = progress.add_task("instructions", total=len(_CAPABILITIES))
    found: dict[str, Any] = {}
    for capability in _CAPABILITIES:
        progress.update(task, description=f"instructions: {capability}")
        found[capability] = _count(capability, pattern)
        progress.advance(task)
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """A column for each instruction set and dtype."""
    columns = [(c, short(d)) for c in _CAPABILITIES for d in DTYPES]
    rows = []
    for operator in (o.name for o in OPERATORS):
        if operator in found[_CAPABILITIES[0]]:
            numbers = (found[c][operator][d] for c, d in columns)
            rows.append([operator, *(f"{number:.1f}" for number in numbers)])
    headings = ["operator", *(f"{c} {d}" for c, d in columns)]
    return [Table("Instructions an element (callgrind)", headings, rows)]
