"""The VAE family: exact values and the plain PyTorch expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genkern.testing._common import (
    PI,
    REAL,
    Array,
    Expected,
    as_leaves,
    asked,
    eager_gradients,
    eager_reduced,
    expm1_minus,
    real,
    reduced,
    spread,
)
from genkern.testing._random import eager_normal, key_words, standard_normal


def _noise(key: Tensor | None, noise: Tensor | None, mu: Tensor, num_samples: int | None) -> Array:
    """The noise in z's shape."""
    if noise is not None:
        return real(noise)
    assert key is not None
    if num_samples is None or key.dim() == 1:
        shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
        return standard_normal(key, shape, mu.dtype)
    eps = standard_normal(key, (mu.shape[0], num_samples, *mu.shape[1:]), mu.dtype)
    return np.moveaxis(eps, 1, 0)


def _clamped(logvar: Tensor, lo: float, hi: float) -> tuple[Array, Array]:
    """The clamped log-variance, and where its gradient passes."""
    x = real(logvar)
    return np.where(x < lo, REAL(lo), np.where(x > hi, REAL(hi), x)), ~((x < lo) | (x > hi))


def _rsample(
    mu: Tensor,
    logvar: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    num_samples: int | None,
    lo: float,
    hi: float,
) -> list[Expected | None]:
    eps = _noise(key, noise, mu, num_samples)
    sigma = np.exp(_clamped(logvar, lo, hi)[0] / 2)
    # The noise is accurate to a few units in the last place of numbers near 1.
    scale = np.abs(real(mu)) + sigma * np.maximum(np.abs(eps), 1)
    return [Expected(real(mu) + sigma * eps, scale)]


class _Kl(NamedTuple):
    """The parts of a KL: s^2 / 2 and (exp(d) - 1 - d) / 2 are its two terms."""

    r: Array  # s exp(-lv2 / 2)
    s: Array
    d: Array
    value: Array


def _kl_parts(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    m2: float,
    lv2: float,
    lo: float,
    hi: float,
) -> _Kl:
    prior = REAL(lv2) if prior_logvar is None else real(prior_logvar)
    d = _clamped(logvar, lo, hi)[0] - prior
    difference = real(mu) - (REAL(m2) if prior_mu is None else real(prior_mu))
    s = difference * np.exp(-prior / 2)
    return _Kl(difference * np.exp(-prior), s, d, (s * s + expm1_minus(d)) / 2)


def _kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    m2: float,
    lv2: float,
    free_bits: float,
    lo: float,
    hi: float,
    reduction: int,
) -> list[Expected | None]:
    kl = _kl_parts(mu, logvar, prior_mu, prior_logvar, m2, lv2, lo, hi)
    value = np.where(kl.value < free_bits, REAL(free_bits), kl.value)
    # exp(d) at a d that was rounded.
    scale = kl.s**2 + (1 + np.abs(kl.d)) * np.exp(kl.d) + 1 + np.abs(kl.d)
    return [reduced(value, scale / 2, reduction)]


def _rsample_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    *options: Any,
) -> list[Expected | None]:
    _, _, _, lo, hi, _ = options
    return [
        *_rsample(mu, logvar, key, noise, None, lo, hi),
        *_kl(mu, logvar, prior_mu, prior_logvar, *options),
    ]


