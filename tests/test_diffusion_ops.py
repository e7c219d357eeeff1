"""What holds for the diffusion operators by their definition, on every backend."""

from __future__ import annotations

import functools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from support import (
    NO_CLAMP,
    each_backend,
    outputs,
    randn,
    run,
    same_bits,
    skip_if_refused,
    skip_unless_usable,
)

import genkern
from genkern import testing
from genkern._ops.elements import mask_of
from genkern._ops.op import BACKENDS, OPS
from genkern.random import key, normal, split
from genkern.testing._common import real
from genkern.testing._diffusion import _log_mass

F32, F64 = torch.float32, torch.float64
BATCH = 4
SHAPE = (BATCH, 3, 5)
NAN = float("nan")

each_wide_dtype = pytest.mark.parametrize("dtype", (F32, F64), ids=("float32", "float64"))


@pytest.fixture(autouse=True)
def _quiet_interpreter():
    with np.errstate(all="ignore"):
        yield


def table(columns: int = 8, rows: int = 5, dtype=F32) -> torch.Tensor:
    """Coefficients near 1 of both signs; the first row is the decoder's."""
    values = 0.2 * randn(rows, columns, dtype=dtype, seed=7) + 1.0
    values[1::2, ::2] *= -1.0
    if columns == 8:
        values[:, 7] = torch.arange(rows) == 0
    return values


def calls(noise, coefficients, t, dtype=F32) -> dict[str, tuple]:
    """One call an operator of (B, ...) tensors; noise is a pair of key and tensor."""
    x, y, z, u = (randn(*SHAPE, dtype=dtype, seed=s) for s in range(4))
    weight = torch.linspace(0.5, 2.0, BATCH, dtype=dtype)
    at, loss = (coefficients, t), (coefficients[:, :4], t)
    learned = (*NO_CLAMP, 0.7, 1.0, False)
    return {
        "affine": (x, y, z, *noise, *at),
        "noise_loss": (x, y, *noise, *loss, weight, 4),
        "noise_loss_forming": (x, y, *noise, *loss, weight, 4),
        "noise_loss_backward": (weight, x, y, *noise, *loss, weight, 4, 0b011),
        "sampler_step": (x, y, z, u, *noise, *at, None, None, 2.0, -0.5, 0.5),
        "sampler_step_backward": (z, x, y, z, u, *noise, *at, 2.0, -0.5, 0.5, 0b01111),
        "vlb": (x, z, y.clamp(-1, 1), *noise, *at, *learned, 4),
        "vlb_backward": (weight, x, z, y.clamp(-1, 1), *noise, *at, *learned, 4, 0b11),
    }


NOISY = sorted(calls((None, None), table(), None))


def results(backend, name, args) -> tuple[torch.Tensor, ...]:
    skip_if_refused(backend, OPS[name], args)
    # Chosen, since the reference draws its noise by an operator.
    with genkern.use_backend(backend.name):
        return outputs(run(backend, OPS[name], args))


def assert_same(got, want) -> None:
    assert len(got) == len(want) and all(map(same_bits, got, want))


def threshold_args(x, coefficients, t=None, ratio=0.9):
    return x, torch.zeros_like(x), None, coefficients, t, None, 1.0, ratio, 1e9


# ---- coefficients


@each_backend
@pytest.mark.parametrize("name", [*NOISY, "dynamic_threshold"])
def test_no_step_reads_beyond_the_table(backend, name):
    """It is clamped, or refused where reading t costs nothing."""

    def call(t):
        if name == "dynamic_threshold":
            return results(backend, name, threshold_args(randn(*SHAPE), table(), t))
        return results(backend, name, calls((key(1), None), table(), t)[name])

    inside, outside = torch.tensor([0, 4, 0, 4]), torch.tensor([-1, 5, -(2**40), 2**40])
    if backend.name == "native":
        for t, problem in ((outside, "-1 at index 0"), (torch.tensor(5), "5 at index 0")):
            with pytest.raises(
                RuntimeError, match=rf"{name}: t must be in \[0, 5\), got {problem}"
            ):
                call(t)
        return
    if backend.name == "cuda-on-host":
        for t in (outside, torch.tensor(2**40)):
            with pytest.raises(RuntimeError, match="t must be a row of the table"):
                call(t)
        return
    assert_same(call(outside), call(inside))
    assert_same(call(torch.tensor(2**40)), call(torch.tensor(4)))


@each_backend
@pytest.mark.parametrize("name", [*NOISY, "dynamic_threshold"])
def test_every_way_to_give_a_row(backend, name):
    def call(coefficients, t):
        if name == "dynamic_threshold":
            return results(backend, name, threshold_args(randn(*SHAPE), coefficients, t))
        return results(backend, name, calls((key(1), None), coefficients, t)[name])

    t = torch.tensor([3, 0, 1, 3])
    assert_same(call(table(), t), call(table()[t], None))
    # A table of any strides: one of more columns, one that is transposed.
    wider = torch.cat((torch.full((5, 3), NAN), table()), 1)[:, 3:]
    assert_same(call(wider, t), call(table(), t))
    assert_same(call(table().t().contiguous().t(), t), call(table(), t))
    assert_same(call(table(), t.repeat_interleave(2)[::2]), call(table(), t))
    for row in (0, 2):
        alone = call(table()[row : row + 1], None)
        for same in (torch.tensor(row), torch.tensor([row]).expand(BATCH)):
            assert_same(call(table(), same), alone)


