r"""What a backend has to meet: every operator's mathematics, written again, and the tolerance.

`expected` computes an operator in NumPy's extended precision (`numpy.longdouble`, at least float64)
from the definitions in docs/, without PyTorch and without the reference. `assert_conforms` compares
a result with it. A new backend passes when, for every operator, dtype and sample,

    assert_conforms(op.name, sample.args, backend.kernel(op, sample.args)(*sample.args))

The tolerance of an element is

.. math::  (2 e + \varepsilon) s + \tfrac12 \varepsilon_{out} |v|

with v the exact value, s its scale (the sum of the magnitudes of the terms that v is made of: what
a rounding of any of them costs) and :math:`\varepsilon` the epsilon of the arithmetic, float32 or
float64. e is the error, in units of s, of the plain PyTorch expression that the operator replaces,
at the arithmetic's dtype: the worst over the operator's samples, since on a few elements it can be
accurate by chance. :math:`\varepsilon_{out} / 2` is the one rounding to the output's dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import genkern.backends  # noqa: F401  (completes the registry)
from genkern._ops.op import OPS, Args, Sample

__all__ = [
    "Expected",
    "assert_conforms",
    "eager",
    "expected",
    "philox4x32",
    "samples",
    "standard_normal",
    "tolerances",
]

Array = npt.NDArray[Any]
Shape = Sequence[int]

_REAL = np.longdouble
_NONE, _MEAN, _SUM, _BATCHMEAN, _SAMPLE = range(5)
_PI = _REAL(4) * np.arctan(_REAL(1))


class Expected(NamedTuple):
    """One output of an operator: its exact value and the scale of its rounding errors."""

    value: Array
    scale: Array


def samples(op: str, device: torch.device | str, dtype: torch.dtype) -> Iterator[Sample]:
    """Representative calls of an operator: every layout, reduction, kind of noise and prior.

    Args:
        op: The operator's name.
        device: Device of the tensors.
        dtype: Their dtype.

    Returns:
        An iterator over samples with a name (`id`) and arguments (`args`).
    """
    return OPS[op].samples(torch.device(device), dtype)


# ---- noise


def philox4x32(counter: Sequence[Array], key: Sequence[Array]) -> tuple[Array, ...]:
    """Philox4x32-10, from the paper.

    Args:
        counter: Four words, uint64 arrays below 2^32.
        key: Two words, likewise.

    Returns:
        The block's four words.
    """
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        a = np.uint64(0xD2511F53) * x0
        b = np.uint64(0xCD9E8D57) * x2
        x0, x1, x2, x3 = (b >> half) ^ x1 ^ k0, b & low, (a >> half) ^ x3 ^ k1, a & low
        k0 = (k0 + np.uint64(0x9E3779B9)) & low
        k1 = (k1 + np.uint64(0xBB67AE85)) & low
    return x0, x1, x2, x3


def _key_words(key: Tensor) -> Array:
    words: Array = key.cpu().contiguous().view(torch.int64).numpy().view(np.uint64)
    return words


def _blocks(key: Array, index: Array) -> Array:
    """Words (..., 4) of the blocks `index` of the keys (..., 2)."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    seed, n = key[..., 0], key[..., 1] + index.astype(np.uint64)
    seed, n = np.broadcast_arrays(seed, n)
    zero = np.zeros_like(n)
    words = philox4x32((n & low, n >> half, zero, zero), (seed & low, seed >> half))
    return np.stack(words, axis=-1)


