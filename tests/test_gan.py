"""What the mathematics promises of the GAN family, whatever the implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats
from support import each_dtype, randn, same_bits, skip_unless_usable, threads
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import genkern
from genkern import testing
from genkern._ops.gan import KINDS
from genkern.gan import (
    clip_weights_,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    interpolate,
    js_divergence,
    optimal_discriminator,
    r1_penalty,
)
from genkern.random import key, split, uniform

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F64 = torch.float64
REDUCTIONS = ("none", "sum", "mean", "batchmean", "sample")


@pytest.fixture(autouse=True, params=[b.name for b in genkern.backends.BACKENDS])
def chosen(request):
    """Every test runs with each backend chosen."""
    backend = next(b for b in genkern.backends.BACKENDS if b.name == request.param)
    skip_unless_usable(backend)
    # Triton's interpreter computes in NumPy, which warns where infinity is the right result.
    with genkern.use_backend(request.param), np.errstate(all="ignore"):
        yield request.param


def leaf(*shape: int, seed: int = 0, dtype=F64) -> Tensor:
    return randn(*shape, dtype=dtype, seed=seed).requires_grad_()


# ---- losses


def _scipy_losses(kind, r, f, s):
    """The losses as the papers write them, on NumPy arrays: real and generated terms, generator."""
    log_d, log_1_minus_d = special.log_expit, lambda x: special.log_expit(-x)
    if kind in ("minimax", "saturating", "non_saturating"):
        real = -(1 - s) * log_d(r) - s * log_1_minus_d(r)
        ours = -log_d(f) if kind == "non_saturating" else log_1_minus_d(f)
        return real, -log_1_minus_d(f), ours
    if kind == "hinge":
        return np.maximum(1 - r, 0), np.maximum(1 + f, 0), -f
    if kind == "wasserstein":
        return -r, f, -f
    if kind == "least_squares":
        return (r - (1 - s)) ** 2 / 2, f**2 / 2, (f - 1) ** 2 / 2
    return -log_d(r - f), np.zeros_like(f), -log_d(f - r)


def _reduce(x, reduction):
    return {
        "none": x,
        "sum": x.sum(),
        "mean": x.mean(),
        "batchmean": x.sum() / len(x),
        "sample": x.reshape(len(x), -1).sum(1),
    }[reduction]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_their_definitions(kind, reduction):
    r, f = 3 * randn(6, 1, 4, dtype=F64), 3 * randn(6, 1, 4, dtype=F64, seed=1)
    smoothed = kind in ("minimax", "saturating", "non_saturating", "least_squares")
    for s in (0.0, 0.1) if smoothed else (0.0,):
        real, fake, generator = _scipy_losses(kind, r.numpy(), f.numpy(), s)
        options = {"kind": kind, "reduction": reduction}
        got = discriminator_loss(r, f, label_smoothing=s, **options)
        want = _reduce(real + fake, reduction)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-14, atol=1e-14)
    got = generator_loss(f, r, **options)
    np.testing.assert_allclose(got.numpy(), _reduce(generator, reduction), rtol=1e-14, atol=1e-14)


def _naive(kind, r, f):
    """Formulas that overflow, where they do not."""
    if kind == "relativistic":
        return -torch.log(torch.sigmoid(r - f)), -torch.log(torch.sigmoid(f - r))
    d, g = torch.sigmoid(r), torch.sigmoid(f)
    log_loss = -torch.log(d) - torch.log(1 - g)
    return {
        "minimax": (log_loss, torch.log(1 - g)),
        "saturating": (log_loss, torch.log(1 - g)),
        "non_saturating": (log_loss, -torch.log(g)),
        "hinge": (torch.relu(1 - r) + torch.relu(1 + f), -f),
        "wasserstein": (f - r, -f),
        "least_squares": (((r - 1) ** 2 + f**2) / 2, (f - 1) ** 2 / 2),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_autograd_of_the_naive_formula(kind):
    r, f = leaf(7, 3), leaf(7, 3, seed=1)
    for ours, naive in (
        (discriminator_loss(r, f, kind=kind), _naive(kind, r, f)[0].mean()),
        (generator_loss(f, r, kind=kind), _naive(kind, r, f)[1].mean()),
    ):
        torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-13)
        found, want = (
            torch.autograd.grad(x, (r, f), allow_unused=True, create_graph=True)
            for x in (ours, naive)
        )
        for g, w in zip(found, want, strict=True):
            assert (g is None) == (w is None)
            if g is not None:
                torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)
        second = [
            torch.autograd.grad(sum(g.square().sum() for g in gs if g is not None), f)[0]
            if any(g is not None and g.requires_grad for g in gs)
            else torch.zeros_like(f)
            for gs in (found, want)
        ]
        torch.testing.assert_close(*second, rtol=1e-10, atol=1e-13)


@each_dtype
@pytest.mark.parametrize("kind", KINDS)
def test_no_overflow_at_any_finite_logit(kind, dtype, chosen):
    if chosen == "triton" and dtype == torch.bfloat16:
        pytest.skip("triton: the interpreter truncates to bfloat16")
    top, tiny = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    values = [0.0, tiny, 1.0, 17.0, 40.0, 1e4, top / 2, top]
    values = torch.tensor([*values, *(-v for v in values)], dtype=F64)
    # A logit a sample: the losses come in float32 (float64).
    r, f = torch.cartesian_prod(values, values).to(dtype).t().unsqueeze(2).contiguous()
    number, relativistic = KINDS[kind], kind == "relativistic"
    calls = {
        "discriminator_loss": (r, f, number, 0.0, 4),
        "generator_loss": (f, r if relativistic else None, number, 4),
    }
    with torch.no_grad():
        for name, args in calls.items():
            # Infinite only where the exact loss does not fit.
            testing.assert_conforms(name, args, genkern._ops.op.OPS[name](*args))
    leaves = r.clone().requires_grad_(), f.clone().requires_grad_()
    for loss in (discriminator_loss, lambda r, f, **k: generator_loss(f, r, **k)):
        out = loss(*leaves, kind=kind, reduction="none")
        grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
        assert all(torch.isfinite(g).all() for g in grads if g is not None)


def test_limits_at_infinite_logits():
    inf = torch.tensor([[math.inf]])
    assert discriminator_loss(inf, -inf) == 0.0
    assert discriminator_loss(-inf, -inf) == math.inf
    assert generator_loss(inf) == 0.0 and generator_loss(-inf) == math.inf
    assert discriminator_loss(inf, -inf, kind="hinge") == 0.0
    f = (-inf).requires_grad_()
    assert torch.autograd.grad(generator_loss(f), f)[0] == -1.0


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_kept(kind):
    r, f = torch.zeros(3, 1), torch.zeros(3, 1)
    f[1] = math.nan
    assert discriminator_loss(r, f, kind=kind, reduction="sample").isnan().tolist() == [
        False, True, False,
    ]  # fmt: skip
    assert generator_loss(f, r, kind=kind).isnan()


def test_the_saturating_loss_saturates_and_the_other_does_not():
    f = torch.full((1, 1), -12.0, dtype=F64, requires_grad=True)
    u = torch.sigmoid(f.detach())
    for kind, want in (("minimax", -u), ("non_saturating", u - 1)):
        (grad,) = torch.autograd.grad(generator_loss(f, kind=kind), f)
        torch.testing.assert_close(grad, want, rtol=1e-12, atol=0)


def test_each_shape_has_its_own_mean():
    r, f = leaf(6, 1, 4, dtype=torch.float32), leaf(5, 7, seed=1, dtype=torch.float32)
    for kind in list(KINDS)[:-1]:
        for word in ("mean", "sum", "batchmean"):
            options = {"kind": kind, "reduction": word}
            got = discriminator_loss(r, f, **options)
            want = discriminator_loss(r, r, **options).double() + discriminator_loss(
                f, f, **options
            )
            swapped = discriminator_loss(f, r, **options)  # L(r, f) + L(f, r) = L(r, r) + L(f, f)
            torch.testing.assert_close(got + swapped, want.float(), rtol=4e-7, atol=1e-6)
            grads = torch.autograd.grad(got, (r, f))
            assert [g.shape for g in grads] == [r.shape, f.shape]


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_formed_early_are_those_of_the_formula(kind, dtype):
    """Plain eager may form them with the value; for a graph of the gradient the formula does."""
    r, f = leaf(9, 2, dtype=dtype), leaf(9, 2, seed=1, dtype=dtype)
    other = leaf(4, 3, seed=2, dtype=dtype)
    calls = [
        lambda: discriminator_loss(r, f, kind=kind),
        lambda: discriminator_loss(r, f, kind=kind, reduction="none").sum(),
        lambda: generator_loss(f, r, kind=kind, reduction="sample").sum(),
    ]
    if kind != "relativistic":
        calls += [
            lambda: discriminator_loss(r, f, kind=kind) + discriminator_loss(r, other),
            lambda: generator_loss(f, kind=kind, reduction="none").sum(),
        ]
    for call in calls:
        early = torch.autograd.grad(call(), (r, f), allow_unused=True)
        late = torch.autograd.grad(call(), (r, f), allow_unused=True, create_graph=True)
        for a, b in zip(early, late, strict=True):
            assert (a is None) == (b is None)
            assert a is None or same_bits(a, b.detach())
        scaled = torch.autograd.grad(0.25 * call(), (r, f), allow_unused=True)
        for a, b in zip(early, scaled, strict=True):
            assert a is None or torch.equal(0.25 * a, b)  # a power of two rounds nothing
    loss = calls[0]()
    first = torch.autograd.grad(loss, f, retain_graph=True)[0].clone()
    assert same_bits(first, torch.autograd.grad(loss, f)[0])


def test_half_precision_losses_are_float32_arithmetic_rounded_once(chosen):
    if chosen == "triton":
        pytest.skip("triton: the interpreter truncates to bfloat16")
    for dtype in (torch.bfloat16, torch.float16):
        r, f = 4 * randn(50, 3, dtype=dtype), 4 * randn(50, 3, dtype=dtype, seed=1)
        for kind in KINDS:
            whole = discriminator_loss(r, f, kind=kind, reduction="none")
            wide = discriminator_loss(r.float(), f.float(), kind=kind, reduction="none")
            assert same_bits(whole, wide.to(dtype))
            mean = discriminator_loss(r, f, kind=kind)
            assert mean.dtype == torch.float32
            wide = discriminator_loss(r.float(), f.float(), kind=kind)
            if chosen == "cuda-on-host":  # a thread adds as many numbers as 16 bytes hold
                torch.testing.assert_close(mean, wide)
            else:
                assert same_bits(mean, wide)


def test_mixed_dtypes_are_promoted():
    r, f = randn(4, 1, dtype=torch.float16), randn(4, 1, dtype=torch.bfloat16, seed=1)
    assert discriminator_loss(r, f, reduction="none").dtype == torch.float32
    assert discriminator_loss(r, f.double()).dtype == F64


# ---- divergence and optimal discriminator


def _quantiles(mean, scale, n=4000):
    return torch.from_numpy(stats.norm(mean, scale).ppf((np.arange(n) + 0.5) / n))


def _log_density(x, mean, scale):
    return torch.distributions.Normal(mean, scale).log_prob(x)


def test_the_chapters_divergence():
    """N(1, 1) and N(-1, 1.5^2): JS = 0.2532 and -log 4 + 2 JS = -0.8799."""
    p, q = _quantiles(1.0, 1.0), _quantiles(-1.0, 1.5)

    def logits(x):
        return _log_density(x, 1.0, 1.0) - _log_density(x, -1.0, 1.5)

    js = js_divergence(logits(p), logits(q))
    assert js.item() == pytest.approx(0.2532, abs=1e-4)
    assert -discriminator_loss(logits(p), logits(q)).item() == pytest.approx(-0.8799, abs=2e-4)
    # Every other discriminator gives less.
    for a, b in ((0.5, 0.0), (2.0, 0.0), (1.0, 0.7), (0.0, 0.0)):
        assert js_divergence(a * logits(p) + b, a * logits(q) + b) < js
    assert js_divergence(torch.zeros(3), torch.zeros(5)) == pytest.approx(0.0, abs=1e-7)


def test_optimal_discriminator_is_p_over_p_plus_q():
    x = torch.linspace(-7, 7, 200, dtype=F64)
    log_p, log_q = _log_density(x, 1.0, 1.0), _log_density(x, -1.0, 1.5)
    p, q = log_p.exp(), log_q.exp()
    got = optimal_discriminator(log_p, log_q)
    torch.testing.assert_close(got, p / (p + q), rtol=1e-13, atol=0)
    torch.testing.assert_close(optimal_discriminator(log_q, log_p), 1 - got, rtol=1e-9, atol=1e-15)
    low = torch.tensor([-math.inf, -3e38, 0.0])
    high = torch.tensor([0.0, 3e38, -math.inf])
    assert optimal_discriminator(low, high).tolist() == [0.0, 0.0, 1.0]
    assert optimal_discriminator(low[:1], low[:1]).isnan()


# ---- penalties


def _norms(g):
    return g.double().flatten(1).norm(dim=1)


@each_dtype
def test_penalties_are_their_definitions_sample_by_sample(dtype):
    g = randn(5, 3, 7, dtype=dtype)
    norms = _norms(g)
    rtol = 1e-12 if dtype == F64 else 1e-6
    for center in (0.0, 1.0, 2.5):
        want = (norms - center) ** 2
        for word in ("mean", "batchmean", "sum", "sample"):
            got = gradient_penalty(g, center=center, reduction=word)
            assert got.dtype == (F64 if dtype == F64 else torch.float32)
            reduced = want if word == "sample" else want.sum() / (1 if word == "sum" else 5)
            torch.testing.assert_close(got.double(), reduced, rtol=rtol, atol=rtol)
        whole = gradient_penalty(g, center=center, reduction="none")
        assert whole.dtype == dtype and whole.shape == (5,)
    torch.testing.assert_close(r1_penalty(g).double(), norms.square().mean() / 2, rtol=rtol, atol=0)


def test_a_norm_over_the_whole_batch_is_another_penalty():
    """A common mistake: with all norms at the centre the penalty is 0, but not for one norm."""
    g = F.normalize(randn(8, 12, dtype=F64), dim=1)
    assert gradient_penalty(g).item() == pytest.approx(0.0, abs=1e-15)
    over_all = (g.norm() - 1) ** 2
    assert over_all.item() == pytest.approx((math.sqrt(8) - 1) ** 2)
    # And a sample's penalty does not depend on its batch.
    g = randn(6, 5)
    parts = [gradient_penalty(g[i : i + 1], reduction="sample") for i in range(6)]
    assert same_bits(gradient_penalty(g, reduction="sample"), torch.cat(parts))


@each_dtype
def test_at_a_zero_gradient_everything_is_finite(dtype):
    g = randn(4, 6, dtype=dtype)
    g[1] = 0
    g.requires_grad_()
    v = randn(4, 6, dtype=dtype, seed=1).requires_grad_()
    for penalty, slope in ((gradient_penalty, 0.0), (r1_penalty, 1.0)):
        value = penalty(g, reduction="sample")
        assert value[1] == (1.0 if penalty is gradient_penalty else 0.0)
        (first,) = torch.autograd.grad(value.sum(), g, create_graph=True)
        assert not first[1].any()
        (second,) = torch.autograd.grad((first * v).sum(), g, create_graph=True)
        assert torch.equal(second[1], slope * v[1])
        (third,) = torch.autograd.grad(second.square().sum(), g)
        assert all(torch.isfinite(x).all() for x in (value, first, second, third))
        assert not third[1].any()


@each_dtype
def test_at_an_infinite_gradient_the_second_derivative_is_the_limit_of_large_ones(dtype):
    g = randn(3, 6, dtype=dtype)
    g[1, 2] = math.inf
    v = randn(3, 6, dtype=dtype, seed=1)
    for penalty, slope in ((gradient_penalty, 2.0), (r1_penalty, 1.0)):
        x = g.clone().requires_grad_()
        value = penalty(x, reduction="sample")
        (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first * v).sum(), x)
        assert value[1] == math.inf and first[1, 2] == math.inf
        assert torch.equal(second[1], slope * v[1])
        assert torch.isfinite(second).all()


def test_no_gradient_overflows_or_vanishes_on_the_way():
    """Squares of these leave float16, and those of the last two float32 too; norms do not."""
    for dtype, size in (
        (torch.float16, 3e4), (torch.float16, 6e-8), (torch.float32, 1e30), (torch.float32, 1e-30),
    ):  # fmt: skip
        g = (size * randn(3, 400, dtype=F64).clamp(-2, 2)).to(dtype).requires_grad_()
        up = torch.tensor(1e-3 if size > 1 else 1.0)
        (got,) = torch.autograd.grad(gradient_penalty(g, reduction="sum"), g, up)
        norms = _norms(g.detach())[:, None]
        want = up * 2 * (1 - 1 / norms) * g.detach().double()
        assert torch.isfinite(got).all()
        limits = torch.finfo(dtype)
        torch.testing.assert_close(
            got.double(), want, rtol=2 * limits.eps, atol=limits.smallest_normal * limits.eps
        )
        v = randn(3, 400, dtype=dtype, seed=1)
        (first,) = torch.autograd.grad(r1_penalty(g, reduction="sum"), g, up, create_graph=True)
        (second,) = torch.autograd.grad(first, g, v)
        torch.testing.assert_close(second, (up * v.float()).to(dtype), rtol=limits.eps, atol=1e-7)


def test_penalties_of_half_precision_are_computed_wide():
    for dtype in (torch.bfloat16, torch.float16):
        g = randn(8, 300, dtype=dtype)
        assert same_bits(gradient_penalty(g), gradient_penalty(g.float()))
        assert same_bits(r1_penalty(g), r1_penalty(g.float()))


PENALTIES = {
    "gradient_penalty": lambda g: gradient_penalty(g),
    "sample": lambda g: gradient_penalty(g, center=0.5, reduction="sample"),
    "none": lambda g: gradient_penalty(g, reduction="none"),
    "r1": lambda g: r1_penalty(g),
    "r1 sum": lambda g: r1_penalty(g, reduction="sum"),
}


def test_penalties_of_subnormal_gradients():
    """Their norm's inverse is beyond float32: it was taken as 3.4e38."""
    approx, least = pytest.approx, 2.0**-149
    grads = torch.tensor([[1e-40, 0.0], [0.0, 2.0], [7 * least, 0.0]], requires_grad=True)
    penalty = gradient_penalty(grads, reduction="sum")
    (first,) = torch.autograd.grad(penalty, grads, create_graph=True)
    along = torch.tensor([[0.0, 1e-5], [1.0, 1.0], [1e-9, 1e-9]])
    (second,) = torch.autograd.grad(first, grads, along)
    assert first[1].tolist() == [0.0, 2.0]
    assert first[::2].tolist() == [[approx(-2.0, 1e-4), 0.0]] * 2  # 1e-40 has five digits
    assert second[:2].tolist() == [[0.0, approx(-2e35, 1e-4)], [1.0, 2.0]]
    # The last row's first number is 2e-9, a difference of terms as large as the second.
    across = -2e-9 / (7 * least)
    assert second[2].tolist() == [approx(0.0, abs=-1e-6 * across), approx(across, 1e-6)]


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_to_third_order(name, chosen):
    if chosen == "triton" and name not in ("gradient_penalty", "r1 sum"):
        pytest.skip("triton: the interpreter is slow; conformance checks its gradients")
    penalty, g = PENALTIES[name], leaf(3, 4)
    assert gradcheck(penalty, (g,), nondet_tol=0.0)
    assert gradgradcheck(penalty, (g,), nondet_tol=0.0)

    def slope(g):
        return torch.autograd.grad(penalty(g).sum(), g, create_graph=True)[0]

    assert gradgradcheck(slope, (g,), nondet_tol=0.0)


