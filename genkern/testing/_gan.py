"""The GAN family: exact values and the plain PyTorch expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genkern.testing._common import (
    REAL,
    SAMPLE,
    Array,
    Expected,
    as_leaves,
    asked,
    eager_gradients,
    eager_reduced,
    real,
    reduced,
    spread,
    square,
)
from genkern.testing._random import EXPECTED as RANDOM

# The kinds' numbers, as the operators take them.
_MINIMAX, _NON_SATURATING, _HINGE, _WASSERSTEIN, _LEAST_SQUARES, _RELATIVISTIC = range(6)


# ---- losses


class _Term(NamedTuple):
    """A function of one logit: its value and derivative, each with its scale."""

    value: Array
    value_scale: Array
    slope: Array
    slope_scale: Array


def _softplus(x: Array, rounding: Array | float = 0.0) -> _Term:
    """log(1 + e^x) of an x that is off by eps * `rounding`."""
    e = np.exp(-np.abs(x))
    value = np.maximum(x, 0) + np.log1p(e)
    slope = np.where(x < 0, e, 1) / (1 + e)
    return _Term(value, value + slope * rounding, slope, slope * (1 + (1 - slope) * rounding))


def _times(factor: Array | float, term: _Term, sign: float = 1.0) -> _Term:
    """factor * term, of sign * logit."""
    size = np.abs(factor)
    value, value_scale, slope, slope_scale = term
    return _Term(factor * value, size * value_scale, sign * factor * slope, size * slope_scale)


def _plus(a: _Term, b: _Term) -> _Term:
    return _Term(*(x + y for x, y in zip(a, b, strict=True)))


def _linear(x: Array, factor: float) -> _Term:
    one = np.ones_like(x)
    return _Term(factor * x, np.abs(x), factor * one, one)


def _half_square(difference: Array, size: Array, dtype: torch.dtype) -> _Term:
    """Of a difference whose terms have the size `size`."""
    whole = square(Expected(difference, size), dtype)
    return _Term(whole.value / 2, whole.scale, difference, size)


def _hinge(x: Array, sign: float) -> _Term:
    margin = 1 - sign * x
    size = np.where(margin > 0, 1 + np.abs(x), 0)
    return _Term(np.maximum(margin, 0), size, np.where(margin > 0, -sign, 0), np.ones_like(x))


def _discriminator_terms(
    kind: int, r: Array, f: Array, smoothing: float, dtype: torch.dtype
) -> tuple[_Term, _Term]:
    """The terms of the real and of the generated data."""
    s = REAL(smoothing)
    if kind in (_MINIMAX, _NON_SATURATING):
        real_term = _plus(_times(1 - s, _softplus(-r), -1.0), _times(s, _softplus(r)))
        return real_term, _softplus(f)
    if kind == _HINGE:
        return _hinge(r, 1.0), _hinge(f, -1.0)
    if kind == _WASSERSTEIN:
        return _linear(r, -1.0), _linear(f, 1.0)
    of_real = _half_square(r - 1 + s, np.abs(r) + 1, dtype)
    return of_real, _half_square(f, np.abs(f), dtype)


def _relativistic(better: Array, worse: Array) -> _Term:
    """softplus(-(better - worse)), with its derivative with respect to `better`."""
    return _times(1.0, _softplus(worse - better, np.abs(better) + np.abs(worse)), -1.0)


def _discriminator_loss(
    real_logits: Tensor, fake_logits: Tensor, kind: int, label_smoothing: float, reduction: int
) -> list[Expected | None]:
    r, f = real(real_logits), real(fake_logits)
    if kind == _RELATIVISTIC:
        term = _relativistic(r, f)
        return [reduced(term.value, term.value_scale, reduction)]
    terms = _discriminator_terms(kind, r, f, label_smoothing, real_logits.dtype)
    if r.shape == f.shape:
        terms = (_plus(*terms),) * 2
        return [reduced(terms[0].value, terms[0].value_scale, reduction)]
    a, b = (reduced(term.value, term.value_scale, reduction) for term in terms)
    return [Expected(a.value + b.value, a.scale + b.scale)]


def _discriminator_loss_backward(
    grad: Tensor,
    real_logits: Tensor,
    fake_logits: Tensor,
    kind: int,
    label_smoothing: float,
    reduction: int,
    output_mask: int,
) -> list[Expected | None]:
    r, f = real(real_logits), real(fake_logits)
    if kind == _RELATIVISTIC:
        term = _relativistic(r, f)
        terms = (term, _times(-1.0, term))
    else:
        terms = _discriminator_terms(kind, r, f, label_smoothing, real_logits.dtype)
    upstream = [spread(grad, x.shape, reduction) for x in (r, f)]
    values = [g * term.slope for g, term in zip(upstream, terms, strict=True)]
    scales = [np.abs(g) * term.slope_scale for g, term in zip(upstream, terms, strict=True)]
    return asked(values, scales, output_mask)


def _generator_term(kind: int, fake_logits: Tensor, real_logits: Tensor | None) -> _Term:
    f = real(fake_logits)
    if kind == _RELATIVISTIC:
        assert real_logits is not None
        return _relativistic(f, real(real_logits))
    if kind == _MINIMAX:
        return _times(-1.0, _softplus(f))
    if kind == _NON_SATURATING:
        return _times(1.0, _softplus(-f), -1.0)
    if kind == _LEAST_SQUARES:
        return _half_square(f - 1, np.abs(f) + 1, fake_logits.dtype)
    return _linear(f, -1.0)


def _generator_loss(
    fake_logits: Tensor, real_logits: Tensor | None, kind: int, reduction: int
) -> list[Expected | None]:
    term = _generator_term(kind, fake_logits, real_logits)
    return [reduced(term.value, term.value_scale, reduction)]


def _generator_loss_backward(
    grad: Tensor,
    fake_logits: Tensor,
    real_logits: Tensor | None,
    kind: int,
    reduction: int,
    output_mask: int,
) -> list[Expected | None]:
    term = _generator_term(kind, fake_logits, real_logits)
    g = spread(grad, fake_logits.shape, reduction)
    value, scale = g * term.slope, np.abs(g) * term.slope_scale
    return asked([value, -value], [scale, scale], output_mask)


def _formed(
    loss: Callable[..., list[Expected | None]],
    backward: Callable[..., list[Expected | None]],
    args: tuple[Any, ...],
) -> list[Expected | None]:
    """A loss with its gradients for an upstream gradient of 1."""
    found = loss(*args)
    assert found[0] is not None
    one = torch.ones(found[0].value.shape, dtype=torch.float64)
    mask = sum(1 << i for i in range(2) if args[i] is not None)
    return found + backward(one, *args, mask)


# ---- penalties


def _rows(x: Tensor) -> Array:
    rows = real(x)
    return rows.reshape(rows.shape[0], int(np.prod(rows.shape[1:])))


def _column(values: Array) -> Array:
    return values[:, None]


class _Slope(NamedTuple):
    """dp/dg = k g and, along v, k v + turn (g . v) g: one number a sample each."""

    k: Array
    k_scale: Array
    turn: Array


def _slope(rows: Array, center: float, weight: float) -> _Slope:
    n = np.sqrt((rows**2).sum(1))
    w, c = 2 * REAL(weight), REAL(center)
    if center == 0.0:
        return _Slope(np.full_like(n, w), np.full_like(n, w), np.zeros_like(n))
    zero = n == 0
    safe = np.where(zero, 1, n)
    return _Slope(
        np.where(zero, 0, w * (1 - c / safe)),
        np.where(zero, 0, w * (1 + c / safe)),
        np.where(zero, 0, w * c / safe**3),
    )


def _gradient_penalty(
    grads: Tensor, center: float, weight: float, reduction: int
) -> list[Expected | None]:
    n = np.sqrt((_rows(grads) ** 2).sum(1))
    value, scale = REAL(weight) * (n - center) ** 2, REAL(weight) * (n + center) ** 2
    return [reduced(value, scale, reduction)]


def _gradient_penalty_backward(
    grad: Tensor, grads: Tensor, center: float, weight: float, reduction: int
) -> list[Expected | None]:
    rows = _rows(grads)
    slope = _slope(rows, center, weight)
    g = spread(grad, rows.shape[:1], reduction)
    value = _column(g * slope.k) * rows
    scale = _column(np.abs(g) * slope.k_scale) * np.abs(rows)
    return [Expected(value.reshape(grads.shape), scale.reshape(grads.shape))]


def _gradient_penalty_backward_backward(
    grad_out: Tensor,
    grad: Tensor,
    grads: Tensor,
    center: float,
    weight: float,
    reduction: int,
    output_mask: int,
) -> list[Expected | None]:
    rows, v = _rows(grads), _rows(grad_out)
    slope = _slope(rows, center, weight)
    g = spread(grad, rows.shape[:1], reduction)
    along, along_scale = (rows * v).sum(1), np.abs(rows * v).sum(1)
    value = _column(slope.k) * v + _column(slope.turn * along) * rows
    scale = _column(slope.k_scale) * np.abs(v) + _column(slope.turn * along_scale) * np.abs(rows)
    by_grad = reduced(slope.k * along, slope.k_scale * along_scale, reduction)
    value, scale = _column(g) * value, np.abs(_column(g)) * scale
    return asked(
        [by_grad.value, value.reshape(grads.shape)],
        [by_grad.scale, scale.reshape(grads.shape)],
        output_mask,
    )


# ---- interpolation


def _weights(key: Tensor | None, noise: Tensor | None, like: Tensor) -> Array:
    """The samples' weights, in a shape that broadcasts over `like`."""
    if noise is not None:
        w = real(noise)
    else:
        assert key is not None
        size = [like.shape[0]] if key.dim() == 1 else [like.shape[0], 1]
        (drawn,) = RANDOM["uniform"](key, size, like.dtype)
        assert drawn is not None
        w = drawn.value
    return w.reshape(-1, *[1] * (like.dim() - 1))


