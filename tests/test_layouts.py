"""Memory: any strides give the same numbers, the common ones without a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import (
    NO_CLAMP,
    each_backend,
    outputs,
    randn,
    run,
    same_bits,
    skip_unless_usable,
)

import genkern
from genkern._ops.op import BACKENDS, OPS
from genkern.gan import discriminator_loss, gradient_penalty, interpolate, optimal_discriminator
from genkern.random import key, split
from genkern.vae import DiagonalGaussian, bernoulli_nll, gaussian_nll, kl, rsample, rsample_kl

NATIVE = next(b for b in BACKENDS if b.name == "native")


@pytest.fixture(autouse=True)
def _quiet_interpreter():
    with np.errstate(all="ignore"):
        yield


def _channels_last(x):
    return x.to(memory_format=torch.channels_last)


def _embedded(x):
    """The middle of a larger tensor: no dimension is dense, and the start is not aligned."""
    whole = x.new_full([n + 3 for n in x.shape], float("nan"))
    view = whole[tuple(slice(1, 1 + n) for n in x.shape)]
    return view.copy_(x)


def _stepped(x):
    whole = x.new_full((*x.shape, 2), float("nan"))
    return whole[..., 1].copy_(x)


# Coefficients of the diffusion operators: any, but with a row of the decoder.
TABLE = torch.linspace(0.2, 1.4, 32).reshape(4, 8)
TABLE[:, 7] = torch.tensor([1.0, 0.0, 0.0, 0.0])
TIMES = torch.tensor([2, 0, 3])

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": _channels_last,
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "embedded": _embedded,
    "stepped": _stepped,
    "chunk": lambda x: torch.cat((torch.full_like(x, float("nan")), x), 1).chunk(2, 1)[1],
    "unaligned": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
}


def calls_of_five(device="cpu"):
    """Calls of five tensors (3, 4, 5, 6), without a reduction."""
    table, t = TABLE.to(device), TIMES.to(device)
    keys = split(key(1, device=device), 3)
    return {
        "rsample": lambda m, v, a, b, e: rsample(m, v, key=key(2, device=device)),
        "rsample k": lambda m, v, a, b, e: rsample(m, v, key=keys, num_samples=2),
        "rsample_kl": lambda m, v, a, b, e: rsample_kl(m, v, a, b, noise=e, reduction="none"),
        "kl": lambda m, v, a, b, e: kl(m, v, a, b, reduction="none"),
        "bernoulli": lambda m, v, a, b, e: bernoulli_nll(m, v, reduction="none"),
        "gaussian": lambda m, v, a, b, e: gaussian_nll(m, v, reduction="none"),
        "discriminator": lambda m, v, a, b, e: discriminator_loss(m, v, reduction="none"),
        "interpolate": lambda m, v, a, b, e: interpolate(m, v, key=key(2, device=device)),
        "optimal": lambda m, v, a, b, e: optimal_discriminator(m, v),
        "affine": lambda m, v, a, b, e: OPS["affine"](m, v, a, None, e, table, t),
        "noise_loss": lambda m, v, a, b, e: OPS["noise_loss"](
            m, v, keys, None, table[:, :4], t, None, 0
        ),
        "sampler_step": lambda m, v, a, b, e: OPS["sampler_step"](
            m, v, a, b, None, e, table, t, None, None, 2.0, -0.5, 0.5
        ),
        "sampler_step_x0": lambda m, v, a, b, e: OPS["sampler_step_x0"](
            m, v, a, b, None, e, table, t, None, None, 2.0, -0.5, 0.5
        ),
        "vlb": lambda m, v, a, b, e: OPS["vlb"](
            m, v, a, key(2, device=device), None, table, t, -1.0, 1.0, 0.5, 1.0, False, 0
        ),
    }


def check_strides(layout, device="cpu"):
    """The calls give the same bits for other strides, and reductions the same sums."""
    dense = [randn(3, 4, 5, 6, seed=s, device=device) for s in range(5)]
    moved = [LAYOUTS[layout](x) for x in dense]
    mixed = [m if i % 2 else d for i, (d, m) in enumerate(zip(dense, moved, strict=True))]
    for name, call in calls_of_five(device).items():
        for arranged in (moved, mixed):
            for got, want in zip(outputs(call(*arranged)), outputs(call(*dense)), strict=True):
                assert same_bits(got, want), name
    for reduction in ("sum", "sample"):
        # Another order of summation is allowed for other strides; not another sum.
        got, want = (kl(*xs[:4], reduction=reduction) for xs in (moved, dense))
        torch.testing.assert_close(got, want, rtol=8 * 2.0**-23, atol=0)


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_change_the_numbers(backend, layout):
    skip_unless_usable(backend)
    with genkern.use_backend(backend.name):
        check_strides(layout)


@each_backend
def test_upstream_gradients_of_any_strides(backend):
    skip_unless_usable(backend)
    mu, logvar = randn(3, 4, 5, 6), randn(3, 4, 5, 6, seed=1)
    noise, grad = randn(3, 4, 5, 6, seed=2), randn(3, 4, 5, 6, seed=3)
    op = OPS["rsample_kl_backward"]
    tail = (0.0, 0.0, 0.0, *NO_CLAMP)
    upstream = {
        "dense": (grad, grad),
        "channels last": (_channels_last(grad), _stepped(grad)),
        "stride 0": (torch.tensor(0.5).expand(3, 4, 5, 6), torch.tensor(2.0).expand(3, 4, 5, 6)),
        "one a sample": (grad[:, :1, :1, :1].expand(3, 4, 5, 6), grad[:1].expand(3, 4, 5, 6)),
    }
    for name, (gz, gk) in upstream.items():
        args = (None, None, None, noise, None, *tail, 0, 0b10011)
        got = run(backend, op, (gz, gk, mu, logvar, *args[1:3], None, *args[3:]))
        dense = (gz.contiguous(), gk.contiguous(), mu, logvar, *args[1:3], None, *args[3:])
        assert all(map(same_bits, got, run(backend, op, dense))), name
    per_sample = randn(3, seed=4)
    for gk, reduction in ((per_sample.flip(0), 4), (torch.tensor(1.0).expand(3), 4)):
        for g in (gk, torch.stack((gk, gk), 1)[:, 0]):
            args = (None, g, mu, logvar, None, None, None, None, None, *tail, reduction, 0b11)
            dense = (None, gk.clone(), *args[2:])
            assert all(map(same_bits, run(backend, op, args), run(backend, op, dense)))


@each_backend
def test_outputs_keep_the_memory_format(backend):
    skip_unless_usable(backend)
    mu, logvar = (_channels_last(randn(2, 6, 4, 8, seed=s)) for s in range(2))
    with genkern.use_backend(backend.name):
        z, divergence = rsample_kl(mu, logvar, key=key(1), reduction="none")
        assert z.stride() == divergence.stride() == mu.stride()
        assert rsample(mu, logvar, key=key(1), num_samples=2).is_contiguous()
        leaves = mu.requires_grad_(), logvar.requires_grad_()
        grads = torch.autograd.grad(kl(*leaves), leaves)
        assert all(g.stride() == mu.stride() for g in grads)
        posterior = DiagonalGaussian(randn(2, 8, 4, 4))
        assert posterior.sample(key=key(1)).is_contiguous()


@each_backend
@pytest.mark.parametrize(
    "shape",
    [(), (0,), (0, 3), (3, 0), (0, 5000), (2, 0, 4), (1,), (1, 1, 1, 1, 1), (2, 1, 3, 1, 2, 1, 2)],
)
def test_empty_scalar_and_many_dimensions(backend, shape):
    skip_unless_usable(backend)
    mu, logvar = randn(*shape).requires_grad_(), randn(*shape, seed=1).requires_grad_()
    batch = shape[0] if shape else 1
    with genkern.use_backend(backend.name):
        z = rsample(mu, logvar, key=key(1))
        assert z.shape == mu.shape
        assert rsample(mu, logvar, key=key(1), num_samples=2).shape == (2, *shape)
        if shape:
            assert rsample(mu, logvar, key=split(key(1), batch)).shape == shape
        for reduction in ("none", "sum", "mean", "batchmean", "sample"):
            got = kl(mu, logvar, reduction=reduction)
            elements = kl(mu.double(), logvar.double(), reduction="none")
            want = {
                "none": lambda e: e,
                "sum": torch.sum,
                "mean": torch.mean,
                "batchmean": lambda e: e.sum() / batch,
                "sample": lambda e: (
                    e.reshape(batch, -1).sum(1) if e.numel() else e.new_zeros(batch)
                ),
            }[reduction](elements)
            torch.testing.assert_close(got.double(), want, equal_nan=True, rtol=1e-6, atol=1e-7)
        grads = torch.autograd.grad(z.sum() + kl(mu, logvar, reduction="sum"), (mu, logvar))
        assert all(g.shape == shape and torch.isfinite(g).all() for g in grads)


# ---- no copies


def _allocated(call) -> int:
    """Bytes that a call allocates, its results included."""
    call()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = call()
    events = profile.profiler.kineto_results.events()
    total = sum(e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0)
    del result
    return total


N = (8, 16, 32, 32)
SIZE = 4 * 8 * 16 * 32 * 32
# O(B) scalars and the partial sums of a reduction.
SCRATCH = 64 * 1024

COMMON = {
    "contiguous": lambda s, device="cpu": randn(*N, seed=s, device=device),
    "channels_last": lambda s, device="cpu": _channels_last(randn(*N, seed=s, device=device)),
    "chunk": lambda s, device="cpu": randn(8, 32, 32, 32, seed=s, device=device).chunk(2, 1)[s % 2],
    "expanded": lambda s, device="cpu": randn(1, 16, 32, 32, seed=s, device=device).expand(N),
    "0-stride prior": lambda s, device="cpu": (
        randn(*N, seed=s, device=device) if s < 2 else torch.full((), 0.5, device=device).expand(N)
    ),
}


def common_calls(layout, device="cpu"):
    """Calls, and how many tensors of their inputs' size each returns."""
    mu, logvar, m2, lv2 = (COMMON[layout](s, device) for s in range(4))
    k, table = key(1, device=device), TABLE.to(device)
    t, step = torch.arange(8, device=device) % 4, (None, None, 2.0, -0.5, 0.5)
    # An expanded mu has a dense result, as torch.empty_like gives.
    return (
        (1, lambda: rsample(mu, logvar, key=k)),
        (0, lambda: kl(mu, logvar, m2, lv2)),
        (0, lambda: kl(mu, logvar, reduction="sample")),
        (1, lambda: rsample_kl(mu, logvar, m2, lv2, key=k)),
        (1, lambda: kl(mu, logvar, reduction="none")),
        (0, lambda: bernoulli_nll(mu, m2)),
        (0, lambda: gaussian_nll(mu, m2)),
        (3, lambda: rsample(mu, logvar, key=k, num_samples=3)),
        (0, lambda: discriminator_loss(mu, logvar)),
        (0, lambda: gradient_penalty(mu)),
        (1, lambda: interpolate(mu, logvar, key=k)),
        (1, lambda: OPS["affine"](mu, logvar, None, k, None, table, t)),
        (0, lambda: OPS["noise_loss"](mu, logvar, k, None, table[:, :4], t, None, 1)),
        (1, lambda: OPS["sampler_step"](mu, m2, logvar, lv2, k, None, table, t, *step)),
        (2, lambda: OPS["sampler_step_x0"](mu, m2, logvar, lv2, k, None, table, t, *step)),
        (0, lambda: OPS["vlb"](mu, logvar, m2, k, None, table, t, -1.0, 1.0, 1.0, 1.0, True, 1)),
        (0, lambda: OPS["guidance_factor"](mu, m2, 3.0, 0.7)),
    )


