"""The CUDA kernels as compiled: no spills, 16-byte accesses, instructions an element, exact noise.

Needs nvcc, but no GPU. What was compiled is kept under build/ until a source changes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SOURCES = ("random", "vae")
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-DUSE_CUDA",
    "-DTORCH_STABLE_ONLY",
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
    "-Werror=all-warnings",
    "-Xptxas=-v",
    "-cubin",
]
LANES = {"float": 4, "double": 2, "__half": 8, "__nv_bfloat16": 8}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def _tool(name: str) -> str:
    """A program of the CUDA toolkit, which the triton wheel brings too."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(shutil.which("nvcc") or "").resolve().parent]
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "backends/nvidia/bin")
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _compile(source: str, arch: str) -> Path:
    """A folder with the cubin, the PTX and what ptxas said; compiled if a source changed."""
    files = [f for d in ("csrc/cuda", "csrc/include") for f in sorted((ROOT / d).rglob("*.*"))]
    digest = hashlib.sha256(" ".join((*FLAGS, torch.__version__, arch)).encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = ROOT / "build" / "cuda-check" / f"{source}-{arch}-{digest.hexdigest()[:16]}"
    if not (folder / "log").exists():
        folder.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
        torch_includes = ["-isystem", str(Path(torch.__file__).parent / "include")]
        file = ROOT / f"csrc/cuda/{source}.cu"
        result = subprocess.run(
            ["nvcc", *FLAGS, *includes, *torch_includes, f"-arch={arch}", "--keep", "--keep-dir",
             str(folder), "-o", str(folder / f"{source}.cubin"), str(file)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        (folder / "log").write_text(result.stderr)
    return folder


@dataclass
class Kernel:
    """Machine code of one kernel."""

    name: str  # demangled, without namespaces and arguments
    memory: tuple[int, ...]  # bytes of stack, spill stores, spill loads
    code: str

    @property
    def packed(self) -> bool:
        """Whether a thread takes 16 bytes at once: the flat walk and the row walk."""
        return self.name.endswith(("(Walk)0>", "(Walk)1>"))

    @property
    def flat(self) -> bool:
        return self.name.endswith("(Walk)0>")

    @property
    def storage(self) -> str:
        return self.name.split(", ")[-2]

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.code))

    def instructions(self) -> float:
        """An element's share of the quickest way through a slot that leaves no work out."""
        return _quickest_path(self.code) / LANES[self.storage]


def _blocks(code: str) -> tuple[list[list[str]], dict[str, int]]:
    blocks: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\w+|\$\S+):", line):
            if blocks[-1]:
                blocks.append([])
            labels[label[1]] = len(blocks) - 1
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            if instruction[1] != "NOP":
                blocks[-1].append(instruction[1])
            # A guarded CALL of a label is ptxas's way to leave a loop.
            if re.search(r"\b(BRA|EXIT|RET)\b|@!?P\d CALL", instruction[1]):
                blocks.append([])
    return [b for b in blocks if b], labels


def _quickest_path(code: str) -> int:
    """Instructions from entry to exit, loops entered once.

    Among all ways the ones with most 128-bit accesses and special-function instructions (a square
    root or an exponential, so noise and mathematics are not skipped), of these the shortest, which
    leaves out tails, the sum over a block and the slow paths of square root and division.
    """
    blocks, labels = _blocks(code)

    def successors(i: int) -> list[int | None]:
        last = blocks[i][-1]
        guarded = last.startswith("@")
        after = [i + 1] if i + 1 < len(blocks) else []
        if re.search(r"\bBRA\b", last) or re.match(r"@!?P\d CALL\S* `\(\.L_x", last):
            target = re.search(r"`\((\S+?)\)", last)
            jump = [labels[target[1]]] if target and target[1] in labels else []
            return [*jump, *(after if guarded or re.search(r"BRA\S* !?U?P\d", last) else [])]
        if re.search(r"\bEXIT\b", last):
            return [None, *(after if guarded else [])]
        return [] if re.search(r"\bRET\b", last) else [*after]

    best: dict[int, tuple[int, int] | None] = {}
    on_path: set[int] = set()

    def visit(i: int) -> tuple[int, int] | None:
        if i in on_path:
            return None
        if i not in best:
            on_path.add(i)
            ways = [(0, 0) if s is None else visit(s) for s in successors(i)]
            on_path.remove(i)
            found = max((w for w in ways if w is not None), default=None)
            work = sum(bool(re.search(r"(LDG|STG)\S*\.128|MUFU", x)) for x in blocks[i])
            best[i] = None if found is None else (found[0] + work, found[1] - len(blocks[i]))
        return best[i]

    path = visit(0)
    assert path is not None
    return -path[1]


def _demangled(names: list[str]) -> list[str]:
    text = subprocess.run(
        [_tool("c++filt")], input="\n".join(names), check=True, capture_output=True, text=True
    ).stdout
    short = re.sub(r"genkern::cuda::|\(anonymous namespace\)::", "", text)
    return [re.sub(r"^void run<|\(Plan<.*", "", name) for name in short.split("\n")]