def _rsample_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    num_samples: int | None,
    m2: float,
    lv2: float,
    free_bits: float,
    lo: float,
    hi: float,
    reduction: int,
    output_mask: int,
) -> list[Expected | None]:
    logv, passes = _clamped(logvar, lo, hi)
    zero = np.zeros(tuple(mu.shape), dtype=REAL)
    values, scales = [zero] * 5, [zero] * 5
    if grad_z is not None:
        gz, sigma = real(grad_z), np.exp(logv / 2)
        draws: tuple[int, ...] = () if num_samples is None else (0,)
        values[0], scales[0] = gz.sum(draws), np.abs(gz).sum(draws)
        if output_mask & 0b10:
            eps = _noise(key, noise, mu, num_samples)
            values[1] = (gz * sigma * eps).sum(draws) / 2
            scales[1] = (np.abs(gz) * sigma * np.maximum(np.abs(eps), 1)).sum(draws) / 2
        values[4] = gz * sigma
        scales[4] = np.abs(values[4])
    if grad_kl is not None:
        kl = _kl_parts(mu, logvar, prior_mu, prior_logvar, m2, lv2, lo, hi)
        gk = np.where(kl.value < free_bits, 0, spread(grad_kl, mu.shape, reduction))
        by_logvar = gk * np.expm1(kl.d) / 2
        near = np.abs(gk) * ((1 + np.abs(kl.d)) * np.exp(kl.d) + 1) / 2
        values[0], scales[0] = values[0] + gk * kl.r, scales[0] + np.abs(gk * kl.r)
        values[1], scales[1] = values[1] + by_logvar, scales[1] + near
        values[2], scales[2] = -gk * kl.r, np.abs(gk * kl.r)
        values[3] = -gk * kl.s**2 / 2 - by_logvar
        scales[3] = np.abs(gk) * kl.s**2 / 2 + near
    values[1] = np.where(passes, values[1], 0)
    return asked(values, scales, output_mask)


def _bernoulli_nll(logits: Tensor, x: Tensor, reduction: int) -> list[Expected | None]:
    a, b = real(logits), real(x)
    tail = np.log1p(np.exp(-np.abs(a)))
    positive = np.maximum(a, 0)
    return [reduced(positive - a * b + tail, positive + np.abs(a * b) + tail, reduction)]


def _bernoulli_nll_backward(
    grad: Tensor, logits: Tensor, x: Tensor, reduction: int, output_mask: int
) -> list[Expected | None]:
    a, b = real(logits), real(x)
    g = spread(grad, logits.shape, reduction)
    e = np.exp(-np.abs(a))
    sigmoid = np.where(a < 0, e, 1) / (1 + e)
    values, scales = [g * (sigmoid - b), -g * a], [np.abs(g) * (sigmoid + np.abs(b)), np.abs(g * a)]
    return asked(values, scales, output_mask)


def _gaussian_nll(
    x_hat: Tensor,
    x: Tensor,
    logvar: Tensor | None,
    sigma: float,
    lo: float,
    hi: float,
    reduction: int,
) -> list[Expected | None]:
    log_variance = 2 * np.log(REAL(sigma)) if logvar is None else _clamped(logvar, lo, hi)[0]
    square = (real(x) - real(x_hat)) ** 2 * np.exp(-log_variance)
    log_2_pi = np.log(2 * PI)
    value = (square + log_variance + log_2_pi) / 2
    return [reduced(value, (square + np.abs(log_variance) + log_2_pi) / 2, reduction)]


def _gaussian_nll_backward(
    grad: Tensor,
    x_hat: Tensor,
    x: Tensor,
    logvar: Tensor | None,
    sigma: float,
    lo: float,
    hi: float,
    reduction: int,
    output_mask: int,
) -> list[Expected | None]:
    if logvar is None:
        log_variance, passes = 2 * np.log(REAL(sigma)), np.asarray(True)
    else:
        log_variance, passes = _clamped(logvar, lo, hi)
    g = spread(grad, x_hat.shape, reduction)
    difference = real(x) - real(x_hat)
    by_x = g * difference * np.exp(-log_variance)
    half_square = difference**2 * np.exp(-log_variance) / 2
    values = [-by_x, by_x, np.where(passes, g * (REAL(0.5) - half_square), 0)]
    scales = [np.abs(by_x), np.abs(by_x), np.abs(g) * (REAL(0.5) + half_square)]
    return asked(values, scales, output_mask)


# ---- the plain PyTorch expressions, at the arithmetic's dtype


def _eager_noise(
    key: Tensor | None, noise: Tensor | None, mu: Tensor, num_samples: int | None
) -> Tensor:
    if noise is not None:
        return noise
    assert key is not None
    words = key_words(key)
    by_sample = words.ndim == 2 and num_samples is not None
    shape = list(mu.shape) if num_samples is None else [num_samples, *mu.shape]
    drawn = [mu.shape[0], shape[0], *mu.shape[1:]] if by_sample else shape
    eps = eager_normal(words, drawn, mu.dtype)
    return eps.transpose(0, 1) if by_sample else eps


