"""The diffusion family: exact values and the plain PyTorch expressions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genkern.testing._common import (
    NONE,
    PI,
    REAL,
    Array,
    Expected,
    arithmetic,
    as_leaves,
    asked,
    eager_gradients,
    eager_reduced,
    expm1_minus,
    real,
    reduced,
    spread,
    square,
)
from genkern.testing._random import eager_normal, key_words, standard_normal

# ---- sums of terms, each with the magnitude of what was added


def _exact(x: Tensor) -> Expected:
    value = real(x)
    return Expected(value, np.abs(value))


def _eps(key: Tensor | None, noise: Tensor | None, like: Tensor) -> Expected | None:
    if noise is not None:
        return _exact(noise)
    if key is None:
        return None
    value = standard_normal(key, like.shape, like.dtype)
    # Drawn noise is accurate to a few units in the last place of numbers near 1.
    return Expected(value, np.maximum(np.abs(value), 1))


def _sum(*terms: tuple[Any, Expected | None]) -> Expected:
    """The sum of coefficient times term, without the terms that are not there."""
    there = [(c, term) for c, term in terms if term is not None]
    value = sum(c * term.value for c, term in there)
    return Expected(np.asarray(value), np.asarray(sum(np.abs(c) * x.scale for c, x in there)))


def _each(values: Tensor | None, like: Tensor) -> Array:
    """Values, one a sample, over the elements of `like`; 1 if there are none."""
    if values is None:
        return np.asarray(REAL(1))
    return real(values).reshape(-1, *[1] * (like.dim() - 1)) if like.dim() else real(values)[0]


def _columns(coefficients: Tensor, t: Tensor | None, like: Tensor, names: str) -> dict[str, Array]:
    """Each sample's coefficients: row t, clamped to the table; else row b, or the only one."""
    rows = coefficients
    if t is not None:
        last = len(coefficients) - 1
        rows = coefficients[[min(max(int(i), 0), last) for i in t.reshape(-1)]]
    # Columns that no tensor needs may be missing.
    named = zip(names.split(), rows.unbind(1), strict=False)
    return {name: _each(column, like) for name, column in named}


def _placed(part: Expected, at: Array, rest: Expected) -> Expected:
    """`part` where `at` holds, and `rest` elsewhere."""
    value, scale = (np.array(np.broadcast_to(x, at.shape)) for x in rest)
    value[at], scale[at] = part
    return Expected(value, scale)


def _over(value: Any, like: Tensor) -> Array:
    return np.broadcast_to(value, tuple(like.shape))


def _whole(result: Expected, like: Tensor) -> Expected:
    return Expected(_over(result.value, like), _over(result.scale, like))


class _Clip(NamedTuple):
    clipped: Expected
    passes: Expected  # the derivative


def _clip(x: Expected, lo: float, hi: float, dtype: torch.dtype) -> _Clip:
    inside = (x.value >= lo) & (x.value <= hi)
    # Where rounding decides between inside and outside, either derivative is right.
    near = 8 * torch.finfo(arithmetic(dtype)).eps * x.scale
    unclear = np.minimum(np.abs(x.value - lo), np.abs(x.value - hi)) <= near
    one = np.where(inside, REAL(1), REAL(0))
    clipped = np.minimum(np.maximum(x.value, REAL(lo)), REAL(hi))
    return _Clip(Expected(clipped, x.scale), Expected(one, np.where(unclear, np.inf, one)))


def _clips(lo: float, hi: float) -> bool:
    return lo > -math.inf or hi < math.inf


# ---- affine


def _affine(
    x: Tensor,
    y: Tensor | None,
    z: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
) -> list[Expected | None]:
    c = _columns(coefficients, t, x, "x y z eps")
    terms = {"x": _exact(x), "eps": _eps(key, noise, x)}
    terms |= {name: _exact(v) for name, v in (("y", y), ("z", z)) if v is not None}
    return [_whole(_sum(*((c[n], v) for n, v in terms.items() if v is not None)), x)]


# ---- noise_loss: w (pred - target)^2 + offset


