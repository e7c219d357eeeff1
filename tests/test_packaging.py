"""Wheels, fresh environments, and what each build says when something is missing.

Everything is built from a copy of the sources, without network: the build tools and torch are those
of this environment.
"""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "CMakeLists.txt", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
FALLBACK = "The reference and Triton backends still work."
DRAW = "import genkern; print(genkern.random.normal(genkern.random.key(42), 2).tolist())"
# The known start of the stream, to four digits.
DRAWN = [-0.9702, 0.1940]


def installed(*packages: str) -> bool:
    """Not by find_spec: asked for pip, setuptools gives up replacing distutils in this process."""
    return {d.name.lower() for d in importlib.metadata.distributions()}.issuperset(packages)


needs_tools = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file() or not installed("setuptools", "pip"),
    reason="needs the source tree, setuptools and pip",
)
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++")))
    or not installed("cmake", "ninja", "pybind11"),
    reason="needs a C++ compiler, cmake, ninja and pybind11",
)
pytestmark = needs_tools


def environment(**changes: str) -> dict[str, str]:
    """This process's variables, but for those that steer a build or the package."""
    steer = ("GENKERN_", "PYTHONPATH", "CMAKE_ARGS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(steer)}
    # The same CMake for every interpreter, so that what is compiled once is not compiled again.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    return kept | {"GENKERN_WERROR": "1", "PATH": path} | changes


def run(*command: object, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
    )


def copy_sources(to: Path) -> Path:
    for name in SOURCES:
        shutil.copy(ROOT / name, to / name)
    built = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for name in ("genkern", "csrc"):
        shutil.copytree(ROOT / name, to / name, ignore=built)
    return to


def pip_wheel(source: Path, **changes: str) -> tuple[subprocess.CompletedProcess[str], Path | None]:
    """Builds a wheel; returns what pip said and the wheel."""
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
    wheels = source / "wheels"
    answer = run(
        sys.executable, "-m", "pip", "wheel", "-v", *options, "-w", wheels, source, **changes
    )
    return answer, next(iter(sorted(wheels.glob("*.whl"))), None)


def genkern_lines(text: str) -> list[str]:
    """What the build said, each line once: pip runs setup.py more than once."""
    lines = [line.strip() for line in text.splitlines()]
    return sorted({line for line in lines if re.match(r"(error: )?genkern: ", line)})


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def facts(wheel: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("genkern/_build.json"))


def python_files() -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / "genkern").rglob("*.py")}


def platform_tag() -> str:
    return re.sub(r"[.-]", "_", sysconfig.get_platform())


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory) -> dict[str, str]:
    """Variables of an environment that has no compiler."""
    return {"PATH": str(tmp_path_factory.mktemp("empty")), "CXX": "no-such-compiler"}


@pytest.fixture(scope="module")
def pure(tmp_path_factory, without_compiler):
    """The default mode, here by an empty variable, which counts as unset."""
    source = copy_sources(tmp_path_factory.mktemp("pure"))
    return pip_wheel(source, GENKERN_BUILD="", **without_compiler)


# One of the instruction sets, which every processor has: the others take minutes to compile.
NATIVE = {"GENKERN_BUILD": "cpu", "CMAKE_ARGS": "-DGENKERN_ONLY=baseline"}


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    source = copy_sources(tmp_path_factory.mktemp("native"))
    answer, wheel = pip_wheel(source, **NATIVE)
    assert wheel is not None, answer.stdout[-5000:]
    return source, answer, wheel


def fresh_python(directory: Path, wheel: Path) -> Path:
    """An environment with the wheel and, read-only, the packages of this one."""
    run(sys.executable, "-m", "venv", "--without-pip", directory)
    python = directory / "bin" / "python"
    options = ("--no-deps", "--no-index", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", python)
    answer = run(*pip, "install", *options, wheel)
    assert answer.returncode == 0, answer.stdout
    packages = directory / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    # After genkern's own place in sys.path, and without the .pth files of editable installs.
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "others.pth").write_text("\n".join(others))
    return python


def drawn(answer: subprocess.CompletedProcess[str]) -> list[float]:
    assert answer.returncode == 0, answer.stdout
    return json.loads(answer.stdout)


def test_no_compiler_gives_pure_python_and_one_line(pure):
    answer, wheel = pure
    assert wheel is not None, answer.stdout
    line = f"native kernels are not built, missing: a C++ compiler. {FALLBACK}"
    assert genkern_lines(answer.stdout) == [f"genkern: {line}"]
    assert wheel.name.endswith("-py3-none-any.whl")
    assert contents(wheel) == python_files() | {"genkern/py.typed", "genkern/_build.json"}
    assert facts(wheel)["parts"] == [] and facts(wheel)["notes"] == [line]


