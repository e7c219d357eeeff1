"""The CUDA kernels as compiled: no spills, 16-byte accesses, instructions an element, exact noise.

Needs nvcc, but no GPU. By default the kernels of contiguous tensors and of rows are compiled for
one architecture, in float32 and bfloat16; `-m exhaustive` adds the other architectures, and every
kernel of the sources. What was compiled is kept under build/ until a source changes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
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
# Elements in 16 bytes.
LANES = {"float": 4, "__nv_bfloat16": 8}
WALKS = {"kFlat": "(Walk)0", "kRows": "(Walk)1"}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
each_arch = pytest.mark.parametrize(
    "arch",
    ["sm_90", *(pytest.param(a, marks=pytest.mark.exhaustive) for a in ("sm_80", "sm_100"))],
)


@dataclass(frozen=True)
class Body:
    """What is demanded of a body's kernels."""

    tensors: tuple[int, int]  # read and written, at least
    limit: tuple[int, int]  # instructions an element: float32, bfloat16
    kernel: str = "run"  # the kernel it runs in


# The limits stand 3% above the highest of the three architectures. What cannot go: a draw takes 10
# instructions for Philox and 25 for the method of Box and Muller, an exponential 8, a KL 14 more.
# So what draws noise and has a KL stays above 60. In the time its memory moves a byte an A100
# issues 9.5 of a thread's instructions, an H100 10.0, a B200 4.4 (INSTRUCTIONS_A_BYTE in
# test_triton_compile.py): `rsample_kl` in float32 moves 12 bytes, its gradient 20.
#
# A loss of two logits takes two exponentials, two logarithms and four quotients.
#
# The diffusion kernels are counted with every tensor they can have, guidance, a clip and a learned
# variance: with key and clip a step of fixed variance takes 50. A thread serves one sample, whose
# coefficients and rows it looks up: 8 to 12 of the instructions an element in float32.
BODIES = {
    "Normal<float>": Body((0, 1), (46, 44)),
    "Uniform<float>": Body((0, 1), (21, 19)),
    "Rsample<float, Noise::kKey>": Body((2, 1), (61, 59)),
    "Rsample<float, Noise::kTensor>": Body((3, 1), (21, 22)),
    "RsampleKl<float, Noise::kNone, false>": Body((2, 1), (38, 37)),
    "RsampleKl<float, Noise::kNone, true>": Body((4, 1), (56, 55)),
    "RsampleKl<float, Noise::kKey, false>": Body((2, 2), (81, 80)),
    "RsampleKl<float, Noise::kKey, true>": Body((4, 2), (108, 107)),
    "RsampleKl<float, Noise::kTensor, false>": Body((3, 2), (41, 42)),
    "RsampleKl<float, Noise::kTensor, true>": Body((5, 2), (68, 69)),
    "RsampleKlBackward<float, Noise::kKey, false>": Body((4, 2), (101, 100)),
    "RsampleKlBackward<float, Noise::kKey, true>": Body((6, 4), (141, 140)),
    "RsampleKlBackward<float, Noise::kTensor, false>": Body((5, 3), (63, 64)),
    "RsampleKlBackward<float, Noise::kTensor, true>": Body((7, 5), (103, 105)),
    "BernoulliNllOp<float>": Body((2, 1), (34, 33)),
    "BernoulliNllBackward<float>": Body((3, 2), (32, 32)),
    "GaussianNllOp<float, false>": Body((2, 1), (15, 14)),
    "GaussianNllOp<float, true>": Body((3, 1), (33, 32)),
    "GaussianNllBackward<float, false>": Body((3, 2), (20, 18)),
    "GaussianNllBackward<float, true>": Body((4, 3), (42, 46)),
    "Affine<float, true>": Body((3, 1), (60, 57)),
    "Affine<float, false>": Body((4, 1), (23, 19)),
    "NoiseLoss<float, true>": Body((2, 2), (66, 62)),
    "NoiseLoss<float, false>": Body((3, 2), (27, 24)),
    "NoiseLossBackward<float, true>": Body((3, 3), (83, 66)),
    "NoiseLossBackward<float, false>": Body((4, 3), (32, 29)),
    "SamplerStep<float, true, false>": Body((4, 1), (75, 73)),
    "SamplerStep<float, false, false>": Body((5, 1), (43, 33)),
    "SamplerStep<float, true, true>": Body((4, 2), (79, 77)),
    "SamplerStep<float, false, true>": Body((5, 2), (47, 37)),
    "SamplerStepBackward<float, true>": Body((5, 5), (113, 99)),
    "SamplerStepBackward<float, false>": Body((6, 5), (70, 63)),
    "Vlb<float, true>": Body((3, 1), (112, 101)),
    "Vlb<float, false>": Body((4, 1), (72, 62)),
    "VlbBackward<float, true>": Body((4, 2), (123, 110)),
    "VlbBackward<float, false>": Body((5, 2), (87, 74)),
    "GuidanceFactor<float>": Body((2, 0), (52, 26), "guidance_moments"),
    "DynamicThreshold<float>": Body((3, 0), (27, 25), "select_threshold"),
    "Logits<float>": Body((2, 3), (64, 60)),
    "LogitsBackward<float>": Body((3, 2), (59, 56)),
    "PenaltyTensors": Body((2, 0), (15, 13), "sum_squares"),
    "ScaleSamples<float>": Body((2, 1), (15, 12)),
    "Interpolate<T>": Body((2, 1), (12, 10)),
    "InterpolateBackward<T>": Body((3, 2), (22, 21)),
}


