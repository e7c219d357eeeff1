"""The AVX2 kernels against the same C++ with the vectors left to the compiler.

The library is built a second time with GENKERN_AUTO_VECTORS (see CMakeLists.txt): the same flags,
sources and instruction set, without csrc/cpu/lanes.h's vectors. Two processes, one for each
library, time every operator by turns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks import calls, roof
from benchmarks.profile import worker
from benchmarks.profile.operators import OPERATORS, Operator
from benchmarks.report import Table
from genkern import _native

_ROOT = Path(__file__).parents[2]
_BUILD = _ROOT / "build" / "auto_vectors"
_FLOOR = 1.5
_DTYPES = ("float32", "bfloat16", "float16")  # the vectors are of float32


def _build() -> str | None:
    """Builds the second library; returns why it could not, or None."""
    cmake, found = shutil.which("cmake", path=_path()), importlib.util.find_spec("torch")
    ninja = shutil.which("ninja", path=_path())
    if cmake is None or found is None or found.origin is None:
        return "cmake was not found"
    options = {
        "GENKERN_CPU": "ON",
        "GENKERN_AUTO_VECTORS": "ON",
        "GENKERN_ONLY": "avx2",
        "GENKERN_TORCH_DIR": str(Path(found.origin).parent),
    }
    if ninja:
        options["CMAKE_MAKE_PROGRAM"] = ninja
    configure = [cmake, "-S", str(_ROOT), "-B", str(_BUILD), *(["-G", "Ninja"] if ninja else [])]
    for command in (
        [*configure, *(f"-D{name}={value}" for name, value in options.items())],
        [cmake, "--build", str(_BUILD), "--target", "genkern_cpu"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return f"the second library was not built: {lines[-1]}"
    return None


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


class _Worker:
    """A process with one library, which times what it is asked for."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {
            "GENKERN_CPU_CAPABILITY": "avx2",
            "GENKERN_BACKEND": "native",
            "OMP_NUM_THREADS": "1",
            # Outputs are memory that was used before: no page is cleared in a timed call.
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
            "PYTHONPATH": str(_ROOT),
        }
        command = [sys.executable, "-m", "benchmarks.profile.worker", str(folder)]
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, operator: str, dtype: str) -> list[float]:
        """Seconds that a call takes at each size, the best of a few runs."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{operator} {dtype}\n")
        self.process.stdin.flush()
        found: list[float] = json.loads(self.process.stdout.readline())
        return found


@contextlib.contextmanager
def _workers() -> Iterator[dict[str, _Worker]]:
    package = Path(_native.__file__).parent
    workers = {"explicit": _Worker(package), "compiler": _Worker(_BUILD)}
    try:
        yield workers
    finally:
        for process in (w.process for w in workers.values()):
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def missing_reason() -> str | None:
    """Why there is nothing to compare, or None; builds the second library."""
    from genkern._info import cpu_capability

    if cpu_capability() not in ("avx2", "avx512"):
        return "no native library on a processor with AVX2"
    return _build()


def _each(small: float, large: float) -> float:
    """What an element adds, from the values at the two sizes."""
    return (large - small) / (worker.SIZES[1] - worker.SIZES[0])


def _bytes(operator: Operator, dtype: str) -> float:
    """Bytes that an element reads and writes."""
    return _each(*(calls.traffic(worker.step(operator, size, dtype))[0] for size in worker.SIZES))


def _compared(workers: dict[str, _Worker], operator: str, dtype: str, turns: int) -> dict[str, Any]:
    best = {name: [math.inf, math.inf] for name in workers}
    for _ in range(turns):
        for name, process in workers.items():
            best[name] = list(map(min, best[name], process.ask(operator, dtype)))
    return {name: _each(*times) for name, times in best.items()}


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Seconds and bytes an element by operator and dtype, of both libraries, one thread."""
    operators = [o for o in OPERATORS if not quick or o.problem.name == "q_sample"]
    task = progress.add_task("vectorised: build", total=len(operators))
    reason = missing_reason()
    if reason is not None:
        return {"skipped": reason}
    turns = 2 if quick else 8
    found: dict[str, Any] = {}
    with _workers() as workers:
        if roof.missing_reason(torch.device("cpu")) is None:
            # Three streams of 4 bytes an element.
            best = min(_compared(workers, worker.TRIAD, "float32", turns).values())
            found["triad, bytes a second"] = 4 * roof.STREAMS / best
        found["operators"] = {}
        for operator in operators:
            progress.update(task, description=f"vectorised: {operator.name}")
            found["operators"][operator.name] = {
                dtype: _compared(workers, operator.name, dtype, turns)
                | {"bytes": _bytes(operator, dtype)}
                for dtype in _DTYPES
            }
            progress.advance(task)
    return found


def judged(times: dict[str, float], roof_rate: float | None) -> str:
    """Whether float32 meets the floor, or why it need not."""
    if times["compiler"] / times["explicit"] >= _FLOOR:
        return "met"
    # The compiler's code can be no faster than the cache: where it is nearly that fast, nothing is
    # 1.5 times faster.
    most = times["bytes"] / roof_rate if roof_rate else 0.0
    return "cache-bound" if times["compiler"] < _FLOOR * most else "below"


def tables(found: dict[str, Any]) -> list[Table]:
    """The compiler's time over the explicit vectors'."""
    rate = found.get("triad, bytes a second")
    rows = []
    for operator, by in found["operators"].items():
        ratios = [f"{by[d]['compiler'] / by[d]['explicit']:.2f}x" for d in _DTYPES]
        times = [f"{by[d]['explicit'] * 1e9:.3f}" for d in _DTYPES]
        base = by["float32"]
        share = base["bytes"] / base["explicit"] / rate if rate else math.nan
        rows.append([operator, *times, *ratios, f"{share:.0%}", judged(base, rate)])
    headings = ["operator", *(f"{d}: ns" for d in _DTYPES), *(f"{d}: ratio" for d in _DTYPES)]
    known = f", {rate / 1e9:.0f} GB/s" if rate else ""
    return [
        Table(
            f"AVX2: ns an element, and the compiler's time over it (L2 cache; triad{known})",
            [*headings, "of the triad's bytes/s", f"{_FLOOR}x"],
            rows,
        )
    ]