def test_pure_wheel_in_a_fresh_environment(pure, tmp_path):
    python = fresh_python(tmp_path / "env", pure[1])
    assert drawn(run(python, "-c", DRAW)) == pytest.approx(DRAWN, abs=5e-5)
    where = run(python, "-c", "import genkern; print(genkern.__file__)").stdout
    assert where.startswith(str(tmp_path))
    answer = run(python, "-m", "genkern", "info")
    assert answer.returncode == 0, answer.stdout
    assert "missing: a C++ compiler" in answer.stdout
    answer = run(python, "-c", f"{DRAW}", GENKERN_BACKEND="native")
    assert answer.returncode != 0 and "libgenkern_cpu.so was not built" in answer.stdout


def test_metadata(pure):
    with zipfile.ZipFile(pure[1]) as archive:
        names = archive.namelist()
        text = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    fields = email.message_from_string(text)
    assert fields["Name"] == "genkern" and re.fullmatch(r"\d+\.\d+\.\d+", fields["Version"])
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(fields['Version'])}\b", changelog, re.MULTILINE)
    assert fields["License-Expression"] == "BSD-3-Clause" and fields["Requires-Python"] == ">=3.10"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {"triton", "diffusers", "dev"} <= set(fields.get_all("Provides-Extra"))
    required = fields.get_all("Requires-Dist")
    assert [line for line in required if "extra ==" not in line] == ["torch>=2.10"]
    assert "Typing :: Typed" in fields.get_all("Classifier")
    # The description is the README.
    assert fields.get_payload().startswith((ROOT / "README.md").read_text()[:500])


