"""The Triton kernels compile for every target, and what they compile to.

Nothing runs: a stand-in for the GPU driver names the target, and the launchers, called with CPU
tensors, compile the very kernels that users get. Each target is compiled by a process of its own,
this file run as a program, because the tests' own process runs Triton's interpreter.
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

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942", "gfx950")
NVIDIA = TARGETS[:3]
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float64": 8}

# Instructions that a GPU can issue while it moves one byte to or from memory, by the data sheets of
# A100 80GB, H100 SXM and B200: multiprocessors x 128 lanes x boost clock / bandwidth.
INSTRUCTIONS_A_BYTE = {
    "sm_80": 108 * 128 * 1.41e9 / 2.04e12,
    "sm_90": 132 * 128 * 1.98e9 / 3.35e12,
    "sm_100": 148 * 128 * 1.85e9 / 8.0e12,
}

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
# What is above 60 instructions an element and above the memory's budget: noise in a 16-bit type, in
# float64, on the B200, and for a loss, which reads one tensor. Of these, 50 are the normals, whose
# bits are fixed; the others the exponential and the KL, as accurate as on the CPU. Two parts of
# three of the variational bound's are for the tiles with samples at t = 0, and run there alone.
OVER_BUDGET = {
    ("rsample", "bfloat16"): 79,
    ("rsample_chunk", "bfloat16"): 85,
    ("rsample_kl", "bfloat16"): 98,
    ("backward", "bfloat16"): 119,
    ("rsample", "float32"): 79,
    ("rsample_chunk", "float32"): 85,
    ("rsample_kl", "float32"): 96,
    ("backward", "float32"): 116,
    ("normal", "float64"): 128,
    ("rsample", "float64"): 170,
    ("backward", "float64"): 206,
    ("affine", "bfloat16"): 66,
    ("affine", "float32"): 67,
    ("noise_loss", "bfloat16"): 71,
    ("noise_loss", "float32"): 72,
    ("noise_loss_backward", "bfloat16"): 67,
    ("noise_loss_backward", "float32"): 68,
    ("sampler_step", "bfloat16"): 78,
    ("sampler_step", "float32"): 77,
    ("sampler_step_learned", "float32"): 101,
    ("sampler_step_backward_learned", "float32"): 114,
    ("sampler_step_noise", "bfloat16"): 71,
    ("dynamic_threshold", "float32"): 91,
    ("vlb", "float32"): 258,
    ("hybrid", "float32"): 180,
    ("vlb_backward", "float32"): 270,
    ("hybrid_backward", "float32"): 180,
    ("sampler_step", "float64"): 152,
    ("dynamic_threshold", "float64"): 94,
    ("vlb_backward", "float64"): 440,
    ("discriminator_loss", "float32"): 90,
}


def _cases(target):
    """What is compiled for a target: everything once, and in other dtypes for one of them."""
    found = [(name, "float32") for name in CASES]
    if target == "sm_80":
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
        found += [(name, "float64") for name in ("normal", "rsample", "backward", "sampler_step")]
        found += [("dynamic_threshold", "float64"), ("vlb_backward", "float64")]
    return found


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request):
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), request.param],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return request.param, json.loads(result.stdout.splitlines()[-1])


def test_nothing_spills(compiled):
    _, kernels = compiled
    assert {k["name"]: k["spills"] for k in kernels if k["spills"]} == {}


def test_every_kernel_is_compiled(compiled):
    _, kernels = compiled
    assert {k["kernel"] for k in kernels} == {
        "noise_kernel", "children_kernel", "posterior_kernel", "posterior_backward_kernel",
        "bernoulli_nll_kernel", "bernoulli_nll_backward_kernel",
        "gaussian_nll_kernel", "gaussian_nll_backward_kernel", "sum_rows_kernel",
        "affine_kernel", "noise_loss_kernel", "noise_loss_backward_kernel",
        "sampler_step_kernel", "sampler_step_backward_kernel",
        "moments_kernel", "guidance_factor_kernel", "count_digits_kernel", "quantile_kernel",
        "vlb_kernel", "vlb_backward_kernel",
        "logits_kernel", "logits_backward_kernel", "squares_kernel", "solve_kernel", "scale_kernel",
        "interpolate_kernel", "interpolate_backward_kernel",
    }  # fmt: skip


# What runs after the kernel that reads the tensors.
SECOND = ("sum_rows_kernel", "guidance_factor_kernel", "quantile_kernel", "solve_kernel")


def _operators(kernels):
    return [k for k in kernels if k["name"] in CASES and k["kernel"] not in SECOND]


def _tensors(kernel):
    """Tensors read and written whole. The sums before a penalty's gradient only read."""
    read, written = CASES[kernel["name"]]
    return read, 0 if kernel["kernel"] == "squares_kernel" else written


