"""The CPU library under sanitizers: a build of its own, then tests and fuzzing with it.

AddressSanitizer and UndefinedBehaviorSanitizer in one build, ThreadSanitizer in another, whose
threads are the library's own: GCC's libgomp is not made for it (see CMakeLists.txt). PyTorch and
Python are not instrumented; what their allocators hand out is watched all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import environment
from benchmarks.report import Table
from genkern._info import CAPABILITIES, cpu_capability

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Sanitizer:
    """What a build is compiled with, and what its programs load first."""

    flags: str
    libraries: tuple[str, ...]
    options: dict[str, str]
    # Arguments of Python, after the interpreter: run with the processor's best instruction set, and
    # with each lower one.
    commands: tuple[tuple[str, ...], ...]
    lower: tuple[tuple[str, ...], ...] = ()


_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"))

_FUZZ = ("-m", "benchmarks.fuzz")

# Of pytest, and of the calls.
_SUMMARY = re.compile(r"\d+ passed.*|\w+: [\d,]+ calls")


def _tests(*arguments: str) -> tuple[str, ...]:
    return (*_PYTEST, *(str(ROOT / a) if a.startswith("tests/") else a for a in arguments))


SANITIZERS = {
    "address": Sanitizer(
        "address,undefined",
        ("libasan.so", "libubsan.so"),
        {
            # Python and torch leave memory to the end of the process.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        (
            _tests("tests/test_conformance.py", "-k", "native"),
            _tests("tests/test_layouts.py", "tests/test_errors.py", "-k", "native or layout"),
            _tests("tests/test_memory.py"),
            (*_FUZZ, "--cases", "2000", "--hostile", "50000"),
        ),
        ((*_FUZZ, "--cases", "500", "--hostile", "20000"),),
    ),
    "thread": Sanitizer(
        "thread",
        ("libtsan.so",),
        {"TSAN_OPTIONS": "halt_on_error=1"},
        (
            _tests("tests/test_conformance.py", "-k", "native and thread"),
            _tests("tests/test_load.py", "tests/test_memory.py", "-k", "threads"),
            (*_FUZZ, "--cases", "300", "--hostile", "2000"),
        ),
    ),
}


def _library(name: str) -> str | None:
    """The path of a library of the compiler."""
    gcc = shutil.which("gcc")
    if gcc is None:
        return None
    found = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True)
    path = Path(found.stdout.strip())
    return str(path) if path.is_absolute() and path.exists() else None


def _tool(name: str) -> str | None:
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def missing(name: str) -> str | None:
    """What is missing to use a sanitizer, or None."""
    for library in SANITIZERS[name].libraries:
        if _library(library) is None:
            return f"GCC's {library}"
    return None if _tool("cmake") and _tool("ninja") else "CMake and Ninja"


def build(name: str, only: str = "") -> Path:
    """Builds a sanitized copy of the package, for one instruction set or all; its folder."""
    folder = ROOT / "build" / f"sanitize-{name}{only and '-' + only}"
    options = {
        "CMAKE_CXX_COMPILER": "g++",
        "CMAKE_MAKE_PROGRAM": _tool("ninja"),
        "GENKERN_CPU": "ON",
        "GENKERN_ONLY": only,
        "GENKERN_SANITIZE": SANITIZERS[name].flags,
        "GENKERN_TORCH_DIR": Path(torch.__file__).parent,
    }
    cmake, package = _tool("cmake"), folder / "package"
    configure = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja"]
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    subprocess.run([*configure, *(f"-D{k}={v}" for k, v in options.items())], **quiet)
    subprocess.run([cmake, "--build", folder], check=True)
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "genkern", package / "genkern", ignore=ignored)
    subprocess.run([cmake, "--install", folder, "--prefix", package], **quiet)
    return package


def run(name: str, package: Path, command: tuple[str, ...], **options: Any) -> Any:
    """Runs Python with the sanitized copy; returns what subprocess.run does."""
    sanitizer = SANITIZERS[name]
    # libstdc++ with them: the sanitizer looks for its functions before torch brings it.
    preloaded = [_library(library) for library in (*sanitizer.libraries, "libstdc++.so.6")]
    environment = os.environ | sanitizer.options
    environment |= {
        "LD_PRELOAD": " ".join(preloaded),
        "PYTHONPATH": f"{package}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "2" if name == "address" else "1",
    }
    # ThreadSanitizer expects programs where older kernels put them.
    setarch = shutil.which("setarch") if name == "thread" else None
    prefix = [setarch, "-R"] if setarch else []
    return subprocess.run(
        [*prefix, sys.executable, *command], cwd=package, env=environment, **options
    )


def _runs(name: str, only: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The instruction sets and commands of a build."""
    best = only or cpu_capability() or CAPABILITIES[0]
    for command in SANITIZERS[name].commands:
        yield best, command
    for lower in () if only else CAPABILITIES[: CAPABILITIES.index(best)]:
        for command in SANITIZERS[name].lower:
            yield lower, command


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__)
    parser.add_argument("--only", default="", help="an instruction set: baseline, avx2 or avx512")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("names", nargs="*", default=list(SANITIZERS), help="address, thread")
    options = parser.parse_args()
    facts = environment.describe(torch.device("cpu"), torch.get_num_threads())
    steps: list[dict[str, Any]] = []
    for name in options.names:
        lacking = missing(name)
        if lacking:
            print(f"sanitize: {name} is left out, missing: {lacking}")
            continue
        print(f"sanitize: building for {SANITIZERS[name].flags}", flush=True)
        package = build(name, options.only)
        for capability, command in _runs(name, options.only):
            shown = " ".join(a.replace(f"{ROOT}/", "") for a in command)
            print(f"sanitize: {name}, {capability}: python {shown}", flush=True)
            os.environ["GENKERN_CPU_CAPABILITY"] = capability
            start = time.monotonic()
            answer = run(name, package, command, stdout=subprocess.PIPE, text=True)
            print(answer.stdout, flush=True)
            steps.append(
                {
                    "sanitizer": SANITIZERS[name].flags,
                    "instruction set": capability,
                    "command": f"python {shown}",
                    "exit code": answer.returncode,
                    "seconds": round(time.monotonic() - start),
                    "summary": "; ".join(_SUMMARY.findall(answer.stdout)),
                }
            )
            if options.json:  # after each, for a run that is cut short
                found = {"environment": facts, "steps": steps}
                options.json.write_text(json.dumps(found, indent=2) + "\n")
    heads = ("command", "sanitizer", "instruction set", "exit code", "seconds")
    rows = [[str(s[k]) for k in heads] for s in steps]
    Table("Sanitizers: 0 is no fault", heads, rows).print(Console(width=160))
    if any(s["exit code"] for s in steps):
        raise SystemExit("sanitize: see above")


if __name__ == "__main__":
    main()