def _critic(dtype=F64):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(
        dtype
    )


def _input_gradients(critic, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(critic(x).sum(), x, create_graph=True)[0]


def test_penalties_through_a_network(chosen):
    """Derivatives of the penalty with respect to a critic's weights, to second order."""
    critic, x = _critic(), randn(3, 5, dtype=F64)
    names, weights = zip(*critic.named_parameters(), strict=True)

    def penalty(*values):
        def call(x):
            given = dict(zip(names, values, strict=True))
            return torch.func.functional_call(critic, given, (x,))

        return gradient_penalty(_input_gradients(call, x)) + r1_penalty(_input_gradients(call, x))

    assert gradcheck(penalty, weights, nondet_tol=0.0)
    if chosen != "triton":  # the interpreter is slow
        assert gradgradcheck(penalty, weights, fast_mode=True, nondet_tol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_wgan_gp_step_equals_the_eager_one(dtype):
    real, fake, w = randn(16, 5), randn(16, 5, seed=1), uniform(key(1), 16)

    def step(dtype, ours):
        critic = _critic(dtype)
        x, y, weights = real.to(dtype), fake.to(dtype), w.to(dtype)
        if ours:
            between = interpolate(x, y, noise=weights)
            loss = discriminator_loss(critic(x), critic(y), kind="wasserstein")
            loss = loss + 10 * gradient_penalty(_input_gradients(critic, between))
        else:
            between = weights[:, None] * x + (1 - weights[:, None]) * y
            norms = _input_gradients(critic, between).norm(2, dim=1)
            loss = critic(y).mean() - critic(x).mean() + 10 * ((norms - 1) ** 2).mean()
        loss.backward()
        return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in critic.parameters())])

    exact = step(F64, False)
    error = (step(dtype, False) - exact).abs().max()
    ours = (step(dtype, True).double() - exact).abs().max()
    assert ours <= 2 * error + torch.finfo(dtype).eps * exact.abs().max()


