"""The public functions of the diffusion family against NumPy in float64, and what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from support import each_dtype, randn, same_bits, skip_if_refused

import genkern
from genkern._ops.op import BACKENDS, OPS
from genkern.diffusion import (
    EDMSchedule,
    FlowSchedule,
    NoiseSchedule,
    ddim_step,
    ddpm_step,
    hybrid_loss,
    noise_loss,
    predict_x0,
    prior_kl,
    q_posterior,
    q_sample,
    sample,
    score,
    vlb_terms,
)
from genkern.random import key, normal, split

F32, F64 = torch.float32, torch.float64
T = 50
SCHEDULE = NoiseSchedule.linear(T, 1e-3, 0.2)
ABAR = np.cumprod(1 - np.linspace(1e-3, 0.2, T))
KINDS = NoiseSchedule.prediction_types
VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")
SHAPE = (4, 2, 3, 5)
TIMES = torch.tensor([0, 1, 20, 49])
PREVS = torch.tensor([-1, 0, 7, 48])


@pytest.fixture(autouse=True, params=[b.name for b in BACKENDS if b.name != "triton"])
def chosen(request):
    """Every test runs with each backend chosen."""
    backend = next(b for b in BACKENDS if b.name == request.param)
    x = torch.zeros(2, 3)
    for name, args in (
        ("affine", (x, None, None, None, None, torch.zeros(1, 4), None)),
        ("normal", (key(0), [2], F32)),
    ):
        skip_if_refused(backend, OPS[name], args)
    with genkern.use_backend(request.param):
        yield request.param


def tensors(count: int, dtype=F64, shape=SHAPE) -> list[torch.Tensor]:
    return [randn(*shape, dtype=dtype, seed=s) for s in range(count)]


def near(got: torch.Tensor, want: np.ndarray, rtol: float = 1e-9) -> None:
    """Equal in float64, up to the conditioning of the coefficients (1 - abar_0 = 1e-3)."""
    scale = np.abs(want).max() if want.size else 0.0
    np.testing.assert_allclose(got.numpy(), want, rtol=rtol, atol=1e-12 * scale)


def column(values, dims: int = 4) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(-1, *[1] * (dims - 1))


# ---- the mathematics, once more


def exact_forms(kind: str, a: np.ndarray, x: np.ndarray, pred: np.ndarray):
    """x0 and the noise."""
    alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
    if kind == "epsilon":
        return (x - sigma * pred) / alpha, pred
    if kind == "sample":
        return pred, (x - alpha * pred) / sigma
    return alpha * x - sigma * pred, sigma * x + alpha * pred


def exact_target(kind: str, a: np.ndarray, x0: np.ndarray, eps: np.ndarray) -> np.ndarray:
    if kind == "v_prediction":
        return np.sqrt(a) * eps - np.sqrt(1 - a) * x0
    return eps if kind == "epsilon" else x0


def exact_posterior(a, before, x0, x_t):
    beta = 1 - a / before
    mean = (
        np.sqrt(before) * beta / (1 - a) * x0 + np.sqrt(a / before) * (1 - before) / (1 - a) * x_t
    )
    return mean, (1 - before) / (1 - a) * beta, beta


def exact_log_variance(kind, a, before, values):
    """The model's log-variance; at the end that of step 1."""
    _, small, beta = exact_posterior(a, before, 0.0, 0.0)
    _, first, _ = exact_posterior(ABAR[1], ABAR[0], 0.0, 0.0)
    clipped = np.log(np.where(before == 1.0, first, np.maximum(small, 1e-300)))
    if kind == "fixed_small":
        return clipped
    if kind == "fixed_large":
        return np.where(before == 1.0, clipped, np.log(beta))
    if kind == "learned":
        return values
    v = (values + 1) / 2
    return v * np.log(beta) + (1 - v) * clipped


def levels(t, prev) -> tuple[np.ndarray, np.ndarray]:
    t, prev = np.asarray(t), np.asarray(prev)
    return column(ABAR[t]), column(np.where(prev < 0, 1.0, ABAR[prev]))


# ---- noising and losses


@each_dtype
def test_q_sample(dtype):
    x0, noise = tensors(2, dtype)
    a = column(ABAR[TIMES])
    want = np.sqrt(a) * x0.double().numpy() + np.sqrt(1 - a) * noise.double().numpy()
    got = q_sample(x0, TIMES, SCHEDULE, noise=noise)
    assert got.dtype == dtype
    epsilon = torch.finfo(dtype).eps
    size = np.sqrt(a) * x0.double().abs().numpy() + np.sqrt(1 - a) * noise.double().abs().numpy()
    # Two coefficients, two products and a sum in the arithmetic, then one rounding.
    wide = max(2.0**-52, 2.0**-23 if dtype != F64 else 0.0)
    bound = 0.5 * epsilon * np.abs(want) + (2.5 * wide + (1e-13 if dtype == F64 else 0)) * size
    assert (np.abs(got.double().numpy() - want) <= bound).all()


