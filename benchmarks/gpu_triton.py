"""The Triton kernels, compiled for each GPU without one: `python -m benchmarks.gpu_triton TARGET`.

A stand-in for the GPU driver names the target, and the launchers, called with CPU tensors, compile
the very kernels that users get. Each target is compiled by a process of its own, since what triton
imports under TRITON_INTERPRET=1 compiles nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import sass
from benchmarks.gpu_model import GPUS, limit, occupancy, predict

ROOT = Path(__file__).parents[1]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942", "gfx950")
NVIDIA = TARGETS[:3]
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float64": 8}
# Threads of a program, and tiles that it sums up at most: genkern/_triton/launch.py.
THREADS, TURNS = 128, 8

# Cases: tensors read and written whole, by operator and layout. The names say what is drawn.
CASES = {
    "normal": (0, 1),
    "rsample": (2, 1),
    "rsample_noise": (3, 1),
    "rsample_chunk": (2, 1),
    "rsample_kl": (2, 1),
    "backward": (3, 2),
    "backward_noise": (6, 5),
    "bernoulli_nll": (2, 0),
    "bernoulli_nll_backward": (2, 2),
    "gaussian_nll": (3, 0),
    "gaussian_nll_backward": (3, 3),
    "affine": (1, 1),
    "affine_noise": (4, 1),
    "noise_loss": (1, 0),
    "noise_loss_noise": (3, 0),
    "noise_loss_backward": (1, 1),
    "noise_loss_backward_noise": (4, 3),
    "sampler_step": (2, 1),
    "sampler_step_learned": (4, 1),
    "sampler_step_noise": (5, 1),
    "sampler_step_backward": (3, 2),
    "sampler_step_backward_learned": (5, 4),
    "sampler_step_backward_noise": (6, 5),
    "guidance_factor": (2, 0),
    "dynamic_threshold": (3, 0),
    "vlb": (3, 0),
    "hybrid": (4, 0),
    "vlb_backward": (3, 2),
    "hybrid_backward": (4, 2),
    "discriminator_loss": (2, 0),
    "discriminator_loss_backward": (2, 2),
    "generator_loss": (2, 0),
    "generator_loss_backward": (3, 2),
    "gradient_penalty": (1, 0),
    "gradient_penalty_backward": (1, 1),
    "gradient_penalty_backward_backward": (2, 1),
    "interpolate": (2, 1),
    "interpolate_backward": (3, 2),
    "optimal_discriminator": (2, 1),
    "optimal_discriminator_backward": (3, 2),
}
DRAWS = (
    "normal", "rsample", "rsample_chunk", "rsample_kl", "backward",
    "affine", "noise_loss", "noise_loss_backward", "sampler_step", "sampler_step_learned",
    "sampler_step_backward_learned", "vlb", "vlb_backward",
)  # fmt: skip
EXPLICIT = (
    "rsample_noise", "backward_noise", "affine_noise", "noise_loss_noise",
    "noise_loss_backward_noise", "sampler_step_noise", "sampler_step_backward_noise",
    "hybrid", "hybrid_backward",
)  # fmt: skip
# What reads the tensors in a loop, of which a turn is counted.
LOOPS = ("count_digits_kernel",)
# What works on as many tiles as `TURNS` in a loop: all of its turns are counted, and what is once.
SEVERAL = (
    "noise_loss_kernel", "sampler_step_backward_kernel", "vlb_kernel", "vlb_backward_kernel",
)  # fmt: skip
# Whose branches leave out the terms of a sample with a coefficient of 0: none is left out here.
TERMS = ("sampler_step_kernel",)
# What runs after the kernel that reads the tensors: a few numbers.
SECOND = ("sum_rows_kernel", "guidance_factor_kernel", "select_digit_kernel", "solve_kernel")
_ARITHMETIC = r"\b(?:fma|mul|add|sub|div|sqrt|rsqrt|rcp|ex2|lg2|sin|cos)\.[\w.]*f(?:32|64)(?:x2)?\b"


def cases(target: str, full: bool) -> list[tuple[str, str]]:
    """What is compiled for a target: everything in float32, and on one GPU some in other dtypes.

    `full`: everything in bfloat16 too.
    """
    found = [(name, "float32") for name in CASES]
    if full:
        found += [(name, "bfloat16") for name in CASES]
    elif target == "sm_80":
        names = ("normal", "rsample", "rsample_noise", "rsample_kl", "backward", "bernoulli_nll")
        steps = (
            "affine",
            "noise_loss",
            "noise_loss_backward",
            "sampler_step",
            "sampler_step_noise",
        )
        penalties = ("gradient_penalty", "gradient_penalty_backward", "interpolate")
        found += [(name, "bfloat16") for name in (*names, *steps, *penalties)]
    if target == "sm_80":
        found += [(name, "float64") for name in ("normal", "rsample", "backward", "sampler_step")]
        found += [("dynamic_threshold", "float64"), ("vlb_backward", "float64")]
    return found


def _call(name: str, dtype: Any) -> None:
    """Calls the launcher of a case: 8 samples of 4096 coordinates."""
    import torch

    from genkern._triton import diffusion, gan, random, vae

    def new():
        return torch.zeros(8, 4096, dtype=dtype)

    key = torch.tensor([1, 2])
    no_clamp = (-math.inf, math.inf)
    plain = (0.0, 0.0, 0.0, *no_clamp, 3)
    loss = torch.ones(())
    chunks = torch.zeros(8, 8192, dtype=dtype).chunk(2, 1)
    wide = torch.promote_types(dtype, torch.float32)
    table, t, each = torch.zeros(1000, 8, dtype=wide), torch.arange(8), torch.zeros(8, dtype=wide)
    noise, of_key = (None, new(), table, t), (key, None, table, t)
    clip = (-1.0, 1.0)
    calls = {
        "normal": lambda: random.normal(key, (8, 4096), dtype),
        "children": lambda: random.split(key, 1000),
        "one element": lambda: diffusion.vlb_backward(
            loss, *[new()[:1, :1]] * 3, key, None, table, t[:1], *clip, 1.0, 1.0, False, 1, 0b11
        ),
        "short rows": lambda: diffusion.vlb(
            *[new()[:, :40]] * 3, key, None, table, t, *clip, 1.0, 1.0, False, 1
        ),
        "rsample": lambda: vae.rsample(new(), new(), key, None, None, *no_clamp),
        "rsample_noise": lambda: vae.rsample(new(), new(), None, new(), None, *no_clamp),
        "rsample_chunk": lambda: vae.rsample(*chunks, key, None, None, *no_clamp),
        "rsample_kl": lambda: vae.rsample_kl(new(), new(), None, None, key, None, *plain),
        "backward": lambda: vae.rsample_kl_backward(
            new(), loss, new(), new(), None, None, key, None, None, *plain, 0b11
        ),
        "backward_noise": lambda: vae.rsample_kl_backward(
            new(), loss, new(), new(), *chunks, None, new(), None, *plain, 0b11111
        ),
        "bernoulli_nll": lambda: vae.bernoulli_nll(new(), new(), 3),
        "bernoulli_nll_backward": lambda: vae.bernoulli_nll_backward(loss, new(), new(), 3, 0b11),
        "gaussian_nll": lambda: vae.gaussian_nll(new(), new(), new(), 1.0, *no_clamp, 3),
        "gaussian_nll_backward": lambda: vae.gaussian_nll_backward(
            loss, new(), new(), new(), 1.0, *no_clamp, 3, 0b111
        ),
        "affine": lambda: diffusion.affine(new(), None, None, *of_key),
        "affine_noise": lambda: diffusion.affine(new(), new(), new(), *noise),
        "noise_loss": lambda: diffusion.noise_loss(new(), None, *of_key, None, 1),
        "noise_loss_noise": lambda: diffusion.noise_loss(new(), new(), *noise, each, 4),
        "noise_loss_backward": lambda: diffusion.noise_loss_backward(
            loss, new(), None, *of_key, None, 1, 0b1
        ),
        "noise_loss_backward_noise": lambda: diffusion.noise_loss_backward(
            new(), new(), new(), *noise, each, 0, 0b111
        ),
        "sampler_step": lambda: diffusion.sampler_step(
            new(), new(), None, None, *of_key, None, None, 1.0, *clip
        ),
        "sampler_step_learned": lambda: diffusion.sampler_step(
            new(), *chunks, new(), *of_key, None, None, 3.0, *clip
        ),
        "sampler_step_noise": lambda: diffusion.sampler_step(
            new(), *chunks, new(), *noise, each, each, 3.0, *no_clamp
        ),
        "sampler_step_backward": lambda: diffusion.sampler_step_backward(
            new(), new(), new(), None, None, *of_key, 1.0, *clip, 0b11
        ),
        "sampler_step_backward_learned": lambda: diffusion.sampler_step_backward(
            new(), new(), *chunks, new(), *of_key, 3.0, *clip, 0b1111
        ),
        "sampler_step_backward_noise": lambda: diffusion.sampler_step_backward(
            new(), new(), *chunks, new(), *noise, 3.0, *clip, 0b11111
        ),
        "guidance_factor": lambda: diffusion.guidance_factor(new(), new(), 3.0, 0.7),
        "dynamic_threshold": lambda: diffusion.dynamic_threshold(
            new(), new(), new(), table, t, each, 3.0, 0.995, 1.5
        ),
        "vlb": lambda: diffusion.vlb(*chunks, new(), *of_key, *clip, 1.0, 0.0, False, 4),
        "hybrid": lambda: diffusion.vlb(*chunks, new(), *noise, *no_clamp, 1.0, 1.0, True, 1),
        "vlb_backward": lambda: diffusion.vlb_backward(
            loss, *chunks, new(), *of_key, *clip, 1.0, 0.0, False, 1, 0b11
        ),
        "hybrid_backward": lambda: diffusion.vlb_backward(
            loss, *chunks, new(), *noise, *no_clamp, 1.0, 1.0, True, 1, 0b11
        ),
        "discriminator_loss": lambda: gan.discriminator_loss(new(), new(), 0, 0.1, 1),
        "discriminator_loss_backward": lambda: gan.discriminator_loss_backward(
            loss, new(), new(), 0, 0.1, 1, 0b11
        ),
        "generator_loss": lambda: gan.generator_loss(new(), new(), 5, 1),
        "generator_loss_backward": lambda: gan.generator_loss_backward(
            new(), new(), new(), 5, 0, 0b11
        ),
        "gradient_penalty": lambda: gan.gradient_penalty(new(), 1.0, 1.0, 1),
        "gradient_penalty_backward": lambda: gan.gradient_penalty_backward(
            loss, new(), 1.0, 1.0, 1
        ),
        "gradient_penalty_backward_backward": lambda: gan.gradient_penalty_backward_backward(
            new(), loss, new(), 1.0, 1.0, 1, 0b11
        ),
        "interpolate": lambda: gan.interpolate(new(), new(), key, None),
        "interpolate_backward": lambda: gan.interpolate_backward(
            new(), new(), new(), None, each.to(dtype), 0b111
        ),
        "optimal_discriminator": lambda: gan.optimal_discriminator(new(), new()),
        "optimal_discriminator_backward": lambda: gan.optimal_discriminator_backward(
            new(), new(), new(), 0b11
        ),
    }
    calls[name]()


def elements(dtype: str) -> int:
    """How many elements a thread works on at once: genkern/_triton/launch.py."""
    return 8 if dtype == "float64" else 16


def _describe_nvidia(kernel: Any, first: bool) -> dict[str, Any]:
    resources, code = sass.read_bytes(kernel.asm["cubin"])
    if kernel.name in LOOPS:
        # The first of several passes counts every number.
        instructions, once = code.loop(f"{sass.WIDE}|MUFU" + "|ATOMS" * first)
    else:
        # All tensors, all mathematics and the end of a sum, and what is least of the rest.
        terms = [r"\bF(FMA|MUL)"] if kernel.name in TERMS else []
        instructions, once = code.way(sass.WIDE, "MUFU|SHFL", *terms), 0
    pipes: dict[str, float] = dict(Counter(map(sass.pipe, instructions)))
    if kernel.name in SEVERAL:
        turn, once = code.loop()
        each = Counter(map(sass.pipe, turn))
        pipes = {name: each[name] + (n - each[name]) / TURNS for name, n in pipes.items()}
    return {
        "registers": resources.registers,
        "spills": resources.stack + resources.local + code.count(r"LDL|STL"),
        "shared": kernel.metadata.shared,
        "loads": sass.widths(instructions, "LDG"),
        "stores": sass.widths(instructions, "STG"),
        "pipes": pipes,
        "once": once,
        "instructions": instructions if kernel.name == "noise_kernel" else [],
        "arithmetic": Counter(re.findall(_ARITHMETIC, kernel.asm["ptx"])),
    }


def _describe_amd(kernel: Any, first: bool) -> dict[str, Any]:
    text = kernel.asm["amdgcn"]
    bits = {"dword": "32", "dwordx2": "64", "dwordx3": "96", "dwordx4": "128"}

    def widths(what: str) -> dict[str, int]:
        found = re.findall(rf"(?:global|buffer)_{what}_(\w+)", text)
        return dict(Counter(bits.get(w, "16") for w in found))

    def number(name: str) -> int:
        return sum(map(int, re.findall(rf"\.{name}:\s*(\d+)", text)))

    return {
        "registers": number("vgpr_count"),
        # Bytes of memory a thread. Scalar registers spill to lanes of vector registers.
        "spills": number("private_segment_fixed_size"),
        "shared": number("group_segment_fixed_size"),
        "loads": widths("load"),
        "stores": widths("store"),
        "pipes": {"vector": len(re.findall(r"(?m)^\s+v_", text))},
        "once": 0,
        "scalar": len(re.findall(r"(?m)^\s+s_", text)),
        "arithmetic": {},
    }


def _compile(target_name: str, full: bool) -> list[dict[str, Any]]:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    from genkern._triton import diffusion, gan, launch, random, reduce, vae

    nvidia = target_name in NVIDIA
    target = (
        GPUTarget("cuda", int(target_name.removeprefix("sm_")), 32)
        if nvidia
        else GPUTarget("hip", target_name, 64)
    )

    class Driver(DriverBase):
        @classmethod
        def is_active(cls):
            return True

        def map_python_to_cpp_type(self, ty):
            return ty

        def get_current_target(self):
            return target

        def get_active_torch_device(self):
            return torch.device("cpu")

        def get_benchmarker(self):
            return None

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    triton.runtime.driver.set_active(Driver())
    found: list[dict[str, Any]] = []

    def compile_only(kernel, programs, device, *args, **meta):
        options = {"num_warps": launch.THREADS // target.warp_size, "enable_fp_fusion": False}
        result = kernel.warmup(*args, grid=(programs,), **meta, **options)
        first = not any((name, result.name) == (k["name"], k["kernel"]) for k in found)
        description = (_describe_nvidia if nvidia else _describe_amd)(result, first)
        found.append({"name": name, "dtype": dtype, "kernel": result.name, **description})

    for module in (random, reduce, vae, diffusion, gan):
        module.launch = compile_only
    others = [(name, "float32") for name in ("children", "one element", "short rows")]
    for name, dtype in [*others, *cases(target_name, full)]:
        _call(name, getattr(torch, dtype))
    return found


def compiled(target: str, *, full: bool = False) -> list[dict[str, Any]]:
    """What the kernels of a target compile to, by a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    command = [sys.executable, "-m", "benchmarks.gpu_triton", target, *(["--full"] * full)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"compiling for {target} failed:\n{result.stderr[-3000:]}")
    kernels: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return kernels