def test_lazy_regularisation_has_the_expected_gradient_of_every_step():
    """R1 every k steps, times k, is R1 at each step on average."""
    critic, x = _critic(), randn(8, 5, dtype=F64)
    k = 4

    def gradient(weight):
        penalty = weight * r1_penalty(_input_gradients(critic, x))
        return torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(penalty, critic.parameters(), allow_unused=True)
                if g is not None
            ]
        )

    lazy = sum(gradient(k if step % k == 0 else 0) for step in range(2 * k)) / (2 * k)
    torch.testing.assert_close(lazy, gradient(1.0), rtol=1e-13, atol=0)


def test_penalties_of_large_samples_do_not_depend_on_threads():
    for shape in ((3, 50_000), (20, 3, 40, 40), (5000, 3)):
        g, v = randn(*shape).requires_grad_(), randn(*shape, seed=1)
        results = []
        for count in (1, 2, 3):
            with threads(count):
                value = gradient_penalty(g)
                (first,) = torch.autograd.grad(value, g, create_graph=True)
                results.append((value, first, *torch.autograd.grad(first, g, v)))
        for other in results[1:]:
            assert all(map(same_bits, results[0], other))


# ---- interpolation


def test_the_weights_are_those_of_uniform():
    real, fake = torch.ones(5, 2, 3), torch.zeros(5, 2, 3)
    keys = split(key(2), 5)
    for given, want in (
        (key(2), uniform(key(2), 5)),
        (keys, uniform(keys, 5, 1)[:, 0]),
        (key(2).view(torch.int64), uniform(key(2), 5)),
    ):
        points = interpolate(real, fake, key=given)
        assert same_bits(points, want[:, None, None].expand(5, 2, 3).contiguous())
    double = interpolate(real.double(), fake.double(), key=key(2))
    assert same_bits(double[:, 0, 0], uniform(key(2), 5, dtype=F64))