def test_tensors_move_once_128_bits_at_a_time(compiled):
    target, kernels = compiled
    for k in _operators(kernels):
        read, written = _tensors(k)
        accesses = 8 * ITEMSIZE[k["dtype"]] // 16 if target in NVIDIA else None
        if target in NVIDIA:
            # The counts of the digits found so far are read too.
            others = 2 if k["kernel"] == "count_digits_kernel" else 0
            assert k["loads"].get("128", 0) == read * accesses + others, k
            assert k["stores"].get("128", 0) == written * accesses, k
        else:
            assert k["loads"].get("128", 0) >= read and k["stores"].get("128", 0) >= written, k


def test_noise_is_made_of_exact_operations(compiled):
    target, kernels = compiled
    if target not in NVIDIA:
        pytest.skip("AMD code has no rounding in its instructions' names")
    for k in _operators(kernels):
        if k["name"] in DRAWS and k["dtype"] != "float64":
            # With a rounding mode in its name, no instruction is contracted or flushes to zero.
            allowed = {f"{operation}.rn.f32" for operation in ("fma", "mul", "add", "sub", "sqrt")}
            single = {operation for operation in k["arithmetic"] if operation.endswith("f32")}
            assert "fma.rn.f32" in single
            assert single - {"div.rn.f32"} <= allowed, k


def test_instructions_an_element(compiled):
    target, kernels = compiled
    if target not in NVIDIA:
        pytest.skip("no budget is stated for AMD GPUs")
    for k in _operators(kernels):
        limit = max(60, INSTRUCTIONS_A_BYTE[target] * ITEMSIZE[k["dtype"]] * sum(_tensors(k)))
        limit = max(limit, OVER_BUDGET.get((k["name"], k["dtype"]), 0))
        assert k["instructions"] / 8 <= limit, (k["name"], k["dtype"], k["instructions"] / 8, limit)


# ---- the program


def _calls(name, dtype):
    """The launcher's call for a case: 8 samples of 4096 coordinates."""
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
    return calls[name]


def _sass(cubin):
    """The machine code's instructions, read with the tool that triton ships."""
    import tempfile

    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    predicate = r"(?:@!?U?P\w+\s+)?"
    found = re.findall(rf"^\s+/\*[0-9a-f]{{4,}}\*/\s+{predicate}([A-Z][\w.]*)", text, re.M)
    return [opcode for opcode in found if opcode != "NOP"]


def _width(opcode):
    return next((part for part in opcode.split(".") if part in ("64", "128", "256")), "32")


def _describe_nvidia(kernel):
    opcodes = _sass(kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    arithmetic = r"\b(?:fma|mul|add|sub|div|sqrt|rsqrt|rcp|ex2|lg2|sin|cos)\.[\w.]*f(?:32|64)\b"
    return {
        "instructions": len(opcodes),
        "spills": sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes),
        "loads": Counter(_width(o) for o in opcodes if o.startswith("LDG")),
        "stores": Counter(_width(o) for o in opcodes if o.startswith("STG")),
        "arithmetic": Counter(re.findall(arithmetic, ptx)),
    }


def _describe_amd(kernel):
    text = kernel.asm["amdgcn"]
    bits = {"dword": "32", "dwordx2": "64", "dwordx3": "96", "dwordx4": "128"}

    def widths(what):
        return Counter(bits.get(w) for w in re.findall(rf"(?:global|buffer)_{what}_(\w+)", text))

    return {
        "instructions": len(re.findall(r"^\s+[vs]_", text, re.M)),
        # Bytes of memory a thread. Scalar registers spill to lanes of vector registers.
        "spills": sum(map(int, re.findall(r"\.private_segment_fixed_size:\s*(\d+)", text))),
        "loads": widths("load"),
        "stores": widths("store"),
    }


def _compile(target_name):
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
    found = []

    def compile_only(kernel, programs, device, *args, **meta):
        options = {"num_warps": launch.THREADS // target.warp_size, "enable_fp_fusion": False}
        result = kernel.warmup(*args, grid=(programs,), **meta, **options)
        description = _describe_nvidia(result) if nvidia else _describe_amd(result)
        found.append({"name": name, "dtype": dtype, "kernel": result.name, **description})

    for module in (random, reduce, vae, diffusion, gan):
        module.launch = compile_only
    for name, dtype in [("children", "float32"), *_cases(target_name)]:
        _calls(name, getattr(torch, dtype))()
    print(json.dumps(found))


if __name__ == "__main__":
    _compile(sys.argv[1])