@functools.cache
def _kernels(arch: str) -> list[Kernel]:
    kernels = []
    for source in SOURCES:
        folder = _compile(source, arch)
        memory = {
            name: tuple(map(int, numbers))
            for name, *numbers in re.findall(
                r"properties for (\S+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores,"
                r" (\d+) bytes spill loads",
                (folder / "log").read_text(),
            )
        }
        listing = _output(_tool("nvdisasm"), "-c", folder / f"{source}.cubin")
        sections = dict(
            part.split(":\n", 1) for part in re.split(r"(?m)^\.text\.", listing)[1:]
        )
        names = [name for name in sections if name in memory]
        for name, short in zip(names, _demangled(names), strict=False):
            kernels.append(Kernel(short, memory[name], sections[name]))
    return kernels


each_arch = pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])


@each_arch
def test_every_kernel_is_there(arch):
    assert sum(k.packed for k in _kernels(arch)) == 20 * 4 * 2  # bodies, dtypes, walks


@each_arch
def test_no_spills_and_no_local_memory(arch):
    bad = [(k.name, k.memory) for k in _kernels(arch) if any(k.memory) or k.count(r"\b(LDL|STL)\b")]
    assert not bad


# Tensors in and out that a body may have.
TENSORS = {
    "Normal": (0, 1),
    "Uniform": (0, 1),
    "Rsample": (2, 1),
    "RsampleKl": (2, 1),
    "RsampleKlBackward": (3, 2),
    "BernoulliNllOp": (2, 1),
    "BernoulliNllBackward": (3, 2),
    "GaussianNllOp": (2, 1),
    "GaussianNllBackward": (3, 2),
}


@each_arch
def test_packed_kernels_move_16_bytes_at_once(arch):
    for kernel in filter(lambda k: k.packed, _kernels(arch)):
        loads, stores = TENSORS[kernel.name.split("<")[0]]
        assert kernel.count(r"LDG\S*\.128") >= loads, kernel.name
        assert kernel.count(r"STG\S*\.128") >= stores, kernel.name


# Upper bounds on SASS instructions an element, on contiguous tensors: float, then 16-bit types. A
# thread's start counts in full though it may serve eight slots. In the time its memory moves a
# byte, an H100 issues 9.2 of a thread's instructions (132 multiprocessors, 128 lanes, 1.83 GHz,
# 3.35 TB/s), an A100 12.5: a float32 `rsample` moves 12 bytes, with explicit noise 16.
LIMITS = {
    "Uniform<float>": (36, 26),
    "Normal<float>": (61, 51),
    "Rsample<float, (Noise)1>": (84, 73),
    "Rsample<float, (Noise)2>": (43, 35),
    "RsampleKl<float, (Noise)0, false>": (68, 53),
    "RsampleKl<float, (Noise)0, true>": (92, 75),
    "RsampleKl<float, (Noise)1, false>": (117, 98),
    "RsampleKl<float, (Noise)1, true>": (151, 130),
    "RsampleKl<float, (Noise)2, false>": (77, 61),
    "RsampleKl<float, (Noise)2, true>": (111, 93),
    "RsampleKlBackward<float, (Noise)1, false>": (134, 116),
    "RsampleKlBackward<float, (Noise)1, true>": (183, 163),
    "RsampleKlBackward<float, (Noise)2, false>": (97, 81),
    "RsampleKlBackward<float, (Noise)2, true>": (149, 126),
    "BernoulliNllOp<float>": (74, 59),
    "BernoulliNllBackward<float>": (63, 53),
    "GaussianNllOp<float, false>": (45, 30),
    "GaussianNllOp<float, true>": (66, 51),
    "GaussianNllBackward<float, false>": (40, 31),
    "GaussianNllBackward<float, true>": (71, 61),
}


@each_arch
def test_instructions_an_element(arch):
    bad, seen = [], set()
    for kernel in _kernels(arch):
        body = kernel.name.split(f", {kernel.storage}")[0] if kernel.flat else None
        if body not in LIMITS:
            continue
        seen.add(body)
        limit = LIMITS[body][LANES[kernel.storage] == 8]
        if kernel.instructions() > limit:
            bad.append(f"{kernel.name}: {kernel.instructions():.1f}, limit {limit}")
    assert seen == set(LIMITS)
    assert not bad, "\n".join(bad)


def test_noise_is_rounded_exactly():
    """The float32 sequence of normal.h: nothing approximate, nothing contracted."""
    [ptx] = _compile("random", "sm_80").glob("random*.ptx")
    entries = re.split(r"(?m)^\s*\.visible \.entry|^\s*\.entry", ptx.read_text())
    normals = [e for e in entries if re.match(r"\s*\S*6NormalIfE", e)]
    assert len(normals) == 9  # three dtypes, three walks
    fused = set()
    for entry in normals:
        assert "approx" not in entry
        assert not re.search(r"\b(add|sub|mul|fma|sqrt)\.(?!rn\.)\S*f32", entry)
        pairs = len(re.findall(r"sqrt\.rn\.f32", entry))
        fused.add(len(re.findall(r"fma\.rn\.f32", entry)) / pairs)
    assert len(fused) == 1


@each_arch
def test_noise_uses_the_square_root_alone(arch):
    for kernel in _kernels(arch):
        if kernel.name.startswith("Normal<float>"):
            assert set(re.findall(r"MUFU\.(\w+)", kernel.code)) == {"RSQ"}, kernel.name