def operators(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kernels that read or write the tensors."""
    return [k for k in kernels if k["name"] in CASES and k["kernel"] not in SECOND]


def tensors(kernel: dict[str, Any]) -> tuple[int, int]:
    """Tensors read and written whole. The sums before a penalty's gradient only read."""
    read, written = CASES[kernel["name"]]
    return read, 0 if kernel["kernel"] == "squares_kernel" else written


def record(passes: list[dict[str, Any]], target: str) -> dict[str, Any]:
    """The row of a kernel, from each of the times that it runs: as benchmarks.gpu_cuda's.

    All of a program is counted, but of a loop one turn: a thread serves its elements and ends.
    """
    kernel = passes[0]
    gpu, (read, written) = GPUS[target], tensors(kernel)
    minimum = (read + written) * ITEMSIZE[kernel["dtype"]]
    counts = sum((Counter(k["pipes"]) for k in passes), Counter())
    pipes = {name: n / elements(kernel["dtype"]) for name, n in counts.items()}
    # Narrower accesses are of single numbers: keys, rows of a table, sums. AMD's compiler reads
    # those by wide ones too, so that the tensors' cannot be told from them.
    wide = sum(k[part].get("128", 0) for k in passes for part in ("loads", "stores"))
    nvidia = target in NVIDIA
    nbytes = wide * 16 / elements(kernel["dtype"]) if nvidia else len(passes) * minimum
    bound, share = predict(gpu, nbytes, pipes)
    name = kernel["name"]
    noise = "drawn" if name in DRAWS else "explicit" if name in EXPLICIT else None
    registers, shared = (max(k[what] for k in passes) for what in ("registers", "shared"))
    return {
        "backend": "triton",
        "kernel": f"{kernel['name']}: {kernel['kernel']}",
        "dtype": kernel["dtype"],
        "target": target,
        "registers": registers,
        "spills": max(k["spills"] for k in passes),
        "shared": shared,
        "occupancy": occupancy(gpu, registers, shared, THREADS),
        "loads": kernel["loads"],
        "stores": kernel["stores"],
        "bytes": nbytes,
        "minimum": minimum,
        "instructions": sum(pipes.values()),
        "pipes": pipes,
        "once": kernel["once"],
        "noise": noise,
        "limit": limit(gpu, minimum, noise, kernel["dtype"]) if nvidia else None,
        "bound": bound,
        "roof": share * minimum / nbytes,
    }


def records(kernels: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """The rows of a target's kernels."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for kernel in operators(kernels):
        rows.setdefault((kernel["name"], kernel["kernel"], kernel["dtype"]), []).append(kernel)
    return [record(passes, target) for passes in rows.values()]


if __name__ == "__main__":
    print(json.dumps(_compile(sys.argv[1], "--full" in sys.argv)))
