"""Builds the native parts of genkern with CMake, or says in one line why it does not.

Three parts, each built only where its tools are: ``genkern_host`` (the NumPy module),
``genkern/libgenkern_cpu.so`` and ``genkern/libgenkern_cuda.so``. ``GENKERN_BUILD`` chooses:

  auto   whatever can be built; pure Python where nothing can (the default)
  none   pure Python
  cpu    the CPU library, or an error
  cuda   the CPU and the CUDA library, or an error

``GENKERN_WERROR=1``, for development, makes compiler warnings and failed builds errors, and
``CMAKE_ARGS`` adds arguments for CMake. Whether a GPU is present is never asked: build machines
have none. Sources and flags are in CMakeLists.txt.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, OptionError

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "none", "cpu", "cuda")
OLDEST_TORCH = (2, 10)
FALLBACK = "The reference and Triton backends still work."


@dataclass
class Facts:
    """What is built and with what: genkern/_build.json, shown by `python -m genkern info`."""

    mode: str
    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compiler: str | None = None
    torch: str | None = None
    cuda: str | None = None

    def write(self, package: Path) -> None:
        """Writes the facts into a package directory."""
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass
class Plan:
    """The facts before the build, CMake's options, and the error if the mode cannot be met."""

    facts: Facts
    options: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Torch:
    """A torch installation, as its files describe it."""

    directory: Path
    version: str
    cuda: str | None


def find_tool(*names: str) -> str | None:
    """Finds the first of some programs, looking beside the interpreter before PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def find_torch() -> Torch | None:
    """Finds torch without importing it: that takes seconds, and needs its drivers present.

    pip's build isolation hides torch by PYTHON* variables. An interpreter that ignores them (-E)
    sees what the installed package will see.
    """
    spec = importlib.util.find_spec("torch")
    origin = spec.origin if spec else None
    if origin is None:
        code = "from importlib.util import find_spec as f; print(getattr(f('torch'), 'origin', ''))"
        child = [sys.executable, "-E", "-c", code]
        origin = subprocess.run(child, capture_output=True, text=True).stdout.strip()
    version_file = Path(origin).with_name("version.py") if origin not in ("", "None") else None
    if version_file is None or not version_file.is_file():
        return None
    text = version_file.read_text()
    version = re.search(r"^__version__ = '([^']+)'", text, re.M)
    cuda = re.search(r"^cuda\b.*= '([^']+)'", text, re.M)
    return Torch(version_file.parent, version[1] if version else "0", cuda[1] if cuda else None)


def missing_in_torch(torch: Torch | None) -> str | None:
    """Says what is missing to build the libraries against this torch, if anything is."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    if torch is None:
        return "torch (if it is installed, try --no-build-isolation)"
    if tuple(int(n) for n in re.findall(r"\d+", torch.version)[:2]) < OLDEST_TORCH:
        return f"torch >= {oldest} (found {torch.version})"
    if not (torch.directory / "include/torch/csrc/stable/library.h").is_file():
        return f"the headers of torch {torch.version}"
    return None