@each_backend
def test_coefficients_of_what_a_loss_does_not_have_are_not_read(backend, request):
    if backend.name == "native":
        problem = "native: noise_loss multiplies what is absent, taken as 0, by its coefficient"
        request.applymarker(pytest.mark.xfail(reason=problem, strict=True))
    pred, x0, t = randn(*SHAPE), randn(*SHAPE, seed=1), torch.tensor([0, 1, 2, 3])
    for column, tensors in enumerate(((pred, None, key(1), None), (pred, x0, None, None))):
        coefficients = table(4)
        coefficients[:, column] = NAN
        args = (*tensors, coefficients, t, None, 4)
        grad = (torch.ones(BATCH), *args, 0b001)
        for name, given in (("noise_loss", args), ("noise_loss_backward", grad)):
            assert torch.isfinite(results(backend, name, given)[0]).all(), name


@each_backend
def test_coefficients_of_what_is_absent_are_not_read(backend):
    x, y, z = (randn(*SHAPE, seed=s) for s in range(3))

    def without(*columns):
        values = table()
        values[:, list(columns)] = NAN
        return values

    t = torch.tensor([0, 1, 2, 3])
    source = (key(1), None)
    free = (None, None, 1.0, *NO_CLAMP)
    x0 = y.clamp(-1, 1)
    grad = torch.ones(BATCH)
    # With learned variances off, their column; a whole row of the bound reads all else.
    bound = (*source, without(6), t, *NO_CLAMP, 1.0, 0.0, False, 4)
    for name, args in (
        ("affine", (x, None, z, None, None, without(1, 3), t)),
        ("affine", (x, None, None, None, None, table()[:, :1], t)),
        ("sampler_step", (x, y, None, None, None, None, without(0, 1, 2, 5, 6, 7), t, *free)),
        ("sampler_step", (x, y, None, None, *source, without(0, 1, 2, 6, 7), t, *free)),
        ("sampler_step", (x, y, z, None, None, None, without(0, 1, 2, 5, 6, 7), t, *free)),
        ("dynamic_threshold", (x, y, None, table()[:, :2], t, None, 1.0, 0.9, 9.0)),
        ("vlb", (x, None, x0, *bound)),
        ("vlb_backward", (grad, x, None, x0, *bound, 0b01)),
    ):
        for out in results(backend, name, args):
            assert torch.isfinite(out).all(), name


# ---- noise


@each_backend
@each_wide_dtype
@pytest.mark.parametrize("name", NOISY)
def test_noise_is_that_of_normal(backend, dtype, name):
    """To the bit: what a user draws and gives is what the key alone gives."""
    t = torch.tensor([0, 1, 2, 3])
    for k in (key(5), split(key(5), BATCH)):
        with genkern.use_backend(backend.name):
            skip_if_refused(backend, OPS["normal"], (k, list(SHAPE), dtype))
            eps = normal(k, *SHAPE, dtype=dtype)
        drawn, given = (
            results(backend, name, calls(source, table(dtype=dtype), t, dtype)[name])
            for source in ((k, None), (None, eps))
        )
        if backend.name == "cuda-on-host":
            # CUDA adds in an order that depends on the operands' strides, a key's too.
            torch.testing.assert_close(drawn, given, rtol=4 * torch.finfo(dtype).eps, atol=0)
        else:
            assert_same(drawn, given)


@each_backend
@pytest.mark.parametrize("name", NOISY)
def test_a_key_a_sample_is_a_call_a_sample(backend, name):
    # None at t = 0: Triton adds up a tile with such a sample in parts, so in another order.
    keys, t = split(key(5), BATCH), torch.tensor([1, 2, 3, 4])
    whole = calls((keys, None), table(), t)[name]
    together = results(backend, name, whole)

    def of_sample(a, b):
        if not isinstance(a, torch.Tensor) or len(a) != BATCH:  # the table
            return a
        return a[b] if a is keys else a[b : b + 1]

    for b in range(BATCH):
        alone = results(backend, name, tuple(of_sample(a, b) for a in whole))
        for got, want in zip(alone, together, strict=True):
            of_b = want[b : b + 1] if want.numel() else want
            if backend.name == "cuda-on-host":
                # CUDA adds in an order that depends on the operands' strides, a key's too.
                torch.testing.assert_close(got, of_b, rtol=4 * torch.finfo(F32).eps, atol=0)
            else:
                assert same_bits(got, of_b)


