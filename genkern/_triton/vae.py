"""The VAE family in Triton: csrc/include/genkern/vae.h, and equations in docs/vae.md."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from genkern._triton.launch import NONE, SAMPLE, Tiles, blocks_together, clamps, launch
from genkern._triton.math import (
    at_least,
    at_most,
    clamp,
    clamp_gradient,
    exp,
    exp_saturated,
    expm1,
    expm1_minus,
    log1p_exp,
)
from genkern._triton.ptx import fma, mul, sub
from genkern._triton.reduce import (
    divisor,
    new_gradient,
    new_gradients,
    new_partial,
    over,
    store_partial,
    upstream,
    value_of,
)
from genkern._triton.tile import arithmetic, is_half, load, noise_or_load, store, this_tile

# ---- one element


@triton.jit
def standard_deviation(l, HALF: tl.constexpr):
    return exp(l, HALF, 0.5)


@triton.jit
def reparameterise(mu, sigma, eps):
    return tl.fma(sigma, eps, mu)


@triton.jit
def kl_standard(mu, l, sigma, HALF: tl.constexpr):
    """The KL against N(0, 1), its derivative by mu, twice that by logvar, that by prior_logvar."""
    far = fma(sigma, sigma, -1.0)
    by_logvar = expm1(l, far, HALF)
    # e^88 absorbs 88 in either precision.
    g = expm1_minus(at_most(l, 88.0), far, HALF)
    return fma(mu, mu, g) * 0.5, mu, by_logvar, fma(mu, mu, by_logvar) * -0.5


@triton.jit
def kl_prior(mu, l, m2, lv2, HALF: tl.constexpr):
    """The same against N(m2, e^lv2)."""
    d = l - lv2
    far = sub(exp(d, HALF), 1.0)
    by_logvar = expm1(d, far, HALF)
    g = expm1_minus(at_most(d, 88.0), far, HALF)
    # In two steps, by e^(-lv2/4) kept finite: 0 times infinity would make a NaN.
    q = exp_saturated(lv2, HALF, -0.25)
    s = ((mu - m2) * q) * q
    return fma(s, s, g) * 0.5, (s * q) * q, by_logvar, fma(s, s, by_logvar) * -0.5


@triton.jit
def with_free_bits(kl, free_bits):
    return tl.where(kl < free_bits, free_bits, kl)


@triton.jit
def free_bits_gradient(kl, gradient, free_bits):
    return tl.where(kl < free_bits, 0.0, gradient)


@triton.jit
def bernoulli_value(logit, x, HALF: tl.constexpr):
    """-log Bernoulli(x; sigmoid(logit)), and its derivative by the logit."""
    positive = logit > 0.0
    e = exp(-tl.abs(logit), HALF)
    value = tl.fma(-logit, x, at_least(logit, 0.0)) + log1p_exp(e)
    return value, tl.where(positive, 1.0, e) / (e + 1.0) - x


LOG_2_PI = tl.constexpr(1.8378770664093454836)


@triton.jit
def gaussian_value(x_hat, x, l, HALF: tl.constexpr):
    """-log N(x; x_hat, e^l), and its derivatives by x and l."""
    q = exp_saturated(l, HALF, -0.25)
    r = ((x - x_hat) * q) * q
    half_square = r * 0.5 * r
    return half_square + (l + LOG_2_PI) * 0.5, (r * q) * q, 0.5 - half_square


@triton.jit
def gaussian_value_sigma(x_hat, x, inverse_sigma, half_log_2_pi_variance):
    """The same for a fixed sigma: the value and its derivative by x."""
    r = (x - x_hat) * inverse_sigma
    return tl.fma(r * 0.5, r, half_log_2_pi_variance), r * inverse_sigma


# ---- kernels


@triton.jit
def kl_of_tile(
    mu, l, sigma, prior_mu, prior_logvar, prior_mu_value, prior_logvar_value,
    row, start, mask, form, T: tl.constexpr, VECTOR: tl.constexpr, STANDARD: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    if STANDARD:
        return kl_standard(mu, l, sigma, HALF)
    else:
        if prior_mu is None:
            m2 = tl.full((1, 1), prior_mu_value, T)
        else:
            m2 = load(prior_mu, row, start, mask, form, T, VECTOR)
        if prior_logvar is None:
            lv2 = tl.full((1, 1), prior_logvar_value, T)
        else:
            lv2 = load(prior_logvar, row, start, mask, form, T, VECTOR)
        return kl_prior(mu, l, m2, lv2, HALF)


@triton.jit
def posterior_kernel(
    mu, logvar, prior_mu, prior_logvar, given, stream, z, kl, partial, form, draws,
    prior_mu_value: tl.float64, prior_logvar_value: tl.float64, free_bits: tl.float64,
    logvar_min: tl.float64, logvar_max: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr, STANDARD: tl.constexpr, FREE_BITS: tl.constexpr, CLAMP: tl.constexpr,
    BY_ROW: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    m = load(mu, row, start, mask, form, T, VECTOR)
    l = load(logvar, row, start, mask, form, T, VECTOR)
    if CLAMP:
        l = clamp(l, tl.full((), logvar_min, T), tl.full((), logvar_max, T))
    sigma = standard_deviation(l, is_half(mu.tensor))
    if z is not None:
        for draw in range(draws):
            eps = noise_or_load(given, stream, row, start, mask, form, draw, T, VECTOR, BLOCKS)
            store(z, reparameterise(m, sigma, eps), row, start, mask, form, VECTOR, draw)
    if kl is not None or partial is not None:
        value, _, _, _ = kl_of_tile(
            m, l, sigma, prior_mu, prior_logvar, prior_mu_value, prior_logvar_value,
            row, start, mask, form, T, VECTOR, STANDARD, is_half(mu.tensor),
        )  # fmt: skip
        if FREE_BITS:
            value = with_free_bits(value, tl.full((), free_bits, T))
        if kl is not None:
            store(kl, value, row, start, mask, form, VECTOR)
        else:
            store_partial(partial, value, row, mask, form, BY_ROW)


@triton.jit
def add_draw(total, lost, x, DRAWS: tl.constexpr):
    """Kahan's sum over many draws, whose error does not grow with their number; or the only one."""
    if DRAWS:
        y = x - lost
        new = total + y
        return new, (new - total) - y
    else:
        return tl.broadcast_to(x, total.shape), lost