def _words(key: Array, length: int, per_block: int) -> Array:
    """The words of a stream of `length` elements, (blocks, 4) or (B, blocks, 4)."""
    index = np.arange(-(-length // per_block), dtype=np.uint64)
    return _blocks(key[..., None, :], index)


def _pairs64(words: Array) -> Array:
    """64-bit words (..., 2)."""
    pairs: Array = (words[..., 0::2] << np.uint64(32)) | words[..., 1::2]
    return pairs


def _box_muller(log_u: Array, v: Array) -> Array:
    r, angle = np.sqrt(-2 * log_u), 2 * _PI * v
    return np.stack((r * np.cos(angle), r * np.sin(angle)), axis=-1)


def _unit32(words: Array) -> Array:
    """U and v of float32 normals; these are float32 numbers by the stream's definition."""
    x: Array = words.astype(np.float32).astype(np.float64)
    # Exact in float64 (33 bits at most), so the rounding to float32 is the only one.
    uv: Array = (x * 2.0**-32 + 2.0**-33).astype(np.float32)
    return uv


def _normal32(words: Array) -> Array:
    uv = _unit32(words).astype(_REAL)
    return _box_muller(np.log(uv[..., 0::2]), uv[..., 1::2])


def _normal64(words: Array) -> Array:
    x, y = (p.astype(np.uint64) for p in np.moveaxis(_pairs64(words), -1, 0))
    upper = x >= np.uint64(2**63)
    # u = (x + 1/2) 2^-64; 1 - u = (~x + 1/2) 2^-64 keeps its digits where u is near 1.
    small = np.where(upper, ~x, x).astype(_REAL)
    small = (small + _REAL(0.5)) * _REAL(2) ** -64
    log_u = np.where(upper, np.log1p(-small), np.log(small))
    return _box_muller(log_u, (y.astype(_REAL) + _REAL(0.5)) * _REAL(2) ** -64)


def _stream(key: Array, shape: Shape, wide: bool, normal: bool) -> Array:
    """Numbers of a stream, exactly; `wide` for the stream of float64."""
    per_sample = key.ndim == 2
    length = math.prod(shape[1:] if per_sample else shape)
    words = _words(key, length, 2 if wide else 4)
    if normal:
        values = _normal64(words) if wide else _normal32(words)
    elif wide:
        values = (_pairs64(words) & np.uint64(2**53 - 1)).astype(_REAL) * _REAL(2) ** -53
    else:
        values = (words & np.uint64(2**24 - 1)).astype(_REAL) * _REAL(2) ** -24
    flat = values.reshape(*words.shape[:-2], math.prod(values.shape[words.ndim - 2 :]))
    return flat[..., :length].reshape(tuple(shape))


def standard_normal(key: Tensor, shape: Shape, dtype: torch.dtype) -> Array:
    """The exact normal numbers of a key's stream, before any rounding.

    Args:
        key: uint64 or int64, (2,) or (B, 2).
        shape: Sizes.
        dtype: Which stream: float64 has its own, the others share one.

    Returns:
        A longdouble array.
    """
    words = _key_words(key)
    return _cached_normal(words.tobytes(), words.shape, tuple(shape), dtype == torch.float64)


@functools.lru_cache(maxsize=64)
def _cached_normal(key: bytes, key_shape: Shape, shape: Shape, wide: bool) -> Array:
    words = np.frombuffer(key, dtype=np.uint64).reshape(key_shape)
    return _stream(words, shape, wide, normal=True)


def _normal(key: Tensor, shape: Shape, dtype: torch.dtype) -> list[Expected | None]:
    value = standard_normal(key, shape, dtype)
    return [Expected(value, np.maximum(np.abs(value), 1))]


def _uniform(key: Tensor, shape: Shape, dtype: torch.dtype) -> list[Expected | None]:
    value = _stream(_key_words(key), shape, dtype == torch.float64, normal=False)
    return [Expected(value, np.zeros_like(value))]


def _children(key: Array, index: Array) -> list[Expected | None]:
    w = _blocks(key, index)
    half = np.uint64(32)
    child = np.stack((w[..., 0] | w[..., 1] << half, w[..., 2] | w[..., 3] << half), axis=-1)
    return [Expected(child, np.zeros(child.shape))]


def _split(key: Tensor, num: int) -> list[Expected | None]:
    words = _key_words(key)
    index = np.arange(num, dtype=np.uint64)
    return _children(words, index if words.ndim == 1 else index[:, None])


def _fold_in(key: Tensor, data: Tensor) -> list[Expected | None]:
    return _children(_key_words(key), data.cpu().numpy().view(np.uint64))


# ---- the VAE family


def _real(x: Tensor) -> Array:
    return x.detach().cpu().double().numpy().astype(_REAL)


def _noise(key: Tensor | None, noise: Tensor | None, mu: Tensor, num_samples: int | None) -> Array:
    """The noise in z's shape."""
    if noise is not None:
        return _real(noise)
    assert key is not None
    if num_samples is None or key.dim() == 1:
        shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
        return standard_normal(key, shape, mu.dtype)
    eps = standard_normal(key, (mu.shape[0], num_samples, *mu.shape[1:]), mu.dtype)
    return np.moveaxis(eps, 1, 0)


def _clamped(logvar: Tensor, lo: float, hi: float) -> tuple[Array, Array]:
    """The clamped log-variance, and where its gradient passes."""
    x = _real(logvar)
    return np.where(x < lo, _REAL(lo), np.where(x > hi, _REAL(hi), x)), ~((x < lo) | (x > hi))


def _expm1_minus(x: Array) -> Array:
    """exp(x) - 1 - x to full relative accuracy."""
    term = np.where(np.abs(x) < 1, x * x / 2, 0)
    total = np.zeros_like(x)
    for n in range(3, 32):  # 1 / 31! is below the epsilon of any longdouble
        total = total + term
        term = term * np.where(np.abs(x) < 1, x, 0) / n
    return np.where(np.abs(x) < 1, total, np.expm1(x) - x)


def _reduced(value: Array, scale: Array, reduction: int) -> Expected:
    if reduction == _NONE:
        return Expected(value, scale)
    batch = value.shape[0] if value.ndim else 1
    if reduction == _SAMPLE:
        axes = tuple(range(1, value.ndim))
        sums = [a.sum(axes) if a.ndim else a[None] for a in (value, scale)]
        return Expected(*sums)
    divisor = {_MEAN: value.size, _SUM: 1, _BATCHMEAN: batch}[reduction]
    return Expected(np.divide(value.sum(), _REAL(divisor)), np.divide(scale.sum(), _REAL(divisor)))


def _spread(grad: Tensor, shape: Shape, reduction: int) -> Array:
    """The upstream gradient of the elements."""
    g = _real(grad)
    batch = shape[0] if shape else 1
    if reduction == _SAMPLE:
        g = g.reshape(batch, *[1] * (len(shape) - 1)) if shape else g[0]
    divisor = {_MEAN: math.prod(shape), _BATCHMEAN: batch}.get(reduction, 1)
    return np.broadcast_to(np.divide(g, _REAL(divisor)), tuple(shape))


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
    scale = np.abs(_real(mu)) + sigma * np.maximum(np.abs(eps), 1)
    return [Expected(_real(mu) + sigma * eps, scale)]


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
    prior = _REAL(lv2) if prior_logvar is None else _real(prior_logvar)
    d = _clamped(logvar, lo, hi)[0] - prior
    difference = _real(mu) - (_REAL(m2) if prior_mu is None else _real(prior_mu))
    s = difference * np.exp(-prior / 2)
    return _Kl(difference * np.exp(-prior), s, d, (s * s + _expm1_minus(d)) / 2)


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
    value = np.where(kl.value < free_bits, _REAL(free_bits), kl.value)
    # exp(d) at a d that was rounded.
    scale = kl.s**2 + (1 + np.abs(kl.d)) * np.exp(kl.d) + 1 + np.abs(kl.d)
    return [_reduced(value, scale / 2, reduction)]


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
    zero = np.zeros(tuple(mu.shape), dtype=_REAL)
    values, scales = [zero] * 5, [zero] * 5
    if grad_z is not None:
        gz, sigma = _real(grad_z), np.exp(logv / 2)
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
        gk = np.where(kl.value < free_bits, 0, _spread(grad_kl, mu.shape, reduction))
        by_logvar = gk * np.expm1(kl.d) / 2
        near = np.abs(gk) * ((1 + np.abs(kl.d)) * np.exp(kl.d) + 1) / 2
        values[0], scales[0] = values[0] + gk * kl.r, scales[0] + np.abs(gk * kl.r)
        values[1], scales[1] = values[1] + by_logvar, scales[1] + near
        values[2], scales[2] = -gk * kl.r, np.abs(gk * kl.r)
        values[3] = -gk * kl.s**2 / 2 - by_logvar
        scales[3] = np.abs(gk) * kl.s**2 / 2 + near
    values[1] = np.where(passes, values[1], 0)
    return _asked(values, scales, output_mask)


def _asked(values: list[Array], scales: list[Array], mask: int) -> list[Expected | None]:
    return [
        Expected(value, scale) if mask >> i & 1 else None
        for i, (value, scale) in enumerate(zip(values, scales, strict=True))
    ]


def _bernoulli_nll(logits: Tensor, x: Tensor, reduction: int) -> list[Expected | None]:
    a, b = _real(logits), _real(x)
    tail = np.log1p(np.exp(-np.abs(a)))
    positive = np.maximum(a, 0)
    return [_reduced(positive - a * b + tail, positive + np.abs(a * b) + tail, reduction)]


def _bernoulli_nll_backward(
    grad: Tensor, logits: Tensor, x: Tensor, reduction: int, output_mask: int
) -> list[Expected | None]:
    a, b = _real(logits), _real(x)
    g = _spread(grad, logits.shape, reduction)
    e = np.exp(-np.abs(a))
    sigmoid = np.where(a < 0, e, 1) / (1 + e)
    values, scales = [g * (sigmoid - b), -g * a], [np.abs(g) * (sigmoid + np.abs(b)), np.abs(g * a)]
    return _asked(values, scales, output_mask)


def _gaussian_nll(
    x_hat: Tensor,
    x: Tensor,
    logvar: Tensor | None,
    sigma: float,
    lo: float,
    hi: float,
    reduction: int,
) -> list[Expected | None]:
    log_variance = 2 * np.log(_REAL(sigma)) if logvar is None else _clamped(logvar, lo, hi)[0]
    square = (_real(x) - _real(x_hat)) ** 2 * np.exp(-log_variance)
    log_2_pi = np.log(2 * _PI)
    value = (square + log_variance + log_2_pi) / 2
    return [_reduced(value, (square + np.abs(log_variance) + log_2_pi) / 2, reduction)]


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
        log_variance, passes = 2 * np.log(_REAL(sigma)), np.asarray(True)
    else:
        log_variance, passes = _clamped(logvar, lo, hi)
    g = _spread(grad, x_hat.shape, reduction)
    difference = _real(x) - _real(x_hat)
    by_x = g * difference * np.exp(-log_variance)
    half_square = difference**2 * np.exp(-log_variance) / 2
    values = [-by_x, by_x, np.where(passes, g * (_REAL(0.5) - half_square), 0)]
    scales = [np.abs(by_x), np.abs(by_x), np.abs(g) * (_REAL(0.5) + half_square)]
    return _asked(values, scales, output_mask)


_EXPECTED: dict[str, Callable[..., list[Expected | None]]] = {
    "normal": _normal,
    "uniform": _uniform,
    "split": _split,
    "fold_in": _fold_in,
    "rsample": _rsample,
    "kl": _kl,
    "rsample_kl": _rsample_kl,
    "rsample_kl_backward": _rsample_kl_backward,
    "bernoulli_nll": _bernoulli_nll,
    "bernoulli_nll_backward": _bernoulli_nll_backward,
    "gaussian_nll": _gaussian_nll,
    "gaussian_nll_backward": _gaussian_nll_backward,
}


def expected(op: str, args: Args) -> list[Expected | None]:
    """The exact outputs of a call.

    Args:
        op: The operator's name.
        args: Its arguments, as in its schema.

    Returns:
        One item an output; None for one that the call does not ask for.
    """
    with np.errstate(all="ignore"):
        return _EXPECTED[op](*args)


# ---- the plain PyTorch expressions, at the arithmetic's dtype


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _eager_noise(
    key: Tensor | None, noise: Tensor | None, mu: Tensor, num_samples: int | None
) -> Tensor:
    if noise is not None:
        return noise
    assert key is not None
    words = _key_words(key)
    by_sample = words.ndim == 2 and num_samples is not None
    shape = list(mu.shape) if num_samples is None else [num_samples, *mu.shape]
    drawn = [mu.shape[0], shape[0], *mu.shape[1:]] if by_sample else shape
    eps = _eager_normal(words, drawn, mu.dtype)
    return eps.transpose(0, 1) if by_sample else eps


def _eager_normal(key: Array, shape: Shape, dtype: torch.dtype) -> Tensor:
    wide = dtype == torch.float64
    length = math.prod(shape[1:] if key.ndim == 2 else shape)
    words = _words(key, length, 2 if wide else 4)
    uv = (_pairs64(words).astype(np.float64) + 0.5) * 2.0**-64 if wide else _unit32(words)
    u, v = torch.from_numpy(uv[..., 0::2].copy()), torch.from_numpy(uv[..., 1::2].copy())
    r, angle = torch.sqrt(-2.0 * torch.log(u)), 2.0 * math.pi * v
    values = torch.stack((r * torch.cos(angle), r * torch.sin(angle)), dim=-1)
    flat = values.flatten(words.ndim - 2)
    return flat[..., :length].reshape(list(shape))


def _eager_reduce(x: Tensor, reduction: int) -> Tensor:
    if reduction == _NONE:
        return x
    batch = x.shape[0] if x.dim() else 1
    if reduction == _SAMPLE:
        return x.reshape(batch, math.prod(x.shape[1:])).sum(1)
    if reduction == _MEAN:
        return x.mean()
    return x.sum() / batch if reduction == _BATCHMEAN else x.sum()


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
    return _eager_reduce(kl.clamp(min=free_bits), reduction)


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
    mu, logvar, prior_mu, prior_logvar, noise = leaves = _leaves(
        mu, logvar, prior_mu, prior_logvar, noise
    )
    outputs = []
    if grad_z is not None:
        outputs.append((_eager_rsample(mu, logvar, key, noise, num_samples, lo, hi), grad_z))
    if grad_kl is not None:
        outputs.append((_eager_kl(mu, logvar, prior_mu, prior_logvar, *rest), grad_kl))
    return _eager_gradients(outputs, leaves)


def _eager_bernoulli_nll(logits: Tensor, x: Tensor, reduction: int) -> Tensor:
    nll = torch.relu(logits) - logits * x + torch.log1p(torch.exp(-logits.abs()))
    return _eager_reduce(nll, reduction)


def _eager_bernoulli_nll_backward(
    grad: Tensor, logits: Tensor, x: Tensor, reduction: int, output_mask: int
) -> tuple[Tensor | None, ...]:
    logits, x = leaves = _leaves(logits, x)
    return _eager_gradients([(_eager_bernoulli_nll(logits, x, reduction), grad)], leaves)


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
    return _eager_reduce(0.5 * (square + log_variance + math.log(2.0 * math.pi)), reduction)


def _eager_gaussian_nll_backward(
    grad: Tensor, x_hat: Tensor, x: Tensor, logvar: Tensor | None, *options: Any
) -> tuple[Tensor | None, ...]:
    *rest, _ = options
    leaves = _leaves(x_hat, x, logvar)
    return _eager_gradients([(_eager_gaussian_nll(*leaves, *rest), grad)], leaves)


def _leaves(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


def _eager_gradients(
    outputs: list[tuple[Tensor, Tensor]], leaves: list[Any]
) -> tuple[Tensor | None, ...]:
    given = [leaf for leaf in leaves if leaf is not None]
    values, upstream = zip(*outputs, strict=True)
    found = iter(torch.autograd.grad(values, given, upstream, allow_unused=True))
    return tuple(None if leaf is None else next(found) for leaf in leaves)


_EAGER: dict[str, Callable[..., Any]] = {
    "normal": lambda key, shape, dtype: _eager_normal(_key_words(key), shape, _arithmetic(dtype)),
    "rsample": _eager_rsample,
    "kl": _eager_kl,
    "rsample_kl": _eager_rsample_kl,
    "rsample_kl_backward": _eager_rsample_kl_backward,
    "bernoulli_nll": _eager_bernoulli_nll,
    "bernoulli_nll_backward": _eager_bernoulli_nll_backward,
    "gaussian_nll": _eager_gaussian_nll,
    "gaussian_nll_backward": _eager_gaussian_nll_backward,
}


def eager(op: str, args: Args) -> tuple[Tensor | None, ...]:
    """What PyTorch code without this package computes, in float32 (float64 for float64 inputs).

    Args:
        op: The operator's name; the integer operators and `uniform` have no rounding to compare.
        args: Its arguments.

    Returns:
        The outputs, unrounded; None for a gradient that PyTorch did not compute.
    """
    wide = tuple(
        a.to(_arithmetic(a.dtype)) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in args
    )
    result = _EAGER[op](*wide)
    return result if isinstance(result, tuple) else (result,)


@functools.cache
def tolerances(op: str, dtype: torch.dtype) -> tuple[float, ...]:
    """2 e + epsilon for each output of an operator: see the module's text.

    Args:
        op: The operator's name.
        dtype: The dtype of its tensors.

    Returns:
        One number an output, in units of `Expected.scale`.
    """
    if op not in _EAGER:  # exact
        return (0.0,)
    worst: list[float] = []
    for sample in samples(op, "cpu", dtype):
        outputs, exact = eager(op, sample.args), expected(op, sample.args)
        worst = worst or [0.0] * len(exact)
        for i, (out, want) in enumerate(zip(outputs, exact, strict=True)):
            if out is not None and want is not None and want.value.size:
                error = np.abs(_real(out) - want.value)
                ratio = np.divide(error, want.scale, out=np.zeros_like(error), where=error > 0)
                worst[i] = max(worst[i], float(ratio.max()))
    return tuple(2.0 * e + torch.finfo(_arithmetic(dtype)).eps for e in worst)


def _mismatch(out: Tensor, want: Expected, tolerance: float, rounding: float) -> str | None:
    if tuple(out.shape) != want.value.shape:
        return f"expected shape {want.value.shape}, got {tuple(out.shape)}"
    if not out.is_floating_point():
        wrong = _key_words(out) != want.value
        return f"{wrong.sum()} of {wrong.size} integers differ" if wrong.any() else None
    limits = torch.finfo(out.dtype)
    with np.errstate(all="ignore"):
        overflow = np.abs(want.value) > limits.max
        value = np.where(overflow, np.copysign(np.inf, want.value), want.value)
        subnormal = limits.smallest_normal * limits.eps
        allowed = tolerance * want.scale + rounding * limits.eps * np.abs(value) + subnormal
        got = _real(out)
        same = (got == value) | (np.isnan(got) & np.isnan(value))
        excess = np.where(same, 0, np.abs(got - value) / allowed)
    excess = np.where(np.isnan(excess), np.inf, excess)
    if not excess.size or excess.max() <= 1:
        return None
    at = np.unravel_index(int(excess.argmax()), excess.shape)
    where = tuple(int(n) for n in at)
    return (
        f"{int((excess > 1).sum())} of {excess.size} elements are off, the worst at {where}:"
        f" expected {want.value[where]:.17g} within {float(np.asarray(allowed)[where]):.3g},"
        f" got {got[where]:.17g}"
    )


def assert_conforms(
    op: str, args: Args, result: Tensor | Sequence[Tensor], *, rounding: float = 0.5
) -> None:
    """Raises unless the result of a call is right, within the tolerance of the module's text.

    Args:
        op: The operator's name.
        args: The call's arguments.
        result: What the backend returned.
        rounding: Error of the last rounding, in epsilons of the output's dtype: 1.0 for a tool
            that truncates, as Triton's interpreter does to bfloat16.

    Raises:
        AssertionError: With the worst element of the first wrong output.
    """
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    exact = expected(op, args)
    dtype = next(
        (a.dtype for a in reversed(args) if isinstance(a, Tensor) and a.is_floating_point()),
        next((a for a in args if isinstance(a, torch.dtype)), torch.float32),
    )
    for i, (out, want, tolerance) in enumerate(
        zip(outputs, exact, tolerances(op, dtype), strict=True)
    ):
        problem = None if want is None else _mismatch(out, want, tolerance, rounding)
        if problem:
            raise AssertionError(f"{op}, output {i}: {problem}")