def _noise_loss_parts(
    pred: Tensor,
    x0: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    sample_weight: Tensor | None,
) -> tuple[Expected, Array, dict[str, Array]]:
    """pred - target, the weight and the coefficients."""
    c = _columns(coefficients, t, pred, "x0 noise weight offset")
    difference = _sum(
        (1, _exact(pred)),
        (-c["x0"], None if x0 is None else _exact(x0)),
        (-c["noise"], _eps(key, noise, pred)),
    )
    # A term may overflow; then 0 times the difference need not be 0.
    overflows = difference.scale > torch.finfo(arithmetic(pred.dtype)).max
    difference = Expected(difference.value, np.where(overflows, np.inf, difference.scale))
    return difference, c["weight"] * _each(sample_weight, pred), c


def _noise_loss(pred: Tensor, *args: Any) -> list[Expected | None]:
    *rest, reduction = args
    difference, weight, c = _noise_loss_parts(pred, *rest)
    one = np.asarray(REAL(1))
    of_square = weight, square(difference, pred.dtype)
    loss = _whole(_sum(of_square, (c["offset"], Expected(one, one))), pred)
    return [reduced(*loss, reduction)]


def _noise_loss_backward(grad: Tensor, pred: Tensor, *args: Any) -> list[Expected | None]:
    *rest, reduction, output_mask = args
    difference, weight, c = _noise_loss_parts(pred, *rest)
    g = spread(grad, pred.shape, reduction)
    along = _sum((2 * g * weight, difference))
    grads = [_sum((k, along)) for k in (REAL(1), -c["x0"], -c["noise"])]
    return asked([g.value for g in grads], [g.scale for g in grads], output_mask)


def _noise_loss_forming(pred: Tensor, *args: Any) -> list[Expected | None]:
    value = _noise_loss(pred, *args)
    return [*value, *_noise_loss_backward(_ones(pred, args[-1]), pred, *args, 1)[:1]]


def _ones(like: Tensor, reduction: int) -> Tensor:
    """The upstream gradient that a forming operator takes for granted."""
    shape = {NONE: like.shape, 4: like.shape[:1] or (1,)}.get(reduction, ())
    return torch.ones(shape, dtype=arithmetic(like.dtype))


# ---- sampler_step

_STEP = "x0_x x0_pred mean_x0 mean_x mean_pred noise lv lv_values"


def _guided(
    pred: Tensor, uncond: Tensor | None, factor: Tensor | None, guidance_scale: float
) -> Expected:
    if uncond is None:
        return _sum((_each(factor, pred), _exact(pred)))
    base, away = _exact(uncond), real(pred) - real(uncond)
    step = _sum((1, base), (REAL(guidance_scale), Expected(away, np.abs(away))))
    return _sum((_each(factor, pred), step))


def _log_variance(c: dict[str, Array], var_values: Tensor | None) -> Expected:
    one = np.asarray(REAL(1))
    learned = () if var_values is None else ((c["lv_values"], _exact(var_values)),)
    return _sum((c["lv"], Expected(one, one)), *learned)


def _std(c: dict[str, Array], var_values: Tensor | None) -> Expected:
    if var_values is None:
        return Expected(c["noise"], np.abs(c["noise"]))
    lv = _log_variance(c, var_values)
    value = c["noise"] * np.exp(lv.value / 2)
    return Expected(value, np.abs(value) * (1 + lv.scale / 2))


def _product(a: Expected, b: Expected) -> Expected:
    return Expected(a.value * b.value, a.scale * b.scale)


def _sampler_step(
    x_t: Tensor,
    pred: Tensor,
    var_values: Tensor | None,
    uncond: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    factor: Tensor | None,
    threshold: Tensor | None,
    guidance_scale: float,
    lo: float,
    hi: float,
    with_x0: bool = False,
) -> list[Expected | None]:
    c = _columns(coefficients, t, x_t, _STEP)
    x, m, eps = _exact(x_t), _guided(pred, uncond, factor, guidance_scale), _eps(key, noise, x_t)
    step = _sum((c["mean_x"], x), (c["mean_pred"], m))
    x0 = _sum((c["x0_x"], x), (c["x0_pred"], m))
    if threshold is not None:
        s = _each(threshold, x_t)
        x0 = Expected(np.minimum(np.maximum(x0.value, -s), s) / s, x0.scale / np.abs(s))
    elif _clips(lo, hi):
        x0 = _clip(x0, lo, hi, x_t.dtype).clipped
    if with_x0 or threshold is not None or _clips(lo, hi):
        step = _sum((1, step), (c["mean_x0"], x0))
    if eps is not None:
        step = _sum((1, step), (1, _product(_std(c, var_values), eps)))
    return [_whole(step, x_t), *([_whole(x0, x_t)] if with_x0 else [])]


