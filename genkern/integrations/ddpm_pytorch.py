"""denoising-diffusion-pytorch with genkern's kernels.

`apply()` replaces `q_sample`, `p_losses` and `p_sample` of GaussianDiffusion, `p_sample` and
`p_losses` of LearnedGaussianDiffusion. Coefficients are the model's own buffers. In
LearnedGaussianDiffusion the decoder's likelihood at t = 0 is exact, where the package approximates
the normal distribution function.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import random
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, LearnedGaussianDiffusion
from torch import Tensor

from genkern._ops import diffusion as ops
from genkern._ops.elements import REDUCTIONS, arithmetic
from genkern.integrations._noise import check_source, drawn
from genkern.integrations._patch import Applied, Change, Patch, say_once

__all__ = ["TESTED", "apply", "revert"]

# Releases whose lines these are known to replace.
TESTED = ("2.3.4",)
_VERSION = importlib.metadata.version("denoising-diffusion-pytorch")

Columns: TypeAlias = tuple[Tensor | None, ...]

_LOGGER = logging.getLogger(__name__)
_PATCH = Patch(_LOGGER)
_STOCK: dict[Any, dict[str, Any]] = {
    kind: {name: getattr(kind, name) for name in ("q_sample", "p_losses", "p_sample")}
    for kind in (GaussianDiffusion, LearnedGaussianDiffusion)
}
# What the stock methods call: where a subclass has its own, they are left alone.
_CALLS = ("model_predictions", "p_mean_variance", "q_posterior", "predict_v")
_OWN = {kind: [getattr(kind, name) for name in _CALLS] for kind in _STOCK}
_SAMPLE = REDUCTIONS["sample"]


def _kind(self: Any) -> Any:
    """The class whose lines an object runs; None for a subclass with lines of its own."""
    methods = [getattr(type(self), name) for name in _CALLS]
    return next((kind for kind, own in _OWN.items() if own == methods), None)


def _left(self: Any, name: str, reason: str) -> None:
    kind = type(self).__name__
    message = f"{kind}.{name} is left to denoising_diffusion_pytorch: {reason}"
    say_once(_LOGGER, logging.WARNING, message)


def _unfit(self: Any, x: Tensor, t: Any) -> str | None:
    """Why a call has no kernel."""
    if x.dtype not in (torch.float32, torch.float64):
        return f"{x.dtype} is widened by its buffers"
    if self.immiscible:
        return "immiscible noise has no kernel"
    if isinstance(t, Tensor) and (t.dtype != torch.int64 or t.shape != x.shape[:1]):
        return "t is not int64 of shape (B,)"
    return None


def _table(self: Any, name: str, x: Tensor, build: Callable[[], Columns]) -> Tensor:
    """The rows of all steps for data like x, kept until the buffers change."""
    state = (self.betas, self.betas._version)
    kept = self.__dict__.get("_genkern_tables")
    if kept is None or kept[0][0] is not state[0] or kept[0][1] != state[1]:
        kept = self.__dict__["_genkern_tables"] = (state, {})
    key = (name, arithmetic(x.dtype))
    if key not in kept[1]:
        # Kept beyond the caller's modes.
        with torch.inference_mode(False), torch.no_grad():
            zero = torch.zeros_like(self.betas)
            rows = torch.stack([zero if c is None else c for c in build()], dim=1)
            kept[1][key] = rows.to(key[1])
    table: Tensor = kept[1][key]
    return table


def _x0_columns(self: Any, learned: bool) -> Columns:
    """x0 in x_t and the model's output."""
    if learned or self.objective == "pred_noise":
        return self.sqrt_recip_alphas_cumprod, -self.sqrt_recipm1_alphas_cumprod
    if self.objective == "pred_v":
        return self.sqrt_alphas_cumprod, -self.sqrt_one_minus_alphas_cumprod
    return None, torch.ones_like(self.betas)


