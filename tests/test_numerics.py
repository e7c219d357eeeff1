"""Errors over the range of the inputs: `python -m benchmarks.numerics`, in part."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import DTYPES, NO_CLAMP, each_backend, outputs, run, skip_unless_usable

from benchmarks.numerics import bits, errors, sweep
from genkern import testing
from genkern._info import cpu_capability
from genkern._ops.op import OPS

ROOT = Path(__file__).parent.parent


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


# ---- errors in ulp


def test_ulp_is_the_distance_to_the_next_number():
    for dtype in DTYPES:
        limits = torch.finfo(dtype)
        for value in (1.0, 1.5, 3.0, limits.max / 2, limits.smallest_normal, limits.tiny / 4):
            x = torch.tensor(value, dtype=dtype)
            above = torch.nextafter(x, torch.tensor(float("inf"), dtype=dtype))
            got = errors.ulp(np.array([x.item()], np.longdouble), dtype)[0]
            assert float(got) == above.item() - x.item(), (dtype, value)


def test_errors_are_counted_in_the_right_units():
    exact = np.array([1.0, 4.0, 1e-45, 1e39, 2.0], np.longdouble)
    scale = np.array([4.0, 4.0, 1e-45, 1e39, 2.0], np.longdouble)
    eps = 2.0**-23
    out = torch.tensor([1.0 + 3.0 * eps, 4.0, 0.0, 3.0, float("nan")])
    found = errors.Errors()
    found.add(out, testing.Expected(exact, scale))
    summary = found.summary()
    assert summary is not None
    assert summary["values"] == 2
    assert summary["worst"] == 3.0
    assert summary["worst_of_terms"] == 0.75
    assert summary["median"] == 1.5
    assert summary["lost"] == 2
    assert 0.0 < summary["worst_of_tiny"] < 2.0**-22


def test_sweeps_reach_all_exponents_and_stay_finite():
    for dtype in DTYPES:
        values = {
            name: np.concatenate(s(sweep.generator_of(name), dtype, 2, 15000))
            for name, s in sweep.SWEEPS.items()
        }
        limits = torch.finfo(dtype)
        exponents = np.unique(np.frexp(values["all exponents"])[1])
        lowest = np.frexp(limits.smallest_normal * limits.eps)[1]
        assert len(exponents) == np.frexp(limits.max)[1] - lowest + 1
        for args in sweep.calls(OPS["kl"], dtype, "special values"):
            assert all(a.isfinite().all() for a in args if isinstance(a, torch.Tensor))


def test_every_operator_that_rounds_is_swept():
    names = {op.name for op in sweep.operators()}
    exact = {"normal", "uniform", "split", "fold_in"}
    assert names == {n for n in OPS if n not in exact and not n.endswith("_out")}
    for op in sweep.operators():
        assert any(True for _ in sweep.calls(op, torch.float32, "standard normal")), op.name


@pytest.fixture(scope="module")
def committed():
    results = json.loads((ROOT / "docs/evidence/numerics.json").read_text())
    return {(r["op"], r["dtype"], r["sweep"]): r["genkern"] for r in results["errors"]}


@pytest.mark.skipif(
    cpu_capability() in (None, "baseline"),
    reason="native: the recorded errors are of processors with a fused multiply-add",
)
@pytest.mark.parametrize("op", sweep.operators(), ids=lambda op: op.name)
def test_no_error_exceeds_the_recorded_one(op, committed):
    """The same inputs give the same bits on AVX2 and AVX-512 (docs/evidence/numerics.json)."""
    for dtype, name in ((torch.float32, "2^-30 to 2^7"), (torch.float32, "special values")):
        key = op.name, str(dtype).removeprefix("torch."), name
        found, wanted = errors.measure(op, dtype, name, eager=False)["genkern"], committed[key]
        if wanted is None:
            assert found is None
            continue
        for what in ("worst", "worst_of_terms", "worst_of_tiny", "lost"):
            # A last digit is the platform's long double.
            assert found[what] <= wanted[what] * (1.0 + 1e-9), (key, what)


# ---- bits


def test_noise_has_the_same_bits_in_parts_and_on_every_backend():
    assert all(row["equal"] for row in bits.splits())
    for row in bits.backends(1 << 12):
        float64 = row["stream"] == "normal float64" and row["backend"] != "genkern_host"
        # Triton's interpreter truncates float32 to bfloat16.
        truncated = row["stream"] == "normal bfloat16" and row["backend"] == "triton"
        assert row["equal"] or float64 or truncated, row
        if float64:
            # 1e-14 |z| + 4e-15 (docs/noise.md), on either side of the exact value, and |z| < 6.
            assert row["largest difference"] < 2 * (1e-14 * 6.0 + 4e-15)