def _interpolate(
    real_data: Tensor, fake_data: Tensor, key: Tensor | None, noise: Tensor | None
) -> list[Expected | None]:
    w, x, y = _weights(key, noise, real_data), real(real_data), real(fake_data)
    scale = np.abs(w * x) + (1 + np.abs(w)) * np.abs(y)
    return [Expected(w * x + (1 - w) * y, scale)]


def _interpolate_backward(
    grad: Tensor,
    real_data: Tensor,
    fake_data: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    output_mask: int,
) -> list[Expected | None]:
    w, g, x, y = _weights(key, noise, real_data), real(grad), real(real_data), real(fake_data)
    along = reduced(g * (x - y), np.abs(g) * (np.abs(x) + np.abs(y)), SAMPLE)
    return asked(
        [w * g, (1 - w) * g, along.value],
        [np.abs(w * g), (1 + np.abs(w)) * np.abs(g), along.scale],
        output_mask,
    )


# ---- the optimal discriminator


def _optimal_discriminator(log_p: Tensor, log_q: Tensor) -> list[Expected | None]:
    p, q = real(log_p), real(log_q)
    value = 1 / (1 + np.exp(q - p))
    return [Expected(value, value * (1 + np.abs(p) + np.abs(q)))]


def _optimal_discriminator_backward(
    grad: Tensor, log_p: Tensor, log_q: Tensor, output_mask: int
) -> list[Expected | None]:
    p, q = real(log_p), real(log_q)
    value = real(grad) / ((1 + np.exp(q - p)) * (1 + np.exp(p - q)))
    scale = np.abs(value) * (1 + np.abs(p) + np.abs(q))
    return asked([value, -value], [scale, scale], output_mask)