@triton.jit
def posterior_backward_kernel(
    grad_z, grad_kl, kl_factor: tl.float64, mu, logvar, prior_mu, prior_logvar, given, stream,
    grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar, grad_noise, form, draws,
    prior_mu_value: tl.float64, prior_logvar_value: tl.float64, free_bits: tl.float64,
    logvar_min: tl.float64, logvar_max: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr, STANDARD: tl.constexpr, FREE_BITS: tl.constexpr, CLAMP: tl.constexpr,
    DRAWS: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    m = load(mu, row, start, mask, form, T, VECTOR)
    raw = load(logvar, row, start, mask, form, T, VECTOR)
    l = raw
    lo = tl.full((), logvar_min, T)
    hi = tl.full((), logvar_max, T)
    if CLAMP:
        l = clamp(raw, lo, hi)
    sigma = standard_deviation(l, is_half(mu.tensor))
    g_mu = tl.zeros((ROWS, COLUMNS), T)
    g_logvar = tl.zeros((ROWS, COLUMNS), T)
    if grad_z is not None:
        lost_mu = tl.zeros((ROWS, COLUMNS), T)
        lost_logvar = tl.zeros((ROWS, COLUMNS), T)
        for draw in range(draws):
            gz = load(grad_z, row, start, mask, form, T, VECTOR, draw)
            if grad_mu is not None:
                g_mu, lost_mu = add_draw(g_mu, lost_mu, gz, DRAWS)
            if grad_logvar is not None:
                eps = noise_or_load(given, stream, row, start, mask, form, draw, T, VECTOR, BLOCKS)
                g_logvar, lost_logvar = add_draw(g_logvar, lost_logvar, mul(gz, eps), DRAWS)
            if grad_noise is not None:
                store(grad_noise, gz * sigma, row, start, mask, form, VECTOR, draw)
        g_logvar = mul(g_logvar, sigma)
    if grad_kl is not None:
        value, by_mu, by_logvar, by_prior_logvar = kl_of_tile(
            m, l, sigma, prior_mu, prior_logvar, prior_mu_value, prior_logvar_value,
            row, start, mask, form, T, VECTOR, STANDARD, is_half(mu.tensor),
        )  # fmt: skip
        gk = load(grad_kl, row, start, mask, form, T, VECTOR) * tl.full((1, 1), kl_factor, T)
        if FREE_BITS:
            gk = free_bits_gradient(value, gk, tl.full((), free_bits, T))
        g_mu = fma(gk, by_mu, g_mu)
        g_logvar = fma(gk, by_logvar, g_logvar)
        if grad_prior_mu is not None:
            store(grad_prior_mu, -gk * by_mu, row, start, mask, form, VECTOR)
        if grad_prior_logvar is not None:
            store(grad_prior_logvar, gk * by_prior_logvar, row, start, mask, form, VECTOR)
    if grad_mu is not None:
        store(grad_mu, g_mu, row, start, mask, form, VECTOR)
    if grad_logvar is not None:
        g_logvar = mul(g_logvar, 0.5)
        if CLAMP:
            g_logvar = clamp_gradient(raw, g_logvar, lo, hi)
        store(grad_logvar, g_logvar, row, start, mask, form, VECTOR)


@triton.jit
def bernoulli_nll_kernel(
    logits, x, nll, partial, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BY_ROW: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    logit = load(logits, row, start, mask, form, T, VECTOR)
    target = load(x, row, start, mask, form, T, VECTOR)
    value, _ = bernoulli_value(logit, target, is_half(logits.tensor))
    if nll is not None:
        store(nll, value, row, start, mask, form, VECTOR)
    else:
        store_partial(partial, value, row, mask, form, BY_ROW)


@triton.jit
def bernoulli_nll_backward_kernel(
    grad, factor: tl.float64, logits, x, grad_logits, grad_x, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    g = load(grad, row, start, mask, form, T, VECTOR) * tl.full((1, 1), factor, T)
    logit = load(logits, row, start, mask, form, T, VECTOR)
    if grad_logits is not None:
        target = load(x, row, start, mask, form, T, VECTOR)
        _, by_logit = bernoulli_value(logit, target, is_half(logits.tensor))
        store(grad_logits, g * by_logit, row, start, mask, form, VECTOR)
    if grad_x is not None:
        store(grad_x, g * -logit, row, start, mask, form, VECTOR)


@triton.jit
def gaussian_nll_kernel(
    x_hat, x, logvar, nll, partial, form,
    inverse_sigma: tl.float64, half_log_2_pi_variance: tl.float64,
    logvar_min: tl.float64, logvar_max: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    CLAMP: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    mean = load(x_hat, row, start, mask, form, T, VECTOR)
    target = load(x, row, start, mask, form, T, VECTOR)
    if logvar is None:
        value, _ = gaussian_value_sigma(
            mean, target, tl.full((), inverse_sigma, T), tl.full((), half_log_2_pi_variance, T)
        )
    else:
        l = load(logvar, row, start, mask, form, T, VECTOR)
        if CLAMP:
            l = clamp(l, tl.full((), logvar_min, T), tl.full((), logvar_max, T))
        value, _, _ = gaussian_value(mean, target, l, is_half(x_hat.tensor))
    if nll is not None:
        store(nll, value, row, start, mask, form, VECTOR)
    else:
        store_partial(partial, value, row, mask, form, BY_ROW)


@triton.jit
def gaussian_nll_backward_kernel(
    grad, factor: tl.float64, x_hat, x, logvar, grad_x_hat, grad_x, grad_logvar, form,
    inverse_sigma: tl.float64, logvar_min: tl.float64, logvar_max: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    CLAMP: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    g = load(grad, row, start, mask, form, T, VECTOR) * tl.full((1, 1), factor, T)
    mean = load(x_hat, row, start, mask, form, T, VECTOR)
    target = load(x, row, start, mask, form, T, VECTOR)
    if logvar is None:
        inverse = tl.full((), inverse_sigma, T)
        _, by_x = gaussian_value_sigma(mean, target, inverse, inverse)
    else:
        raw = load(logvar, row, start, mask, form, T, VECTOR)
        lo = tl.full((), logvar_min, T)
        hi = tl.full((), logvar_max, T)
        l = raw
        if CLAMP:
            l = clamp(raw, lo, hi)
        _, by_x, by_logvar = gaussian_value(mean, target, l, is_half(x_hat.tensor))
        if grad_logvar is not None:
            g_logvar = g * by_logvar
            if CLAMP:
                g_logvar = clamp_gradient(raw, g_logvar, lo, hi)
            store(grad_logvar, g_logvar, row, start, mask, form, VECTOR)
    if grad_x_hat is not None:
        store(grad_x_hat, -g * by_x, row, start, mask, form, VECTOR)
    if grad_x is not None:
        store(grad_x, g * by_x, row, start, mask, form, VECTOR)


# ---- launchers


def rsample(
    mu: Tensor, logvar: Tensor, key: Tensor | None, noise: Tensor | None,
    num_samples: int | None, logvar_min: float, logvar_max: float,
) -> Tensor:  # fmt: skip
    z = _new_z(mu, num_samples)
    _posterior(
        mu, logvar, None, None, key, noise, num_samples, 0.0, 0.0, 0.0, logvar_min, logvar_max,
        NONE, z, None,
    )  # fmt: skip
    return z


def kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None,
    prior_mu_value: float, prior_logvar_value: float, free_bits: float,
    logvar_min: float, logvar_max: float, reduction: int,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(mu) if reduction == NONE else None
    partial = _posterior(
        mu, logvar, prior_mu, prior_logvar, None, None, None, prior_mu_value, prior_logvar_value,
        free_bits, logvar_min, logvar_max, reduction, None, out,
    )  # fmt: skip
    return value_of(out, partial, mu, reduction)


def rsample_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None,
    key: Tensor | None, noise: Tensor | None,
    prior_mu_value: float, prior_logvar_value: float, free_bits: float,
    logvar_min: float, logvar_max: float, reduction: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    z = _new_z(mu, None)
    out = torch.empty_like(mu) if reduction == NONE else None
    partial = _posterior(
        mu, logvar, prior_mu, prior_logvar, key, noise, None, prior_mu_value, prior_logvar_value,
        free_bits, logvar_min, logvar_max, reduction, z, out,
    )  # fmt: skip
    return z, value_of(out, partial, mu, reduction)


def rsample_kl_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor,
    prior_mu: Tensor | None, prior_logvar: Tensor | None,
    key: Tensor | None, noise: Tensor | None, num_samples: int | None,
    prior_mu_value: float, prior_logvar_value: float, free_bits: float,
    logvar_min: float, logvar_max: float, reduction: int, output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    likes = (mu, logvar, prior_mu, prior_logvar, noise)
    sources = (True, True, grad_kl is not None, grad_kl is not None, grad_z is not None)
    outputs = [
        new_gradient(like, output_mask >> i & 1, flows)
        for i, (like, flows) in enumerate(zip(likes, sources, strict=True))
    ]
    written = [g if flows else None for g, flows in zip(outputs, sources, strict=True)]
    if not output_mask & 0b10:
        key = None  # only the gradient of logvar needs the noise
    given = noise if key is None and output_mask & 0b10 else None
    spread = upstream(grad_kl, mu, reduction)
    tiles = Tiles(
        mu.shape,
        [grad_z, spread, mu, logvar, prior_mu, prior_logvar, given, *written],
        key,
    )
    stream = tiles.stream(key, num_samples)
    launch(
        posterior_backward_kernel, tiles.programs, mu.device,
        tiles.operand(grad_z), tiles.operand(spread), over(1.0, divisor(mu.shape, reduction)),
        *map(tiles.operand, (mu, logvar, prior_mu, prior_logvar, given)), stream,
        *map(tiles.operand, written), tiles.form, 1 if num_samples is None else num_samples,
        prior_mu_value, prior_logvar_value, free_bits, logvar_min, logvar_max,
        T=arithmetic(mu), **tiles.meta, BLOCKS=blocks_together(stream, mu.dtype),
        STANDARD=_standard(prior_mu, prior_logvar, prior_mu_value, prior_logvar_value),
        FREE_BITS=free_bits > 0.0, CLAMP=clamps(logvar_min, logvar_max),
        DRAWS=num_samples is not None,
    )  # fmt: skip
    return tuple(mu.new_empty(0) if g is None else g for g in outputs)


def bernoulli_nll(logits: Tensor, x: Tensor, reduction: int) -> Tensor:
    out = torch.empty_like(logits) if reduction == NONE else None
    tiles = Tiles(logits.shape, [logits, x, out], by_sample=reduction == SAMPLE)
    partial = None if out is not None else new_partial(logits, tiles, reduction)
    launch(
        bernoulli_nll_kernel, tiles.programs, logits.device,
        *map(tiles.operand, (logits, x, out)), partial, tiles.form,
        T=arithmetic(logits), **tiles.meta, BY_ROW=reduction == SAMPLE,
    )  # fmt: skip
    return value_of(out, partial, logits, reduction)


def bernoulli_nll_backward(
    grad: Tensor, logits: Tensor, x: Tensor, reduction: int, output_mask: int
) -> tuple[Tensor, ...]:
    outputs = new_gradients((logits, x), output_mask)
    spread = upstream(grad, logits, reduction)
    tiles = Tiles(logits.shape, [spread, logits, x, *outputs])
    launch(
        bernoulli_nll_backward_kernel, tiles.programs, logits.device,
        tiles.operand(spread), over(1.0, divisor(logits.shape, reduction)),
        *map(tiles.operand, (logits, x, *outputs)), tiles.form,
        T=arithmetic(logits), **tiles.meta,
    )  # fmt: skip
    return tuple(logits.new_empty(0) if g is None else g for g in outputs)


def gaussian_nll(
    x_hat: Tensor, x: Tensor, logvar: Tensor | None, sigma: float,
    logvar_min: float, logvar_max: float, reduction: int,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(x_hat) if reduction == NONE else None
    tiles = Tiles(x_hat.shape, [x_hat, x, logvar, out], by_sample=reduction == SAMPLE)
    partial = None if out is not None else new_partial(x_hat, tiles, reduction)
    launch(
        gaussian_nll_kernel, tiles.programs, x_hat.device,
        *map(tiles.operand, (x_hat, x, logvar, out)), partial, tiles.form,
        1.0 / sigma, math.log(sigma) + 0.5 * LOG_2_PI.value, logvar_min, logvar_max,
        T=arithmetic(x_hat), **tiles.meta, CLAMP=clamps(logvar_min, logvar_max),
        BY_ROW=reduction == SAMPLE,
    )  # fmt: skip
    return value_of(out, partial, x_hat, reduction)


def gaussian_nll_backward(
    grad: Tensor, x_hat: Tensor, x: Tensor, logvar: Tensor | None, sigma: float,
    logvar_min: float, logvar_max: float, reduction: int, output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    likes = (x_hat, x, logvar)
    outputs = new_gradients(likes, output_mask)
    spread = upstream(grad, x_hat, reduction)
    tiles = Tiles(x_hat.shape, [spread, *likes, *outputs])
    launch(
        gaussian_nll_backward_kernel, tiles.programs, x_hat.device,
        tiles.operand(spread), over(1.0, divisor(x_hat.shape, reduction)),
        *map(tiles.operand, (*likes, *outputs)), tiles.form,
        1.0 / sigma, logvar_min, logvar_max,
        T=arithmetic(x_hat), **tiles.meta, CLAMP=clamps(logvar_min, logvar_max),
    )  # fmt: skip
    return tuple(x_hat.new_empty(0) if g is None else g for g in outputs)


def _posterior(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None,
    key: Tensor | None, noise: Tensor | None, num_samples: int | None,
    prior_mu_value: float, prior_logvar_value: float, free_bits: float,
    logvar_min: float, logvar_max: float, reduction: int,
    z: Tensor | None, kl: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """Fills z and kl; returns the partial sums of a reduced KL."""
    by_sample = reduction == SAMPLE
    tiles = Tiles(mu.shape, [mu, logvar, prior_mu, prior_logvar, noise, z, kl], key, by_sample)
    stream = tiles.stream(key, num_samples)
    partial = None if reduction == NONE else new_partial(mu, tiles, reduction)
    launch(
        posterior_kernel, tiles.programs, mu.device,
        *map(tiles.operand, (mu, logvar, prior_mu, prior_logvar, noise)), stream,
        tiles.operand(z), tiles.operand(kl), partial, tiles.form,
        1 if num_samples is None else num_samples,
        prior_mu_value, prior_logvar_value, free_bits, logvar_min, logvar_max,
        T=arithmetic(mu), **tiles.meta, BLOCKS=blocks_together(stream, mu.dtype),
        STANDARD=_standard(prior_mu, prior_logvar, prior_mu_value, prior_logvar_value),
        FREE_BITS=free_bits > 0.0, CLAMP=clamps(logvar_min, logvar_max), BY_ROW=by_sample,
    )  # fmt: skip
    return partial


def _standard(
    prior_mu: Tensor | None, prior_logvar: Tensor | None, mu_value: float, logvar_value: float
) -> bool:
    return prior_mu is None and prior_logvar is None and mu_value == logvar_value == 0.0


def _new_z(mu: Tensor, num_samples: int | None) -> Tensor:
    return torch.empty_like(mu) if num_samples is None else mu.new_empty((num_samples, *mu.shape))