def _eager_rsample(
    mu: Tensor,
    logvar: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    num_samples: int | None,
    lo: float,
    hi: float,
) -> Tensor:
    eps = _eager_noise(key, noise, mu, num_samples)
    return mu + torch.exp(0.5 * logvar.clamp(lo, hi)) * eps


def _eager_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    m2: float,
    lv2: float,
    free_bits: float,
    lo: float,
    hi: float,
    reduction: int,
) -> Tensor:
    mean = torch.full_like(mu, m2) if prior_mu is None else prior_mu
    log_variance = torch.full_like(mu, lv2) if prior_logvar is None else prior_logvar
    d = logvar.clamp(lo, hi) - log_variance
    kl = 0.5 * ((mu - mean) ** 2 * torch.exp(-log_variance) + torch.exp(d) - 1.0 - d)
    return eager_reduced(kl.clamp(min=free_bits), reduction)


def _eager_rsample_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    _, _, _, lo, hi, _ = options
    return (
        _eager_rsample(mu, logvar, key, noise, None, lo, hi),
        _eager_kl(mu, logvar, prior_mu, prior_logvar, *options),
    )


def _eager_rsample_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    num_samples: int | None,
    *options: Any,
) -> tuple[Tensor | None, ...]:
    *rest, _ = options
    _, _, _, lo, hi, _ = rest
    mu, logvar, prior_mu, prior_logvar, noise = leaves = as_leaves(
        mu, logvar, prior_mu, prior_logvar, noise
    )
    outputs = []
    if grad_z is not None:
        outputs.append((_eager_rsample(mu, logvar, key, noise, num_samples, lo, hi), grad_z))
    if grad_kl is not None:
        outputs.append((_eager_kl(mu, logvar, prior_mu, prior_logvar, *rest), grad_kl))
    return eager_gradients(outputs, leaves)


def _eager_bernoulli_nll(logits: Tensor, x: Tensor, reduction: int) -> Tensor:
    nll = torch.relu(logits) - logits * x + torch.log1p(torch.exp(-logits.abs()))
    return eager_reduced(nll, reduction)


def _eager_bernoulli_nll_backward(
    grad: Tensor, logits: Tensor, x: Tensor, reduction: int, output_mask: int
) -> tuple[Tensor | None, ...]:
    logits, x = leaves = as_leaves(logits, x)
    return eager_gradients([(_eager_bernoulli_nll(logits, x, reduction), grad)], leaves)


def _eager_gaussian_nll(
    x_hat: Tensor,
    x: Tensor,
    logvar: Tensor | None,
    sigma: float,
    lo: float,
    hi: float,
    reduction: int,
) -> Tensor:
    fixed = x.new_full((), 2.0 * math.log(sigma))
    log_variance = fixed if logvar is None else logvar.clamp(lo, hi)
    square = (x - x_hat) ** 2 * torch.exp(-log_variance)
    return eager_reduced(0.5 * (square + log_variance + math.log(2.0 * math.pi)), reduction)


def _eager_gaussian_nll_backward(
    grad: Tensor, x_hat: Tensor, x: Tensor, logvar: Tensor | None, *options: Any
) -> tuple[Tensor | None, ...]:
    *rest, _ = options
    leaves = as_leaves(x_hat, x, logvar)
    return eager_gradients([(_eager_gaussian_nll(*leaves, *rest), grad)], leaves)


EXPECTED: dict[str, Callable[..., list[Expected | None]]] = {
    "rsample": _rsample,
    "kl": _kl,
    "rsample_kl": _rsample_kl,
    "rsample_kl_backward": _rsample_kl_backward,
    "bernoulli_nll": _bernoulli_nll,
    "bernoulli_nll_backward": _bernoulli_nll_backward,
    "gaussian_nll": _gaussian_nll,
    "gaussian_nll_backward": _gaussian_nll_backward,
}

EAGER: dict[str, Callable[..., Any]] = {
    "rsample": _eager_rsample,
    "kl": _eager_kl,
    "rsample_kl": _eager_rsample_kl,
    "rsample_kl_backward": _eager_rsample_kl_backward,
    "bernoulli_nll": _eager_bernoulli_nll,
    "bernoulli_nll_backward": _eager_bernoulli_nll_backward,
    "gaussian_nll": _eager_gaussian_nll,
    "gaussian_nll_backward": _eager_gaussian_nll_backward,
}