def _sampler_step_backward(
    grad: Tensor,
    x_t: Tensor,
    pred: Tensor,
    var_values: Tensor | None,
    uncond: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    guidance_scale: float,
    lo: float,
    hi: float,
    output_mask: int,
) -> list[Expected | None]:
    c = _columns(coefficients, t, x_t, _STEP)
    one = np.asarray(REAL(1))
    # Of out by x_t and by the guided prediction.
    by_x, by_m = (Expected(c[n], np.abs(c[n])) for n in ("mean_x", "mean_pred"))
    if _clips(lo, hi):
        m = _guided(pred, uncond, None, guidance_scale)
        x0 = _sum((c["x0_x"], _exact(x_t)), (c["x0_pred"], m))
        passes = _clip(x0, lo, hi, x_t.dtype).passes
        by_x = _sum((1, by_x), (c["mean_x0"] * c["x0_x"], passes))
        by_m = _sum((1, by_m), (c["mean_x0"] * c["x0_pred"], passes))
    scale = REAL(1 if uncond is None else guidance_scale)
    eps, std = _eps(key, noise, x_t), _std(c, var_values)
    by_values = Expected(0 * one, 0 * one)
    if eps is not None and var_values is not None:
        by_values = _sum((c["lv_values"] / 2, _product(std, eps)))
    by = (by_x, _sum((scale, by_m)), by_values, _sum((1 - scale, by_m)), std)
    grads = [_whole(_sum((real(grad), b)), x_t) for b in by]
    return asked([g.value for g in grads], [g.scale for g in grads], output_mask)


# ---- what a step needs to know of a whole sample


def _rows(like: Tensor) -> tuple[int, int]:
    """Samples and their sizes; a tensor without dimensions is one sample."""
    return (len(like) if like.dim() else 1), math.prod(like.shape[1:])


def _guidance_factor(
    pred: Tensor, uncond: Tensor, guidance_scale: float, guidance_rescale: float
) -> list[Expected | None]:
    guided, phi = _guided(pred, uncond, None, guidance_scale), REAL(guidance_rescale)
    rows = [x.reshape(_rows(pred)) for x in (real(pred), guided.value, guided.scale)]
    deviations = [np.std(x, 1, ddof=1) for x in rows[:2]]
    ratio = phi * deviations[0] / deviations[1]
    # The guided prediction was rounded before its deviation was taken.
    size = np.sqrt(np.mean(rows[2] ** 2, 1)) / deviations[1]
    return [Expected(ratio + (1 - phi), np.abs(ratio) * (1 + size) + np.abs(1 - phi))]


def _dynamic_threshold(
    x_t: Tensor,
    pred: Tensor,
    uncond: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    factor: Tensor | None,
    guidance_scale: float,
    ratio: float,
    max_value: float,
) -> list[Expected | None]:
    c = _columns(coefficients, t, x_t, _STEP)
    m = _guided(pred, uncond, factor, guidance_scale)
    x0 = _whole(_sum((c["x0_x"], _exact(x_t)), (c["x0_pred"], m)), x_t)
    ordered = np.sort(np.abs(x0.value).reshape(_rows(x_t)), axis=1)
    rank = REAL(ratio) * (ordered.shape[1] - 1)
    low = int(np.floor(rank))
    high = min(low + 1, ordered.shape[1] - 1)
    value = ordered[:, low] + (rank - low) * (ordered[:, high] - ordered[:, low])
    # An element of an ordered row moves by no more than the largest change in the row.
    scale = x0.scale.reshape(_rows(x_t)).max(1)
    return [Expected(np.minimum(np.maximum(value, 1), REAL(max_value)), scale)]


# ---- vlb

