"""Tests of a GPU's kernels: `make gpu` runs them, for each backend in processes of their own.

`--device cpu` runs the bodies that do not need CUDA on a CPU, which shows that they work.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

# Read when cuBLAS starts: deterministic algorithms, which tests/conftest.py asks for, need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from support import skip_unless_usable

import genkern
from genkern.backends import BACKENDS

HERE = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption("--device", default="cuda", help="cuda, or cpu to try the bodies there")
    parser.addoption("--every", type=int, default=1, help="run every n-th case of a test")


def pytest_collection_modifyitems(config, items):
    mine = [item for item in items if HERE in item.path.parents]
    every = config.getoption("--every", 1)
    seen = defaultdict(int)
    left_out = set()
    for item in mine:
        item.add_marker("gpu")
        case = (item.location[0], item.originalname, item.callspec.params["backend"].name)
        if seen[case] % every:
            left_out.add(item)
        seen[case] += 1
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def device(pytestconfig):
    name = pytestconfig.getoption("--device", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


@pytest.fixture
def cuda(device):
    """The device, where a test asks what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("needs CUDA itself")
    return device


@pytest.fixture(params=[b for b in BACKENDS if b.name != "reference"], ids=lambda b: b.name)
def backend(request, device):
    """Each backend with kernels, in force during the test."""
    skip_unless_usable(request.param, device)
    with genkern.use_backend(request.param.name):
        yield request.param
