"""Methods of guided-diffusion's GaussianDiffusion with genkern's kernels.

The functions have the names, arguments and results of openai/guided-diffusion's methods (and
improved-diffusion's), with the diffusion object first: call them, or let `apply(GaussianDiffusion)`
put them into your copy of the class. The package is not on PyPI, so nothing of it is imported; of
the object they read `betas`, `num_timesteps`, `model_mean_type`, `model_var_type`, `loss_type` and
`_scale_timesteps`.

The decoder's likelihood at t = 0 is exact, where guided-diffusion approximates the normal
distribution function by a tanh. Results are float32 for half-precision data, as there.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genkern import diffusion
from genkern._arguments import NO_CLIP
from genkern.diffusion import NoiseSchedule
from genkern.integrations._noise import check_source, drawn
from genkern.integrations._patch import Applied, Change, Patch, say_once

__all__ = [
    "apply",
    "ddim_sample",
    "p_sample",
    "q_posterior_mean_variance",
    "q_sample",
    "revert",
    "training_losses",
]

Terms = dict[str, Tensor]

_LOGGER = logging.getLogger(__name__)
_PATCH = Patch(_LOGGER)
_PREDICTIONS = {"EPSILON": "epsilon", "START_X": "sample"}
_NAMES = ("q_sample", "q_posterior_mean_variance", "p_sample", "ddim_sample", "training_losses")


def _schedule(self: Any) -> NoiseSchedule:
    """The schedule of a diffusion object, kept until its betas are replaced."""
    kept = self.__dict__.get("_genkern_schedule")
    if kept is None or kept[0] is not self.betas:
        kept = self._genkern_schedule = (self.betas, NoiseSchedule.from_betas(self.betas))
    schedule: NoiseSchedule = kept[1]
    return schedule


def _kinds(self: Any) -> tuple[str, str]:
    """The prediction and variance types, in genkern's words."""
    mean_type = self.model_mean_type.name
    if mean_type not in _PREDICTIONS:
        raise NotImplementedError(
            f"guided_diffusion: model_mean_type must be one of {', '.join(_PREDICTIONS)},"
            f" got {mean_type}"
        )
    return _PREDICTIONS[mean_type], self.model_var_type.name.lower()


def _source(self: Any) -> str:
    source: str = getattr(self, "genkern_noise", "torch")
    return source


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _output(self: Any, model: Any, x: Tensor, t: Tensor, model_kwargs: Any) -> Tensor:
    """What the model says; of a SpacedDiffusion, at the original steps."""
    wrap = getattr(self, "_wrap_model", None)
    model = model if wrap is None else wrap(model)
    return _wide(model(x, self._scale_timesteps(t), **(model_kwargs or {})))