@each_backend
@each_wide_dtype
def test_the_losses_noise_is_the_paths(backend, dtype):
    """x_t of affine and the target of noise_loss share their noise: a perfect network loses 0."""
    x0, k = randn(*SHAPE, dtype=dtype), split(key(3), BATCH)
    alpha, sigma = 0.8, 0.6
    path = torch.tensor([[alpha, 0.0, 0.0, sigma]], dtype=dtype)
    target = torch.tensor([[0.0, 1.0, 1.0, 0.0]], dtype=dtype)
    noise = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=dtype)
    (x_t,) = results(backend, "affine", (x0, None, None, k, None, path, None))
    (eps,) = results(backend, "affine", (x0, None, None, k, None, noise, None))
    (loss,) = results(backend, "noise_loss", (eps, None, k, None, target, None, None, 4))
    assert not loss.any()
    pred = (x_t - alpha * x0) / sigma
    (loss,) = results(backend, "noise_loss", (pred, None, k, None, target, None, None, 0))
    assert loss.max() <= (8 * torch.finfo(dtype).eps) ** 2 * (1 + eps.abs().max() ** 2)
    # In one form the other way round: x_t predicts x_t.
    both = torch.tensor([[alpha, sigma, 1.0, 0.5]], dtype=dtype)
    (loss,) = results(backend, "noise_loss", (x_t, x0, k, None, both, None, None, 1))
    assert abs(loss.item() - 0.5) <= 4 * torch.finfo(dtype).eps


@each_wide_dtype
@pytest.mark.parametrize("reduction", range(5))
@pytest.mark.parametrize("shape", [(), (3, 7), (37, 911)])
def test_gradients_formed_early_are_those_of_the_operator(shape, reduction, dtype):
    skip_unless_usable(next(b for b in BACKENDS if b.name == "native"))
    pred, x0 = (randn(*shape, dtype=dtype, seed=s) for s in range(2))
    rest = (x0, key(1), None, table(4, 1, dtype), None, None, reduction)
    leaf = pred.clone().requires_grad_()
    loss = OPS["noise_loss"](leaf, *rest)
    assert same_bits(loss.detach(), OPS["noise_loss"](pred, *rest))
    for factor in (1.0, -0.75, 0.0):
        up = torch.full_like(loss, factor)
        (got,) = torch.autograd.grad(loss, leaf, up, retain_graph=True)
        args = (up, pred, *rest, 0b001)
        assert got.shape == pred.shape
        testing.assert_conforms("noise_loss_backward", args, (got, pred, pred))
    # And when it is to be differentiated again.
    (graph,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss), create_graph=True)
    (second,) = torch.autograd.grad(graph.sum(), leaf)
    count = {1: pred.numel(), 3: shape[0] if shape else 1}.get(reduction, 1)
    want = 2.0 * table(4, 1, dtype)[0, 2] / count
    torch.testing.assert_close(second, want.expand(shape))


# ---- sampler_step


@each_backend
@pytest.mark.parametrize("with_x0", (False, True), ids=("", "x0"))
@pytest.mark.parametrize("dtype", (F32, F64, torch.float16), ids=str)
def test_an_infinite_prediction_is_clipped_where_the_step_uses_x0_alone(backend, with_x0, dtype):
    x, pred = randn(*SHAPE, dtype=dtype), randn(*SHAPE, dtype=dtype, seed=1)
    rows = table(dtype=torch.promote_types(dtype, F32))
    rows[:, 4] = 0.0
    edge = pred.clone()
    for at, value in (((0, 0, 0), 1.0), ((1, 2, 4), -1.0), ((3, 1, 1), 1.0)):
        pred[at], edge[at] = value * math.inf, value * 1e4
    pred[2, 0, 3] = edge[2, 0, 3] = math.nan
    name, t = f"sampler_step{'_x0' * with_x0}", torch.tensor([0, 1, 2, 3])
    for source in ((None, None), (key(1), None)):
        for threshold in (None, torch.full((BATCH,), 0.5, dtype=rows.dtype)):
            rest = (rows, t, None, threshold, 1.0, -0.5, 0.5)
            got = results(backend, name, (x, pred, None, None, *source, *rest))
            want = results(backend, name, (x, edge, None, None, *source, *rest))
            assert_same(got, want)
            assert all(out.isnan().sum() == 1 for out in got)


@each_backend
@each_wide_dtype
def test_clipping_at_its_bounds(backend, dtype):
    """The derivative is 1 inside and at the bounds, 0 beyond, by the next number already."""
    lo, hi = -0.5, 0.75
    bounds = torch.tensor([lo, hi], dtype=dtype)
    inner, outer = (torch.nextafter(bounds, bounds * f) for f in (0.0, 4.0))
    x = torch.stack((inner, bounds, outer, torch.tensor([-3.0, 3.0], dtype=dtype)))
    # x0 = x, out = 2 x0 + 8 x
    row = torch.tensor([[1.0, 0.0, 2.0, 8.0, 0.0, 0.0, 0.0, 0.0]], dtype=dtype)
    tensors = (x, torch.ones_like(x), None, None, None, None, row, None)
    (out,) = results(backend, "sampler_step", (*tensors, None, None, 1.0, lo, hi))
    assert same_bits(out, 2.0 * x.clamp(lo, hi) + 8.0 * x)
    grad = torch.ones_like(x)
    got = results(backend, "sampler_step_backward", (grad, *tensors, 1.0, lo, hi, 0b00001))[0]
    passes = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=dtype)[:, None]
    assert same_bits(got, (8.0 + 2.0 * passes).expand(4, 2).contiguous())


