"""Machine code of CUDA kernels, as the CUDA toolkit prints it, and what a thread executes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

EXIT = -1  # the block after the last
WIDE = r"(LDG|STG)\S*\.128"  # accesses of 16 bytes

# What executes an instruction, by the first part of its name; what is not listed is "alu". As
# Nsight Compute's guide has it: IMAD runs where FFMA does, and moves of a constant written as IMAD
# or HFMA2 do too. I2F and F2F are the slow conversions, I2FP and F2FP those of the ALU.
_PIPES = {
    "fp32": r"F(?:FMA|MUL|ADD|SWZADD)|FFMA32I|H(?:FMA2|ADD2|MUL2)",
    "fp32x2": r"F(?:FMA|MUL|ADD)2",
    "imad": r"IMAD|IMUL|IDP",
    "fp64": r"D(?:FMA|MUL|ADD|SETP|MNMX)",
    "special": r"MUFU|I2F|F2I|F2F|FRND|POPC|FLO",
    "memory": r"LD[GSLC]?|ST[GSL]?|ATOM\w*|RED|SHFL|LDGSTS|CCTL",
    "control": r"BRA|BRX|BSSY|BSYNC|BREAK|CALL|RET|EXIT|WARPSYNC|BAR|NANOSLEEP|DEPBAR|MEMBAR|YIELD",
    "uniform": r"U\w+|S2UR|R2UR|S2R|CS2R|VOTEU",
}
PIPES = (*_PIPES, "alu")
_PIPE = re.compile("|".join(f"(?P<{name}>(?:{names})$)" for name, names in _PIPES.items()))
_PREDICATE = re.compile(r"@!?U?P\w+\s+")


def tool(name: str) -> str | None:
    """Finds a program of the CUDA toolkit, which the triton wheel brings too."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(shutil.which("nvcc") or "").resolve().parent]
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "backends/nvidia/bin")
    return shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