def test_every_way_to_say_the_step():
    x0, noise = tensors(2, F32)
    whole = q_sample(x0, TIMES, SCHEDULE, noise=noise)
    for b, t in enumerate(TIMES.tolist()):
        for one in (t, torch.tensor(t), torch.tensor([t]), np.int64(t)):
            part = q_sample(x0[b : b + 1], one, SCHEDULE, noise=noise[b : b + 1])
            assert same_bits(part[0], whole[b])
    same = torch.full((4,), 20)
    for one in (20, torch.tensor(20)):
        assert same_bits(
            q_sample(x0, one, SCHEDULE, noise=noise), q_sample(x0, same, SCHEDULE, noise=noise)
        )
    # prev_t likewise.
    many = ddim_step(x0, noise, TIMES, SCHEDULE, prev_t=PREVS)
    for b, (t, p) in enumerate(zip(TIMES.tolist(), PREVS.tolist(), strict=True)):
        for now, then in itertools.product((t, torch.tensor(t)), (p, torch.tensor([p]))):
            part = ddim_step(x0[b : b + 1], noise[b : b + 1], now, SCHEDULE, prev_t=then)
            assert same_bits(part[0], many[b])
    default = ddim_step(x0, noise, TIMES, SCHEDULE)
    assert same_bits(default, ddim_step(x0, noise, TIMES, SCHEDULE, prev_t=TIMES - 1))
    assert same_bits(
        ddim_step(x0, noise, 20, SCHEDULE), ddim_step(x0, noise, 20, SCHEDULE, prev_t=19)
    )


def test_the_noise_of_a_key_is_that_of_normal():
    x0 = randn(*SHAPE)
    for k in (key(3), split(key(3), 4)):
        eps = normal(k, *SHAPE)
        x_t = q_sample(x0, TIMES, SCHEDULE, key=k)
        assert same_bits(x_t, q_sample(x0, TIMES, SCHEDULE, noise=eps))
        for kind in KINDS:
            pred = randn(*SHAPE, seed=1)
            losses = [
                noise_loss(pred, x0, TIMES, SCHEDULE, prediction_type=kind, **source)
                for source in ({"key": k}, {"noise": eps})
            ]
            assert same_bits(*losses)
    half = x0.bfloat16()
    # A network of another precision: the noise stays that of x0.
    k = key(4)
    eps = normal(k, *SHAPE)
    loss = noise_loss(eps.double(), x0, TIMES, SCHEDULE, key=k)
    assert loss.dtype == F64 and loss.item() == 0.0
    loss = noise_loss(eps, half, TIMES, SCHEDULE, key=k)
    assert loss.dtype == F32 and loss.item() == 0.0
    x0 = x0.double()
    eps = normal(k, *SHAPE, dtype=F64)
    assert noise_loss(eps.float(), x0, TIMES, SCHEDULE, key=k).item() < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_noise_loss(kind):
    pred, x0, eps = tensors(3)
    a = column(ABAR[TIMES])
    error = pred.numpy() - exact_target(kind, a, x0.numpy(), eps.numpy())
    snr = a / (1 - a)
    a_b, before_b = column(ABAR), column(np.append(1.0, ABAR[:-1]))
    beta = 1 - a_b / before_b
    small = (1 - before_b) / (1 - a_b) * beta
    with np.errstate(divide="ignore"):
        vlb = beta**2 / (2 * small * (1 - beta) * (1 - a_b))
    vlb[0] = vlb[1]
    by_step = torch.linspace(0.1, 2.0, T, dtype=F64)
    to_epsilon = {"epsilon": 1.0, "sample": snr, "v_prediction": a}[kind]
    weights = {
        None: 1.0,
        "vlb": vlb[TIMES] * to_epsilon,
        "min_snr": np.minimum(snr, 5.0)
        / {"epsilon": snr, "sample": 1.0, "v_prediction": snr + 1}[kind],
        "tensor": column(by_step[TIMES]),
    }
    each = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=F64)
    for word, weight in weights.items():
        for sample_weight in (None, each):
            want = weight * error**2
            if sample_weight is not None:
                want = want * column(each)
            options = {
                "weighting": by_step if word == "tensor" else word,
                "sample_weight": sample_weight,
                "noise": eps,
                "prediction_type": kind,
            }
            for reduction, value in (
                ("none", want),
                ("mean", want.mean()),
                ("sum", want.sum()),
                ("batchmean", want.sum() / 4),
                ("sample", want.sum((1, 2, 3))),
            ):
                got = noise_loss(pred, x0, TIMES, SCHEDULE, reduction=reduction, **options)
                near(got, np.asarray(value))
            one = noise_loss(pred[2:3], x0[2:3], 20, SCHEDULE, **{
                **options,
                "noise": eps[2:3],
                "sample_weight": None if sample_weight is None else each[2:3],
            })  # fmt: skip
            near(one, np.asarray(want[2].mean()))