EXPECTED: dict[str, Callable[..., list[Expected | None]]] = {
    "discriminator_loss": _discriminator_loss,
    "discriminator_loss_forming": lambda *args: _formed(
        _discriminator_loss, _discriminator_loss_backward, args
    ),
    "discriminator_loss_backward": _discriminator_loss_backward,
    "generator_loss": _generator_loss,
    "generator_loss_forming": lambda *args: _formed(
        _generator_loss, _generator_loss_backward, args
    ),
    "generator_loss_backward": _generator_loss_backward,
    "gradient_penalty": _gradient_penalty,
    "gradient_penalty_backward": _gradient_penalty_backward,
    "gradient_penalty_backward_backward": _gradient_penalty_backward_backward,
    "interpolate": _interpolate,
    "interpolate_backward": _interpolate_backward,
    "optimal_discriminator": _optimal_discriminator,
    "optimal_discriminator_backward": _optimal_discriminator_backward,
}


# ---- the plain PyTorch expressions


def _eager_softplus(x: Tensor) -> Tensor:
    # F.softplus is x from x = 20 on, which float64 sees.
    return -F.logsigmoid(-x)


def _eager_terms(kind: int, r: Tensor, f: Tensor, s: float) -> tuple[Tensor, Tensor]:
    if kind in (_MINIMAX, _NON_SATURATING):
        return (1.0 - s) * _eager_softplus(-r) + s * _eager_softplus(r), _eager_softplus(f)
    if kind == _HINGE:
        return F.relu(1.0 - r), F.relu(1.0 + f)
    if kind == _WASSERSTEIN:
        return -r, f
    return 0.5 * (r - (1.0 - s)) ** 2, 0.5 * f**2


def _eager_discriminator_loss(
    real_logits: Tensor, fake_logits: Tensor, kind: int, label_smoothing: float, reduction: int
) -> Tensor:
    if kind == _RELATIVISTIC:
        return eager_reduced(_eager_softplus(fake_logits - real_logits), reduction)
    terms = _eager_terms(kind, real_logits, fake_logits, label_smoothing)
    return eager_reduced(terms[0], reduction) + eager_reduced(terms[1], reduction)


def _eager_discriminator_loss_backward(
    grad: Tensor, real_logits: Tensor, fake_logits: Tensor, *options: Any
) -> tuple[Tensor | None, ...]:
    *rest, _ = options
    leaves = as_leaves(real_logits, fake_logits)
    return eager_gradients([(_eager_discriminator_loss(*leaves, *rest), grad)], leaves)