_HALF_BIN, _LAST_BIN = REAL(1) / REAL(255), REAL("0.999")
_LOG_ROOT_2_PI = np.log(2 * PI) / 2


class _Term(NamedTuple):
    """A term of the bound, and its derivatives by d = x0 - x0_hat and by the log-variance."""

    value: Expected
    by_d: Expected
    by_lv: Expected


def _kl_term(
    d: Expected, lv: Expected, mean_x0: Array, true_lv: Array, dtype: torch.dtype
) -> _Term:
    """KL(N(m1, e^true_lv) || N(m2, e^lv)) of one element, with m1 - m2 = mean_x0 d."""
    r = true_lv - lv.value
    size_r, size_v = np.abs(true_lv) + lv.scale, 1 + lv.scale
    ratio, precision = np.exp(r), mean_x0**2 * np.exp(-lv.value)
    of_mean, size_mean = (precision * x for x in square(d, dtype))
    value = (of_mean + expm1_minus(r)) / 2
    size_mean = size_mean * size_v
    size_ratio = (1 + size_r) * ratio + 1
    return _Term(
        Expected(value, (size_mean + size_ratio + size_r) / 2),
        Expected(precision * d.value, precision * d.scale * size_v),
        Expected(-(np.expm1(r) + of_mean) / 2, (size_ratio + size_mean) / 2),
    )


@functools.cache
def _gauss_legendre() -> tuple[Array, Array]:
    """64 nodes and weights on [0, 1], to longdouble's last digits: NumPy's are float64."""
    n = 64
    x: Array = np.polynomial.legendre.leggauss(n)[0].astype(REAL)
    for _ in range(3):
        before, now = np.ones_like(x), x
        for k in range(1, n):
            before, now = now, ((2 * k + 1) * x * now - k * before) / (k + 1)
        slope = n * (x * now - before) / (x * x - 1)
        x = x - now / slope
    return (1 + x) / 2, 1 / ((1 - x * x) * slope * slope)


def _bell(a: Array, width: Array) -> Array:
    """The integral of exp(-a s - s^2 / 2) for s from 0 to width, a >= 0."""
    nodes, weights = _gauss_legendre()
    # At a s + s^2 / 2 = 50 the integrand is 2e-22, which no longdouble sees.
    end = np.minimum(width, 100 / (a + np.sqrt(a * a + 100)))
    s = end[..., None] * nodes
    total: Array = end * (np.exp(-s * (a[..., None] + s / 2)) * weights).sum(-1)
    return total


