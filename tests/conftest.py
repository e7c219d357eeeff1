"""Settings of every test: Triton's interpreter, poisoned memory, a count of what was skipped."""

from __future__ import annotations

import os
from collections import Counter

# Read by triton when it is first imported. Tests that compile for GPUs start other processes.
os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch

# See docs/cuda_on_host.md: the tests that run on each backend run on this one too.
if library := os.environ.get("GENKERN_CUDA_ON_HOST"):
    from cuda_on_host.backend import CudaOnHost

    from genkern.backends import BACKENDS

    BACKENDS.append(CudaOnHost(library))


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory():
    """torch.empty gives NaNs, so an element that a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def functions_replaced_once():
    """Triton's interpreter replaces the functions of `tl` for each kernel that it runs, and does it
    again for each function that the kernel calls: half of its time."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        yield
        return
    replace = interpreter._patch_lang

    def unless_replaced(fn):
        modules = [m for m in fn.__globals__.values() if m is tl or m is tl.core]
        return replace(fn) if any(tl.core.is_builtin(m.load) for m in modules) else None

    interpreter._patch_lang = unless_replaced
    yield
    interpreter._patch_lang = replace


@pytest.fixture(autouse=True, scope="session")
def fma_rounded_once():
    """Before 3.9 Triton's interpreter rounds the product too, which changes bits of the noise."""
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError:
        yield
        return

    def create_fma(self, x, y, z):
        # 64 bits hold the product of two float32.
        total = x.data.astype(np.longdouble) * y.data + z.data
        return interpreter.TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
            patch.setattr(interpreter.InterpreterBuilder, "create_fma", create_fma)
        yield


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if skipped:
        terminalreporter.section("skipped, by reason")
        for reason, count in skipped.most_common():
            terminalreporter.line(f"{count:5} {reason}")
