"""Command line: `python -m benchmarks.profile`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks import environment
from benchmarks.profile import clock, dtypes, instructions, latency, scaling, sizes, vectorised
from benchmarks.report import show

PARTS: dict[str, ModuleType] = {
    "instructions": instructions,
    "vectorised": vectorised,
    "latency": latency,
    "sizes": sizes,
    "dtypes": dtypes,
    "scaling": scaling,
}
_EPILOG = """\
instructions: instructions an element, counted by valgrind's callgrind, which must be installed.
vectorised:   the AVX2 kernels against the compiler's own vectors; builds the library once more.
latency:      imports, first calls, calls of one element beside eager PyTorch's.
sizes:        time an element at odd sizes.
dtypes:       time a byte of bfloat16, float16 and float64 against float32.
scaling:      speedups over one thread.
Times are the best of many short runs; in all parts but scaling, of the processor's own time.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description="Profiles the CPU kernels.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="one operator, small, few runs")
    parser.add_argument(
        "--json", metavar="FILE", help="write the numbers; parts of FILE that are not run are kept"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    return parser


def _measured(name: str, quick: bool, progress: Progress) -> dict[str, Any]:
    facts = environment.describe(torch.device("cpu"), torch.get_num_threads())
    found = PARTS[name].measure(quick, progress)
    return {"environment": facts, "load average after": clock.load(), "found": found}


def _print(name: str, part: dict[str, Any], markdown: bool) -> None:
    found = part["found"]
    if "skipped" in found:
        print(f"{name}: skipped, {found['skipped']}")
    else:
        show(PARTS[name].tables(found), markdown, 210)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    file = Path(args.json) if args.json else None
    results: dict[str, Any] = {}
    threads = torch.get_num_threads()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in args.parts or PARTS:
            torch.set_num_threads(threads)
            results[name] = _measured(name, args.quick, progress)
    torch.set_num_threads(threads)
    for name, part in results.items():
        _print(name, part, args.markdown)
    if file is not None:
        kept = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(kept | results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