def _eager_generator_loss(
    fake_logits: Tensor, real_logits: Tensor | None, kind: int, reduction: int
) -> Tensor:
    if kind == _RELATIVISTIC:
        assert real_logits is not None
        loss = _eager_softplus(real_logits - fake_logits)
    elif kind == _MINIMAX:
        loss = -_eager_softplus(fake_logits)
    elif kind == _NON_SATURATING:
        loss = _eager_softplus(-fake_logits)
    elif kind == _LEAST_SQUARES:
        loss = 0.5 * (fake_logits - 1.0) ** 2
    else:
        loss = -fake_logits
    return eager_reduced(loss, reduction)


def _eager_generator_loss_backward(
    grad: Tensor, fake_logits: Tensor, real_logits: Tensor | None, *options: Any
) -> tuple[Tensor | None, ...]:
    *rest, _ = options
    leaves = as_leaves(fake_logits, real_logits)
    return eager_gradients([(_eager_generator_loss(*leaves, *rest), grad)], leaves)


def _eager_formed(
    loss: Callable[..., Tensor], first: Tensor, second: Tensor | None, *rest: Any
) -> tuple[Tensor | None, ...]:
    leaves = as_leaves(first, second)
    value = loss(*leaves, *rest)
    return value, *eager_gradients([(value, torch.ones_like(value))], leaves)


def _eager_gradient_penalty(grads: Tensor, center: float, weight: float, reduction: int) -> Tensor:
    rows = grads.reshape(grads.shape[0], int(np.prod(grads.shape[1:])))
    if center == 0.0:
        penalty = weight * (rows * rows).sum(1)
    else:
        penalty = weight * (torch.linalg.vector_norm(rows, dim=1) - center) ** 2
    return eager_reduced(penalty, reduction)


def _eager_gradient_penalty_backward(
    grad: Tensor, grads: Tensor, center: float, weight: float, reduction: int
) -> Tensor:
    (leaf,) = as_leaves(grads)
    value = _eager_gradient_penalty(leaf, center, weight, reduction)
    found: Tensor = torch.autograd.grad(value, leaf, grad)[0]
    return found


def _eager_gradient_penalty_backward_backward(
    grad_out: Tensor, grad: Tensor, grads: Tensor, *options: Any
) -> tuple[Tensor | None, ...]:
    *rest, _ = options
    leaves = as_leaves(grad, grads)
    value = _eager_gradient_penalty(leaves[1], *rest)
    (found,) = torch.autograd.grad(value, leaves[1], leaves[0], create_graph=True)
    return eager_gradients([(found, grad_out)], leaves)


def _eager_interpolate(
    real_data: Tensor, fake_data: Tensor, key: Tensor | None, noise: Tensor | None
) -> Tensor:
    w = _weights(key, noise, real_data).astype(np.float64)
    weights = torch.from_numpy(w).to(real_data.dtype) if noise is None else noise.reshape(w.shape)
    return weights * real_data + (1.0 - weights) * fake_data


def _eager_interpolate_backward(
    grad: Tensor,
    real_data: Tensor,
    fake_data: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    output_mask: int,
) -> tuple[Tensor | None, ...]:
    leaves = x, y, w = as_leaves(real_data, fake_data, noise)
    return eager_gradients([(_eager_interpolate(x, y, key, w), grad)], leaves)


def _eager_optimal_discriminator(log_p: Tensor, log_q: Tensor) -> Tensor:
    # Its derivative keeps its digits where that of torch.sigmoid, y (1 - y), cancels.
    return torch.exp(F.logsigmoid(log_p - log_q))


def _eager_optimal_discriminator_backward(
    grad: Tensor, log_p: Tensor, log_q: Tensor, output_mask: int
) -> tuple[Tensor | None, ...]:
    leaves = as_leaves(log_p, log_q)
    return eager_gradients([(_eager_optimal_discriminator(*leaves), grad)], leaves)


EAGER: dict[str, Callable[..., Any]] = {
    "discriminator_loss": _eager_discriminator_loss,
    "discriminator_loss_forming": lambda *args: _eager_formed(_eager_discriminator_loss, *args),
    "discriminator_loss_backward": _eager_discriminator_loss_backward,
    "generator_loss": _eager_generator_loss,
    "generator_loss_forming": lambda *args: _eager_formed(_eager_generator_loss, *args),
    "generator_loss_backward": _eager_generator_loss_backward,
    "gradient_penalty": _eager_gradient_penalty,
    "gradient_penalty_backward": _eager_gradient_penalty_backward,
    "gradient_penalty_backward_backward": _eager_gradient_penalty_backward_backward,
    "interpolate": _eager_interpolate,
    "interpolate_backward": _eager_interpolate_backward,
    "optimal_discriminator": _eager_optimal_discriminator,
    "optimal_discriminator_backward": _eager_optimal_discriminator_backward,
}
