"""The diffusion family: the linear schedule of Ho et al., arXiv:2006.11239, in 1000 steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import genkern
from benchmarks.problems import Outputs, Problem, randn
from genkern import diffusion

_T = 1000
_STEP = 500
# DDIM in 50 steps.
_DDIM_STRIDE = 20
_CLIP = 1.0
_GUIDANCE = 7.5
_RESCALE = 0.7
_THRESHOLD = (0.995, 1.5)
_VLB_WEIGHT = 1e-3
_SCHEDULE = diffusion.NoiseSchedule.linear(_T)

_ABAR = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, _T, dtype=torch.float64), dim=0)


def _table(*columns: Tensor) -> Tensor:
    return torch.stack(columns, dim=1)


# ---- tables, in float64

_NOISING = _table(_ABAR.sqrt(), (1.0 - _ABAR).sqrt())
# x0 from x_t and the predicted noise: Ho et al., (15).
_X0 = _table(_ABAR.rsqrt(), -(1.0 / _ABAR - 1.0).sqrt())

_PREV = torch.cat((torch.ones(1, dtype=torch.float64), _ABAR[:-1]))
_BETA = 1.0 - _ABAR / _PREV
_VARIANCE = (1.0 - _PREV) / (1.0 - _ABAR) * _BETA
# The mean from x0 and x_t: Ho et al., (7).
_MEAN = _table(
    _PREV.sqrt() * _BETA / (1.0 - _ABAR), (_ABAR / _PREV).sqrt() * (1.0 - _PREV) / (1.0 - _ABAR)
)
# The first variance is 0 and takes the second's logarithm; the learned one lies between the two
# logarithms, Nichol and Dhariwal, arXiv:2102.09672, (15): offset and multiple of the network's.
_LOW, _HIGH = torch.cat((_VARIANCE[1:2], _VARIANCE[1:])).log(), _BETA.log()
_RANGE = _table(0.5 * (_LOW + _HIGH), 0.5 * (_HIGH - _LOW))

_DDPM = torch.cat((_X0, _MEAN, _VARIANCE.sqrt()[:, None]), dim=1)
_DDPM_LEARNED = torch.cat((_X0, _MEAN, _RANGE), dim=1)
_BOUND = torch.cat((_NOISING, _X0, _MEAN[:, :1], _LOW[:, None], _RANGE), dim=1)
# Song et al., arXiv:2010.02502, (12), without noise.
_DDIM_PREV = torch.cat((torch.ones(_DDIM_STRIDE, dtype=torch.float64), _ABAR[:-_DDIM_STRIDE]))
_DDIM = torch.cat((_X0, _table(_DDIM_PREV.sqrt(), (1.0 - _DDIM_PREV).sqrt())), dim=1)


# ---- inputs


def _images(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """x0 in [-1, 1] and a step for each, the first of which is 0."""
    x0 = torch.rand(*shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0
    t = torch.randint(_T, shape[:1], generator=generator)
    t[0] = 0
    return x0, t


def _predicted(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    return randn(shape, generator), *_images(shape, generator)


def _predicted_learned(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    return _with_values(randn(shape, generator), generator), *_images(shape, generator)


def _with_values(pred: Tensor, generator: torch.Generator) -> Tensor:
    """What a network with a learned variance gives: twice the channels."""
    return torch.cat((pred, 0.5 * randn(pred.shape, generator)), dim=1)


def _step(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """x_t and a prediction near its noise, so that some of x0 is clipped and some is not."""
    noise, (alpha, sigma) = randn(shape, generator), _NOISING[_STEP]
    x_t = alpha * _images(shape, generator)[0] + sigma * noise
    return x_t, noise + 0.1 * randn(shape, generator)


def _step_learned(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    x_t, pred = _step(shape, generator)
    return x_t, _with_values(pred, generator)


def _step_guided(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    x_t, pred = _step(shape, generator)
    return x_t, pred, pred + 0.1 * randn(shape, generator)


# ---- plain PyTorch


def _at(table: Tensor, t: Tensor, like: Tensor) -> list[Tensor]:
    """The table's columns at each sample's step, in a shape that broadcasts over `like`."""
    shape = (-1, *[1] * (like.dim() - 1))
    return [column.view(shape) for column in table[t].to(like.dtype).unbind(1)]


def _drawn(like: Tensor, noise: Tensor | None) -> Tensor:
    return torch.randn_like(like) if noise is None else noise


def _q_sample(x0: Tensor, t: Tensor, table: Tensor, noise: Tensor | None) -> Outputs:
    alpha, sigma = _at(table, t, x0)
    return (torch.addcmul(alpha * x0, sigma, _drawn(x0, noise)),)


def _noise_loss(
    pred: Tensor, x0: Tensor, t: Tensor, table: Tensor, noise: Tensor | None
) -> Outputs:
    noise = _drawn(x0, noise)
    return *_q_sample(x0, t, table, noise), F.mse_loss(pred, noise)


def _decoder_nll(difference: Tensor, x0: Tensor, inverse_std: Tensor) -> Tensor:
    """Ho et al., (13), of x0's bin; both of its ends in the tail where erfc keeps its digits."""
    outermost = x0.abs() > 0.999
    near = torch.where(outermost, -x0.sign() * difference, -difference.abs())
    scale = math.sqrt(0.5) * inverse_std
    beyond = torch.erfc((1.0 / 255.0 - near) * scale)
    mass = torch.erfc((-1.0 / 255.0 - near) * scale) - torch.where(outermost, 0.0, beyond)
    return -torch.log((0.5 * mass).clamp(min=torch.finfo(mass.dtype).tiny))


