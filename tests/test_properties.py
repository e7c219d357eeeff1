"""What the mathematics promises of the VAE family, whatever the implementation."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from support import DTYPES, each_dtype, randn, same_bits, skip_unless_usable

import genkern
from genkern import testing
from genkern.random import key, split
from genkern.vae import (
    DiagonalGaussian,
    active_units,
    bernoulli_nll,
    elbo_loss,
    gaussian_nll,
    kl,
    kl_weight,
    rsample,
    rsample_kl,
)

REDUCTIONS = ("none", "sum", "mean", "batchmean", "sample")


@pytest.fixture(autouse=True, params=["native", "triton", "reference"])
def chosen(request):
    """Every test runs with each backend chosen."""
    backend = next(b for b in genkern.backends.BACKENDS if b.name == request.param)
    skip_unless_usable(backend)
    # Triton's interpreter computes in NumPy, which warns where infinity is the right result.
    with genkern.use_backend(request.param), np.errstate(all="ignore"):
        yield request.param


def exact_kl(mu: float, logvar: float, m2: float = 0.0, lv2: float = 0.0) -> float:
    with mpmath.workdps(60):
        mu, logvar, m2, lv2 = map(mpmath.mpf, (mu, logvar, m2, lv2))
        d = logvar - lv2
        return float(((mu - m2) ** 2 * mpmath.exp(-lv2) + mpmath.exp(d) - 1 - d) / 2)


# ---- KL


@each_dtype
def test_kl_is_zero_at_the_prior_and_never_negative(dtype):
    mu, logvar = randn(64, 33, dtype=dtype), randn(64, 33, dtype=dtype, seed=1)
    assert torch.equal(kl(mu, logvar, mu, logvar, reduction="none"), torch.zeros_like(mu))
    for size in (1.0, 1e-2, 1e-4):
        near = kl(mu * size, logvar * size, reduction="none")
        assert (near >= 0).all()
        prior = (mu * size + size / 8, logvar * size - size / 8)
        assert (kl(mu * size, logvar * size, *prior, reduction="none") >= 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_kl_keeps_its_relative_accuracy_down_to_the_prior(sign):
    logvar = sign * torch.logspace(-18, 2, 81, dtype=torch.float64)
    logvar = logvar[logvar < 80]
    for dtype, epsilon in ((torch.float64, 2.0**-52), (torch.float32, 2.0**-23)):
        x = logvar.to(dtype)
        got = kl(torch.zeros_like(x), x, reduction="none").double()
        want = torch.tensor([exact_kl(0.0, v) for v in x.tolist()], dtype=torch.float64)
        # exp(x) - 1 - x is at worst 5 times as sensitive as expm1(x) is (at |x| = 1/2, where the
        # series ends); exp is good to 2 epsilon and each term is rounded once.
        normal = want > torch.finfo(dtype).smallest_normal
        assert ((got - want).abs()[normal] <= 16 * epsilon * want[normal]).all()


def test_gradient_of_kl_keeps_its_relative_accuracy_down_to_the_prior():
    x = torch.logspace(-18, 1, 60, dtype=torch.float64)
    x = torch.cat((-x, x)).float().requires_grad_()
    (grad,) = torch.autograd.grad(kl(torch.zeros_like(x), x, reduction="sum"), x)
    want = torch.expm1(x.detach().double()) / 2
    assert ((grad.double() - want).abs() <= 8 * 2.0**-23 * want.abs()).all()


def test_kl_of_a_scaled_and_shifted_pair_is_the_same():
    mu, logvar, m2, lv2 = (randn(50, dtype=torch.float64, seed=s) for s in range(4))
    before = kl(mu, logvar, m2, lv2, reduction="none")
    scale = 0.7
    after = kl(
        mu * scale + 3.0,
        logvar + 2 * math.log(scale),
        m2 * scale + 3.0,
        lv2 + 2 * math.log(scale),
        reduction="none",
    )
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-13)


def test_kl_equals_its_monte_carlo_estimate():
    mu, logvar, m2, lv2 = (0.5 * randn(6, dtype=torch.float64, seed=s) for s in range(4))
    k = 20_000
    z = rsample(mu.expand(k, 6), logvar.expand(k, 6), key=key(1))
    log_q = -0.5 * ((z - mu) ** 2 * torch.exp(-logvar) + logvar)
    log_p = -0.5 * ((z - m2) ** 2 * torch.exp(-lv2) + lv2)
    ratio = log_q - log_p
    error = ratio.std(0) / math.sqrt(k)
    assert ((ratio.mean(0) - kl(mu, logvar, m2, lv2, reduction="none")).abs() < 4 * error).all()


def test_kl_agrees_with_torch_distributions():
    mu, logvar, m2, lv2 = (randn(40, dtype=torch.float64, seed=s) for s in range(4))
    q, p = (
        torch.distributions.Normal(m, torch.exp(0.5 * lv)) for m, lv in ((mu, logvar), (m2, lv2))
    )
    want = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(kl(mu, logvar, m2, lv2, reduction="none"), want, rtol=1e-12, atol=0)


@each_dtype
def test_0d_priors_count_only_among_themselves(dtype):
    """As in torch: a 0-d tensor does not widen the others, and is not rounded to a narrower one."""
    mu, logvar = randn(2, 3, dtype=dtype), randn(2, 3, dtype=dtype, seed=1)
    for prior_dtype in DTYPES:
        prior = torch.tensor(1 / 3, dtype=prior_dtype)
        wanted = (mu + prior).dtype
        assert wanted == dtype
        for priors in ((prior,), (None, prior), (prior, prior)):
            assert kl(mu, logvar, *priors, reduction="none").dtype == wanted
            z, _ = rsample_kl(mu, logvar, *priors, key=key(0))
            assert z.dtype == wanted
        want = kl(mu, logvar, prior.to(wanted).item(), reduction="sum")
        torch.testing.assert_close(kl(mu, logvar, prior, reduction="sum"), want)
    wide = torch.tensor(1 / 3, dtype=torch.float64)
    mixed = kl(mu.to(torch.bfloat16), logvar.float(), wide, reduction="none")
    assert mixed.dtype == torch.float32
    want = kl(mu.to(torch.bfloat16).float(), logvar.float(), 1 / 3, reduction="none")
    torch.testing.assert_close(mixed, want)
    scalar = torch.zeros((), dtype=dtype)
    assert kl(scalar, scalar, wide).dtype == torch.float64


def test_number_priors_are_tensor_priors():
    mu, logvar = randn(5, 7), randn(5, 7, seed=1)
    tensors = torch.full((5, 7), 0.25), torch.full((5, 7), -0.5)
    for priors in (
        (0.25, -0.5),
        (tensors[0], -0.5),
        (0.25, tensors[1]),
        (tensors[0][0], tensors[1][:1]),
    ):
        assert same_bits(
            kl(mu, logvar, *priors, reduction="none"), kl(mu, logvar, *tensors, reduction="none")
        )
    assert same_bits(kl(mu, logvar), kl(mu, logvar, 0.0, 0.0))
    assert same_bits(kl(mu, logvar), kl(mu, logvar, torch.zeros(7), torch.zeros(5, 1)))


@each_dtype
def test_reductions_agree_with_each_other(dtype):
    mu, logvar = randn(6, 5, 3, dtype=dtype), randn(6, 5, 3, dtype=dtype, seed=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    by_word = {word: kl(mu, logvar, reduction=word) for word in REDUCTIONS}
    assert by_word["none"].dtype == dtype
    assert all(by_word[word].dtype == wide for word in REDUCTIONS[1:])
    assert by_word["sample"].shape == (6,)
    exact = kl(mu.double(), logvar.double(), reduction="none")
    for word, want in (
        ("sum", exact.sum()),
        ("mean", exact.mean()),
        ("batchmean", exact.sum() / 6),
        ("sample", exact.sum((1, 2))),
    ):
        torch.testing.assert_close(
            by_word[word].double(), want, rtol=4e-6 if wide == torch.float32 else 1e-14, atol=0
        )


def test_the_error_of_a_sum_does_not_grow_with_its_size(chosen):
    sizes = (1_000, 2_000_003) if chosen != "triton" else (1_000, 20_003)
    for n in sizes:
        x = torch.full((1, n), 0.1)
        term = exact_kl(float(x[0, 0]), 0.0)
        got = kl(x, torch.zeros_like(x), reduction="sum").item()
        # Each term within 2 epsilon, and a handful of roundings on the way up, not n.
        assert abs(got - n * term) <= 16 * 2.0**-23 * n * term


def test_free_bits():
    mu, logvar = randn(20, 9), 0.3 * randn(20, 9, seed=1)
    free = kl(mu, logvar, reduction="none")
    floor = free.median().item()
    got = kl(mu, logvar, free_bits=floor, reduction="none")
    assert same_bits(got, free.clamp(min=floor))
    mu.requires_grad_(), logvar.requires_grad_()
    grads = torch.autograd.grad(kl(mu, logvar, free_bits=floor, reduction="sum"), (mu, logvar))
    free_grads = torch.autograd.grad(kl(mu, logvar, reduction="sum"), (mu, logvar))
    for g, f in zip(grads, free_grads, strict=True):
        assert same_bits(g, torch.where(free < floor, 0.0, f))
    assert torch.equal(kl(mu, logvar, free_bits=1e6, reduction="mean"), torch.tensor(1e6))


@each_dtype
def test_clamp_values_and_gradients_inside_at_and_over_the_bounds(dtype):
    logvar = torch.tensor([[-3.0, -1.0, 0.5, 2.0, 2.5, math.inf, -math.inf]], dtype=dtype)
    mu, noise = torch.zeros_like(logvar), torch.ones_like(logvar)
    bounds = (-1.0, 2.0)
    inside = torch.tensor([[False, True, True, True, False, False, False]])
    for f in (
        lambda lv, **clamp: kl(mu, lv, reduction="sum", **clamp),
        lambda lv, **clamp: rsample_kl(mu, lv, noise=noise, reduction="sum", **clamp)[0].sum(),
        lambda lv, **clamp: rsample_kl(mu, lv, noise=noise, reduction="sum", **clamp)[1],
    ):
        lv = logvar.clone().requires_grad_()
        by_hand = logvar.clamp(*bounds).requires_grad_()
        value, want = f(lv, logvar_clamp=bounds), f(by_hand)
        assert same_bits(value, want)
        (grad,), (free,) = torch.autograd.grad(value, lv), torch.autograd.grad(want, by_hand)
        assert torch.equal(grad, torch.where(inside, free, 0.0).to(dtype))


# ---- samples


def test_rsample_kl_is_rsample_and_kl(chosen):
    mu, logvar, noise = randn(4, 5, 6), randn(4, 5, 6, seed=1), randn(4, 5, 6, seed=2)
    for source in ({"key": key(3)}, {"key": split(key(3), 4)}, {"noise": noise}):
        for word in REDUCTIONS:
            z, divergence = rsample_kl(
                mu, logvar, 0.1, -0.2, free_bits=0.2, reduction=word, **source
            )
            assert same_bits(z, rsample(mu, logvar, **source))
            alone = kl(mu, logvar, 0.1, -0.2, free_bits=0.2, reduction=word)
            if chosen == "triton" and word != "none":
                # Its tiles, and so the order of a sum, depend on what else the kernel does.
                torch.testing.assert_close(divergence, alone, rtol=4 * 2.0**-23, atol=0)
            else:
                assert same_bits(divergence, alone)


@pytest.mark.parametrize("per_sample", [False, True])
def test_one_sample_equals_none(per_sample):
    mu, logvar = randn(4, 5, 3), randn(4, 5, 3, seed=1)
    k = split(key(4), 4) if per_sample else key(4)
    assert same_bits(rsample(mu, logvar, key=k, num_samples=1)[0], rsample(mu, logvar, key=k))
    assert rsample(mu, logvar, key=k, num_samples=0).shape == (0, 4, 5, 3)


def test_the_first_of_several_samples_of_one_key_is_the_single_one():
    mu, logvar = randn(4, 8), randn(4, 8, seed=1)
    z = rsample(mu, logvar, key=key(4), num_samples=3)
    assert same_bits(z[0], rsample(mu, logvar, key=key(4)))
    keys = split(key(4), 4)
    z = rsample(mu, logvar, key=keys, num_samples=3)
    for b in range(4):
        assert same_bits(
            z[:, b], rsample(mu[b : b + 1], logvar[b : b + 1], key=keys[b], num_samples=3)[:, 0]
        )


@each_dtype
def test_per_sample_keys_do_not_depend_on_the_batch(dtype):
    mu, logvar = randn(5, 3, 7, dtype=dtype), randn(5, 3, 7, dtype=dtype, seed=1)
    keys = split(key(5), 5)
    together = rsample_kl(mu, logvar, key=keys, reduction="sample")
    parts = [
        rsample_kl(mu[i:j], logvar[i:j], key=keys[i:j], reduction="sample")
        for i, j in ((0, 2), (2, 3), (3, 5))
    ]
    for whole, pieces in zip(together, zip(*parts, strict=True), strict=True):
        assert same_bits(whole, torch.cat(pieces))
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    moved = rsample(mu[shuffled], logvar[shuffled], key=keys.view(torch.int64)[shuffled])
    assert same_bits(moved, together[0][shuffled])


def test_the_noise_of_rsample_is_that_of_normal():
    zeros = torch.zeros(4, 5, 3)
    k, keys = key(6), split(key(6), 4)
    assert same_bits(rsample(zeros, zeros, key=k), genkern.random.normal(k, 4, 5, 3))
    assert same_bits(rsample(zeros, zeros, key=keys), genkern.random.normal(keys, 4, 5, 3))
    assert same_bits(
        rsample(zeros, zeros, key=k, num_samples=2), genkern.random.normal(k, 2, 4, 5, 3)
    )
    by_sample = genkern.random.normal(keys, 4, 2, 5, 3).transpose(0, 1).contiguous()
    assert same_bits(rsample(zeros, zeros, key=keys, num_samples=2), by_sample)
    logical = rsample(zeros.transpose(1, 2), zeros.transpose(1, 2), key=k)
    assert same_bits(logical, genkern.random.normal(k, 4, 3, 5))


def test_moments_of_samples():
    mu, logvar = randn(5, dtype=torch.float32), randn(5, seed=1)
    k = 20_000
    z = rsample(mu.expand(k, 5), logvar.expand(k, 5), key=key(7)).double()
    variance = torch.exp(logvar.double())
    assert ((z.mean(0) - mu).abs() < 4 * (variance / k).sqrt()).all()
    assert ((z.var(0) / variance - 1).abs() < 4 * math.sqrt(2 / k)).all()


def test_shifting_mu_shifts_z():
    logvar, noise = randn(30, dtype=torch.float64), randn(30, dtype=torch.float64, seed=1)
    z = rsample(torch.zeros_like(logvar), logvar, noise=noise)
    shifted = rsample(torch.full_like(logvar, 4.0), logvar, noise=noise)
    torch.testing.assert_close(shifted, z + 4.0, rtol=1e-15, atol=1e-15)
    scaled = rsample(torch.zeros_like(logvar), logvar + 2 * math.log(2.0), noise=noise)
    torch.testing.assert_close(scaled, 2 * z, rtol=1e-14, atol=0)


def test_a_new_key_each_call_governed_by_manual_seed():
    mu, logvar = torch.zeros(3, 4), torch.zeros(3, 4)
    torch.manual_seed(3)
    a, b = rsample(mu, logvar), rsample(mu, logvar)
    torch.manual_seed(3)
    assert same_bits(rsample(mu, logvar), a) and not torch.equal(a, b)
    one, two = (
        rsample_kl(mu, logvar, generator=torch.Generator().manual_seed(9))[0] for _ in range(2)
    )
    assert same_bits(one, two)


# ---- half precision and extreme values


def test_half_precision_is_float32_arithmetic_rounded_once(chosen):
    if chosen == "triton":
        pytest.skip("triton: the interpreter truncates to bfloat16")
    for dtype in (torch.bfloat16, torch.float16):
        mu, logvar, noise = (randn(50, 3, dtype=dtype, seed=s) for s in range(3))
        wide = (mu.float(), logvar.float())
        assert same_bits(rsample(mu, logvar, key=key(1)), rsample(*wide, key=key(1)).to(dtype))
        assert same_bits(
            rsample(mu, logvar, noise=noise), rsample(*wide, noise=noise.float()).to(dtype)
        )
        assert same_bits(kl(mu, logvar, reduction="none"), kl(*wide, reduction="none").to(dtype))
        assert same_bits(kl(mu, logvar), kl(*wide))


def test_where_half_precision_eager_fails():
    # KL in float16: eager overflows from logvar 11.1 on; the reduced KL is float32 here.
    twelve = torch.tensor([[12.0]], dtype=torch.float16)
    assert kl(torch.zeros_like(twelve), twelve).item() == pytest.approx(exact_kl(0, 12), rel=1e-6)
    # Eager gives KL(q, q) = NaN at logvar -25 in float16.
    low = torch.full((1, 3), -25.0, dtype=torch.float16)
    mu = randn(1, 3, dtype=torch.float16)
    assert kl(mu, low, mu, low).item() == 0.0
    # Eager gives -5e-4 in bfloat16 at logvar 1e-3.
    small = torch.tensor([[1e-3]], dtype=torch.bfloat16)
    want = exact_kl(0, small.item())
    assert kl(torch.zeros_like(small), small).item() == pytest.approx(want, rel=1e-6)


@each_dtype
def test_extreme_finite_values_give_no_nan(dtype):
    top = torch.finfo(dtype).max
    tiny = torch.finfo(dtype).smallest_normal
    values = [0.0, -0.0, tiny, -tiny, 1.0, -1.0, 88.0, -88.0, 200.0, -200.0, 1e4, -1e4, top, -top]
    grid = torch.cartesian_prod(*[torch.tensor(values, dtype=torch.float64)] * 2).to(dtype)
    mu, logvar = grid[:, :1].contiguous(), grid[:, 1:].contiguous()
    noise = torch.ones_like(mu)
    exact = testing.expected("kl", (mu, logvar, None, None, 0.0, 0.0, 0.0, -math.inf, math.inf, 0))[
        0
    ]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    limit = torch.finfo(wide).max
    for got in (kl(mu, logvar, reduction="sample"), kl(mu, logvar, reduction="none").flatten()):
        assert not got.isnan().any() and (got >= 0).all()
    reduced = kl(mu, logvar, reduction="sample").double().numpy()
    value = exact.value[:, 0]
    finite = value < 0.25 * limit
    np.testing.assert_allclose(
        reduced[finite],
        value[finite].astype(float),
        rtol=1e-4 if wide == torch.float32 else 1e-12,
        atol=torch.finfo(wide).smallest_normal,
    )
    assert np.isinf(reduced[value > 4 * np.longdouble(limit)]).all()
    # The prior as extreme as the posterior: every pair.
    m2, lv2 = mu.flip(0).contiguous(), logvar.flip(0).contiguous()
    for divergence in (
        kl(mu, logvar, m2, lv2, reduction="none"),
        kl(mu, mu, m2, m2, reduction="none"),
    ):
        assert not divergence.isnan().any() and (divergence >= 0).all()
    z = rsample(torch.zeros_like(mu), logvar, noise=noise)
    assert not z.isnan().any()
    logits, x = mu, torch.where(logvar > 0, 1.0, 0.0).to(dtype)
    nll = bernoulli_nll(logits, x, reduction="none")
    assert not nll.isnan().any() and (nll >= 0).all()
    assert torch.isfinite(nll[logits.abs() < top]).all()
    assert not gaussian_nll(mu, torch.zeros_like(mu), reduction="none").isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gradients_of_extreme_finite_values_are_no_nan(dtype):
    # The gradient of a KL that is finite is finite.
    values = torch.tensor([0.0, 1e-30, 1.0, -1.0, 30.0, -30.0, 60.0, -80.0, 85.0], dtype=dtype)
    mu, logvar, m2, lv2 = (
        c.clone().requires_grad_() for c in torch.cartesian_prod(*[values] * 4).t().contiguous()
    )
    divergence = kl(mu, logvar, m2, lv2, reduction="none")
    good = torch.isfinite(divergence)
    grads = torch.autograd.grad(divergence, (mu, logvar, m2, lv2), good.to(dtype))
    for grad in grads:
        assert not grad[good].isnan().any()


def test_nan_and_infinite_inputs():
    nan, inf = math.nan, math.inf
    one = lambda v: torch.tensor([[v]])  # noqa: E731
    assert kl(one(nan), one(0.0)).isnan() and kl(one(0.0), one(nan)).isnan()
    assert kl(one(0.0), one(nan), free_bits=1.0).isnan()
    assert kl(one(0.0), one(nan), logvar_clamp=(-1.0, 1.0)).isnan()
    assert kl(one(0.0), one(inf)) == inf and kl(one(0.0), one(-inf)) == inf
    assert rsample(one(2.0), one(-inf), noise=one(3.0)) == 2.0
    assert rsample(one(2.0), one(nan), noise=one(3.0)).isnan()
    assert rsample(one(2.0), one(inf), noise=one(-3.0)) == -inf
    assert bernoulli_nll(one(nan), one(0.5)).isnan() and gaussian_nll(one(nan), one(0.5)).isnan()
    # A NaN stays in its sample.
    mu = torch.zeros(3, 4)
    mu[1, 2] = nan
    assert kl(mu, torch.zeros(3, 4), reduction="sample").isnan().tolist() == [False, True, False]


# ---- likelihoods


def test_bernoulli_nll_is_the_entropy_of_the_data_at_its_logit():
    p = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    nll = bernoulli_nll(torch.logit(p), p, reduction="none")
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(nll, entropy, rtol=1e-13, atol=0)


def test_bernoulli_nll_agrees_with_torch_and_is_symmetric():
    a, x = 3 * randn(9, 11, dtype=torch.float64), torch.rand(9, 11, dtype=torch.float64)
    want = torch.nn.functional.binary_cross_entropy_with_logits(a, x, reduction="none")
    torch.testing.assert_close(bernoulli_nll(a, x, reduction="none"), want, rtol=1e-13, atol=1e-15)
    mirrored = bernoulli_nll(-a, 1 - x, reduction="none")
    torch.testing.assert_close(
        bernoulli_nll(a, x, reduction="none"), mirrored, rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize(
    ("dtype", "power"), [(torch.float32, 126), (torch.bfloat16, 126), (torch.float64, 1022)]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_gaussian_nll_at_the_ends_of_sigmas_range(dtype, power, sign):
    """sigma and its reciprocal are normal numbers: value and gradient are as exact as elsewhere."""
    sigma = 2.0 ** (sign * power)
    x_hat = torch.zeros(3, dtype=dtype, requires_grad=True)
    x = torch.tensor([-2.0 * sigma, 0.0, sigma], dtype=dtype)
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    want = torch.tensor([2.0 + constant, constant, 0.5 + constant], dtype=torch.float64)
    got = gaussian_nll(x_hat, x, sigma=sigma, reduction="none")
    torch.testing.assert_close(got, want.to(dtype))
    (grad,) = torch.autograd.grad(got.sum(), x_hat)
    assert torch.equal(grad.double() * sigma, torch.tensor([2.0, 0.0, -1.0]).double())


def test_gaussian_nll_agrees_with_torch_distributions():
    x_hat, x = randn(9, 11, dtype=torch.float64), randn(9, 11, dtype=torch.float64, seed=1)
    for sigma in (0.1, 1.0, 3.0):
        want = -torch.distributions.Normal(x_hat, sigma).log_prob(x)
        torch.testing.assert_close(gaussian_nll(x_hat, x, sigma=sigma, reduction="none"), want)


def test_elbo_loss_is_its_terms():
    x_hat, x = randn(6, 10), torch.rand(6, 10)
    mu, logvar = randn(6, 3), randn(6, 3, seed=1)
    for likelihood, nll in (
        ("bernoulli", bernoulli_nll(x_hat, x)),
        ("gaussian", gaussian_nll(x_hat, x, sigma=0.5)),
    ):
        got = elbo_loss(
            x_hat, x, mu, logvar, likelihood=likelihood, sigma=0.5, beta=4.0, free_bits=0.1
        )
        assert same_bits(got.nll, nll)
        assert same_bits(got.kl, kl(mu, logvar, free_bits=0.1))
        torch.testing.assert_close(got.loss, got.nll + 4.0 * got.kl, rtol=1e-6, atol=0)


# ---- the rest of the family


def test_diagonal_gaussian_for_every_number_of_dimensions():
    for shape in ((3, 8), (3, 8, 5), (3, 8, 4, 5), (3, 8, 2, 3, 4)):
        moments = 4 * randn(*shape)
        mean, logvar = moments.chunk(2, dim=1)
        posterior = DiagonalGaussian(moments)
        assert posterior.mean.data_ptr() == moments.data_ptr()
        assert same_bits(posterior.mode(), mean)
        clamped = logvar.clamp(-30.0, 20.0)
        assert same_bits(posterior.logvar, clamped)
        assert same_bits(posterior.sample(key=key(2)), rsample(mean, clamped, key=key(2)))
        assert same_bits(posterior.kl(), kl(mean, clamped, reduction="sample"))
        assert posterior.kl().shape == (3,)
        other = DiagonalGaussian(randn(*shape, seed=5))
        want = kl(mean, clamped, other.mean, other.logvar, reduction="sum")
        assert same_bits(posterior.kl(other, reduction="sum"), want)
        assert torch.equal(posterior.kl(posterior), torch.zeros(3))
        x = randn(*mean.shape, seed=6)
        want = -torch.distributions.Normal(mean.double(), (clamped.double() / 2).exp()).log_prob(x)
        got = posterior.nll(x, reduction="none")
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-5)
        assert posterior.nll(x).shape == (3,)


def test_diagonal_gaussian_bounds():
    moments = torch.tensor([[0.0, 100.0]])
    assert DiagonalGaussian(moments).logvar == 20.0
    assert DiagonalGaussian(moments, logvar_clamp=None).logvar == 100.0
    assert DiagonalGaussian(moments, logvar_clamp=(-1.0, 1.0)).logvar == 1.0


def test_kl_weights():
    assert [kl_weight(s, warmup=10) for s in (0, 5, 10, 11)] == [0.0, 0.5, 1.0, 1.0]
    assert kl_weight(5, warmup=10, kind="cosine") == pytest.approx(0.5)
    assert kl_weight(2.5, warmup=10, kind="cosine") == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert kl_weight(5, warmup=10, kind="sigmoid") == 0.5
    assert kl_weight(0, warmup=10, kind="sigmoid") == pytest.approx(1 / (1 + math.exp(6)))
    assert kl_weight(10, warmup=10, kind="sigmoid") == 1.0
    cyclical = [kl_weight(s, warmup=8, kind="cyclical", cycles=2) for s in range(10)]
    assert cyclical == [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    for kind in ("linear", "cosine", "sigmoid"):
        weights = [kl_weight(s, warmup=50, kind=kind) for s in range(60)]
        assert weights == sorted(weights) and weights[0] >= 0.0 and weights[-1] == 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_active_units(dtype):
    mu = torch.zeros(100, 2, 3, dtype=dtype)
    mu[:, 0, 1] = randn(100, dtype=dtype)
    mu[:, 1, 2] = 0.01 * randn(100, dtype=dtype)
    assert active_units(mu).nonzero().tolist() == [[0, 1]]
    assert active_units(mu, threshold=1e-6).nonzero().tolist() == [[0, 1], [1, 2]]
