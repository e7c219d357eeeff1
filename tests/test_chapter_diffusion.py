"""The chapter's numbers, the bound on a Gaussian, and sampling from a known score."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from genkern.diffusion import (
    EDMSchedule,
    FlowSchedule,
    NoiseSchedule,
    prior_kl,
    q_posterior,
    q_sample,
    sample,
    vlb_terms,
)
from genkern.random import key, normal, split

F64 = torch.float64
SCHEDULE = NoiseSchedule.linear(40, 1e-4, 0.06)

# Table 42.1: t counted from 1 (0 is the data), total variance, KL of the first coordinate.
TABLE = {
    0: ("8.290", "2.509"),
    5: ("8.172", "2.423"),
    10: ("7.810", "2.166"),
    20: ("6.642", "1.402"),
    30: ("5.283", "0.810"),
    40: ("3.857", "0.358"),
}


def kl_to_normal(x: np.ndarray) -> float:
    """KL of a histogram on 41 edges in [-6, 6], bins closed on the right, from the normal."""
    edges = np.linspace(-6.0, 6.0, 41)
    bins = np.searchsorted(edges, x, side="left") - 1
    bins[x == edges[0]] = 0
    inside = (bins >= 0) & (bins < 40)
    p = np.bincount(bins[inside], minlength=40) / inside.sum()
    centres = (edges[1:] + edges[:-1]) / 2
    q = np.exp(-(centres**2) / 2)
    q /= q.sum()
    both = (p > 0) & (q > 0)
    return float((p[both] * np.log(p[both] / q[both])).sum())


def test_table_42_1():
    data = np.load(Path(__file__).parent / "data" / "chapter_table_42_1.npz")
    x0 = torch.from_numpy(data["x0"])
    for t in range(41):
        x_t = x0
        if t:
            x_t = q_sample(x0, t - 1, SCHEDULE, noise=torch.from_numpy(data["eps"][t - 1]))
        variance, kl = float(x_t.var(0).sum()), kl_to_normal(x_t[:, 0].numpy())
        np.testing.assert_allclose((t, variance, kl), data["summary"][t], rtol=1e-12)
        if t in TABLE:
            assert (f"{variance:.3f}", f"{kl:.3f}") == TABLE[t]


def test_posterior_mean_in_closed_form_and_by_simulation():
    x0, x_t = torch.full((1,), 2.0, dtype=F64), torch.full((1,), 1.0, dtype=F64)
    mean, variance, log_variance = q_posterior(x0, x_t, 19, SCHEDULE)
    assert f"{mean.item():.4f}" == "1.0988"
    assert log_variance.item() == pytest.approx(math.log(variance.item()), rel=1e-14)
    # 4e6 pairs (x_19, x_20) given x_0 = 2; those with x_20 near 1.
    n, (first, second) = 4_000_000, split(key(42), 2)
    before = q_sample(torch.full((n,), 2.0), 18, SCHEDULE, key=first)
    beta = float(SCHEDULE.betas[19])
    after = (1 - beta) ** 0.5 * before + beta**0.5 * normal(second, n)
    kept = before[(after - 1.0).abs() < 0.02].double()
    error = math.sqrt(variance.item() / len(kept))
    assert abs(kept.mean().item() - mean.item()) < 3 * error
    # The chapter's own simulation has the same error.
    assert abs(kept.mean().item() - 1.0975) < 3 * math.sqrt(2) * error
    assert kept.var().item() == pytest.approx(variance.item(), rel=4 * math.sqrt(2 / len(kept)))


# ---- the bound


def test_the_bound_is_tight_for_the_optimal_model_of_a_gaussian():
    # Data N(m, s^2), well inside the decoder's bins and much wider than one.
    schedule = NoiseSchedule.linear(20, 0.02, 0.4)
    n, s = 20_000, 0.2
    m = torch.tensor([0.1, -0.2, 0.0], dtype=F64)
    keys = split(key(3), 21)
    x0 = m + s * normal(keys[20], n, 3, dtype=F64)
    a = schedule.alphas_cumprod
    before = torch.cat((torch.ones(1, dtype=F64), a[:-1]))

    def bound(change: float, kind: str) -> torch.Tensor:
        """The bound of each sample, for the best mean (off by `change`) and a variance."""
        total = prior_kl(x0, schedule)
        for t in range(20):
            signal, noise = a[t] ** 0.5, (1 - a[t]) ** 0.5
            x_t = q_sample(x0, t, schedule, key=keys[t])
            # p(x_0 | x_t): the product of two Gaussians.
            precision = 1 / s**2 + a[t] / (1 - a[t])
            mean = (m / s**2 + signal * x_t / (1 - a[t])) / precision
            eps = (x_t - signal * mean) / noise + change
            if kind == "learned":
                # Of x_{t-1} given x_t alone; before[0] is clean data.
                by_x0 = before[t] ** 0.5 * schedule.betas[t] / (1 - a[t])
                variance = schedule.posterior_variance[t] + by_x0**2 / precision
                eps = torch.cat((eps, variance.log().expand(eps.shape)), 1)
            total = total + vlb_terms(
                eps, x0, t, schedule, key=keys[t], variance_type=kind, reduction="sample"
            )
        return total

    # -E log p(x_0), in bins of 2/255, is the entropy; and q(x_T) is not quite the prior.
    entropy = 0.5 * math.log(2 * math.pi * math.e * s**2) - math.log(2 / 255)
    mean_T, var_T = a[-1] ** 0.5 * m, a[-1] * s**2 + 1 - a[-1]
    gap = 0.5 * float((mean_T**2 + var_T - 1 - torch.log(var_T)).sum())
    exact = 3 * entropy + gap
    best = bound(0.0, "learned")
    error = float(best.std()) / math.sqrt(n)
    assert error < 0.02
    assert abs(float(best.mean()) - exact) < 4 * error
    # Any other model is above it: the same draws, so the difference is known better.
    for change, kind in ((0.1, "learned"), (0.0, "fixed_small"), (0.0, "fixed_large")):
        above = bound(change, kind) - best
        assert float(above.mean()) > 4 * float(above.std()) / math.sqrt(n)


# ---- sampling from a known score

CENTRES = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
STD = 0.35


def mixture_noise(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] where x_0 has the mixture's distribution."""
    variance = alpha**2 * STD**2 + sigma**2
    away = x.unsqueeze(1) - alpha * CENTRES  # (B, 3, 2)
    share = torch.softmax(WEIGHTS.log() - away.square().sum(2) / (2 * variance), 1)
    return sigma / variance * (share.unsqueeze(2) * away).sum(1)


