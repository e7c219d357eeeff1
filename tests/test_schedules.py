"""Schedules: their tables against NumPy in float64, what they refuse, and their coefficients."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from genkern import diffusion
from genkern.diffusion import EDMSchedule, FlowSchedule, NoiseSchedule

F32 = torch.float32


def numpy_betas(kind: str, T: int) -> np.ndarray:
    if kind == "linear":
        return np.linspace(1e-4, 0.02, T)
    if kind == "scaled_linear":
        return np.linspace(1e-4**0.5, 0.02**0.5, T) ** 2
    if kind == "sigmoid":
        return 1e-4 + (0.02 - 1e-4) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, T)))
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - f[1:] / f[:-1], 0.999)


KINDS = ("linear", "scaled_linear", "cosine", "sigmoid")


def close(got: torch.Tensor, want: np.ndarray, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(got.numpy(), want, rtol=rtol, atol=0)


@pytest.mark.parametrize("T", [2, 40, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_tables(kind, T):
    schedule = getattr(NoiseSchedule, kind)(T)
    betas = numpy_betas(kind, T)
    abar = np.cumprod(1.0 - betas)
    before = np.append(1.0, abar[:-1])
    assert len(schedule) == T and schedule.betas.dtype == torch.float64
    close(schedule.betas, betas)
    close(schedule.alphas, 1.0 - betas)
    close(schedule.alphas_cumprod, abar, 1e-9)
    # 1 - abar_0 and 1 - abar_t / abar_{t-1} cancel at most to 1e-4.
    close(schedule.snr, abar / (1.0 - abar), 1e-9)
    variance = betas * (1.0 - before) / (1.0 - abar)
    assert schedule.posterior_variance[0] == 0.0
    close(schedule.posterior_variance[1:], variance[1:], 1e-9)
    clipped = schedule.posterior_log_variance_clipped
    close(clipped[1:], np.log(variance[1:]), 1e-9)
    assert clipped[0] == clipped[1]
    weights = betas[1:] ** 2 / (2.0 * variance[1:] * (1.0 - betas[1:]) * (1.0 - abar[1:]))
    weights = np.append(weights[0], weights)
    close(schedule.vlb_weights, weights, 1e-9)
    snr = abar / (1.0 - abar)
    close(schedule.loss_weights("vlb", "sample"), weights * snr, 1e-9)
    close(schedule.loss_weights("vlb", "v_prediction"), weights * abar, 1e-9)
    m = np.minimum(snr, 5.0)
    close(schedule.min_snr_weights, m / snr, 1e-9)
    close(schedule.loss_weights("min_snr", "v_prediction"), m / (snr + 1.0), 1e-9)
    close(schedule.loss_weights("min_snr", "sample"), m, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr(kind):
    before = getattr(NoiseSchedule, kind)(100)
    schedule = before.zero_terminal_snr()
    a, roots = schedule.alphas_cumprod, before.alphas_cumprod.numpy() ** 0.5
    want = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    np.testing.assert_allclose(a.numpy(), want, rtol=1e-11, atol=1e-18)
    assert a[-1] == 0.0 and schedule.no_signal == 99 and before.no_signal is None
    assert schedule.snr[-1] == 0.0
    for word in ("vlb", "min_snr"):
        for kind in ("v_prediction", "sample"):
            assert torch.isfinite(schedule.loss_weights(word, kind)).all()
    weights = schedule.min_snr_weights
    assert torch.isfinite(weights).all() and weights[-1] == 1.0
    assert torch.isfinite(schedule.posterior_log_variance_clipped).all()
    # What (42.9) says of epsilon where x_t says nothing of x0.
    assert schedule.vlb_weights[-1] == math.inf and torch.isfinite(schedule.vlb_weights[:-1]).all()


def test_spacing():
    schedule = NoiseSchedule.linear(1000)
    assert schedule.timesteps(4).tolist() == [750, 500, 250, 0]
    assert schedule.timesteps(4, "linspace").tolist() == [999, 666, 333, 0]
    assert schedule.timesteps(4, "trailing").tolist() == [999, 749, 499, 249]
    assert schedule.timesteps(1, "linspace").tolist() == [0]
    for spacing in ("leading", "linspace", "trailing"):
        assert schedule.timesteps(1000, spacing).tolist() == list(range(999, -1, -1))
        for n in range(1, 1001):
            steps = schedule.timesteps(n, spacing)
            assert steps.dtype == torch.int64 and len(steps) == n
            assert (steps[1:] < steps[:-1]).all() and steps[-1] >= 0 and steps[0] <= 999


def test_given_tables():
    schedule = NoiseSchedule.linear(50)
    for same in (
        NoiseSchedule.from_betas(schedule.betas),
        NoiseSchedule.from_betas(schedule.betas.tolist()),
        NoiseSchedule.from_betas(schedule.betas.numpy()),
    ):
        assert torch.equal(same.alphas_cumprod, schedule.alphas_cumprod)
    same = NoiseSchedule.from_alphas_cumprod(schedule.alphas_cumprod)
    assert torch.equal(same.alphas_cumprod, schedule.alphas_cumprod)
    close(same.betas, schedule.betas.numpy())
    given = torch.tensor([0.1, 0.2])
    schedule = NoiseSchedule.from_betas(given)
    given.zero_()
    assert schedule.betas[1] > 0.0
    low = NoiseSchedule.from_betas([0.1, 0.2], table_dtype=F32)
    assert low.betas.dtype == low.snr.dtype == low.posterior_variance.dtype == F32
    assert NoiseSchedule.from_alphas_cumprod([0.5, 0.0]).no_signal == 1


def test_copies_and_devices():
    schedule = NoiseSchedule.cosine(30)
    x = torch.ones(2, 3)
    want = diffusion.q_sample(x, 7, schedule, noise=x)
    for other in (
        copy.deepcopy(schedule),
        copy.copy(schedule),
        pickle.loads(pickle.dumps(schedule)),
        schedule.to("cpu"),
    ):
        assert torch.equal(other.betas, schedule.betas)
        assert torch.equal(diffusion.q_sample(x, 7, other, noise=x), want)
    # The tables that were made for calls are not part of it.
    assert len(pickle.dumps(schedule)) < len(pickle.dumps(NoiseSchedule.cosine(30))) + 100
    moved = schedule.to("meta")
    assert moved.betas.is_meta and moved.timesteps(3).is_meta and moved.snr.is_meta
    assert schedule.betas.is_cpu and moved.device.type == "meta"
    assert diffusion.q_sample(x.to("meta"), 7, moved, noise=x.to("meta")).is_meta
    assert repr(schedule) == "NoiseSchedule(T=30, table_dtype=float64, device=cpu)"


def test_tables_do_not_depend_on_the_mode_they_were_first_asked_for_in():
    x, noise = torch.ones(2, 3), torch.ones(2, 3)
    t = torch.tensor([1, 2])
    for mode in (torch.inference_mode, torch.no_grad):
        schedule = NoiseSchedule.linear(10)
        with mode():
            for step in (3, t):
                diffusion.q_sample(x, step, schedule, noise=noise)
                diffusion.ddim_step(x, x, step, schedule, prev_t=0)
        for step in (3, t):
            pred = torch.ones(2, 3, requires_grad=True)
            diffusion.ddim_step(x, pred, step, schedule, prev_t=0).sum().backward()
            diffusion.q_sample(pred, step, schedule, noise=noise).sum().backward()


def test_a_table_is_made_once():
    schedule = NoiseSchedule.linear(10)
    x = torch.ones(2, 3)
    kept = []
    for _ in range(2):
        for t in (3, 4, torch.tensor([1, 2])):
            diffusion.q_sample(x, t, schedule, noise=x)
        kept.append({key: id(value) for key, value in schedule._tables.items()})
    # All rows, and the same one by one.
    assert len(kept[0]) == 2
    assert kept[1] == kept[0]
    for t in range(1, 10):
        diffusion.ddim_step(x, x, t, schedule)
    assert len(schedule._tables) == 4


ALL = [
    (schedule, kind)
    for schedule in (
        NoiseSchedule.linear(20),
        NoiseSchedule.cosine(20).zero_terminal_snr(),
        FlowSchedule(20),
        EDMSchedule(20),
    )
    for kind in schedule.prediction_types
]


@pytest.mark.parametrize(("schedule", "kind"), ALL, ids=lambda v: getattr(v, "__str__", str)()[:20])
def test_a_perfect_prediction_gives_x0_and_the_noise(schedule, kind):
    levels = schedule._levels
    alpha, sigma = schedule.path(levels)
    forms = schedule.forms(levels, kind)
    x0, eps = 0.7, -1.3
    x_t = alpha * x0 + sigma * eps
    pred = forms.target_x0 * x0 + forms.target_noise * eps
    last = len(levels) - 1 if kind == "epsilon" and schedule.no_signal is not None else None
    got_x0 = (forms.x0_x_t * x_t + forms.x0_pred * pred)[:last]
    got_eps = (forms.noise_x_t * x_t + forms.noise_pred * pred)[:last]
    torch.testing.assert_close(got_x0, torch.full_like(got_x0, x0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got_eps, torch.full_like(got_eps, eps), rtol=1e-9, atol=1e-9)


def test_flow_levels():
    schedule = FlowSchedule(10)
    close(schedule.levels, np.arange(1, 11) / 10)
    assert schedule.no_signal == 9 and FlowSchedule(10, table_dtype=F32).levels.dtype == F32
    assert repr(schedule) == "FlowSchedule(T=10, table_dtype=float64, device=cpu)"


def test_edm_levels_and_preconditioning():
    schedule = EDMSchedule(18)
    i = np.arange(18)
    karras = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    close(schedule.levels.flip(0), karras, 1e-11)
    assert schedule.no_signal is None
    sigma, s = karras[::-1].copy(), 0.5
    forms = schedule.forms(schedule.levels, "edm")
    skip, out = s**2 / (sigma**2 + s**2), sigma * s / np.sqrt(sigma**2 + s**2)
    close(forms.x0_x_t, skip)
    close(forms.x0_pred, out)
    close(forms.target_x0, (1 - skip) / out, 1e-7)
    close(forms.target_noise, -skip * sigma / out)
    close(forms.noise_x_t, (1 - skip) / sigma, 1e-7)
    x = torch.ones(3, 2, dtype=torch.float64)
    t = torch.tensor([0, 5, 17])
    scaled, c_noise = schedule.model_input(x, t)
    want = 1 / np.sqrt(sigma[[0, 5, 17]] ** 2 + s**2)
    close(scaled, np.stack((want, want), 1))
    close(c_noise, np.log(sigma[[0, 5, 17]]) / 4)
    by_level, c_by_level = schedule.model_input(x, schedule.levels[t])
    assert torch.equal(by_level, scaled) and torch.equal(c_by_level, c_noise)
    assert schedule.model_input(x, 5)[1].shape == (3,)
    half = schedule.model_input(x.bfloat16(), 5)
    assert half[0].dtype == torch.bfloat16 and half[1].dtype == F32


ERRORS = [
    (lambda: NoiseSchedule.linear(1), ValueError, "linear: T must be at least 2, got 1"),
    (lambda: NoiseSchedule.cosine(2.0), TypeError, "cosine: T must be an integer, got float"),
    (
        lambda: NoiseSchedule.sigmoid(table_dtype=torch.float16),
        TypeError,
        "sigmoid: table_dtype must be torch.float64 or torch.float32, got torch.float16",
    ),
    (
        lambda: NoiseSchedule.linear(3, 0.1, 1.1),
        ValueError,
        "linear: betas must be in (0, 1], got 1.1 at index 2",
    ),
    (
        lambda: NoiseSchedule.from_betas([0.1, 0.0]),
        ValueError,
        "from_betas: betas must be in (0, 1], got 0 at index 1",
    ),
    (
        lambda: NoiseSchedule.from_betas([math.nan, 0.1]),
        ValueError,
        "from_betas: betas must be in (0, 1], got nan at index 0",
    ),
    (
        lambda: NoiseSchedule.from_betas([0.5, 1.0, 0.5]),
        ValueError,
        "from_betas: alphas_cumprod must be strictly decreasing, got 0 after 0 at index 2",
    ),
    (
        lambda: NoiseSchedule.from_betas([[0.1, 0.2]]),
        ValueError,
        "from_betas: betas must have shape (T,), T at least 2, got (1, 2)",
    ),
    (
        lambda: NoiseSchedule.from_betas("linear"),
        TypeError,
        "from_betas: betas must be a table of numbers, got str",
    ),
    (
        lambda: NoiseSchedule.from_alphas_cumprod([1.0, 0.5]),
        ValueError,
        "from_alphas_cumprod: alphas_cumprod must be in [0, 1), got 1 at index 0",
    ),
    (
        lambda: NoiseSchedule.from_alphas_cumprod([0.9, 0.5, -0.1]),
        ValueError,
        "from_alphas_cumprod: alphas_cumprod must be in [0, 1), got -0.1 at index 2",
    ),
    (
        lambda: NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.5]),
        ValueError,
        "from_alphas_cumprod: alphas_cumprod must be strictly decreasing,"
        " got 0.5 after 0.5 at index 2",
    ),
    (
        lambda: NoiseSchedule.from_betas(torch.tensor([0.1j])),
        TypeError,
        "from_betas: betas must be real numbers, got torch.complex64",
    ),
    (
        lambda: NoiseSchedule.from_diffusers(object()),
        TypeError,
        "from_diffusers: scheduler must have betas, got object",
    ),
    (
        lambda: NoiseSchedule.linear(10).timesteps(11),
        ValueError,
        "timesteps: num_steps must be in [1, 10], got 11",
    ),
    (
        lambda: NoiseSchedule.linear(10).timesteps(10.0),
        TypeError,
        "timesteps: num_steps must be an integer, got float",
    ),
    (
        lambda: NoiseSchedule.linear(10, "0.1"),
        TypeError,
        "linear: beta_start must be a number, got str",
    ),
    (
        lambda: NoiseSchedule.sigmoid(10, beta_end=None),
        TypeError,
        "sigmoid: beta_end must be a number, got NoneType",
    ),
    (
        lambda: NoiseSchedule.scaled_linear(beta_start=-0.1),
        ValueError,
        "scaled_linear: beta_start must be at least 0 and finite, got -0.1",
    ),
    (
        lambda: NoiseSchedule([0.1, 0.2], [0.9, 0.7]),
        TypeError,
        "NoiseSchedule: betas must be a float64 or float32 tensor, got list",
    ),
    (
        lambda: NoiseSchedule(torch.tensor([0.1, 0.2]), torch.tensor([1, 0])),
        TypeError,
        "NoiseSchedule: alphas_cumprod must be a float64 or float32 tensor, got torch.int64",
    ),
    (
        lambda: NoiseSchedule(torch.tensor([0.1, 0.2]), torch.tensor([0.9])),
        ValueError,
        "NoiseSchedule: alphas_cumprod must have shape (T,), T at least 2, got (1,)",
    ),
    (
        lambda: NoiseSchedule(torch.tensor([0.1, 0.2]), torch.tensor([0.9, 0.8, 0.7])),
        ValueError,
        "NoiseSchedule: betas and alphas_cumprod must have one shape and be on the CPU,"
        " got (2,) on cpu and (3,) on cpu",
    ),
    (
        lambda: NoiseSchedule(torch.tensor([0.1, 1.2]), torch.tensor([0.9, 0.8])),
        ValueError,
        "NoiseSchedule: betas must be in (0, 1], got 1.2 at index 1",
    ),
    (
        lambda: EDMSchedule(rho="7"),
        TypeError,
        "EDMSchedule: rho must be a number, got str",
    ),
    (
        lambda: NoiseSchedule.linear(10).timesteps(0),
        ValueError,
        "timesteps: num_steps must be in [1, 10], got 0",
    ),
    (
        lambda: NoiseSchedule.linear(10).timesteps(5, "karras"),
        ValueError,
        "timesteps: spacing must be one of leading, linspace, trailing, got 'karras'",
    ),
    (
        lambda: NoiseSchedule.linear(10).loss_weights("snr"),
        ValueError,
        "loss_weights: weighting must be one of vlb, min_snr, got 'snr'",
    ),
    (
        lambda: NoiseSchedule.linear(10).loss_weights("vlb", "flow"),
        ValueError,
        "loss_weights: prediction_type must be one of epsilon, v_prediction, sample, got 'flow'",
    ),
    (lambda: FlowSchedule(0), ValueError, "FlowSchedule: T must be at least 2, got 0"),
    (
        lambda: EDMSchedule(sigma_min=90.0),
        ValueError,
        "EDMSchedule: expected 0 < sigma_min < sigma_max < inf, got 90.0 and 80.0",
    ),
    (
        lambda: EDMSchedule(sigma_data=0.0),
        ValueError,
        "EDMSchedule: sigma_data must be positive and finite, got 0.0",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[text[:60] for *_, text in ERRORS])
def test_message(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind and str(caught.value) == text
