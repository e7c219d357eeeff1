r"""The tables of the diffusion operators, from what a schedule says of its levels.

Each function takes a schedule, the levels of some steps and those that they go to (the clean level
for prev_t = -1), all (R,), and gives (R, columns) in the schedule's precision. The formulas keep
the order of operations of diffusers, so that float32 tables give its coefficients; where two are
multiplied into one, that happens in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genkern._levels import Schedule
    from genkern._schedules import EDMSchedule, NoiseSchedule

LEARNED = ("learned", "learned_range")
VARIANCE_TYPES = ("fixed_small", "fixed_large", *LEARNED)

# Hang et al., arXiv:2303.09556: the paper's choice of gamma.
_MIN_SNR_GAMMA = 5.0


def noising(schedule: Schedule, level: Tensor, prev: Tensor) -> Tensor:
    """`affine`: x_t from x0 and the noise, Ho et al., arXiv:2006.11239, (4)."""
    alpha, sigma = schedule.path(level)
    zero = torch.zeros_like(alpha)
    return torch.stack((alpha, zero, zero, sigma), dim=1)


def x0(schedule: Schedule, level: Tensor, prev: Tensor, prediction_type: str) -> Tensor:
    """`affine`: x0 from x_t and the prediction."""
    forms = schedule.forms(level, prediction_type)
    return torch.stack((forms.x0_x_t, forms.x0_pred), dim=1)


def score(schedule: Schedule, level: Tensor, prev: Tensor) -> Tensor:
    """`affine`: the score from the noise, Song et al., arXiv:2011.13456, section 3.3."""
    return (-1.0 / schedule.path(level)[1]).unsqueeze(1)


def level(schedule: Schedule, level: Tensor, prev: Tensor) -> Tensor:
    """The levels themselves."""
    return level.unsqueeze(1)


def edm_input(schedule: EDMSchedule, level: Tensor, prev: Tensor) -> Tensor:
    """`affine`: c_in; and c_noise in a second column. Karras et al., arXiv:2206.00364, table 1."""
    c_in = (level**2 + schedule.sigma_data**2) ** -0.5
    return torch.stack((c_in, 0.25 * torch.log(level)), dim=1)


class Posterior(NamedTuple):
    """q(x_prev | x_t, x_0) and the variance of the step from x_prev to x_t."""

    mean_x0: Tensor
    mean_x_t: Tensor
    variance: Tensor
    beta: Tensor


def posterior(level: Tensor, prev: Tensor) -> Posterior:
    """From alphas_cumprod: Ho et al., (6) and (7), for any two steps."""
    alpha = level / prev
    beta = 1.0 - alpha
    return Posterior(
        mean_x0=prev**0.5 * beta / (1.0 - level),
        mean_x_t=alpha**0.5 * (1.0 - prev) / (1.0 - level),
        variance=(1.0 - prev) / (1.0 - level) * beta,
        beta=beta,
    )


def posterior_log_variance(schedule: NoiseSchedule, level: Tensor, prev: Tensor) -> Tensor:
    """The logarithm of the posterior's variance, clipped where that is 0, at prev = 1."""
    last = prev == schedule.clean
    variance = torch.where(last, 1.0, posterior(level, prev).variance)
    return torch.where(last, schedule.first_log_variance, torch.log(variance))


def q_posterior(schedule: NoiseSchedule, level: Tensor, prev: Tensor) -> Tensor:
    """`affine`: the mean from x0 and x_t; then the variance and its logarithm."""
    p = posterior(level, prev)
    log_variance = posterior_log_variance(schedule, level, prev)
    return torch.stack((p.mean_x0, p.mean_x_t, p.variance, log_variance), dim=1)


# ---- losses


def loss_weight(
    schedule: Schedule, level: Tensor, prev: Tensor, prediction_type: str, weighting: str
) -> Tensor:
    """The weight of the squared error of a prediction: "vlb" (42.9) or "min_snr"."""
    snr = schedule.snr_of(level)
    if weighting == "vlb":
        weight = schedule.vlb_x0_weight(level, prev)
        if prediction_type == "epsilon":
            return weight / snr
    else:
        # min(snr, gamma) / snr, finite at snr = 0.
        if prediction_type == "epsilon":
            return 1.0 / (snr / _MIN_SNR_GAMMA).clamp(min=1.0)
        weight = snr.clamp(max=_MIN_SNR_GAMMA)
    # The error of x0 is x0_pred times that of the prediction.
    return weight * schedule.forms(level, prediction_type).x0_pred.square()


def noise_loss(
    schedule: Schedule, level: Tensor, prev: Tensor, prediction_type: str, weighting: str | None
) -> Tensor:
    """`noise_loss`: the target and the weight."""
    forms = schedule.forms(level, prediction_type)
    zero = torch.zeros_like(level)
    if weighting is None:
        weight = torch.ones_like(level)
    else:
        weight = loss_weight(schedule, level, prev, prediction_type, weighting)
    return torch.stack((forms.target_x0, forms.target_noise, weight, zero), dim=1)


def prior_kl(schedule: NoiseSchedule, level: Tensor, prev: Tensor, scale: float) -> Tensor:
    """`noise_loss` with x0 for the prediction: KL(q(x_T | x_0) || N(0, 1)), times a scale."""
    a = level.double()
    zero = torch.zeros_like(a)
    offset = -0.5 * (a + torch.log1p(-a))
    return torch.stack((zero, zero, 0.5 * scale * a, scale * offset), dim=1)


