"""The CPU library under AddressSanitizer and UBSan: `make sanitize` does more."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks import sanitize

pytestmark = pytest.mark.exhaustive  # builds the library once more: minutes

FUZZ = ("-m", "benchmarks.fuzz", "--cases", "100", "--hostile", "2500")


@pytest.fixture(scope="module")
def package():
    lacking = sanitize.missing("address")
    if lacking:
        pytest.skip(f"sanitizers need {lacking}")
    # The instruction set that compiles fastest; the loops around it are the same for all.
    return sanitize.build("address", only="baseline")


def _run(package, *command: str) -> subprocess.CompletedProcess[str]:
    return sanitize.run("address", package, command, capture_output=True, text=True)


def test_the_sanitized_library_is_used(package):
    code = "import genkern; print(genkern.__file__, genkern._native.unavailable_reason('cpu'))"
    answer = _run(package, "-c", code)
    assert answer.stdout.split() == [str(package / "genkern/__init__.py"), "None"], answer.stderr


def test_the_sanitizer_sees_a_read_out_of_bounds(package):
    """In a tensor's memory."""
    code = """
import ctypes, torch
x = torch.zeros(4)
ctypes.memmove(ctypes.create_string_buffer(64), x.data_ptr(), 64)
"""
    answer = _run(package, "-c", code)
    assert answer.returncode != 0 and "AddressSanitizer: heap-buffer-overflow" in answer.stderr


def test_hostile_and_random_calls(package):
    answer = _run(package, *FUZZ)
    assert answer.returncode == 0, answer.stderr[-4000:]