@pytest.mark.parametrize("layout", COMMON)
def test_common_layouts_need_no_copy(layout):
    skip_unless_usable(NATIVE)
    for outs, call in common_calls(layout):
        assert outs * SIZE <= _allocated(call) <= outs * SIZE + SCRATCH


@pytest.mark.parametrize("layout", COMMON)
def test_backward_allocates_the_gradients_alone(layout):
    skip_unless_usable(NATIVE)
    mu, logvar = (COMMON[layout](s).detach().requires_grad_() for s in range(2))
    z, divergence = rsample_kl(mu, logvar, key=key(1), reduction="sample")
    once = torch.tensor(1.0)
    upstream = {"stride 0": once.expand(z.shape), "dense": randn(*N, seed=7)}
    for grad_z in upstream.values():

        def call(grad_z=grad_z):
            return torch.autograd.grad(
                (z, divergence), (mu, logvar), (grad_z, once.expand(8)), retain_graph=True
            )

        assert 2 * SIZE <= _allocated(call) <= 2 * SIZE + SCRATCH


@pytest.mark.parametrize("layout", COMMON)
def test_both_derivatives_of_a_penalty_allocate_their_results_alone(layout):
    skip_unless_usable(NATIVE)
    grads, v = COMMON[layout](0).detach().requires_grad_(), COMMON[layout](1)
    up = torch.ones((), requires_grad=True)
    first = torch.autograd.grad(gradient_penalty(grads), grads, up, create_graph=True)
    for outs, call in (
        (1, lambda: torch.autograd.grad(gradient_penalty(grads), grads)),
        (1, lambda: torch.autograd.grad(first, (grads, up), v, retain_graph=True)),
    ):
        assert outs * SIZE <= _allocated(call) <= outs * SIZE + SCRATCH