def _named(body: str, storage: str) -> str:
    """The body for a storage type: most are of the arithmetic's type, those of T of the storage."""
    return body.replace("<T>", f"<{storage}>")


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


def _compile(name: str, code: str, arch: str) -> Path:
    """A folder with the cubin, the PTX and what ptxas said; compiled if a source changed."""
    files = [f for d in ("csrc/cuda", "csrc/include") for f in sorted((ROOT / d).rglob("*.*"))]
    digest = hashlib.sha256(" ".join((*FLAGS, torch.__version__, arch, code)).encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = ROOT / "build" / "cuda-check" / f"{name}-{arch}-{digest.hexdigest()[:16]}"
    if not (folder / "log").exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / f"{name}.cu"
        source.write_text(code)
        includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
        torch_includes = ["-isystem", str(Path(torch.__file__).parent / "include")]
        result = subprocess.run(
            ["nvcc", *FLAGS, *includes, *torch_includes, f"-arch={arch}", "--keep", "--keep-dir",
             str(folder), "-o", str(folder / f"{name}.cubin"), str(source)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        (folder / "log").write_text(result.stderr)
    return folder


def _memory(folder: Path) -> dict[str, tuple[int, ...]]:
    """By kernel: bytes of stack, spill stores, spill loads."""
    return {
        name: tuple(map(int, numbers))
        for name, *numbers in re.findall(
            r"properties for (\S+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores,"
            r" (\d+) bytes spill loads",
            (folder / "log").read_text(),
        )
    }


@functools.cache
def _representatives(arch: str) -> Path:
    lines = [f'#include "cuda/{file}.cuh"' for file in ("random", "vae", "diffusion", "gan")]
    lines.append("namespace genkern::cuda {")
    for body, demands in BODIES.items():
        for storage in LANES:
            named = _named(body, storage)
            plan = f"const __grid_constant__ Plan<{named}::kTensors>"
            for walk in WALKS:
                lines.append(
                    f"template __global__ void {demands.kernel}<{named}, {storage}, Walk::{walk}>"
                    f"({plan}, const __grid_constant__ {named});"
                )
    return _compile("kernels", "\n".join([*lines, "}", ""]), arch)


class Kernel:
    """Machine code of one kernel, as blocks of instructions and who follows whom."""

    EXIT = -1

    def __init__(self, name: str, code: str) -> None:
        self.name = name  # body, storage, walk
        named, self.storage, _ = name.rsplit(", ", 2)
        self.body = next(b for b in BODIES if _named(b, self.storage) == named)
        self.blocks: list[list[str]] = [[]]
        labels: dict[str, int] = {}
        for line in code.splitlines():
            if label := re.match(r"\s*(\.L_x_\w+|\$\S+):", line):
                if self.blocks[-1]:
                    self.blocks.append([])
                labels[label[1]] = len(self.blocks) - 1
            elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
                if instruction[1] != "NOP":
                    self.blocks[-1].append(instruction[1])
                # A guarded CALL of a label is ptxas's way to leave a loop.
                if re.search(r"\b(BRA|EXIT|RET)\b|@!?P\d CALL", instruction[1]):
                    self.blocks.append([])
        self.blocks = [b for b in self.blocks if b]
        self.next = [self._successors(i, labels) for i in range(len(self.blocks))]

    def _successors(self, i: int, labels: dict[str, int]) -> list[int]:
        last = self.blocks[i][-1]
        guarded = last.startswith("@")
        after = [i + 1] if i + 1 < len(self.blocks) else []
        if re.search(r"\bBRA\b", last) or re.match(r"@!?P\d CALL\S* `\(\.L_x", last):
            target = re.search(r"`\((\S+?)\)", last)
            jump = [labels[target[1]]] if target and target[1] in labels else []
            return [*jump, *(after if guarded or re.search(r"BRA\S* !?U?P\d", last) else [])]
        if re.search(r"\bEXIT\b", last):
            return [self.EXIT, *(after if guarded else [])]
        return [] if re.search(r"\bRET\b", last) else after

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, x)) for block in self.blocks for x in block)

    def _way(self, starts: Iterable[int], goal: int, work: str) -> tuple[int, int] | None:
        """Of the ways to `goal`: most instructions that match `work`, then fewest instructions."""
        best: dict[int, tuple[int, int] | None] = {}
        on_path: set[int] = set()

        def visit(i: int) -> tuple[int, int] | None:
            if i == goal:
                return 0, 0
            if i == self.EXIT or i in on_path:
                return None
            if i not in best:
                on_path.add(i)
                found = longest(self.next[i])
                on_path.remove(i)
                done = sum(bool(re.search(work, x)) for x in self.blocks[i])
                size = len(self.blocks[i])
                best[i] = None if found is None else (found[0] + done, found[1] - size)
            return best[i]

        def longest(nodes: Iterable[int]) -> tuple[int, int] | None:
            return max((way for n in nodes if (way := visit(n)) is not None), default=None)

        return longest(starts)

    def _reachable(self, start: int) -> set[int]:
        seen: set[int] = set()
        todo = [start]
        while todo:
            for n in self.next[todo.pop()]:
                if n != self.EXIT and n not in seen:
                    seen.add(n)
                    todo.append(n)
        return seen

    def instructions(self) -> float:
        """Instructions a thread executes for an element: its loop, and a share of the rest.

        The loop is the one that does most. Through it the way with most 16-byte accesses and
        special-function instructions is taken, so that no operand and no mathematics is left out,
        and of these the shortest, which leaves out the slow path of square roots. `launch` gives
        a thread of 16M float32 elements four slots, of more up to eight: four share the start and
        the end, which for sums goes through the shuffles.
        """
        work = r"(LDG|STG)\S*\.128|MUFU"
        reachable = [self._reachable(i) for i in range(len(self.blocks))]
        loops = []
        for head in range(len(self.blocks)):
            if head in reachable[head]:
                way = self._way(self.next[head], head, work)
                assert way is not None
                own = sum(bool(re.search(work, x)) for x in self.blocks[head])
                loops.append(((way[0] + own, way[1] - len(self.blocks[head])), -head))
        (_, loop), negative_head = max(loops)
        head = -negative_head
        inside = {i for i in reachable[head] if head in reachable[i]}
        start = self._way([0], head, "^$")
        leave = {n for i in inside for n in self.next[i]} - inside
        end = self._way(leave, self.EXIT, "SHFL")
        assert start is not None and end is not None
        return -(loop + (start[1] + end[1]) / 4) / LANES[self.storage]


