"""Diffusion models: schedules, noising, losses, sampler steps and the full bound, fused.

Every process is a Gaussian path x_t = alpha_t x0 + sigma_t eps, and every function here is a table
of coefficients for one of a few kernels. All are differentiable to second order, compute in float32
(float64 for float64 inputs) with one rounding at the end, and never keep noise: a key of 16 bytes
gives it again. `t` is an integer or an int64 tensor, () or (B,), one step a sample; mixed dtypes
are promoted as torch does. docs/diffusion.md has the mathematics and the conventions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genkern import _coefficients
from genkern._arguments import NO_CLIP, clip_bounds, clips, given_noise, promoted
from genkern._coefficients import LEARNED, VARIANCE_TYPES
from genkern._levels import Build, Schedule, Time, is_level
from genkern._ops import checks
from genkern._ops import diffusion as ops
from genkern._ops import random as noise_ops
from genkern._ops.elements import arithmetic
from genkern._ops.random import new_words
from genkern._sample import sample
from genkern._schedules import (
    EDMSchedule,
    FlowSchedule,
    NoiseSchedule,
    check_noise_schedule,
    check_schedule,
)

__all__ = [
    "EDMSchedule",
    "FlowSchedule",
    "NoiseSchedule",
    "ddim_step",
    "ddpm_step",
    "hybrid_loss",
    "noise_loss",
    "predict_x0",
    "prior_kl",
    "q_posterior",
    "q_sample",
    "sample",
    "score",
    "vlb_terms",
]

_UNITS = ("nats", "bits", "bits/dim")

_transformed = torch._C._functorch.is_functorch_wrapped_tensor


def _same_noise(
    key: Tensor | None, noise: Tensor | None, x0: Tensor, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """The key, or where the arithmetic is wider than x0's, the noise that it gave with x0."""
    if key is None or arithmetic(x0.dtype) == arithmetic(dtype):
        return key, noise
    return None, noise_ops.normal(key, list(x0.shape), arithmetic(x0.dtype)).to(dtype)


