"""Every public function's values and derivatives against those on the CPU."""

from __future__ import annotations

import pytest
import torch
from gpu_support import CALLS, inputs_on, on_cpu
from public_calls import tensors, value_and_gradients

# A result is within 64 epsilons of the exact one at the scale of its terms, on either side
# (tests/test_conformance.py holds every operator to that), and a call runs up to four operators.
FACTOR = 2 * 64 * 4

DTYPES = (torch.float32, torch.float64)


def _assert_close(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        if not w.is_floating_point():
            assert torch.equal(g.cpu().view(torch.int8), w.view(torch.int8))
            continue
        scale = max(1.0, float(w.detach().abs().max()))
        bound = FACTOR * torch.finfo(w.dtype).eps * scale
        torch.testing.assert_close(g.detach().cpu(), w.detach(), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients(backend, device, name, dtype):
    got = value_and_gradients(CALLS[name], inputs_on(device, dtype))
    assert all(g.device == device for g in got)
    want = on_cpu(value_and_gradients, CALLS[name], inputs_on("cpu", dtype))
    _assert_close(got, want)


def _second_derivatives(call, i):
    """The derivatives of half the squared gradients' sum; none for a linear function."""
    leaves = i.x, i.y = i.x.requires_grad_(), i.y.requires_grad_()
    total = [r.sum() for r in tensors(call(i)) if r.requires_grad]
    if not total:
        return ()
    first = torch.autograd.grad(sum(total), leaves, create_graph=True, allow_unused=True)
    penalty = [0.5 * g.square().sum() for g in first if g is not None and g.requires_grad]
    if not penalty:
        return ()
    second = torch.autograd.grad(sum(penalty), leaves, allow_unused=True)
    return tuple(g for g in second if g is not None)


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("random.")])
def test_second_derivatives(backend, device, name):
    want = on_cpu(_second_derivatives, CALLS[name], inputs_on("cpu"))
    if not want:
        pytest.skip("linear, or without derivatives")
    _assert_close(_second_derivatives(CALLS[name], inputs_on(device)), want)