def q_sample(self: Any, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """Data with the noise of the steps t."""
    x_start = _wide(x_start)
    key = None
    if noise is None:
        key, noise = drawn(_source(self), x_start)
    return diffusion.q_sample(x_start, t, _schedule(self), key=key, noise=noise)


def q_posterior_mean_variance(
    self: Any, x_start: Tensor, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The posterior's mean, variance and clipped log-variance."""
    return diffusion.q_posterior(_wide(x_start), _wide(x_t), t, _schedule(self))


def _sample(
    self: Any,
    model: Any,
    x: Tensor,
    t: Tensor,
    clip_denoised: bool,
    denoised_fn: Any,
    cond_fn: Any,
    model_kwargs: Any,
    step: Callable[..., Tensor],
    **options: Any,
) -> Terms:
    if denoised_fn is not None or cond_fn is not None:
        raise NotImplementedError("guided_diffusion: denoised_fn and cond_fn must be None")
    prediction_type, variance_type = _kinds(self)
    x, output = _wide(x), _output(self, model, x, t, model_kwargs)
    key, noise = drawn(_source(self), x)
    pred = output.chunk(2, dim=1)[0] if variance_type.startswith("learned") else output
    clip = 1.0 if clip_denoised else None
    if step is diffusion.ddpm_step:
        options["variance_type"] = variance_type
        made = step(
            x, output, t, _schedule(self), key=key, noise=noise, clip_range=clip,
            prediction_type=prediction_type, **options,
        )  # fmt: skip
    else:
        made = step(
            x, pred, t, _schedule(self), key=key, noise=noise, clip_range=clip,
            prediction_type=prediction_type, **options,
        )  # fmt: skip
    x0 = diffusion.predict_x0(x, pred, t, _schedule(self), prediction_type=prediction_type)
    return {"sample": made, "pred_xstart": x0.clamp(-1.0, 1.0) if clip_denoised else x0}


def p_sample(
    self: Any,
    model: Any,
    x: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    denoised_fn: Any = None,
    cond_fn: Any = None,
    model_kwargs: Any = None,
) -> Terms:
    """One step of the reverse process: {"sample", "pred_xstart"}."""
    return _sample(
        self, model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs, diffusion.ddpm_step
    )


def ddim_sample(
    self: Any,
    model: Any,
    x: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    denoised_fn: Any = None,
    cond_fn: Any = None,
    model_kwargs: Any = None,
    eta: float = 0.0,
) -> Terms:
    """One DDIM step, with the noise derived again from the clipped x0."""
    return _sample(
        self, model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs, diffusion.ddim_step,
        eta=eta, use_clipped_model_output=True,
    )  # fmt: skip


def training_losses(
    self: Any,
    model: Any,
    x_start: Tensor,
    t: Tensor,
    model_kwargs: Any = None,
    noise: Tensor | None = None,
) -> Terms:
    """The loss of each sample, and its terms: {"loss"}, with "mse" and "vb" where there are two."""
    prediction_type, variance_type = _kinds(self)
    loss_type, schedule, x_start = self.loss_type.name, _schedule(self), _wide(x_start)
    key = None
    if noise is None:
        key, noise = drawn(_source(self), x_start)
    x_t = diffusion.q_sample(x_start, t, schedule, key=key, noise=noise)
    output = _output(self, model, x_t, t, model_kwargs)
    if loss_type in ("KL", "RESCALED_KL"):
        bound = diffusion.vlb_terms(
            output, x_start, t, schedule, key=key, noise=noise, units="bits/dim",
            prediction_type=prediction_type, variance_type=variance_type,
        )  # fmt: skip
        return {"loss": bound * self.num_timesteps if loss_type == "RESCALED_KL" else bound}
    elements = math.prod(x_start.shape[1:])
    terms = {}
    pred = output
    if variance_type.startswith("learned"):
        # The bound trains the variance alone.
        scale = 1.0 / (math.log(2.0) * elements)
        if loss_type == "RESCALED_MSE":
            scale *= self.num_timesteps / 1000.0
        kinds = (prediction_type, variance_type)
        terms["vb"] = diffusion._vlb(
            "training_losses", output, x_start, t, schedule, key, noise, kinds, NO_CLIP,
            (scale, 0.0, True), "sample",
        )  # fmt: skip
        pred = output.chunk(2, dim=1)[0]
    square = diffusion.noise_loss(
        pred, x_start, t, schedule, key=key, noise=noise, prediction_type=prediction_type,
        reduction="sample",
    )  # fmt: skip
    terms["mse"] = square / elements
    terms["loss"] = terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]
    return terms


def _or_own(kind: Any, name: str) -> Any:
    """The function, or the class's own method where it has no kernel."""
    ours, own = globals()[name], getattr(kind, name)
    signature = inspect.signature(ours)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        refused = any(given.get(option) is not None for option in ("denoised_fn", "cond_fn"))
        if self.model_mean_type.name not in _PREDICTIONS:
            refused = not name.startswith("q_")
        if not refused:
            return ours(self, *args, **kwargs)
        message = f"{kind.__qualname__}.{name} is left to the class: its options have no kernel"
        say_once(_LOGGER, logging.WARNING, message)
        return own(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, ours.__doc__
    return method


def apply(kind: type, noise: str = "torch") -> Applied:
    """Gives a GaussianDiffusion class genkern's kernels, until `revert()` or the end of a block.

    PREVIOUS_X models, and calls with denoised_fn or cond_fn, go to the class's own methods.

    Args:
        kind: guided-diffusion's GaussianDiffusion, or a copy of it.
        noise: "torch" for the numbers that it draws, "key" for genkern's.

    Returns:
        A context manager that reverts; it need not be used.

    Raises:
        ValueError: If noise is neither.
        TypeError: If the class lacks one of the methods.
    """
    check_source(noise)
    missing = [name for name in _NAMES if not callable(getattr(kind, name, None))]
    if missing:
        raise TypeError(
            f"apply: kind must have the methods of GaussianDiffusion,"
            f" got {kind.__name__} without {', '.join(missing)}"
        )
    changes = [Change(kind, name, _or_own(kind, name)) for name in _NAMES]
    return _PATCH.apply([*changes, Change(kind, "genkern_noise", noise)])


def revert() -> None:
    """Gives the classes their own methods back."""
    _PATCH.revert()
