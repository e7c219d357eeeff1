"""The commands that make evidence, and what each needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import cuda_on_host, load, sanitize

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "evidence"


def _nothing() -> str | None:
    return None


def _cuda_library() -> str | None:
    library = ROOT / "build" / "cuda" / "genkern" / "libgenkern_cuda.so"
    return None if library.exists() else "the CUDA library: run `make cuda`, which needs nvcc"


def _diffusers() -> str | None:
    return None if importlib.util.find_spec("diffusers") else "diffusers"


def _sanitizers() -> str | None:
    return sanitize.missing("address")


@dataclass(frozen=True)
class Part:
    """A command that makes evidence; `lacks` says what it misses here.

    A timed one runs alone. Of `one_thread` the operators use one: beside another part more would
    wait for one another at each call.
    """

    name: str
    shows: str
    minutes: float
    arguments: Sequence[str] = ()
    quick: Sequence[str] = ("--quick",)
    module: str = ""
    timed: bool = False
    one_thread: bool = False
    lacks: Callable[[], str | None] = field(default=_nothing)

    @property
    def file(self) -> Path:
        """Where the numbers of its last whole run are."""
        return FOLDER / f"{self.name}.json"

    def command(self, quick: bool, file: Path) -> list[str]:
        """The module and its arguments; it writes to the file."""
        module = self.module or f"benchmarks.{self.name}"
        chosen = self.quick if quick else self.arguments
        return ["-m", module, *chosen, "--json", str(file)]


# Minutes on two cores.
PARTS = (
    Part("speed", "speed beside eager PyTorch, torch.compile, diffusers and the memory", 7,
         ("--rounds", "9", "--seconds", "1.3", "--without", "reference"), module="benchmarks",
         timed=True),
    Part("integrations", "speed of other packages' loops", 2, ("--compile",), (), timed=True,
         lacks=_diffusers),
    Part("profile", "instructions, odd sizes, first calls, scaling of the CPU kernels", 15,
         timed=True),
    # Worse than what is recorded is a failure, and does not take its place.
    Part("gpu_static", "the GPU kernels' machine code, and the speed that follows", 8,
         ("--check", str(FOLDER / "gpu_static.json")), lacks=_cuda_library),
    Part("cuda_on_host", "the CUDA kernels executed on the CPU, with checks", 25,
         lacks=cuda_on_host.missing),
    Part("numerics", "errors beside eager PyTorch's, equality of bits", 15),
    Part("randomness", "batteries, moments, tails and independence of the noise", 18),
    Part("sanitize", "tests and fuzzing under ASan, UBSan and TSan", 33,
         quick=("--only", "baseline", "address"),
         lacks=_sanitizers),
    Part("fuzz", "random and hostile calls", 12, one_thread=True),
    Part("load", "many threads, processes, interrupts; more than 2^31 and 2^32 elements", 5,
         lacks=load.missing),
    Part("soak", "training for an hour: memory", 60, ("--minutes", "60"), ("--minutes", "1")),
)  # fmt: skip
