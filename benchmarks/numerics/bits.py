"""Equality of bits: of threads, runs, instruction sets, batch splits and backends.

`python -m benchmarks.numerics.bits` prints the digests of all operators' results in one process,
for another to compare.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import genkern
from benchmarks.numerics.errors import native
from genkern import diffusion, gan, random, vae
from genkern._info import cpu_capability
from genkern._ops.op import BACKENDS, OPS, Args, Op

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
THREADS = (1, 2, 3, 7)
_NOISE = ("normal", "uniform", "split", "fold_in")
# The last size of a spec's large calls, and what it becomes: many threads' shares, none of a size.
_SMALL, _LARGE = 5000, 100_003


def _digest(result: Any) -> str:
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    state = hashlib.sha256()
    for out in outputs:
        state.update(out.flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _count(result: Any) -> int:
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    return sum(out.numel() for out in outputs)


def _enlarged(args: Args) -> Args:
    """The call with other data, of many more elements."""
    generator = torch.Generator().manual_seed(0)

    def larger(x: Any) -> Any:
        if not isinstance(x, Tensor) or _SMALL not in x.shape:
            return x
        shape = [_LARGE if n == _SMALL else n for n in x.shape]
        if x.dim() and not any(x.stride()):
            return x.flatten()[0].expand(shape)
        values = torch.randn(shape, generator=generator)
        return values.to(x.dtype)

    return tuple(larger(a) for a in args)


def calls() -> Iterator[tuple[str, Op, Args]]:
    """A name, an operator and arguments: noise, and every operator's large calls."""
    key, keys = random.key(3), random.split(random.key(3), 37)
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for draw in ("normal", "uniform"):
            yield f"{draw} {name}", OPS[draw], (key, [1_000_003], dtype)
            yield f"{draw} {name}", OPS[draw], (keys, [37, 8191], dtype)
        for op in OPS.values():
            if op.name in _NOISE or not op.overload._schema.returns:
                continue
            for sample in op.samples(torch.device("cpu"), dtype):
                if "large" in sample.id:
                    yield f"{op.name} {name}", op, _enlarged(sample.args)
    yield "split", OPS["split"], (keys, 3001)
    yield "fold_in", OPS["fold_in"], (key, torch.arange(100_003))


def threads_and_runs() -> dict[str, Any]:
    """Every call with each number of threads, and again with one."""
    before, values, different = torch.get_num_threads(), 0, set()
    try:
        for name, op, args in calls():
            found = []
            for count in (*THREADS, 1):
                torch.set_num_threads(count)
                result = native(op, args)
                found.append(_digest(result))
            values += _count(result)
            if len(set(found)) > 1:
                different.add(name)
    finally:
        torch.set_num_threads(before)
    return {"values": values, "different": sorted(different)}


def digests() -> dict[str, Any]:
    """Of every call, in this process."""
    found: dict[str, list[str]] = {}
    values: dict[str, int] = {}
    for name, op, args in calls():
        result = native(op, args)
        found.setdefault(name, []).append(_digest(result))
        values[name] = values.get(name, 0) + _count(result)
    return {"capability": cpu_capability(), "digests": found, "values": values}