def _bound(
    pred: Tensor, values: Tensor, x0: Tensor, t: Tensor, table: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """x_t, and the terms of the bound: Ho et al., (5) and (13)."""
    alpha, sigma, x0_x_t, x0_pred, mean_x0, low, middle, half = _at(table, t, x0)
    x_t = torch.addcmul(alpha * x0, sigma, noise)
    difference = x0 - torch.addcmul(x0_x_t * x_t, x0_pred, pred)
    log_variance = torch.addcmul(middle, half, values)
    inverse_std = torch.exp(-0.5 * log_variance)
    ratio = low - log_variance
    square = (mean_x0 * difference * inverse_std).square()
    kl = 0.5 * (torch.exp(ratio) - 1.0 - ratio + square)
    first = (t == 0).view(low.shape)
    return x_t, torch.where(first, _decoder_nll(difference, x0, inverse_std), kl)


def _vlb_terms(pred: Tensor, x0: Tensor, t: Tensor, table: Tensor, noise: Tensor | None) -> Outputs:
    noise = _drawn(x0, noise)
    x_t, terms = _bound(*pred.chunk(2, dim=1), x0, t, table, noise)
    return x_t, terms.flatten(1).sum(1)


def _hybrid_loss(
    pred: Tensor, x0: Tensor, t: Tensor, table: Tensor, noise: Tensor | None
) -> Outputs:
    noise = _drawn(x0, noise)
    mean, values = pred.chunk(2, dim=1)
    # The bound trains the variance alone: Nichol and Dhariwal, section 3.1.
    x_t, terms = _bound(mean.detach(), values, x0, t, table, noise)
    return x_t, F.mse_loss(mean, noise) + (_VLB_WEIGHT * _T / math.log(2.0)) * terms.mean()


def _mean(x_t: Tensor, pred: Tensor, columns: Sequence[Tensor]) -> Tensor:
    x0_x_t, x0_pred, mean_x0, mean_x_t = columns
    x0 = torch.addcmul(x0_x_t * x_t, x0_pred, pred).clamp_(-_CLIP, _CLIP)
    return torch.addcmul(mean_x0 * x0, mean_x_t, x_t)


def _ddpm_step(x_t: Tensor, pred: Tensor, table: Tensor, noise: Tensor | None) -> Outputs:
    *columns, std = table[_STEP].unbind()
    return (torch.addcmul(_mean(x_t, pred, columns), std, _drawn(x_t, noise)),)


def _ddpm_step_learned(x_t: Tensor, pred: Tensor, table: Tensor, noise: Tensor | None) -> Outputs:
    *columns, middle, half = table[_STEP].unbind()
    pred, values = pred.chunk(2, dim=1)
    std = torch.exp(0.5 * middle + 0.5 * half * values)
    return (torch.addcmul(_mean(x_t, pred, columns), std, _drawn(x_t, noise)),)


def _ddpm_step_guided(
    x_t: Tensor, pred: Tensor, uncond: Tensor, table: Tensor, noise: Tensor | None
) -> Outputs:
    return _ddpm_step(x_t, torch.lerp(uncond, pred, _GUIDANCE), table, noise)


def _ddpm_step_rescaled(
    x_t: Tensor, pred: Tensor, uncond: Tensor, table: Tensor, noise: Tensor | None
) -> Outputs:
    guided = torch.lerp(uncond, pred, _GUIDANCE)
    over = tuple(range(1, pred.dim()))
    ratio = pred.std(over, keepdim=True) / guided.std(over, keepdim=True)
    return _ddpm_step(x_t, guided * (_RESCALE * ratio + (1.0 - _RESCALE)), table, noise)


def _ddpm_step_threshold(x_t: Tensor, pred: Tensor, table: Tensor, noise: Tensor | None) -> Outputs:
    x0_x_t, x0_pred, mean_x0, mean_x_t, std = table[_STEP].unbind()
    x0 = torch.addcmul(x0_x_t * x_t, x0_pred, pred)
    ratio, largest = _THRESHOLD
    sizes = torch.quantile(x0.abs().flatten(1).to(table.dtype), ratio, dim=1).to(x0.dtype)
    s = sizes.clamp(1.0, largest).view(-1, *[1] * (x0.dim() - 1))
    mean = torch.addcmul(mean_x0 * (x0.clamp(-s, s) / s), mean_x_t, x_t)
    return (torch.addcmul(mean, std, _drawn(x_t, noise)),)


def _ddim_step(x_t: Tensor, pred: Tensor, table: Tensor, noise: Tensor | None) -> Outputs:
    x0_x_t, x0_pred, prev_alpha, prev_sigma = table[_STEP].unbind()
    x0 = torch.addcmul(x0_x_t * x_t, x0_pred, pred).clamp_(-_CLIP, _CLIP)
    return (torch.addcmul(prev_alpha * x0, prev_sigma, pred),)


# ---- genkern


def _training(loss: Callable[..., Tensor], **options: Any) -> Callable[..., Outputs]:
    """Noising and the loss with the same noise; the network stands between the two."""

    def run(
        pred: Tensor, x0: Tensor, t: Tensor, key: Tensor | None, noise: Tensor | None
    ) -> Outputs:
        if key is None and noise is None:
            key = genkern.random.new_key(device=x0.device)
        x_t = diffusion.q_sample(x0, t, _SCHEDULE, key=key, noise=noise)
        return x_t, loss(pred, x0, t, _SCHEDULE, key=key, noise=noise, **options)

    return run


def _genkern_ddpm_step(
    x_t: Tensor, pred: Tensor, key: Tensor | None, noise: Tensor | None, **options: Any
) -> Outputs:
    x = diffusion.ddpm_step(
        x_t, pred, _STEP, _SCHEDULE, key=key, noise=noise, clip_range=_CLIP, **options
    )
    return (x,)


def _genkern_ddpm_step_learned(
    x_t: Tensor, pred: Tensor, key: Tensor | None, noise: Tensor | None
) -> Outputs:
    return _genkern_ddpm_step(x_t, pred, key, noise, variance_type="learned_range")


def _genkern_ddpm_step_guided(
    x_t: Tensor,
    pred: Tensor,
    uncond: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    **options: Any,
) -> Outputs:
    options |= {"uncond": uncond, "guidance_scale": _GUIDANCE}
    return _genkern_ddpm_step(x_t, pred, key, noise, **options)


def _genkern_ddpm_step_threshold(
    x_t: Tensor, pred: Tensor, key: Tensor | None, noise: Tensor | None
) -> Outputs:
    x = diffusion.ddpm_step(x_t, pred, _STEP, _SCHEDULE, key=key, noise=noise, threshold=_THRESHOLD)
    return (x,)


def _genkern_ddim_step(
    x_t: Tensor, pred: Tensor, key: Tensor | None, noise: Tensor | None
) -> Outputs:
    prev_t = _STEP - _DDIM_STRIDE
    return (diffusion.ddim_step(x_t, pred, _STEP, _SCHEDULE, prev_t=prev_t, clip_range=_CLIP),)


# ---- diffusers


def _scheduler(name: str, dtype: torch.dtype, **options: Any) -> Any:
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    if dtype == torch.float64:
        # There is no option for the tables' precision; in float64 the gate can tell a rounding
        # from a mistake.
        betas = torch.linspace(
            scheduler.config.beta_start, scheduler.config.beta_end, _T, dtype=torch.float64
        )
        scheduler.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    return scheduler


def _diffusers_ddpm_step(**options: Any) -> Callable[[torch.dtype], Callable[..., Outputs]]:
    def make(dtype: torch.dtype) -> Callable[..., Outputs]:
        # Without set_timesteps: to look up the previous step would cost it more.
        scheduler = _scheduler("DDPMScheduler", dtype, **options)
        return lambda x_t, pred: (scheduler.step(pred, _STEP, x_t).prev_sample,)

    return make


def _diffusers_ddpm_step_guided(dtype: torch.dtype) -> Callable[..., Outputs]:
    step = _diffusers_ddpm_step()(dtype)
    # As its pipelines write it.
    return lambda x_t, pred, uncond: step(x_t, uncond + _GUIDANCE * (pred - uncond))


def _diffusers_ddim_step(dtype: torch.dtype) -> Callable[..., Outputs]:
    scheduler = _scheduler("DDIMScheduler", dtype)
    scheduler.set_timesteps(_T // _DDIM_STRIDE)
    return lambda x_t, pred: (scheduler.step(pred, _STEP, x_t).prev_sample,)


Q_SAMPLE = Problem(
    "q_sample",
    lambda x0, t, key, noise: (diffusion.q_sample(x0, t, _SCHEDULE, key=key, noise=noise),),
    _q_sample,
    _images,
    tables=(_NOISING,),
)
Q_SAMPLE_NOISE_LOSS = Problem(
    "q_sample_noise_loss",
    _training(diffusion.noise_loss),
    _noise_loss,
    _predicted,
    wrt=(0,),
    tables=(_NOISING,),
)
Q_SAMPLE_VLB_TERMS = Problem(
    "q_sample_vlb_terms",
    _training(diffusion.vlb_terms, variance_type="learned_range"),
    _vlb_terms,
    _predicted_learned,
    wrt=(0,),
    tables=(_BOUND,),
)
Q_SAMPLE_HYBRID_LOSS = Problem(
    "q_sample_hybrid_loss",
    _training(diffusion.hybrid_loss, vlb_weight=_VLB_WEIGHT),
    _hybrid_loss,
    _predicted_learned,
    wrt=(0,),
    tables=(_BOUND,),
)
DDPM_STEP = Problem(
    "ddpm_step",
    _genkern_ddpm_step,
    _ddpm_step,
    _step,
    tables=(_DDPM,),
    diffusers=_diffusers_ddpm_step(),
)
DDPM_STEP_LEARNED = Problem(
    "ddpm_step_learned_range",
    _genkern_ddpm_step_learned,
    _ddpm_step_learned,
    _step_learned,
    tables=(_DDPM_LEARNED,),
    diffusers=_diffusers_ddpm_step(variance_type="learned_range"),
)
DDPM_STEP_GUIDED = Problem(
    "ddpm_step_guided",
    _genkern_ddpm_step_guided,
    _ddpm_step_guided,
    _step_guided,
    tables=(_DDPM,),
    diffusers=_diffusers_ddpm_step_guided,
)
DDPM_STEP_RESCALED = Problem(
    "ddpm_step_rescaled",
    functools.partial(_genkern_ddpm_step_guided, guidance_rescale=_RESCALE),
    _ddpm_step_rescaled,
    _step_guided,
    tables=(_DDPM,),
)
DDPM_STEP_THRESHOLD = Problem(
    "ddpm_step_threshold",
    _genkern_ddpm_step_threshold,
    _ddpm_step_threshold,
    _step,
    tables=(_DDPM,),
)
DDIM_STEP = Problem(
    "ddim_step",
    _genkern_ddim_step,
    _ddim_step,
    _step,
    tables=(_DDIM,),
    diffusers=_diffusers_ddim_step,
)
