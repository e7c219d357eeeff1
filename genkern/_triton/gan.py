"""The GAN family in Triton: csrc/include/genkern/gan.h, and equations in docs/gan.md."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genkern._triton.launch import NONE, SAMPLE, TILE, Tiles, launch
from genkern._triton.math import at_least, clamp, exp, log1p_exp
from genkern._triton.ptx import mul
from genkern._triton.reduce import (
    divisor,
    finish,
    new_gradients,
    new_partial,
    over,
    row_sums,
    row_totals,
    store_partial,
    store_sums,
    sum_dtype,
    upstream,
    value_of,
)
from genkern._triton.tile import (
    arithmetic,
    is_half,
    load,
    load_sample,
    noise,
    store,
    this_tile,
)

# ---- functions of a logit

LOGISTIC = tl.constexpr(0)
HINGE = tl.constexpr(1)
LINEAR = tl.constexpr(2)
SQUARE = tl.constexpr(3)
PROBABILITY = tl.constexpr(4)


@triton.jit
def logistic_loss(u, s, HALF: tl.constexpr):
    """softplus(-u) + s u, and its derivative."""
    e = exp(-tl.abs(u), HALF)
    # Without smoothing an infinite u must not meet the 0.
    smoothed = tl.where(s > 0.0, s * u, 0.0)
    value = at_least(-u, 0.0) + log1p_exp(e) + smoothed
    return value, s - tl.where(u < 0.0, 1.0, e) / (e + 1.0)


@triton.jit
def hinge_loss(u):
    """max(1 - u, 0), and its derivative. NaN stays NaN."""
    margin = at_least(1.0 - u, 0.0)
    return margin, tl.where(margin > 0.0, -1.0, margin * 0.0)


@triton.jit
def square_loss(u, s):
    """1/2 (u - 1 + s)^2, and its derivative."""
    difference = u - (1.0 - s)
    # In this order the square does not overflow where its half does not.
    return (difference * 0.5) * difference, difference


@triton.jit
def probability(u, HALF: tl.constexpr):
    """1 / (1 + e^-u), and its derivative."""
    e = exp(-tl.abs(u), HALF)
    larger = 1.0 / (e + 1.0)
    smaller = e * larger
    return tl.where(u < 0.0, smaller, larger), larger * smaller


@triton.jit
def logit_term(
    logit, smoothing, FORM: tl.constexpr, SIGN: tl.constexpr, FACTOR: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """FACTOR form(SIGN logit), and its derivative by the logit."""
    u = logit * SIGN
    if FORM == LOGISTIC:
        value, derivative = logistic_loss(u, smoothing, HALF)
    elif FORM == HINGE:
        value, derivative = hinge_loss(u)
    elif FORM == SQUARE:
        value, derivative = square_loss(u, smoothing)
    elif FORM == PROBABILITY:
        value, derivative = probability(u, HALF)
    else:
        value = -u
        derivative = tl.zeros_like(u) - 1.0
    return value * FACTOR, derivative * (FACTOR * SIGN)


@triton.jit
def first_logit(
    x, y, row, start, mask, form,
    T: tl.constexpr, VECTOR: tl.constexpr, DIFFERENCE: tl.constexpr,
):  # fmt: skip
    """What the first term is of: x, or x - y."""
    logit = load(x, row, start, mask, form, T, VECTOR)
    if DIFFERENCE:
        logit -= load(y, row, start, mask, form, T, VECTOR)
    return logit


@triton.jit
def logits_kernel(
    x, y, value, partial, form, smoothing: tl.float64, y_smoothing: tl.float64,
    FORM: tl.constexpr, SIGN: tl.constexpr, FACTOR: tl.constexpr, DIFFERENCE: tl.constexpr,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BY_ROW: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    logit = first_logit(x, y, row, start, mask, form, T, VECTOR, DIFFERENCE)
    HALF: tl.constexpr = is_half(x.tensor)
    total = logit_term(logit, tl.full((1, 1), smoothing, T), FORM, SIGN, FACTOR, HALF)[0]
    if y is not None and not DIFFERENCE:
        other = load(y, row, start, mask, form, T, VECTOR)
        total += logit_term(other, tl.full((1, 1), y_smoothing, T), FORM, -1.0, 1.0, HALF)[0]
    if value is not None:
        store(value, total, row, start, mask, form, VECTOR)
    else:
        store_partial(partial, total, row, mask, form, BY_ROW)


@triton.jit
def logits_backward_kernel(
    grad, factor: tl.float64, x, y, grad_x, grad_y, form,
    smoothing: tl.float64, y_smoothing: tl.float64,
    FORM: tl.constexpr, SIGN: tl.constexpr, FACTOR: tl.constexpr, DIFFERENCE: tl.constexpr,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    g = load(grad, row, start, mask, form, T, VECTOR) * tl.full((1, 1), factor, T)
    HALF: tl.constexpr = is_half(x.tensor)
    if DIFFERENCE or grad_x is not None:
        logit = first_logit(x, y, row, start, mask, form, T, VECTOR, DIFFERENCE)
        along = g * logit_term(logit, tl.full((1, 1), smoothing, T), FORM, SIGN, FACTOR, HALF)[1]
        if grad_x is not None:
            store(grad_x, along, row, start, mask, form, VECTOR)
        if DIFFERENCE and grad_y is not None:
            store(grad_y, -along, row, start, mask, form, VECTOR)
    if grad_y is not None and not DIFFERENCE:
        other = load(y, row, start, mask, form, T, VECTOR)
        along_y = g * logit_term(other, tl.full((1, 1), y_smoothing, T), FORM, -1.0, 1.0, HALF)[1]
        store(grad_y, along_y, row, start, mask, form, VECTOR)


class Terms(NamedTuple):
    """FACTOR form(SIGN x), and where there is a y of the same form: form(-y), or x - y for x.

    The numbers of kinds are those of `genkern._ops.gan`.
    """

    form: int
    sign: float = 1.0
    factor: float = 1.0
    difference: bool = False
    smoothing: float = 0.0
    y_smoothing: float = 0.0


_RELATIVISTIC = 5
_OPTIMAL = Terms(PROBABILITY.value, difference=True)


def _discriminator(kind: int, label_smoothing: float) -> Terms:
    form = {2: HINGE, 3: LINEAR, 4: SQUARE}.get(kind, LOGISTIC).value
    if kind == _RELATIVISTIC:
        return Terms(form, difference=True)
    return Terms(form, smoothing=label_smoothing, y_smoothing=float(form == SQUARE.value))


def _generator(kind: int) -> Terms:
    if kind == 0:  # log(1 - D) = -softplus(f)
        return Terms(LOGISTIC.value, sign=-1.0, factor=-1.0)
    form = {2: LINEAR, 3: LINEAR, 4: SQUARE}.get(kind, LOGISTIC).value
    return Terms(form, difference=kind == _RELATIVISTIC)


def _logits(x: Tensor, y: Tensor | None, terms: Terms, reduction: int) -> Tensor:
    out = torch.empty_like(x) if reduction == NONE else None
    tiles = Tiles(x.shape, [x, y, out], by_sample=reduction == SAMPLE)
    partial = None if out is not None else new_partial(x, tiles, reduction)
    launch(
        logits_kernel, tiles.programs, x.device,
        *map(tiles.operand, (x, y, out)), partial, tiles.form, terms.smoothing, terms.y_smoothing,
        FORM=terms.form, SIGN=terms.sign, FACTOR=terms.factor, DIFFERENCE=terms.difference,
        T=arithmetic(x), **tiles.meta, BY_ROW=reduction == SAMPLE,
    )  # fmt: skip
    return value_of(out, partial, x, reduction)


def _logits_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, terms: Terms, reduction: int, output_mask: int
) -> tuple[Tensor, ...]:
    outputs = new_gradients((x, y), output_mask)
    spread = upstream(grad, x, reduction)
    tiles = Tiles(x.shape, [spread, x, y, *outputs])
    launch(
        logits_backward_kernel, tiles.programs, x.device,
        tiles.operand(spread), over(1.0, divisor(x.shape, reduction)),
        *map(tiles.operand, (x, y, *outputs)), tiles.form, terms.smoothing, terms.y_smoothing,
        FORM=terms.form, SIGN=terms.sign, FACTOR=terms.factor, DIFFERENCE=terms.difference,
        T=arithmetic(x), **tiles.meta,
    )  # fmt: skip
    return tuple(x.new_empty(0) if g is None else g for g in outputs)


def discriminator_loss(
    real_logits: Tensor, fake_logits: Tensor, kind: int, label_smoothing: float, reduction: int
) -> Tensor:
    terms = _discriminator(kind, label_smoothing)
    if real_logits.shape == fake_logits.shape:
        return _logits(real_logits, fake_logits, terms, reduction)
    # Each with its own mean.
    of_real = _logits(real_logits, None, terms, reduction)
    return of_real + _logits(fake_logits, None, _of_fake(terms), reduction)


def discriminator_loss_backward(
    grad: Tensor, real_logits: Tensor, fake_logits: Tensor, kind: int, label_smoothing: float,
    reduction: int, output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    terms = _discriminator(kind, label_smoothing)
    if real_logits.shape == fake_logits.shape:
        return _logits_backward(grad, real_logits, fake_logits, terms, reduction, output_mask)
    mask = output_mask
    by_real = _logits_backward(grad, real_logits, None, terms, reduction, mask & 1)[0]
    by_fake = _logits_backward(grad, fake_logits, None, _of_fake(terms), reduction, mask >> 1)[0]
    return by_real, by_fake


def _of_fake(terms: Terms) -> Terms:
    return terms._replace(sign=-1.0, smoothing=terms.y_smoothing)


def discriminator_loss_forming(
    real_logits: Tensor, fake_logits: Tensor, kind: int, label_smoothing: float, reduction: int
) -> tuple[Tensor, ...]:
    args = real_logits, fake_logits, kind, label_smoothing, reduction
    value = discriminator_loss(*args)
    one = value.new_ones(()).expand(value.shape)
    return value, *discriminator_loss_backward(one, *args, 0b11)


def generator_loss(
    fake_logits: Tensor, real_logits: Tensor | None, kind: int, reduction: int
) -> Tensor:
    return _logits(fake_logits, real_logits, _generator(kind), reduction)


def generator_loss_backward(
    grad: Tensor, fake_logits: Tensor, real_logits: Tensor | None, kind: int, reduction: int,
    output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    terms = _generator(kind)
    return _logits_backward(grad, fake_logits, real_logits, terms, reduction, output_mask)


def generator_loss_forming(
    fake_logits: Tensor, real_logits: Tensor | None, kind: int, reduction: int
) -> tuple[Tensor, ...]:
    args = fake_logits, real_logits, kind, reduction
    value = generator_loss(*args)
    one = value.new_ones(()).expand(value.shape)
    return value, *generator_loss_backward(one, *args, 0b11)


def optimal_discriminator(log_p: Tensor, log_q: Tensor) -> Tensor:
    return _logits(log_p, log_q, _OPTIMAL, NONE)


def optimal_discriminator_backward(
    grad: Tensor, log_p: Tensor, log_q: Tensor, output_mask: int
) -> tuple[Tensor, ...]:
    return _logits_backward(grad, log_p, log_q, _OPTIMAL, NONE, output_mask)


# ---- penalties


@triton.jit
def squares_kernel(
    grads, grad_out, squares, products, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Sums of g^2 and of g v, in float64: no square of a float32 overflows or vanishes there."""
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    g = load(grads, row, start, mask, form, T, VECTOR).to(tl.float64)
    store_sums(squares, row_sums(g * g, mask), row, form, True)
    if grad_out is not None:
        v = load(grad_out, row, start, mask, form, T, VECTOR).to(tl.float64)
        store_sums(products, row_sums(g * v, mask), row, form, True)