def mixture_model(schedule, kind: str):
    """A perfect network."""
    levels = schedule._levels

    def model(x, t):
        if isinstance(schedule, EDMSchedule):
            level = (torch.exp(4 * t[:1]) if kind == "edm" else t[:1]).double()
        else:
            level = levels[t[:1]]
        alpha, sigma = schedule.path(level)
        if kind == "edm":
            x = x * (level**2 + schedule.sigma_data**2) ** 0.5
        forms = schedule.forms(level, kind)
        eps = mixture_noise(x.double(), alpha, sigma)
        if kind == "epsilon":
            return eps.float()
        alpha = alpha.clamp(min=1e-12)
        # At alpha = 0 x_0 is the mixture's mean.
        x0 = torch.where(
            alpha > 1e-9, (x - sigma * eps) / alpha, (WEIGHTS[:, None] * CENTRES).sum(0)
        )
        return (forms.target_x0 * x0 + forms.target_noise * eps).float()

    return model


def check_mixture(x: torch.Tensor) -> None:
    """Means, weights and variances within four standard errors."""
    n, x = len(x), x.double()
    nearest = (x.unsqueeze(1) - CENTRES).square().sum(2).argmin(1)
    for k in range(3):
        part = x[nearest == k]
        share = float(WEIGHTS[k])
        assert abs(len(part) / n - share) < 4 * math.sqrt(share * (1 - share) / n)
        error = STD / math.sqrt(len(part))
        assert ((part.mean(0) - CENTRES[k]).abs() < 4 * error).all()
        ratio = part.var(0) / STD**2
        assert ((ratio - 1).abs() < 4 * math.sqrt(2 / len(part))).all()


RUNS = {
    "ddpm": (NoiseSchedule.linear(1000), "epsilon", {"sampler": "ddpm"}),
    "ddpm-large": (
        NoiseSchedule.cosine(1000),
        "v_prediction",
        {"sampler": "ddpm", "variance_type": "fixed_large"},
    ),
    "ddim": (
        NoiseSchedule.linear(1000),
        "epsilon",
        {"sampler": "ddim", "num_steps": 250, "spacing": "trailing"},
    ),
    "ddim-eta": (NoiseSchedule.linear(1000), "sample", {"sampler": "ddim", "eta": 1.0}),
    "ode": (
        NoiseSchedule.linear(1000),
        "epsilon",
        {"sampler": "ode", "num_steps": 50, "spacing": "trailing"},
    ),
    "ode-zero-snr": (
        NoiseSchedule.linear(1000).zero_terminal_snr(),
        "v_prediction",
        {"sampler": "ode", "num_steps": 100, "spacing": "trailing"},
    ),
    "flow-euler": (FlowSchedule(1000), "flow", {"sampler": "ddim"}),
    "flow-heun": (
        FlowSchedule(1000),
        "flow",
        {"sampler": "ode", "num_steps": 100, "spacing": "trailing"},
    ),
    "edm-heun": (EDMSchedule(60, sigma_min=0.02), "edm", {"sampler": "ode"}),
    "edm-sample": (EDMSchedule(300, sigma_min=0.02), "sample", {"sampler": "ddim"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_sampling_recovers_the_mixture(name):
    schedule, kind, options = RUNS[name]
    model = mixture_model(schedule, kind)
    x = sample(
        model, (4000, 2), schedule, prediction_type=kind, key=key(5), progress=False, **options
    )
    assert x.dtype == torch.float32 and x.shape == (4000, 2)
    check_mixture(x)


def test_heun_needs_fewer_steps_than_euler():
    schedule = EDMSchedule(400)
    model = mixture_model(schedule, "sample")
    options = {"prediction_type": "sample", "key": key(6), "progress": False}
    exact = sample(model, (500, 2), schedule, sampler="ode", **options)
    errors = {}
    for sampler, steps in (("ode", 40), ("ddim", 80)):  # as many calls of the model
        few = EDMSchedule(steps)
        x = sample(mixture_model(few, "sample"), (500, 2), few, sampler=sampler, **options)
        errors[sampler] = float((x - exact).square().mean().sqrt())
    assert errors["ode"] < 0.3 * errors["ddim"]
