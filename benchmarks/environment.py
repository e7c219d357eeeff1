"""The machine and the software of a run."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import genkern
from benchmarks import roof
from benchmarks.timing import Contender, interleave
from genkern._info import cpu_capability
from genkern._native import unavailable_reason

_ROOF_STREAM = 64 << 20
_TARGET_THREADS = 2
_ROOT = Path(__file__).parents[1]


def _first_line(path: str, start: str = "") -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line for line in lines if line.startswith(start)), None)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def said_by(*command: str) -> str:
    """What a program prints, or an empty string where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""


def _commit() -> str:
    """The checkout's commit, with a + where the sources differ from it."""
    commit = said_by("git", "rev-parse", "--short", "HEAD")
    sources = ("csrc", "genkern", "benchmarks", "tests", "CMakeLists.txt", "setup.py")
    changed = said_by("git", "status", "--porcelain", "--", *sources)
    return commit + ("+" if changed else "") or "not a checkout"


def _cpu() -> str:
    line = _first_line("/proc/cpuinfo", "model name")
    return line.split(":", 1)[1].strip() if line else platform.processor() or platform.machine()


def describe(device: torch.device, threads: int) -> dict[str, Any]:
    """Facts about the run, in the order in which they are printed."""
    load = os.getloadavg()[0]
    governor = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    reason = unavailable_reason(device.type)
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "genkern": genkern.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": f"{_cpu()}, {os.cpu_count()} cores",
        "instruction set": cpu_capability() or f"none: {unavailable_reason('cpu')}",
        "native library": "loaded" if reason is None else f"not used: {reason}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": threads,
        "governor": _first_line(governor) or "not told by the system",
        "load average": round(load, 2),
        "huge pages": "asked for (THP_MEM_ALLOC_ENABLE)"
        if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
        else "not asked for",
    }
    return facts


def warnings(facts: dict[str, Any]) -> list[str]:
    """What makes the run's numbers doubtful."""
    found = []
    if facts["load average"] > 0.5:
        found.append(
            f"other programs are running (load average {facts['load average']}): threads that"
            " wait for one another suffer most, --threads 1 least"
        )
    if facts["governor"] not in ("performance", "not told by the system"):
        found.append(f"the frequency governor is {facts['governor']!r}")
    if facts["threads"] != _TARGET_THREADS:
        found.append(f"floors and goals are set for {_TARGET_THREADS} threads")
    return found


def measure_roof(device: torch.device, threads: int, rounds: int) -> dict[str, Any]:
    """GB/s of each triad, into new tensors and into one buffer; or why there is none."""
    reason = roof.missing_reason(device)
    if reason is not None:
        return {"missing": reason}
    calls = {
        (name, reuse): Contender(triad, threads)
        for reuse in (False, True)
        for name, triad in roof.triads(_ROOF_STREAM, threads, device, reuse=reuse).items()
    }
    timed = interleave(
        {f"{name}|{reuse}": call for (name, reuse), call in calls.items()},
        rounds=rounds,
        seconds=2.0,
        device=device,
    )
    nbytes = roof.STREAMS * _ROOF_STREAM
    rates = {key: nbytes / timed[f"{key[0]}|{key[1]}"].best / 1e9 for key in calls}
    return {
        "stream bytes": _ROOF_STREAM,
        "new tensors": {name: rate for (name, reuse), rate in rates.items() if not reuse},
        "one buffer": {name: rate for (name, reuse), rate in rates.items() if reuse},
    }
