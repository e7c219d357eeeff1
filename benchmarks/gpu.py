"""Everything that needs a GPU, in one command: `make gpu`, or `python -m benchmarks.gpu`.

It runs the tests in tests/gpu, each file and backend in processes of its own, since a kernel that
fails takes its process's device with it. Then it runs the benchmarks with --device cuda, and writes
both with a description of the machine as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks import environment, report
from genkern._native import build_facts, unavailable_reason
from genkern._triton import launch

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "gpu"
EVIDENCE = ROOT / "docs" / "evidence" / "gpu.json"
BACKENDS = ("native", "triton")
# A kernel that never ends would otherwise keep the command for ever.
_SECONDS = 2 * 3600
# Compiling for Triton is the CPU's work, and each process has some 500 MB of the device.
_WORKERS = min(8, os.cpu_count() or 1)
# Its tensors fill the device.
_ALONE = "large"
_QUICK = 20
_PASSED, _FAILED, _SKIPPED = "passed", "failed", "skipped"

Group = dict[str, Any]


def groups() -> list[str]:
    """The files of tests, by what they are about."""
    return sorted(path.stem.removeprefix("test_gpu_") for path in TESTS.glob("test_gpu_*.py"))


def obstacle(device: str) -> str | None:
    """Why nothing can run, or None."""
    if device == "cpu" or torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build: set TORCH, see docs/gpu.md"
    return "torch sees no CUDA device"


def missing(device: str) -> list[str]:
    """What cannot be tested, with the reason."""
    if device == "cpu":
        return []
    found = []
    reason = unavailable_reason("cuda")
    if reason is not None:
        notes = [note for note in build_facts().get("notes", []) if "CUDA" in note]
        found.append(" ".join([f"the native backend is not tested: {reason}.", *notes]))
    reason = launch.unavailable_reason()
    if reason is not None:
        found.append(f"the triton backend is not tested: {reason}.")
    if shutil.which("compute-sanitizer") is None:
        found.append("accesses are not checked: compute-sanitizer is not on PATH.")
    return found


# ---- tests


def outcome_of(case: ElementTree.Element) -> tuple[str, str]:
    """How a case of a JUnit file ended, and what it said."""
    for tag, outcome in (("failure", _FAILED), ("error", _FAILED), ("skipped", _SKIPPED)):
        child = case.find(tag)
        if child is not None:
            return outcome, child.get("message", "")
    return _PASSED, ""


def _new_group(name: str, backend: str) -> Group:
    counts = {_PASSED: 0, _FAILED: 0, _SKIPPED: 0}
    return {
        "group": name,
        "backend": backend,
        **counts,
        "seconds": 0.0,
        "failures": [],
        "skips": {},
    }


def read(path: Path, names: Sequence[str] = BACKENDS) -> list[Group]:
    """The counts of a JUnit file, by file of tests and backend."""
    found: dict[tuple[str, str], Group] = {}
    skips: dict[tuple[str, str], Counter[str]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = case.get("name", "")
        file = case.get("classname", "").rsplit(".", 1)[-1].removeprefix("test_gpu_")
        backend = next((b for b in names if re.search(rf"[\[-]{b}[\]-]", name)), "-")
        group = found.setdefault((file, backend), _new_group(file, backend))
        outcome, message = outcome_of(case)
        group[outcome] += 1
        group["seconds"] += float(case.get("time", 0.0))
        if outcome == _FAILED:
            group["failures"].append({"test": name, "message": message[:2000]})
        elif outcome == _SKIPPED:
            skips.setdefault((file, backend), Counter())[message] += 1
    for key, reasons in skips.items():
        found[key]["skips"] = dict(reasons.most_common())
    return list(found.values())


def run_tests(device: str, names: Sequence[str], backend: str, every: int = 1) -> list[Group]:
    """Runs files of tests on one backend, every n-th case of each test, and counts."""
    workers = 0 if device == "cpu" or _ALONE in names else _WORKERS
    # The interpreter, which tests ask for on a CPU, would keep Triton from the device.
    variables = {} if device == "cpu" else {"TRITON_INTERPRET": "0"}
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [
            sys.executable, "-m", "pytest", *(str(TESTS / f"test_gpu_{name}.py") for name in names),
            "-m", "gpu", "-k", backend, "--device", device, "--every", str(every), "--quiet",
            "-n", str(workers), "-p", "no:cacheprovider", "--junitxml", str(junit),
            # On a GPU, compilers and drivers have warnings that no test foresees.
            "-W", "default",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | variables,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
            said = done.stdout[-1500:] + done.stderr[-500:]
            end = f"it ended with {done.returncode}\n{said}"
            # 5: nothing was selected.
            whole = done.returncode in (0, 1, 5)
        except subprocess.TimeoutExpired:
            whole, end = False, f"it did not end within {_SECONDS} s"
        found = read(junit) if junit.exists() else []
    if not whole:
        lost = _new_group(", ".join(names), backend)
        lost[_FAILED] = 1
        lost["failures"] = [{"test": "the process", "message": end}]
        found.append(lost)
    return found


def table(found: Sequence[Group]) -> report.Table:
    """One row a file and backend."""
    rows = [
        [
            group["group"],
            group["backend"],
            str(group[_PASSED]),
            f"{group[_FAILED]} FAILED" if group[_FAILED] else "0",
            str(group[_SKIPPED]),
            report.seconds(group["seconds"]),
        ]
        for group in found
    ]
    headings = ["tests", "backend", "passed", "failed", "skipped", "time"]
    return report.Table("Tests on the device", headings, rows)


def _remarks(found: Sequence[Group]) -> Iterator[str]:
    for group in found:
        where = f"{group['group']}, {group['backend']}"
        for failure in group["failures"]:
            yield f"FAILED {where}: {failure['test']}: {failure['message'].splitlines()[0]}"
        for reason, count in group["skips"].items():
            yield f"skipped {where}: {count} {reason}"


# ---- the machine


def machine(device: str) -> dict[str, Any]:
    """Facts about the run."""
    facts = environment.describe(torch.device(device), torch.get_num_threads())
    if device == "cuda":
        facts["devices"] = [
            {
                "name": p.name,
                "compute capability": f"{p.major}.{p.minor}",
                "memory": report.nbytes(p.total_memory),
                "multiprocessors": p.multi_processor_count,
            }
            for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ]
        facts["driver"] = environment.said_by(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        facts["CUDA of torch"] = torch.version.cuda or f"ROCm {torch.version.hip}"
        facts["CUDA of the library"] = build_facts().get("cuda")
        facts["triton"] = environment.version("triton")
    return facts


def _benchmarks(device: str, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmarks.json"
        command = [sys.executable, "-m", "benchmarks", "--device", device, "--json", str(file)]
        done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT)
        if not file.exists():
            return {"records": [], "ended with": done.returncode}
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal"
    )
    parser.add_argument("--quick", action="store_true", help="every 20th case, quick benchmarks")
    parser.add_argument("--no-benchmarks", action="store_true", help="the tests alone")
    parser.add_argument("--json", metavar="FILE", type=Path, default=EVIDENCE)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    reason = obstacle(args.device)
    if reason is not None:
        print(f"make: {reason}", file=sys.stderr)
        return 2
    left_out = missing(args.device)
    for line in left_out:
        print(f"make: {line}", file=sys.stderr)

    found: list[Group] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("tests", total=len(groups()) * len(BACKENDS))
        for name in groups():
            for backend in BACKENDS:
                progress.update(task, description=f"{name}, {backend}")
                found += run_tests(args.device, [name], backend, _QUICK if args.quick else 1)
                progress.advance(task)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table(found).print(console)
    for line in _remarks(found):
        console.print(line, markup=False)

    results = {"environment": machine(args.device), "missing": left_out, "tests": found}
    whole = not left_out and not any(group[_FAILED] for group in found)
    if not args.no_benchmarks:
        timed = results["benchmarks"] = _benchmarks(args.device, args.quick)
        whole = whole and bool(timed["records"]) and all(r["times"] for r in timed["records"])
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"make: written to {args.json}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
