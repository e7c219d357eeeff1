"""Errors over the range of the inputs: `python -m benchmarks.numerics`, in part."""

from __future__ import annotations

import pytest
import torch
from support import NO_CLAMP, each_backend, outputs, run, skip_unless_usable

from genkern import testing
from genkern._ops.op import OPS


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter is NumPy
@each_backend
def test_a_gradient_that_a_clamp_stops_is_zero_where_it_is_infinite(backend):
    skip_unless_usable(backend)
    grad = torch.ones(2, 3)
    far, logvar = torch.full((2, 3), 1e25), torch.full((2, 3), 9.0)
    args = (grad, far, -far, logvar, 1.0, -1.0, 1.0, 0, 0b100)
    assert not outputs(run(backend, OPS["gaussian_nll_backward"], args))[2].any()
    # e^(l + 90) is infinite, and so is the derivative by l.
    prior = torch.full((2, 3), -90.0)
    clamped = (0.0, 0.0, 0.0, -1.0, 1.0, 0)
    args = (None, grad, far, logvar, None, prior, None, None, None, *clamped, 0b10)
    assert not outputs(run(backend, OPS["rsample_kl_backward"], args))[1].any()


def _vlb_args(lo, hi, detach_mean, decoder):
    """A log-variance of -250: the derivative by the prediction is infinite."""
    pred, x0, noise, values = (torch.full((2, 3), v) for v in (5.0, 0.5, 1.0, -250.0))
    row = torch.tensor([[0.2, -0.3, 0.4, 0.5, 0.1, 0.0, 1.0, decoder]])
    options = (lo, hi, 1.0, 0.5, detach_mean, 0)
    return torch.ones(2, 3), pred, values, x0, None, noise, row, None, *options, 0b01


@pytest.mark.parametrize("decoder", [0.0, 1.0])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Triton's interpreter is NumPy
@each_backend
def test_a_detached_or_clipped_mean_has_no_gradient_from_an_infinite_one(
    backend, detached, decoder
):
    skip_unless_usable(backend)
    # Without either, so that the test can fail.
    (grad, _) = outputs(run(backend, OPS["vlb_backward"], _vlb_args(*NO_CLAMP, False, decoder)))
    assert not grad.isfinite().all()
    bounds = NO_CLAMP if detached else (-0.1, 0.1)
    args = _vlb_args(*bounds, detached, decoder)
    (grad, _) = outputs(run(backend, OPS["vlb_backward"], args))
    # That of the squared error, 1/2 (pred - noise)^2, is all there is.
    torch.testing.assert_close(grad, torch.full((2, 3), 4.0))
    testing.assert_conforms("vlb_backward", args, (grad, grad.new_empty(0)))