def _log_mass(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """log(Phi(b) - Phi(a)) and, over that mass, the densities at a and at b.

    The middle of a and b is positive.
    """
    zero = np.zeros_like(a)
    around = _bell(zero, np.maximum(-a, 0)) + _bell(zero, b)
    near = np.maximum(a, 0)
    # In a tail over the density at a, whose logarithm has no digits left where a is large.
    bell = np.where(a < 0, around, _bell(near, b - a))
    at_a = np.exp((near - a) * (near + a) / 2) / bell
    at_b = np.exp((near - b) * (near + b) / 2) / bell
    return np.log(bell) - near * near / 2 - _LOG_ROOT_2_PI, at_a, at_b


def _decoder_term(d: Expected, lv: Expected, x0: Array, dtype: torch.dtype) -> _Term:
    """-log of the mass of x0's bin under N(x0_hat, e^lv).

    With a and b the bin's ends in standard deviations from x0_hat and P its mass,
    dP/dd = (phi(b) - phi(a)) / sigma and dP/dlv = -(b phi(b) - a phi(a)) / 2.
    """
    sigma = np.exp(lv.value / 2)
    # By symmetry: x0_hat below the bin's centre.
    c, sign = np.abs(d.value), np.where(d.value < 0, -1, 1)
    opens_down, opens_up = sign * x0 < -_LAST_BIN, sign * x0 > _LAST_BIN
    a = np.where(opens_down, -np.inf, (c - _HALF_BIN) / sigma)
    b = np.where(opens_up, np.inf, (c + _HALF_BIN) / sigma)
    log_mass, at_a, at_b = _log_mass(a, b)
    by_d = sign * (at_a - at_b) / sigma
    a_at_a, b_at_b = np.where(opens_down, 0, a * at_a), np.where(opens_up, 0, b * at_b)
    by_lv = (b_at_b - a_at_a) / 2
    # What a rounding of the bin's ends costs; the second derivative by d is at most 1 / sigma^2,
    # since the mass of an interval is log-concave in its centre. Of second order as in `square`.
    reach, size_v = d.scale + _HALF_BIN, 1 + lv.scale
    bend, off = reach / sigma**2, torch.finfo(arithmetic(dtype)).eps * reach
    size = 1 + np.abs(log_mass) + np.abs(by_d) * reach + off * bend + np.abs(by_lv) * size_v
    return _Term(
        Expected(-log_mass, size),
        Expected(by_d, (np.abs(by_d) + bend) * size_v),
        Expected(by_lv, (0.5 + np.abs(by_lv) + (c + _HALF_BIN + off) * bend) * size_v),
    )


class _Bound(NamedTuple):
    value: Expected
    by_pred: Expected
    by_values: Expected


def _bound(
    pred: Tensor,
    var_values: Tensor | None,
    x0: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    lo: float,
    hi: float,
    vlb_scale: float,
    simple_scale: float,
    detach_mean: bool,
) -> _Bound:
    c = _columns(
        coefficients, t, pred, "diff_x0 diff_noise diff_pred mean_x0 true_lv lv lv_values decoder"
    )
    eps, pixels, m = _eps(key, noise, pred), _exact(x0), _exact(pred)
    d = _whole(_sum((c["diff_x0"], pixels), (c["diff_noise"], eps), (c["diff_pred"], m)), pred)
    by_pred = Expected(c["diff_pred"], np.abs(c["diff_pred"]))
    if _clips(lo, hi):
        clip = _clip(_sum((1, pixels), (-1, d)), lo, hi, pred.dtype)
        d = _sum((1, pixels), (-1, clip.clipped))
        by_pred = _product(by_pred, clip.passes)
    lv = _whole(_log_variance(c, var_values), pred)

    last = _over(c["decoder"] == 1, pred)
    term = _kl_term(d, lv, c["mean_x0"], c["true_lv"], pred.dtype)
    if last.any():
        there = [Expected(e.value[last], e.scale[last]) for e in (d, lv)]
        decoder = _decoder_term(there[0], there[1], pixels.value[last], pred.dtype)
        term = _Term(*(_placed(t, last, k) for t, k in zip(decoder, term, strict=True)))

    simple = _sum((1, m), (-1, eps))
    of_bound, of_simple = REAL(vlb_scale), REAL(simple_scale)
    by_mean = None if detach_mean else _product(term.by_d, by_pred)
    values = c["lv_values"] if var_values is not None else REAL(0)
    return _Bound(
        _whole(_sum((of_bound, term.value), (of_simple, square(simple, pred.dtype))), pred),
        _whole(_sum((2 * of_simple, simple), (of_bound, by_mean)), pred),
        _whole(_sum((of_bound * values, term.by_lv)), pred),
    )


def _vlb(*args: Any) -> list[Expected | None]:
    *rest, reduction = args
    return [reduced(*_bound(*rest).value, reduction)]


def _vlb_backward(grad: Tensor, *args: Any) -> list[Expected | None]:
    *rest, reduction, output_mask = args
    _, *by = _bound(*rest)
    g = spread(grad, rest[0].shape, reduction)
    grads = [_sum((g, b)) for b in by]
    return asked([g.value for g in grads], [g.scale for g in grads], output_mask)


EXPECTED: dict[str, Callable[..., list[Expected | None]]] = {
    "affine": _affine,
    "affine_out": lambda *args: _affine(*args[:-1]),
    "noise_loss": _noise_loss,
    "noise_loss_forming": _noise_loss_forming,
    "noise_loss_backward": _noise_loss_backward,
    "sampler_step": _sampler_step,
    "sampler_step_out": lambda *args: _sampler_step(*args[:-1]),
    "sampler_step_x0": functools.partial(_sampler_step, with_x0=True),
    "sampler_step_backward": _sampler_step_backward,
    "guidance_factor": _guidance_factor,
    "dynamic_threshold": _dynamic_threshold,
    "vlb": _vlb,
    "vlb_backward": _vlb_backward,
}


# ---- the plain PyTorch expressions, at the arithmetic's dtype


def _eager_each(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1)) if like.dim() else values[0]