def test_peak_of_a_training_step():
    """Forward and backward keep z and two gradients; eager keeps the noise, sigma and more."""
    skip_unless_usable(NATIVE)
    moments = randn(8, 32, 32, 32).requires_grad_()

    def step():
        mu, logvar = moments.chunk(2, 1)
        z, divergence = rsample_kl(mu, logvar, key=key(1))
        return torch.autograd.grad(z.sum() + divergence, moments)

    # z, the gradients of the halves, and the two that chunk's backward pass makes of them.
    assert _allocated(step) <= 7 * SIZE + SCRATCH


# ---- more than 2^31 elements


@pytest.mark.large
def test_more_than_2_31_elements():
    """Memory-lean: bfloat16 outputs (4.3 GB each) and inputs that are expanded."""
    skip_unless_usable(NATIVE)
    rows, columns = 2**16 + 1, 2**15 + 8
    assert rows * columns > 2**31
    mu = torch.linspace(-1, 1, columns).bfloat16().expand(rows, columns)
    logvar = torch.linspace(0, -1, columns).bfloat16().expand(rows, columns)
    per_row = kl(mu[:1].double(), logvar[:1].double(), reduction="sum")
    total = kl(mu, logvar, reduction="sum")
    assert total.item() == pytest.approx(per_row.item() * rows, rel=1e-6)
    by_sample = kl(mu, logvar, reduction="sample")
    torch.testing.assert_close(by_sample, by_sample[:1].expand(rows), rtol=0, atol=0)

    z = rsample(mu, logvar, key=key(2))
    # Row r of one stream starts at block r * columns / 4.
    offset = (rows - 1) * columns // 4
    last = rsample(
        mu[-1:], logvar[-1:], key=torch.tensor([2, offset], dtype=torch.int64).view(torch.uint64)
    )
    assert columns % 4 == 0 and same_bits(z[-1:], last)


@pytest.mark.large
def test_gradients_of_more_than_2_31_elements():
    skip_unless_usable(NATIVE)
    rows, columns = 2**16 + 1, 2**15 + 8
    mu = torch.linspace(-1, 1, columns).bfloat16().expand(rows, columns).detach().requires_grad_()
    logvar = torch.zeros((), dtype=torch.bfloat16).expand(rows, columns)
    (grad,) = torch.autograd.grad(kl(mu, logvar, reduction="sum"), mu)
    assert same_bits(grad[-1], mu[-1].detach()) and same_bits(grad[rows // 2], mu[0].detach())
