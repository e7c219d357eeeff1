"""The CUDA kernels of the compiled library, kernel by kernel."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import sass
from benchmarks.gpu_model import GPUS, limit, occupancy, predict

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "build/cuda/genkern/libgenkern_cuda.so"
TARGETS = ("sm_80", "sm_90", "sm_100")
DTYPES = {"float": "float32", "__nv_bfloat16": "bfloat16", "__half": "float16"}
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
WALKS = {0: "flat", 1: "rows"}
THREADS = 256  # of a block


@dataclass(frozen=True)
class Body:
    """A kernel with every tensor that it can have."""

    read: int
    written: int
    kernel: str = "run"
    threads: int = THREADS
    passes: int = 1  # over the tensors


# The names are those of csrc/cuda. One does not read each tensor once: a quantile of a whole sample
# needs its numbers three times, for a digit of 11 bits each, from the L2 cache where they fit.
BODIES = {
    "Normal<float>": Body(0, 1),
    "Uniform<float>": Body(0, 1),
    "Rsample<float, Noise::kKey>": Body(2, 1),
    "Rsample<float, Noise::kTensor>": Body(3, 1),
    "RsampleKl<float, Noise::kNone, false>": Body(2, 1),
    "RsampleKl<float, Noise::kNone, true>": Body(4, 1),
    "RsampleKl<float, Noise::kKey, false>": Body(2, 2),
    "RsampleKl<float, Noise::kKey, true>": Body(4, 2),
    "RsampleKl<float, Noise::kTensor, false>": Body(3, 2),
    "RsampleKl<float, Noise::kTensor, true>": Body(5, 2),
    "RsampleKlBackward<float, Noise::kKey, false>": Body(4, 2),
    "RsampleKlBackward<float, Noise::kKey, true>": Body(6, 4),
    "RsampleKlBackward<float, Noise::kTensor, false>": Body(5, 3),
    "RsampleKlBackward<float, Noise::kTensor, true>": Body(7, 5),
    "BernoulliNllOp<float>": Body(2, 1),
    "BernoulliNllBackward<float>": Body(3, 2),
    "GaussianNllOp<float, false>": Body(2, 1),
    "GaussianNllOp<float, true>": Body(3, 1),
    "GaussianNllBackward<float, false>": Body(3, 2),
    "GaussianNllBackward<float, true>": Body(4, 3),
    "Affine<float, true>": Body(3, 1),
    "Affine<float, false>": Body(4, 1),
    "NoiseLoss<float, true>": Body(2, 2),
    "NoiseLoss<float, false>": Body(3, 2),
    "NoiseLossBackward<float, true>": Body(3, 2),
    "NoiseLossBackward<float, false>": Body(4, 3),
    "SamplerStep<float, true, false>": Body(4, 1),
    "SamplerStep<float, false, false>": Body(5, 1),
    "SamplerStep<float, true, true>": Body(4, 2),
    "SamplerStep<float, false, true>": Body(5, 2),
    "SamplerStepBackward<float, true>": Body(5, 4),
    "SamplerStepBackward<float, false>": Body(6, 5),
    "Vlb<float, true>": Body(3, 1),
    "Vlb<float, false>": Body(4, 1),
    "VlbBackward<float, true>": Body(4, 2),
    "VlbBackward<float, false>": Body(5, 2),
    "GuidanceFactor<float>": Body(2, 0, "guidance_moments"),
    "DynamicThreshold<float>": Body(3, 0, "select_threshold", 1024, 3),
    "Logits<float>": Body(2, 3),
    "LogitsBackward<float>": Body(3, 2),
    "PenaltyTensors": Body(2, 0, "sum_squares"),
    "ScaleSamples<float>": Body(2, 1),
    "Interpolate<T>": Body(2, 1),
    "InterpolateBackward<T>": Body(3, 2),
}


def noise(body: str) -> str | None:
    """Whether a kernel draws its noise, is given it, or has none."""
    family = r"(Affine|NoiseLoss|SamplerStep|Vlb)(Backward)?<float, "
    if re.match(rf"Normal|Uniform|.*kKey|{family}true", body):
        return "drawn"
    return "explicit" if re.match(rf".*kTensor|{family}false", body) else None


@dataclass(frozen=True)
class Compiled:
    """One kernel for one GPU; `body` is None where it has no row in the table."""

    name: str
    target: str
    body: str | None
    dtype: str
    walk: str
    resources: sass.Resources
    kernel: sass.Kernel


def _parts(name: str) -> tuple[str | None, str, str]:
    """Body, dtype and walk of a demangled name."""
    short = name.replace("genkern::cuda::", "")
    for word, number in {"kNone": 0, "kKey": 1, "kTensor": 2}.items():
        short = short.replace(f"(Noise){number}", f"Noise::{word}")
    match = re.match(r"void \w+<(.+), (\w+), \(Walk\)(\d)>\(Plan<", short)
    if match is None or match[2] not in DTYPES or int(match[3]) not in WALKS:
        return None, "", ""
    body = re.sub(r"(?<=^Interpolate|ateBackward)<.*>$", "<T>", match[1])
    return body if body in BODIES else None, DTYPES[match[2]], WALKS[int(match[3])]


def compiled(library: Path = LIBRARY) -> Iterator[Compiled]:
    """Every kernel of the library for the three GPUs."""
    with tempfile.TemporaryDirectory() as folder:
        for cubin in sass.cubins(library, folder):
            target = cubin.suffixes[-2].removeprefix(".")
            for name, resources, code in sass.read(cubin):
                parts = _parts(name)
                yield Compiled(name, target, *parts, resources, sass.Kernel(code))


def record(found: Compiled) -> dict[str, Any]:
    """The row of a kernel that has a body."""
    assert found.body is not None
    body, gpu, itemsize = BODIES[found.body], GPUS[found.target], ITEMSIZE[found.dtype]
    lanes = 16 // itemsize
    loop, once = found.kernel.loop()
    # Guarded and narrow: the gradient of a reduced value, which stands in for a tensor's.
    ran = [x for x in loop if not (x.startswith("@") and sass.width(x) == 32)]
    loads, stores = sass.widths(ran, "LDG"), sass.widths(ran, "STG")
    counts = Counter(map(sass.pipe, loop))
    pipes = {name: body.passes * counts[name] / lanes for name in sass.PIPES if counts[name]}
    moved = sum(int(bits) // 8 * n for part in (loads, stores) for bits, n in part.items())
    nbytes, minimum = body.passes * moved / lanes, (body.read + body.written) * itemsize
    bound, share = predict(gpu, nbytes, pipes)
    code = found.kernel
    return {
        "backend": "cuda",
        "kernel": found.body,
        "dtype": found.dtype,
        "target": found.target,
        "registers": found.resources.registers,
        "spills": found.resources.stack + found.resources.local + code.count(r"LDL|STL"),
        "shared": found.resources.shared,
        "occupancy": occupancy(
            gpu, found.resources.registers, found.resources.shared, body.threads
        ),
        "loads": loads,
        "stores": stores,
        "bytes": nbytes,
        "minimum": minimum,
        "instructions": sum(pipes.values()),
        "pipes": pipes,
        "once": once,
        "noise": noise(found.body),
        "limit": limit(gpu, minimum, noise(found.body), found.dtype),
        "bound": bound,
        "roof": share * minimum / nbytes,
    }


def records(library: Path = LIBRARY) -> list[dict[str, Any]]:
    """The rows of the kernels of contiguous tensors."""
    found = [record(k) for k in compiled(library) if k.body is not None and k.walk == "flat"]
    order = list(BODIES)
    found.sort(key=lambda r: (TARGETS.index(r["target"]), order.index(r["kernel"]), r["dtype"]))
    return found