def _demangled(names: list[str]) -> list[str]:
    text = subprocess.run(
        [_tool("c++filt")], input="\n".join(names), check=True, capture_output=True, text=True
    ).stdout
    short = text.replace("genkern::cuda::", "")
    for word, number in {"kNone": 0, "kKey": 1, "kTensor": 2}.items():
        short = short.replace(f"(Noise){number}", f"Noise::{word}")
    return [re.sub(r"^void \w+<|>\(Plan<.*", "", name) for name in short.split("\n")]


@functools.cache
def _kernels(arch: str) -> list[Kernel]:
    cubin = _representatives(arch) / "kernels.cubin"
    parts = re.split(r"(?m)^\.text\.", _output(_tool("nvdisasm"), "-c", cubin))[1:]
    names, codes = zip(*(part.split(":\n", 1) for part in parts), strict=True)
    kernels = zip(_demangled(list(names)), codes, strict=False)
    return [Kernel(name, code) for name, code in kernels if name.endswith(tuple(WALKS.values()))]


@each_arch
def test_every_kernel_is_there(arch):
    names = {kernel.name for kernel in _kernels(arch)}
    assert names == {
        f"{_named(b, s)}, {s}, {w}" for b in BODIES for s in LANES for w in WALKS.values()
    }


@each_arch
def test_no_spills_and_no_local_memory(arch):
    memory = _memory(_representatives(arch))
    assert len(memory) >= len(_kernels(arch))
    assert not any(any(bytes_) for bytes_ in memory.values())
    assert not [k.name for k in _kernels(arch) if k.count(r"\b(LDL|STL)\b")]


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("source", ["random", "vae", "diffusion", "gan"])
def test_no_spills_in_any_kernel(source, arch):
    code = (ROOT / f"csrc/cuda/{source}.cu").read_text()
    memory = _memory(_compile(source, code, arch))
    assert len(memory) > 20
    assert not any(any(bytes_) for bytes_ in memory.values())


@each_arch
def test_kernels_move_16_bytes_at_once(arch):
    for kernel in _kernels(arch):
        loads, stores = BODIES[kernel.body].tensors
        assert kernel.count(r"LDG\S*\.128") >= loads, kernel.name
        assert kernel.count(r"STG\S*\.128") >= stores, kernel.name


@each_arch
def test_instructions_an_element(arch):
    bad = []
    for kernel in _kernels(arch):
        if kernel.name.endswith(WALKS["kFlat"]):
            limit = BODIES[kernel.body].limit[LANES[kernel.storage] == 8]
            if kernel.instructions() > limit:
                bad.append(f"{kernel.name}: {kernel.instructions():.1f}, limit {limit}")
    assert not bad, "\n".join(bad)


def test_noise_is_rounded_exactly():
    """The float32 sequence of normal.h: nothing approximate, nothing contracted."""
    [ptx] = _representatives("sm_90").glob("kernels*.ptx")
    entries = re.split(r"(?m)^\s*\.visible \.entry|^\s*\.weak \.entry", ptx.read_text())
    normals = [e for e in entries if re.match(r"\s*\S*6NormalIfE", e)]
    assert len(normals) == len(LANES) * len(WALKS)
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
        if kernel.body == "Normal<float>":
            assert kernel.count("MUFU") == kernel.count(r"MUFU\.RSQ"), kernel.name