@triton.jit
def penalty(squares, center, weight, SMOOTH: tl.constexpr):
    """weight (n - center)^2 for n^2 = squares, slope and turn; SMOOTH: center = 0.

    The gradient is slope g, and along v it changes by slope v + turn (g . v) g.
    """
    if SMOOTH:
        return weight * squares, tl.zeros_like(squares) + 2.0 * weight, tl.zeros_like(squares)
    else:
        at_zero = squares == 0.0
        some = tl.where(at_zero, 1.0, squares)
        n = tl.sqrt(some)
        difference = tl.where(at_zero, 0.0, n) - center
        slope = 2.0 * weight * (1.0 - center / n)
        turn = 2.0 * weight * center / n / some
        return (
            weight * difference * difference,
            tl.where(at_zero, 0.0, slope),
            tl.where(at_zero, 0.0, turn),
        )


@triton.jit
def store_coefficients(to, sample, samples, k, l, exists):
    """Of samples: the result is scale^2 (k v + l g) or, without v, scale^2 k g.

    The scale is 1 but where k or l is beyond float32, as of a norm near 1e-39. They are below 2^277
    where a result is not infinite: for the least of floats, 2^-149, times l is below 2^128.
    """
    MOST: tl.constexpr = (
        3.4028234663852886e38 if to.dtype.element_ty == tl.float32 else 1.7976931348623157e308
    )
    scale = tl.full(k.shape, 1.0, tl.float64)
    if to.dtype.element_ty == tl.float32:
        size = tl.maximum(tl.abs(k), tl.abs(l))
        exponent = (size.to(tl.int64, bitcast=True) >> 52) - 1023
        half = tl.where(size > MOST, tl.minimum((exponent - 125) >> 1, 75), 0)
        scale = ((1023 + half) << 52).to(tl.float64, bitcast=True)
        inverse_square = ((1023 - 2 * half) << 52).to(tl.float64, bitcast=True)
        k *= inverse_square
        l *= inverse_square
    # Kept finite: they multiply numbers as small as they are large.
    tl.store(to + sample, clamp(k, -MOST, MOST).to(to.dtype.element_ty), mask=exists)
    tl.store(to + samples + sample, clamp(l, -MOST, MOST).to(to.dtype.element_ty), mask=exists)
    tl.store(to + 2 * samples + sample, scale.to(to.dtype.element_ty), mask=exists)


