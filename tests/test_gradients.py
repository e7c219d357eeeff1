"""Derivatives: first and second order, of every differentiable argument, on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import each_backend, each_dtype, randn, run, same_bits, skip_unless_usable
from torch.autograd import gradcheck, gradgradcheck

import genkern
from genkern import testing
from genkern._ops.op import OPS
from genkern.random import key, split
from genkern.vae import (
    DiagonalGaussian,
    bernoulli_nll,
    elbo_loss,
    gaussian_nll,
    kl,
    rsample,
    rsample_kl,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def _quiet_interpreter():
    with np.errstate(all="ignore"):
        yield


def leaf(*shape: int, seed: int = 0, dtype=F64) -> torch.Tensor:
    return randn(*shape, dtype=dtype, seed=seed).requires_grad_()


def _half_gaussian(moments):
    posterior = DiagonalGaussian(moments)
    return posterior.sample(key=key(1)), posterior.kl()


def _op(name: str, columns: int, t: torch.Tensor | None = None):
    """A diffusion operator of small tensors, given its tensors and options around the table."""
    table = randn(4, columns, dtype=F64, seed=9)
    table = table if t is not None else table[:2]
    return lambda *args: OPS[name](*(table if a is TABLE else t if a is TIMES else a for a in args))


TABLE, TIMES = object(), object()
STEPS = torch.tensor([3, 1])


def _vlb(detach: bool, open_bins: bool = False):
    # Three samples: the decoder's, and two steps of a short chain.
    table = torch.tensor(
        [
            [0.1, -0.3, 0.2, 0.4, -1.0, -1.5, 0.3, 1.0],
            [0.2, -0.9, 0.8, 0.3, -0.8, -0.7, 0.2, 0.0],
            [0.1, -0.7, 0.9, 0.2, -0.2, -0.5, 0.4, 0.0],
        ],
        dtype=F64,
    )

    def call(p, v, x, e):
        pixels = torch.tensor([[1.0, -1.0, 0.2]], dtype=F64).expand(3, 3) if open_bins else x.tanh()
        options = (None, e, table, None, -0.9, 0.9, 0.7, 0.0 if detach else 1.3, detach, 4)
        return OPS["vlb"](p, v, pixels, *options)

    return call


_affine, _affine_t = _op("affine", 4), _op("affine", 4, STEPS)
_noise_loss, _noise_loss_t = _op("noise_loss", 4), _op("noise_loss", 4, STEPS)
_step_x0, _step_x0_t = _op("sampler_step_x0", 8), _op("sampler_step_x0", 8, STEPS)
_step, _step_t = _op("sampler_step", 8), _op("sampler_step", 8, STEPS)
_threshold = _op("dynamic_threshold", 8)
_PLAIN = (1.0, -math.inf, math.inf)

# Every differentiable function with every kind of argument; gradcheck is slow, so small shapes.
CASES = {
    "affine": (
        lambda x, y, z, e: _affine_t(x, y, z, None, e, TABLE, TIMES),
        [(2, 3)] * 4,
    ),
    "affine key": (lambda x, z: _affine(x, None, z, key(1), None, TABLE, None), [(2, 3)] * 2),
    "noise_loss sample": (
        lambda p, x, e, w: _noise_loss_t(p, x, None, e, TABLE, TIMES, w, 4),
        [(2, 3), (2, 3), (2, 3), (2,)],
    ),
    "noise_loss keys mean": (
        lambda p: _noise_loss(p, None, split(key(1), 2), None, TABLE, None, None, 1),
        [(2, 3)],
    ),
    "noise_loss none": (
        lambda p, x: _noise_loss(p, x, key(1), None, TABLE, None, None, 0),
        [(2, 3)] * 2,
    ),
    "sampler_step": (
        lambda x, p, v, u, e: _step_t(
            x, p, v, u, None, e, TABLE, TIMES, None, None, 3.0, -0.9, 0.8
        ),
        [(2, 3)] * 5,
    ),
    "sampler_step_x0": (
        lambda x, p, v, u, e: _step_x0_t(
            x, p, v, u, None, e, TABLE, TIMES, None, None, 3.0, -0.9, 0.8
        ),
        [(2, 3)] * 5,
    ),
    "sampler_step_x0 keys": (
        lambda x, p, v: _step_x0(
            x, p, v, None, split(key(1), 2), None, TABLE, None, None, None, *_PLAIN
        ),
        [(2, 3)] * 3,
    ),
    "sampler_step_x0 of a whole sample": (
        lambda x, p, u, f, s: _step_x0(
            x, p, None, u, key(1), None, TABLE, None, f, s.exp(), 2.0, *_PLAIN[1:]
        ),
        [(2, 3), (2, 3), (2, 3), (2,), (2,)],
    ),
    "sampler_step keys": (
        lambda x, p, v: _step(
            x, p, v, None, split(key(1), 2), None, TABLE, None, None, None, *_PLAIN
        ),
        [(2, 3)] * 3,
    ),
    "sampler_step of a whole sample": (
        lambda x, p, u, f, s: _step(
            x, p, None, u, key(1), None, TABLE, None, f, s.exp(), 2.0, *_PLAIN[1:]
        ),
        [(2, 3), (2, 3), (2, 3), (2,), (2,)],
    ),
    "guidance_factor": (lambda p, u: OPS["guidance_factor"](p, u, 3.0, 0.7), [(2, 5)] * 2),
    "dynamic_threshold": (
        lambda x, p, u: _threshold(3.0 * x, p, u, TABLE, None, None, 2.0, 0.8, 100.0),
        [(2, 6)] * 3,
    ),
    "vlb": (_vlb(detach=False), [(3, 3)] * 4),
    "vlb open bins": (
        lambda p, v: _vlb(False, True)(p, v, None, randn(3, 3, dtype=F64)),
        [(3, 3)] * 2,
    ),
    "rsample key": (lambda m, v: rsample(m, v, key=key(1)), [(2, 3), (2, 3)]),
    "rsample keys k": (
        lambda m, v: rsample(m, v, key=split(key(1), 2), num_samples=3),
        [(2, 3), (2, 3)],
    ),
    "rsample noise": (lambda m, v, e: rsample(m, v, noise=e), [(2, 3), (2, 3), (2, 3)]),
    "rsample noise k": (
        lambda m, v, e: rsample(m, v, noise=e, num_samples=2),
        [(2, 3), (2, 3), (2, 2, 3)],
    ),
    "rsample 0-d": (lambda m, v: rsample(m, v, key=key(1)), [(), ()]),
    "kl none": (lambda m, v: kl(m, v, reduction="none"), [(2, 3), (2, 3)]),
    "kl sample priors": (
        lambda m, v, m2, v2: kl(m, v, m2, v2, reduction="sample"),
        [(2, 3), (2, 3), (2, 3), (2, 3)],
    ),
    "kl mean broadcast priors": (
        lambda m, v, m2, v2: kl(m, v, m2, v2, reduction="mean"),
        [(2, 3), (2, 3), (3,), (2, 1)],
    ),
    "kl one prior": (lambda m, v, v2: kl(m, v, 0.3, v2), [(2, 3), (2, 3), ()]),
    "kl free bits clamp": (
        lambda m, v: kl(m, v, free_bits=0.25, logvar_clamp=(-0.8, 0.9), reduction="sum"),
        [(3, 3), (3, 3)],
    ),
    "rsample_kl key": (lambda m, v: rsample_kl(m, v, key=key(1)), [(2, 3), (2, 3)]),
    "rsample_kl noise priors": (
        lambda m, v, m2, v2, e: rsample_kl(
            m, v, m2, v2, noise=e, free_bits=0.1, logvar_clamp=(-1.0, 1.0), reduction="sample"
        ),
        [(2, 3), (2, 3), (2, 3), (1, 3), (2, 3)],
    ),
    "bernoulli_nll": (lambda a, x: bernoulli_nll(a, x, reduction="sample"), [(2, 3), (2, 3)]),
    "bernoulli_nll none": (lambda a, x: bernoulli_nll(a, x, reduction="none"), [(2, 3), (2, 3)]),
    "gaussian_nll": (lambda h, x: gaussian_nll(h, x, sigma=0.7), [(2, 3), (2, 3)]),
    "gaussian_nll none": (
        lambda h, x: gaussian_nll(h, x, sigma=0.7, reduction="none"),
        [(2, 3), (2, 3)],
    ),
    "DiagonalGaussian": (_half_gaussian, [(2, 4, 2)]),
    "DiagonalGaussian nll": (lambda p, x: DiagonalGaussian(p).nll(x), [(2, 4), (2, 2)]),
    "elbo_loss": (lambda a, x, m, v: elbo_loss(a, x, m, v, beta=2.0)[0], [(2, 3)] * 4),
}


@each_backend
@pytest.mark.parametrize("name", CASES)
def test_gradcheck_to_second_order(backend, name):
    skip_unless_usable(backend)
    if backend.name == "triton" and name not in ("kl one prior", "rsample_kl key"):
        pytest.skip("triton: the interpreter is slow; conformance checks its gradients")
    function, shapes = CASES[name]
    inputs = tuple(leaf(*shape, seed=i) for i, shape in enumerate(shapes))
    with genkern.use_backend(backend.name):
        # Deterministic to the last bit: no tolerance.
        assert gradcheck(function, inputs, fast_mode=len(inputs) > 2, nondet_tol=0.0)
        assert gradgradcheck(function, inputs, fast_mode=True, nondet_tol=0.0)


@each_backend
@pytest.mark.parametrize("name", ["rsample_kl noise priors", "kl mean broadcast priors"])
def test_gradients_only_for_what_is_asked(backend, name):
    skip_unless_usable(backend)
    function, shapes = CASES[name]
    inputs = [leaf(*shape, seed=i) for i, shape in enumerate(shapes)]
    with genkern.use_backend(backend.name):

        def gradients(chosen):
            given = [x if i in chosen else x.detach() for i, x in enumerate(inputs)]
            out = function(*given)
            total = sum(o.sum() for o in (out if isinstance(out, tuple) else (out,)))
            return torch.autograd.grad(total, [given[i] for i in chosen])

        together = gradients(range(len(inputs)))
        for i, want in enumerate(together):
            (alone,) = gradients([i])
            assert alone.shape == inputs[i].shape
            torch.testing.assert_close(alone, want, rtol=1e-14, atol=1e-15)


@each_backend
def test_an_output_that_is_not_used(backend):
    """Its share of every gradient is zero: nothing is left unwritten."""
    skip_unless_usable(backend)
    op = OPS["rsample_kl_backward"]
    mu, logvar, m2, lv2, noise, gz = (randn(3, 5, dtype=F64, seed=s) for s in range(6))
    gk = randn(3, dtype=F64, seed=6)
    options = (0.0, 0.0, 0.1, -math.inf, math.inf, 4)
    for grads in ((gz, None), (None, gk)):
        args = (*grads, mu, logvar, m2, lv2, None, noise, None, *options, 0b11111)
        testing.assert_conforms(op.name, args, run(backend, op, args))
    inputs = [x.clone().requires_grad_() for x in (mu, logvar, m2, lv2, noise)]
    with genkern.use_backend(backend.name):
        both = rsample_kl(*inputs[:4], noise=inputs[4], reduction="sum")
        by_z = torch.autograd.grad(both[0].sum(), inputs, retain_graph=True, allow_unused=True)
        by_kl = torch.autograd.grad(both[1], inputs, allow_unused=True)
    for grad in (*by_z[2:4], by_kl[4]):
        assert grad is None or not grad.any()


@each_dtype
@each_backend
def test_gradients_of_the_public_functions_conform(backend, dtype):
    """From the public function through autograd to the operator of the backward pass."""
    skip_unless_usable(backend)
    mu, logvar, m2, noise = (leaf(4, 9, seed=s, dtype=dtype) for s in range(4))
    lv2 = leaf(9, seed=5, dtype=dtype)
    inputs = (mu, logvar, m2, lv2, noise)
    with genkern.use_backend(backend.name):
        z, divergence = rsample_kl(
            mu, logvar, m2, lv2, noise=noise, free_bits=0.05, reduction="sample"
        )
        gz = randn(4, 9, dtype=dtype, seed=7)
        gk = randn(4, dtype=divergence.dtype, seed=8)
        got = torch.autograd.grad((z, divergence), inputs, (gz, gk))
    no_clamp = (-math.inf, math.inf)
    wide = lv2.detach().expand(4, 9)
    args = (
        gz, gk, mu, logvar, m2, wide, None, noise, None, 0.0, 0.0, 0.05, *no_clamp, 4, 0b11111,
    )  # fmt: skip
    assert all(g.dtype == dtype for g in got)
    dense = (*got[:3], got[4])
    exact = testing.expected("rsample_kl_backward", args)
    tolerance = testing.tolerances("rsample_kl_backward", dtype)
    epsilon = torch.finfo(dtype).eps
    for g, i in zip(dense, (0, 1, 2, 4), strict=True):
        error = np.abs(g.double().numpy() - exact[i].value)
        assert np.all(error <= tolerance[i] * exact[i].scale + epsilon * np.abs(exact[i].value))
    # The gradient of a broadcast prior is summed by autograd, from rounded terms in its dtype.
    error = np.abs(got[3].double().numpy() - exact[3].value.sum(0))
    assert np.all(error <= (4 + 4) * epsilon * np.abs(exact[3].scale).sum(0))


@each_backend
def test_hessian_of_kl(backend):
    skip_unless_usable(backend)
    mu, logvar = randn(3, dtype=F64), randn(3, dtype=F64, seed=1)
    with genkern.use_backend(backend.name):
        gradient = torch.func.jacrev(lambda m, v: kl(m[None], v[None]), (0, 1))
        hessian = torch.func.jacrev(gradient, (0, 1))(mu, logvar)
    # d2/dmu2 = 1, d2/dlogvar2 = exp(logvar) / 2 for a standard prior.
    torch.testing.assert_close(hessian[0][0], torch.eye(3, dtype=F64))
    torch.testing.assert_close(hessian[1][1], torch.diag(logvar.exp() / 2), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(hessian[0][1], torch.zeros(3, 3, dtype=F64))


@each_backend
def test_jacobian_of_rsample(backend):
    skip_unless_usable(backend)
    mu, logvar = randn(4, dtype=F64), randn(4, dtype=F64, seed=1)
    with genkern.use_backend(backend.name):
        by_mu, by_logvar = torch.func.jacrev(lambda m, v: rsample(m, v, key=key(3)), (0, 1))(
            mu, logvar
        )
        eps = genkern.random.normal(key(3), 4, dtype=F64)
    torch.testing.assert_close(by_mu, torch.eye(4, dtype=F64))
    want = torch.diag((logvar / 2).exp() * eps / 2)
    torch.testing.assert_close(by_logvar, want, rtol=1e-12, atol=1e-14)


# ---- what the graph keeps


def _saved_bytes(call, inputs) -> tuple[int, list[tuple[int, ...]]]:
    """Bytes kept for backward besides the inputs, and the shapes of what is kept."""
    storages = {x.untyped_storage().data_ptr() for x in inputs}
    kept: dict[int, torch.Tensor] = {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in storages:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    return sum(x.untyped_storage().nbytes() for x in kept.values()), [
        x.shape for x in kept.values()
    ]


@pytest.mark.parametrize("per_sample", [False, True])
def test_nothing_is_kept_beyond_inputs_and_key(per_sample):
    mu, logvar = leaf(16, 1000, dtype=torch.float32), leaf(16, 1000, seed=1, dtype=torch.float32)
    k = split(key(1), 16) if per_sample else key(1)
    for call in (
        lambda: rsample_kl(mu, logvar, key=k),
        lambda: rsample(mu, logvar, key=k),
        lambda: rsample(mu, logvar, key=k, num_samples=8),
    ):
        kept, shapes = _saved_bytes(call, (mu, logvar))
        assert kept <= k.nbytes, shapes
    for call in (
        lambda: kl(mu, logvar, free_bits=0.1, logvar_clamp=(-1.0, 1.0)),
        lambda: bernoulli_nll(mu, logvar),
        lambda: gaussian_nll(mu, logvar, sigma=0.1),
        lambda: elbo_loss(mu, logvar, mu, logvar),
    ):
        kept, shapes = _saved_bytes(call, (mu, logvar))
        # elbo_loss multiplies scalars.
        assert kept <= 16, shapes


def test_no_graph_where_none_is_needed():
    mu, logvar = leaf(4, 5), leaf(4, 5, seed=1)
    plain = mu.detach(), logvar.detach()
    calls = (
        lambda m, v: rsample(m, v, key=key(1)),
        lambda m, v: kl(m, v),
        lambda m, v: rsample_kl(m, v, key=key(1))[0],
        lambda m, v: bernoulli_nll(m, v),
        lambda m, v: gaussian_nll(m, v),
    )
    for call in calls:
        assert call(mu, logvar).grad_fn is not None
        assert call(*plain).grad_fn is None
        with torch.no_grad():
            assert call(mu, logvar).grad_fn is None
        with torch.inference_mode():
            assert call(mu, logvar).is_inference()
        with torch.no_grad():
            silent = call(mu, logvar)
        assert same_bits(silent, call(mu, logvar).detach())


def test_integer_operators_have_no_gradient():
    assert not genkern.random.normal(key(0), 3).requires_grad


def test_backward_twice_and_retained_graphs_give_the_same():
    mu, logvar = leaf(4, 5), leaf(4, 5, seed=1)
    z, divergence = rsample_kl(mu, logvar, key=key(1))
    total = z.square().sum() + divergence
    first = torch.autograd.grad(total, (mu, logvar), retain_graph=True)
    again = torch.autograd.grad(total, (mu, logvar))
    assert all(map(same_bits, first, again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, (mu, logvar))


def test_inputs_changed_in_place_before_backward_are_noticed():
    mu, logvar = leaf(4, 5), leaf(4, 5, seed=1)
    v = logvar * 1
    divergence = kl(mu, v)
    v.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        divergence.backward()
