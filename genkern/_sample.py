"""The sampling loop: a model call and one fused step in place, with nothing else in between."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from genkern import _coefficients
from genkern._arguments import NO_CLIP, clip_bounds, clips
from genkern._coefficients import LEARNED, VARIANCE_TYPES
from genkern._levels import Build, Schedule
from genkern._ops import checks
from genkern._ops import diffusion as ops
from genkern._ops.elements import arithmetic
from genkern._schedules import check_noise_schedule, check_schedule
from genkern.random import new_key, normal, split

_SAMPLERS = ("ddpm", "ddim", "ode")


@torch.no_grad()
def sample(
    model: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
    schedule: Schedule,
    *,
    sampler: str = "ddpm",
    num_steps: int | None = None,
    spacing: str = "leading",
    eta: float = 0.0,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
    clip_range: float | tuple[float, float] | None = None,
    progress: bool = True,
    callback: Callable[[int, int, Tensor], object] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Draws samples from a model: from noise to data in num_steps steps.

    "ddpm" is Ho et al., arXiv:2006.11239, algorithm 2; "ddim" Song et al., arXiv:2010.02502, (12);
    "ode" the probability flow

    .. math::  \frac{d (x / \alpha)}{d (\sigma / \alpha)} = \hat\epsilon(x)

    (Song et al., (14); in a FlowSchedule dx/ds = v) by Heun's method, Karras et al.,
    arXiv:2206.00364, algorithm 1, with two model calls a step but for the last.

    Args:
        model: model(x_t, t) -> prediction, with t int64 of shape (B,). With an EDMSchedule t is
            the level; for "edm" the model is F and gets (c_in x_t, c_noise).
        shape: Shape of the samples, (B, ...).
        schedule: A schedule; "ddpm" needs a NoiseSchedule.
        sampler: "ddpm", "ddim" or "ode".
        num_steps: Number of steps; all T when None.
        spacing: Which steps, as in the schedule's `timesteps`. "leading" leaves out the last ones:
            a FlowSchedule's run then starts below level 1 from pure noise, so give it "trailing".
        eta: As for :func:`ddim_step`, with "ddim".
        key: uint64 or int64 key, (2,), or (B, 2) for one a sample; (2,) is split into B.
        generator: Source of a new key. Give at most one of key and generator.
        prediction_type: What the model predicts.
        variance_type: As for :func:`ddpm_step`. With a learned one the model returns
            (B, 2C, ...); the other samplers leave its second half aside.
        clip_range: As for :func:`ddpm_step`; not with "ode".
        progress: Whether to show a bar, if tqdm is installed.
        callback: callback(step, t, x) after each step; x is overwritten by the next.
        device: Device of the samples; the key's or the generator's or the schedule's when None.
        dtype: Their dtype, PyTorch's default when None.

    Returns:
        The samples x_0.

    Raises:
        TypeError: If the schedule, key, dtype, shape, callback or the model's output is of the
            wrong type.
        ValueError: If an option is not valid, the model's output has the wrong shape, or "epsilon"
            is predicted at a step where nothing of x0 is left.

    Note:
        x_T is drawn with `fold_in(key, 0)` of each sample's key and step s with
        `fold_in(key, s + 1)`, so a sample does not depend on its batch. The keys, coefficients and
        times of all steps are made before the loop, which neither allocates nor waits for the
        device, and the schedule keeps them: a second call makes nothing on the host, so it can be
        captured in a CUDA graph, or compiled (progress=False in both). Made without gradients.

    Example:
        >>> import torch, genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> def model(x, t):  # the best one if all data is 0.5
        ...     a = schedule.alphas_cumprod.float()[t].unsqueeze(1)
        ...     return (x - 0.5 * a.sqrt()) / (1 - a).sqrt()
        >>> key = genkern.random.key(0)
        >>> genkern.diffusion.sample(
        ...     model, (2, 3), schedule, sampler="ddim", num_steps=10, key=key, progress=False
        ... )
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """
    checks.one_of("sample", "sampler", sampler, _SAMPLERS)
    check_schedule("sample", schedule)
    if sampler == "ddpm":
        check_noise_schedule("sample", schedule)
    checks.one_of("sample", "prediction_type", prediction_type, schedule.prediction_types)
    checks.one_of("sample", "variance_type", variance_type, VARIANCE_TYPES)
    clip = clip_bounds("sample", clip_range)
    if sampler == "ode" and clip != NO_CLIP:
        raise ValueError(f"sample: clip_range must be None with sampler 'ode', got {clip_range}")
    eta = checks.number("sample", "eta", eta)
    if eta != 0.0:
        if sampler != "ddim":
            raise ValueError(f"sample: eta must be 0 with sampler {sampler!r}, got {eta}")
        schedule.check_eta("sample", eta)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    checks.floating_dtype("sample", dtype)
    shape = tuple(checks.sizes("sample", "shape", shape, "(B, ...)"))
    learned = variance_type in LEARNED
    if len(shape) < (2 if learned else 1):
        needed = f"(B, C, ...) with variance_type {variance_type}" if learned else "(B, ...)"
        raise ValueError(f"sample: shape must be {needed}, got {shape}")
    if callback is not None and not callable(callback):
        got = type(callback).__name__
        raise TypeError(f"sample: callback must be a function or None, got {got}")
    if num_steps is None:
        num_steps = len(schedule)
    timesteps = tuple(schedule.spaced("sample", num_steps, spacing))
    if prediction_type == "epsilon" and schedule.no_signal in timesteps:
        schedule.refuse_epsilon("sample", f"t = {schedule.no_signal}")
    keys = _sample_keys(shape[0], key, generator, device, schedule)
    device = keys.device

    # Everything that the loop reads, made at once.

    def moved(build: Build, options: tuple[Any, ...]) -> Tensor:
        return schedule.steps(build, options, timesteps, arithmetic(dtype), device)

    noisy = sampler == "ddpm" or eta > 0.0
    steps = range(len(timesteps))
    step_keys = split(keys, len(timesteps) + 1 if noisy else 1).unbind(0)
    clipped = sampler != "ode" and clips(clip)
    if sampler == "ddpm":
        build: Build = _coefficients.ddpm_step
        options: tuple[Any, ...] = (prediction_type, variance_type, clipped)
    else:
        build = _coefficients.ddim_step
        options = (prediction_type, eta, clipped, False)
    rows = moved(build, options).split(1)
    inputs = schedule.model_inputs(shape[0], prediction_type, timesteps, dtype, device)

    x = normal(step_keys[0], *shape, dtype=dtype)
    scale = schedule.initial_scale(timesteps[0], dtype, device)
    if scale is not None:
        x.mul_(scale)

    expected = (shape[0], 2 * shape[1], *shape[2:]) if learned else shape

    def predict(x: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        pred, values = model(*inputs(x, step)), None
        checks.floating("sample", "the model's output", pred)
        if pred.shape != expected:
            raise ValueError(
                f"sample: the model must return shape {expected}, got {tuple(pred.shape)}"
            )
        if pred.dtype != dtype:
            pred = pred.to(dtype)
        if learned:
            pred, values = pred.chunk(2, dim=1)
        return pred, values

    if sampler == "ode":
        # The columns of x_t and pred: an Euler step.
        rows = tuple(row[:, 3:5] for row in rows)
        corrections = moved(_coefficients.heun_step, (prediction_type,)).split(1)
        euler = torch.empty_like(x)

    for step in _bar(steps) if progress else steps:
        pred, values = predict(x, step)
        if sampler == "ode":
            if step + 1 == len(timesteps) or not schedule.has_slope(timesteps[step]):
                ops.affine_out(x, pred, None, None, None, rows[step], None, x)
            else:
                ops.affine_out(x, pred, None, None, None, rows[step], None, euler)
                pred, _ = predict(euler, step + 1)
                ops.affine_out(x, euler, pred, None, None, corrections[step], None, x)
        else:
            # The last step ends at clean data, without noise.
            k = step_keys[step + 1] if noisy and step + 1 < len(timesteps) else None
            values = values if sampler == "ddpm" else None
            ops.sampler_step_out(
                x, pred, values, None, k, None, rows[step], None, None, None, 1.0, *clip, x
            )
        if callback is not None:
            callback(step, timesteps[step], x)
    return x


def _sample_keys(
    batch: int,
    key: Tensor | None,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    schedule: Schedule,
) -> Tensor:
    """One key a sample, on the device of the samples."""
    if key is not None and generator is not None:
        raise ValueError("sample: expected at most one of key, generator, got key and generator")
    if generator is not None:
        checks.generator("sample", generator)
    if key is None:
        if device is None:
            device = schedule.device if generator is None else generator.device
        key = new_key(device=device, generator=generator)
    else:
        checks.key_words("sample", key, (batch,))
        if device is not None:
            key = key.to(device)
    return split(key, batch) if key.dim() == 1 else key


def _bar(steps: range) -> Iterable[int]:
    try:
        tqdm = importlib.import_module("tqdm.auto")
    except ImportError:
        _say_once()
        return steps
    return tqdm.tqdm(steps, desc="sample")  # type: ignore[no-any-return]


@functools.cache
def _say_once() -> None:
    warnings.warn("sample: install tqdm to see progress, or pass progress=False", stacklevel=4)
