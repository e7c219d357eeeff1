"""A t that is not in the schedule: an assertion on the device, and never a foreign read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import genkern
from genkern import vae

HERE = Path(__file__).parent
ROWS = 50

# An assertion ends a process's use of the device: in a process of its own.
CALL = """
import sys
import torch
import genkern
from genkern import diffusion

device, backend, step = sys.argv[1:]
schedule = diffusion.NoiseSchedule.linear(50)
x0, noise = torch.ones(4, 3, device=device), torch.zeros(4, 3, device=device)
t = torch.tensor([1, int(step), 2, 3], device=device)
with genkern.use_backend(backend):
    x = diffusion.q_sample(x0, t, schedule, noise=noise).cpu()
print("row", round(float((schedule.alphas_cumprod - x[1, 0] ** 2).abs().argmin())))
"""

each_wrong_step = pytest.mark.parametrize("step", [-1, ROWS, -(2**62), 2**62])


def _call(device, backend, step, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALL, str(device), backend.name, str(step)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_the_call_itself_runs(backend, device):
    out = _call(device, backend, 7)
    assert (out.returncode, out.stdout) == (0, "row 7\n"), out.stderr


@each_wrong_step
def test_t_out_of_range_is_an_assertion(backend, device, step):
    if backend.name == "triton" and device.type == "cpu":
        pytest.skip("triton: the interpreter ignores assertions")
    # Triton compiles its assertions where this variable asks for them.
    out = _call(device, backend, step, TRITON_DEBUG="1")
    assert out.returncode != 0 and not out.stdout
    if device.type == "cpu":
        assert "IndexError" in out.stderr, out.stderr
    else:
        assert "device-side assert triggered" in out.stderr, out.stderr
        assert "illegal memory access" not in out.stderr


@each_wrong_step
def test_without_assertions_the_nearest_row_is_read(backend, device, step):
    if backend.name != "triton":
        pytest.skip("native: its assertions are always compiled")
    out = _call(device, backend, step, TRITON_DEBUG="0")
    nearest = min(max(step, 0), ROWS - 1)
    assert (out.returncode, out.stdout) == (0, f"row {nearest}\n"), out.stderr


def test_tensors_of_two_devices_raise(backend, cuda):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"kl: .*cuda"):
        vae.kl(x.to(cuda), x)


def test_no_access_outside_the_tensors(backend, device):
    """Every operator's samples, under NVIDIA's memory checker."""
    step = 7 if device.type == "cuda" else 10**6
    script = str(HERE / "every_sample.py")
    command = [sys.executable, script, str(device), backend.name, str(step)]
    if device.type == "cuda":
        checker = shutil.which("compute-sanitizer")
        if checker is None:
            pytest.skip("compute-sanitizer, of the CUDA toolkit, is not on PATH")
        command = [checker, "--tool", "memcheck", "--error-exitcode", "9", *command]
    # Each tensor in memory of its own, so that the end of one is not the start of another.
    alone = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    out = subprocess.run(command, env=alone, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout[-4000:] + out.stderr[-4000:]
    assert f"{len(genkern.backends.OPS)} operators" in out.stdout
