r"""The GAN family as operators: reference, fake, backward and samples.

Losses. x is a logit with the sign for which large is good (u = x of real data, u = -x of generated
ones), s the label smoothing:

              loss                                              derivative
    logistic  (1 - s) softplus(-u) + s softplus(u)              s - sigmoid(-u)
    hinge     max(1 - u, 0)                                     -1 where u < 1, else 0
    linear    -u                                                -1
    square    1/2 (u - 1 + s)^2                                 u - 1 + s

The discriminator's loss is loss(r) + loss(-f): the logistic one (Goodfellow et al. 2014, (1)), the
hinge, the linear one (Wasserstein; (42.5)), and the square, with s = 1 for the generated data. The
generator's is one of f alone. Relativistic losses are logistic ones of r - f.

Penalties. n is the Euclidean norm of a sample's gradient g, over all but dim 0:

    p = weight (n - center)^2,    dp/dg = k g,    k = 2 weight (1 - center / n)
    along v:  d(k g) = k v + 2 weight center (g . v) / n^3 g

At g = 0 every derivative is 0, but for center = 0: there k = 2 weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from genkern._ops import random
from genkern._ops.elements import (
    BATCHMEAN,
    MEAN,
    NONE,
    REDUCTIONS,
    SAMPLE,
    SUM,
    arithmetic,
    asked,
    mask_of,
    masked,
    masked_fake,
    reduce,
    reduced_fake,
    row_sums,
    sample_layouts,
    sigmoid,
    spread,
    upstream,
    wide,
    with_layout,
)
from genkern._ops.op import Args, Op, Sample
from genkern._ops.random import sample_key

# The losses' numbers, as in csrc/include/genkern/gan.h.
_LOGISTIC, _HINGE, _LINEAR, _SQUARE = range(4)

# The operators' numbers of the kinds. "minimax" and "saturating" are one.
KINDS = {
    "minimax": 0,
    "saturating": 0,
    "non_saturating": 1,
    "hinge": 2,
    "wasserstein": 3,
    "least_squares": 4,
    "relativistic": 5,
}
RELATIVISTIC = KINDS["relativistic"]

_DISCRIMINATOR = (_LOGISTIC, _LOGISTIC, _HINGE, _LINEAR, _SQUARE, _LOGISTIC)
# (loss, sign of the logit, factor): minimising log(1 - D) is maximising softplus.
_GENERATOR = (
    (_LOGISTIC, -1.0, -1.0),
    (_LOGISTIC, 1.0, 1.0),
    (_LINEAR, 1.0, 1.0),
    (_LINEAR, 1.0, 1.0),
    (_SQUARE, 1.0, 1.0),
    (_LOGISTIC, 1.0, 1.0),
)


# ---- losses


def _loss(loss: int, u: Tensor, smoothing: float) -> Tensor:
    if loss == _HINGE:
        return (1.0 - u).clamp(min=0.0)
    if loss == _LINEAR:
        return -u
    if loss == _SQUARE:
        m = u - (1.0 - smoothing)
        return 0.5 * m * m
    value = (-u).clamp(min=0.0) + torch.log1p(torch.exp(-u.abs()))
    return value + smoothing * u if smoothing else value


def _derivative(loss: int, u: Tensor, smoothing: float) -> Tensor:
    if loss == _HINGE:
        m = (1.0 - u).clamp(min=0.0)
        return torch.where(m > 0.0, -1.0, 0.0 * m)  # 0 m keeps a NaN
    if loss == _LINEAR:
        return torch.full_like(u, -1.0)
    if loss == _SQUARE:
        return u - (1.0 - smoothing)
    return smoothing - sigmoid(-u)


def _fake_smoothing(loss: int) -> float:
    # Least squares has the target 0 for generated data: 1/2 (-f - 1 + 1)^2.
    return 1.0 if loss == _SQUARE else 0.0


def _discriminator_loss_reference(
    real_logits: Tensor, fake_logits: Tensor, kind: int, label_smoothing: float, reduction: int
) -> Tensor:
    loss, r, f = _DISCRIMINATOR[kind], wide(real_logits), wide(fake_logits)
    if kind == RELATIVISTIC:
        terms = [_loss(loss, r - f, 0.0)]
    else:
        terms = [_loss(loss, r, label_smoothing), _loss(loss, -f, _fake_smoothing(loss))]
        if r.shape == f.shape:
            terms = [terms[0] + terms[1]]
    parts = [reduce(term, reduction, real_logits.dtype) for term in terms]
    value = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return with_layout(value, torch.empty_like(real_logits)) if reduction == NONE else value


def _discriminator_loss_backward_reference(
    grad: Tensor,
    real_logits: Tensor,
    fake_logits: Tensor,
    kind: int,
    label_smoothing: float,
    reduction: int,
    output_mask: int,
) -> tuple[Tensor, ...]:
    loss, r, f = _DISCRIMINATOR[kind], wide(real_logits), wide(fake_logits)
    by_real, by_fake = (spread(wide(grad), x, reduction) for x in (r, f))
    if kind == RELATIVISTIC:
        along = by_real * _derivative(loss, r - f, 0.0)
        grads = (along, -along)
    else:
        grads = (
            by_real * _derivative(loss, r, label_smoothing),
            -by_fake * _derivative(loss, -f, _fake_smoothing(loss)),
        )
    fakes = masked_fake((real_logits, fake_logits), output_mask, real_logits)
    return masked(grads, fakes, output_mask)


def _discriminator_loss_forming_reference(
    real_logits: Tensor, fake_logits: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    value = _discriminator_loss_reference(real_logits, fake_logits, *rest)
    args = (torch.ones_like(value), real_logits, fake_logits, *rest, 0b11)
    return value, *_discriminator_loss_backward_reference(*args)


def _generator_logit(fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
    f = wide(fake_logits)
    return f if real_logits is None else f - wide(real_logits)


def _generator_loss_reference(
    fake_logits: Tensor, real_logits: Tensor | None, kind: int, reduction: int
) -> Tensor:
    loss, sign, factor = _GENERATOR[kind]
    value = factor * _loss(loss, sign * _generator_logit(fake_logits, real_logits), 0.0)
    value = reduce(value, reduction, fake_logits.dtype)
    return with_layout(value, torch.empty_like(fake_logits)) if reduction == NONE else value


def _generator_loss_backward_reference(
    grad: Tensor,
    fake_logits: Tensor,
    real_logits: Tensor | None,
    kind: int,
    reduction: int,
    output_mask: int,
) -> tuple[Tensor, ...]:
    loss, sign, factor = _GENERATOR[kind]
    u = sign * _generator_logit(fake_logits, real_logits)
    along = spread(wide(grad), fake_logits, reduction) * (sign * factor * _derivative(loss, u, 0.0))
    fakes = masked_fake((fake_logits, real_logits), output_mask, fake_logits)
    return masked((along, -along), fakes, output_mask)


def _generator_loss_forming_reference(
    fake_logits: Tensor, real_logits: Tensor | None, kind: int, reduction: int
) -> tuple[Tensor, ...]:
    args = (fake_logits, real_logits, kind, reduction)
    value = _generator_loss_reference(*args)
    mask = 0b01 if real_logits is None else 0b11
    return value, *_generator_loss_backward_reference(torch.ones_like(value), *args, mask)


def _discriminator_loss_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    found = discriminator_loss_backward(grad, *args, mask_of(needs[:2]))
    return (*asked(found, needs[:2]), None, None, None)


def _generator_loss_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    found = generator_loss_backward(grad, *args, mask_of(needs[:2]))
    return (*asked(found, needs[:2]), None, None)


# ---- penalties


def _rows(x: Tensor) -> Tensor:
    # In float64, where no square of a float32 overflows or vanishes.
    return x.double().reshape(x.shape[0], math.prod(x.shape[1:]))


def _norms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' norms, 1 in place of 0, and where they are not 0."""
    squares = row_sums(rows * rows)
    positive = squares > 0.0
    # A NaN is kept: it counts as a norm.
    positive = positive | squares.isnan()
    return torch.sqrt(torch.where(positive, squares, 1.0)), positive


