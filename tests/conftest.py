"""Settings of every test: Triton's interpreter, poisoned memory, a count of what was skipped."""

from __future__ import annotations

import os
from collections import Counter

# Read by triton when it is first imported. Tests that compile for GPUs start other processes.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

# What is prepared once a file and takes long: its tests stay in one of pytest-xdist's processes.
TOGETHER = (
    "test_cuda_compile",
    "test_distributed",
    "test_examples",
    "test_packaging",
    "test_triton_compile",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory():
    """torch.empty gives NaNs, so an element that a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


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
