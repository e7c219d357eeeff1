"""A key gives the CPU library's noise, bit for bit."""

from __future__ import annotations

import pytest
import torch
from gpu_support import on_cpu
from support import each_dtype, same_bits

from genkern import random

# The counter carries out of its low word at once.
KEY = torch.tensor([-5, 2**32 - 3]).view(torch.uint64)
SHAPES = [(), (1,), (0, 3), (1000003,), (4, 3, 5, 7), (64, 4096), (5, 4099), (3, 2, 2)]


def _keys(shape):
    return on_cpu(random.split, KEY, shape[0])


CASES = [("one key", shape) for shape in SHAPES] + [("keys", shape) for shape in SHAPES[1:]]


@each_dtype
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_noise_has_the_bits_of_the_cpu(backend, device, kind, shape, dtype):
    if dtype == torch.bfloat16 and backend.name == "triton" and device.type == "cpu":
        pytest.skip("triton: the interpreter truncates to bfloat16")
    key = KEY if kind == "one key" else _keys(shape)
    there = key.to(device)
    for draw in (random.uniform, random.normal):
        want = on_cpu(draw, key, *shape, dtype=dtype)
        got = draw(there, *shape, dtype=dtype)
        assert got.device == device
        if draw is random.normal and dtype == torch.float64:
            # Each platform has its own logarithm, sine and cosine: docs/noise.md.
            torch.testing.assert_close(got.cpu(), want, rtol=2e-14, atol=8e-15)
        else:
            assert same_bits(got.cpu(), want), draw


def test_children_have_the_bits_of_the_cpu(backend, device):
    keys, numbers = _keys((300,)), torch.arange(300) * 2**40 - 2**62
    for call in (
        lambda d: random.split(KEY.to(d), 301),
        lambda d: random.split(keys.to(d), 3),
        lambda d: random.fold_in(KEY.to(d), numbers.to(d)),
        lambda d: random.fold_in(keys.to(d), numbers.to(d)),
        lambda d: random.fold_in(keys.to(d), 2**63 - 1),
    ):
        assert same_bits(call(device).cpu(), on_cpu(call, "cpu"))


def test_a_seed_governs_new_keys(backend, device):
    def drawn():
        torch.manual_seed(3)
        return random.new_key(4, device=device)

    keys = drawn()
    assert keys.device == device and same_bits(keys, drawn())
    assert len(keys.view(torch.int64).unique(dim=0)) == 4
    generator = torch.Generator(device).manual_seed(5)
    first, second = (random.new_key(device=device, generator=generator) for _ in range(2))
    assert not same_bits(first, second)
