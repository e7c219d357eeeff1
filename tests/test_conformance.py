"""Every operator on every backend, dtype and layout against the exact values."""

from __future__ import annotations

import pytest
import torch
from support import (
    each_backend,
    each_dtype,
    each_op,
    fake_outputs,
    outputs,
    same_bits,
    skip_if_refused,
    threads,
)
from torch import Tensor

from genkern import testing

INTEGER_OPS = ("split", "fold_in")


def _copies(args):
    return [a.clone() if isinstance(a, Tensor) else None for a in args]


def _problem(op, backend, args) -> str | None:
    before = _copies(args)
    result = outputs(backend.run(op, args))
    for arg, copy in zip(args, before, strict=True):
        if copy is not None and not same_bits(arg, copy):
            return "an input was changed"
    for i, (out, fake) in enumerate(zip(result, fake_outputs(op, args), strict=True)):
        got = (out.dtype, tuple(out.shape), out.stride(), out.device.type)
        want = (fake.dtype, tuple(fake.shape), fake.stride(), fake.device.type)
        if got != want:
            return f"output {i}: the fake has {want}, got {got}"
    try:
        testing.assert_conforms(op.name, args, result)
    except AssertionError as error:
        return str(error)
    return None


@each_dtype
@each_backend
@each_op
def test_conforms(op, backend, dtype):
    if op.name in INTEGER_OPS and dtype != torch.float32:
        pytest.skip("integers have no dtype to vary")
    problems = []
    for sample in testing.samples(op.name, "cpu", dtype):
        skip_if_refused(backend, op, sample.args)
        problem = _problem(op, backend, sample.args)
        if problem:
            problems.append(f"{sample.id}: {problem}")
    assert not problems, f"{len(problems)} samples\n" + "\n".join(problems)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@each_backend
@each_op
def test_same_bits_for_any_number_of_threads(op, backend, dtype):
    if backend.name == "triton":
        pytest.skip("triton: the interpreter runs one program after another")
    samples = [s for s in testing.samples(op.name, "cpu", dtype) if "large" in s.id]
    samples = samples or list(testing.samples(op.name, "cpu", dtype))
    for sample in samples:
        skip_if_refused(backend, op, sample.args)
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(outputs(backend.run(op, sample.args)))
        for other in results[1:]:
            assert all(map(same_bits, results[0], other)), sample.id
