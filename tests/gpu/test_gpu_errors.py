"""A t that is not in the schedule: an assertion on the device, and never a foreign read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import every_sample
import pytest
import torch

import genkern
from genkern import vae

ROWS = 50

# An assertion ends a process's use of the device: in a process of its own.
CALL = """
import sys
import torch
import genkern
from genkern import diffusion

device, backend, *steps = sys.argv[1:]
schedule = diffusion.NoiseSchedule.linear(50)
x0, noise = torch.ones(4, 3, device=device), torch.zeros(4, 3, device=device)
for step in map(int, steps):
    t = torch.tensor([1, step, 2, 3], device=device)
    with genkern.use_backend(backend):
        x = diffusion.q_sample(x0, t, schedule, noise=noise).cpu()
    print("row", int((schedule.alphas_cumprod - x[1, 0] ** 2).abs().argmin()), flush=True)
"""

each_wrong_step = pytest.mark.parametrize("step", [-1, ROWS, -(2**62), 2**62])


def _call(device, backend, step, **environment):
    """A process that makes the call with a t that is in the schedule, and then with this one."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALL, str(device), backend.name, "7", str(step)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@each_wrong_step
def test_t_out_of_range_is_an_assertion(backend, device, step):
    # Triton compiles its assertions where this variable asks for them.
    out = _call(device, backend, step, TRITON_DEBUG="1")
    assert out.returncode != 0 and out.stdout == "row 7\n", out.stderr
    if device.type == "cpu":
        assert "IndexError" in out.stderr, out.stderr  # of the public function, before any kernel
    else:
        assert "device-side assert triggered" in out.stderr, out.stderr
        assert "illegal memory access" not in out.stderr


@each_wrong_step
def test_without_assertions_the_nearest_row_is_read(backend, cuda, step):
    if backend.name != "triton":
        pytest.skip("native: its assertions are always compiled")
    out = _call(cuda, backend, step, TRITON_DEBUG="0")
    nearest = min(max(step, 0), ROWS - 1)
    assert (out.returncode, out.stdout) == (0, f"row 7\nrow {nearest}\n"), out.stderr


def test_tensors_of_two_devices_raise(backend, cuda):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"kl: .*cuda"):
        vae.kl(x.to(cuda), x)


def test_no_access_outside_the_tensors(backend, device):
    """Every operator's samples, under NVIDIA's memory checker."""
    if device.type == "cpu":
        every_sample.main("cpu", backend.name, 10**6)
        return
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("compute-sanitizer, of the CUDA toolkit, is not on PATH")
    command = [checker, "--tool", "memcheck", "--error-exitcode", "9", sys.executable]
    command += [every_sample.__file__, str(device), backend.name, "7"]
    # Each tensor in memory of its own, so that the end of one is not the start of another.
    alone = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    out = subprocess.run(command, env=alone, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout[-4000:] + out.stderr[-4000:]
    assert f"{len(genkern.backends.OPS)} operators" in out.stdout
