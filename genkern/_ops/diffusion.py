r"""The diffusion family as operators: reference, fake, backward and samples.

Every process is a Gaussian path :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, and what its
functions compute is affine in (x0, x_t, pred, eps), up to a clamp and a square. So an operator is a
kernel family, and a schedule, a prediction type or a sampler is a table of coefficients:

    affine        c_0 x + c_1 y + c_2 z + c_3 eps, without the terms whose tensor is not there
    noise_loss    weight sample_weight (pred - target_x0 x0 - target_noise eps)^2 + offset
    sampler_step  mean_x0 clamp(x0_x_t x_t + x0_pred m) + mean_x_t x_t + mean_pred m + std eps
                  m = guidance_factor (uncond + guidance_scale (pred - uncond)), or
                  guidance_factor pred
                  std = noise exp(1/2 (log_variance + log_variance_values var_values)), or noise
                  where noise is 0, std eps is 0 whatever the tensors are
    vlb           d = diff_x0 x0 + diff_noise eps + diff_pred pred, which is x0 - x0_hat,
                  lv2 = log_variance + log_variance_values var_values, r = true_log_variance - lv2,
                  L = 1/2 (expm1(r) - r + (mean_x0 d)^2 e^-lv2)              Ho et al. 2020, (5)
                  or, in rows with decoder = 1, -log P(x0's bin)             Ho et al. 2020, (13)

`coefficients` is (R, columns) in the arithmetic's dtype. Sample b reads row t[b] (t is clamped to
the table, or refused where it can be read for nothing); without t, the only row, or row b of B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkern._ops import random
from genkern._ops.elements import (
    NONE,
    REDUCTIONS,
    arithmetic,
    asked,
    batch,
    expm1_minus,
    mask_of,
    masked,
    masked_fake,
    reduce,
    reduced_fake,
    row_sums,
    sample_layouts,
    spread,
    upstream,
    wide,
    with_layout,
)
from genkern._ops.op import Args, Op, Sample, WritingOp
from genkern._ops.random import sample_key

# Half the width of a bin of 8-bit images scaled to [-1, 1], and where the outermost bins, which
# are open, begin: Ho et al., arXiv:2006.11239, (13).
_HALF_BIN, _LAST_BIN = 1.0 / 255.0, 0.999
# Width of a bin that is narrow against the bell, in standard deviations.
_NARROW = 0.25

_NO_CLIP = (-math.inf, math.inf)


def columns(coefficients: Tensor, t: Tensor | None, like: Tensor) -> list[Tensor]:
    """The coefficients of each sample, a tensor a column that broadcasts over `like`."""
    rows = coefficients
    if t is not None:
        rows = rows[t.reshape(-1).clamp(0, rows.shape[0] - 1)]
    return [_per_sample(column, like) for column in rows.unbind(1)]


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values, one a sample or one for all, in a shape that broadcasts over `like`."""
    return values.reshape((-1, *[1] * (like.dim() - 1)) if like.dim() else ())


def _eps(key: Tensor | None, noise: Tensor | None, like: Tensor) -> Tensor | None:
    """The noise in float32 (float64), if there is any."""
    if noise is not None:
        return wide(noise)
    if key is None:
        return None
    drawn: Tensor = random.normal(key, list(like.shape), arithmetic(like.dtype))
    return drawn


# ---- affine


def _affine_reference(
    x: Tensor,
    y: Tensor | None,
    z: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
) -> Tensor:
    total = torch.zeros((), dtype=arithmetic(x.dtype), device=x.device)
    terms = (x, y, z, _eps(key, noise, x))
    # Columns after the last tensor may be missing.
    for c, term in zip(columns(coefficients, t, x), terms, strict=False):
        if term is not None:
            total = total + c * wide(term)
    return with_layout(total.to(x.dtype), torch.empty_like(x))


def _affine_formula(args: Args, needs: Sequence[bool], grad: Tensor) -> tuple[Tensor | None, ...]:
    coefficients, t = args[5:]
    tensors = (0, 1, 2, 4)  # x, y, z, noise
    grads: list[Tensor | None] = [None] * 7
    for column, i in enumerate(tensors):
        if needs[i]:
            c = coefficients.narrow(1, column, 1)
            grads[i] = affine(grad, None, None, None, None, c, t)
    return tuple(grads)


# ---- noise_loss