@triton.jit
def solve_rows(
    squares, products, grad, grad_stride, coefficients, first, samples, parts,
    factor, center, weight, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """The penalties of samples first .. first + ROWS, 0 where there is none.

    Where there is an upstream gradient: stores the coefficients of grad_out and of grads, or of
    grads alone, and returns the upstream gradient's gradient.
    """
    sample = first + tl.arange(0, ROWS)
    exists = sample < samples
    total = row_totals(squares, sample, samples, parts, ROWS, COLUMNS)
    value, slope, turn = penalty(total, center, weight, SMOOTH)
    if grad is not None:
        g = tl.load(grad + sample * grad_stride, mask=exists, other=0.0).to(tl.float64) * factor
        turned = tl.zeros_like(slope)
        if products is not None:
            along = row_totals(products, sample, samples, parts, ROWS, COLUMNS)
            # Without a turn 0, though g . v be infinite.
            turned = tl.where(turn == 0.0, 0.0, turn * along)
            value = slope * along
        store_coefficients(coefficients, sample, samples, g * slope, g * turned, exists)
    return tl.where(exists, value, 0.0)


@triton.jit
def solve_kernel(
    squares, products, grad, grad_stride, coefficients, out, samples, parts, count,
    factor: tl.float64, center: tl.float64, weight: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SMOOTH: tl.constexpr,
    REDUCE: tl.constexpr,
):  # fmt: skip
    """From the sums of a tile's rows to `solve_rows`; REDUCE: all of them, and their mean."""
    if REDUCE:
        total = tl.zeros((ROWS,), tl.float64)
        for first in range(0, samples, ROWS):
            total += solve_rows(
                squares, products, grad, grad_stride, coefficients, tl.cast(first, tl.int64),
                samples, parts, factor, center, weight, ROWS, COLUMNS, SMOOTH,
            )  # fmt: skip
        mean = tl.sum(total, axis=0) / tl.full((), count, tl.float64)
        tl.store(out, mean.to(T).to(out.dtype.element_ty))
    else:
        start = tl.program_id(0).to(tl.int64) * ROWS
        value = solve_rows(
            squares, products, grad, grad_stride, coefficients, start,
            samples, parts, factor, center, weight, ROWS, COLUMNS, SMOOTH,
        )  # fmt: skip
        if out is not None:
            sample = start + tl.arange(0, ROWS)
            tl.store(out + sample, value.to(T).to(out.dtype.element_ty), mask=sample < samples)


@triton.jit
def scale_kernel(
    grads, grad_out, out, k, l, scale, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """scale^2 k g, or scale^2 (k v + l g)."""
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    g = load(grads, row, start, mask, form, T, VECTOR)
    if grad_out is None:
        value = load_sample(k, row, form) * g
    else:
        value = load_sample(k, row, form) * load(grad_out, row, start, mask, form, T, VECTOR)
        turn = load_sample(l, row, form)
        # Where there is no turn, an infinite g must not meet the 0.
        value = tl.where(turn == 0.0, value, tl.fma(turn, g, value))
    if T == tl.float32:
        factor = load_sample(scale, row, form)
        value = mul(mul(value, factor), factor)
    store(out, value, row, start, mask, form, VECTOR)


def gradient_penalty(grads: Tensor, center: float, weight: float, reduction: int) -> Tensor:
    each = reduction in (NONE, SAMPLE)
    dtype = grads.dtype if reduction == NONE else sum_dtype(grads)
    out = grads.new_empty(grads.shape[:1] if each else (), dtype=dtype)
    _penalty(None, None, grads, center, weight, reduction, out, None)
    return out


def gradient_penalty_backward(
    grad: Tensor, grads: Tensor, center: float, weight: float, reduction: int
) -> Tensor:
    out = torch.empty_like(grads)
    _penalty(None, grad, grads, center, weight, reduction, None, out)
    return out


def gradient_penalty_backward_backward(
    grad_out: Tensor, grad: Tensor, grads: Tensor, center: float, weight: float,
    reduction: int, output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    outputs = new_gradients((grad, grads), output_mask)
    _penalty(grad_out, grad, grads, center, weight, reduction, *outputs)
    return tuple(grads.new_empty(0) if g is None else g for g in outputs)


def _penalty(
    grad_out: Tensor | None, grad: Tensor | None, grads: Tensor, center: float, weight: float,
    reduction: int, value: Tensor | None, out: Tensor | None,
) -> None:  # fmt: skip
    """Fills `value` with the penalty or the gradient of `grad`, and `out` with that of `grads`."""
    samples = len(grads)
    reduce = value is not None and reduction not in (NONE, SAMPLE)
    count = divisor((samples,), reduction)
    if samples == 0:
        if value is not None:
            value.zero_().div_(count)
        return
    tiles = Tiles(grads.shape, [grads, grad_out, out], by_sample=True)
    parts = tiles.rows * tiles.column_tiles // samples
    squares = grads.new_empty((samples, parts), dtype=torch.float64)
    products = None if grad_out is None else torch.empty_like(squares)
    if center != 0.0 or value is not None or grad_out is not None:
        launch(
            squares_kernel, tiles.programs, grads.device,
            *map(tiles.operand, (grads, grad_out)), squares, products, tiles.form,
            T=arithmetic(grads), **tiles.meta,
        )  # fmt: skip
    coefficients = grads.new_empty((3, samples), dtype=sum_dtype(grads))
    columns = min(TILE // 2, triton.next_power_of_2(max(parts, 1)))
    rows = TILE // 2 // columns
    launch(
        solve_kernel, 1 if reduce else triton.cdiv(samples, rows), grads.device,
        squares, products, grad, 0 if grad is None or grad.dim() == 0 else grad.stride(0),
        coefficients, value, samples, parts, count, over(1.0, count), center, weight,
        T=arithmetic(grads), ROWS=rows, COLUMNS=columns, SMOOTH=center == 0.0, REDUCE=reduce,
    )  # fmt: skip
    if out is not None:
        launch(
            scale_kernel, tiles.programs, grads.device,
            *map(tiles.operand, (grads, grad_out, out)), *map(tiles.per_sample, coefficients),
            tiles.form, T=arithmetic(grads), **tiles.meta,
        )  # fmt: skip


# ---- points between real and generated data


@triton.jit
def weights_of(given, stream, row, form, T: tl.constexpr):
    """The weight of each row's sample."""
    if stream is None:
        return load_sample(given, row, form).to(T)
    else:
        return noise(stream, row, 0, form, 0, T, 1, 0, False)


@triton.jit
def interpolate_kernel(
    real, fake, given, stream, out, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    w = weights_of(given, stream, row, form, T)
    other = (1.0 - w) * load(fake, row, start, mask, form, T, VECTOR)
    value = tl.fma(w, load(real, row, start, mask, form, T, VECTOR), other)
    store(out, value, row, start, mask, form, VECTOR)


@triton.jit
def interpolate_backward_kernel(
    grad, real, fake, given, stream, grad_real, grad_fake, partial, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    g = load(grad, row, start, mask, form, T, VECTOR)
    w = weights_of(given, stream, row, form, T)
    if grad_real is not None:
        store(grad_real, w * g, row, start, mask, form, VECTOR)
    if grad_fake is not None:
        store(grad_fake, (1.0 - w) * g, row, start, mask, form, VECTOR)
    if partial is not None:
        x = load(real, row, start, mask, form, T, VECTOR)
        y = load(fake, row, start, mask, form, T, VECTOR)
        store_partial(partial, g * (x - y), row, mask, form, True)


def interpolate(real: Tensor, fake: Tensor, key: Tensor | None, noise: Tensor | None) -> Tensor:
    out = torch.empty_like(real)
    tiles = Tiles(real.shape, [real, fake, out], by_sample=True)
    launch(
        interpolate_kernel, tiles.programs, real.device,
        *map(tiles.operand, (real, fake)), tiles.per_sample(noise), tiles.sample_stream(key),
        tiles.operand(out), tiles.form, T=arithmetic(real), **tiles.meta,
    )  # fmt: skip
    return out


def interpolate_backward(
    grad: Tensor, real: Tensor, fake: Tensor, key: Tensor | None, noise: Tensor | None,
    output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    outputs = new_gradients((real, fake), output_mask)
    summed = noise is not None and output_mask & 0b100
    read = (real, fake) if summed else (None, None)
    tiles = Tiles(real.shape, [grad, *read, *outputs], by_sample=True)
    partial = new_partial(real, tiles, SAMPLE) if summed else None
    launch(
        interpolate_backward_kernel, tiles.programs, real.device,
        *map(tiles.operand, (grad, *read)), tiles.per_sample(noise), tiles.sample_stream(key),
        *map(tiles.operand, outputs), partial, tiles.form, T=arithmetic(real), **tiles.meta,
    )  # fmt: skip
    by_noise = None if partial is None else finish(partial, real.shape, SAMPLE).to(real.dtype)
    return tuple(real.new_empty(0) if g is None else g for g in (*outputs, by_noise))