def _eager_columns(coefficients: Tensor, t: Tensor | None, like: Tensor) -> list[Tensor]:
    rows = coefficients if t is None else coefficients[t.reshape(-1)]
    return [_eager_each(column, like) for column in rows.unbind(1)]


def _eager_eps(key: Tensor | None, noise: Tensor | None, like: Tensor) -> Tensor | float:
    if key is None:
        return 0.0 if noise is None else noise
    return eager_normal(key_words(key), like.shape, like.dtype)


def _eager_affine(
    x: Tensor,
    y: Tensor | None,
    z: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
) -> Tensor:
    c = _eager_columns(coefficients, t, x)
    out = c[0] * x
    for i, term in ((1, y), (2, z)):
        if term is not None:
            out = out + c[i] * term
    return out if key is None and noise is None else out + c[3] * _eager_eps(key, noise, x)


def _eager_noise_loss(
    pred: Tensor,
    x0: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    sample_weight: Tensor | None,
    reduction: int,
) -> Tensor:
    of_x0, of_noise, weight, offset = _eager_columns(coefficients, t, pred)
    target = of_noise * _eager_eps(key, noise, pred)
    if x0 is not None:
        target = of_x0 * x0 + target
    if sample_weight is not None:
        weight = weight * _eager_each(sample_weight, pred)
    return eager_reduced(weight * (pred - target) ** 2 + offset, reduction)


def _eager_noise_loss_backward(
    grad: Tensor,
    pred: Tensor,
    x0: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    *rest: Any,
) -> tuple[Tensor | None, ...]:
    pred, x0, noise = leaves = as_leaves(pred, x0, noise)
    loss = _eager_noise_loss(pred, x0, key, noise, *rest[:-1])
    return eager_gradients([(loss, grad)], leaves)