def test_interpolation_is_on_the_line():
    real, fake = randn(6, 4, dtype=F64), randn(6, 4, dtype=F64, seed=1)
    w = torch.linspace(0, 1, 6, dtype=F64)
    got = interpolate(real, fake, noise=w)
    torch.testing.assert_close(got, torch.lerp(fake, real, w[:, None]), rtol=1e-14, atol=1e-15)
    assert same_bits(got[0], fake[0]) and same_bits(got[-1], real[-1])


def test_a_samples_weight_does_not_depend_on_its_batch():
    real, fake, keys = randn(5, 3), randn(5, 3, seed=1), split(key(3), 5)
    whole = interpolate(real, fake, key=keys)
    parts = [interpolate(real[i:j], fake[i:j], key=keys[i:j]) for i, j in ((0, 2), (2, 5))]
    assert same_bits(whole, torch.cat(parts))


def test_half_precision_points_use_unrounded_weights(chosen):
    if chosen == "triton":
        pytest.skip("triton: the interpreter truncates to bfloat16")
    real, fake = randn(9, 7, dtype=torch.bfloat16), randn(9, 7, dtype=torch.bfloat16, seed=1)
    wide = interpolate(real.float(), fake.float(), key=key(1))
    assert same_bits(interpolate(real, fake, key=key(1)), wide.bfloat16())