def test_sdist_is_the_source_tree(tmp_path):
    listed = run("git", "-C", ROOT, "ls-files")
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    for name in tracked:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "tree" / name)
    build = f"import os; os.chdir({str(tmp_path / 'tree')!r}); from setuptools import build_meta"
    answer = run(sys.executable, "-c", f"{build}; print(build_meta.build_sdist({str(tmp_path)!r}))")
    assert answer.returncode == 0, answer.stdout
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = [
            name.partition("/")[2]
            for name in archive.getnames()
            if archive.getmember(name).isfile()
        ]
        made_by_setuptools = {"PKG-INFO", "setup.cfg"}
        shipped = {n for n in names if ".egg-info/" not in n} - made_by_setuptools
        assert shipped == tracked - {".gitignore"}
        # Python 3.11.3 and older have no filters.
        archive.extractall(
            tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    # It is enough to build from.
    source = next(path for path in tmp_path.glob("genkern-*") if path.is_dir())
    answer, wheel = pip_wheel(source, GENKERN_BUILD="none")
    assert wheel is not None, answer.stdout
    assert contents(wheel) == python_files() | {"genkern/py.typed", "genkern/_build.json"}


def test_build_none(tmp_path):
    answer, wheel = pip_wheel(copy_sources(tmp_path), GENKERN_BUILD="none")
    assert wheel is not None and wheel.name.endswith("-py3-none-any.whl"), answer.stdout
    line = f"genkern: native kernels are not built: GENKERN_BUILD=none. {FALLBACK}"
    assert genkern_lines(answer.stdout) == [line]


@pytest.mark.parametrize("mode", ("cpu", "cuda"))
def test_asking_for_what_cannot_be_built_is_an_error(mode, tmp_path, without_compiler):
    answer, wheel = pip_wheel(copy_sources(tmp_path), GENKERN_BUILD=mode, **without_compiler)
    assert answer.returncode != 0 and wheel is None
    line = "error: genkern: native kernels are not built, missing: a C++ compiler."
    assert genkern_lines(answer.stdout) == [line]


def test_an_unknown_mode_is_an_error(tmp_path):
    answer, wheel = pip_wheel(copy_sources(tmp_path), GENKERN_BUILD="gpu")
    assert answer.returncode != 0 and wheel is None
    line = "error: genkern: GENKERN_BUILD: expected one of auto, none, cpu, cuda, got 'gpu'"
    assert genkern_lines(answer.stdout) == [line]


@needs_compiler
def test_auto_falls_back_where_the_sources_do_not_compile(tmp_path):
    source = copy_sources(tmp_path)
    header = source / "csrc" / "include" / "genkern" / "host_device.h"
    header.write_text("#error this does not compile\n")
    answer, wheel = pip_wheel(source, GENKERN_WERROR="0")
    assert wheel is not None, answer.stdout
    assert not [name for name in contents(wheel) if name.endswith(".so")]
    assert (
        f"native kernels are not built: they did not compile. {FALLBACK}" in facts(wheel)["notes"]
    )


@needs_compiler
def test_native_wheel(native):
    _, _, wheel = native
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert wheel.name.endswith(f"-{python}-{python}-{platform_tag()}.whl")
    libraries = {
        "genkern/libgenkern_cpu.so",
        f"genkern_host{sysconfig.get_config_var('EXT_SUFFIX')}",
    }
    data = {"genkern/py.typed", "genkern/_build.json"}
    assert contents(wheel) == python_files() | data | libraries
    assert facts(wheel)["parts"] == ["host", "cpu"] and facts(wheel)["notes"] == []


@needs_compiler
def test_native_wheel_in_a_fresh_environment(native, tmp_path):
    python = fresh_python(tmp_path / "env", native[2])
    answer = run(python, "-c", DRAW, GENKERN_BACKEND="native")
    assert drawn(answer) == pytest.approx(DRAWN, abs=5e-5)
    host = "import genkern_host as h; print(h.normal([42, 0], 2).tolist(), h.__version__)"
    numbers, version = run(python, "-c", host).stdout.rsplit(maxsplit=1)
    assert json.loads(numbers) == drawn(answer)
    assert version == run(python, "-c", "import genkern; print(genkern.__version__)").stdout.strip()
    answer = run(python, ROOT / "tests" / "smoke.py")
    assert answer.returncode == 0, answer.stdout


def stable_functions() -> set[str]:
    """The functions of torch's stable C interface that the oldest torch has.

    Each is declared in one of two headers, a newer one under a condition of its release.
    """
    include = Path(torch.__file__).parent / "include" / "torch" / "csrc"
    oldest = re.search(r"OLDEST_TORCH = \((\d+), (\d+)\)", (ROOT / "setup.py").read_text())
    found: set[str] = set()
    for header in ("stable/c/shim.h", "inductor/aoti_torch/c/shim.h"):
        conditions: list[tuple[int, int]] = []
        for line in (include / header).read_text().splitlines():
            if line.startswith("#if"):
                release = re.search(r"VERSION >= TORCH_VERSION_(\d+)_(\d+)_", line)
                conditions.append(tuple(map(int, release.groups())) if release else (0, 0))
            elif line.startswith("#endif"):
                conditions.pop()
            elif all(c <= tuple(map(int, oldest.groups())) for c in conditions):
                found.update(re.findall(r"\b((?:aoti_)?torch_\w+)\(", line))
    return found


def foreign_symbols(symbols: str, stable: set[str]) -> list[str]:
    """Of nm's undefined symbols those that are neither stable nor of the compiler's libraries."""
    foreign = []
    for line in symbols.splitlines():
        kind, name = line.split()[-2:]
        system = re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_", name)
        if kind.upper() == "U" and not system and name not in stable:
            foreign.append(name)
    return foreign


@needs_compiler
def test_only_stable_symbols_of_torch_are_imported(native, tmp_path):
    """Others would tie the library to the release of torch that it was built with."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    stable = stable_functions()
    assert {"torch_call_dispatcher", "aoti_torch_get_data_ptr"} <= stable
    # The check sees a function of torch's C++ interface, and one of a newer release.
    newer = "_ZN2at6_ops5empty4callEv", "torch_from_blob"
    lines = [f"U {name}" for name in newer] + ["w __gmon_start__", "U memcpy@GLIBC_2.14"]
    assert foreign_symbols("\n".join(lines), stable) == list(newer)

    with zipfile.ZipFile(native[2]) as archive:
        library = archive.extract("genkern/libgenkern_cpu.so", tmp_path)
    symbols = run("nm", "-D", "--undefined-only", library).stdout
    assert "torch_call_dispatcher" in symbols
    assert foreign_symbols(symbols, stable) == []


@needs_compiler
def test_pure_build_after_a_native_one_leaves_no_library(native):
    source, _, _ = native
    shutil.rmtree(source / "wheels")
    answer, wheel = pip_wheel(source, GENKERN_BUILD="none")
    assert wheel is not None, answer.stdout
    assert not [name for name in contents(wheel) if name.endswith(".so")]


def test_instruction_sets_share_no_code():
    """Of a function that two of them define the linker keeps one, with instructions of its own."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    objects = sorted(ROOT.glob("build/cmake-*/CMakeFiles/*_avx*.dir/**/*.o"))
    if not objects:
        pytest.skip("needs what an editable install leaves in build/, on x86")
    for path in objects:
        capability = re.search(r"_(avx\w+)\.dir", str(path))[1]
        symbols = run("nm", "--defined-only", "--extern-only", path).stdout.splitlines()
        foreign = [line for line in symbols if capability not in line]
        assert symbols and not foreign, f"{path}: {foreign}"


@needs_compiler
def test_editable_install(native, tmp_path):
    source, _, _ = native
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    packages = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed")
    answer = run(*pip, "install", *options, "--editable", source, **NATIVE)
    assert answer.returncode == 0, answer.stdout
    where = "import genkern, genkern_host as h; print(genkern.__file__); print(h.__file__)"
    answer = run(python, "-c", where)
    assert [Path(line).parent for line in answer.stdout.split()] == [source / "genkern", source]
    assert drawn(run(python, "-c", DRAW, GENKERN_BACKEND="native")) == pytest.approx(
        DRAWN, abs=5e-5
    )