def test_weights_of_steps_get_gradients():
    pred, x0, eps = tensors(3)
    by_step = torch.ones(T, dtype=F64, requires_grad=True)
    per_sample = torch.ones(4, dtype=F64, requires_grad=True)
    loss = noise_loss(
        pred, x0, TIMES, SCHEDULE, noise=eps, weighting=by_step, sample_weight=per_sample,
        reduction="sum",
    )  # fmt: skip
    by_steps, by_samples = torch.autograd.grad(loss, (by_step, per_sample))
    want = (pred - eps).square().sum((1, 2, 3))
    torch.testing.assert_close(by_samples, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(by_steps[TIMES], want, rtol=1e-12, atol=0)
    assert by_steps.count_nonzero() == 4


def test_losses_without_noise():
    pred, x0 = tensors(2)
    got = noise_loss(pred, x0, TIMES, SCHEDULE, prediction_type="sample")
    near(got, np.asarray((pred - x0).square().mean()))


# ---- x0, score, posterior


@pytest.mark.parametrize("kind", KINDS)
def test_predict_x0(kind):
    x, pred = tensors(2)
    want = exact_forms(kind, column(ABAR[TIMES]), x.numpy(), pred.numpy())[0]
    near(predict_x0(x, pred, TIMES, SCHEDULE, prediction_type=kind), want)


def test_score():
    (eps,) = tensors(1)
    near(score(eps, TIMES, SCHEDULE), -eps.numpy() / np.sqrt(1 - column(ABAR[TIMES])))


def test_q_posterior():
    x0, x_t = tensors(2)
    for prev in (None, PREVS):
        a, before = levels(TIMES, TIMES - 1 if prev is None else prev)
        mean, variance, log_variance = q_posterior(x0, x_t, TIMES, SCHEDULE, prev_t=prev)
        want, small, _ = exact_posterior(a, before, x0.numpy(), x_t.numpy())
        near(mean, want)
        assert variance.shape == log_variance.shape == SHAPE and variance.dtype == F64
        near(variance, np.broadcast_to(small, SHAPE))
        near(
            log_variance,
            np.broadcast_to(exact_log_variance("fixed_small", a, before, None), SHAPE),
        )
    half = q_posterior(x0.bfloat16(), x_t.bfloat16(), 3, SCHEDULE)
    assert [x.dtype for x in half] == [torch.bfloat16, F32, F32]
    mean, variance, _ = q_posterior(x0, x_t, 0, SCHEDULE)
    near(mean, x0.numpy())
    assert (variance == 0).all()


# ---- steps


def exact_step(
    x, pred, t, prev, kind, *, variance=None, values=None, noise=0.0, eta=None, clip=None,
    threshold=None, rederive=False, uncond=None, scale=1.0, rescale=0.0,
):  # fmt: skip
    a, before = levels(t, prev)
    if uncond is not None:
        guided = uncond + scale * (pred - uncond)
        axes = tuple(range(1, pred.ndim))
        ratio = pred.std(axes, ddof=1, keepdims=True) / guided.std(axes, ddof=1, keepdims=True)
        pred = guided * (rescale * ratio + 1 - rescale)
    x0, eps = exact_forms(kind, a, x, pred)
    if threshold is not None:
        s = np.quantile(np.abs(x0).reshape(len(x), -1), threshold[0], axis=1)
        s = column(np.minimum(np.maximum(s, 1.0), threshold[1]), x.ndim)
        x0 = np.clip(x0, -s, s) / s
    elif clip is not None:
        x0 = np.clip(x0, *clip)
    if eta is None:
        mean, small, beta = exact_posterior(a, before, x0, x)
        if variance == "fixed_small":
            std = np.sqrt(small)
        elif variance == "fixed_large":
            std = np.sqrt(beta)
        else:
            std = np.exp(0.5 * exact_log_variance(variance, a, before, values))
        return mean + np.where(before == 1.0, 0.0, std) * noise
    if rederive:
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    sigma = eta * np.sqrt(exact_posterior(a, before, 0.0, 0.0)[1])
    return np.sqrt(before) * x0 + np.sqrt(1 - before - sigma**2) * eps + sigma * noise


TRUNCATIONS = {
    "free": {},
    "clip": {"clip_range": 0.8},
    "range": {"clip_range": (-0.5, 1.2)},
    "threshold": {"threshold": (0.9, 1.5)},
}


def exact_truncation(options):
    clip = options.get("clip_range")
    if isinstance(clip, float):
        clip = (-clip, clip)
    return {"clip": clip, "threshold": options.get("threshold")}


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_ddpm_step(kind, variance, truncation):
    options = TRUNCATIONS[truncation]
    x, pred, values, noise, uncond = tensors(5)
    learned = variance.startswith("learned")
    output = torch.cat((pred, values), 1) if learned else pred
    for prev, guidance in itertools.product((None, PREVS), (None, (3.0, 0.0), (2.0, 0.7))):
        t, p = TIMES.numpy(), (TIMES - 1 if prev is None else prev).numpy()
        guided, exact_guided = {}, {}
        if guidance is not None:
            guided = {
                "uncond": uncond, "guidance_scale": guidance[0], "guidance_rescale": guidance[1]
            }  # fmt: skip
            exact_guided = {
                "uncond": uncond.numpy(), "scale": guidance[0], "rescale": guidance[1]
            }  # fmt: skip
        got = ddpm_step(
            x, output, TIMES, SCHEDULE, noise=noise, prev_t=prev, prediction_type=kind,
            variance_type=variance, **options, **guided,
        )  # fmt: skip
        want = exact_step(
            x.numpy(), pred.numpy(), t, p, kind, variance=variance, values=values.numpy(),
            noise=noise.numpy(), **exact_truncation(options), **exact_guided,
        )  # fmt: skip
        near(got, want)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim_step(kind, eta, truncation):
    options = TRUNCATIONS[truncation]
    x, pred, noise, uncond = tensors(4)
    for rederive in (False, True):
        got = ddim_step(
            x, pred, TIMES, SCHEDULE, noise=noise, prev_t=PREVS, eta=eta, prediction_type=kind,
            use_clipped_model_output=rederive, uncond=uncond, guidance_scale=1.5, **options,
        )  # fmt: skip
        want = exact_step(
            x.numpy(), pred.numpy(), TIMES.numpy(), PREVS.numpy(), kind, eta=eta,
            noise=noise.numpy(), rederive=rederive, uncond=uncond.numpy(), scale=1.5,
            **exact_truncation(options),
        )  # fmt: skip
        near(got, want)


def test_guidance_of_a_learned_variance_takes_both_forms_of_uncond():
    x, pred, values, other = tensors(4)
    output, uncond = torch.cat((pred, values), 1), torch.cat((other, -values), 1)
    options = {"key": key(1), "variance_type": "learned_range", "guidance_scale": 4.0}
    whole = ddpm_step(x, output, 20, SCHEDULE, uncond=uncond, **options)
    assert same_bits(whole, ddpm_step(x, output, 20, SCHEDULE, uncond=other, **options))


def test_a_step_with_the_truth_lands_on_the_posterior():
    x0, eps = tensors(2)
    x_t = q_sample(x0, 30, SCHEDULE, noise=eps)
    zero = torch.zeros_like(x0)
    got = ddpm_step(x_t, eps, 30, SCHEDULE, noise=zero)
    torch.testing.assert_close(got, q_posterior(x0, x_t, 30, SCHEDULE)[0], rtol=1e-10, atol=1e-11)
    for t, prev in ((30, 10), (30, -1)):
        got = ddim_step(x_t, eps, t, SCHEDULE, prev_t=prev)
        want = x0 if prev < 0 else q_sample(x0, prev, SCHEDULE, noise=eps)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_no_noise_is_drawn_where_none_is_added():
    x, pred = tensors(2, F32)
    state = torch.get_rng_state()
    step = ddpm_step(x, pred, 0, SCHEDULE, variance_type="fixed_large")
    assert same_bits(step, ddpm_step(x, pred, 0, SCHEDULE, key=key(1), variance_type="fixed_large"))
    ddpm_step(x, pred, 7, SCHEDULE, prev_t=-1)
    ddim_step(x, pred, TIMES, SCHEDULE)
    ddim_step(x, pred, 7, SCHEDULE, prev_t=-1, eta=1.0)
    assert torch.equal(state, torch.get_rng_state())
    # With a tensor the noise is drawn, and added where prev_t >= 0.
    got = ddpm_step(x, pred, TIMES, SCHEDULE, key=key(1), prev_t=PREVS)
    still = ddpm_step(x, pred, TIMES, SCHEDULE, noise=torch.zeros_like(x), prev_t=PREVS)
    assert same_bits(got[0], still[0])
    assert (got[1:] != still[1:]).any(dim=1).any()
    torch.manual_seed(1)
    first = ddpm_step(x, pred, 7, SCHEDULE)
    torch.manual_seed(1)
    assert same_bits(first, ddpm_step(x, pred, 7, SCHEDULE))
    assert not torch.equal(first, ddpm_step(x, pred, 7, SCHEDULE))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_no_noise_is_added_at_the_last_step_whatever_it_is(dtype):
    """A step's tensor says what its integer says, where noise or learned variance overflow."""
    x, pred = tensors(2, dtype)
    pred = torch.cat((pred, torch.full_like(pred, 3000.0)), dim=1)
    last = torch.zeros(len(x), dtype=torch.int64)
    want = ddpm_step(x, pred, 0, SCHEDULE, variance_type="learned")
    for source in ({"key": key(1)}, {"noise": torch.full_like(x, math.inf)}):
        got = ddpm_step(x, pred, last, SCHEDULE, variance_type="learned", **source)
        assert torch.isfinite(got).all() and torch.equal(got, want)


def test_out_and_in_place():
    x, pred, uncond = tensors(3, F32)
    for step, options in (
        (ddpm_step, {"key": key(1), "clip_range": 1.0}),
        (ddpm_step, {"key": split(key(1), 4), "uncond": uncond, "guidance_scale": 2.0}),
        (ddpm_step, {"key": key(1), "threshold": (0.9, 2.0)}),
        (ddim_step, {}),
    ):
        for t in (20, TIMES):
            want = step(x, pred, t, SCHEDULE, **options)
            out = torch.empty_like(x)
            assert step(x, pred, t, SCHEDULE, out=out, **options) is out
            assert same_bits(out, want)
            inside = x.clone()
            assert step(inside, pred, t, SCHEDULE, out=inside, **options) is inside
            assert same_bits(inside, want)
    strided = torch.empty(4, 5, 3, 2).permute(0, 3, 2, 1)
    ddim_step(x, pred, 20, SCHEDULE, out=strided)
    assert torch.equal(strided, ddim_step(x, pred, 20, SCHEDULE))
    # The other half of the same memory is disjoint, though its addresses lie in between.
    shared = torch.cat((x, x), 1)
    first, second = shared.chunk(2, 1)
    ddim_step(first, pred, 20, SCHEDULE, out=second)
    assert same_bits(first, x) and same_bits(second, ddim_step(x, pred, 20, SCHEDULE))
    # The halves of a network's output are read where they are.
    both = torch.cat((pred, uncond), 1)
    inside = x.clone()
    options = {"key": key(2), "variance_type": "learned_range"}
    ddpm_step(inside, both, 20, SCHEDULE, out=inside, **options)
    assert same_bits(inside, ddpm_step(x, both, 20, SCHEDULE, **options))
    needs = x.clone().requires_grad_()
    with torch.no_grad():
        ddim_step(needs, pred, 20, SCHEDULE, out=torch.empty_like(x))


def test_mixed_dtypes_are_promoted():
    x, pred = randn(2, 3), randn(2, 3, seed=1)
    want = ddpm_step(x, pred.bfloat16().float(), 20, SCHEDULE, key=key(1))
    assert same_bits(ddpm_step(x, pred.bfloat16(), 20, SCHEDULE, key=key(1)), want)
    got = q_sample(x.bfloat16(), 20, SCHEDULE, noise=pred)
    assert got.dtype == F32
    assert q_posterior(x, x.double(), 3, SCHEDULE)[0].dtype == F64


def test_autocast_leaves_the_precision_alone():
    x, pred = randn(2, 3), randn(2, 3, seed=1).bfloat16()
    calls = (
        lambda: ddpm_step(x, pred, 20, SCHEDULE, key=key(1), clip_range=1.0),
        lambda: noise_loss(pred, x, 20, SCHEDULE, key=key(1)),
        lambda: ddim_step(x, pred, 20, NoiseSchedule.linear(30), prev_t=3),
    )
    for call in calls:
        outside = call()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert same_bits(call(), outside)


# ---- the bound


def exact_vlb(kind, variance, pred, values, x0, eps, clip=None):
    """Nats of each element, all x_t at TIMES."""
    a, before = levels(TIMES, TIMES - 1)
    x_t = np.sqrt(a) * x0 + np.sqrt(1 - a) * eps
    x0_hat = exact_forms(kind, a, x_t, pred)[0]
    if clip is not None:
        x0_hat = np.clip(x0_hat, *clip)
    true_mean, _, _ = exact_posterior(a, before, x0, x_t)
    mean, _, _ = exact_posterior(a, before, x0_hat, x_t)
    true_lv = exact_log_variance("fixed_small", a, before, None)
    lv = exact_log_variance(variance, a, before, values)
    kl = 0.5 * (lv - true_lv - 1 + np.exp(true_lv - lv) + (true_mean - mean) ** 2 * np.exp(-lv))
    std = np.broadcast_to(np.exp(0.5 * lv), x0.shape)
    low = np.where(x0 < -0.999, -np.inf, x0 - 1 / 255)
    high = np.where(x0 > 0.999, np.inf, x0 + 1 / 255)
    left = (low + high > 2 * x0_hat) & np.isfinite(high) | np.isinf(high)
    # Differences of the smaller tails.
    upper = stats.norm.sf(low, x0_hat, std) - stats.norm.sf(high, x0_hat, std)
    lower = stats.norm.cdf(high, x0_hat, std) - stats.norm.cdf(low, x0_hat, std)
    nll = -np.log(np.where(left, upper, lower))
    return np.where(before == 1.0, nll, kl)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_vlb_terms(kind, variance):
    x0, eps, pred, values = tensors(4)
    x0 = (x0 / 2).clamp(-1, 1)
    # A good prediction: the terms are of a size that matters.
    a = column(ABAR[TIMES])
    pred = torch.from_numpy(exact_target(kind, a, x0.numpy(), eps.numpy())) + 0.02 * pred
    values = values.clamp(-1, 1) if variance == "learned_range" else values - 4
    output = torch.cat((pred, values), 1) if variance.startswith("learned") else pred
    for clip in (None, 0.6):
        bounds = None if clip is None else (-clip, clip)
        each = exact_vlb(kind, variance, *(v.numpy() for v in (pred, values, x0, eps)), bounds)
        finite = np.isfinite(each)
        call = lambda reduction, units="nats", clip=clip: vlb_terms(  # noqa: E731
            output, x0, TIMES, SCHEDULE, noise=eps, prediction_type=kind, variance_type=variance,
            clip_range=clip, units=units, reduction=reduction,
        )  # fmt: skip
        got = call("none")
        # The oracle's log of a difference of tails has no more digits than this.
        np.testing.assert_allclose(got.numpy()[finite], each[finite], rtol=1e-7, atol=1e-9)
        assert torch.isfinite(got).all()
        if finite.all():
            total = each.sum((1, 2, 3))
            np.testing.assert_allclose(call("sample"), total, rtol=1e-7)
            np.testing.assert_allclose(call("sample", "bits"), total / math.log(2), rtol=1e-7)
            np.testing.assert_allclose(
                call("sample", "bits/dim"), total / math.log(2) / 30, rtol=1e-7
            )
            np.testing.assert_allclose(call("mean"), each.mean(), rtol=1e-7)


def test_prior_kl():
    (x0,) = tensors(1)
    a = ABAR[-1]
    want = 0.5 * (a * x0.numpy() ** 2 - a - np.log1p(-a))
    near(prior_kl(x0, SCHEDULE), want.sum((1, 2, 3)), 1e-8)
    near(prior_kl(x0, SCHEDULE, units="bits/dim"), want.sum((1, 2, 3)) / math.log(2) / 30, 1e-8)
    near(prior_kl(x0, SCHEDULE, reduction="none"), want, 1e-8)
    assert (prior_kl(x0, SCHEDULE.zero_terminal_snr()) == 0).all()


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_hybrid_loss(variance):
    x0, eps, pred, values = tensors(4)
    x0 = (x0 / 2).clamp(-1, 1)
    pred = (eps + 0.1 * pred).requires_grad_()
    values = (values.clamp(-1, 1) - (0 if variance == "learned_range" else 4)).requires_grad_()
    output = torch.cat((pred, values), 1)
    options = {"noise": eps, "variance_type": variance}
    simple = noise_loss(pred, x0, TIMES, SCHEDULE, noise=eps)
    bound = vlb_terms(output, x0, TIMES, SCHEDULE, units="bits", reduction="mean", **options)
    got = hybrid_loss(output, x0, TIMES, SCHEDULE, vlb_weight=0.003, **options)
    torch.testing.assert_close(got, simple + 0.003 * T * bound, rtol=1e-12, atol=0)
    by_mean, by_values = torch.autograd.grad(got, (pred, values), retain_graph=True)
    (want_mean,) = torch.autograd.grad(simple, pred)
    (want_values,) = torch.autograd.grad(0.003 * T * bound, values)
    torch.testing.assert_close(by_mean, want_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(by_values, want_values, rtol=1e-12, atol=0)
    # By default guided-diffusion's weight: the mean of the bound's bits, times T / 1000.
    default = hybrid_loss(output, x0, TIMES, SCHEDULE, **options)
    torch.testing.assert_close(default, simple + T / 1000 * bound, rtol=1e-12, atol=0)


# ---- no signal


def test_zero_terminal_snr():
    schedule = NoiseSchedule.linear(T).zero_terminal_snr()
    x, pred, noise = tensors(3, F32)
    last = torch.tensor([T - 1, 3, 4, T - 1])
    for kind in ("v_prediction", "sample"):
        for t in (T - 1, last):
            options = {"prediction_type": kind}
            found = [
                q_sample(x, t, schedule, noise=noise),
                predict_x0(x, pred, t, schedule, **options),
                *q_posterior(x, noise, t, schedule),
                ddpm_step(x, pred, t, schedule, noise=noise, **options),
                ddpm_step(x, pred, t, schedule, noise=noise, clip_range=1.0, **options),
                ddim_step(x, pred, t, schedule, noise=noise, eta=1.0, **options),
                ddim_step(x, pred, t, schedule, prev_t=-1, **options),
                vlb_terms(pred, x, t, schedule, noise=noise, **options),
            ]
            for word in (None, "vlb", "min_snr"):
                found.append(
                    noise_loss(pred, x, t, schedule, noise=noise, weighting=word, **options)
                )
            assert all(torch.isfinite(f).all() for f in found)
    assert torch.equal(q_sample(x, T - 1, schedule, noise=noise), noise)
    assert torch.isfinite(noise_loss(pred, x, last, schedule, noise=noise, weighting="min_snr"))
    assert torch.isfinite(score(noise, last, schedule)).all()
    for t in (T - 1, last):
        for call in (
            lambda t: predict_x0(x, pred, t, schedule),
            lambda t: ddpm_step(x, pred, t, schedule, noise=noise),
            lambda t: ddim_step(x, pred, t, schedule, prev_t=0),
            lambda t: vlb_terms(pred, x, t, schedule, noise=noise),
            lambda t: noise_loss(pred, x, t, schedule, noise=noise, weighting="vlb"),
        ):
            text = r"prediction_type must be v_prediction or sample at t = 49, .*, got 'epsilon'$"
            with pytest.raises(ValueError, match=text):
                call(t)
            call(torch.full((4,), T - 2) if isinstance(t, torch.Tensor) else T - 2)
    for sampler in ("ddpm", "ddim", "ode"):
        with pytest.raises(ValueError, match=r"^sample: prediction_type must be v_prediction"):
            sample(None, (2, 3), schedule, sampler=sampler, progress=False)


# ---- edges


def test_results_are_not_the_schedules_own_tables():
    edm = genkern.diffusion.EDMSchedule(18)
    x, c = torch.zeros(1, 1), torch.ones(1, 2)
    for prev_t in (None, 3):
        want = [v.clone() for v in q_posterior(x, x, 5, SCHEDULE, prev_t=prev_t)]
        for result in q_posterior(x, x, 5, SCHEDULE, prev_t=prev_t):
            result.fill_(9.0)
        assert all(map(same_bits, q_posterior(x, x, 5, SCHEDULE, prev_t=prev_t), want))
    want = [v.clone() for v in edm.model_input(c, 3)]
    for result in edm.model_input(c, 3):
        result.fill_(9.0)
    assert all(map(same_bits, edm.model_input(c, 3), want))


def test_weights_are_multiplied_in_the_arithmetics_precision():
    one, none, t = torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([3])
    by_step = torch.full((len(SCHEDULE),), 300.0, dtype=torch.float16)
    given = {"noise": none, "weighting": by_step, "sample_weight": by_step[:1]}
    assert noise_loss(one, none, t, SCHEDULE, **given).item() == 9e4
    third = torch.full((len(SCHEDULE),), 1 / 3)
    given = {"noise": none.double(), "weighting": third, "sample_weight": third[:1]}
    got = noise_loss(one.double(), none.double(), t, SCHEDULE, **given)
    assert got.item() == third[0].double().item() ** 2


def test_an_infinite_prediction_gives_the_bound_and_a_finite_gradient():
    pred = torch.tensor([[math.inf, -math.inf, 0.5]], requires_grad=True)
    x = torch.zeros(1, 3)
    got = ddpm_step(x, pred, 0, SCHEDULE, clip_range=1.0)
    assert got[0, :2].tolist() == [-1.0, 1.0]
    (grad,) = torch.autograd.grad(got.sum(), pred)
    assert grad.isfinite().all() and grad[0, :2].tolist() == [0.0, 0.0]


def test_nan_stays_where_it_is():
    x, pred = tensors(2, F32)
    x[1, 0, 2, 3] = math.nan
    nan = x.isnan()
    assert torch.equal(ddpm_step(x, pred, 20, SCHEDULE, key=key(1), clip_range=1.0).isnan(), nan)
    # What needs a whole sample may spread over it, and no further.
    sample_nan = [False, True, False, False]
    got = ddim_step(x, pred, 20, SCHEDULE, threshold=(0.9, 2.0)).isnan()
    assert got[nan].all() and got.any((1, 2, 3)).tolist() == sample_nan
    for t in (20, 0):
        assert vlb_terms(pred, x, t, SCHEDULE, key=key(1)).isnan().tolist() == sample_nan


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0)], ids=str)
def test_scalars_and_empty_tensors(shape):
    x = torch.zeros(shape)
    for t in (5, torch.tensor(5), *([torch.full(shape[:1], 5)] if shape else [])):
        for y in (
            q_sample(x, t, SCHEDULE),
            predict_x0(x, x, t, SCHEDULE),
            ddpm_step(x, x, t, SCHEDULE),
            ddim_step(x, x, t, SCHEDULE, prev_t=1, threshold=(0.9, 2.0)),
            *q_posterior(x, x, t, SCHEDULE),
        ):
            assert y.shape == shape
        assert noise_loss(x, x, t, SCHEDULE, key=key(1)).shape == ()
        assert vlb_terms(x, x, t, SCHEDULE, key=key(1)).shape == (shape[:1] or (1,))
    if shape:
        assert sample(lambda x, t: x, shape, SCHEDULE, progress=False).shape == shape


