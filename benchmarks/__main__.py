"""Command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks import environment, report
from benchmarks.cases import CASES, Case
from benchmarks.run import Options, run

_EPILOG = """\
Each case is checked against float64 mathematics first; one that fails prints FAILED and no speed,
and the exit code is 1. Times are per call, the best of interleaved rounds. The roof is a C++ triad
into newly allocated tensors, as operators return them. --device cuda times with CUDA events after
overwriting the L2 cache, against PyTorch's triad and without floors and goals; it has not been run
on hardware.
"""
_QUICK_ELEMENTS = 1 << 20


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times genkern against eager PyTorch, torch.compile, diffusers and memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", default="", metavar="PATTERN", help="cases this regex finds")
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    parser.add_argument("--quick", action="store_true", help="3 rounds, at most 1M elements")
    parser.add_argument("--rounds", type=int, help="most rounds of a contender (default 15)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="time for a contender's rounds (default 4)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="default: torch's"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out eager, compile, diffusers, native, triton or reference (repeatable)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the records")
    parser.add_argument("--compare", metavar="FILE", help="compare with an earlier --json FILE")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    return parser


def _selected(pattern: str, quick: bool) -> list[Case]:
    return [
        case
        for case in CASES
        if re.search(pattern, case.id) and not (quick and case.elements > _QUICK_ELEMENTS)
    ]


def _print(results: dict[str, Any], tables: list[report.Table], markdown: bool) -> None:
    facts, roof = results["environment"], results["roof"]
    header = [f"{name}: {value}" for name, value in facts.items()]
    if "missing" in roof:
        header.append(f"roof: none, there is {roof['missing']}; percentages are left out")
    else:
        for kind in ("new tensors", "one buffer"):
            rates = ", ".join(f"{name} {rate:.1f} GB/s" for name, rate in roof[kind].items())
            used = (
                " (the roof, measured again at each case's size)" if kind == "new tensors" else ""
            )
            header.append(f"triad, 64 MB a stream, {kind}: {rates}{used}")
    notes = [f"WARNING: {text}" for text in environment.warnings(facts)]
    notes += report.summary(results["records"])
    if markdown:
        for line in header:
            print(f"- {line}")
        for table in tables:
            print(f"\n{table.markdown()}")
        print("\n" + "\n".join(f"- {line}" for line in notes))
        return
    # Wide enough for the whole table when the output is a file.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 210)
    for line in header:
        console.print(line, markup=False)
    for table in tables:
        table.print(console)
    for line in notes:
        console.print(line, markup=False)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    cases = _selected(args.case, args.quick)
    if not cases:
        parser.error(f"no case matches {args.case!r}; --list names them")
    if args.list:
        print("\n".join(case.id for case in cases))
        return 0
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    before = json.loads(Path(args.compare).read_text()) if args.compare else None
    rounds = args.rounds or (3 if args.quick else 15)
    options = Options(device, args.threads, rounds, args.seconds, frozenset(args.without))

    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {
        "environment": environment.describe(device, args.threads),
        "roof": environment.measure_roof(device, args.threads, rounds),
        "records": [],
    }
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.id)
            results["records"].append(run(case, options))
            progress.advance(task)

    records = results["records"]
    tables = [report.speed(records)]
    if any(r["targets"] for r in records):
        tables.append(report.targets(records))
    if before is not None:
        tables.append(report.compare(before["records"], records))
    _print(results, tables, args.markdown)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    if args.plot:
        from benchmarks import plot

        plot.save(records, results["environment"], args.plot)
    return 0 if all(r["times"] for r in records) else 1


if __name__ == "__main__":
    sys.exit(main())
