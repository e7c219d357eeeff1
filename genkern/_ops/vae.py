r"""The VAE family as operators: reference, fake, backward and samples.

Notation, a coordinate at a time: l is logvar clamped to [logvar_min, logvar_max], sigma = exp(l/2),
the prior is N(m2, exp(lv2)), d = l - lv2, s = (mu - m2) exp(-lv2/2), g(x) = expm1(x) - x.

    z   = mu + sigma eps                                      Kingma and Welling 2014, section 2.4
    KL  = 1/2 (s^2 + g(d)),  at least free_bits                       appendix B; (42.2)
    nll = max(a, 0) - a x + log(1 + exp(-|a|))                        Bernoulli with logit a
    nll = 1/2 ((x - x_hat)^2 / sigma^2 + log sigma^2 + log 2 pi)      Gaussian

    dKL/dmu = -dKL/dm2 = s exp(-lv2/2),  dKL/dl = 1/2 expm1(d),  dKL/dlv2 = -1/2 (s^2 + expm1(d))
    dz/dmu = 1,  dz/dl = 1/2 sigma eps,  dz/deps = sigma
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from genkern._ops import random
from genkern._ops.elements import (
    NONE,
    REDUCTIONS,
    arithmetic,
    asked,
    expm1_minus,
    mask_of,
    masked,
    masked_fake,
    reduce,
    reduced_fake,
    sample_layouts,
    sigmoid,
    spread,
    upstream,
    wide,
    with_layout,
)
from genkern._ops.op import Args, Op, Sample
from genkern._ops.random import sample_key

_LOG_2_PI = math.log(2.0 * math.pi)
_NO_CLAMP = (-math.inf, math.inf)
_STANDARD = (0.0, 0.0)


def _eps(key: Tensor | None, noise: Tensor | None, mu: Tensor, num_samples: int | None) -> Tensor:
    """The noise in float32 (float64), in z's shape, or with K in front."""
    shape = list(mu.shape) if num_samples is None else [num_samples, *mu.shape]
    if noise is not None:
        return wide(noise)
    if key is None:
        raise ValueError("rsample: expected key or noise, got neither")
    dtype = arithmetic(mu.dtype)
    if num_samples is None or key.dim() == 1:
        return random.normal(key, shape, dtype)
    # A sample's stream covers (K, rest).
    eps: Tensor = random.normal(key, [mu.shape[0], num_samples, *mu.shape[1:]], dtype)
    return eps.transpose(0, 1)


def _rsample_reference(
    mu: Tensor,
    logvar: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    num_samples: int | None,
    logvar_min: float,
    logvar_max: float,
) -> Tensor:
    sigma = torch.exp(0.5 * wide(logvar).clamp(logvar_min, logvar_max))
    z = wide(mu) + sigma * _eps(key, noise, mu, num_samples)
    return with_layout(z.to(mu.dtype), _z_fake(mu, num_samples))


def _z_fake(mu: Tensor, num_samples: int | None) -> Tensor:
    return torch.empty_like(mu) if num_samples is None else mu.new_empty((num_samples, *mu.shape))


