"""Scale and load: the tests of many threads, processes, interrupts, copies and huge tensors.

`--quick` leaves out the tensors of more than 2^31 and 2^32 elements, which take 20 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import environment
from benchmarks.gpu import outcome_of
from benchmarks.report import Record, Table, nbytes, seconds

ROOT = Path(__file__).parents[1]
MEMORY = 20 * 10**9

LOAD = ("tests/test_load.py",)
LARGE = ("-m", "large", "tests")


def missing() -> str | None:
    """What this machine lacks for the largest tensors."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "/proc, where Linux says how much memory is free"
    (available,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return None if available >= MEMORY else f"{nbytes(MEMORY)} of memory that is free"


def run(arguments: tuple[str, ...]) -> list[Record]:
    """Runs tests: one record each."""
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "-c", "pyproject.toml", f"--junitxml={junit}",
            *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"load: the tests ended with {done.returncode}\n{done.stdout}")
        cases = list(ElementTree.parse(junit).iter("testcase"))
    records = []
    for case in cases:
        outcome, said = outcome_of(case)
        # What a name cannot hold: 2^31, and the values that pytest puts in brackets.
        test = re.sub(r"(?<=_)2_(?=3)", "2^", case.attrib["name"])
        test = re.sub(r"_|\[(.*)\]", lambda m: f", {m[1]}" if m[1] else " ", test)
        took = float(case.attrib["time"])
        records.append(
            {"test": test.removeprefix("test "), "outcome": outcome, "said": said, "seconds": took}
        )
    return records


def tables(results: dict[str, Any]) -> list[Table]:
    """One row a test."""
    rows = [
        [r["test"], r["outcome"].replace("failed", "FAILED"), seconds(r["seconds"])]
        for r in results["tests"]
    ]
    return [Table("Scale and load", ["test", "outcome", "time"], rows)]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without the largest tensors")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    options = parser.parse_args()
    console = Console(highlight=False)
    chosen = (LOAD,) if options.quick else (LOAD, LARGE)
    result = {"environment": environment.describe(torch.device("cpu"), torch.get_num_threads())}
    result["tests"] = [
        record
        for arguments in track(chosen, "load", console=Console(stderr=True), transient=True)
        for record in run(arguments)
    ]
    # Of the largest process; kilobytes on Linux.
    result["peak bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    for table in tables(result):
        table.print(console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    failed = [record for record in result["tests"] if record["outcome"] == "failed"]
    for record in failed:
        console.print(f"FAILED {record['test']}: {record['said']}", markup=False)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