def vlb(
    schedule: NoiseSchedule, level: Tensor, prev: Tensor, prediction_type: str, variance_type: str
) -> Tensor:
    """`vlb`: the terms of the bound, Ho et al., (5); the decoder's at t = 0, (13)."""
    forms = schedule.forms(level, prediction_type)
    last = prev == schedule.clean
    true_log_variance = posterior_log_variance(schedule, level, prev)
    p = posterior(level, prev)
    if variance_type == "fixed_large":
        fixed = torch.where(last, true_log_variance, torch.log(p.beta))
        log_variance, by_values = fixed, torch.zeros_like(fixed)
    elif variance_type == "fixed_small":
        log_variance, by_values = true_log_variance, torch.zeros_like(level)
    else:
        log_variance, by_values = _learned(schedule, level, prev, variance_type)
    # x0 - x0_hat is the error of the prediction times -x0_pred: x_t cancels.
    return torch.stack(
        (
            forms.x0_pred * forms.target_x0,
            forms.x0_pred * forms.target_noise,
            -forms.x0_pred,
            p.mean_x0,
            true_log_variance,
            log_variance,
            by_values,
            last.to(level.dtype),
        ),
        dim=1,
    )


def _learned(
    schedule: NoiseSchedule, level: Tensor, prev: Tensor, variance_type: str
) -> tuple[Tensor, Tensor]:
    """The log-variance as an offset and a multiple of the network's second half."""
    if variance_type == "learned":
        return torch.zeros_like(level), torch.ones_like(level)
    # Nichol and Dhariwal, arXiv:2102.09672, (15), with v = (values + 1) / 2.
    low = posterior_log_variance(schedule, level, prev)
    high = torch.log(posterior(level, prev).beta)
    return 0.5 * (low + high), 0.5 * (high - low)


# ---- steps


def ddpm_step(
    schedule: NoiseSchedule,
    level: Tensor,
    prev: Tensor,
    prediction_type: str,
    variance_type: str,
    clipped: bool,
) -> Tensor:
    """`sampler_step`: Ho et al., (7), with the variance of its section 3.2 or a learned one."""
    p = posterior(level, prev)
    zero = torch.zeros_like(level)
    if variance_type in ("fixed_small", "fixed_large"):
        variance = p.variance if variance_type == "fixed_small" else p.beta
        noise, log_variance, by_values = variance**0.5, zero, zero
    else:
        noise = torch.ones_like(level)
        log_variance, by_values = _learned(schedule, level, prev, variance_type)
    noise = torch.where(prev == schedule.clean, 0.0, noise)
    forms = schedule.forms(level, prediction_type)
    mean = step_mean(clipped, forms.x0_x_t, forms.x0_pred, p.mean_x0, p.mean_x_t, zero)
    return torch.stack((*mean, *(c.double() for c in (noise, log_variance, by_values))), dim=1)


def ddim_step(
    schedule: Schedule,
    level: Tensor,
    prev: Tensor,
    prediction_type: str,
    eta: float,
    clipped: bool,
    rederived: bool,
) -> Tensor:
    """`sampler_step`: Song et al., arXiv:2010.02502, (12) and (16); eta above 0 needs abar."""
    alpha, sigma = schedule.path(level)
    prev_alpha, direction = schedule.path(prev)
    zero = torch.zeros_like(level)
    noise = zero
    if eta > 0.0:
        noise = eta * posterior(level, prev).variance ** 0.5
        direction = (1.0 - prev - noise**2).clamp(min=0.0) ** 0.5
    forms = schedule.forms(level, prediction_type)
    noise_x_t, noise_pred, noise_x0 = forms.noise_x_t, forms.noise_pred, zero
    if rederived:
        # The noise that x_t and the clipped x0 leave.
        noise_x_t, noise_pred, noise_x0 = 1.0 / sigma, zero, -alpha / sigma
    mean = step_mean(
        clipped,
        forms.x0_x_t,
        forms.x0_pred,
        prev_alpha + direction * noise_x0,
        direction * noise_x_t,
        direction * noise_pred,
    )
    return torch.stack((*mean, *(c.double() for c in (noise, zero, zero))), dim=1)


def step_mean(
    clipped: bool,
    x0_x_t: Tensor,
    x0_pred: Tensor,
    mean_x0: Tensor,
    mean_x_t: Tensor,
    mean_pred: Tensor,
) -> tuple[Tensor, ...]:
    """The five columns of a step's mean; without a clamp in between, x0 is folded into two."""
    p, q, a, b, c = (v.double() for v in (x0_x_t, x0_pred, mean_x0, mean_x_t, mean_pred))
    return (p, q, a, b, c) if clipped else (p, q, a, a * p + b, a * q + c)


def heun_step(schedule: Schedule, level: Tensor, prev: Tensor, prediction_type: str) -> Tensor:
    """`affine`: Heun's correction of an Euler step, Karras et al., algorithm 1.

    From x_t, the Euler step x' and the prediction at x': x = 1/2 (ratio x_t + x' + step slope(x')).
    """
    ratio, step = schedule.flow_step(level, prev)
    slope_x, slope_pred = schedule.drift(prev, prediction_type)
    return 0.5 * torch.stack((ratio, 1.0 + step * slope_x, step * slope_pred), dim=1)
