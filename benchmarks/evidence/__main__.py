"""Command line: `python -m benchmarks.evidence`, which is `make report`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.evidence import page
from benchmarks.evidence.parts import FOLDER, PARTS, ROOT, Part

_PAGE = ROOT / "docs" / "report.md"
_PICTURES = ROOT / "docs" / "_static" / "report"


def _parser() -> argparse.ArgumentParser:
    parts = "\n".join(f"  {p.name:13} {p.shows} ({p.minutes:g} min)" for p in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description="Runs what shows that genkern is right, safe and fast; writes docs/report.md.",
        epilog=f"parts:\n{parts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--quick", action="store_true", help="short forms")
    parser.add_argument("--only", action="append", choices=names, metavar="PART")
    parser.add_argument("--draw", action="store_true", help="write the page; run nothing")
    return parser


def _run(part: Part, quick: bool, console: Console) -> bool:
    """Runs a part that there is all for; false if it failed."""
    lacking = part.lacks()
    if lacking:
        console.print(f"{part.name}: left out, missing: {lacking}", markup=False)
        return True
    log = ROOT / "build" / "evidence" / f"{part.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        command = [sys.executable, *part.command(quick)]
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if part.one_thread else {})
        code = subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, env=environment).returncode
    if code:
        console.print(f"{part.name}: FAILED with {code}, see {log}", markup=False)
    return code == 0


def run(parts: list[Part], quick: bool, console: Console) -> list[str]:
    """Runs what is timed, one after another, then the rest, two at a time; who failed."""
    columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(part.minutes for part in parts))

        def one(part: Part) -> bool:
            progress.update(task, description=part.name)
            done = _run(part, quick, console)
            progress.advance(task, part.minutes)
            return done

        # The machine is cool and idle at first. Of the rest the longest starts first.
        timed = [part for part in parts if part.timed]
        others = sorted((part for part in parts if not part.timed), key=lambda p: -p.minutes)
        done = [one(part) for part in timed]
        with ThreadPoolExecutor(2) as pool:
            done += pool.map(one, others)
    return [part.name for part, well in zip([*timed, *others], done, strict=True) if not well]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    FOLDER.mkdir(exist_ok=True)
    chosen = [part for part in PARTS if not args.only or part.name in args.only]
    failed = [] if args.draw else run(chosen, args.quick, console)
    found = {part.name: json.loads(part.file.read_text()) for part in PARTS if part.file.exists()}
    page.write(found, _PAGE, _PICTURES)
    print(f"report: {_PAGE.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
