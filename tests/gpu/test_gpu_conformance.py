"""Every operator, dtype and layout against the exact values, which the CPU computes."""

from __future__ import annotations

import itertools

import pytest
import torch
from gpu_support import moved
from support import each_dtype, each_op, outputs, run, same_bits
from test_conformance import (
    INTEGER_OPS,
    _problem,
    _wide_calls,
    _wide_diffusion_calls,
    _wide_gan_calls,
)

from genkern import testing

# Triton compiles for each layout and set of options.
SOME = {torch.float32: 1, torch.float64: 3, torch.bfloat16: 3, torch.float16: 3}


@each_dtype
@each_op
def test_conforms(op, backend, dtype, device):
    if op.name in INTEGER_OPS and dtype != torch.float32:
        pytest.skip("integers have no dtype to vary")
    step = SOME[dtype] if backend.name == "triton" else 1
    problems = []
    for sample in itertools.islice(testing.samples(op.name, device, dtype), None, None, step):
        problem = _problem(op, backend, sample.args, dtype)
        if problem:
            problems.append(f"{sample.id}: {problem}")
    assert not problems, f"{len(problems)} samples\n" + "\n".join(problems)


@each_op
def test_sums_of_many_blocks(op, backend, device):
    """Calls of 300 thousand elements: the exact values, and the same bits in every run."""
    calls = itertools.chain(_wide_calls(), _wide_gan_calls(), _wide_diffusion_calls())
    for args in (args for name, args in calls if name == op.name):
        there = moved(args, device)
        first = outputs(run(backend, op, there))
        testing.assert_conforms(op.name, there, first)
        for _ in range(3):
            assert all(map(same_bits, outputs(run(backend, op, there)), first)), args[-1]