def _drawn_elsewhere(
    function: str, pred: Tensor, key: Tensor | None, noise: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if key is None and noise is None:
        raise ValueError(
            f"{function}: expected the key or the noise that x_t was made with, got neither"
        )
    return given_noise(function, "pred", pred, pred.shape, key, noise)


def _halves(
    function: str, pred: Tensor, x_name: str, x: Tensor, kind: str, name: str = "pred"
) -> tuple[Tensor, Tensor]:
    """A network's output with a learned variance: the prediction and the values, views."""
    checks.floating(function, name, pred)
    checks.floating(function, x_name, x)
    expected = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if x.dim() > 1 else "(B, 2C, ...)"
    if pred.shape != expected:
        raise ValueError(
            f"{function}: {name} must have shape {expected} for variance_type {kind},"
            f" got {tuple(pred.shape)}"
        )
    first, second = pred.chunk(2, dim=1)
    return first, second


def q_sample(
    x0: Tensor,
    t: Time,
    schedule: Schedule,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws x_t from q(x_t | x_0): adds the noise of step t to the data.

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon

    Ho et al., "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, (4); in other schedules
    alpha_t x0 + sigma_t eps.

    Args:
        x0: Data, (B, ...).
        t: Step, an integer or int64, () or (B,); with a FlowSchedule or EDMSchedule also a level.
        schedule: A schedule.
        key: uint64 or int64 key, (2,), or (B, 2) for one a sample.
        noise: The noise itself, in x0's shape. Differentiable.
        generator: Source of a new key. Give at most one of key, noise and generator; without any,
            a new key comes from the default generator.

    Returns:
        x_t, in the promoted dtype and x0's memory format.

    Raises:
        TypeError: If x0 is not floating point, or t, the key or the schedule of the wrong type.
        ValueError: If shapes or devices disagree, or more than one source of noise is given.
        IndexError: If t is out of range.

    Note:
        Coefficients come from a float64 table whatever x0's dtype, and the noise of a key enters
        unrounded. Same key, same noise, bit for bit, on every backend.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> x0, t = torch.ones(2, 3), torch.tensor([0, 999])
        >>> genkern.diffusion.q_sample(x0, t, schedule, key=genkern.random.key(42))
        tensor([[ 0.9902,  1.0019,  0.9876],
                [ 1.9302, -0.0668,  0.1455]])
    """
    check_schedule("q_sample", schedule)
    checks.floating("q_sample", "x0", x0)
    key, noise = given_noise("q_sample", "x0", x0, x0.shape, key, noise, generator)
    x0, noise = promoted(x0, noise)  # type: ignore[assignment]
    table, index = schedule.rows("q_sample", _coefficients.noising, (), t, x0, x0.dtype)
    if key is None and noise is None:
        key = new_words(None, x0.device, generator)
    return ops.affine(x0, None, None, key, noise, table, index)


def noise_loss(
    pred: Tensor,
    x0: Tensor,
    t: Time,
    schedule: Schedule,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    prediction_type: str = "epsilon",
    weighting: str | Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The weighted squared error of a prediction; its target is made again from the key.

    .. math::  w_t\, \lVert \mathrm{pred} - \mathrm{target} \rVert^2, \qquad
               \mathrm{target} = \epsilon,\; x_0,\;
               \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\, x_0

    for prediction_type "epsilon", (42.6) and Ho et al., arXiv:2006.11239, (14); "sample"; and
    "v_prediction", Salimans and Ho, arXiv:2202.00512, appendix D. A FlowSchedule adds "flow", an
    EDMSchedule "edm".

    Args:
        pred: The network's output at x_t, (B, ...).
        x0: Data in pred's shape.
        t: Step of each sample, as for :func:`q_sample`.
        schedule: A schedule.
        key: The key that `q_sample` was called with.
        noise: Or the noise. One of the two is required, except for "sample".
        prediction_type: What the network predicts.
        weighting: None for 1; "vlb" for L_{t-1} of the bound (42.9), with its weight at t = 0 that
            at t = 1; "min_snr" for the weight min(snr, 5) of the error of x0 (Hang et al.,
            arXiv:2303.09556); or a floating tensor (T,), by step.
        sample_weight: More weights, (B,).
        reduction: "none", "sum", "mean", "batchmean" or "sample", as torch's; weights do not
            change what a mean divides by.

    Returns:
        The loss, in float32 (float64) when reduced, in the promoted dtype for "none".

    Raises:
        TypeError: If a tensor is not floating point, or t, the key or the schedule of the wrong
            type.
        ValueError: If shapes or devices disagree, noise is given twice or not at all, or an option
            is not valid.
        IndexError: If t is out of range.

    Note:
        One pass forward, one backward; nothing is kept but the inputs. (In float32, float64 and
        bfloat16 on a CPU the one pass also forms the gradient of pred, which is kept instead.)
        Deterministic: the same bits for any number of threads. "epsilon" is a target at any step,
        also where alphas_cumprod is 0, though no step can be made from such a prediction; the
        weight "min_snr" is finite there, "vlb" infinite, which is refused.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> x0, t, key = torch.ones(2, 3), torch.tensor([10, 500]), genkern.random.key(42)
        >>> x_t = genkern.diffusion.q_sample(x0, t, schedule, key=key)
        >>> genkern.diffusion.noise_loss(torch.zeros(2, 3), x0, t, schedule, key=key)
        tensor(1.0386)
    """
    code = checks.reduction_code("noise_loss", reduction)
    check_schedule("noise_loss", schedule)
    checks.one_of("noise_loss", "prediction_type", prediction_type, schedule.prediction_types)
    checks.pair("noise_loss", "pred", pred, "x0", x0)
    if prediction_type == "sample" and key is None and noise is None:
        pass
    else:
        key, noise = _drawn_elsewhere("noise_loss", pred, key, noise)
    by_step = None
    word: str | None = None
    if isinstance(weighting, Tensor):
        by_step = weighting
        _check_weights("noise_loss", "weighting", by_step, len(schedule), pred)
    elif weighting is not None:
        checks.one_of("noise_loss", "weighting", weighting, schedule.weightings)
        word = weighting
    if sample_weight is not None:
        batch = pred.shape[0] if pred.dim() else 1
        _check_weights("noise_loss", "sample_weight", sample_weight, batch, pred)
    pred, target, noise = promoted(pred, x0, noise)  # type: ignore[assignment]
    table, index = schedule.rows(
        "noise_loss",
        _coefficients.noise_loss,
        (prediction_type, word),
        t,
        pred,
        pred.dtype,
        needs_signal=word == "vlb" and prediction_type == "epsilon",
    )
    if by_step is not None:
        sample_weight = _at_steps(by_step, t, sample_weight, pred)
    if sample_weight is not None:
        sample_weight = sample_weight.to(arithmetic(pred.dtype))
    if prediction_type == "sample":
        key = noise = None
    else:
        key, noise = _same_noise(key, noise, x0, pred.dtype)
    return ops.noise_loss(
        pred,
        None if prediction_type == "epsilon" else target,
        key,
        noise,
        table,
        index,
        sample_weight,
        code,
    )


def _check_weights(function: str, name: str, weights: Tensor, count: int, pred: Tensor) -> None:
    checks.floating(function, name, weights)
    if weights.shape != (count,):
        raise ValueError(
            f"{function}: {name} must have shape ({count},), got {tuple(weights.shape)}"
        )
    checks.same_device(function, name, weights, "pred", pred)


def _at_steps(weighting: Tensor, t: Time, sample_weight: Tensor | None, pred: Tensor) -> Tensor:
    """The weights of the samples, from those of the steps."""
    if is_level(t):
        raise TypeError("noise_loss: t must be a step where weighting is a tensor, got a level")
    index = t.clamp(0, len(weighting) - 1) if isinstance(t, Tensor) else int(t)
    weights = weighting[index]
    if sample_weight is not None:
        exact = arithmetic(pred.dtype)
        return weights.to(exact) * sample_weight.to(exact)
    return weights.expand(pred.shape[0] if pred.dim() else 1)


def q_posterior(
    x0: Tensor, x_t: Tensor, t: Time, schedule: NoiseSchedule, *, prev_t: Time | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The posterior q(x_prev | x_t, x_0) of the forward process.

    .. math::  \tilde\mu = \frac{\sqrt{\bar\alpha_s}\,\beta}{1 - \bar\alpha_t}\, x_0
               + \frac{\sqrt{\alpha}\,(1 - \bar\alpha_s)}{1 - \bar\alpha_t}\, x_t, \qquad
               \tilde\beta = \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}\, \beta

    with s = prev_t, alpha = alphabar_t / alphabar_s and beta = 1 - alpha: Ho et al.,
    arXiv:2006.11239, (6) and (7).

    Args:
        x0: Data, (B, ...).
        x_t: Noised data in x0's shape.
        t: Step, as for :func:`q_sample`.
        schedule: A NoiseSchedule.
        prev_t: The step below, t - 1 when None; -1 is clean data.

    Returns:
        (mean, variance, log_variance): the mean in the promoted dtype; the others in float32
        (float64), expanded to its shape. Where prev_t is -1 the variance is 0, and the
        log-variance that of step 1.

    Raises:
        TypeError: If a tensor is not floating point, or t or the schedule of the wrong type.
        ValueError: If shapes or devices disagree, or prev_t is not below t.
        IndexError: If t is out of range.

    Note:
        Coefficients come from a float64 table; the mean is rounded once.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(40, 1e-4, 0.06)
        >>> x0, x_t = torch.tensor([2.0]), torch.tensor([1.0])
        >>> genkern.diffusion.q_posterior(x0, x_t, 19, schedule)[0]
        tensor([1.0988])
    """
    check_noise_schedule("q_posterior", schedule)
    checks.pair("q_posterior", "x0", x0, "x_t", x_t)
    x0, x_t = promoted(x0, x_t)  # type: ignore[assignment]
    table, index = schedule.rows(
        "q_posterior", _coefficients.q_posterior, (), t, x0, x0.dtype, prev_t
    )
    mean = ops.affine(x0, x_t, None, None, None, table, index)
    # A copy: the schedule keeps the table, and results are the caller's to change.
    rows = table.clone() if index is None else table[index.reshape(-1)]
    shape = (-1, *[1] * (x0.dim() - 1)) if x0.dim() else ()
    variance, log_variance = (rows[:, i].reshape(shape).expand(x0.shape) for i in (2, 3))
    return mean, variance, log_variance


def predict_x0(
    x_t: Tensor, pred: Tensor, t: Time, schedule: Schedule, *, prediction_type: str = "epsilon"
) -> Tensor:
    r"""The data that a network's prediction stands for.

    .. math::  \hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\,\epsilon}{\sqrt{\bar\alpha_t}}, \quad
               \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, v

    for "epsilon", Ho et al., arXiv:2006.11239, (15), and "v_prediction", Salimans and Ho,
    arXiv:2202.00512, appendix D.

    Args:
        x_t: Noised data, (B, ...).
        pred: The network's output, in x_t's shape.
        t: Step, as for :func:`q_sample`.
        schedule: A schedule.
        prediction_type: What the network predicts.

    Returns:
        The estimate of x0, in the promoted dtype and x_t's memory format.

    Raises:
        TypeError: If a tensor is not floating point, or t or the schedule of the wrong type.
        ValueError: If shapes or devices disagree, or prediction_type is unknown, or "epsilon" where
            nothing of x0 is left in x_t.
        IndexError: If t is out of range.

    Note:
        Coefficients come from a float64 table; rounded once.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> x0, noise = torch.full((1, 2), 0.25), torch.ones(1, 2)
        >>> x_t = genkern.diffusion.q_sample(x0, 500, schedule, noise=noise)
        >>> genkern.diffusion.predict_x0(x_t, noise, 500, schedule)
        tensor([[0.2500, 0.2500]])
    """
    check_schedule("predict_x0", schedule)
    checks.one_of("predict_x0", "prediction_type", prediction_type, schedule.prediction_types)
    checks.pair("predict_x0", "x_t", x_t, "pred", pred)
    x_t, pred = promoted(x_t, pred)  # type: ignore[assignment]
    table, index = schedule.rows(
        "predict_x0",
        _coefficients.x0,
        (prediction_type,),
        t,
        x_t,
        x_t.dtype,
        needs_signal=prediction_type == "epsilon",
    )
    return ops.affine(x_t, pred, None, None, None, table, index)


def score(eps: Tensor, t: Time, schedule: Schedule) -> Tensor:
    r"""The score that noise, or a prediction of it, stands for.

    .. math:: \nabla \log q(x_t | x_0) = -\epsilon / \sqrt{1 - \bar\alpha_t}

    Song et al., "Score-based generative modeling through SDEs", arXiv:2011.13456, section 3.3; in
    other schedules -eps / sigma_t.

    Args:
        eps: Noise, (B, ...).
        t: Step, as for :func:`q_sample`.
        schedule: A schedule.

    Returns:
        The score, in eps's dtype and memory format.

    Raises:
        TypeError: If eps is not floating point, or t or the schedule of the wrong type.
        ValueError: If shapes or devices disagree.
        IndexError: If t is out of range.

    Note:
        Coefficients come from a float64 table; rounded once.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.from_alphas_cumprod([0.75, 0.5])
        >>> genkern.diffusion.score(torch.ones(1, 2), 0, schedule)
        tensor([[-2., -2.]])
    """
    check_schedule("score", schedule)
    checks.floating("score", "eps", eps)
    table, index = schedule.rows("score", _coefficients.score, (), t, eps, eps.dtype)
    return ops.affine(eps, None, None, None, None, table, index)


def ddpm_step(
    x_t: Tensor,
    pred: Tensor,
    t: Time,
    schedule: NoiseSchedule,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    prev_t: Time | None = None,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip_range: float | tuple[float, float] | None = None,
    threshold: tuple[float, float] | None = None,
    uncond: Tensor | None = None,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    r"""One ancestral step from x_t to x_prev.

    .. math::  x_s = \tilde\mu(\hat x_0, x_t) + \sigma z, \qquad
               \sigma^2 = \tilde\beta \text{ or } \beta \text{ or learned}

    (42.8) and (42.10); Ho et al., arXiv:2006.11239, (7), (11) and algorithm 2, with the mean in
    terms of the (clipped) estimate of x0.

    Args:
        x_t: Noised data, (B, ...).
        pred: The network's output in x_t's shape; for a learned variance (B, 2C, ...), the
            prediction and then the variance's values, read in place.
        t: Step, as for :func:`q_sample`.
        schedule: A NoiseSchedule.
        key: uint64 or int64 key, (2,), or (B, 2) for one a sample.
        noise: The noise itself, in x_t's shape.
        generator: Source of a new key. Give at most one of key, noise and generator; without any,
            a new key comes from the default generator.
        prev_t: The step to go to, t - 1 when None; -1 is clean data, and there no noise is added.
        prediction_type: "epsilon", "v_prediction" or "sample".
        variance_type: "fixed_small" (the posterior's), "fixed_large" (beta), "learned" (the values
            are the log-variance) or "learned_range" (they interpolate the logarithms of the two,
            Nichol and Dhariwal, arXiv:2102.09672, (15)).
        clip_range: c to clip the estimate of x0 to [-c, c], or (low, high).
        threshold: (ratio, max_value) for dynamic thresholding instead: the estimate of a sample is
            clipped to [-s, s] and divided by s, its quantile `ratio` of absolute values, within
            [1, max_value] (Saharia et al., arXiv:2205.11487, section 2.3).
        uncond: The network's output without the condition, for classifier-free guidance: the
            prediction becomes uncond + guidance_scale (pred - uncond). Its variance is not used.
        guidance_scale: See uncond.
        guidance_rescale: How much of the guided prediction's standard deviation is set back to that
            of pred, in [0, 1]: Lin et al., arXiv:2305.08891, (16).
        out: Where to write; may be x_t. Not differentiable.

    Returns:
        x_prev, in the promoted dtype and x_t's memory format; or out.

    Raises:
        TypeError: If a tensor is not floating point, or t, the key or the schedule of the wrong
            type.
        ValueError: If shapes or devices disagree, noise is given twice, prev_t is not below t, an
            option is not valid, guidance lacks uncond, out overlaps an input or an input that
            requires grad comes with out, or "epsilon" is predicted where nothing of x0 is left.
        IndexError: If t is out of range.

    Note:
        One pass (rescaling and thresholding add one each). Differentiable in x_t, pred, uncond and
        noise; the gradient passes a clip at its bounds. No noise is drawn where none is added.
        Coefficients come from a float64 table, and the result is rounded once. Deterministic: the
        same bits for any number of threads and any batch, and a key's noise on every backend.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> x_t, pred = torch.ones(1, 2), torch.zeros(1, 2)
        >>> genkern.diffusion.ddpm_step(x_t, pred, 500, schedule, key=genkern.random.key(42))
        tensor([[0.9078, 1.0245]])
    """
    check_noise_schedule("ddpm_step", schedule)
    checks.one_of("ddpm_step", "variance_type", variance_type, VARIANCE_TYPES)
    clip = clip_bounds("ddpm_step", clip_range)
    return _step(
        "ddpm_step", x_t, pred, t, schedule, key, noise, generator, prev_t, prediction_type, clip,
        threshold, uncond, guidance_scale, guidance_rescale, out,
        build=_coefficients.ddpm_step,
        options=(prediction_type, variance_type, clips(clip) or threshold is not None),
        learned=variance_type if variance_type in LEARNED else None,
        noisy=True,
    )  # fmt: skip


def ddim_step(
    x_t: Tensor,
    pred: Tensor,
    t: Time,
    schedule: Schedule,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    prev_t: Time | None = None,
    eta: float = 0.0,
    prediction_type: str = "epsilon",
    clip_range: float | tuple[float, float] | None = None,
    threshold: tuple[float, float] | None = None,
    use_clipped_model_output: bool = False,
    uncond: Tensor | None = None,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    r"""One step of the implicit model from x_t to x_prev; deterministic for eta = 0.

    .. math::  x_s = \sqrt{\bar\alpha_s}\, \hat x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}\,
               \hat\epsilon + \sigma z, \qquad \sigma^2 = \eta^2 \tilde\beta

    Song et al., "Denoising Diffusion Implicit Models", arXiv:2010.02502, (12) and (16). In a
    FlowSchedule it is Euler's step along the velocity, in an EDMSchedule Euler's step in sigma.

    Args:
        x_t: Noised data, (B, ...).
        pred: The network's output in x_t's shape.
        t: Step, as for :func:`q_sample`; with a FlowSchedule or EDMSchedule also a level, and then
            prev_t is a level too, 0.0 for clean data.
        schedule: A schedule.
        key: As for :func:`ddpm_step`; not needed where no noise is added.
        noise: Likewise.
        generator: Likewise.
        prev_t: The step to go to, t - 1 when None; -1 is clean data.
        eta: From 0, deterministic, to 1, DDPM. Above 0 only with a NoiseSchedule.
        prediction_type: What the network predicts.
        clip_range: As for :func:`ddpm_step`.
        threshold: As for :func:`ddpm_step`.
        use_clipped_model_output: Whether the noise is derived again from the clipped estimate of
            x0; otherwise it is the prediction's own.
        uncond: As for :func:`ddpm_step`.
        guidance_scale: As for :func:`ddpm_step`.
        guidance_rescale: As for :func:`ddpm_step`.
        out: Where to write; may be x_t. Not differentiable.

    Returns:
        x_prev, in the promoted dtype and x_t's memory format; or out.

    Raises:
        TypeError: As :func:`ddpm_step`.
        ValueError: As :func:`ddpm_step`, or if eta is not in [0, 1].
        IndexError: If t is out of range.

    Note:
        As for :func:`ddpm_step`.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> x_t, pred = torch.ones(1, 2), torch.zeros(1, 2)
        >>> genkern.diffusion.ddim_step(x_t, pred, 500, schedule, prev_t=480)
        tensor([[1.1043, 1.1043]])
    """
    check_schedule("ddim_step", schedule)
    eta = checks.number("ddim_step", "eta", eta)
    schedule.check_eta("ddim_step", eta)
    clip = clip_bounds("ddim_step", clip_range)
    clipped = clips(clip) or threshold is not None
    return _step(
        "ddim_step", x_t, pred, t, schedule, key, noise, generator, prev_t, prediction_type, clip,
        threshold, uncond, guidance_scale, guidance_rescale, out,
        build=_coefficients.ddim_step,
        options=(prediction_type, eta, clipped, clipped and use_clipped_model_output),
        learned=None,
        noisy=eta > 0.0,
    )  # fmt: skip


def _step(
    function: str,
    x_t: Tensor,
    pred: Tensor,
    t: Time,
    schedule: Schedule,
    key: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
    prev_t: Time | None,
    prediction_type: str,
    clip: tuple[float, float],
    threshold: tuple[float, float] | None,
    uncond: Tensor | None,
    guidance_scale: float,
    guidance_rescale: float,
    out: Tensor | None,
    *,
    build: Build,
    options: tuple[Any, ...],
    learned: str | None,
    noisy: bool,
) -> Tensor:
    checks.one_of(function, "prediction_type", prediction_type, schedule.prediction_types)
    if prev_t is None and schedule.highest is not None and is_level(t):
        raise TypeError(f"{function}: prev_t must be a level, as t is, got None")
    values = None
    if learned is None:
        checks.pair(function, "x_t", x_t, "pred", pred)
    else:
        pred, values = _halves(function, pred, "x_t", x_t, learned)
    if uncond is not None or guidance_scale != 1.0 or guidance_rescale != 0.0:
        guidance_scale = checks.number(function, "guidance_scale", guidance_scale)
        guidance_rescale = checks.number(
            function, "guidance_rescale", guidance_rescale, 0.0, 1.0, "in [0, 1]"
        )
        uncond = _uncond(function, x_t, uncond, guidance_scale, guidance_rescale, learned)
    if threshold is not None:
        threshold = _threshold(function, threshold, clip)
    key, noise = given_noise(function, "x_t", x_t, x_t.shape, key, noise, generator)
    if not noisy or _is_clean(t, prev_t):
        noisy, key, noise = False, None, None
    x_t, pred, values, uncond, noise = promoted(x_t, pred, values, uncond, noise)  # type: ignore[assignment]
    if out is not None:
        _check_out(function, out, x_t, {"pred": pred, "uncond": uncond, "noise": noise}, values)
    table, index = schedule.rows(
        function,
        build,
        options,
        t,
        x_t,
        x_t.dtype,
        prev_t,
        needs_signal=prediction_type == "epsilon",
    )
    if noisy and key is None and noise is None:
        key = new_words(None, x_t.device, generator)
    factor = limit = None
    if guidance_rescale > 0.0:
        factor = ops.guidance_factor(pred, uncond, guidance_scale, guidance_rescale)
    if threshold is not None and x_t.numel() > 0:
        limit = ops.dynamic_threshold(
            x_t, pred, uncond, table, index, factor, guidance_scale, *threshold
        )
    args = (x_t, pred, values, uncond, key, noise, table, index, factor, limit, guidance_scale)
    if out is None:
        return ops.sampler_step(*args, *clip)
    ops.sampler_step_out(*args, *clip, out)
    return out


def _is_clean(t: Time, prev_t: Time | None) -> bool:
    """Whether a step is known to end at clean data for every sample."""
    if prev_t is None:
        return not isinstance(t, Tensor) and t == 0
    if isinstance(prev_t, Tensor):
        return False
    return prev_t == 0.0 if isinstance(prev_t, float) else prev_t < 0


def _uncond(
    function: str,
    x_t: Tensor,
    uncond: Tensor | None,
    guidance_scale: float,
    guidance_rescale: float,
    learned: str | None,
) -> Tensor:
    if uncond is None:
        raise ValueError(
            f"{function}: uncond must be given with guidance_scale {guidance_scale} and"
            f" guidance_rescale {guidance_rescale}, got None"
        )
    if learned is not None and isinstance(uncond, Tensor) and uncond.shape != x_t.shape:
        uncond = _halves(function, uncond, "x_t", x_t, learned, "uncond")[0]
    checks.pair(function, "x_t", x_t, "uncond", uncond)
    return uncond


def _threshold(
    function: str, threshold: tuple[float, float], clip: tuple[float, float]
) -> tuple[float, float]:
    if clip != NO_CLIP:
        raise ValueError(f"{function}: expected at most one of clip_range, threshold, got both")
    expected = "(ratio in [0, 1], max_value > 0)"
    ratio, max_value = checks.two_numbers(function, "threshold", threshold, expected)
    if not (0.0 <= ratio <= 1.0 and max_value > 0.0):
        raise ValueError(f"{function}: threshold must be {expected}, got {threshold}")
    return ratio, max_value


def _check_out(
    function: str, out: object, x_t: Tensor, inputs: dict[str, Tensor | None], values: Tensor | None
) -> None:
    """Raises unless out can take the result: x_t itself, or memory that no input uses."""
    checks.floating(function, "out", out)
    assert isinstance(out, Tensor)
    if out.dtype != x_t.dtype or out.shape != x_t.shape:
        raise ValueError(
            f"{function}: out must be {x_t.dtype} of shape {tuple(x_t.shape)},"
            f" got {out.dtype} of shape {tuple(out.shape)}"
        )
    checks.same_device(function, "out", out, "x_t", x_t)
    named = {"x_t": x_t, **inputs, "pred's variance": values}
    if torch.is_grad_enabled():
        for name, x in {**named, "out": out}.items():
            if x is not None and x.requires_grad:
                raise ValueError(
                    f"{function}: with out no tensor may require grad (use torch.no_grad()),"
                    f" got {name} that does"
                )
    if torch.compiler.is_compiling() or type(out) is not Tensor or out.is_meta:
        return
    if any(x is not None and _transformed(x) for x in (out, *named.values())):
        raise ValueError(
            f"{function}: out must be None under torch.func's transforms, got a tensor"
        )
    checks.own_memory(function, "out", out)
    in_place = x_t.data_ptr() == out.data_ptr() and x_t.stride() == out.stride()
    for name, x in named.items():
        if x is None or (name == "x_t" and in_place) or not checks.share_memory(x, out):
            continue
        expected = f"share no memory with {name}"
        if name == "x_t":
            expected = "be x_t itself or share no memory with it"
        raise ValueError(f"{function}: out must {expected}, got overlapping tensors")


def vlb_terms(
    pred: Tensor,
    x0: Tensor,
    t: Time,
    schedule: NoiseSchedule,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip_range: float | tuple[float, float] | None = None,
    units: str = "nats",
    reduction: str = "sample",
) -> Tensor:
    r"""The terms of the variational bound at the given steps: L_{t-1}, and L_0 at t = 0.

    .. math::  L_{t-1} = \mathrm{KL}(q(x_{t-1} | x_t, x_0) \,\|\, p_\theta(x_{t-1} | x_t)), \qquad
               L_0 = -\log p_\theta(x_0 | x_1)

    (42.7); Ho et al., arXiv:2006.11239, (5), with the discretised Gaussian decoder (13) for data of
    256 values in [-1, 1]. With :func:`prior_kl` for L_T, the sum over all t is the bound.

    Args:
        pred: The network's output at x_t, in x0's shape; (B, 2C, ...) for a learned variance.
        x0: Data, (B, ...).
        t: Step of each sample, as for :func:`q_sample`.
        schedule: A NoiseSchedule.
        key: The key that `q_sample` was called with.
        noise: Or the noise. One of the two is required.
        prediction_type: "epsilon", "v_prediction" or "sample".
        variance_type: As for :func:`ddpm_step`. At t = 0 a fixed variance is that of the posterior
            at step 1, as guided-diffusion's.
        clip_range: As for :func:`ddpm_step`.
        units: "nats", "bits", or "bits/dim": bits divided by the number of elements of a sample.
        reduction: As for :func:`noise_loss`; by default one term a sample, (B,).

    Returns:
        The terms, in float32 (float64) when reduced.

    Raises:
        TypeError: If a tensor is not floating point, or t, the key or the schedule of the wrong
            type.
        ValueError: If shapes or devices disagree, noise is given twice or not at all, an option is
            not valid, or "epsilon" is predicted where nothing of x0 is left.
        IndexError: If t is out of range.

    Note:
        x_t is not formed: only the error of the prediction enters, and the two variances by
        expm1(x) - x, so that a term is never negative by cancellation. The decoder's probability
        uses the exact normal distribution function, with its tails, and for deviations far wider
        than a bin a series, so that its logarithm keeps its digits at any variance. Deterministic
        as :func:`noise_loss` is.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> x0, noise = torch.zeros(1, 2), torch.ones(1, 2)
        >>> genkern.diffusion.vlb_terms(noise, x0, 500, schedule, noise=noise)
        tensor([0.])
    """
    check_noise_schedule("vlb_terms", schedule)
    checks.one_of("vlb_terms", "variance_type", variance_type, VARIANCE_TYPES)
    checks.one_of("vlb_terms", "prediction_type", prediction_type, schedule.prediction_types)
    options = (_in_units("vlb_terms", units, x0), 0.0, False)
    clip = clip_bounds("vlb_terms", clip_range)
    kinds = (prediction_type, variance_type)
    return _vlb("vlb_terms", pred, x0, t, schedule, key, noise, kinds, clip, options, reduction)


def hybrid_loss(
    pred: Tensor,
    x0: Tensor,
    t: Time,
    schedule: NoiseSchedule,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    variance_type: str = "learned_range",
    vlb_weight: float = 1e-3,
    reduction: str = "mean",
) -> Tensor:
    r"""The loss of a network that predicts the noise and learns the variance.

    .. math::  L = \lVert \epsilon - \epsilon_\theta \rVert^2 + \lambda\, T\, L_{vlb}

    Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", arXiv:2102.09672,
    (16): the terms of :func:`vlb_terms` in bits, with no gradient through the predicted mean. The
    default weight gives guided-diffusion's rescaled loss.

    Args:
        pred: The network's output at x_t, (B, 2C, ...): the noise, then the variance's values.
        x0: Data, (B, C, ...).
        t: Step of each sample, as for :func:`q_sample`.
        schedule: A NoiseSchedule.
        key: The key that `q_sample` was called with.
        noise: Or the noise. One of the two is required.
        variance_type: "learned_range" or "learned", as for :func:`ddpm_step`.
        vlb_weight: lambda.
        reduction: As for :func:`noise_loss`.

    Returns:
        The loss, in float32 (float64) when reduced.

    Raises:
        TypeError: As :func:`vlb_terms`.
        ValueError: As :func:`vlb_terms`.
        IndexError: If t is out of range.

    Note:
        One pass for both parts; numerics as for :func:`vlb_terms`.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> x0, pred, key = torch.zeros(2, 3, 4), torch.zeros(2, 6, 4), genkern.random.key(0)
        >>> genkern.diffusion.hybrid_loss(pred, x0, torch.tensor([1, 500]), schedule, key=key)
        tensor(1.1904)
    """
    check_noise_schedule("hybrid_loss", schedule)
    checks.one_of("hybrid_loss", "variance_type", variance_type, LEARNED)
    vlb_weight = checks.number(
        "hybrid_loss", "vlb_weight", vlb_weight, 0.0, expected="at least 0 and finite"
    )
    options = (vlb_weight * len(schedule) / math.log(2.0), 1.0, True)
    kinds = ("epsilon", variance_type)
    return _vlb(
        "hybrid_loss", pred, x0, t, schedule, key, noise, kinds, NO_CLIP, options, reduction
    )


def _vlb(
    function: str,
    pred: Tensor,
    x0: Tensor,
    t: Time,
    schedule: NoiseSchedule,
    key: Tensor | None,
    noise: Tensor | None,
    kinds: tuple[str, str],
    clip: tuple[float, float],
    options: tuple[float, float, bool],
    reduction: str,
) -> Tensor:
    code = checks.reduction_code(function, reduction)
    prediction_type, variance_type = kinds
    values = None
    if variance_type in LEARNED:
        pred, values = _halves(function, pred, "x0", x0, variance_type)
    checks.pair(function, "pred", pred, "x0", x0)
    key, noise = _drawn_elsewhere(function, pred, key, noise)
    pred, values, target, noise = promoted(pred, values, x0, noise)  # type: ignore[assignment]
    table, index = schedule.rows(
        function,
        _coefficients.vlb,
        kinds,
        t,
        pred,
        pred.dtype,
        needs_signal=prediction_type == "epsilon",
    )
    key, noise = _same_noise(key, noise, x0, pred.dtype)
    return ops.vlb(pred, values, target, key, noise, table, index, *clip, *options, code)


def prior_kl(
    x0: Tensor, schedule: NoiseSchedule, *, units: str = "nats", reduction: str = "sample"
) -> Tensor:
    r"""The bound's last term: how far the noised data is from pure noise.

    .. math::  L_T = \mathrm{KL}(q(x_T | x_0) \,\|\, N(0, I)) = \tfrac12 \sum_j \left(
               \bar\alpha_T x_{0,j}^2 - \bar\alpha_T - \log(1 - \bar\alpha_T) \right)

    (42.7); Ho et al., arXiv:2006.11239, (5).

    Args:
        x0: Data, (B, ...).
        schedule: A NoiseSchedule.
        units: As for :func:`vlb_terms`.
        reduction: As for :func:`vlb_terms`.

    Returns:
        The divergence, in float32 (float64) when reduced.

    Raises:
        TypeError: If x0 is not floating point, or the schedule not a NoiseSchedule.
        ValueError: If an option is not valid.

    Note:
        0 with zero terminal signal-to-noise ratio. Deterministic as :func:`noise_loss` is.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.from_alphas_cumprod([0.75, 0.5])
        >>> genkern.diffusion.prior_kl(torch.ones(1, 2), schedule)
        tensor([0.6931])
    """
    check_noise_schedule("prior_kl", schedule)
    code = checks.reduction_code("prior_kl", reduction)
    checks.floating("prior_kl", "x0", x0)
    options = (_in_units("prior_kl", units, x0),)
    last = len(schedule) - 1
    table, _ = schedule.rows("prior_kl", _coefficients.prior_kl, options, last, x0, x0.dtype)
    return ops.noise_loss(x0, None, None, None, table, None, None, code)


def _in_units(function: str, units: str, x0: Tensor) -> float:
    """What a nat is in the given units."""
    checks.one_of(function, "units", units, _UNITS)
    if units == "nats":
        return 1.0
    checks.floating(function, "x0", x0)
    elements = math.prod(x0.shape[1:]) if units == "bits/dim" else 1
    return 1.0 / (math.log(2.0) * max(elements, 1))