def quiet_args(noise, dtype):
    """A step whose samples 0 and 2 get no noise, with learned deviations that overflow there."""
    x, pred, values, eps = (randn(*SHAPE, dtype=dtype, seed=s) for s in range(4))
    rows = table(dtype=dtype)[1:]
    rows[::2, 5], rows[:, 7] = 0.0, 0.5
    values[::2] = 3000.0
    eps[::2, :, 1:] = math.inf
    eps[::2, :, 0] = NAN
    source = {"key": (key(1), None), "noise": (None, eps)}[noise]
    return x, pred, values, randn(*SHAPE, dtype=dtype, seed=4), *source, rows, None


@each_backend
@each_wide_dtype
@pytest.mark.parametrize("noise", ["key", "noise"])
@pytest.mark.parametrize("clip", [NO_CLAMP, (-0.5, 0.75)])
def test_a_coefficient_of_zero_adds_no_noise(backend, dtype, noise, clip):
    """Neither it nor its gradients, where the noise or its deviation is not finite."""
    args = quiet_args(noise, dtype)
    (got,) = results(backend, "sampler_step", (*args, None, None, 2.0, *clip))
    silent = (*args[:2], None, args[3], None, None, *args[6:])
    (want,) = results(backend, "sampler_step", (*silent, None, None, 2.0, *clip))
    assert torch.equal(got[::2], want[::2])
    assert torch.isfinite(got).all() and (got[1::2] != want[1::2]).all()
    grad = randn(*SHAPE, dtype=dtype, seed=5)
    mask = mask_of((True, True, True, True, noise == "noise"))
    grads = results(backend, "sampler_step_backward", (grad, *args, 2.0, *clip, mask))
    wants = results(backend, "sampler_step_backward", (grad, *silent, 2.0, *clip, 0b01011))
    for i in (0, 1, 3):
        assert torch.equal(grads[i], wants[i])
    for i in (2, 4)[: 1 + (noise == "noise")]:
        assert not grads[i][::2].any() and torch.isfinite(grads[i][1::2]).all()
        assert grads[i][1::2].all()


@pytest.mark.parametrize("noise", ["key", "noise"])
@pytest.mark.parametrize("whole", [False, True], ids=["plain", "threshold"])
def test_derivatives_without_noise(noise, whole):
    """First by the formula or, with a threshold, through the reference; second through it."""
    x, pred, values, uncond, k, eps, rows, t = quiet_args(noise, F64)
    leaves = [v.requires_grad_() for v in (x, pred, values, eps) if v is not None]
    weight = torch.linspace(1.0, 2.0, BATCH, dtype=F64)
    both = (weight, 2.0 * weight) if whole else (None, None)
    out = OPS["sampler_step"](x, pred, values, uncond, k, eps, rows, t, *both, 2.0, *NO_CLAMP)
    upstream = torch.ones_like(out, requires_grad=True)
    first = torch.autograd.grad(out, leaves, upstream, create_graph=True)
    second = torch.autograd.grad(
        sum(g.sum() for g in first), [*leaves, upstream], allow_unused=True, materialize_grads=True
    )
    for g in (*first, *second):
        assert torch.isfinite(g).all()
    for g in (*first[2:], *second[2:-1]):
        assert not g[::2].any() and g[1::2].any()


@each_backend
def test_one_bound_alone_and_a_threshold_before_bounds(backend):
    x = torch.tensor([[-3.0, -0.25, 0.25, 3.0]])
    row = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])

    def step(threshold, lo, hi):
        tensors = (x, torch.ones_like(x), None, None, None, None, row, None, None, threshold)
        return results(backend, "sampler_step", (*tensors, 1.0, lo, hi))[0]

    assert step(None, -1.0, math.inf).tolist() == [[-1.0, -0.25, 0.25, 3.0]]
    assert step(None, -math.inf, 1.0).tolist() == [[-3.0, -0.25, 0.25, 1.0]]
    # x0 / s within [-1, 1]; bounds that are given too are not used.
    assert step(torch.tensor([2.0]), -0.1, 0.1).tolist() == [[-1.0, -0.125, 0.125, 1.0]]


@each_backend
def test_guidance(backend):
    """A scale of 1 is the conditional prediction, 0 the other, to the bit where that is exact."""
    x, pred, uncond = (randn(*SHAPE, seed=s).round() for s in range(3))
    t = torch.tensor([1, 2, 3, 4])

    def step(uncond, scale, pred=pred, factor=None):
        tensors = (x, pred, None, uncond, key(1), None, table(), t, factor, None)
        return results(backend, "sampler_step", (*tensors, scale, -0.5, 0.5))

    plain = step(None, 1.0)
    assert_same(step(uncond, 1.0), plain)
    assert_same(step(uncond, 0.0), step(None, 1.0, uncond))
    # Without an unconditional prediction the scale says nothing; a factor of 1 neither.
    assert_same(step(None, 7.0), plain)
    assert_same(step(uncond, 3.0, factor=torch.ones(BATCH)), step(uncond, 3.0))
    assert_same(step(uncond, 3.0), step(None, 1.0, uncond + 3.0 * (pred - uncond)))
    halved = step(None, 1.0, pred / 2)
    assert_same(step(uncond, 1.0, factor=torch.full((BATCH,), 0.5)), halved)