# ---- rectified flow and EDM


def test_flow():
    schedule = FlowSchedule(10)
    x0, eps, x = tensors(3)
    t = torch.tensor([0, 3, 8, 9])
    s = column([0.1, 0.4, 0.9, 1.0])
    x_s = q_sample(x0, t, schedule, noise=eps)
    near(x_s, (1 - s) * x0.numpy() + s * eps.numpy())
    velocity = eps - x0
    assert noise_loss(velocity, x0, t, schedule, noise=eps, prediction_type="flow").item() < 1e-25
    near(predict_x0(x_s, velocity, t, schedule, prediction_type="flow"), x0.numpy(), 1e-12)
    near(score(eps, t, schedule), -eps.numpy() / s)
    prev = torch.tensor([-1, 0, 7, 2])
    to = column([0.0, 0.1, 0.8, 0.3])
    got = ddim_step(x, velocity, t, schedule, prev_t=prev, prediction_type="flow")
    near(got, x.numpy() + (to - s) * velocity.numpy())
    # min-SNR weighs the error of x0, which is s times that of the velocity.
    loss = noise_loss(
        x, x0, t, schedule, noise=eps, prediction_type="flow", weighting="min_snr",
        reduction="none",
    )  # fmt: skip
    snr = ((1 - s) / s) ** 2
    near(loss, np.minimum(snr, 5) * s**2 * (x - velocity).numpy() ** 2)
    # The same by the other predictions.
    for kind, pred in (("sample", x0), ("epsilon", eps)):
        got = ddim_step(x_s[:3], pred[:3], t[:3], schedule, prev_t=prev[:3], prediction_type=kind)
        near(got, ((1 - to) * x0.numpy() + to * eps.numpy())[:3])
    with pytest.raises(ValueError, match=r"must be flow or sample at t = 9, .*, got 'epsilon'$"):
        predict_x0(x_s, eps, t, schedule)