def _process(capability: str) -> dict[str, Any]:
    environment = os.environ | {"GENKERN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "benchmarks.numerics.bits"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def processes() -> dict[str, Any]:
    """Two processes with the same instruction set, and one with each of the others."""
    best = cpu_capability() or ""
    sets = {name: _process(name) for name in ("baseline", "avx2", "avx512")}
    # A processor without an instruction set runs the next lower one: not a comparison.
    sets = {name: run for name, run in sets.items() if run["capability"] == name}
    rows = []
    pairs = [(best, best, sets[best], _process(best))]
    pairs += [(a, b, sets[a], sets[b]) for a, b in itertools.combinations(sets, 2)]
    for first, second, a, b in pairs:
        for kind in ("noise", "operators"):
            names = [n for n in a["digests"] if (n.split()[0] in _NOISE) == (kind == "noise")]
            rows.append(
                {
                    "first": first, "second": second, "kind": kind,
                    "values": sum(a["values"][n] for n in names),
                    "calls": len(names),
                    "different": [n for n in names if a["digests"][n] != b["digests"][n]],
                }
            )  # fmt: skip
    return {"pairs": rows}


def splits() -> list[dict[str, Any]]:
    """One key a sample: a batch of 32 in parts of 1, 2, 5 and 24 samples."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, 3, 61, 67, generator=generator) for _ in range(2))
    keys, schedule = random.split(random.key(9), 32), diffusion.NoiseSchedule.linear(100)
    t = torch.arange(32) * 3
    functions: dict[str, Callable[..., Tensor]] = {
        "random.normal": lambda k, a, b, t: random.normal(k, *a.shape),
        "random.normal, float64": lambda k, a, b, t: random.normal(
            k, *a.shape, dtype=torch.float64
        ),
        "random.uniform": lambda k, a, b, t: random.uniform(k, *a.shape),
        "vae.rsample": lambda k, a, b, t: vae.rsample(a, b, key=k),
        "diffusion.q_sample": lambda k, a, b, t: diffusion.q_sample(a, t, schedule, key=k),
        "diffusion.ddpm_step": lambda k, a, b, t: diffusion.ddpm_step(a, b, t, schedule, key=k),
        "gan.interpolate": lambda k, a, b, t: gan.interpolate(a, b, key=k),
    }
    sizes = (1, 2, 5, 24)
    rows = []
    for name, function in functions.items():
        whole = function(keys, x, y, t)
        each = zip(*(v.split(sizes) for v in (keys, x, y, t)), strict=True)
        parts = torch.cat([function(*part) for part in each])
        rows.append({"function": name, "values": whole.numel(), "equal": _same(whole, parts)})
    return rows


def _same(a: Tensor, b: Tensor) -> bool:
    return _digest(a) == _digest(b) and a.shape == b.shape


def backends(n: int) -> list[dict[str, Any]]:
    """The first n numbers on each backend and of genkern_host, against the native library."""
    key = random.key(17)
    draws: dict[str, Callable[[], Tensor]] = {
        "normal float32": lambda: random.normal(key, n),
        "normal bfloat16": lambda: random.normal(key, n, dtype=torch.bfloat16),
        "normal float16": lambda: random.normal(key, n, dtype=torch.float16),
        "normal float64": lambda: random.normal(key, n, dtype=torch.float64),
        "uniform float32": lambda: random.uniform(key, n),
        "uniform float64": lambda: random.uniform(key, n, dtype=torch.float64),
        "split": lambda: random.split(key, n // 4).view(torch.int64),
        "fold_in": lambda: random.fold_in(key, torch.arange(n // 4)).view(torch.int64),
    }
    rows = []
    for name, draw in draws.items():
        with genkern.use_backend("native"):
            wanted = draw()
        others = {}
        for backend in BACKENDS:
            if backend.name != "native":
                with genkern.use_backend(backend.name):
                    try:
                        others[backend.name] = draw()
                    except NotImplementedError:
                        continue
        host = _host(name, key, n)
        if host is not None:
            others["genkern_host"] = host
        for backend_name, found in others.items():
            rows.append(
                {
                    "stream": name, "backend": backend_name, "values": found.numel(),
                    "equal": _same(wanted, found),
                    "largest difference": float((wanted.double() - found.double()).abs().max()),
                }
            )  # fmt: skip
    return rows


def _host(name: str, key: Tensor, n: int) -> Tensor | None:
    try:
        import genkern_host
    except ImportError:
        return None
    words = key.view(torch.int64).numpy().view(np.uint64)
    draw, _, dtype = name.partition(" ")
    if draw in ("normal", "uniform"):
        if dtype not in ("float32", "float64"):
            return None
        return torch.from_numpy(getattr(genkern_host, draw)(words, (n,), np.dtype(dtype)))
    index = n // 4 if draw == "split" else np.arange(n // 4, dtype=np.uint64)
    return torch.from_numpy(getattr(genkern_host, draw)(words, index).view(np.int64))


if __name__ == "__main__":
    print(json.dumps(digests()))