def _slope(rows: Tensor, center: float, weight: float) -> Tensor:
    """k, one a row."""
    if center == 0.0:
        return rows.new_full((rows.shape[0],), 2.0 * weight)
    norms, positive = _norms(rows)
    return torch.where(positive, 2.0 * weight * (1.0 - center / norms), 0.0)


def _gradient_penalty_reference(
    grads: Tensor, center: float, weight: float, reduction: int
) -> Tensor:
    rows = _rows(grads)
    if center == 0.0:
        penalty = weight * row_sums(rows * rows)
    else:
        norms, positive = _norms(rows)
        difference = norms - center
        penalty = weight * torch.where(positive, difference * difference, center * center)
    value = reduce(penalty, reduction, grads.dtype)
    return value if reduction == NONE else value.to(arithmetic(grads.dtype))


def _gradient_penalty_backward_reference(
    grad: Tensor, grads: Tensor, center: float, weight: float, reduction: int
) -> Tensor:
    rows = _rows(grads)
    k = _slope(rows, center, weight)
    k = k * spread(grad.double(), k, reduction)
    out = (k.unsqueeze(1) * rows).reshape(grads.shape).to(grads.dtype)
    return with_layout(out, torch.empty_like(grads))


def _gradient_penalty_backward_backward_reference(
    grad_out: Tensor,
    grad: Tensor,
    grads: Tensor,
    center: float,
    weight: float,
    reduction: int,
    output_mask: int,
) -> tuple[Tensor, ...]:
    rows, v = _rows(grads), _rows(grad_out)
    k, along = _slope(rows, center, weight), row_sums(rows * v)
    out = k.unsqueeze(1) * v
    if center != 0.0:
        norms, positive = _norms(rows)
        turn = 2.0 * weight * center / norms * (along / norms / norms)
        # An infinite norm does not turn: the limit of large ones.
        turns = (positive & (norms != math.inf)).unsqueeze(1)
        out = out + torch.where(turns, turn.unsqueeze(1), 0.0) * torch.where(turns, rows, 0.0)
    out = spread(grad.double(), k, reduction).reshape(-1, 1) * out
    values = (reduce(k * along, reduction, grad.dtype), out.reshape(grads.shape))
    return masked(values, masked_fake((grad, grads), output_mask, grads), output_mask)