def test_edm():
    schedule = EDMSchedule(8, sigma_data=0.6)
    sigma = schedule.levels.numpy()
    x0, eps, f = tensors(3)
    t = torch.tensor([0, 3, 6, 7])
    s = column(sigma[t])
    x = q_sample(x0, t, schedule, noise=eps)
    near(x, x0.numpy() + s * eps.numpy())
    skip, out = 0.36 / (s**2 + 0.36), s * 0.6 / np.sqrt(s**2 + 0.36)
    denoised = skip * x.numpy() + out * f.numpy()
    near(predict_x0(x, f, t, schedule, prediction_type="edm"), denoised)
    # The unweighted loss of F is the loss of D with the weight of the paper.
    loss = noise_loss(f, x0, t, schedule, noise=eps, prediction_type="edm", reduction="none")
    weight = (s**2 + 0.36) / (s * 0.6) ** 2
    np.testing.assert_allclose(loss, weight * (denoised - x0.numpy()) ** 2, rtol=1e-7)
    # Euler's step of algorithm 1.
    to = column(np.append(0.0, sigma)[t])
    slope = (x.numpy() - denoised) / s
    got = ddim_step(x, f, t, schedule, prediction_type="edm")
    np.testing.assert_allclose(got, x.numpy() + (to - s) * slope, rtol=1e-9, atol=1e-9)
    near(score(eps, t, schedule), -eps.numpy() / s)


@pytest.mark.parametrize("schedule", [FlowSchedule(10), EDMSchedule(10)], ids=["flow", "edm"])
def test_levels_in_the_place_of_steps(schedule):
    kind = schedule.prediction_types[0]
    x, pred = tensors(2)
    t, prev = torch.tensor([1, 4, 6, 9]), torch.tensor([-1, 2, 5, 8])
    level = schedule.levels[t]
    prev_level = torch.where(prev < 0, 0.0, schedule.levels[prev.clamp(min=0)])
    for f in (
        lambda t, p: q_sample(x, t, schedule, noise=pred),
        lambda t, p: noise_loss(pred, x, t, schedule, noise=x, prediction_type=kind),
        lambda t, p: predict_x0(x, pred, t, schedule, prediction_type=kind),
        lambda t, p: score(x, t, schedule),
        lambda t, p: ddim_step(x, pred, t, schedule, prev_t=p, prediction_type=kind),
    ):
        assert torch.equal(f(t, prev), f(level, prev_level))
        assert torch.equal(f(4, 2), f(float(level[1]), float(prev_level[1])))
        assert torch.equal(f(4, -1), f(level[1], 0.0))