@each_backend
@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16])
def test_guidance_factor_is_a_ratio_of_deviations(backend, dtype):
    pred, uncond = 3.0 + randn(3, 4, 6, dtype=dtype), 0.5 * randn(3, 4, 6, dtype=dtype, seed=1)
    (got,) = results(backend, "guidance_factor", (pred, uncond, 5.0, 0.6))
    p, u = (v.double().numpy() for v in (pred, uncond))
    std = [v.reshape(3, -1).std(1, ddof=1) for v in (p, u + 5.0 * (p - u))]
    assert got.dtype == (F64 if dtype == F64 else F32)
    rtol = 1e-13 if dtype == F64 else 1e-5
    np.testing.assert_allclose(got.numpy(), 0.6 * std[0] / std[1] + 0.4, rtol=rtol)


@each_backend
def test_the_deviation_of_a_large_mean(backend):
    """Squares of the elements would lose it: 10000 in float32 has steps of 1e-3."""
    if backend.name == "triton":
        pytest.skip("triton: the interpreter is slow; a smaller sample conforms")
    noise = randn(2, 70001, seed=1)
    pred, uncond = 10000.0 + noise, torch.zeros(2, 70001)
    (got,) = results(backend, "guidance_factor", (pred, uncond, 2.0, 1.0))
    np.testing.assert_allclose(got.numpy(), 0.5, rtol=1e-5)


@each_backend
@each_wide_dtype
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 0.995, 1.0])
def test_threshold_is_numpys_quantile(backend, dtype, ratio):
    row = torch.tensor([[1.0, 0.0]], dtype=dtype)
    for size in (1, 5, 300):
        x = 2.0 + randn(3, size, dtype=dtype)
        (got,) = results(backend, "dynamic_threshold", threshold_args(x, row, ratio=ratio))
        want = np.quantile(np.abs(x.double().numpy()), ratio, axis=1).clip(1.0)
        np.testing.assert_allclose(got.double(), want, rtol=2 * torch.finfo(dtype).eps)
    ties = torch.tensor([[4.0, 2.0, -4.0, 2.0, -2.0, 4.0]], dtype=dtype)
    (got,) = results(backend, "dynamic_threshold", threshold_args(ties, row, ratio=ratio))
    assert got.item() == np.quantile(ties.abs().numpy(), ratio)


@each_backend
def test_threshold_of_more_elements_than_torch_quantile_takes(backend):
    if backend.name in ("triton", "cuda-on-host"):
        pytest.skip(f"{backend.name}: slow")
    x, row = 2.0 + randn(1, 2**24 + 3), torch.tensor([[1.0, 0.0]])
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.995, dim=1)
    magnitudes = np.abs(x[0].numpy())
    # The rank of 0.1 + 0.2 is beyond float32 too: 5033165.7.
    for ratio in (0.995, 0.1 + 0.2):
        (got,) = results(backend, "dynamic_threshold", threshold_args(x, row, ratio=ratio))
        want = np.quantile(magnitudes.astype(np.float64), ratio)
        assert got.item() == pytest.approx(want, rel=2.0**-23)


@each_backend
def test_threshold_is_clamped(backend):
    row = torch.tensor([[1.0, 0.0]])
    for scale, cap, want in ((0.01, 3.0, 1.0), (100.0, 3.0, 3.0), (100.0, 0.5, 0.5)):
        x = torch.full((2, 9), scale)
        args = (*threshold_args(x, row)[:-1], cap)
        assert results(backend, "dynamic_threshold", args)[0].tolist() == [want, want]


# ---- the bound


def decoder_row(log_variance: float, dtype) -> torch.Tensor:
    """Row of t = 0 with x0_hat = pred."""
    row = [1.0, 0.0, -1.0, 1.0, 0.0, log_variance, 0.0, 1.0]
    return torch.tensor([row], dtype=dtype)


def decoder_args(pred, x0, coefficients, reduction=0):
    no_noise = torch.zeros_like(pred)
    options = (*NO_CLAMP, 1.0, 0.0, False, reduction)
    return pred, None, x0, None, no_noise, coefficients, None, *options


PIXELS = 2.0 * torch.arange(256, dtype=F64) / 255.0 - 1.0


@each_backend
@pytest.mark.parametrize("log_variance", [-16.0, -12.0, -8.0, -4.0, -1.9, 0.0, 4.0, 20.0, 80.0])
def test_the_decoder_is_a_distribution_of_the_256_values(backend, log_variance):
    """Its bins leave nothing out and overlap nowhere."""
    means = torch.tensor([-1.7, -1.0, -0.3, 1.0 / 255.0, 0.02, 1.0, 1.2], dtype=F64)
    pred = means[:, None].expand(-1, 256).contiguous()
    args = decoder_args(pred, PIXELS.expand_as(pred), decoder_row(log_variance, F64))
    (nll,) = results(backend, "vlb", args)
    assert (nll > -1e-15).all() and torch.isfinite(nll).all()
    np.testing.assert_allclose(np.exp(-nll.numpy()).sum(1), 1.0, rtol=0, atol=1e-12)