def _q_sample(self: Any, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
    """x_start with the noise of the steps t, in one kernel."""
    reason = _unfit(self, x_start, t)
    if noise is not None and (noise.shape != x_start.shape or noise.dtype != x_start.dtype):
        reason = "noise does not have the shape and dtype of x_start"
    if reason is not None:
        _left(self, "q_sample", reason)
        return _STOCK[GaussianDiffusion]["q_sample"](self, x_start, t, noise)  # type: ignore[no-any-return]
    key = None
    if noise is None:
        key, noise = drawn(self.genkern_noise, x_start)
    return _noised(self, x_start, t, key, noise)


def _noised(self: Any, x0: Tensor, t: Tensor, key: Tensor | None, noise: Tensor | None) -> Tensor:
    def columns() -> Columns:
        return self.sqrt_alphas_cumprod, None, None, self.sqrt_one_minus_alphas_cumprod

    table = _table(self, "noising", x0, columns)
    return ops.affine(x0, None, None, key, noise, table, t)


def _squares(
    self: Any,
    objective: str,
    weight: Tensor | None,
    output: Tensor,
    x0: Tensor,
    t: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """The weighted mean squared error of each sample, (B,)."""

    def columns() -> Columns:
        one = torch.ones_like(self.betas)
        targets: dict[str, Columns] = {
            "pred_noise": (None, one),
            "pred_x0": (one, None),
            "pred_v": (-self.sqrt_one_minus_alphas_cumprod, self.sqrt_alphas_cumprod),
        }
        return *targets[objective], one if weight is None else weight, None

    table = _table(self, f"loss of {objective}", output, columns)
    if objective == "pred_x0":
        key = noise = None
    data = None if objective == "pred_noise" else x0
    sums = ops.noise_loss(output, data, key, noise, table, t, None, _SAMPLE)
    return sums / math.prod(x0.shape[1:])


def _p_losses(
    self: Any,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor | None = None,
    offset_noise_strength: float | None = None,
    loss_reduction: str = "mean",
) -> Tensor:
    """The loss at the steps t; with noise = "key" no noise is kept while the model runs."""
    strength = (
        self.offset_noise_strength if offset_noise_strength is None else offset_noise_strength
    )
    reason = _unfit(self, x_start, t)
    if _kind(self) is None:
        reason = "it differs from its base"
    elif strength > 0.0:
        reason = "offset noise has no kernel"
    elif noise is not None and (noise.shape != x_start.shape or noise.dtype != x_start.dtype):
        reason = "noise does not have the shape and dtype of x_start"
    if reason is not None:
        _left(self, "p_losses", reason)
        return _STOCK[GaussianDiffusion]["p_losses"](  # type: ignore[no-any-return]
            self, x_start, t, noise, offset_noise_strength, loss_reduction
        )
    key = None
    if noise is None:
        key, noise = drawn(self.genkern_noise, x_start)
    x = _noised(self, x_start, t, key, noise)
    condition = None
    if self.self_condition and random.random() < 0.5:
        with torch.no_grad():
            condition = self.model_predictions(x, t).pred_x_start.detach()
    output = self.model(x, t, condition).to(x.dtype)
    loss = _squares(self, self.objective, self.loss_weight, output, x_start, t, key, noise)
    return loss if loss_reduction == "none" else loss.mean()


def _learned_p_losses(
    self: Any,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor | None = None,
    clip_denoised: bool = False,
    loss_reduction: str = "mean",
) -> Tensor:
    """The hybrid loss at the steps t: the squared error, and the bound for the variance."""
    reason = _unfit(self, x_start, t)
    if _kind(self) is not LearnedGaussianDiffusion:
        reason = "it differs from its base"
    elif noise is not None and (noise.shape != x_start.shape or noise.dtype != x_start.dtype):
        reason = "noise does not have the shape and dtype of x_start"
    if reason is not None:
        _left(self, "p_losses", reason)
        return _STOCK[LearnedGaussianDiffusion]["p_losses"](  # type: ignore[no-any-return]
            self, x_start, t, noise, clip_denoised, loss_reduction
        )
    key = None
    if noise is None:
        key, noise = drawn(self.genkern_noise, x_start)
    output = self.model(_noised(self, x_start, t, key, noise), t).to(x_start.dtype)
    pred, values = output.chunk(2, dim=1)

    def columns() -> Columns:
        low, high = self.posterior_log_variance_clipped, torch.log(self.betas)
        ratio, first = self.sqrt_recipm1_alphas_cumprod, torch.zeros_like(low)
        first[0] = 1.0
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        return None, -ratio, ratio, self.posterior_mean_coef1, low, middle, half, first

    clip = (-1.0, 1.0) if clip_denoised else (-math.inf, math.inf)
    # In bits a dimension, with no gradient through the mean.
    scale = self.vb_loss_weight / (math.log(2.0) * math.prod(x_start.shape[1:]))
    bound = ops.vlb(
        pred, values, x_start, key, noise, _table(self, "bound", output, columns), t, *clip,
        scale, 0.0, True, _SAMPLE,
    )  # fmt: skip
    loss: Tensor = _squares(self, "pred_noise", None, pred, x_start, t, key, noise) + bound
    return loss if loss_reduction == "none" else loss.mean()


@torch.inference_mode()
def _p_sample(
    self: Any, x: Tensor, t: int, x_self_cond: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of the sampler, and the estimate of x0."""
    kind, reason = _kind(self), _unfit(self, x, t)
    if kind is None:
        reason = "it differs from its base"
    if reason is not None:
        _left(self, "p_sample", reason)
        return _STOCK[GaussianDiffusion]["p_sample"](self, x, t, x_self_cond)  # type: ignore[no-any-return]
    times = torch.full((len(x),), t, device=x.device, dtype=torch.int64)
    learned = kind is LearnedGaussianDiffusion
    if learned:
        pred, values = self.model(x, times).chunk(2, dim=1)
    else:
        pred, values = self.model(x, times, x_self_cond), None

    def columns() -> Columns:
        low, offset, by_values = self.posterior_log_variance_clipped, None, None
        std = torch.exp(0.5 * low)
        if learned:
            high = torch.log(self.betas)
            std, offset, by_values = torch.ones_like(low), 0.5 * (low + high), 0.5 * (high - low)
        mean = (self.posterior_mean_coef1, self.posterior_mean_coef2, None)
        return *_x0_columns(self, learned), *mean, std, offset, by_values

    row = _table(self, "step", x, columns)[t : t + 1]
    key, noise = drawn(self.genkern_noise, x) if t > 0 else (None, None)
    rest = (None, None, None, 1.0, -1.0, 1.0)
    return ops.sampler_step_x0(x, pred, values, None, key, noise, row, *rest)


_METHODS: dict[Any, dict[str, Callable[..., Any]]] = {
    GaussianDiffusion: {"q_sample": _q_sample, "p_losses": _p_losses, "p_sample": _p_sample},
    LearnedGaussianDiffusion: {"p_losses": _learned_p_losses},
}


def apply(noise: str = "torch") -> Applied:
    """Gives GaussianDiffusion and LearnedGaussianDiffusion genkern's kernels.

    Until `revert()` or the end of a block. Immiscible and offset noise, subclasses with lines of
    their own, and an untested release, are left alone.

    Args:
        noise: "torch" for the numbers that the package draws, "key" for genkern's.

    Returns:
        A context manager that reverts; it need not be used.

    Raises:
        ValueError: If noise is neither.
    """
    check_source(noise)
    if _VERSION not in TESTED:
        known = ", ".join(TESTED)
        message = f"{_VERSION} is not a tested release ({known})"
        say_once(_LOGGER, logging.WARNING, f"everything is left as it is: {message}")
        return _PATCH.apply([])
    changes = [
        Change(kind, name, method)
        for kind, methods in _METHODS.items()
        for name, method in methods.items()
    ]
    return _PATCH.apply([*changes, Change(GaussianDiffusion, "genkern_noise", noise)])


def revert() -> None:
    """Gives the classes their own methods back."""
    _PATCH.revert()
