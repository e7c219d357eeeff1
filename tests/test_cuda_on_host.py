"""The CUDA kernels executed on the CPU, and that what is wrong with a kernel is found.

`make cuda-on-host` runs this file, and with the same library every test that runs on each backend.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from support import each_dtype, each_op, outputs, randn, run, same_bits

import genkern
from genkern import testing
from genkern._ops.op import BACKENDS, OPS

LIBRARY = Path(os.environ.get("GENKERN_CUDA_ON_HOST", "none"))
NATIVE, HOST = (
    next((b for b in BACKENDS if b.name == name), None) for name in ("native", "cuda-on-host")
)
pytestmark = pytest.mark.skipif(HOST is None, reason="cuda-on-host: `make cuda-on-host` runs it")
CHECKED = "checked" in LIBRARY.name
FAULTY = LIBRARY.with_name(LIBRARY.stem.replace("libcuda_on_host", "faulty"))

# ---- each check finds what it is there for

BOUNDS = r"AddressSanitizer: heap-buffer-overflow"
FAULTS = {
    "read_past_the_end": BOUNDS,
    "write_past_the_end": BOUNDS,
    "misaligned": r"(load of|reference binding to) misaligned address",
    "shared_index": r"index 256 out of bounds for type 'float \[256\]'",
    "shift": r"shift exponent 32 is too large",
    "assertion": r"assertion failed: threadIdx.x < limit in faulty.cu:\d+, thread 31 of block 0",
    "divergent_barrier": r"thread 0 waits at __syncthreads in .*, thread 128 has returned",
    "two_barriers": r"a thread waits at __syncthreads in faulty.cu:\d+, this at __syncthreads",
    "divergent_shuffle": r"thread 0 waits at __shfl_down_sync in .*, thread 31 has returned",
    "narrow_mask": r"__shfl_up_sync in .* by a thread not in its mask, thread 16",
    "too_many_threads": r"impossible launch: 1x1x1 blocks of 1025x1x1 threads",
    "too_many_blocks": r"impossible launch: 1x65536x1 blocks of 1x1x1 threads",
}
# By the check of every access, which the library of GCC's own sanitizers lacks.
SHARED, LATER = r"race on shared memory: ", r"by thread \d+ of block 0 and, no barrier later,"
FAULTS_OF_ACCESS = {
    "shared_unwritten": r"read at faulty.cu:\d+ of shared memory that no thread has written",
    "race_read_after_write": r"read at faulty.cu:\d+ of shared memory that no thread has written",
    "race_write_after_read": rf"{SHARED}read at faulty.cu:\d+ {LATER} write",
    "race_count": rf"{SHARED}write at faulty.cu:\d+ {LATER} read",
    "race_with_atomic": rf"{SHARED}(read|atomic) at faulty.cu:\d+ {LATER} (atomic|read)",
    "race_shuffle": rf"{SHARED}write at faulty.cu:\d+ {LATER} read",
    "race_of_blocks": r"race on global memory: write at .* by thread 0 of block 0 and",
}


def _faulty(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FAULTY, *arguments], capture_output=True, text=True)


def test_every_fault_has_a_pattern():
    assert set(_faulty().stdout.split()) == {*FAULTS, *FAULTS_OF_ACCESS}


@pytest.mark.parametrize("name", [*FAULTS, *FAULTS_OF_ACCESS])
def test_a_fault_is_reported(name):
    if name in FAULTS_OF_ACCESS and not CHECKED:
        pytest.skip("cuda-on-host: this library does not check every access")
    wrong, right = _faulty(name), _faulty(name, "right")
    assert wrong.returncode != 0
    assert re.search((FAULTS | FAULTS_OF_ACCESS)[name], wrong.stderr), wrong.stderr
    assert (right.returncode, right.stderr) == (0, "")


def test_a_fault_of_a_kernel_raises():
    x = torch.zeros(2, 3)
    table = torch.zeros(4, 4)
    args = (x, None, None, None, None, table, torch.tensor([1, 4]))
    with pytest.raises(RuntimeError, match="t must be a row of the table"):
        run(HOST, OPS["affine"], args)
    # The next call runs.
    run(HOST, OPS["affine"], (*args[:-1], torch.tensor([1, 3])))


# ---- the kernels


@each_dtype
def test_noise_has_the_bits_of_the_cpu_library(dtype):
    key, keys = genkern.random.key(5), genkern.random.split(genkern.random.key(5), 3)
    calls = [(key, [2003]), (key, [3, 5, 7]), (keys, [3, 1031]), (keys, [3, 2, 2]), (key, [])]
    for name in ("uniform", "normal"):
        for which, shape in calls:
            args = (which, shape, dtype)
            got, want = (run(backend, OPS[name], args) for backend in (HOST, NATIVE))
            if name == "normal" and dtype == torch.float64:
                torch.testing.assert_close(got, want, rtol=2e-14, atol=8e-15)
            else:
                assert same_bits(got, want), (name, shape)


def test_children_of_keys_have_the_bits_of_the_cpu_library():
    key, keys = genkern.random.key(5), genkern.random.split(genkern.random.key(5), 300)
    for name, args in (
        ("split", (key, 301)),
        ("split", (keys, 3)),
        ("fold_in", (key, torch.arange(1000) * 2**40)),
        ("fold_in", (keys, torch.arange(600)[::2])),
    ):
        assert same_bits(run(HOST, OPS[name], args), run(NATIVE, OPS[name], args))


@each_op
def test_any_order_of_threads_and_blocks_gives_the_same_bits(op):
    """Also run to run: what the order does not change, no schedule of a GPU does."""
    for sample in [*testing.samples(op.name, "cpu", torch.float32)][::5]:
        want = outputs(run(HOST, op, sample.args))
        for seed in (1, 2):
            with HOST.order(seed):
                got = outputs(run(HOST, op, sample.args))
            assert all(map(same_bits, want, got)), sample.id


@pytest.mark.parametrize("shape", [(1, 9001), (3, 4001), (700, 33)])
def test_sums_of_several_blocks_in_any_order(shape):
    x, y = randn(*shape), randn(*shape, seed=1)
    for reduction in (1, 4):
        for name, args in (
            ("bernoulli_nll", (x, y, reduction)),
            ("gradient_penalty", (x, 1.0, 1.0, reduction)),
        ):
            want = run(HOST, OPS[name], args)
            with HOST.order(1):
                assert same_bits(run(HOST, OPS[name], args), want)
            torch.testing.assert_close(want, run(NATIVE, OPS[name], args))
    want = run(HOST, OPS["guidance_factor"], (x, y, 3.0, 0.7))
    with HOST.order(1):
        assert same_bits(run(HOST, OPS["guidance_factor"], (x, y, 3.0, 0.7)), want)