def test_the_oracles_log_mass():
    """The quadrature against mpmath: bins about the mean, in the tails, open ones, of any width."""
    mpmath.mp.dps = 60

    def mass(a, b):
        upper = [mpmath.erfc(e / mpmath.sqrt(2)) / 2 if e != mpmath.inf else 0 for e in (a, b)]
        return mpmath.log(upper[0] - upper[1])

    cases = [
        (a, a + width)
        for a in (-np.inf, -3.0, -0.004, 0.0, 0.3, 5.0, 37.5, 2000.0)
        for width in (0.0078125, 0.5, 8.0, np.inf)
        if np.isfinite(a) and a > -width / 2
    ]
    cases += [(-np.inf, b) for b in (0.001, 1.0, 40.0)]
    ends = np.array(cases, dtype=np.longdouble)
    got, _, _ = _log_mass(ends[:, 0], ends[:, 1])
    for (a, b), value in zip(cases, got, strict=True):
        want = mass(*(mpmath.mpf(e) for e in (a, b)))
        error = abs(mpmath.mpf(np.format_float_positional(value, 25)) - want)
        assert error <= 1e-17 * (1 + abs(want)), (a, b)


def _grid(dtype, variances) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0_hat, x0 and rows: near and far, inner bins and the open ones, on either side."""
    distance = [0.0, 1e-3, 1 / 255, 5e-3, 0.02, 0.1, 0.5, 1.0, 1.9]
    x0 = torch.tensor([-1.0, -0.9921568, -0.2, 0.0, 0.5, 0.9921568, 1.0], dtype=dtype)
    d = torch.tensor([s * v for v in distance for s in (1.0, -1.0)], dtype=dtype)
    pixels = x0[None, :, None].expand(len(variances), len(x0), len(d)).contiguous()
    return pixels - d, pixels, torch.cat([decoder_row(v, dtype) for v in variances])


@each_backend
@each_wide_dtype
def test_the_decoder_near_and_far(backend, dtype):
    """Value and gradients, at most twice as far from exact as the plain expression.

    Deviations from a twelfth of a bin's half width to 20 of them: what a last step has. The grid is
    harder than the samples, so each of its rows has a tolerance of its own.
    """
    pred, x0, rows = _grid(dtype, [-16.0, -13.0, -10.0, -8.0, -7.0, -6.0, -5.0])
    # var_values has weight 1: its gradient is the one by the log-variance.
    rows[:, 6] = 1.0
    base = (pred, torch.zeros_like(pred), *decoder_args(pred, x0, rows)[2:])
    for name, args in (("vlb", base), ("vlb_backward", (torch.ones_like(pred), *base, 0b11))):
        got = results(backend, name, args)
        plain, exact = testing.eager(name, args), testing.expected(name, args)
        for out, eager, want in zip(got, plain, exact, strict=True):
            errors = (np.abs(real(o) - want.value) / want.scale for o in (out, eager))
            worst, of_eager = (e.reshape(len(rows), -1).max(1) for e in errors)
            rounding = (np.abs(want.value) / want.scale).reshape(len(rows), -1).max(1) / 2
            limit = 2 * of_eager + torch.finfo(dtype).eps * (1 + rounding)
            assert np.all(worst <= limit), (name, worst / torch.finfo(dtype).eps)


@each_backend
@each_wide_dtype
def test_the_decoder_of_a_bell_much_wider_than_the_bins(backend, dtype):
    """The mass is a difference of tails, each within some roundings of its own size."""
    pred, x0, rows = _grid(dtype, [-3.0, -1.0, 0.0, 2.0])
    args = decoder_args(pred, x0, rows)
    (got,), (want,) = results(backend, "vlb", args), testing.expected("vlb", args)
    sigma = np.exp(rows[:, 5].double().numpy() / 2)[:, None, None]
    near = (np.abs((x0 - pred).double().numpy()) - 1 / 255) / sigma
    share = stats.norm.sf(np.maximum(near, 0.0)) * np.exp(want.value)
    allowed = 8 * torch.finfo(dtype).eps * (want.scale + share)
    assert np.all(np.abs(real(got) - want.value) <= allowed)


@functools.cache
def _exact_decoder(d: float, opens: int, log_variance: float) -> tuple[float, float, float]:
    """-log of a bin's mass and its derivatives; `opens` is the side on which the bin is open."""
    # In a bell of deviation e^100 the mass is 1e-46 of the tails whose difference it is, and the
    # slope 1e-92 of the densities.
    with mpmath.workdps(130):
        half, inverse = mpmath.mpf(1) / 255, mpmath.exp(-mpmath.mpf(log_variance) / 2)
        c, opens = abs(mpmath.mpf(d)), -opens if d < 0 else opens
        ends = (c - half) * inverse, (c + half) * inverse
        tails = [mpmath.erfc(e / mpmath.sqrt(2)) / 2 for e in ends]
        mass = (1 if opens < 0 else tails[0]) - (0 if opens > 0 else tails[1])
        at = [mpmath.npdf(e) / mass for e in ends]
        at = [0 if opens < 0 else at[0], 0 if opens > 0 else at[1]]
        by_d = (at[0] - at[1]) * inverse * (-1 if d < 0 else 1)
        by_lv = (ends[1] * at[1] - ends[0] * at[0]) / 2
        return float(-mpmath.log(mass)), float(by_d), float(by_lv)