def _eager_noise_loss_forming(pred: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    (pred,) = leaves = as_leaves(pred)
    loss = _eager_noise_loss(pred, *rest)
    return loss, *eager_gradients([(loss, torch.ones_like(loss))], leaves)


def _eager_guided(
    pred: Tensor, uncond: Tensor | None, factor: Tensor | None, guidance_scale: float
) -> Tensor:
    m = pred if uncond is None else uncond + guidance_scale * (pred - uncond)
    return m if factor is None else m * _eager_each(factor, pred)


def _eager_sampler_step(
    x_t: Tensor,
    pred: Tensor,
    var_values: Tensor | None,
    uncond: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    factor: Tensor | None,
    threshold: Tensor | None,
    guidance_scale: float,
    lo: float,
    hi: float,
    with_x0: bool = False,
) -> tuple[Tensor, ...]:
    c = _eager_columns(coefficients, t, x_t)
    m = _eager_guided(pred, uncond, factor, guidance_scale)
    x0 = c[0] * x_t + c[1] * m
    out = c[3] * x_t + c[4] * m
    if threshold is not None:
        s = _eager_each(threshold, x_t)
        x0 = torch.clamp(x0, -s, s) / s
    elif _clips(lo, hi):
        x0 = x0.clamp(lo, hi)
    if with_x0 or threshold is not None or _clips(lo, hi):
        out = c[2] * x0 + out
    std = c[5]
    if var_values is not None:
        std = std * torch.exp(0.5 * (c[6] + c[7] * var_values))
    if key is not None or noise is not None:
        out = out + std * _eager_eps(key, noise, x_t)
    return (out, x0) if with_x0 else (out,)


def _eager_sampler_step_backward(
    grad: Tensor,
    x_t: Tensor,
    pred: Tensor,
    var_values: Tensor | None,
    uncond: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    *rest: Any,
) -> tuple[Tensor | None, ...]:
    x_t, pred, var_values, uncond, noise = leaves = as_leaves(x_t, pred, var_values, uncond, noise)
    given = (x_t, pred, var_values, uncond, key, noise, coefficients, t, None, None)
    (step,) = _eager_sampler_step(*given, *rest[:-1])
    return eager_gradients([(step, grad)], leaves)


def _eager_guidance_factor(
    pred: Tensor, uncond: Tensor, guidance_scale: float, guidance_rescale: float
) -> Tensor:
    dims = tuple(range(1, pred.dim()))
    guided = _eager_guided(pred, uncond, None, guidance_scale)
    return guidance_rescale * (pred.std(dims) / guided.std(dims)) + (1.0 - guidance_rescale)


def _eager_dynamic_threshold(
    x_t: Tensor,
    pred: Tensor,
    uncond: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    factor: Tensor | None,
    guidance_scale: float,
    ratio: float,
    max_value: float,
) -> Tensor:
    p, q = _eager_columns(coefficients, t, x_t)[:2]
    x0 = p * x_t + q * _eager_guided(pred, uncond, factor, guidance_scale)
    return torch.quantile(x0.abs().reshape(_rows(x_t)), ratio, dim=1).clamp(1.0, max_value)


def _eager_decoder(d: Tensor, x0: Tensor, lv: Tensor) -> Tensor:
    """By the logarithms of the tails, log(Q(a) - Q(b)) = log Q(a) + log(1 - Q(b) / Q(a)).

    A difference of the distribution function itself has no digits left some deviations away, and a
    tolerance that is derived from it would let everything pass.
    """
    # Not abs, whose derivative at 0 is 0: here 0 is a point like any other.
    inverse, c, x = torch.exp(-0.5 * lv), torch.where(d < 0, -d, d), torch.where(d < 0, -x0, x0)
    a, b = inverse * (c - 1.0 / 255.0), inverse * (c + 1.0 / 255.0)
    log_a, log_b = torch.special.log_ndtr(-a), torch.special.log_ndtr(-b)
    log_p = log_a + torch.log1p(-torch.exp(log_b - log_a))
    log_p = torch.where(x > 0.999, log_a, log_p)
    return -torch.where(x < -0.999, torch.special.log_ndtr(b), log_p)


def _eager_vlb(
    pred: Tensor,
    var_values: Tensor | None,
    x0: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    lo: float,
    hi: float,
    vlb_scale: float,
    simple_scale: float,
    detach_mean: bool,
    reduction: int,
) -> Tensor:
    c = _eager_columns(coefficients, t, pred)
    eps = _eager_eps(key, noise, pred)
    d = c[0] * x0 + c[1] * eps + c[2] * pred
    if _clips(lo, hi):
        d = x0 - (x0 - d).clamp(lo, hi)
    if detach_mean:
        d = d.detach()
    lv = (c[5] if var_values is None else c[5] + c[6] * var_values).expand_as(pred)
    kl = 0.5 * (lv - c[4] - 1.0 + torch.exp(c[4] - lv) + (c[3] * d) ** 2 * torch.exp(-lv))
    bound = torch.where(c[7] == 1.0, _eager_decoder(d, x0, lv), kl)
    return eager_reduced(vlb_scale * bound + simple_scale * (pred - eps) ** 2, reduction)


def _eager_vlb_backward(
    grad: Tensor, pred: Tensor, var_values: Tensor | None, *rest: Any
) -> tuple[Tensor | None, ...]:
    leaves = as_leaves(pred, var_values)
    return eager_gradients([(_eager_vlb(*leaves, *rest[:-1]), grad)], leaves)


EAGER: dict[str, Callable[..., Any]] = {
    "affine": _eager_affine,
    "affine_out": lambda *args: _eager_affine(*args[:-1]),
    "noise_loss": _eager_noise_loss,
    "noise_loss_forming": _eager_noise_loss_forming,
    "noise_loss_backward": _eager_noise_loss_backward,
    "sampler_step": _eager_sampler_step,
    "sampler_step_out": lambda *args: _eager_sampler_step(*args[:-1]),
    "sampler_step_x0": functools.partial(_eager_sampler_step, with_x0=True),
    "sampler_step_backward": _eager_sampler_step_backward,
    "guidance_factor": _eager_guidance_factor,
    "dynamic_threshold": _eager_dynamic_threshold,
    "vlb": _eager_vlb,
    "vlb_backward": _eager_vlb_backward,
}
