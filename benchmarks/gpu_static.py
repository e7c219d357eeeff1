"""What the GPU kernels compile to, and what follows from it: `python -m benchmarks.gpu_static`.

Needs no GPU: the CUDA kernels are read from the library that `make cuda` builds, the Triton kernels
are compiled. The model is benchmarks/gpu_model.py's, the reading docs/gpu_static.md's.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks import environment, gpu_cuda, gpu_triton, report, sass
from benchmarks.gpu_model import GPUS

Record = dict[str, Any]
RECORDED = gpu_cuda.ROOT / "docs/evidence/gpu_static.json"
_MARGIN = 1.03


def compilers() -> dict[str, str]:
    """The releases of what compiled the kernels."""
    triton = environment.version("triton")
    try:
        release = re.search(r"release ([\d.]+)", sass.run_tool("nvcc", "--version"))
    except FileNotFoundError:
        return {"triton": triton}
    return {"cuda": release[1] if release else "unknown", "triton": triton}


def key(record: Record) -> tuple[str, str, str, str]:
    """What a row is of."""
    return record["backend"], record["kernel"], record["dtype"], record["target"]


def accesses(record: Record) -> str:
    """The widths of the accesses to global memory, in bits, and how many there are."""
    return " ".join(
        f"{letter}{bits}x{n}"
        for letter, part in (("L", record["loads"]), ("S", record["stores"]))
        for bits, n in part.items()
    )


def table(records: Sequence[Record], backend: str, target: str) -> report.Table:
    """The rows of a GPU."""
    gpu = GPUS[target]
    chosen = [r for r in records if r["backend"] == backend and r["target"] == target]
    pipes = [p for p in (*sass.PIPES, "vector") if any(p in r["pipes"] for r in chosen)]
    headings = [
        "kernel", "dtype", "regs", "spills", "shared", "occup.", "accesses", "bytes/min",
        "instr.", *pipes, "limit", "bound", "of roof",
    ]  # fmt: skip
    rows = [
        [
            r["kernel"].removesuffix("_kernel"),
            r["dtype"],
            str(r["registers"]),
            str(r["spills"]),
            str(r["shared"]),
            f"{r['occupancy']:.0%}",
            accesses(r),
            f"{r['bytes']:g}/{r['minimum']:g}",
            f"{r['instructions']:.1f}",
            *(f"{r['pipes'].get(p, 0):.1f}" for p in pipes),
            "-" if r["limit"] is None else f"{r['limit']:.1f}",
            r["bound"],
            f"{r['roof']:.0%}",
        ]
        for r in chosen
    ]
    title = (
        f"{backend} on {gpu.name} ({target}): {gpu.bandwidth / 1e12:g} TB/s,"
        f" {gpu.issued_a_byte():.1f} instructions a byte; instructions an element"
    )
    return report.Table(title, headings, rows)


def above(records: Iterable[Record]) -> report.Table:
    """The rows above their limit, the farthest first."""
    found = [r for r in records if r["limit"] is not None and r["instructions"] > r["limit"]]
    found.sort(key=lambda r: r["instructions"] / r["limit"], reverse=True)
    rows = [
        [
            r["kernel"], r["backend"], r["dtype"], GPUS[r["target"]].name,
            f"{r['instructions']:.1f}", f"{r['limit']:.1f}",
            f"+{r['instructions'] - r['limit']:.1f}", f"{r['roof']:.0%}",
        ]
        for r in found
    ]  # fmt: skip
    headings = ["kernel", "backend", "dtype", "GPU", "instr.", "limit", "distance", "of roof"]
    return report.Table("Above the limit of instructions an element", headings, rows)


def summary(records: Sequence[Record]) -> report.Table:
    """Counts, by backend and GPU."""
    rows = []
    for backend, target in sorted({(r["backend"], r["target"]) for r in records}):
        chosen = [r for r in records if (r["backend"], r["target"]) == (backend, target)]
        limited = [r for r in chosen if r["limit"] is not None]
        within = sum(r["instructions"] <= r["limit"] for r in limited)
        rows.append(
            [
                f"{backend}, {GPUS[target].name}",
                str(len(chosen)),
                str(sum(r["spills"] > 0 for r in chosen)),
                str(sum(r["bytes"] > r["minimum"] for r in chosen)),
                f"{within} of {len(limited)}" if limited else "-",
                str(sum(r["bound"] == "memory" for r in chosen)),
                f"{min(r['roof'] for r in chosen):.0%}",
            ]
        )
    headings = [
        "", "kernels", "spill", "move more than once", "within limit", "memory-bound",
        "least of roof",
    ]  # fmt: skip
    return report.Table("Summary", headings, rows)


def worse(now: Iterable[Record], recorded: Iterable[Record]) -> list[str]:
    """What is worse than it was, a line each; a row that is not recorded counts."""
    before = {key(r): r for r in recorded}
    found = []
    for r in now:
        name, old = ", ".join(key(r)), before.get(key(r))
        if old is None:
            found.append(f"{name}: not in the recorded table")
            continue
        if r["spills"] > old["spills"]:
            found.append(f"{name}: {r['spills']} spills, were {old['spills']}")
        if r["bytes"] > old["bytes"]:
            found.append(f"{name}: {r['bytes']:g} bytes an element, were {old['bytes']:g}")
        for what in ("loads", "stores"):
            if r[what].get("128", 0) < old[what].get("128", 0):
                found.append(f"{name}: {what} {r[what]}, were {old[what]}")
        for what, most in (("instructions", _MARGIN), ("occupancy", None), ("roof", None)):
            bad = r[what] > old[what] * most if most else r[what] < old[what] / _MARGIN
            if bad:
                found.append(f"{name}: {what} {r[what]:.3g}, was {old[what]:.3g}")
    return found


def collect(backends: Sequence[str], quick: bool) -> list[Record]:
    """Every row."""
    found: list[Record] = []
    steps = [*(["cuda"] if "cuda" in backends else [])]
    steps += list(gpu_triton.TARGETS) if "triton" in backends else []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(steps))
        for step in steps:
            progress.update(task, description=step)
            if step == "cuda":
                found += gpu_cuda.records()
            else:
                found += gpu_triton.records(gpu_triton.compiled(step, full=not quick), step)
            progress.advance(task)
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_static", description=__doc__)
    parser.add_argument("--backend", choices=["cuda", "triton"], action="append")
    parser.add_argument(
        "--quick", action="store_true", help="Triton in bfloat16 on one GPU, and in part"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows")
    parser.add_argument(
        "--check", metavar="FILE", help="fail where a row is worse than in an earlier --json FILE"
    )
    args = parser.parse_args(argv)
    backends = args.backend or ["cuda", "triton"]
    if "cuda" in backends and not gpu_cuda.LIBRARY.exists():
        parser.error(f"{gpu_cuda.LIBRARY} is not there: run `make cuda`")

    records = collect(backends, args.quick)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 230)
    for backend in backends:
        targets = gpu_cuda.TARGETS if backend == "cuda" else gpu_triton.TARGETS
        for target in targets:
            table(records, backend, target).print(console)
    above(records).print(console)
    summary(records).print(console)
    if args.json:
        facts = environment.describe(torch.device("cpu"), torch.get_num_threads())
        results = {"environment": {**facts, "compilers": compilers()}, "records": records}
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    if not args.check:
        return 0
    recorded = json.loads(Path(args.check).read_text())
    lines = worse(records, recorded["records"])
    for line in lines:
        console.print(f"worse: {line}", markup=False)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
