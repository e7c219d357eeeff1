"""The CUDA library as compiled: no spills, 16-byte accesses, instructions an element, exact noise.

Reads the library that `make cuda` builds; needs no GPU. What each kernel compiles to is recorded in
docs/evidence/gpu_static.json, and must not get worse.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections import Counter

import pytest
from machine_code import machine_root, square_roots

from benchmarks import gpu_cuda, gpu_model, gpu_static, sass

SOURCES = [f for d in ("cuda", "include") for f in (gpu_cuda.ROOT / "csrc" / d).rglob("*.*")]


def _missing() -> str | None:
    if not gpu_cuda.LIBRARY.exists():
        return "the CUDA library is not built: make cuda"
    if gpu_cuda.LIBRARY.stat().st_mtime < max(f.stat().st_mtime for f in SOURCES):
        return "the CUDA library is older than its sources: make cuda"
    tools = [t for t in ("cuobjdump", "nvdisasm", "ptxas") if sass.tool(t) is None]
    tools += [] if shutil.which("c++filt") else ["c++filt"]
    return f"not installed: {', '.join(tools)}" if tools else None


pytestmark = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


@functools.cache
def _kernels() -> list[gpu_cuda.Compiled]:
    return list(gpu_cuda.compiled())


def _in_table() -> list[gpu_cuda.Compiled]:
    return [k for k in _kernels() if k.body is not None]


def test_every_kernel_is_there_for_every_gpu():
    found = Counter((k.body, k.dtype, k.walk, k.target) for k in _in_table())
    assert found == {
        (body, dtype, walk, target): 1
        for body in gpu_cuda.BODIES
        for dtype in gpu_cuda.ITEMSIZE
        for walk in gpu_cuda.WALKS.values()
        for target in gpu_cuda.TARGETS
    }


def test_no_kernel_spills_or_uses_local_memory():
    assert len(_kernels()) > len(_in_table())
    bad = [
        f"{k.target} {k.name}: {k.resources}"
        for k in _kernels()
        if k.resources.stack or k.resources.local or k.kernel.count(r"^(LDL|STL)\b")
    ]
    assert not bad, "\n".join(bad)


def test_kernels_move_16_bytes_at_once():
    for k in _in_table():
        body = gpu_cuda.BODIES[k.body]
        assert k.kernel.count(r"^LDG\S*\.128") >= body.read, k.name
        assert k.kernel.count(r"^STG\S*\.128") >= body.written, k.name


def test_the_table_is_not_worse():
    recorded = json.loads(gpu_static.RECORDED.read_text())
    now, before = gpu_static.compilers(), recorded["environment"]["compilers"]
    if now["cuda"] != before["cuda"]:
        pytest.skip(f"compiled by CUDA {now['cuda']}, the table by {before['cuda']}")
    rows = [gpu_cuda.record(k) for k in _in_table() if k.walk == "flat"]
    assert gpu_static.worse(rows, recorded["records"]) == []


def test_a_worse_row_is_found():
    row = {
        "backend": "cuda", "kernel": "k", "dtype": "float32", "target": "sm_90", "spills": 0,
        "bytes": 8.0, "loads": {"128": 2}, "stores": {"128": 1}, "instructions": 40.0,
        "occupancy": 0.5, "roof": 1.0,
    }  # fmt: skip
    assert gpu_static.worse([row], [row]) == []
    worse = {
        "spills": 4, "bytes": 12.0, "loads": {"32": 8}, "stores": {"64": 2}, "instructions": 42.0,
        "occupancy": 0.25, "roof": 0.9, "kernel": "other",
    }  # fmt: skip
    for name, value in worse.items():
        assert len(gpu_static.worse([{**row, name: value}], [row])) == 1, name


SWITCH = """
.L_x_0:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   BRX R8 -0x20  (*"BRANCH_TARGETS .L_x_1,.L_x_2"*) ;
.L_x_1:
        /*0020*/                   FADD R4, R4, R5 ;
        /*0030*/                   BRA `(.L_x_3);
.L_x_2:
        /*0040*/                   MUFU.EX2 R4, R4 ;
.L_x_3:
        /*0050*/                   @P0 BRA `(.L_x_0);
        /*0060*/                   EXIT ;
"""


def test_the_way_through_a_jump_table_is_the_one_with_the_mathematics():
    loop, _ = sass.Kernel(SWITCH).loop()
    assert [sass.opcode(x) for x in loop] == ["LDG.E.128", "BRX", "MUFU.EX2", "BRA"]


def test_two_floats_an_instruction_take_their_pipe_twice():
    gpu = gpu_model.GPUS["sm_100"]
    assert sass.pipe("FFMA2 R2, R4.F32x2.HI_LO, R6.F32, R2.F32x2.HI_LO") == "fp32x2"
    bound, share = gpu_model.predict(gpu, 1.0, {"fp32x2": 8.0})
    assert (bound, share) == ("fma", gpu_model.predict(gpu, 1.0, {"fp32": 16.0})[1])


# ---- the noise


def test_noise_is_rounded_exactly(tmp_path):
    """The float32 sequence of normal.h: nothing approximate, nothing contracted."""
    sass.run_tool("cuobjdump", "-xptx", "all", gpu_cuda.LIBRARY, cwd=str(tmp_path))
    text = "\n".join(file.read_text() for file in tmp_path.glob("*.ptx"))
    entries = re.split(r"(?m)^\s*\.visible \.entry|^\s*\.weak \.entry", text)
    # Of contiguous tensors and of rows, in three dtypes.
    normals = [e for e in entries if re.match(r"\s*\S*6NormalIfE\S*Walk[E\d]*[01]E", e)]
    assert len(normals) == 6
    fused = set()
    for entry in normals:
        assert "approx" not in entry
        assert not re.search(r"\b(add|sub|mul|fma|sqrt)\.(?!rn\.)\S*f32", entry)
        pairs = len(re.findall(r"sqrt\.rn\.f32", entry))
        one, two = (len(re.findall(rf"fma\.rn\.f32{x}\b", entry)) for x in ("", "x2"))
        assert two > 0
        fused.add((one + 2 * two) / pairs)
    assert len(fused) == 1


@pytest.mark.parametrize("target", gpu_cuda.TARGETS)
def test_noise_takes_the_square_root_of_the_machine(target, tmp_path):
    """normal.h's square root does what ptxas makes of sqrt.rn.f32, which is rounded correctly."""
    assert len(square_roots(machine_root(target, tmp_path))) == 1
    for k in _in_table():
        if k.body == "Normal<float>" and k.target == target and k.walk == "flat":
            loop, _ = k.kernel.loop()
            roots = sum(sass.opcode(x) == "MUFU.RSQ" for x in loop)
            assert roots == 8 // gpu_cuda.ITEMSIZE[k.dtype]
            assert len(square_roots(loop)) == roots
            assert k.kernel.count("MUFU") == k.kernel.count(r"MUFU\.RSQ"), k.name
