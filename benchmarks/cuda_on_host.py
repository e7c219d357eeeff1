"""The CUDA kernels executed on a CPU with checks: builds, tests, and which kernels ran.

`python -m benchmarks.cuda_on_host --quick` is `make cuda-on-host`; without `--quick` more tests
run, the library of GCC's own sanitizers is built and run too, and each barrier of the kernels is
left out in turn, which has to be noticed. See docs/cuda_on_host.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks.environment import describe
from benchmarks.report import Record, Table

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda-on-host"

# Files with tests that run on each backend. The first take the most of the kernels for the time.
QUICK = ["test_cuda_on_host", "test_conformance", "test_layouts", "test_random"]
MORE = ["test_gradients", "test_diffusion_ops", "test_diffusion", "test_gan", "test_operators"]
ON_HOST = "test_cuda_on_host or cuda-on-host"

# With one barrier less, one of these has to be reported. Several blocks, samples and warps each.
CALLS_WITH_BARRIERS = """
import sys
import torch
sys.path.insert(0, "tests")
from cuda_on_host.backend import CudaOnHost
from genkern import random
from genkern._ops.op import OPS

host = CudaOnHost(sys.argv[1])
x, y = torch.randn(3, 9001), torch.randn(3, 9001)
calls = {
    "normal": (random.key(1), [9001], torch.float32),
    "bernoulli_nll": (x, y, 1),
    "gradient_penalty": (x, 1.0, 1.0, 1),
    "dynamic_threshold": (x, y, None, torch.ones(1, 8), None, None, 1.0, 0.9, 9.0),
}
for name, args in calls.items():
    try:
        host.kernel(OPS[name], args)(*args)
    except RuntimeError as error:
        # Without the place of the launch.
        print(f"{name}: {str(error).splitlines()[0].partition('CUDA: ')[2]}")
"""


def sanitizer() -> str | None:
    """AddressSanitizer's library of the compiler, if it has one."""
    path = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return path if os.path.isabs(path) else None


def missing() -> str | None:
    """What this machine lacks to build the library."""
    if sys.platform != "linux":
        return "Linux"
    tools = [tool for tool in ("g++", "cmake", "ninja") if not shutil.which(tool)]
    return ", ".join(tools) or (None if sanitizer() else "GCC's libasan")


def environment(library: Path) -> dict[str, str]:
    """Variables of a process that runs the library's kernels."""
    return os.environ | {
        "GENKERN_CUDA_ON_HOST": str(library),
        # libstdc++ too: AddressSanitizer's library looks for it at the start.
        "LD_PRELOAD": f"{sanitizer()} libstdc++.so.6",
        # Freed memory comes back soon, so that the race check's record of it is used again.
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def build(kind: str, folder: Path = BUILD, csrc: Path = CSRC) -> Path:
    """The library of a kind, compiled where a source is newer."""
    configure = [
        "cmake", "-S", ROOT / "tests/cuda_on_host", "-B", folder, "-G", "Ninja",
        f"-DGENKERN_TORCH_DIR={Path(torch.__file__).parent}", f"-DGENKERN_CSRC={csrc}",
    ]  # fmt: skip
    # Other compilers have other names for the checks.
    compiler = os.environ | {"CXX": "g++"}
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL, env=compiler)
    subprocess.run(["ninja", "-C", folder, "-j2", "--quiet", kind], check=True)
    return folder / f"libcuda_on_host_{kind}.so"


def run_tests(
    library: Path, files: list[str], variables: dict[str, str], extra: list[str]
) -> list[Record]:
    """Runs the tests on the library: one record a file."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [
            sys.executable, "-m", "pytest", "-q", "-n2", "--dist=worksteal", "-k", ON_HOST,
            f"--junitxml={report.name}", *(f"tests/{file}.py" for file in files), *extra,
        ]  # fmt: skip
        code = subprocess.run(command, cwd=ROOT, env=environment(library) | variables).returncode
        cases = ET.parse(report.name).iter("testcase") if code in (0, 1) else ()
        tests: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for case in cases:
            outcome = next((e.tag for e in case if e.tag != "properties"), "passed")
            tests[case.attrib["classname"].split(".")[-1]][outcome] += 1
    if not tests:
        raise SystemExit(f"cuda-on-host: the tests ended with {code}, see above")
    return [
        {
            "tests": name,
            "passed": found["passed"],
            "failed": found["failure"] + found["error"],
            "skipped": found["skipped"],
        }
        for name, found in sorted(tests.items())
    ]


def kernel_names() -> list[str]:
    """The names of the sources' kernels."""
    text = "\n".join(f.read_text() for f in sorted((CSRC / "cuda").glob("*.cu*")))
    return re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", text)