def _kl_parts(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    prior_mu_value: float,
    prior_logvar_value: float,
    logvar_min: float,
    logvar_max: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """s, exp(-lv2/4) and d."""
    l1 = wide(logvar).clamp(logvar_min, logvar_max)
    m2 = prior_mu_value if prior_mu is None else wide(prior_mu)
    lv2 = torch.full_like(l1, prior_logvar_value) if prior_logvar is None else wide(prior_logvar)
    # Kept finite: 0 times infinity would be a NaN.
    q = torch.exp((-0.25 * lv2).clamp(max=709.0 if l1.dtype == torch.float64 else 88.0))
    return ((wide(mu) - m2) * q) * q, q, l1 - lv2


def _kl_reference(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    prior_mu_value: float,
    prior_logvar_value: float,
    free_bits: float,
    logvar_min: float,
    logvar_max: float,
    reduction: int,
) -> Tensor:
    s, _, d = _kl_parts(
        mu, logvar, prior_mu, prior_logvar, prior_mu_value, prior_logvar_value,
        logvar_min, logvar_max,
    )  # fmt: skip
    kl = 0.5 * (s * s + expm1_minus(d))
    kl = torch.where(kl < free_bits, free_bits, kl)
    kl = reduce(kl, reduction, mu.dtype)
    return with_layout(kl, torch.empty_like(mu)) if reduction == NONE else kl


def _rsample_kl_reference(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    prior_mu_value: float,
    prior_logvar_value: float,
    free_bits: float,
    logvar_min: float,
    logvar_max: float,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    return (
        _rsample_reference(mu, logvar, key, noise, None, logvar_min, logvar_max),
        _kl_reference(
            mu, logvar, prior_mu, prior_logvar, prior_mu_value, prior_logvar_value, free_bits,
            logvar_min, logvar_max, reduction,
        ),
    )  # fmt: skip


def _rsample_kl_backward_reference(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    num_samples: int | None,
    prior_mu_value: float,
    prior_logvar_value: float,
    free_bits: float,
    logvar_min: float,
    logvar_max: float,
    reduction: int,
    output_mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    lv = wide(logvar)
    l1 = lv.clamp(logvar_min, logvar_max)
    active = ~((lv < logvar_min) | (lv > logvar_max))
    zero = torch.zeros_like(lv)
    grads = [zero] * 5
    if grad_z is not None:
        gz = wide(grad_z)
        sigma = torch.exp(0.5 * l1)
        if output_mask & 0b10:
            along = gz * _eps(key, noise, mu, num_samples)
            along = along if num_samples is None else along.sum(0)
            grads[1] = 0.5 * sigma * along
        if output_mask & 0b10000:
            grads[4] = gz * sigma
        grads[0] = gz if num_samples is None else gz.sum(0)
    if grad_kl is not None:
        s, q, d = _kl_parts(
            mu, logvar, prior_mu, prior_logvar, prior_mu_value, prior_logvar_value,
            logvar_min, logvar_max,
        )  # fmt: skip
        gk = spread(wide(grad_kl), mu, reduction)
        g = expm1_minus(d)
        gk = torch.where(0.5 * (s * s + g) < free_bits, 0.0, gk)
        along_mu, along_logvar = gk * ((s * q) * q), gk * (0.5 * torch.expm1(d))
        grads[0] = grads[0] + along_mu
        grads[1] = grads[1] + along_logvar
        grads[2] = -along_mu
        grads[3] = -(gk * (0.5 * s * s) + along_logvar)
    grads[1] = torch.where(active, grads[1], 0.0)
    fakes = _rsample_kl_backward_fake(
        grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, key, noise, num_samples,
        prior_mu_value, prior_logvar_value, free_bits, logvar_min, logvar_max, reduction,
        output_mask,
    )  # fmt: skip
    return masked(grads, fakes, output_mask)


def _rsample_kl_backward_fake(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    key: Tensor | None,
    noise: Tensor | None,
    num_samples: int | None,
    prior_mu_value: float,
    prior_logvar_value: float,
    free_bits: float,
    logvar_min: float,
    logvar_max: float,
    reduction: int,
    output_mask: int,
) -> tuple[Tensor, ...]:
    return masked_fake((mu, logvar, prior_mu, prior_logvar, noise), output_mask, mu)


def _bernoulli_nll_reference(logits: Tensor, x: Tensor, reduction: int) -> Tensor:
    a, wide_x = wide(logits), wide(x)
    nll = a.clamp(min=0.0) - a * wide_x + torch.log1p(torch.exp(-a.abs()))
    nll = reduce(nll, reduction, logits.dtype)
    return with_layout(nll, torch.empty_like(logits)) if reduction == NONE else nll


def _bernoulli_nll_backward_reference(
    grad: Tensor, logits: Tensor, x: Tensor, reduction: int, output_mask: int
) -> tuple[Tensor, Tensor]:
    a = wide(logits)
    g = spread(wide(grad), logits, reduction)
    fakes = _pair_fake(grad, logits, x, reduction, output_mask)
    return masked((g * (sigmoid(a) - wide(x)), -g * a), fakes, output_mask)


def _pair_fake(
    grad: Tensor, first: Tensor, second: Tensor, reduction: int, output_mask: int
) -> tuple[Tensor, ...]:
    return masked_fake((first, second), output_mask, first)


def _gaussian_parts(
    x_hat: Tensor, x: Tensor, logvar: Tensor | None, sigma: float, lo: float, hi: float
) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """(x - x_hat) / sigma, the square root of 1 / sigma, log sigma^2."""
    difference = wide(x) - wide(x_hat)
    if logvar is None:
        return difference / sigma, sigma**-0.5, 2.0 * math.log(sigma)
    clamped = wide(logvar).clamp(lo, hi)
    limit = 709.0 if clamped.dtype == torch.float64 else 88.0
    q = torch.exp((-0.25 * clamped).clamp(max=limit))
    return (difference * q) * q, q, clamped


def _gaussian_nll_reference(
    x_hat: Tensor,
    x: Tensor,
    logvar: Tensor | None,
    sigma: float,
    logvar_min: float,
    logvar_max: float,
    reduction: int,
) -> Tensor:
    r, _, log_variance = _gaussian_parts(x_hat, x, logvar, sigma, logvar_min, logvar_max)
    nll = 0.5 * r * r + 0.5 * (log_variance + _LOG_2_PI)
    nll = reduce(nll, reduction, x_hat.dtype)
    return with_layout(nll, torch.empty_like(x_hat)) if reduction == NONE else nll


def _gaussian_nll_backward_reference(
    grad: Tensor,
    x_hat: Tensor,
    x: Tensor,
    logvar: Tensor | None,
    sigma: float,
    logvar_min: float,
    logvar_max: float,
    reduction: int,
    output_mask: int,
) -> tuple[Tensor, Tensor, Tensor]:
    r, q, _ = _gaussian_parts(x_hat, x, logvar, sigma, logvar_min, logvar_max)
    g = spread(wide(grad), x_hat, reduction)
    along_x = g * ((r * q) * q)
    along_logvar = g * (0.5 - 0.5 * r * r)
    if logvar is not None:
        lv = wide(logvar)
        along_logvar = torch.where((lv < logvar_min) | (lv > logvar_max), 0.0, along_logvar)
    fakes = _gaussian_nll_backward_fake(
        grad, x_hat, x, logvar, sigma, logvar_min, logvar_max, reduction, output_mask
    )
    return masked((-along_x, along_x, along_logvar), fakes, output_mask)


def _gaussian_nll_backward_fake(
    grad: Tensor,
    x_hat: Tensor,
    x: Tensor,
    logvar: Tensor | None,
    sigma: float,
    logvar_min: float,
    logvar_max: float,
    reduction: int,
    output_mask: int,
) -> tuple[Tensor, ...]:
    return masked_fake((x_hat, x, logvar), output_mask, x_hat)


# ---- backward formulas: which operator, with which arguments


def _rsample_formula(
    args: Args, needs: Sequence[bool], grad_z: Tensor
) -> tuple[Tensor | None, ...]:
    _, logvar, key, noise, num_samples, lo, hi = args
    # Without num_samples the gradient of mu is that of z.
    from_kernel = (needs[0] and num_samples is not None, needs[1], False, False, needs[3])
    grads: tuple[Tensor | None, ...] = (None,) * 5
    if any(from_kernel):
        # Only the layout of mu matters, and logvar has it: mu need not be kept.
        grads = rsample_kl_backward(
            grad_z, None, logvar, logvar, None, None, key, noise, num_samples, 0.0, 0.0, 0.0,
            lo, hi, NONE, mask_of(from_kernel),
        )  # fmt: skip
    grad_mu = (grads[0] if num_samples is not None else grad_z) if needs[0] else None
    return (
        grad_mu,
        grads[1] if needs[1] else None,
        None,
        grads[4] if needs[3] else None,
        None, None, None,
    )  # fmt: skip


def _kl_formula(args: Args, needs: Sequence[bool], grad_kl: Tensor) -> tuple[Tensor | None, ...]:
    mu, logvar, m2, lv2, m2_value, lv2_value, free_bits, lo, hi, reduction = args
    wanted = (*needs[:4], False)
    grads = rsample_kl_backward(
        None, grad_kl, mu, logvar, m2, lv2, None, None, None, m2_value, lv2_value, free_bits,
        lo, hi, reduction, mask_of(wanted),
    )  # fmt: skip
    return (*asked(grads, wanted)[:4], *[None] * 6)


def _rsample_kl_formula(
    args: Args, needs: Sequence[bool], grad_z: Tensor | None, grad_kl: Tensor | None
) -> tuple[Tensor | None, ...]:
    mu, logvar, m2, lv2, key, noise, m2_value, lv2_value, free_bits, lo, hi, reduction = args
    wanted = (*needs[:4], needs[5] and grad_z is not None)
    grads = rsample_kl_backward(
        grad_z, grad_kl, mu, logvar, m2, lv2, key, noise, None, m2_value, lv2_value, free_bits,
        lo, hi, reduction, mask_of(wanted),
    )  # fmt: skip
    found = asked(grads, wanted)
    return (*found[:4], None, found[4], *[None] * 6)


def _bernoulli_nll_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    logits, x, reduction = args
    grads = bernoulli_nll_backward(grad, logits, x, reduction, mask_of(needs[:2]))
    return (*asked(grads, needs[:2]), None)


def _gaussian_nll_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    grads = gaussian_nll_backward(grad, *args, mask_of(needs[:3]))
    return (*asked(grads, needs[:3]), *[None] * 4)


# ---- samples


def _rsample_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    key = sample_key(device)
    for name, (mu, logvar, noise) in sample_layouts(device, dtype, 3):
        yield Sample(name, (mu, logvar, key, None, None, *_NO_CLAMP))
        yield Sample(f"{name}-noise", (mu, logvar, None, noise, None, -0.5, 0.5))
        yield Sample(f"{name}-k3", (mu, logvar, key, None, 3, *_NO_CLAMP))
        if mu.dim():
            keys = sample_key(device, mu.shape[0])
            yield Sample(f"{name}-keys", (mu, logvar, keys, None, None, *_NO_CLAMP))
            yield Sample(f"{name}-keys-k2", (mu, logvar, keys, None, 2, -0.5, 0.5))


def _priors(
    name: str, m2: Tensor, lv2: Tensor
) -> tuple[Tensor | None, Tensor | None, float, float]:
    """Another kind of prior for each layout, each kind with several layouts."""
    kinds: list[tuple[Tensor | None, Tensor | None, float, float]] = [
        (None, None, *_STANDARD),
        (m2, lv2, *_STANDARD),
        (None, None, 0.25, -0.5),
        (m2[:1].expand_as(m2) if m2.dim() and m2.shape[0] else m2, None, 0.0, 0.75),
    ]
    return kinds[sum(map(ord, name)) % len(kinds)]


def _kl_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (mu, logvar, m2, lv2) in sample_layouts(device, dtype, 4):
        for word, reduction in REDUCTIONS.items():
            prior = _priors(name + word, m2, lv2)
            free_bits = 0.3 if word in ("none", "mean") else 0.0
            clamp = (-0.5, 0.5) if word == "sum" else _NO_CLAMP
            yield Sample(f"{name}-{word}", (mu, logvar, *prior, free_bits, *clamp, reduction))


def _rsample_kl_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (mu, logvar, m2, lv2, noise) in sample_layouts(device, dtype, 5):
        for word, reduction in REDUCTIONS.items():
            m2_, lv2_, m2_value, lv2_value = _priors(word + name, m2, lv2)
            per_sample = mu.dim() > 0 and word in ("sample", "mean")
            key = None if word == "sum" else sample_key(device, mu.shape[0] if per_sample else None)
            free_bits, clamp = (0.3, (-0.5, 0.5)) if word == "mean" else (0.0, _NO_CLAMP)
            yield Sample(
                f"{name}-{word}",
                (
                    mu, logvar, m2_, lv2_, key, noise if key is None else None,
                    m2_value, lv2_value, free_bits, *clamp, reduction,
                ),
            )  # fmt: skip


def _rsample_kl_backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for case in _rsample_kl_samples(device, dtype):
        mu, logvar, m2, lv2, key, noise, *rest = case.args
        reduction = rest[-1]
        grad_z = upstream(_z_fake(mu, None), case.id)
        grad_kl = upstream(reduced_fake(mu, reduction), case.id)
        wanted = (True, True, m2 is not None, lv2 is not None, noise is not None)
        yield Sample(
            case.id,
            (grad_z, grad_kl, mu, logvar, m2, lv2, key, noise, None, *rest, mask_of(wanted)),
        )
    for case in _kl_samples(device, dtype):
        mu, logvar, m2, lv2, *rest = case.args
        grad_kl = upstream(reduced_fake(mu, rest[-1]), case.id)
        mask = mask_of((True, True, m2 is not None, lv2 is not None))
        yield Sample(
            f"kl-{case.id}",
            (None, grad_kl, mu, logvar, m2, lv2, None, None, None, *rest, mask),
        )
    for case in _rsample_samples(device, dtype):
        mu, logvar, key, noise, num_samples, lo, hi = case.args
        grad_z = upstream(_z_fake(mu, num_samples), case.id)
        mask = mask_of((num_samples is not None, True, False, False, noise is not None))
        yield Sample(
            f"rsample-{case.id}",
            (
                grad_z, None, logvar, logvar, None, None, key, noise, num_samples,
                0.0, 0.0, 0.0, lo, hi, NONE, mask,
            ),
        )  # fmt: skip


def _bernoulli_nll_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (logits, x) in sample_layouts(device, dtype, 2):
        for word, reduction in REDUCTIONS.items():
            yield Sample(f"{name}-{word}", (4.0 * logits, x.sigmoid(), reduction))


def _bernoulli_nll_backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for case in _bernoulli_nll_samples(device, dtype):
        logits, x, reduction = case.args
        grad = upstream(reduced_fake(logits, reduction), case.id)
        yield Sample(case.id, (grad, logits, x, reduction, 0b01 if "mean" in case.id else 0b11))


def _gaussian_nll_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (x_hat, x, logvar) in sample_layouts(device, dtype, 3):
        for word, reduction in REDUCTIONS.items():
            yield Sample(f"{name}-{word}", (x_hat, x, None, 0.5, *_NO_CLAMP, reduction))
            yield Sample(f"{name}-{word}-logvar", (x_hat, x, logvar, 1.0, -0.5, 0.5, reduction))


def _gaussian_nll_backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for case in _gaussian_nll_samples(device, dtype):
        x_hat, logvar, reduction = case.args[0], case.args[2], case.args[-1]
        grad = upstream(reduced_fake(x_hat, reduction), case.id)
        yield Sample(case.id, (grad, *case.args, 0b011 if logvar is None else 0b111))


def _rsample_fake(
    mu: Tensor,
    logvar: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    num_samples: int | None,
    logvar_min: float,
    logvar_max: float,
) -> Tensor:
    return _z_fake(mu, num_samples)


def _kl_fake(mu: Tensor, *rest: Any) -> Tensor:
    return reduced_fake(mu, rest[-1])


def _rsample_kl_fake(mu: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), _kl_fake(mu, *rest)


_PRIOR = "Tensor? prior_mu, Tensor? prior_logvar"
_PRIOR_VALUES = "float prior_mu_value, float prior_logvar_value, float free_bits"
_CLAMP = "float logvar_min, float logvar_max"

rsample = Op(
    f"rsample(Tensor mu, Tensor logvar, Tensor? key, Tensor? noise, SymInt? num_samples, {_CLAMP})"
    " -> Tensor",
    reference=_rsample_reference,
    fake=_rsample_fake,
    samples=_rsample_samples,
    backward=_rsample_formula,
    saves=("logvar", "key", "noise"),
)
kl = Op(
    f"kl(Tensor mu, Tensor logvar, {_PRIOR}, {_PRIOR_VALUES}, {_CLAMP}, int reduction) -> Tensor",
    reference=_kl_reference,
    fake=_kl_fake,
    samples=_kl_samples,
    backward=_kl_formula,
)
rsample_kl = Op(
    f"rsample_kl(Tensor mu, Tensor logvar, {_PRIOR}, Tensor? key, Tensor? noise, {_PRIOR_VALUES},"
    f" {_CLAMP}, int reduction) -> (Tensor, Tensor)",
    reference=_rsample_kl_reference,
    fake=_rsample_kl_fake,
    samples=_rsample_kl_samples,
    backward=_rsample_kl_formula,
)
rsample_kl_backward = Op(
    "rsample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar,"
    f" {_PRIOR}, Tensor? key, Tensor? noise, SymInt? num_samples, {_PRIOR_VALUES}, {_CLAMP},"
    " int reduction, int output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_rsample_kl_backward_reference,
    fake=_rsample_kl_backward_fake,
    samples=_rsample_kl_backward_samples,
    backward="reference",
)
bernoulli_nll = Op(
    "bernoulli_nll(Tensor logits, Tensor x, int reduction) -> Tensor",
    reference=_bernoulli_nll_reference,
    fake=lambda logits, x, reduction: reduced_fake(logits, reduction),
    samples=_bernoulli_nll_samples,
    backward=_bernoulli_nll_formula,
)
bernoulli_nll_backward = Op(
    "bernoulli_nll_backward(Tensor grad, Tensor logits, Tensor x, int reduction, int output_mask)"
    " -> (Tensor, Tensor)",
    reference=_bernoulli_nll_backward_reference,
    fake=_pair_fake,
    samples=_bernoulli_nll_backward_samples,
    backward="reference",
)
gaussian_nll = Op(
    f"gaussian_nll(Tensor x_hat, Tensor x, Tensor? logvar, float sigma, {_CLAMP}, int reduction)"
    " -> Tensor",
    reference=_gaussian_nll_reference,
    fake=lambda x_hat, *rest: reduced_fake(x_hat, rest[-1]),
    samples=_gaussian_nll_samples,
    backward=_gaussian_nll_formula,
)
gaussian_nll_backward = Op(
    "gaussian_nll_backward(Tensor grad, Tensor x_hat, Tensor x, Tensor? logvar, float sigma,"
    f" {_CLAMP}, int reduction, int output_mask) -> (Tensor, Tensor, Tensor)",
    reference=_gaussian_nll_backward_reference,
    fake=_gaussian_nll_backward_fake,
    samples=_gaussian_nll_backward_samples,
    backward="reference",
)
