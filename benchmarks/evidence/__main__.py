"""Command line: `python -m benchmarks.evidence`, which is `make report`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import gpu
from benchmarks.evidence import page, tables
from benchmarks.evidence.parts import PARTS, ROOT, Part

_WORK = ROOT / "build" / "evidence"
_PAGE = ROOT / "docs" / "report.md"


def _parser() -> argparse.ArgumentParser:
    parts = "\n".join(f"  {p.name:13} {p.shows} ({p.minutes:g} min)" for p in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description="Runs what shows that genkern is right, safe and fast; writes docs/report.md,"
        " the pictures and the tables of the other pages.",
        epilog=f"parts:\n{parts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--quick", action="store_true", help="short forms, to build/evidence: nothing is recorded"
    )
    parser.add_argument("--only", action="append", choices=names, metavar="PART")
    parser.add_argument("--draw", action="store_true", help="write the pages; run nothing")
    return parser


def _run(part: Part, quick: bool, folder: Path) -> str | None:
    """Runs a part and records its numbers; says why there are none."""
    if lacking := part.lacks():
        return f"left out, missing: {lacking}"
    file, log = folder / f"{part.name}.json", folder / f"{part.name}.txt"
    file.unlink(missing_ok=True)
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if part.one_thread else {})
    with log.open("w") as out:
        command = [sys.executable, *part.command(quick, file)]
        code = subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, env=environment).returncode
    if code:
        return f"FAILED with {code}, see {os.path.relpath(log, ROOT)}"
    if not quick:
        shutil.copy(file, part.file)
    return None


def run(parts: list[Part], quick: bool, console: Console, folder: Path) -> dict[str, str]:
    """Runs what is timed, one after another, then the rest, two at a time.

    Returns:
        Why parts have no new numbers, by their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(part.minutes for part in parts))

        def one(part: Part) -> str | None:
            progress.update(task, description=part.name)
            said = _run(part, quick, folder)
            if said:
                console.print(f"{part.name}: {said}", markup=False)
            progress.advance(task, part.minutes)
            return said

        # The machine is cool and idle at first. Of the rest the longest starts first.
        timed = [part for part in parts if part.timed]
        others = sorted((part for part in parts if not part.timed), key=lambda p: -p.minutes)
        done = [one(part) for part in timed]
        with ThreadPoolExecutor(2) as pool:
            done += pool.map(one, others)
    names = [part.name for part in (*timed, *others)]
    return {name: said for name, said in zip(names, done, strict=True) if said}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    # CMake, Ninja and the linters of this environment, whether it is activated or not.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    folder = _WORK / ("quick" if args.quick else "whole")
    chosen = [part for part in PARTS if not args.only or part.name in args.only]
    remarks = {} if args.draw else run(chosen, args.quick, console, folder)

    files = {part.name: folder / f"{part.name}.json" if args.quick else part.file for part in PARTS}
    files["gpu"] = gpu.EVIDENCE
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    target = folder / _PAGE.name if args.quick else _PAGE
    page.write(found, target, remarks, short=args.quick)
    if not args.quick:
        for path, text in tables.pages(found).items():
            path.write_text(text)
    print(f"report: {os.path.relpath(target, ROOT)}")
    return 1 if any("FAILED" in said for said in remarks.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