def kernels(library: Path, notes: Path) -> list[Record]:
    """Of each kernel: how many there are with all template arguments, and how many ran."""
    lines = {line for file in notes.iterdir() for line in file.read_text().splitlines()}
    launched = {int(a) for path, a in map(str.split, lines) if Path(path).name == library.name}
    symbols = subprocess.run(["nm", "-C", library], capture_output=True, text=True, check=True)
    records = []
    for name in kernel_names():
        kernel = re.compile(
            rf"(\w+) [tTwW] (?:void )?genkern::cuda::(?:\(anonymous namespace\)::)?{name}[<(].*\)$"
        )
        addresses = {
            int(match[1], 16)
            for line in symbols.stdout.splitlines()
            if (match := kernel.match(line)) and "{lambda" not in line
        }
        ran = addresses & launched
        records.append({"kernel": name, "compiled": len(addresses), "executed": len(ran)})
    return records


def barriers() -> Iterator[tuple[Path, int]]:
    """File and line of each barrier in the kernels."""
    for file in sorted((CSRC / "cuda").glob("*.cuh")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if "__syncthreads();" in line:
                yield file, number


def leave_out_barriers() -> list[Record]:
    """What is reported without each barrier, in kernels of float32 alone."""
    copy = BUILD / "mutant" / "csrc"
    shutil.copytree(CSRC, copy, dirs_exist_ok=True)
    for file in copy.rglob("*.cuh"):
        text = file.read_text()
        narrow = re.sub(
            r"    case ScalarType::(Double|Half|BFloat16):\n      return f\(.*\);\n", "", text
        )
        file.write_text(narrow)

    def reports() -> list[str]:
        library = build("checked", BUILD / "mutant" / "build", copy)
        done = subprocess.run(
            [sys.executable, "-c", CALLS_WITH_BARRIERS, library],
            cwd=ROOT, env=environment(library), capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    records = [{"barrier": "all there", "reported": reports()}]
    for file, line in tqdm(list(barriers()), desc="barriers", disable=None):
        mutant = copy / file.relative_to(CSRC)
        before = mutant.read_text()
        lines = before.splitlines(keepends=True)
        lines[line - 1] = lines[line - 1].replace("__syncthreads();", "")
        mutant.write_text("".join(lines))
        records.append({"barrier": f"{file.name}:{line}", "reported": reports()})
        mutant.write_text(before)
    return records


def tables(results: dict[str, Any]) -> list[Table]:
    """The results for the terminal."""
    ran = [
        Table(
            f"Tests on the {kind} library",
            ["tests", "passed", "failed", "skipped"],
            [[str(value) for value in record.values()] for record in records],
        )
        for kind, records in results["tests"].items()
    ]
    kernel_rows = [[str(value) for value in record.values()] for record in results["kernels"]]
    ran.append(Table("Kernels", ["kernel", "kinds", "executed"], kernel_rows))
    if "barriers" in results:
        rows = [[r["barrier"], "\n".join(r["reported"]) or "-"] for r in results["barriers"]]
        ran.append(Table("What is reported without a barrier", ["barrier", "reported"], rows))
    return ran


def succeeded(results: dict[str, Any]) -> bool:
    """Whether no test failed, and each barrier was missed and nothing else reported."""
    failed = any(r["failed"] for records in results["tests"].values() for r in records)
    # The first is of the kernels as they are.
    noticed = [bool(r["reported"]) for r in results.get("barriers", [])]
    return not failed and not any(noticed[:1]) and all(noticed[1:])


def main() -> None:
    """Runs from the command line; exits with 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_on_host", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tests, one library")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options, extra = parser.parse_known_args()
    if lacks := missing():
        print(f"cuda-on-host: not run, missing: {lacks}")
        return

    kinds = ["checked"] if options.quick else ["checked", "sanitized"]
    facts = describe(torch.device("cpu"), 1)
    results: dict[str, Any] = {"environment": facts, "quick": options.quick, "tests": {}}
    libraries = {kind: build(kind) for kind in kinds}
    with tempfile.TemporaryDirectory() as notes:
        for kind, library in libraries.items():
            folder = Path(notes) / kind
            folder.mkdir()
            files = QUICK + MORE if kind == "checked" and not options.quick else QUICK
            variables = {"CUDA_ON_HOST_KERNELS": str(folder)}
            if options.quick:
                variables["CUDA_ON_HOST_QUICK"] = "1"
            results["tests"][kind] = run_tests(library, files, variables, extra)
        results["kernels"] = kernels(libraries["checked"], Path(notes) / "checked")
    if not options.quick:
        results["barriers"] = leave_out_barriers()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    results["cpu seconds"] = round(used.ru_utime + used.ru_stime, 1)
    console = Console()
    for table in tables(results):
        table.print(console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(not succeeded(results))


if __name__ == "__main__":
    main()
