"""Checks of a test file that runs itself once under each of the CPU library's instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import genkern
from genkern._info import CAPABILITIES
from genkern._native import unavailable_reason


def each_capability(test):
    test = pytest.mark.parametrize("capability", CAPABILITIES)(test)
    lacks = unavailable_reason("cpu") is not None
    return pytest.mark.skipif(lacks, reason="no native library")(test)


def capability_in_use() -> str:
    """The instruction set of this process."""
    return CAPABILITIES[torch.ops._genkern_cpu.capability()]


def run_under(capability: str, file: str) -> None:
    """Runs a file, which checks something and prints `capability_in_use()`."""
    if capability not in CAPABILITIES[: torch.ops._genkern_cpu.capability() + 1]:
        pytest.skip(f"this processor has no {capability}")
    root = str(Path(genkern.__file__).parents[1])
    environment = os.environ | {"GENKERN_CPU_CAPABILITY": capability, "PYTHONPATH": root}
    run = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == capability, run.stderr
