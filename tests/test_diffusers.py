"""Equal to diffusers within rounding; and where diffusers is wrong, equal to the mathematics."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from support import randn

from genkern.diffusion import NoiseSchedule, ddim_step, ddpm_step, noise_loss, q_sample

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("diffusers")
    from diffusers import CogVideoXDDIMScheduler, DDIMScheduler, DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

F32 = torch.float32
EPS = 2.0**-23
SHAPE = (2, 3, 8, 8)
T = 1000
KINDS = ("epsilon", "v_prediction", "sample")
NAMES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}


@pytest.fixture
def given_noise(monkeypatch):
    """Schedulers get this noise instead of drawing some."""
    noise = randn(*SHAPE, seed=9)

    def give(shape, generator=None, device=None, dtype=None):
        assert tuple(shape) == SHAPE
        return noise.to(dtype)

    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", give)
    return noise


def alphas(scheduler, t: int, prev: int) -> tuple[float, float]:
    a = scheduler.alphas_cumprod.double()
    return float(a[t]), float(a[prev]) if prev >= 0 else 1.0


def forms(kind: str, a: float) -> tuple[float, float, float, float]:
    """What x0 and the noise are, in x_t and the prediction."""
    alpha, sigma = a**0.5, (1 - a) ** 0.5
    if kind == "epsilon":
        return 1 / alpha, -sigma / alpha, 0.0, 1.0
    if kind == "sample":
        return 0.0, 1.0, 1 / sigma, -alpha / sigma
    return alpha, -sigma, sigma, alpha


def rounding(a: float, before: float, kind: str, x, pred, noise) -> torch.Tensor:
    """How far two float32 evaluations of a step may lie apart.

    The terms of x0 and of the result are rounded about twice on either side, by half an epsilon
    each: four halves of the sum of their sizes. 1 - a and beta = 1 - a / before, which cancel, are
    the same float32 numbers on both sides.
    """
    p, q, u, w = (abs(c) for c in forms(kind, a))
    x, pred, noise = x.double().abs(), pred.double().abs(), noise.double().abs()
    x0 = p * x + q * pred
    rederived = (x + a**0.5 * x0) / (1 - a) ** 0.5
    return 2 * EPS * (before**0.5 * x0 + x + u * x + w * pred + rederived + noise)


def check(got, want, bound) -> None:
    assert got.dtype == want.dtype
    error = (got.double() - want.double()).abs()
    assert (error <= bound).all(), float((error / bound).max())


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [2, 40, 1000])
def test_tables_are_the_same_bits(length, name, zero_snr):
    theirs = DDPMScheduler(length, beta_schedule=name, rescale_betas_zero_snr=zero_snr)
    ours = getattr(NoiseSchedule, NAMES[name])(length, table_dtype=F32)
    if zero_snr:
        ours = ours.zero_terminal_snr()
    for given in (ours, NoiseSchedule.from_diffusers(theirs, table_dtype=F32)):
        assert torch.equal(given.betas, theirs.betas)
        assert torch.equal(given.alphas, theirs.alphas)
        assert torch.equal(given.alphas_cumprod, theirs.alphas_cumprod)
    # Not only equal to them: their float32 tables are off by this much.
    exact = getattr(NoiseSchedule, NAMES[name])(length)
    if not zero_snr:
        error = (1 - ours.alphas_cumprod.double()) / (1 - exact.alphas_cumprod) - 1
        assert 1e-8 < error.abs().max() < 1e-3


def test_trained_betas():
    betas = np.linspace(1e-4, 0.03, 57)
    theirs = DDPMScheduler(57, trained_betas=betas)
    ours = NoiseSchedule.from_betas(betas, table_dtype=F32)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("length", [40, 1000])
def test_timesteps(length, spacing):
    schedule = NoiseSchedule.linear(length)
    for scheduler in (
        DDPMScheduler(length, timestep_spacing=spacing),
        DDIMScheduler(length, timestep_spacing=spacing),
    ):
        for n in range(1, length + 1):
            scheduler.set_timesteps(n)
            steps = schedule.timesteps(n, spacing)
            # In a few runs rounding gives them a step more than asked for, at t = -1.
            assert torch.equal(steps, scheduler.timesteps[:n])
            assert len(scheduler.timesteps) == n or scheduler.timesteps[n:].tolist() == [-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"]
)
@pytest.mark.parametrize("clip", [None, 0.7, "threshold"])
def test_ddpm_step(kind, variance, clip, given_noise):
    options = {"clip_sample": False}
    ours = {}
    if clip == "threshold":
        options = {"thresholding": True, "sample_max_value": 2.5, "dynamic_thresholding_ratio": 0.9}
        ours = {"threshold": (0.9, 2.5)}
    elif clip:
        options = {"clip_sample": True, "clip_sample_range": clip}
        ours = {"clip_range": clip}
    for zero_snr in (False, True) if kind != "epsilon" else (False,):
        scheduler = DDPMScheduler(
            T,
            prediction_type=kind,
            variance_type=variance,
            rescale_betas_zero_snr=zero_snr,
            **options,
        )
        schedule = NoiseSchedule.from_diffusers(scheduler, table_dtype=F32)
        x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)
        values = randn(*SHAPE, seed=2)
        output = torch.cat((pred, values), 1) if variance == "learned_range" else pred
        for n in (T, 50):
            scheduler.set_timesteps(n)
            for t, prev in ((999, 998), (500, 499), (1, 0), (0, -1)) if n == T else (
                (980, 960), (500, 480), (20, 0), (0, -1)
            ):  # fmt: skip
                want = scheduler.step(output, t, x).prev_sample
                got = ddpm_step(
                    x, output, t, schedule, noise=given_noise, prev_t=prev, prediction_type=kind,
                    variance_type=variance.removesuffix("_log"), **ours,
                )  # fmt: skip
                a, before = alphas(scheduler, t, prev)
                check(got, want, rounding(a, before, kind, x, pred, given_noise))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clip", [None, 0.7, "threshold"])
def test_ddim_step(kind, eta, clip):
    options = {"clip_sample": False}
    ours = {}
    if clip == "threshold":
        options = {"thresholding": True, "sample_max_value": 2.5, "dynamic_thresholding_ratio": 0.9}
        ours = {"threshold": (0.9, 2.5)}
    elif clip:
        options = {"clip_sample": True, "clip_sample_range": clip}
        ours = {"clip_range": clip}
    x, pred, noise = (randn(*SHAPE, seed=s) for s in range(3))
    for zero_snr, rederive in itertools.product((False, True), (False, True)):
        if zero_snr and kind == "epsilon":
            continue
        scheduler = DDIMScheduler(
            T, prediction_type=kind, rescale_betas_zero_snr=zero_snr, **options
        )
        schedule = NoiseSchedule.from_diffusers(scheduler, table_dtype=F32)
        for n, steps in ((T, ((999, 998), (1, 0), (0, -1))), (50, ((980, 960), (20, 0), (0, -1)))):
            scheduler.set_timesteps(n)
            for t, prev in steps:
                want = scheduler.step(
                    pred, t, x, eta=eta, use_clipped_model_output=rederive, variance_noise=noise
                ).prev_sample
                got = ddim_step(
                    x, pred, t, schedule, prev_t=prev, eta=eta, noise=noise, prediction_type=kind,
                    use_clipped_model_output=rederive, **ours,
                )  # fmt: skip
                a, before = alphas(scheduler, t, prev)
                check(got, want, rounding(a, before, kind, x, pred, noise))


def test_add_noise_and_velocity():
    scheduler = DDPMScheduler(T)
    schedule = NoiseSchedule.from_diffusers(scheduler, table_dtype=F32)
    x0, noise = randn(20, 3, 4), randn(20, 3, 4, seed=1)
    t = torch.linspace(0, 999, 20).long()
    x_t = q_sample(x0, t, schedule, noise=noise)
    check(x_t, scheduler.add_noise(x0, noise, t), 2 * EPS * (x0.abs() + noise.abs()))
    velocity = scheduler.get_velocity(x0, noise, t)
    loss = noise_loss(
        velocity, x0, t, schedule, noise=noise, prediction_type="v_prediction", reduction="none"
    )
    assert (loss <= (2 * EPS * (x0.abs() + noise.abs())) ** 2).all()


# ---- where diffusers is wrong


def exact_step(scheduler, t, prev, x, pred, variance, noise) -> torch.Tensor:
    """A DDPM step with epsilon prediction in float64, from their float32 alphas_cumprod."""
    a, before = alphas(scheduler, t, prev)
    beta = 1 - a / before
    x, pred, noise = x.double(), pred.double(), noise.double()
    x0 = (x - (1 - a) ** 0.5 * pred) / a**0.5
    mean = before**0.5 * beta / (1 - a) * x0 + (a / before) ** 0.5 * (1 - before) / (1 - a) * x
    return mean + variance(beta) ** 0.5 * noise


def test_a_scheduler_that_changes_alphas_cumprod_after_its_betas():
    theirs = CogVideoXDDIMScheduler()
    of_betas = NoiseSchedule.from_betas(theirs.betas)
    assert (of_betas.alphas_cumprod - theirs.alphas_cumprod).abs().max() > 0.1
    schedule = NoiseSchedule.from_diffusers(theirs)
    assert torch.equal(schedule.alphas_cumprod, theirs.alphas_cumprod.double())


def test_fixed_large_log_and_learned_variances_are_not_nan(given_noise):
    t, x, pred = 500, randn(*SHAPE), randn(*SHAPE, seed=1)
    values = -3.0 + randn(*SHAPE, seed=2)
    theirs = DDPMScheduler(T, variance_type="fixed_large_log", clip_sample=False)
    assert theirs.step(pred, t, x).prev_sample.isnan().all()
    schedule = NoiseSchedule.from_diffusers(theirs)
    got = ddpm_step(x, pred, t, schedule, noise=given_noise, variance_type="fixed_large")
    want = exact_step(theirs, t, t - 1, x, pred, lambda beta: beta, given_noise)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)

    theirs = DDPMScheduler(T, variance_type="learned", clip_sample=False)
    output = torch.cat((pred, values), 1)
    assert theirs.step(output, t, x).prev_sample.isnan().any()  # the root of a logarithm
    got = ddpm_step(x, output, t, schedule, noise=given_noise, variance_type="learned")
    want = exact_step(theirs, t, t - 1, x, pred, lambda beta: values.double().exp(), given_noise)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_linspace_runs_go_to_their_next_step():
    theirs = DDIMScheduler(T, timestep_spacing="linspace", clip_sample=False)
    theirs.set_timesteps(30)
    schedule = NoiseSchedule.from_diffusers(theirs, table_dtype=F32)
    steps = theirs.timesteps.tolist()
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)
    t, following = steps[0], steps[1]
    assert (t, following) == (999, 965) and t - T // 30 == 966  # where theirs goes
    want = theirs.step(pred, t, x).prev_sample
    stride = ddim_step(x, pred, t, schedule, prev_t=966)
    check(stride, want, rounding(*alphas(theirs, t, 966), "epsilon", x, pred, 0 * x))
    got = ddim_step(x, pred, t, schedule, prev_t=following)
    a, before = alphas(theirs, t, following)
    x0 = (x.double() - (1 - a) ** 0.5 * pred.double()) / a**0.5
    exact = before**0.5 * x0 + (1 - before) ** 0.5 * pred.double()
    bound = rounding(a, before, "epsilon", x, pred, 0 * x)
    check(got, exact.float(), bound)
    assert ((want.double() - exact).abs() > 10 * bound).float().mean() > 0.9


def test_no_noise_on_the_last_step_of_a_trailing_run(given_noise):
    theirs = DDPMScheduler(
        T, timestep_spacing="trailing", variance_type="fixed_large", clip_sample=False
    )
    theirs.set_timesteps(50)
    t = theirs.timesteps.tolist()[-1]
    assert t == 19
    schedule = NoiseSchedule.from_diffusers(theirs, table_dtype=F32)
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)
    got = ddpm_step(x, pred, t, schedule, noise=given_noise, prev_t=-1, variance_type="fixed_large")
    want = exact_step(theirs, t, -1, x, pred, lambda beta: 0.0, given_noise)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    theirs_adds = (theirs.step(pred, t, x).prev_sample.double() - want).abs()
    assert (theirs_adds > 0.01 * given_noise.abs()).float().mean() > 0.9


def test_half_precision_noising_keeps_the_schedule():
    scheduler = DDPMScheduler(T)
    schedule = NoiseSchedule.from_diffusers(scheduler)
    t = torch.arange(T)
    x0, noise = torch.zeros(T, 4), torch.ones(T, 4)
    exact = (1 - schedule.alphas_cumprod) ** 0.5
    ours = q_sample(x0.bfloat16(), t, schedule, noise=noise.bfloat16())[:, 0].double()
    theirs = scheduler.add_noise(x0.bfloat16(), noise.bfloat16(), t)[:, 0].double()
    # Rounded to eight bits, from float32.
    assert ((ours - exact).abs() <= (2.0**-8 + 2.0**-22) * exact).all()
    assert (theirs[:10] == 0).all()  # no noise at all in the first ten steps
    assert ((theirs - exact).abs() > 0.01 * exact).sum() > 50