@each_backend
@each_wide_dtype
def test_the_decoder_at_any_variance(backend, dtype):
    """Value and gradients of bins from 1e-46 to 9 deviations wide, near and thousands of them away.

    float32 is rounded once. In float64 the exponent of a far tail loses a digit.
    """
    variances = [-14.0, -6.0, -4.0, -2.0, -1.8, -1.0, 0.0, 2.0]
    variances += [4.0, 10.0, 25.0, 70.0, 88.0, 150.0, 200.0]
    distance = [0.0, 1e-4, 1 / 255, 0.02, 0.1, 0.5, 2.0, 3.0]
    d = torch.tensor([s * v for v in distance for s in (1.0, -1.0)], dtype=dtype)
    x0 = torch.tensor([-1.0, -253 / 255, 0.2, 253 / 255, 1.0], dtype=dtype)
    shape = (len(variances), len(x0), len(d))
    # With x0 - x0_hat = pred and var_values for the log-variance.
    row = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]], dtype=dtype)
    pred, pixels = d.expand(shape).contiguous(), x0[:, None].expand(shape).contiguous()
    values = torch.tensor(variances, dtype=dtype)[:, None, None].expand(shape).contiguous()
    args = (pred, values, *decoder_args(pred, pixels, row)[2:])
    got = (
        *results(backend, "vlb", args),
        *results(backend, "vlb_backward", (torch.ones(shape, dtype=dtype), *args, 0b11)),
    )
    sides = [-1, 0, 0, 0, 1]
    want = np.array(
        [
            [[_exact_decoder(e, side, lv) for e in d.tolist()] for side in sides]
            for lv in values[:, 0, 0].tolist()
        ]
    )
    size = np.abs(want)
    size[..., 0] += 1.0
    size[..., 2] += 0.5
    # The slope is a difference of the densities at the ends, but for narrow bins.
    for i, lv in enumerate(variances):
        size[i, ..., 1] += math.exp(-lv / 2) if lv < -1.85 else 0.0
    eps = torch.finfo(dtype).eps if dtype == F32 else 5e-15
    for i, out in enumerate(got):
        error = np.abs(out.double().numpy() - want[..., i])
        # The smallest slopes are subnormal.
        limit = eps * size[..., i] + torch.finfo(dtype).tiny * eps
        assert np.all(error <= limit), np.argwhere(error > limit)


@pytest.mark.parametrize("log_variance", [-7.0, -2.0, -1.0, 0.0])
def test_second_derivatives_of_the_decoder(log_variance):
    """Of bins that are narrow against the bell and of others, open and not."""
    pred = torch.tensor([[-1.4, -0.97, 0.001, 0.3, 1.2]], dtype=F64, requires_grad=True)
    x0 = torch.tensor([[-1.0, -1.0, 0.0, 0.25, 1.0]], dtype=F64)
    values = torch.zeros_like(pred, requires_grad=True)
    row = decoder_row(log_variance, F64)
    row[:, 6] = 1.0
    rest = decoder_args(pred, x0, row)[2:]
    assert torch.autograd.gradgradcheck(lambda p, v: OPS["vlb"](p, v, *rest), (pred, values))


@each_wide_dtype
@pytest.mark.parametrize("log_variance", [14.0, 30.0, 70.0])
def test_second_derivatives_of_the_widest_decoder(log_variance, dtype):
    """-log p = lv / 2 + (d^2 + h^2 / 3) e^-lv / 2 + a constant, h being half the bin's width."""
    pred = torch.tensor([[-0.5, 0.1, 0.7]], dtype=dtype, requires_grad=True)
    values = torch.full_like(pred, log_variance).requires_grad_()
    row = decoder_row(0.0, dtype)
    row[:, 6] = 1.0
    args = (pred, values, *decoder_args(pred, torch.zeros_like(pred), row)[2:])
    first = torch.autograd.grad(OPS["vlb"](*args).sum(), (pred, values), create_graph=True)
    by_pred, mixed = torch.autograd.grad(first[0].sum(), (pred, values), retain_graph=True)
    also_mixed, by_values = torch.autograd.grad(first[1].sum(), (pred, values))
    x, precision = pred.detach().double(), math.exp(-log_variance)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6 if dtype == F32 else 1e-10)
    close(by_pred, torch.full_like(x, precision))
    close(mixed, -x * precision)
    close(also_mixed, -x * precision)
    close(by_values, (x * x + 255.0**-2 / 3) * precision / 2)