def _gradient_penalty_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    return gradient_penalty_backward(grad, *args), None, None, None


def _gradient_penalty_backward_formula(
    args: Args, needs: Sequence[bool], grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    found = gradient_penalty_backward_backward(grad_out, *args, mask_of(needs[:2]))
    return (*asked(found, needs[:2]), None, None, None)


# ---- interpolation


def _weights(key: Tensor | None, noise: Tensor | None, like: Tensor) -> Tensor:
    """The samples' weights in float32 (float64), in a shape that broadcasts over `like`."""
    if noise is not None:
        weights = wide(noise)
    elif key is None:
        raise ValueError("interpolate: expected key or noise, got neither")
    else:
        size = [like.shape[0]] if key.dim() == 1 else [like.shape[0], 1]
        weights = random.uniform(key, size, arithmetic(like.dtype))
    return weights.reshape(-1, *[1] * (like.dim() - 1))


def _interpolate_reference(
    real: Tensor, fake: Tensor, key: Tensor | None, noise: Tensor | None
) -> Tensor:
    w = _weights(key, noise, real)
    mixed = w * wide(real) + (1.0 - w) * wide(fake)
    return with_layout(mixed.to(real.dtype), torch.empty_like(real))


def _interpolate_backward_reference(
    grad: Tensor,
    real: Tensor,
    fake: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    output_mask: int,
) -> tuple[Tensor, ...]:
    w, g = _weights(key, noise, real), wide(grad)
    along = (g * (wide(real) - wide(fake))).reshape(real.shape[0], math.prod(real.shape[1:]))
    values = (w * g, (1.0 - w) * g, row_sums(along))
    return masked(values, masked_fake((real, fake, noise), output_mask, real), output_mask)


def _interpolate_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    wanted = (needs[0], needs[1], needs[3])
    found = asked(interpolate_backward(grad, *args, mask_of(wanted)), wanted)
    return found[0], found[1], None, found[2]


# ---- the optimal discriminator


def _optimal_discriminator_reference(log_p: Tensor, log_q: Tensor) -> Tensor:
    d = sigmoid(wide(log_p) - wide(log_q))
    return with_layout(d.to(log_p.dtype), torch.empty_like(log_p))


def _optimal_discriminator_backward_reference(
    grad: Tensor, log_p: Tensor, log_q: Tensor, output_mask: int
) -> tuple[Tensor, ...]:
    difference = wide(log_p) - wide(log_q)
    along = wide(grad) * sigmoid(difference) * sigmoid(-difference)
    return masked((along, -along), masked_fake((log_p, log_q), output_mask, log_p), output_mask)


def _optimal_discriminator_formula(
    args: Args, needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    return asked(optimal_discriminator_backward(grad, *args, mask_of(needs)), needs)


# ---- samples

_NUMBERS = tuple(dict.fromkeys(KINDS.values()))


def _kinds(name: str, at: int) -> Sequence[int]:
    """Every kind for one layout; for the others two, which differ from layout to layout."""
    return _NUMBERS if name == "small" else [_NUMBERS[(at + i) % len(_NUMBERS)] for i in (0, 2)]


def _discriminator_loss_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for at, (name, (real, fake)) in enumerate(sample_layouts(device, dtype, 2)):
        for word, reduction in REDUCTIONS.items():
            for kind in _kinds(name, at + reduction):
                smoothing = 0.1 if kind in (0, 4) else 0.0
                logits = 4.0 * real, 4.0 * fake
                yield Sample(f"{name}-{word}-{kind}", (*logits, kind, smoothing, reduction))
    # Each with its own mean.
    (_, (real, _)), (_, (fake, _)) = list(sample_layouts(device, dtype, 2))[:2]
    for reduction in (MEAN, SUM, BATCHMEAN):
        for kind in _NUMBERS[:-1]:
            yield Sample(f"shapes-{reduction}-{kind}", (real, fake, kind, 0.0, reduction))


def _discriminator_loss_backward_samples(
    device: torch.device, dtype: torch.dtype
) -> Iterator[Sample]:
    for case in _discriminator_loss_samples(device, dtype):
        real, *_, reduction = case.args
        grad = upstream(reduced_fake(real, reduction), case.id)
        mask = 0b10 if reduction == SUM else 0b01 if reduction == BATCHMEAN else 0b11
        yield Sample(case.id, (grad, *case.args, mask))


def _generator_loss_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for at, (name, (fake, real)) in enumerate(sample_layouts(device, dtype, 2)):
        for word, reduction in REDUCTIONS.items():
            for kind in _kinds(name, at + reduction):
                other = 4.0 * real if kind == RELATIVISTIC else None
                yield Sample(f"{name}-{word}-{kind}", (4.0 * fake, other, kind, reduction))


def _generator_loss_backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for case in _generator_loss_samples(device, dtype):
        fake, real, _, reduction = case.args
        grad = upstream(reduced_fake(fake, reduction), case.id)
        yield Sample(case.id, (grad, *case.args, 0b01 if real is None else 0b11))


def _batched(
    device: torch.device, dtype: torch.dtype, count: int
) -> Iterator[tuple[str, list[Tensor]]]:
    """The layouts with a batch dimension."""
    return (case for case in sample_layouts(device, dtype, count) if case[1][0].dim())


def _gradient_penalty_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (grads,) in _batched(device, dtype, 1):
        for word, reduction in REDUCTIONS.items():
            yield Sample(f"{name}-{word}", (grads, 1.0, 1.0, reduction))
        yield Sample(f"{name}-r1", (grads, 0.0, 0.5, MEAN))
    zeros = torch.zeros(3, 4, device=device, dtype=dtype)
    for center in (0.0, 1.0):
        yield Sample(f"zeros-{center:.0f}", (zeros, center, 1.0, SAMPLE))


def _penalised(grads: Tensor, reduction: int) -> Tensor:
    """A tensor like the penalty."""
    return reduced_fake(grads.new_empty(grads.shape[:1]), reduction)


def _gradient_penalty_backward_samples(
    device: torch.device, dtype: torch.dtype
) -> Iterator[Sample]:
    for case in _gradient_penalty_samples(device, dtype):
        grad = upstream(_penalised(case.args[0], case.args[-1]), case.id)
        yield Sample(case.id, (grad, *case.args))


def _gradient_penalty_backward_backward_samples(
    device: torch.device, dtype: torch.dtype
) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(2)
    for case in _gradient_penalty_backward_samples(device, dtype):
        grads, reduction = case.args[1], case.args[-1]
        v = torch.randn(grads.shape, generator=generator, dtype=torch.float64).to(device, dtype)
        # Of the same strides in most cases, contiguous in some.
        v = v if reduction == SUM else torch.empty_like(grads).copy_(v)
        yield Sample(case.id, (v, *case.args, 0b10 if reduction == BATCHMEAN else 0b11))


def _interpolate_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (real, fake) in _batched(device, dtype, 2):
        weights = torch.linspace(0.0, 1.0, real.shape[0], dtype=torch.float64).to(device, dtype)
        keys = sample_key(device, real.shape[0])
        yield Sample(name, (real, fake, sample_key(device), None))
        yield Sample(f"{name}-keys", (real, fake, keys, None))
        yield Sample(f"{name}-noise", (real, fake, None, weights))


def _interpolate_backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for case in _interpolate_samples(device, dtype):
        grad = upstream(torch.empty_like(case.args[0]), case.id)
        yield Sample(case.id, (grad, *case.args, 0b111 if "noise" in case.id else 0b011))


def _optimal_discriminator_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, (log_p, log_q) in sample_layouts(device, dtype, 2):
        yield Sample(name, (3.0 * log_p, 3.0 * log_q))


def _optimal_discriminator_backward_samples(
    device: torch.device, dtype: torch.dtype
) -> Iterator[Sample]:
    for case in _optimal_discriminator_samples(device, dtype):
        grad = upstream(torch.empty_like(case.args[0]), case.id)
        yield Sample(case.id, (grad, *case.args, 0b01 if case.id == "chunk" else 0b11))


# ---- the operators

_DISCRIMINATOR_LOSS = (
    "Tensor real_logits, Tensor fake_logits, int kind, float label_smoothing, int reduction"
)
discriminator_loss_forming = Op(
    f"discriminator_loss_forming({_DISCRIMINATOR_LOSS}) -> (Tensor, Tensor, Tensor)",
    reference=_discriminator_loss_forming_reference,
    fake=lambda real, fake, *rest: (
        reduced_fake(real, rest[-1]),
        torch.empty_like(real),
        torch.empty_like(fake),
    ),
    samples=_discriminator_loss_samples,
)
discriminator_loss = Op(
    f"discriminator_loss({_DISCRIMINATOR_LOSS}) -> Tensor",
    reference=_discriminator_loss_reference,
    fake=lambda real_logits, *rest: reduced_fake(real_logits, rest[-1]),
    samples=_discriminator_loss_samples,
    backward=_discriminator_loss_formula,
    forming=discriminator_loss_forming,
)
discriminator_loss_backward = Op(
    f"discriminator_loss_backward(Tensor grad, {_DISCRIMINATOR_LOSS}, int output_mask)"
    " -> (Tensor, Tensor)",
    reference=_discriminator_loss_backward_reference,
    fake=lambda grad, real, fake, *rest: masked_fake((real, fake), rest[-1], real),
    samples=_discriminator_loss_backward_samples,
    backward="reference",
)

_GENERATOR_LOSS = "Tensor fake_logits, Tensor? real_logits, int kind, int reduction"
generator_loss_forming = Op(
    f"generator_loss_forming({_GENERATOR_LOSS}) -> (Tensor, Tensor, Tensor)",
    reference=_generator_loss_forming_reference,
    fake=lambda fake, real, *rest: (
        reduced_fake(fake, rest[-1]),
        *masked_fake((fake, real), 0b11, fake),
    ),
    samples=_generator_loss_samples,
)
generator_loss = Op(
    f"generator_loss({_GENERATOR_LOSS}) -> Tensor",
    reference=_generator_loss_reference,
    fake=lambda fake_logits, *rest: reduced_fake(fake_logits, rest[-1]),
    samples=_generator_loss_samples,
    backward=_generator_loss_formula,
    forming=generator_loss_forming,
)
generator_loss_backward = Op(
    f"generator_loss_backward(Tensor grad, {_GENERATOR_LOSS}, int output_mask) -> (Tensor, Tensor)",
    reference=_generator_loss_backward_reference,
    fake=lambda grad, fake, real, *rest: masked_fake((fake, real), rest[-1], fake),
    samples=_generator_loss_backward_samples,
    backward="reference",
)

_PENALTY = "Tensor grads, float center, float weight, int reduction"
gradient_penalty = Op(
    f"gradient_penalty({_PENALTY}) -> Tensor",
    reference=_gradient_penalty_reference,
    fake=lambda grads, *rest: _penalised(grads, rest[-1]),
    samples=_gradient_penalty_samples,
    backward=_gradient_penalty_formula,
)
gradient_penalty_backward = Op(
    f"gradient_penalty_backward(Tensor grad, {_PENALTY}) -> Tensor",
    reference=_gradient_penalty_backward_reference,
    fake=lambda grad, grads, *rest: torch.empty_like(grads),
    samples=_gradient_penalty_backward_samples,
    backward=_gradient_penalty_backward_formula,
)
gradient_penalty_backward_backward = Op(
    f"gradient_penalty_backward_backward(Tensor grad_out, Tensor grad, {_PENALTY},"
    " int output_mask) -> (Tensor, Tensor)",
    reference=_gradient_penalty_backward_backward_reference,
    fake=lambda grad_out, grad, grads, *rest: masked_fake((grad, grads), rest[-1], grads),
    samples=_gradient_penalty_backward_backward_samples,
    backward="reference",
)

_INTERPOLATE = "Tensor real, Tensor fake, Tensor? key, Tensor? noise"
interpolate = Op(
    f"interpolate({_INTERPOLATE}) -> Tensor",
    reference=_interpolate_reference,
    fake=lambda real, *rest: torch.empty_like(real),
    samples=_interpolate_samples,
    backward=_interpolate_formula,
)
interpolate_backward = Op(
    f"interpolate_backward(Tensor grad, {_INTERPOLATE}, int output_mask)"
    " -> (Tensor, Tensor, Tensor)",
    reference=_interpolate_backward_reference,
    fake=lambda grad, real, fake, key, noise, mask: masked_fake((real, fake, noise), mask, real),
    samples=_interpolate_backward_samples,
    backward="reference",
)

optimal_discriminator = Op(
    "optimal_discriminator(Tensor log_p, Tensor log_q) -> Tensor",
    reference=_optimal_discriminator_reference,
    fake=lambda log_p, log_q: torch.empty_like(log_p),
    samples=_optimal_discriminator_samples,
    backward=_optimal_discriminator_formula,
)
optimal_discriminator_backward = Op(
    "optimal_discriminator_backward(Tensor grad, Tensor log_p, Tensor log_q, int output_mask)"
    " -> (Tensor, Tensor)",
    reference=_optimal_discriminator_backward_reference,
    fake=lambda grad, log_p, log_q, mask: masked_fake((log_p, log_q), mask, log_p),
    samples=_optimal_discriminator_backward_samples,
    backward="reference",
)
