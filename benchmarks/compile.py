"""Compiles the benchmarks' C++ files, once for each source and command."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "genkern-benchmarks"


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, source: Path, flags: Sequence[str]) -> Path:
    # -march=native: a cache on a shared home directory must not serve another processor.
    parts = (compiler, *flags, source.read_text(), _cpu_flags())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = _cache() / f"{source.stem}-{digest[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            command = [compiler, *flags, "-shared", "-fPIC", "-o", str(built), str(source)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            built.replace(path)
    return path


@functools.cache
def library(source: Path, *flags: str) -> tuple[Path | None, str]:
    """The shared library of a C++ file, or None and the reason."""
    name = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if name is None:
        return None, "no C++ compiler (c++, g++, clang++ or $CXX)"
    try:
        return _compile(name, source, flags), ""
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1]
        return None, f"{name} cannot compile {source.name}: {reason}"
    except OSError as error:
        return None, f"{source.name} cannot be built with {name}: {error}"