@each_backend
def test_far_tails_keep_their_digits(backend):
    """Hundreds of deviations away the distribution function is 0, but not its logarithm's slope."""
    pred, x0 = torch.full((2, 3), -1.0), torch.tensor([[1.0, 0.5, 0.0]]).expand(2, 3).contiguous()
    args = decoder_args(pred, x0, torch.cat([decoder_row(v, F32) for v in (-10.0, -14.0)]))
    for name, given in (("vlb", args), ("vlb_backward", (torch.ones(2, 3), *args, 0b01))):
        got, want = results(backend, name, given)[0], testing.expected(name, given)[0]
        np.testing.assert_allclose(got.double(), want.value.astype(float), rtol=2e-6)


def kl_args(d, r, dtype, mean_x0=1.0):
    """A row a value of r = true_log_variance - log_variance, with x0 - x0_hat = -d."""
    rows = torch.zeros(len(r), 8, dtype=dtype)
    rows[:, 2], rows[:, 3], rows[:, 4] = -1.0, mean_x0, r
    pred = d.expand(len(r), -1).contiguous()
    options = (*NO_CLAMP, 1.0, 0.0, False, 0)
    return pred, None, torch.zeros_like(pred), None, torch.zeros_like(pred), rows, None, *options


@each_backend
@each_wide_dtype
def test_a_divergence_is_not_negative_and_keeps_its_digits(backend, dtype):
    """With r near 0 a difference of 1 and exp(r) keeps none of them, and can be negative."""
    r = torch.tensor([s * 10.0**-n for n in range(0, 19) for s in (1, -1)] + [0.0], dtype=dtype)
    d = torch.tensor([0.0, 1e-9, -1e-3, 1.0], dtype=dtype)
    (got,) = results(backend, "vlb", kl_args(d, r, dtype))
    assert (got >= 0).all()
    assert (got[-1, 0] == 0) and (got[:-1, 1:] > 0).all()
    mpmath.mp.dps = 60
    want = [
        [float((mpmath.expm1(a) - a + mpmath.mpf(b) ** 2) / 2) for b in d.tolist()]
        for a in map(mpmath.mpf, r.tolist())
    ]
    np.testing.assert_allclose(got.numpy(), want, rtol=8 * torch.finfo(dtype).eps)


@each_backend
def test_every_divergence_of_a_schedule_is_not_negative(backend):
    for seed in range(3):
        _, t = table(), torch.tensor([1, 2, 3, 4])
        coefficients = table()
        coefficients[:, 4:7] = randn(5, 3, seed=seed)
        pred, values, x0 = (2.0 * randn(*SHAPE, seed=seed + s) for s in range(3))
        args = (pred, values, x0, key(1), None, coefficients, t, -1.0, 1.0, 1.0, 0.0, False, 0)
        assert (results(backend, "vlb", args)[0] >= 0).all()


@each_backend
@each_wide_dtype
def test_a_detached_mean_has_the_gradient_of_the_simple_loss_alone(backend, dtype):
    t = torch.tensor([0, 1, 2, 3])
    pred, values, x0, noise = (randn(*SHAPE, dtype=dtype, seed=s) for s in range(4))
    up = torch.ones(BATCH, dtype=dtype)

    def backward(vlb_scale, simple_scale, detach):
        at = (None, noise, table(dtype=dtype), t, -1.0, 1.0)
        args = (up, pred, values, x0.clamp(-1, 1), *at, vlb_scale, simple_scale, detach, 4, 0b11)
        return results(backend, "vlb_backward", args)

    attached, detached = backward(0.7, 1.5, False), backward(0.7, 1.5, True)
    torch.testing.assert_close(detached[0], 3.0 * (pred - noise))
    assert not same_bits(detached[0], attached[0])
    assert same_bits(detached[1], attached[1])
    assert not backward(0.7, 0.0, True)[0].any()
    # The value is the same.
    tensors = (pred, values, x0.clamp(-1, 1), None, noise, table(dtype=dtype), t, -1.0, 1.0)
    value = [results(backend, "vlb", (*tensors, 0.7, 1.5, b, 4)) for b in (False, True)]
    assert_same(*value)


@each_backend
def test_a_clipped_prediction_has_no_gradient(backend):
    """x0_hat in [-1, 1] has the plain gradient; beyond, the divergence does not depend on it."""
    d = torch.tensor([-3.0, -1.0, 0.25, 1.0, 3.0])
    args = list(kl_args(d, torch.tensor([0.3]), F32))
    args[7:9] = -1.0, 1.0
    value, grad = (
        results(backend, name, given)[0]
        for name, given in (
            ("vlb", tuple(args)),
            ("vlb_backward", (torch.ones(1, 5), *args, 0b01)),
        )
    )
    constant = math.expm1(torch.tensor(0.3).item()) - torch.tensor(0.3).item()
    want = 0.5 * (constant + d.clamp(-1, 1) ** 2)
    torch.testing.assert_close(value, want[None])
    torch.testing.assert_close(grad, torch.tensor([[0.0, -1.0, 0.25, 1.0, 0.0]]))