def _noise_loss_parts(
    pred: Tensor,
    x0: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    sample_weight: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """pred - target, the weights and the columns."""
    target_x0, target_noise, weight, offset = columns(coefficients, t, pred)
    difference = wide(pred)
    if x0 is not None:
        difference = difference - target_x0 * wide(x0)
    eps = _eps(key, noise, pred)
    if eps is not None:
        difference = difference - target_noise * eps
    if sample_weight is not None:
        weight = weight * _per_sample(sample_weight, pred)
    return difference, weight, [target_x0, target_noise, offset]


def _noise_loss_reference(
    pred: Tensor,
    x0: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    sample_weight: Tensor | None,
    reduction: int,
) -> Tensor:
    difference, weight, rest = _noise_loss_parts(
        pred, x0, key, noise, coefficients, t, sample_weight
    )
    loss = reduce(weight * difference * difference + rest[-1], reduction, pred.dtype)
    return with_layout(loss, torch.empty_like(pred)) if reduction == NONE else loss


def _noise_loss_backward_reference(
    grad: Tensor,
    pred: Tensor,
    x0: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    sample_weight: Tensor | None,
    reduction: int,
    output_mask: int,
) -> tuple[Tensor, ...]:
    difference, weight, (target_x0, target_noise, _) = _noise_loss_parts(
        pred, x0, key, noise, coefficients, t, sample_weight
    )
    along = spread(wide(grad), pred, reduction) * (2.0 * weight) * difference
    fakes = masked_fake((pred, x0, noise), output_mask, pred)
    return masked((along, -target_x0 * along, -target_noise * along), fakes, output_mask)


def _noise_loss_forming_reference(pred: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    value = _noise_loss_reference(pred, *rest)
    one = torch.ones((), dtype=value.dtype, device=value.device).expand(value.shape)
    backward: Args = (one, pred, *rest, 1)
    return value, _noise_loss_backward_reference(*backward)[0]


def _noise_loss_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    if needs[6]:  # sample_weight
        return noise_loss.reference_backward(args, needs, grad)
    wanted = (needs[0], needs[1], needs[3])
    found = asked(noise_loss_backward(grad, *args, mask_of(wanted)), wanted)
    return (found[0], found[1], None, found[2], None, None, None, None)


# ---- sampler_step


def _guided(
    pred: Tensor, uncond: Tensor | None, guidance_factor: Tensor | None, guidance_scale: float
) -> Tensor:
    m = wide(pred)
    if uncond is not None:
        base = wide(uncond)
        m = base + guidance_scale * (m - base)
    if guidance_factor is not None:
        m = m * _per_sample(guidance_factor, pred)
    return m


def _noise_parts(
    std: Tensor, lv: Tensor, lv_values: Tensor, var_values: Tensor | None, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """The standard deviation and the noise; 0 and 0 where `std` is 0, whatever the tensors are."""
    none = std == 0.0
    if var_values is not None:
        values = torch.where(none, 0.0, wide(var_values))
        std = std * torch.exp(0.5 * (lv + lv_values * values))
    return std, torch.where(none, 0.0, eps)


def _step_reference(
    with_x0: bool,
    x_t: Tensor,
    pred: Tensor,
    var_values: Tensor | None,
    uncond: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    guidance_factor: Tensor | None,
    threshold: Tensor | None,
    guidance_scale: float,
    x0_min: float,
    x0_max: float,
) -> tuple[Tensor, Tensor]:
    p, q, mean_x0, mean_x_t, mean_pred, std, lv, lv_values = columns(coefficients, t, x_t)
    x, m = wide(x_t), _guided(pred, uncond, guidance_factor, guidance_scale)
    # A coefficient of 0 adds nothing: a clipped x0 of an infinite prediction is a bound.
    x_prev = mean_x_t * x + torch.where(mean_pred == 0.0, 0.0, mean_pred * m)
    x0 = p * x + q * m
    clips = threshold is not None or (x0_min, x0_max) != _NO_CLIP
    if threshold is not None:
        s = _per_sample(threshold, x_t)
        x0 = torch.minimum(torch.maximum(x0, -s), s) / s
    elif clips:
        x0 = x0.clamp(x0_min, x0_max)
    if clips or with_x0:
        x_prev = x_prev + mean_x0 * x0
    eps = _eps(key, noise, x_t)
    if eps is not None:
        std, eps = _noise_parts(std, lv, lv_values, var_values, eps)
        x_prev = x_prev + std * eps
    x_prev, x0 = (with_layout(v.to(x_t.dtype), torch.empty_like(x_t)) for v in (x_prev, x0))
    return x_prev, x0


def _sampler_step_reference(*args: Any) -> Tensor:
    return _step_reference(False, *args)[0]


def _sampler_step_x0_reference(*args: Any) -> tuple[Tensor, Tensor]:
    return _step_reference(True, *args)


def _sampler_step_backward_reference(
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
    x0_min: float,
    x0_max: float,
    output_mask: int,
) -> tuple[Tensor, ...]:
    p, q, mean_x0, mean_x_t, mean_pred, std, lv, lv_values = columns(coefficients, t, x_t)
    g = wide(grad)
    along_x, along_m = g * mean_x_t, g * mean_pred
    if (x0_min, x0_max) != _NO_CLIP:
        x0 = p * wide(x_t) + q * _guided(pred, uncond, None, guidance_scale)
        along_x0 = torch.where((x0 < x0_min) | (x0 > x0_max), 0.0, g * mean_x0)
        along_x, along_m = along_x + along_x0 * p, along_m + along_x0 * q
    scale = 1.0 if uncond is None else guidance_scale
    grads = [along_x, along_m * scale, torch.zeros_like(g), along_m * (1.0 - scale)]
    eps = _eps(key, noise, x_t)
    if eps is None:
        grads.append(torch.zeros_like(g))
    else:
        along_noise = torch.where(std == 0.0, 0.0, g)
        std, eps = _noise_parts(std, lv, lv_values, var_values, eps)
        grads.append(along_noise * std)
        grads[2] = grads[-1] * eps * (0.5 * lv_values)
    fakes = masked_fake((x_t, pred, var_values, uncond, noise), output_mask, x_t)
    return masked(grads, fakes, output_mask)


def _sampler_step_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    if args[8] is not None or args[9] is not None:  # guidance_factor, threshold
        return sampler_step.reference_backward(args, needs, grad)
    wanted = (*needs[:4], needs[5])
    grads = sampler_step_backward(grad, *args[:8], *args[10:], mask_of(wanted))
    found = asked(grads, wanted)
    return (*found[:4], None, found[4], *[None] * 7)


def _sampler_step_x0_formula(
    args: Args, needs: Sequence[bool], grad: Tensor | None, grad_x0: Tensor | None
) -> tuple[Tensor | None, ...]:
    x_t, pred, _, uncond, _, _, rows, t, factor, threshold, scale, *bounds = args
    if factor is not None or threshold is not None:
        return sampler_step_x0.reference_backward(args, needs, grad, grad_x0)
    if tuple(bounds) == _NO_CLIP:
        # Without bounds the backward operator takes x0 to be folded into the other columns.
        largest = torch.finfo(rows.dtype).max
        bounds = [-largest, largest]
    wanted = (*needs[:4], needs[5])
    found: list[Tensor | None] = [None] * 5
    if grad is not None:
        every = sampler_step_backward(grad, *args[:8], scale, *bounds, mask_of(wanted))
        found = list(asked(every, wanted))
    if grad_x0 is not None:
        # x0 as the mean of a step without noise.
        p_q, zeros = rows[:, :2], torch.zeros_like(rows[:, 3:])
        x0_rows = torch.cat((p_q, torch.ones_like(rows[:, :1]), zeros), dim=1)
        of_x0 = (needs[0], needs[1], False, needs[3], False)
        given = (grad_x0, x_t, pred, None, uncond, None, None, x0_rows, t)
        for i, along in enumerate(sampler_step_backward(*given, scale, *bounds, mask_of(of_x0))):
            if of_x0[i]:
                before = found[i]
                found[i] = along if before is None else before + along
    return (*found[:4], None, found[4], *[None] * 7)


# ---- what a step needs to know of a whole sample


def _rows(x: Tensor) -> Tensor:
    return x.reshape(batch(x), math.prod(x.shape[1:]))


def _std(x: Tensor) -> Tensor:
    """The unbiased standard deviation of each sample."""
    rows = _rows(x)
    n = rows.shape[1]
    rows = rows - rows[:, :1]  # equal numbers deviate by nothing
    centred = rows - (row_sums(rows) / n).unsqueeze(1)
    return torch.sqrt(row_sums(centred * centred) / (n - 1))


def _guidance_factor_reference(
    pred: Tensor, uncond: Tensor, guidance_scale: float, guidance_rescale: float
) -> Tensor:
    guided = _guided(pred, uncond, None, guidance_scale)
    ratio = _std(wide(pred)) / _std(guided)
    return guidance_rescale * ratio + (1.0 - guidance_rescale)


def _dynamic_threshold_reference(
    x_t: Tensor,
    pred: Tensor,
    uncond: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    guidance_factor: Tensor | None,
    guidance_scale: float,
    ratio: float,
    max_value: float,
) -> Tensor:
    p, q = columns(coefficients, t, x_t)[:2]
    x0 = p * wide(x_t) + q * _guided(pred, uncond, guidance_factor, guidance_scale)
    ordered = _rows(x0).abs().sort(dim=1).values
    rank = ratio * (ordered.shape[1] - 1)
    low = math.floor(rank)
    high = min(low + 1, ordered.shape[1] - 1)
    value = torch.lerp(ordered[:, low], ordered[:, high], rank - low)
    return value.clamp(1.0, max_value)


# ---- vlb


class _Term(NamedTuple):
    """A term of the bound, and its derivatives by d = x0 - x0_hat and by the log-variance."""

    value: Tensor
    d: Tensor
    lv: Tensor


def _kl_term(d: Tensor, mean_x0: Tensor, true_lv: Tensor, lv: Tensor) -> _Term:
    r, inverse = true_lv - lv, torch.exp((-0.5 * lv).clamp(max=88.0))
    step = mean_x0 * d * inverse
    square = step * step
    along_lv = -0.5 * (torch.expm1(r) + square)
    return _Term(0.5 * (expm1_minus(r) + square), step * mean_x0 * inverse, along_lv)


def _decoder_term(d: Tensor, x0: Tensor, lv: Tensor) -> _Term:
    """-log of the discretised N(x0 - d, e^lv) at x0's bin.

    In float64: the difference of two tails loses digits.
    """
    dtype, d, lv = d.dtype, d.double(), lv.double()
    inverse = torch.exp((-0.5 * lv).clamp(max=709.0))
    # Mirrored so that the bin lies on the positive side, where the tail is small: 1 - Phi keeps its
    # digits there and Phi loses them.
    left = d < 0
    c = torch.where(left, -d, d)
    below, above = x0 < -_LAST_BIN, x0 > _LAST_BIN
    w, s = (2.0 * _HALF_BIN) * inverse, c * inverse
    narrow = ~(below | above) & (w < _NARROW) & (w * s < _NARROW)
    # Each gets a harmless bin where the other is taken.
    series = _narrow_bin(
        torch.where(narrow, lv, 0.0),
        torch.where(narrow, inverse, 0.0),
        torch.where(narrow, w, 0.0),
        torch.where(narrow, s, 0.0),
    )
    open_near, open_far = torch.where(left, above, below), torch.where(left, below, above)
    wide_bin = _wide_bin(
        torch.where(narrow, 0.0, c), torch.where(narrow, 1.0, inverse), open_near, open_far
    )
    value, by_c, by_lv = (
        torch.where(narrow, n, r).to(dtype) for n, r in zip(series, wide_bin, strict=True)
    )
    return _Term(value, torch.where(left, -by_c, by_c), by_lv)


def _narrow_bin(lv: Tensor, inverse: Tensor, w: Tensor, s: Tensor) -> _Term:
    """Of a bin w wide and s from the mean in standard deviations, both w and w s below _NARROW.

    Its probability is w times the density at its centre times S, the integral of the density's
    Taylor series: S = 1 + sum over k of w^2k He_2k(s) / (4^k (2k + 1)!). The terms left out are
    below 1e-16 of S.
    """
    # w^n He_n(s), by He_n+1(s) = s He_n(s) - n He_n-1(s).
    u, p = w * w, w * s
    even, odd = torch.ones_like(u), p
    # He_n' = n He_n-1: the derivative of S by s, over w, and that by w, times w.
    total, by_s, by_w = torch.ones_like(u), torch.zeros_like(u), torch.zeros_like(u)
    factor = 1.0
    for n in range(2, 11, 2):
        factor /= 4.0 * n * (n + 1)
        even = p * odd - (n - 1) * u * even
        total = total + factor * even
        by_s, by_w = by_s + n * factor * odd, by_w + n * factor * even
        odd = p * even - n * u * odd
    # log w with lv itself: w underflows.
    value = 0.5 * (lv + s * s) + math.log(math.sqrt(2.0 * math.pi) / (2.0 * _HALF_BIN))
    return _Term(
        value - torch.log(total),
        (s - w * by_s / total) * inverse,
        0.5 * (1.0 - s * s + (p * by_s + by_w) / total),
    )


def _wide_bin(c: Tensor, inverse: Tensor, open_near: Tensor, open_far: Tensor) -> _Term:
    """Of a bin at c >= 0 from the mean, by erf and erfcx at its ends."""
    a, b = (c - _HALF_BIN) * inverse, (c + _HALF_BIN) * inverse
    root = math.sqrt(0.5)
    # The bin holds the mean: two parts of the bell, added.
    around = (a <= 0) | open_near
    a_near, b_near = torch.where(around, a, 0.0), torch.where(around, b, 1.0)
    near = torch.where(open_near, 1.0, torch.erf(-root * a_near)) + torch.where(
        open_far, 1.0, torch.erf(root * b_near)
    )
    # It does not: a difference of tails, scaled by the density at its near end.
    a_far, b_far = torch.where(around, 1.0, a), torch.where(around, 2.0, b)
    exponent = torch.where(around, 0.0, (2.0 * _HALF_BIN) * c * inverse * inverse)
    ratio = torch.where(open_far, 0.0, torch.exp(-exponent))
    far = torch.special.erfcx(root * a_far) - torch.special.erfcx(root * b_far) * ratio
    log_p = torch.where(around, torch.log(0.5 * near), torch.log(0.5 * far) - 0.5 * a_far * a_far)
    # Densities at the ends over the probability. Far away the density at the near end cancels.
    at_a, at_b = (torch.exp(-0.5 * e * e) / near for e in (a_near, b_near))
    at_a = torch.where(around, torch.where(open_near, 0.0, at_a), 1.0 / far)
    at_b = torch.where(around, torch.where(open_far, 0.0, at_b), ratio / far)
    root_2_pi = math.sqrt(2.0 / math.pi)
    by_lv = (0.5 * root_2_pi) * (b * at_b - a * at_a)
    return _Term(-log_p, root_2_pi * (at_a - at_b) * inverse, by_lv)


def _vlb_parts(
    pred: Tensor,
    var_values: Tensor | None,
    x0: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    coefficients: Tensor,
    t: Tensor | None,
    x0_min: float,
    x0_max: float,
    detach_mean: bool,
) -> tuple[_Term, Tensor, Tensor, Tensor]:
    """The term, the derivatives of d by pred and of lv by var_values, and pred - eps."""
    diff_x0, diff_noise, diff_pred, mean_x0, true_lv, lv, lv_values, decoder = columns(
        coefficients, t, pred
    )
    m, x, eps = wide(pred), wide(x0), _eps(key, noise, pred)
    if eps is None:
        raise ValueError("vlb: expected key or noise, got neither")
    d = diff_x0 * x + diff_noise * eps + diff_pred * m
    if (x0_min, x0_max) != _NO_CLIP:
        x0_hat = x - d
        diff_pred = torch.where((x0_hat < x0_min) | (x0_hat > x0_max), 0.0, diff_pred)
        d = x - x0_hat.clamp(x0_min, x0_max)
    if detach_mean:
        d, diff_pred = d.detach(), torch.zeros_like(diff_pred)
    if var_values is not None:
        lv = lv + lv_values * wide(var_values)
    # Each branch gets harmless arguments where the other is taken: a gradient of 0 times infinity
    # would be a NaN.
    last = decoder > 0.5
    lv = lv.expand_as(d)
    kl = _kl_term(d, mean_x0, true_lv, torch.where(last, true_lv, lv))
    nll = _decoder_term(torch.where(last, d, 0.0), x, torch.where(last, lv, 0.0))
    term = _Term(*(torch.where(last, n, k) for n, k in zip(nll, kl, strict=True)))
    return term, diff_pred, lv_values, m - eps


def _vlb_reference(pred: Tensor, *rest: Any) -> Tensor:
    *args, vlb_scale, simple_scale, detach_mean, reduction = rest
    given: Args = (pred, *args, detach_mean)
    term, _, _, error = _vlb_parts(*given)
    value = vlb_scale * term.value
    if simple_scale != 0.0:
        value = value + simple_scale * error * error
    value = reduce(value, reduction, pred.dtype)
    return with_layout(value, torch.empty_like(pred)) if reduction == NONE else value


def _vlb_backward_reference(
    grad: Tensor, pred: Tensor, var_values: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    *args, vlb_scale, simple_scale, detach_mean, reduction, output_mask = rest
    given: Args = (pred, var_values, *args, detach_mean)
    term, by_pred, by_values, error = _vlb_parts(*given)
    g = spread(wide(grad), pred, reduction)
    along = vlb_scale * g
    # An infinite derivative times 0 would be a NaN.
    along_pred = torch.where(by_pred == 0.0, 0.0, along * term.d * by_pred)
    if simple_scale != 0.0:
        along_pred = along_pred + (2.0 * simple_scale) * g * error
    fakes = masked_fake((pred, var_values), output_mask, pred)
    return masked((along_pred, along * term.lv * by_values), fakes, output_mask)


def _vlb_formula(args: Args, needs: Sequence[bool], grad: Tensor) -> tuple[Tensor | None, ...]:
    if needs[2] or needs[4]:  # x0, noise
        return vlb.reference_backward(args, needs, grad)
    found = asked(vlb_backward(grad, *args, mask_of(needs[:2])), needs[:2])
    return (*found, *[None] * 11)


# ---- samples


def _table(device: torch.device, dtype: torch.dtype, count: int) -> Tensor:
    """Five rows of coefficients near 1, of both signs."""
    generator = torch.Generator().manual_seed(2)
    values = torch.rand((5, count), generator=generator, dtype=torch.float64) + 0.25
    values[1::2, ::2] *= -1.0
    return values.to(device, arithmetic(dtype))


def _times(table: Tensor, like: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """Another way to say the row for each layout: t of (B,) or (), a row a sample, one row."""
    kind = sum(map(ord, name)) % 4
    index = torch.arange(batch(like), device=table.device) * 3 % 5
    if kind == 0 and like.dim():
        return table, index
    if kind == 1:
        return table, torch.tensor(3, device=table.device)
    if kind == 2 and like.dim():
        return table[index], None
    return table[2:3], None


def _sources(
    name: str, noise: Tensor, device: torch.device
) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    yield f"{name}-key", sample_key(device), None
    yield f"{name}-noise", None, noise
    if noise.dim():
        yield f"{name}-keys", sample_key(device, noise.shape[0]), None


def _affine_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    table = _table(device, dtype, 4)
    for name, (x, y, z, noise) in sample_layouts(device, dtype, 4):
        for id, key, eps in _sources(name, noise, device):
            yield Sample(id, (x, None, None, key, eps, *_times(table, x, id)))
        key = sample_key(device)
        yield Sample(f"{name}-x", (x, *[None] * 4, *_times(table[:, 3:], x, name)))
        yield Sample(f"{name}-xy", (x, y, *[None] * 3, *_times(table, x, f"{name}-y")))
        yield Sample(f"{name}-xyz", (x, y, z, None, None, *_times(table, x, f"{name}-xyz")))
        yield Sample(f"{name}-all", (x, y, z, key, None, *_times(table, x, f"{name}-all")))


def _noise_loss_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (pred, x0, noise) in sample_layouts(device, dtype, 3):
        weight = torch.linspace(0.5, 2.0, batch(pred), device=device, dtype=arithmetic(dtype))
        table = _table(device, dtype, 4)
        for i, (word, reduction) in enumerate(REDUCTIONS.items()):
            for id, key, eps in _sources(f"{name}-{word}", noise, device):
                c, t = _times(table, pred, id)
                target = x0 if i % 2 or not pred.dim() else None
                sample_weight = weight if i > 2 and pred.dim() else None
                yield Sample(id, (pred, target, key, eps, c, t, sample_weight, reduction))
        c, t = _times(table, pred, name)
        yield Sample(f"{name}-x0", (pred, x0, None, None, c, t, weight, REDUCTIONS["mean"]))
        yield Sample(f"{name}-square", (pred, None, None, None, c, t, None, REDUCTIONS["sample"]))


def _noise_loss_backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for case in _noise_loss_samples(device, dtype):
        pred, x0, _, noise, *_, reduction = case.args
        grad = upstream(reduced_fake(pred, reduction), case.id)
        mask = mask_of((True, x0 is not None, noise is not None))
        yield Sample(case.id, (grad, *case.args, mask))


def _sampler_step_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (x, pred, values, uncond, noise) in sample_layouts(device, dtype, 5):
        table = _table(device, dtype, 8)
        each = torch.linspace(0.5, 2.0, batch(x), device=device, dtype=arithmetic(dtype))
        for id, key, eps in _sources(name, noise, device):
            c, t = _times(table, x, id)
            source = (key, eps, c, t, None, None)
            yield Sample(id, (x, pred, None, None, *source, 1.0, *_NO_CLIP))
            yield Sample(f"clip-{id}", (x, pred, None, None, *source, 1.0, -0.5, 0.75))
            yield Sample(f"learned-{id}", (x, pred, values, None, *source, 1.0, *_NO_CLIP))
            yield Sample(f"guided-{id}", (x, pred, values, uncond, *source, 3.0, -0.5, 0.75))
        c, t = _times(table, x, name)
        yield Sample(
            f"plain-{name}", (x, pred, None, None, None, None, c, t, None, None, 1.0, *_NO_CLIP)
        )
        if x.dim():
            for factor, threshold in ((each, None), (None, each), (each, each)):
                there = f"{'f' if factor is not None else ''}{'t' if threshold is not None else ''}"
                whole = (sample_key(device), None, c, t, factor, threshold)
                yield Sample(f"{there}-{name}", (x, pred, None, uncond, *whole, 2.0, *_NO_CLIP))


def _sampler_step_backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for case in _sampler_step_samples(device, dtype):
        x, pred, values, uncond, key, noise, c, t, factor, threshold, *rest = case.args
        if factor is None and threshold is None:
            grad = upstream(torch.empty_like(x), case.id)
            wanted = (True, True, values is not None, uncond is not None, noise is not None)
            given = (grad, x, pred, values, uncond, key, noise, c, t, *rest)
            yield Sample(case.id, (*given, mask_of(wanted)))


def _guidance_factor_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (pred, uncond) in sample_layouts(device, dtype, 2):
        if pred.numel() > batch(pred):  # a sample of one element has no deviation
            yield Sample(name, (pred, uncond, 3.0, 0.7))


def _dynamic_threshold_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (x, pred, uncond) in sample_layouts(device, dtype, 3):
        if x.numel():
            each = torch.linspace(0.5, 2.0, batch(x), device=device, dtype=arithmetic(dtype))
            c, t = _times(_table(device, dtype, 8), x, name)
            factor = each if x.dim() else None
            yield Sample(name, (x, pred, None, c, t, None, 1.0, 0.9, 1.5))
            yield Sample(f"guided-{name}", (x, pred, uncond, c, t, factor, 2.0, 0.37, 100.0))


def _vlb_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Five steps of a short schedule, epsilon prediction; the first is the decoder's."""
    betas = torch.linspace(1e-3, 0.2, 5, dtype=torch.float64)
    a = torch.cumprod(1.0 - betas, 0)
    before = torch.cat((torch.ones(1, dtype=torch.float64), a[:-1]))
    ratio = torch.sqrt((1.0 - a) / a)
    variance = (1.0 - before) / (1.0 - a) * betas
    variance[0] = variance[1]
    low, high = torch.log(variance), torch.log(betas)
    table = torch.stack(
        (
            torch.zeros_like(a),
            -ratio,
            ratio,
            before.sqrt() * betas / (1.0 - a),
            low,
            0.5 * (low + high),
            0.5 * (high - low),
            (torch.arange(5) == 0).double(),
        ),
        dim=1,
    )
    return table.to(device, arithmetic(dtype))


def _vlb_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    table = _vlb_table(device, dtype)
    for name, (pred, values, x0, noise) in sample_layouts(device, dtype, 4):
        # Pixels, some in the outermost bins.
        x0 = (1.5 * x0).clamp(-1.0, 1.0)
        for i, (word, reduction) in enumerate(REDUCTIONS.items()):
            for id, key, eps in _sources(f"{name}-{word}", noise, device):
                c, t = _times(table, pred, id)
                hybrid = i > 2
                var_values = values if i % 2 else None
                clip = (-1.0, 1.0) if i == 1 else _NO_CLIP
                scales = (0.7, 1.0 if hybrid else 0.0, hybrid)
                yield Sample(id, (pred, var_values, x0, key, eps, c, t, *clip, *scales, reduction))


def _vlb_backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for case in _vlb_samples(device, dtype):
        pred, values, *_, reduction = case.args
        grad = upstream(reduced_fake(pred, reduction), case.id)
        yield Sample(case.id, (grad, *case.args, mask_of((True, values is not None))))


# ---- the operators

_NOISE = "Tensor? key, Tensor? noise, Tensor coefficients, Tensor? t"
_CLIP = "float x0_min, float x0_max"

_AFFINE = f"Tensor x, Tensor? y, Tensor? z, {_NOISE}"
affine = Op(
    f"affine({_AFFINE}) -> Tensor",
    reference=_affine_reference,
    fake=lambda x, *rest: torch.empty_like(x),
    samples=_affine_samples,
    backward=_affine_formula,
    saves=("coefficients", "t"),
)
affine_out = WritingOp(affine, f"affine_out({_AFFINE}, Tensor(a!) out) -> ()")

_NOISE_LOSS = f"Tensor pred, Tensor? x0, {_NOISE}, Tensor? sample_weight, int reduction"
noise_loss_forming = Op(
    f"noise_loss_forming({_NOISE_LOSS}) -> (Tensor, Tensor)",
    reference=_noise_loss_forming_reference,
    fake=lambda pred, *rest: (reduced_fake(pred, rest[-1]), torch.empty_like(pred)),
    samples=_noise_loss_samples,
)
noise_loss = Op(
    f"noise_loss({_NOISE_LOSS}) -> Tensor",
    reference=_noise_loss_reference,
    fake=lambda pred, *rest: reduced_fake(pred, rest[-1]),
    samples=_noise_loss_samples,
    backward=_noise_loss_formula,
    forming=noise_loss_forming,
)
noise_loss_backward = Op(
    f"noise_loss_backward(Tensor grad, {_NOISE_LOSS}, int output_mask) -> (Tensor, Tensor, Tensor)",
    reference=_noise_loss_backward_reference,
    fake=lambda grad, pred, x0, key, noise, *rest: masked_fake((pred, x0, noise), rest[-1], pred),
    samples=_noise_loss_backward_samples,
    backward="reference",
)

_STEP = f"Tensor x_t, Tensor pred, Tensor? var_values, Tensor? uncond, {_NOISE}"
_WHOLE = "Tensor? guidance_factor, Tensor? threshold"
sampler_step = Op(
    f"sampler_step({_STEP}, {_WHOLE}, float guidance_scale, {_CLIP}) -> Tensor",
    reference=_sampler_step_reference,
    fake=lambda x_t, *rest: torch.empty_like(x_t),
    samples=_sampler_step_samples,
    backward=_sampler_step_formula,
)
sampler_step_out = WritingOp(
    sampler_step,
    f"sampler_step_out({_STEP}, {_WHOLE}, float guidance_scale, {_CLIP}, Tensor(a!) out) -> ()",
)
# The estimate of x0 as well; the mean's coefficients are of it, bounded or not.
sampler_step_x0 = Op(
    f"sampler_step_x0({_STEP}, {_WHOLE}, float guidance_scale, {_CLIP}) -> (Tensor, Tensor)",
    reference=_sampler_step_x0_reference,
    fake=lambda x_t, *rest: (torch.empty_like(x_t), torch.empty_like(x_t)),
    samples=_sampler_step_samples,
    backward=_sampler_step_x0_formula,
)
sampler_step_backward = Op(
    f"sampler_step_backward(Tensor grad, {_STEP}, float guidance_scale, {_CLIP}, int output_mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_sampler_step_backward_reference,
    fake=lambda grad, x_t, pred, values, uncond, key, noise, *rest: masked_fake(
        (x_t, pred, values, uncond, noise), rest[-1], x_t
    ),
    samples=_sampler_step_backward_samples,
    backward="reference",
)
guidance_factor = Op(
    "guidance_factor(Tensor pred, Tensor uncond, float guidance_scale, float guidance_rescale)"
    " -> Tensor",
    reference=_guidance_factor_reference,
    fake=lambda pred, *rest: reduced_fake(pred, REDUCTIONS["sample"]),
    samples=_guidance_factor_samples,
    backward="reference",
)
dynamic_threshold = Op(
    "dynamic_threshold(Tensor x_t, Tensor pred, Tensor? uncond, Tensor coefficients, Tensor? t,"
    " Tensor? guidance_factor, float guidance_scale, float ratio, float max_value) -> Tensor",
    reference=_dynamic_threshold_reference,
    fake=lambda x_t, *rest: reduced_fake(x_t, REDUCTIONS["sample"]),
    samples=_dynamic_threshold_samples,
    backward="reference",
)

_VLB = (
    f"Tensor pred, Tensor? var_values, Tensor x0, {_NOISE}, {_CLIP}, float vlb_scale,"
    " float simple_scale, bool detach_mean, int reduction"
)
vlb = Op(
    f"vlb({_VLB}) -> Tensor",
    reference=_vlb_reference,
    fake=lambda pred, *rest: reduced_fake(pred, rest[-1]),
    samples=_vlb_samples,
    backward=_vlb_formula,
)
vlb_backward = Op(
    f"vlb_backward(Tensor grad, {_VLB}, int output_mask) -> (Tensor, Tensor)",
    reference=_vlb_backward_reference,
    fake=lambda grad, pred, values, *rest: masked_fake((pred, values), rest[-1], pred),
    samples=_vlb_backward_samples,
    backward="reference",
)
