"""Strides, and that the common ones need no copy."""

from __future__ import annotations

import pytest
import torch
from test_layouts import COMMON, LAYOUTS, SCRATCH, SIZE, _allocated, check_strides, common_calls


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_change_the_numbers(backend, device, layout):
    check_strides(layout, device)


def _peak(call, device):
    """Bytes that a call needs at once, its results included."""
    if device.type == "cpu":
        return _allocated(call)
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return peak


@pytest.mark.parametrize("layout", COMMON)
def test_common_layouts_need_no_copy(backend, device, layout):
    for outs, call in common_calls(layout, device):
        assert outs * SIZE <= _peak(call, device) <= outs * SIZE + SCRATCH
