"""The Triton kernels compile for every target, and what they compile to.

Nothing runs: see benchmarks/gpu_triton.py. What each kernel compiles to is recorded in
docs/evidence/gpu_static.json, and must not get worse.
"""

from __future__ import annotations

import json
import re

import pytest
from machine_code import machine_root, square_roots

from benchmarks import gpu_static, gpu_triton, sass
from benchmarks.gpu_triton import DRAWS, ITEMSIZE, NVIDIA, TARGETS, elements, operators, tensors

# Minutes for all; of each vendor one is compiled in every run.
USUAL = ("sm_100", "gfx942")


@pytest.fixture(
    scope="module",
    params=[pytest.param(t, marks=[] if t in USUAL else pytest.mark.exhaustive) for t in TARGETS],
)
def compiled(request):
    pytest.importorskip("triton")
    return request.param, gpu_triton.compiled(request.param)


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
        "moments_kernel", "guidance_factor_kernel", "count_digits_kernel", "select_digit_kernel",
        "vlb_kernel", "vlb_backward_kernel",
        "logits_kernel", "logits_backward_kernel", "squares_kernel", "solve_kernel", "scale_kernel",
        "interpolate_kernel", "interpolate_backward_kernel",
    }  # fmt: skip


def test_tensors_move_once_128_bits_at_a_time(compiled):
    target, kernels = compiled
    for k in operators(kernels):
        read, written = tensors(k)
        accesses = elements(k["dtype"]) * ITEMSIZE[k["dtype"]] // 16
        if target in NVIDIA:
            assert k["loads"].get("128", 0) == read * accesses, k
            assert k["stores"].get("128", 0) == written * accesses, k
        else:
            assert k["loads"].get("128", 0) >= read and k["stores"].get("128", 0) >= written, k


def test_noise_is_made_of_exact_operations(compiled):
    target, kernels = compiled
    if target not in NVIDIA:
        pytest.skip("AMD code has no rounding in its instructions' names")
    for k in operators(kernels):
        if k["name"] in DRAWS and k["dtype"] != "float64":
            # With a rounding mode in its name, no instruction is contracted or flushes to zero.
            kind = "f32x2" if target == "sm_100" else "f32"
            single = {x for x in k["arithmetic"] if x.endswith(("f32", "f32x2"))}
            operation = r"(fma|mul|add|sub|div)\.rn(\.sat)?\.f32(x2)?"
            exact = {x for x in single if re.fullmatch(operation, x)}
            assert f"fma.rn.{kind}" in exact
            others = {"rsqrt.approx.ftz.f32"}  # see the next test
            if k["kernel"] != "noise_kernel":
                others.add("ex2.approx.ftz.f32")
            assert single - exact <= others, k


def test_noise_takes_the_square_root_of_the_machine(compiled, tmp_path):
    """What ptxas makes of sqrt.rn.f32, which is rounded correctly."""
    target, kernels = compiled
    if target not in NVIDIA:
        pytest.skip("AMD's compiler is given the square root")
    assert len(square_roots(machine_root(target, tmp_path))) == 1
    code = [k["instructions"] for k in kernels if k["name"] == "normal" and k["dtype"] != "float64"]
    assert code
    for instructions in code:
        roots = sum(sass.opcode(x).startswith("MUFU") for x in instructions)
        assert roots == elements("float32") // 2
        assert len(square_roots(instructions)) == roots


def test_the_table_is_not_worse(compiled):
    target, kernels = compiled
    recorded = json.loads(gpu_static.RECORDED.read_text())
    now, before = gpu_static.compilers(), recorded["environment"]["compilers"]
    if now["triton"] != before["triton"]:
        pytest.skip(f"compiled by Triton {now['triton']}, the table by {before['triton']}")
    rows = gpu_triton.records(kernels, target)
    assert gpu_static.worse(rows, recorded["records"]) == []