def find_cuda(torch: Torch, mode: str) -> tuple[str | None, str | None, str | None]:
    """Finds nvcc: its path, its release, and what is missing to build the CUDA library with it.

    Two CUDA majors do not work in one process, so a library of another major than torch's would
    never load. A CPU torch is enough to compile against, which `cuda` asks for and `auto` does not.
    """
    if mode == "auto" and torch.cuda is None:
        return None, None, f"a CUDA build of torch (found {torch.version})"
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = find_tool("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))
    if nvcc is None:
        return None, None, "nvcc"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    release = found[1] if found else "unknown"
    if torch.cuda and torch.cuda.split(".")[0] != release.split(".")[0]:
        return nvcc, release, f"nvcc of torch's CUDA, {torch.cuda} (found {release})"
    return nvcc, release, None


def host_options() -> dict[str, str] | None:
    """CMake's options for genkern_host, if the headers it needs are there."""
    pybind11 = importlib.util.find_spec("pybind11")
    include = sysconfig.get_path("include")
    if pybind11 is None or pybind11.origin is None or not Path(include, "Python.h").is_file():
        return None
    return {
        "GENKERN_PYTHON_INCLUDE": include,
        "GENKERN_PYBIND11_INCLUDE": str(Path(pybind11.origin).with_name("include")),
        "GENKERN_EXT_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
    }


def make_plan(mode: str) -> Plan:
    """Decides what to build from the mode and from the tools that are there."""
    plan = Plan(Facts(mode))
    facts, options = plan.facts, plan.options
    if mode not in MODES:
        plan.error = f"GENKERN_BUILD: expected one of {', '.join(MODES)}, got {mode!r}"
        return plan
    if mode == "none":
        facts.notes.append(f"native kernels are not built: GENKERN_BUILD=none. {FALLBACK}")
        return plan

    compiler = find_tool(os.environ.get("CXX", "c++"), "g++", "clang++")
    cmake = find_tool("cmake")
    torch = find_torch()
    wanting = [
        None if compiler else "a C++ compiler",
        None if cmake else "CMake",
        missing_in_torch(torch),
    ]
    missing = ", ".join(filter(None, wanting))
    if missing:
        line = f"native kernels are not built, missing: {missing}."
        facts.notes.append(f"{line} {FALLBACK}")
        plan.error = None if mode == "auto" else line
    if compiler is None or cmake is None:
        return plan

    facts.compiler = compiler
    options["CMAKE_CXX_COMPILER"] = compiler
    options["GENKERN_WERROR"] = "ON" if os.environ.get("GENKERN_WERROR") == "1" else "OFF"
    host = host_options()
    if host is None:
        facts.notes.append("genkern_host is not built, missing: pybind11 or Python's headers.")
    else:
        facts.parts.append("host")
        options.update(host)
    if torch is None or missing:
        return plan

    facts.torch = torch.version
    facts.parts.append("cpu")
    options["GENKERN_TORCH_DIR"] = str(torch.directory)
    if mode == "cpu":
        return plan
    nvcc, facts.cuda, lacking = find_cuda(torch, mode)
    if lacking or nvcc is None:
        line = f"the CUDA library is not built, missing: {lacking}."
        facts.notes.append(line)
        plan.error = None if mode == "auto" else line
        return plan
    facts.parts.append("cuda")
    options["CMAKE_CUDA_COMPILER"] = nvcc
    return plan


PLAN = make_plan(os.environ.get("GENKERN_BUILD") or "auto")


def run_cmake(prefix: Path) -> None:
    """Configures, builds and installs the planned parts into a directory.

    The build directory stays in the tree, so that a second build compiles only what changed. Its
    name holds what CMake cannot change in a directory that is already configured.
    """
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    compiler = Path(PLAN.options["CMAKE_CXX_COMPILER"]).name
    build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{compiler}"
    parts = PLAN.facts.parts
    options = PLAN.options | {
        f"GENKERN_{part.upper()}": "ON" if part in parts else "OFF"
        for part in ("host", "cpu", "cuda")
    }
    if ninja:
        options["CMAKE_MAKE_PROGRAM"] = ninja
    configure = [cmake, "-S", ROOT, "-B", build, *(["-G", "Ninja"] if ninja else [])]
    configure += [f"-D{key}={value}" for key, value in options.items()]
    configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    subprocess.run(configure, check=True)
    subprocess.run([cmake, "--build", build], check=True)
    subprocess.run([cmake, "--install", build, "--prefix", prefix], check=True)


def build_parts(prefix: Path) -> None:
    """Builds the planned parts; `auto` drops what does not compile, the CUDA library first."""
    facts = PLAN.facts
    while facts.parts:
        try:
            return run_cmake(prefix)
        except subprocess.CalledProcessError as error:
            if facts.mode != "auto" or PLAN.options["GENKERN_WERROR"] == "ON":
                raise CompileError("genkern: the native build failed, see above") from error
        if "cuda" in facts.parts:
            facts.parts.remove("cuda")
            facts.notes.append("the CUDA library is not built: it did not compile.")
        else:
            facts.parts.clear()
            facts.notes.append(f"native kernels are not built: they did not compile. {FALLBACK}")


class BuildPython(build_py):
    """Copies the Python files, then builds the native parts beside them.

    CMake builds all parts at once, which suits no command of setuptools; this one always runs, also
    when the package turns out to be pure Python.
    """

    def run(self) -> None:
        """Writes the package, its libraries and genkern/_build.json."""
        if PLAN.error:
            raise OptionError(f"genkern: {PLAN.error}")
        super().run()
        prefix = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        # What an earlier build in another mode left must not pass for this one's.
        for pattern in ("genkern_host*.so", "genkern/libgenkern_*.so"):
            for library in prefix.glob(pattern):
                library.unlink()
        PLAN.options["GENKERN_VERSION"] = self.distribution.get_version()
        build_parts(prefix)
        PLAN.facts.write(prefix / "genkern")
        for note in PLAN.facts.notes:
            print(f"genkern: {note}", file=sys.stderr)


class BuildNothing(build_ext):
    """Leaves to BuildPython what `ext_modules` names."""

    def run(self) -> None:
        """Does nothing."""


class Wheel(bdist_wheel):
    """Tags the wheel by what is in it: only genkern_host depends on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the tags of Python, its ABI and the platform."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if "host" in PLAN.facts.parts else ("py3", "none", platform)


setup(
    # Only a name: it makes the wheel specific to the platform and tells an editable install that
    # genkern_host is one of its modules.
    ext_modules=[Extension("genkern_host", [])] if PLAN.facts.parts else [],
    cmdclass={"build_py": BuildPython, "build_ext": BuildNothing, "bdist_wheel": Wheel},
)