def test_new_weights_are_governed_by_manual_seed():
    real, fake = torch.ones(4, 1), torch.zeros(4, 1)
    torch.manual_seed(3)
    a, b = interpolate(real, fake), interpolate(real, fake)
    torch.manual_seed(3)
    assert same_bits(interpolate(real, fake), a) and not torch.equal(a, b)
    one, two = (
        interpolate(real, fake, generator=torch.Generator().manual_seed(9)) for _ in range(2)
    )
    assert same_bits(one, two)


def test_layouts_of_points():
    real = randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    fake = randn(2, 3, 4, 5, seed=1)
    got = interpolate(real, fake, key=key(1))
    assert got.stride() == real.stride()
    assert torch.equal(got, interpolate(real.contiguous(), fake, key=key(1)))


# ---- the family's gradients

GRADIENTS = {
    "discriminator minimax": (
        lambda r, f: discriminator_loss(r, f, label_smoothing=0.1),
        [(3, 2), (3, 2)],
    ),
    "discriminator shapes": (lambda r, f: discriminator_loss(r, f), [(3, 2), (4,)]),
    "discriminator squares": (
        lambda r, f: discriminator_loss(r, f, kind="least_squares", reduction="sample"),
        [(3, 2), (3, 2)],
    ),
    "discriminator relativistic": (
        lambda r, f: discriminator_loss(r, f, kind="relativistic", reduction="none"),
        [(3, 2), (3, 2)],
    ),
    "generator minimax": (lambda f: generator_loss(f, kind="minimax"), [(3, 2)]),
    "generator non_saturating": (lambda f: generator_loss(f, reduction="none"), [(3, 2)]),
    "generator relativistic": (
        lambda f, r: generator_loss(f, r, kind="relativistic"),
        [(3, 2), (3, 2)],
    ),
    "interpolate key": (lambda x, y: interpolate(x, y, key=key(1)), [(3, 2), (3, 2)]),
    "interpolate noise": (lambda x, y, w: interpolate(x, y, noise=w), [(3, 2), (3, 2), (3,)]),
    "optimal_discriminator": (optimal_discriminator, [(3, 2), (3, 2)]),
    "js_divergence": (js_divergence, [(3, 2), (4, 1)]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradcheck_to_second_order(name, chosen):
    if chosen == "triton" and name not in ("discriminator minimax", "interpolate noise"):
        pytest.skip("triton: the interpreter is slow; conformance checks its gradients")
    function, shapes = GRADIENTS[name]
    inputs = tuple(leaf(*shape, seed=i) for i, shape in enumerate(shapes))
    assert gradcheck(function, inputs, nondet_tol=0.0)
    assert gradgradcheck(function, inputs, fast_mode=True, nondet_tol=0.0)


def test_under_compile_and_torch_func():
    torch._dynamo.reset()
    critic, real, fake = _critic(torch.float32), randn(6, 5), randn(6, 5, seed=1)

    def losses(x, y, k):
        between = interpolate(x, y, key=k)
        d = discriminator_loss(critic(x), critic(y), kind="hinge") + js_divergence(x, y)
        return d + generator_loss(critic(y)) + gradient_penalty(between) + r1_penalty(between)

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    values = [f(real, fake, key(1)) for f in (compiled, losses)]
    torch.testing.assert_close(*values)
    for got, want in zip(
        *(torch.autograd.grad(v, list(critic.parameters())) for v in values), strict=True
    ):
        torch.testing.assert_close(got, want)
    per_sample = torch.vmap(lambda g: gradient_penalty(g[None]))(real)
    assert same_bits(per_sample, gradient_penalty(real, reduction="sample"))
    jacobian = torch.func.jacrev(lambda f: generator_loss(f, reduction="sum"))(fake.double())
    torch.testing.assert_close(jacobian, -torch.sigmoid(-fake.double()), rtol=1e-12, atol=0)
    hessian = torch.func.jacrev(torch.func.jacrev(r1_penalty))(torch.zeros(1, 3, dtype=F64))
    torch.testing.assert_close(hessian.reshape(3, 3), torch.eye(3, dtype=F64))


# ---- clipping


def test_clip_weights_of_any_shapes_and_dtypes():
    params = [
        torch.nn.Parameter(randn(3, 4)), randn(7, dtype=F64, seed=1), randn(dtype=torch.float16),
        randn(2, 5, dtype=torch.bfloat16, seed=2).t(), torch.zeros(0, 3), torch.tensor(math.nan),
        torch.nn.Parameter(randn(90, 100, seed=3)), randn(100, 200, dtype=F64, seed=4).t()[::2],
    ]  # fmt: skip
    copies = [p.detach().clone() for p in params]
    assert clip_weights_(iter(params), 0.25) is None
    for p, copy in zip(params, copies, strict=True):
        torch.testing.assert_close(
            p.detach(), copy.clamp(-0.25, 0.25), rtol=0, atol=0, equal_nan=True
        )
    assert params[0].is_leaf and params[0].grad_fn is None
    clip_weights_(params[0], 0.125)
    assert params[0].abs().max() == 0.125
    clip_weights_([], 1.0)


def test_clip_weights_writes_nothing_where_one_parameter_is_bad():
    for bad in (
        torch.zeros(2, dtype=torch.int64),
        torch.ones(1).expand(3),
        torch.ones(7).as_strided((4, 4), (1, 1)),
        "weight",
    ):
        good = torch.full((3,), 5.0)
        with pytest.raises((TypeError, ValueError)):
            clip_weights_([good, bad], 1.0)
        assert torch.equal(good, torch.full((3,), 5.0))