def run_tool(name: str, *arguments: str | Path, cwd: str | None = None) -> str:
    """What a program of the toolkit prints; FileNotFoundError where it is not installed."""
    found = tool(name)
    if found is None:
        raise FileNotFoundError(f"{name} of the CUDA toolkit is not installed")
    command = [found, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def opcode(instruction: str) -> str:
    """The instruction's name with its modifiers, without its predicate and operands."""
    return _PREDICATE.sub("", instruction, count=1).split(maxsplit=1)[0]


def pipe(instruction: str) -> str:
    """The pipe that executes an instruction, one of PIPES."""
    found = _PIPE.match(opcode(instruction).split(".", 1)[0])
    return found.lastgroup or "alu" if found else "alu"


def width(instruction: str) -> int:
    """Bits that a thread moves by one load or store."""
    parts = opcode(instruction).split(".")
    return next((int(part) for part in parts if part in ("64", "128", "256")), 32)


def widths(instructions: Iterable[str], name: str) -> dict[str, int]:
    """How many loads (LDG) or stores (STG) of which width."""
    found = Counter(width(i) for i in instructions if opcode(i).startswith(name))
    return {str(bits): found[bits] for bits in sorted(found)}


@dataclass(frozen=True)
class Way:
    """Blocks that a thread may run through, one after another."""

    work: tuple[int, ...] = ()
    size: int = 0
    blocks: tuple[int, ...] = ()

    def better(self, other: Way | None) -> bool:
        """Whether there is more work on this way or, for the same work, less of anything else."""
        return other is None or (self.work, -self.size) > (other.work, -other.size)


class Kernel:
    """A kernel's code, as blocks of instructions and who follows whom."""

    def __init__(self, code: str) -> None:
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
                if re.search(r"\b(BRA|BRX|EXIT|RET)\b|@!?P\d CALL", instruction[1]):
                    self.blocks.append([])
        self.blocks = [b for b in self.blocks if b]
        self.next = [self._successors(i, labels) for i in range(len(self.blocks))]

    def _successors(self, i: int, labels: dict[str, int]) -> list[int]:
        last = self.blocks[i][-1]
        guarded = last.startswith("@")
        after = [i + 1] if i + 1 < len(self.blocks) else []
        if re.search(r"\bBRX\b", last):
            return [labels[name] for name in re.findall(r"\.L_x_\w+", last)]
        if re.search(r"\bBRA\b", last) or re.match(r"@!?P\d CALL\S* `\(\.L_x", last):
            target = re.search(r"`\((\S+?)\)", last)
            jump = [labels[target[1]]] if target and target[1] in labels else []
            return [*jump, *(after if guarded or re.search(r"BRA\S* !?U?P\d", last) else [])]
        if re.search(r"\bEXIT\b", last):
            return [EXIT, *(after if guarded else [])]
        return [] if re.search(r"\bRET\b", last) else after

    def instructions(self) -> list[str]:
        """All there are."""
        return [x for block in self.blocks for x in block]

    def count(self, pattern: str) -> int:
        """How many instructions have a name that a regex finds."""
        return sum(bool(re.search(pattern, opcode(x))) for x in self.instructions())

    def _way(self, starts: Iterable[int], goal: int, *work: str) -> Way | None:
        best: dict[int, Way | None] = {}
        on_path: set[int] = set()

        def visit(i: int) -> Way | None:
            if i == goal:
                return Way((0,) * len(work))
            if i == EXIT or i in on_path:
                return None
            if i not in best:
                on_path.add(i)
                rest = choose(self.next[i])
                on_path.remove(i)
                best[i] = None if rest is None else self._extended(i, rest, *work)
            return best[i]

        def choose(nodes: Iterable[int]) -> Way | None:
            chosen: Way | None = None
            for n in nodes:
                way = visit(n)
                if way is not None and way.better(chosen):
                    chosen = way
            return chosen

        return choose(starts)

    def _extended(self, i: int, rest: Way, *work: str) -> Way:
        done = (sum(bool(re.search(kind, x)) for x in self.blocks[i]) for kind in work)
        work_done = tuple(a + b for a, b in zip(rest.work, done, strict=True))
        return Way(work_done, rest.size + len(self.blocks[i]), (i, *rest.blocks))

    def _executed(self, blocks: Sequence[int]) -> list[str]:
        """The instructions of blocks that a thread runs in a circle.

        Without those under the condition of a branch that is not taken at the block's end.
        """
        code = []
        for i, following in zip(blocks, [*blocks[1:], blocks[0]], strict=True):
            *before, last = self.blocks[i]
            branch = re.match(r"@!?(U?P\d) BRA", last)
            off = branch is not None and following == i + 1
            kept = [last]
            for x in reversed(before):
                if branch and re.match(rf"(@\S+ )?\S+ (\w+, )?{branch[1]},", x):
                    off = False  # before, the predicate was another
                if not (off and x.startswith(last.split()[0] + " ")):
                    kept.append(x)
            code += reversed(kept)
        return code

    def way(self, *work: str) -> list[str]:
        """The way from the start to the end with most instructions that a regex finds.

        Of several the one with most that the next regex finds, and so on, then the shortest.
        """
        best = self._way([0], EXIT, *work)
        assert best is not None
        return [x for i in best.blocks for x in self.blocks[i]]

    def _reachable(self, start: int) -> set[int]:
        seen: set[int] = set()
        todo = [start]
        while todo:
            for n in self.next[todo.pop()]:
                if n != EXIT and n not in seen:
                    seen.add(n)
                    todo.append(n)
        return seen

    def loop(self, work: str = f"{WIDE}|MUFU") -> tuple[list[str], int]:
        """What one turn of the kernel's loop executes, and how much a thread executes outside it.

        The loop is the one with most 16-byte accesses. Through it the way with most of what `work`
        finds is taken, them and special-function instructions, so that no operand and no
        mathematics is left out, and of these the shortest, which leaves out slow paths. The end of
        a sum goes through the shuffles.
        """
        reachable = [self._reachable(i) for i in range(len(self.blocks))]
        loops = []
        for head in range(len(self.blocks)):
            if head in reachable[head]:
                rest = self._way(self.next[head], head, work)
                assert rest is not None
                way = self._extended(head, rest, work)
                code = self._executed(way.blocks)
                accesses = sum(bool(re.search(WIDE, x)) for x in code)
                loops.append(((accesses, way.work, -way.size, -head), way.blocks, code))
        _, blocks, code = max(loops)
        head = blocks[0]
        inside = {i for i in reachable[head] if head in reachable[i]}
        start = self._way([0], head, "^$")
        end = self._way({n for i in inside for n in self.next[i]} - inside, EXIT, "SHFL")
        assert start is not None and end is not None
        return code, start.size + end.size


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers a thread, bytes of stack a thread, shared bytes a block."""

    registers: int
    stack: int
    shared: int
    local: int


def _demangled(names: Sequence[str]) -> list[str]:
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True
    ).stdout
    return text.split("\n")


def cubins(library: Path, folder: str) -> list[Path]:
    """Writes the machine code in a library to a folder: a file a source and target."""
    run_tool("cuobjdump", "-xelf", "all", library.resolve(), cwd=folder)
    return sorted(Path(folder).glob("*.cubin"))


def read(cubin: Path) -> Iterator[tuple[str, Resources, str]]:
    """The kernels of a cubin: their names, demangled, what they take, and their code."""
    usage = run_tool("cuobjdump", "-res-usage", cubin)
    found = re.findall(r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    takes = {name: Resources(*map(int, numbers)) for name, *numbers in found}
    parts = re.split(r"(?m)^\.text\.", run_tool("nvdisasm", "-c", cubin))[1:]
    codes = dict(part.split(":\n", 1) for part in parts)
    names = [name for name in codes if name in takes]
    for name, demangled in zip(names, _demangled(names), strict=False):
        yield demangled, takes[name], codes[name]


def read_bytes(cubin: bytes) -> tuple[Resources, Kernel]:
    """The one kernel of a cubin in memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        [(_, resources, code)] = read(Path(file.name))
    return resources, Kernel(code)
