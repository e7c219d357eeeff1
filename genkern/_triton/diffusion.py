"""The diffusion family in Triton: csrc/include/genkern/diffusion.h.

A kernel's `first` points to its samples' rows of coefficients; equations and columns are those of
`genkern._ops.diffusion`.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from genkern._triton.launch import (
    NONE,
    PROGRAMS,
    SAMPLE,
    TURNS,
    Tiles,
    blocks_together,
    clamps,
    launch,
    varies,
)
from genkern._triton.math import (
    LOG2_E,
    at_least,
    at_most,
    clamp,
    divide,
    erfcx,
    exp,
    exp_finite,
    exp_saturated,
    expm1,
    expm1_minus,
    largest_exponent,
)
from genkern._triton.normal import noise_tile
from genkern._triton.ptx import add, fma, mul, sub
from genkern._triton.reduce import (
    divisor,
    new_gradients,
    new_partial,
    over,
    store_sums,
    sum_dtype,
    upstream,
    value_of,
)
from genkern._triton.tile import (
    arithmetic,
    coefficient,
    coefficients,
    is_half,
    key_of_tiles,
    load,
    load_sample,
    noise_or_load,
    store,
    this_program,
    this_tile,
    which_exist,
    which_rows_exist,
    width,
)

_TRITON = tuple(int(n) for n in triton.__version__.split(".")[:2])

# ---- one element


@triton.jit
def guide(pred, uncond, scale):
    """uncond + scale (pred - uncond)."""
    return fma(sub(pred, uncond), scale, uncond)


@triton.jit
def weighted_square(difference, weight, offset):
    return fma(mul(difference, weight), difference, offset)


@triton.jit
def step_kl(s, y, HALF: tl.constexpr):
    """KL(N(x, e^true_lv) || N(x + mean_x0 d, e^lv)), y = (true_lv - lv) log2(e) / 2.

    s = mean_x0 e^(-true_lv/2) d. Twice its value, its derivative by s, and -2 times that by lv.
    """
    # e^((true_lv - lv)/2), kept finite: 0 times infinity would make a NaN.
    y = at_most(y, 1023.0 if y.dtype == tl.float64 else 127.0)
    root = tl.exp2(y)
    far = fma(root, root, -1.0)
    by_lv = far if HALF else expm1(y, far, HALF, 2.0 / LOG2_E)
    s = mul(s, root)
    value = fma(s, s, expm1_minus(y, far, HALF, 2.0 / LOG2_E))
    return value, mul(s, root), fma(s, s, by_lv)


HALF_BIN = tl.constexpr(1.0 / 255.0)
LAST_BIN = tl.constexpr(0.999)
ROOT_HALF = tl.constexpr(0.70710678118654752440)
ROOT_2_PI = tl.constexpr(2.50662827463100050242)
NARROW = tl.constexpr(0.25)


@triton.jit
def narrow_bin(w, s, DOUBLE: tl.constexpr):
    """S and its derivatives, by s over w and by w times w, for a bin that is narrow.

    Its probability is w, its width in deviations, times the density at its centre, s of them from
    the mean, times S, an integrated Taylor series: of it what is left out is below 1e-16 if DOUBLE,
    else 1e-10, for registers.
    """
    # w^n He_n(s), by He_n+1(s) = s He_n(s) - n He_n-1(s); He_n' = n He_n-1.
    u = w * w
    h1 = w * s
    h2 = h1 * h1 - u
    total = h2 * (1.0 / 24.0) + 1.0
    by_s = h1 * (1.0 / 12.0)
    by_w = h2 * (1.0 / 12.0)
    h3 = h1 * h2 - (u * 2.0) * h1
    h4 = h1 * h3 - (u * 3.0) * h2
    total += h4 * (1.0 / 1920.0)
    by_s += h3 * (1.0 / 480.0)
    by_w += h4 * (1.0 / 480.0)
    h5 = h1 * h4 - (u * 4.0) * h3
    h6 = h1 * h5 - (u * 5.0) * h4
    total += h6 * (1.0 / 322560.0)
    by_s += h5 * (1.0 / 53760.0)
    by_w += h6 * (1.0 / 53760.0)
    if DOUBLE:
        h7 = h1 * h6 - (u * 6.0) * h5
        h8 = h1 * h7 - (u * 7.0) * h6
        total += h8 * (1.0 / 92897280.0)
        by_s += h7 * (1.0 / 11612160.0)
        by_w += h8 * (1.0 / 11612160.0)
        h9 = h1 * h8 - (u * 8.0) * h7
        h10 = h1 * h9 - (u * 9.0) * h8
        total += h10 * (1.0 / 40874803200.0)
        by_s += h9 * (1.0 / 4087480320.0)
        by_w += h10 * (1.0 / 4087480320.0)
    return total, by_s, by_w


@triton.jit
def decoder_nll(d, x0, lv, DOUBLE: tl.constexpr):
    """-log of what the discretised N(x0 - d, e^lv) gives to x0's bin, and its derivatives by d, lv.

    In float64: the difference of two tails loses digits.
    """
    inverse = exp_saturated(lv, False, -0.5)
    # Mirrored so that the bin lies on the positive side, where the tail is small.
    mirrored = d < 0.0
    c = tl.abs(d)
    below = x0 < -LAST_BIN
    above = x0 > LAST_BIN
    open_near = tl.where(mirrored, above, below)
    open_far = tl.where(mirrored, below, above)
    a = (c - HALF_BIN) * inverse
    b = (c + HALF_BIN) * inverse
    # All but two tails where the bin holds the mean, or what is before it; else the difference of
    # two tails. There everything is divided by the density at the near end.
    around = (a <= 0.0) | open_near
    exponent = a * a * -0.5
    near = tl.where(open_near, 0.0, exp(tl.where(around, exponent, 0.0), False))
    between = ((c * inverse) * (-2.0 * HALF_BIN)) * inverse
    far = tl.where(open_far, 0.0, exp(tl.where(around, b * b * -0.5, between), False))
    tail_near = erfcx(tl.abs(a) * ROOT_HALF) * near
    tail_far = erfcx(b * ROOT_HALF) * far
    p = tl.where(around, 1.0 - (tail_near + tail_far) * 0.5, (tail_near - tail_far) * 0.5)
    value = tl.where(around, 0.0, -exponent)
    # A closed bin that is narrow against the bell.
    w = inverse * (2.0 * HALF_BIN)
    s = c * inverse
    narrow = ((below | above) == 0) & (w < NARROW) & (w * s < NARROW)
    w = tl.where(narrow, w, 0.0)
    s = tl.where(narrow, s, 0.0)
    total, by_s, by_w = narrow_bin(w, s, DOUBLE)
    p = tl.where(narrow, total, p)
    # log w with lv itself: w underflows. The number is 1/2 log 2 pi - log(2 / 255).
    value = tl.where(narrow, fma(s * s + lv, 0.5, 5.7670548978031536), value) - tl.log(p)
    # The derivatives, times p, less s and 1 - s^2 of a narrow bin.
    along_c = tl.where(narrow, -w * by_s, (near - far) * (1.0 / ROOT_2_PI))
    along_lv = tl.where(narrow, (w * s) * by_s + by_w, (b * far - a * near) * (1.0 / ROOT_2_PI))
    over_p = 1.0 / p
    along_c = (s + along_c * over_p) * inverse
    along_lv = (tl.where(narrow, 1.0 - s * s, 0.0) + along_lv * over_p) * 0.5
    return value, tl.where(mirrored, -along_c, along_c), along_lv


# ---- affine


@triton.jit
def affine_kernel(
    x, y, z, given, stream, out, table, t, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    first = coefficients(table, t, row, form)
    total = coefficient(first, table, 0) * load(x, row, start, mask, form, T, VECTOR)
    if y is not None:
        total = tl.fma(
            coefficient(first, table, 1), load(y, row, start, mask, form, T, VECTOR), total
        )
    if z is not None:
        total = tl.fma(
            coefficient(first, table, 2), load(z, row, start, mask, form, T, VECTOR), total
        )
    if given is not None or stream is not None:
        eps = noise_or_load(given, stream, row, start, mask, form, 0, T, VECTOR, BLOCKS)
        total = tl.fma(coefficient(first, table, 3), eps, total)
    store(out, total, row, start, mask, form, VECTOR)


def affine(
    x: Tensor, y: Tensor | None, z: Tensor | None, key: Tensor | None, noise: Tensor | None,
    coefficients: Tensor, t: Tensor | None,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(x)
    affine_out(x, y, z, key, noise, coefficients, t, out)
    return out


def affine_out(
    x: Tensor, y: Tensor | None, z: Tensor | None, key: Tensor | None, noise: Tensor | None,
    coefficients: Tensor, t: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    tiles = Tiles(x.shape, [x, y, z, noise, out], key, varies(coefficients if t is None else t))
    stream = tiles.stream(key)
    launch(
        affine_kernel, tiles.programs, x.device,
        *map(tiles.operand, (x, y, z, noise)), stream, tiles.operand(out),
        *tiles.table(coefficients, t), tiles.form,
        T=arithmetic(x), **tiles.meta, BLOCKS=blocks_together(stream, x.dtype),
    )  # fmt: skip


# ---- noise_loss


@triton.jit
def loss_parts(
    pred, x0, given, stream, sample_weight, first, table, row, start, mask, form,
    T: tl.constexpr, VECTOR: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """pred - target, and the weight."""
    difference = load(pred, row, start, mask, form, T, VECTOR)
    if x0 is not None:
        difference = tl.fma(
            -coefficient(first, table, 0), load(x0, row, start, mask, form, T, VECTOR), difference
        )
    if given is not None or stream is not None:
        eps = noise_or_load(given, stream, row, start, mask, form, 0, T, VECTOR, BLOCKS)
        difference = tl.fma(-coefficient(first, table, 1), eps, difference)
    weight = coefficient(first, table, 2)
    if sample_weight is not None:
        weight *= load_sample(sample_weight, row, form)
    return difference, weight


@triton.jit
def noise_loss_kernel(
    pred, x0, given, stream, sample_weight, loss, partial, table, t, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    first = coefficients(table, t, row, form)
    offset = coefficient(first, table, 3)
    if loss is not None:
        difference, weight = loss_parts(
            pred, x0, given, stream, sample_weight, first, table, row, start, mask, form,
            T, VECTOR, BLOCKS,
        )  # fmt: skip
        value = weighted_square(difference, weight, offset)
        store(loss, value, row, start, mask, form, VECTOR)
    else:
        # A sum for each 128 bits that a thread reads, of 16-bit types for each half.
        GROUP: tl.constexpr = 2 if T == tl.float64 else 4
        value = tl.zeros((ROWS, COLUMNS // GROUP), T)
        count = tl.zeros((), tl.int32)
        _, column_program = this_program(form)
        for tile in range(column_program, form.column_tiles, form.column_programs):
            start = tl.cast(tile, tl.int64) * COLUMNS
            mask = which_exist(row, start, form, COLUMNS, VECTOR)
            difference, weight = loss_parts(
                pred, x0, given, stream, sample_weight, first, table, row, start, mask, form,
                T, VECTOR, BLOCKS,
            )  # fmt: skip
            difference = tl.where(mask, difference, 0.0)
            halves = tl.split(tl.reshape(difference, (ROWS, COLUMNS // 2, 2)))
            for i in tl.static_range(2):
                if GROUP == 2:
                    value = weighted_square(halves[i], weight, value)
                else:
                    a, b = tl.split(tl.reshape(halves[i], (ROWS, COLUMNS // 4, 2)))
                    value = weighted_square(b, weight, weighted_square(a, weight, value))
            count += width(start, form, COLUMNS, VECTOR)
        offsets = tl.where(which_rows_exist(row, form)[:, None], offset * count.to(T), 0.0)
        sums = tl.sum(value, axis=1) + tl.sum(offsets, axis=1)
        store_sums(partial, sums, row, form, BY_ROW)


@triton.jit
def noise_loss_backward_kernel(
    grad, factor: tl.float64, pred, x0, given, stream, sample_weight,
    grad_pred, grad_x0, grad_noise, table, t, form,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    first = coefficients(table, t, row, form)
    difference, weight = loss_parts(
        pred, x0, given, stream, sample_weight, first, table, row, start, mask, form,
        T, VECTOR, BLOCKS,
    )  # fmt: skip
    weight *= tl.full((), factor, T)
    along = (weight * load(grad, row, start, mask, form, T, VECTOR)) * difference
    if grad_pred is not None:
        store(grad_pred, along, row, start, mask, form, VECTOR)
    if grad_x0 is not None:
        by_x0 = -coefficient(first, table, 0) * along
        store(grad_x0, by_x0, row, start, mask, form, VECTOR)
    if grad_noise is not None:
        by_noise = -coefficient(first, table, 1) * along
        store(grad_noise, by_noise, row, start, mask, form, VECTOR)


def noise_loss(
    pred: Tensor, x0: Tensor | None, key: Tensor | None, noise: Tensor | None,
    coefficients: Tensor, t: Tensor | None, sample_weight: Tensor | None, reduction: int,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(pred) if reduction == NONE else None
    by_sample = reduction == SAMPLE
    pinned = by_sample or varies(coefficients if t is None else t, sample_weight)
    turns = TURNS if out is None else 1
    tiles = Tiles(pred.shape, [pred, x0, noise, out], key, pinned, turns)
    stream = tiles.stream(key)
    partial = None if out is not None else new_partial(pred, tiles, reduction)
    launch(
        noise_loss_kernel, tiles.programs, pred.device,
        *map(tiles.operand, (pred, x0, noise)), stream, tiles.per_sample(sample_weight),
        tiles.operand(out), partial, *tiles.table(coefficients, t), tiles.form,
        T=arithmetic(pred), **tiles.meta, BLOCKS=blocks_together(stream, pred.dtype),
        BY_ROW=by_sample,
    )  # fmt: skip
    return value_of(out, partial, pred, reduction)


def noise_loss_backward(
    grad: Tensor, pred: Tensor, x0: Tensor | None, key: Tensor | None, noise: Tensor | None,
    coefficients: Tensor, t: Tensor | None, sample_weight: Tensor | None,
    reduction: int, output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    outputs = new_gradients((pred, x0, noise), output_mask)
    spread = upstream(grad, pred, reduction)
    pinned = varies(coefficients if t is None else t, sample_weight)
    tiles = Tiles(pred.shape, [spread, pred, x0, noise, *outputs], key, pinned)
    stream = tiles.stream(key)
    launch(
        noise_loss_backward_kernel, tiles.programs, pred.device,
        tiles.operand(spread), over(2.0, divisor(pred.shape, reduction)),
        *map(tiles.operand, (pred, x0, noise)), stream, tiles.per_sample(sample_weight),
        *map(tiles.operand, outputs), *tiles.table(coefficients, t), tiles.form,
        T=arithmetic(pred), **tiles.meta, BLOCKS=blocks_together(stream, pred.dtype),
    )  # fmt: skip
    return tuple(pred.new_empty(0) if g is None else g for g in outputs)


def noise_loss_forming(
    pred: Tensor, x0: Tensor | None, key: Tensor | None, noise: Tensor | None,
    coefficients: Tensor, t: Tensor | None, sample_weight: Tensor | None, reduction: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    args = pred, x0, key, noise, coefficients, t, sample_weight, reduction
    value = noise_loss(*args)
    one = value.new_ones(()).expand(value.shape)
    return value, noise_loss_backward(one, *args, 0b1)[0]


# ---- sampler_step


@triton.jit
def guided(
    pred, uncond, guidance_factor, scale, row, start, mask, form,
    T: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    m = load(pred, row, start, mask, form, T, VECTOR)
    if uncond is not None:
        base = load(uncond, row, start, mask, form, T, VECTOR)
        m = guide(m, base, tl.full((1, 1), scale, T))
    if guidance_factor is not None:
        m *= load_sample(guidance_factor, row, form)
    return m


@triton.jit
def x0_of(x, m, first, table):
    return fma(m, coefficient(first, table, 1), mul(x, coefficient(first, table, 0)))


@triton.jit
def learned_exponent(first, table, HALF: tl.constexpr):
    """Slope and intercept of `learned_deviation`'s exponent."""
    UNIT: tl.constexpr = 0.5 * LOG2_E if HALF else 0.5
    return coefficient(first, table, 7) * UNIT, coefficient(first, table, 6) * UNIT


@triton.jit
def learned_deviation(values, slope, intercept, HALF: tl.constexpr):
    """The part of the standard deviation that the network learns."""
    exponent = fma(values, slope, intercept)
    return tl.exp2(exponent) if HALF else exp(exponent, False)


@triton.jit
def add_term(total, x, of_x):
    """total + of_x x. A coefficient of 0 adds nothing, whatever x is."""
    if of_x.shape[0] == 1:
        # One branch for a sample's tile, where a choice would be an instruction an element.
        if tl.max((of_x != 0.0).to(tl.int32)) > 0:
            total = fma(x, of_x, total)
        return total
    else:
        return tl.where(of_x == 0.0, total, fma(x, of_x, total))


@triton.jit
def sampler_step_kernel(
    x_t, pred, var_values, uncond, given, stream, guidance_factor, threshold, out, x0_out,
    table, t, form, guidance_scale: tl.float64, x0_min: tl.float64, x0_max: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    first = coefficients(table, t, row, form)
    x = load(x_t, row, start, mask, form, T, VECTOR)
    m = guided(pred, uncond, guidance_factor, guidance_scale, row, start, mask, form, T, VECTOR)
    of_m = coefficient(first, table, 4)
    total = mul(x, coefficient(first, table, 3))
    # A clipped x0 of an infinite prediction is a bound.
    total = add_term(total, m, of_m)
    mean_x0 = coefficient(first, table, 2)
    if x0_out is not None:
        x0 = x0_of(x, m, first, table)
        if threshold is not None:
            high = load_sample(threshold, row, form)
            x0 = divide(clamp(x0, -high, high), high)
        elif CLIP:
            x0 = clamp(x0, tl.full((1, 1), x0_min, T), tl.full((1, 1), x0_max, T))
        total = fma(x0, mean_x0, total)
        store(x0_out, x0, row, start, mask, form, VECTOR)
    elif threshold is not None:
        # Divided by the threshold after clipping to it: the coefficient is divided instead.
        high = load_sample(threshold, row, form)
        x0 = clamp(x0_of(x, m, first, table), -high, high)
        total = fma(x0, divide(mean_x0, high), total)
    elif CLIP:
        x0 = clamp(
            x0_of(x, m, first, table), tl.full((1, 1), x0_min, T), tl.full((1, 1), x0_max, T)
        )
        total = fma(x0, mean_x0, total)
    if given is not None or stream is not None:
        noise = coefficient(first, table, 5)
        eps = noise_or_load(given, stream, row, start, mask, form, 0, T, VECTOR, BLOCKS)
        if given is None and var_values is None:
            total = fma(eps, noise, total)
        else:
            if var_values is not None:
                HALF: tl.constexpr = is_half(var_values.tensor)
                values = load(var_values, row, start, mask, form, T, VECTOR)
                slope, intercept = learned_exponent(first, table, HALF)
                eps = mul(eps, learned_deviation(values, slope, intercept, HALF))
            total = add_term(total, eps, noise)
    store(out, total, row, start, mask, form, VECTOR)


@triton.jit
def step_gradients_row(first, table, guidance_scale, T: tl.constexpr, HALF: tl.constexpr):
    """What `step_gradients_tile` needs of each row's sample.

    x0's coefficients, with guidance's factors; the mean's derivatives by x_t and by the guided
    prediction where x0 is clipped, and where it is inside the bounds; what is of the noise.
    """
    scale = tl.full((1, 1), guidance_scale, T)
    of_x = coefficient(first, table, 0)
    of_m = coefficient(first, table, 1)
    mean_x0 = coefficient(first, table, 2)
    by_x = coefficient(first, table, 3)
    by_m = coefficient(first, table, 4)
    noise = coefficient(first, table, 5)
    slope, intercept = learned_exponent(first, table, HALF)
    return (
        of_x,
        of_m * scale,
        of_m * (1.0 - scale),
        by_x,
        by_m,
        fma(mean_x0, of_x, by_x),
        fma(mean_x0, of_m, by_m),
        scale,
        noise,
        noise * (coefficient(first, table, 7) * 0.5),
        slope,
        intercept,
    )


@triton.jit
def step_gradients_tile(
    grad, x_t, pred, var_values, uncond, given, key,
    grad_x_t, grad_pred, grad_var_values, grad_uncond, grad_noise,
    of_row, noisy, row, start, mask, form, x0_min, x0_max,
    T: tl.constexpr, VECTOR: tl.constexpr, BLOCKS: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    (
        of_x, of_pred, of_uncond, by_x, by_m, by_x_inside, by_m_inside, scale,
        noise, values_factor, slope, intercept,
    ) = of_row  # fmt: skip
    g = load(grad, row, start, mask, form, T, VECTOR)
    if x_t is not None:
        x = load(x_t, row, start, mask, form, T, VECTOR)
        m = load(pred, row, start, mask, form, T, VECTOR)
        x0 = fma(m, of_pred, mul(x, of_x))
        if uncond is not None:
            x0 = fma(load(uncond, row, start, mask, form, T, VECTOR), of_uncond, x0)
        high = tl.full((1, 1), x0_max, T)
        # A NaN counts as inside.
        if SYMMETRIC:
            outside = tl.abs(x0) > high
        else:
            outside = (x0 < tl.full((1, 1), x0_min, T)) | (x0 > high)
        by_x = tl.where(outside, by_x, by_x_inside)
        by_m = tl.where(outside, by_m, by_m_inside)
    if grad_x_t is not None:
        store(grad_x_t, mul(g, by_x), row, start, mask, form, VECTOR)
    by_m = mul(g, by_m)
    if grad_pred is not None:
        store(grad_pred, mul(by_m, scale), row, start, mask, form, VECTOR)
    if grad_uncond is not None:
        store(grad_uncond, mul(by_m, 1.0 - scale), row, start, mask, form, VECTOR)
    if grad_var_values is not None or grad_noise is not None:
        # Here, since ptxas keeps no address over the branch.
        if var_values is not None:
            values = load(var_values, row, start, mask, form, T, VECTOR)
        if noisy:
            along = g
            if var_values is not None:
                along = mul(g, learned_deviation(values, slope, intercept, is_half(grad.tensor)))
            # Some of several rows may have no noise.
            quiet = (noise == 0.0) & (row.shape[0] > 1)
            if grad_noise is not None:
                by_eps = tl.where(quiet, 0.0, mul(along, noise))
                store(grad_noise, by_eps, row, start, mask, form, VECTOR)
            if grad_var_values is not None:
                if key is None:
                    eps = load(given, row, start, mask, form, T, VECTOR)
                else:
                    seed, offset, index = key
                    eps = noise_tile(seed, offset, index + start, mask.shape[1], T, BLOCKS, True)
                by_values = tl.where(quiet, 0.0, mul(mul(along, values_factor), eps))
                store(grad_var_values, by_values, row, start, mask, form, VECTOR)
        else:
            zeros = tl.zeros(mask.shape, T)
            if grad_noise is not None:
                store(grad_noise, zeros, row, start, mask, form, VECTOR)
            if grad_var_values is not None:
                store(grad_var_values, zeros, row, start, mask, form, VECTOR)


@triton.jit
def sampler_step_backward_kernel(
    grad, x_t, pred, var_values, uncond, given, stream,
    grad_x_t, grad_pred, grad_var_values, grad_uncond, grad_noise,
    table, t, form, guidance_scale: tl.float64, x0_min: tl.float64, x0_max: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    row, _, _ = this_tile(form, ROWS, COLUMNS, VECTOR)
    _, column_program = this_program(form)
    first = coefficients(table, t, row, form)
    of_row = step_gradients_row(first, table, guidance_scale, T, is_half(grad.tensor))
    key = None if stream is None else key_of_tiles(stream, row, form, T, BLOCKS)
    # A coefficient of 0 adds no noise, whatever it and its deviation are.
    noisy = tl.max((coefficient(first, table, 5) != 0.0).to(tl.int32)) > 0
    for tile in range(column_program, form.column_tiles, form.column_programs):
        start = tl.cast(tile, tl.int64) * COLUMNS
        mask = which_exist(row, start, form, COLUMNS, VECTOR)
        step_gradients_tile(
            grad, x_t, pred, var_values, uncond, given, key,
            grad_x_t, grad_pred, grad_var_values, grad_uncond, grad_noise,
            of_row, noisy, row, start, mask, form, x0_min, x0_max, T, VECTOR, BLOCKS, SYMMETRIC,
        )  # fmt: skip


def sampler_step(
    x_t: Tensor, pred: Tensor, var_values: Tensor | None, uncond: Tensor | None,
    key: Tensor | None, noise: Tensor | None, coefficients: Tensor, t: Tensor | None,
    guidance_factor: Tensor | None, threshold: Tensor | None,
    guidance_scale: float, x0_min: float, x0_max: float,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(x_t)
    sampler_step_out(
        x_t, pred, var_values, uncond, key, noise, coefficients, t, guidance_factor, threshold,
        guidance_scale, x0_min, x0_max, out,
    )  # fmt: skip
    return out


def sampler_step_x0(
    x_t: Tensor, pred: Tensor, var_values: Tensor | None, uncond: Tensor | None,
    key: Tensor | None, noise: Tensor | None, coefficients: Tensor, t: Tensor | None,
    guidance_factor: Tensor | None, threshold: Tensor | None,
    guidance_scale: float, x0_min: float, x0_max: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, x0 = torch.empty_like(x_t), torch.empty_like(x_t)
    sampler_step_out(
        x_t, pred, var_values, uncond, key, noise, coefficients, t, guidance_factor, threshold,
        guidance_scale, x0_min, x0_max, out, x0,
    )  # fmt: skip
    return out, x0


def sampler_step_out(
    x_t: Tensor, pred: Tensor, var_values: Tensor | None, uncond: Tensor | None,
    key: Tensor | None, noise: Tensor | None, coefficients: Tensor, t: Tensor | None,
    guidance_factor: Tensor | None, threshold: Tensor | None,
    guidance_scale: float, x0_min: float, x0_max: float, out: Tensor, x0: Tensor | None = None,
) -> None:  # fmt: skip
    if key is None and noise is None:
        var_values = None
    pinned = varies(coefficients if t is None else t, guidance_factor, threshold)
    tiles = Tiles(x_t.shape, [x_t, pred, var_values, uncond, noise, out, x0], key, pinned)
    stream = tiles.stream(key)
    launch(
        sampler_step_kernel, tiles.programs, x_t.device,
        *map(tiles.operand, (x_t, pred, var_values, uncond, noise)), stream,
        tiles.per_sample(guidance_factor), tiles.per_sample(threshold), tiles.operand(out),
        tiles.operand(x0),
        *tiles.table(coefficients, t), tiles.form, guidance_scale, x0_min, x0_max,
        T=arithmetic(x_t), **tiles.meta, BLOCKS=blocks_together(stream, x_t.dtype),
        CLIP=clamps(x0_min, x0_max),
    )  # fmt: skip


def sampler_step_backward(
    grad: Tensor, x_t: Tensor, pred: Tensor, var_values: Tensor | None, uncond: Tensor | None,
    key: Tensor | None, noise: Tensor | None, coefficients: Tensor, t: Tensor | None,
    guidance_scale: float, x0_min: float, x0_max: float, output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    noisy = key is not None or noise is not None
    outputs = new_gradients((x_t, pred, var_values, uncond, noise), output_mask)
    if outputs[2] is not None and not noisy:
        outputs[2].zero_()
    written = [*outputs[:2], outputs[2] if noisy else None, *outputs[3:]]
    # Only the gradients that depend on a tensor need it.
    drawn = key if written[2] is not None else None
    given = noise if written[2] is not None else None
    values = var_values if written[2] is not None or written[4] is not None else None
    read = (x_t, pred, uncond) if clamps(x0_min, x0_max) else (None, None, None)
    tiles = Tiles(
        x_t.shape, [grad, *read, values, given, *written], drawn,
        varies(coefficients if t is None else t), TURNS,
    )  # fmt: skip
    stream = tiles.stream(drawn)
    launch(
        sampler_step_backward_kernel, tiles.programs, x_t.device,
        *map(tiles.operand, (grad, *read[:2], values, read[2], given)), stream,
        *map(tiles.operand, written), *tiles.table(coefficients, t), tiles.form,
        1.0 if uncond is None else guidance_scale, x0_min, x0_max,
        T=arithmetic(x_t), **tiles.meta, BLOCKS=blocks_together(stream, x_t.dtype),
        SYMMETRIC=x0_min == -x0_max,
    )  # fmt: skip
    return tuple(x_t.new_empty(0) if g is None else g for g in outputs)


# ---- what a step needs to know of a whole sample


@triton.jit
def store_moments(partial, x, count, row, mask, form):
    """Mean and sum of squared deviations of each row of the tile."""
    mean = tl.sum(tl.where(mask, x, 0.0), axis=1) / count
    rest = tl.where(mask, x - mean[:, None], 0.0)
    # The mean is rounded: its error shows in the sum of the deviations.
    error = tl.sum(rest, axis=1) / count
    squares = tl.sum(rest * rest, axis=1) - count * error * error
    exists = which_rows_exist(row, form)
    tl.store(partial, mean.to(tl.float64) + error, mask=exists)
    tl.store(partial + 1, squares, mask=exists)


@triton.jit
def moments_kernel(
    pred, uncond, partial, form, guidance_scale: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row, start, mask = this_tile(form, ROWS, COLUMNS, VECTOR)
    x = load(pred, row, start, mask, form, T, VECTOR)
    base = load(uncond, row, start, mask, form, T, VECTOR)
    count = tl.cast(width(start, form, COLUMNS, VECTOR), T)
    _, column_program = this_program(form)
    to = partial + (row * form.column_programs + column_program) * 4
    store_moments(to, x, count, row, mask, form)
    mixed = guide(x, base, tl.full((1, 1), guidance_scale, T))
    store_moments(to + 2, mixed, count, row, mask, form)


@triton.jit
def squared_deviations(
    partial, parts, column_tiles, columns, rows, COLUMNS: tl.constexpr, LANES: tl.constexpr
):
    """Of a whole sample, from the moments of its parts: Chan, Golub and LeVeque, 1979, (1.5)."""
    lane = tl.arange(0, LANES)
    total = tl.zeros((LANES,), tl.float64)
    for start in range(0, parts, LANES):
        part = start + lane
        count = tl.minimum(columns - part % column_tiles * COLUMNS, COLUMNS).to(tl.float64)
        total += count * tl.load(partial + part * 4, mask=part < parts, other=0.0)
    mean = tl.sum(total, axis=0) / (tl.full((), columns, tl.float64) * rows)
    total = tl.zeros((LANES,), tl.float64)
    for start in range(0, parts, LANES):
        part = start + lane
        count = tl.minimum(columns - part % column_tiles * COLUMNS, COLUMNS).to(tl.float64)
        d = tl.load(partial + part * 4, mask=part < parts, other=mean) - mean
        total += tl.fma(count * d, d, tl.load(partial + part * 4 + 1, mask=part < parts, other=0.0))
    return tl.sum(total, axis=0)


@triton.jit
def guidance_factor_kernel(
    partial, out, parts, column_tiles, columns, rows, guidance_rescale: tl.float64,
    COLUMNS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    first = partial + sample * parts * 4
    plain = squared_deviations(first, parts, column_tiles, columns, rows, COLUMNS, LANES)
    mixed = squared_deviations(first + 2, parts, column_tiles, columns, rows, COLUMNS, LANES)
    factor = fma(guidance_rescale, tl.sqrt(plain / mixed), 1.0 - guidance_rescale)
    tl.store(out + sample, factor.to(out.dtype.element_ty))


def guidance_factor(
    pred: Tensor, uncond: Tensor, guidance_scale: float, guidance_rescale: float
) -> Tensor:
    tiles = Tiles(pred.shape, [pred, uncond], by_sample=True)
    out = _new_per_sample(pred)
    samples = max(out.numel(), 1)
    parts = tiles.rows * tiles.column_tiles // samples
    partial = pred.new_empty((samples, parts, 4), dtype=torch.float64)
    launch(
        moments_kernel, tiles.programs, pred.device,
        tiles.operand(pred), tiles.operand(uncond), partial, tiles.form, guidance_scale,
        T=arithmetic(pred), **tiles.meta,
    )  # fmt: skip
    launch(
        guidance_factor_kernel, out.numel(), pred.device,
        partial, out, parts, tiles.column_tiles, tiles.columns,
        tiles.rows // samples, guidance_rescale,
        COLUMNS=tiles.meta["COLUMNS"], LANES=256,
    )  # fmt: skip
    return out


# Numbers >= 0 are ordered as their bits are. Of the bits of the element that has a certain rank, a
# digit is found at a time, from the top: by how many elements, of those that have the digits found
# so far, have which digit next.
# Up to Triton 3.7, whose histogram takes a vote of the warp for each digit there is, there are few.
DIGIT_BITS = tl.constexpr(11 if _TRITON >= (3, 9) else 8)
DIGITS = tl.constexpr(1 << DIGIT_BITS.value)
MOST_BITS_64 = tl.constexpr(0x7FFFFFFFFFFFFFFF)
MOST_BITS_32 = tl.constexpr(0x7FFFFFFF)


@triton.jit
def magnitude_bits(x):
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True) & MOST_BITS_64
    else:
        return x.to(tl.int32, bitcast=True) & MOST_BITS_32


@triton.jit
def magnitude(bits, T: tl.constexpr):
    if T == tl.float64:
        return bits.to(tl.float64, bitcast=True)
    else:
        return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["shift"])
def count_digits_kernel(
    x_t, pred, uncond, guidance_factor, top_bits, counts, following, table, t, form,
    guidance_scale: tl.float64, shift, sample_rows, row_programs, column_programs,
    T: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Of some rows of a sample every row_programs-th, of their tiles every column_programs-th.

    LAST: and the least of the numbers above those with the top bits found so far.
    """
    program = tl.program_id(0)
    sample = (program // (row_programs * column_programs)).to(tl.int64)
    first_row = tl.full((1,), sample * sample_rows, tl.int64)
    first = coefficients(table, t, first_row, form)
    of_x = coefficient(first, table, 0)
    of_m = coefficient(first, table, 1)
    if guidance_factor is not None:
        of_m *= load_sample(guidance_factor, first_row, form)
    found = tl.load(top_bits + sample) << DIGIT_BITS
    count = tl.zeros((DIGITS,), tl.int32)
    if T == tl.float64:
        least = tl.full((COLUMNS,), MOST_BITS_64, tl.int64)
    else:
        least = tl.full((COLUMNS,), MOST_BITS_32, tl.int32)
    for r in range(program // column_programs % row_programs, sample_rows, row_programs):
        row = first_row + r
        for tile in range(program % column_programs, form.column_tiles, column_programs):
            start = tl.cast(tile, tl.int64) * COLUMNS
            mask = which_exist(row, start, form, COLUMNS, VECTOR)
            x = load(x_t, row, start, mask, form, T, VECTOR)
            m = guided(pred, uncond, None, guidance_scale, row, start, mask, form, T, VECTOR)
            x0 = tl.broadcast_to(tl.fma(of_m, m, of_x * x), mask.shape)
            bits = tl.reshape(magnitude_bits(x0), (COLUMNS,))
            exists = tl.reshape(mask, (COLUMNS,))
            digit = (bits >> shift) - found.to(bits.dtype)
            count += tl.histogram(
                digit.to(tl.int32), DIGITS, mask=exists & (digit >= 0) & (digit < DIGITS)
            )
            if LAST:
                above = exists & (digit >= DIGITS)
                least = tl.where(above, tl.minimum(least, bits), least)
    # Integers: in any order the same sum.
    to = counts + sample * DIGITS + tl.arange(0, DIGITS)
    tl.atomic_add(to, count.to(tl.int64), mask=count > 0, sem="relaxed")
    if LAST:
        tl.atomic_min(following + sample, tl.min(least, axis=0).to(tl.int64), sem="relaxed")


@triton.jit
def digit_of(count, rank):
    """The digit of the element of this rank, and how many have a smaller one."""
    smaller = tl.cumsum(count, axis=0) <= rank
    return tl.sum(smaller.to(tl.int64), axis=0), tl.sum(tl.where(smaller, count, 0), axis=0)


@triton.jit(do_not_specialize=["step"])
def select_digit_kernel(
    counts, top_bits, ranks, following, out, step, fraction: tl.float64, max_value: tl.float64,
    T: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """One digit more of each sample's top bits.

    LAST: the quantile, between the elements of the rank and of rank + step.
    """
    sample = tl.program_id(0).to(tl.int64)
    rank = tl.load(ranks + sample)
    here = counts + sample * DIGITS + tl.arange(0, DIGITS)
    count = tl.load(here)
    digit, smaller = digit_of(count, rank)
    top = tl.load(top_bits + sample) << DIGIT_BITS
    if LAST:
        high = tl.load(following + sample)
        if rank + step < tl.sum(count, axis=0):
            high = top + digit_of(count, rank + step)[0]
        a = magnitude(top + digit, T).to(tl.float64)
        b = magnitude(high, T).to(tl.float64)
        value = fma(fraction, b - a, a)
        # As torch.clamp(min=1, max=max_value): the upper bound wins.
        value = tl.where(value < 1.0, 1.0, value)
        value = tl.where(value > max_value, max_value, value)
        tl.store(out + sample, value.to(T))
    else:
        tl.store(top_bits + sample, top + digit)
        tl.store(ranks + sample, rank - smaller)
        tl.store(here, tl.zeros_like(count))


def dynamic_threshold(
    x_t: Tensor, pred: Tensor, uncond: Tensor | None, coefficients: Tensor, t: Tensor | None,
    guidance_factor: Tensor | None, guidance_scale: float, ratio: float, max_value: float,
) -> Tensor:  # fmt: skip
    out = _new_per_sample(x_t)
    samples = max(out.numel(), 1)
    length = x_t.numel() // samples
    if out.numel() and not length:
        raise ValueError("dynamic_threshold: a sample has no elements")
    tiles = Tiles(x_t.shape, [x_t, pred, uncond], by_sample=True)
    sample_rows = tiles.rows // samples
    programs = max(PROGRAMS // samples, 1)
    row_programs = min(programs, sample_rows)
    column_programs = min(max(programs // row_programs, 1), tiles.column_tiles)
    rank = ratio * (length - 1)
    low = math.floor(rank)
    counts = x_t.new_zeros((samples, DIGITS.value), dtype=torch.int64)
    top_bits = x_t.new_zeros(samples, dtype=torch.int64)
    ranks = torch.full_like(top_bits, low)  # among the numbers with these top bits
    following = torch.full_like(top_bits, MOST_BITS_64.value)
    # The sign is no digit's.
    for shift in reversed(range(0, out.element_size() * 8 - 1, DIGIT_BITS.value)):
        launch(
            count_digits_kernel, samples * row_programs * column_programs, x_t.device,
            *map(tiles.operand, (x_t, pred, uncond)), tiles.per_sample(guidance_factor),
            top_bits, counts, following, *tiles.table(coefficients, t), tiles.form,
            guidance_scale, shift, sample_rows, row_programs, column_programs,
            # A tile is of one sample.
            T=arithmetic(x_t), COLUMNS=tiles.tile, VECTOR=tiles.meta["VECTOR"], LAST=shift == 0,
        )  # fmt: skip
        launch(
            select_digit_kernel, out.numel(), x_t.device,
            counts, top_bits, ranks, following, out,
            min(low + 1, length - 1) - low, rank - low, max_value,
            T=arithmetic(x_t), LAST=shift == 0,
        )  # fmt: skip
    return out


def _new_per_sample(like: Tensor) -> Tensor:
    return like.new_empty(like.shape[:1] or (1,), dtype=sum_dtype(like))


# ---- vlb


@triton.jit
def vlb_row(
    first, table, x0_min, x0_max, T: tl.constexpr, HALF: tl.constexpr, CLIP: tl.constexpr,
    DECODER: tl.constexpr,
):  # fmt: skip
    """What `vlb_parts` needs of each row's sample.

    The coefficients yield d times mean_x0 e^(-true_lv/2), which `step_kl` needs, or for the decoder
    d itself; with CLIP, before the clip, less the estimate of x0 in place of d.
    """
    true_lv = coefficient(first, table, 4)
    # Finite times a coefficient up to 1e9: 0 times infinity would make a NaN.
    most: tl.constexpr = 1.5 * largest_exponent(true_lv)
    inverse = coefficient(first, table, 3) * exp_finite(at_most(-true_lv, most), HALF, 0.5)
    unit = tl.full((1, 1), 1.0, T) if DECODER else inverse
    by_x0 = coefficient(first, table, 0)
    low = unit
    high = unit
    if CLIP:
        by_x0 -= 1.0
        low *= at_least(tl.full((1, 1), -x0_max, T), -1e38)
        high *= at_most(tl.full((1, 1), -x0_min, T), 1e38)
    by_x0 *= unit
    by_eps = coefficient(first, table, 1) * unit
    by_pred = coefficient(first, table, 2) * unit
    lv = coefficient(first, table, 5)
    y = (true_lv - lv) * (0.5 * LOG2_E)
    last = coefficient(first, table, 7) > 0.5
    return (
        by_x0,
        by_eps,
        by_pred,
        low,
        high,
        unit,
        inverse,
        y,
        coefficient(first, table, 6),
        lv,
        last,
    )


@triton.jit
def vlb_parts(
    pred, var_values, x0, given, stream, of_row, row, start, mask, form,
    T: tl.constexpr, VECTOR: tl.constexpr, BLOCKS: tl.constexpr, CLIP: tl.constexpr,
    DECODER: tl.constexpr,
):  # fmt: skip
    """pred - eps; of `step_kl` or the decoder; and where L does not depend on pred."""
    by_x0, by_eps, by_pred, low, high, unit, inverse, y, by_values, lv, last = of_row
    if var_values is not None:
        values = load(var_values, row, start, mask, form, T, VECTOR)
        y = fma(values, by_values * (-0.5 * LOG2_E), y)
        if DECODER:
            lv = fma(values, by_values, lv)
    m = load(pred, row, start, mask, form, T, VECTOR)
    eps = noise_or_load(given, stream, row, start, mask, form, 0, T, VECTOR, BLOCKS)
    x = load(x0, row, start, mask, form, T, VECTOR)
    d = fma(m, by_pred, fma(eps, by_eps, mul(x, by_x0)))
    constant = by_pred == 0.0
    if CLIP:
        clipped = clamp(d, low, high)
        # By one comparison: with a `by_pred` of 0 it is with infinity. A NaN counts as inside.
        other = add(clipped, tl.where(constant, float("inf"), 0.0))
        constant = (d < other) | (d > other)
        d = fma(x, unit, clipped)
    s = mul(d, inverse) if DECODER else d
    value, by_d, by_lv = step_kl(s, y, is_half(pred.tensor))
    if DECODER:
        nll = decoder_nll(d.to(tl.float64), x.to(tl.float64), lv.to(tl.float64), T == tl.float64)
        # Of several rows some may not be at t = 0.
        last |= row.shape[0] == 1
        value = tl.where(last, (nll[0] * 2.0).to(T), value)
        by_d = tl.where(last, nll[1].to(T), mul(by_d, inverse))
        by_lv = tl.where(last, (nll[2] * -2.0).to(T), by_lv)
    return sub(m, eps), value, by_d, by_lv, constant


@triton.jit
def vlb_tile(
    pred, var_values, x0, given, stream, loss, of_row, row, start, mask, form,
    half_vlb_scale, simple_scale,
    T: tl.constexpr, VECTOR: tl.constexpr, BLOCKS: tl.constexpr, CLIP: tl.constexpr,
    SIMPLE: tl.constexpr, DECODER: tl.constexpr,
):  # fmt: skip
    """The values, 0 where there is no element; stored too if `loss` is there.

    In nothing but a sum half_vlb_scale is left out.
    """
    error, value, _, _, _ = vlb_parts(
        pred, var_values, x0, given, stream, of_row, row, start, mask, form,
        T, VECTOR, BLOCKS, CLIP, DECODER,
    )  # fmt: skip
    if SIMPLE or loss is not None:
        value = mul(value, tl.full((1, 1), half_vlb_scale, T))
    if SIMPLE:
        value = weighted_square(error, tl.full((1, 1), simple_scale, T), value)
    if loss is not None:
        store(loss, value, row, start, mask, form, VECTOR)
    return tl.where(mask, value, 0.0)


@triton.jit
def any_decoder(first, table):
    return tl.max((coefficient(first, table, 7) > 0.5).to(tl.int32)) > 0


# Tiles with samples at t = 0 are worked on in as many parts: in float64, the decoder on a whole one
# would not fit the registers.
PARTS = tl.constexpr(8)


@triton.jit
def vlb_kernel(
    pred, var_values, x0, given, stream, loss, partial, table, t, form,
    x0_min: tl.float64, x0_max: tl.float64, half_vlb_scale: tl.float64, simple_scale: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr, CLIP: tl.constexpr, SIMPLE: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    row, _, _ = this_tile(form, ROWS, COLUMNS, VECTOR)
    _, column_program = this_program(form)
    first = coefficients(table, t, row, form)
    sums = tl.zeros((ROWS,), T)
    if any_decoder(first, table):
        of_row = vlb_row(first, table, x0_min, x0_max, T, is_half(pred.tensor), CLIP, True)
        for part in range(column_program, form.column_tiles * PARTS, form.column_programs):
            start = tl.cast(part, tl.int64) * (COLUMNS // PARTS)
            mask = which_exist(row, start, form, COLUMNS // PARTS, VECTOR)
            value = vlb_tile(
                pred, var_values, x0, given, stream, loss, of_row, row, start, mask, form,
                half_vlb_scale, simple_scale, T, VECTOR, 0, CLIP, SIMPLE, True,
            )  # fmt: skip
            sums += tl.sum(value, axis=1)
    else:
        # Of other shapes than `of_row`, hence another name.
        plain = vlb_row(first, table, x0_min, x0_max, T, is_half(pred.tensor), CLIP, False)
        values = tl.zeros((ROWS, COLUMNS), T)
        for tile in range(column_program, form.column_tiles, form.column_programs):
            start = tl.cast(tile, tl.int64) * COLUMNS
            mask = which_exist(row, start, form, COLUMNS, VECTOR)
            value = vlb_tile(
                pred, var_values, x0, given, stream, loss, plain, row, start, mask, form,
                half_vlb_scale, simple_scale, T, VECTOR, BLOCKS, CLIP, SIMPLE, False,
            )  # fmt: skip
            values = add(values, value)
        sums = tl.sum(values, axis=1)
    if partial is not None:
        if not SIMPLE:
            sums *= tl.full((), half_vlb_scale, T)
        store_sums(partial, sums, row, form, BY_ROW)


@triton.jit
def vlb_backward_tile(
    grad, pred, var_values, x0, given, stream, grad_pred, grad_values,
    of_row, row, start, mask, form, vlb_scale, error_scale,
    T: tl.constexpr, VECTOR: tl.constexpr, BLOCKS: tl.constexpr, CLIP: tl.constexpr,
    SIMPLE: tl.constexpr, DETACH: tl.constexpr, DECODER: tl.constexpr,
):  # fmt: skip
    error, _, by_d, by_lv, constant = vlb_parts(
        pred, var_values, x0, given, stream, of_row, row, start, mask, form,
        T, VECTOR, BLOCKS, CLIP, DECODER,
    )  # fmt: skip
    _, _, by_pred, _, _, _, _, _, by_values, _, _ = of_row
    g = load(grad, row, start, mask, form, T, VECTOR)
    along = mul(g, tl.full((1, 1), vlb_scale, T))
    along_values = along * (by_values * -0.5)
    if grad_pred is not None:
        if DETACH:
            total = tl.zeros(mask.shape, T)
        else:
            # An infinite derivative times 0 would be a NaN.
            total = mul(tl.where(constant, 0.0, by_d), along * by_pred)
        if SIMPLE:
            total = fma(error, g * tl.full((1, 1), error_scale, T), total)
        store(grad_pred, total, row, start, mask, form, VECTOR)
    if grad_values is not None:
        store(grad_values, mul(by_lv, along_values), row, start, mask, form, VECTOR)


@triton.jit
def vlb_backward_kernel(
    grad, pred, var_values, x0, given, stream, grad_pred, grad_values, table, t, form,
    x0_min: tl.float64, x0_max: tl.float64, vlb_scale: tl.float64, error_scale: tl.float64,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    BLOCKS: tl.constexpr, CLIP: tl.constexpr, SIMPLE: tl.constexpr, DETACH: tl.constexpr,
):  # fmt: skip
    row, _, _ = this_tile(form, ROWS, COLUMNS, VECTOR)
    _, column_program = this_program(form)
    first = coefficients(table, t, row, form)
    if any_decoder(first, table):
        of_row = vlb_row(first, table, x0_min, x0_max, T, is_half(pred.tensor), CLIP, True)
        for part in range(column_program, form.column_tiles * PARTS, form.column_programs):
            start = tl.cast(part, tl.int64) * (COLUMNS // PARTS)
            mask = which_exist(row, start, form, COLUMNS // PARTS, VECTOR)
            vlb_backward_tile(
                grad, pred, var_values, x0, given, stream, grad_pred, grad_values,
                of_row, row, start, mask, form, vlb_scale, error_scale,
                T, VECTOR, 0, CLIP, SIMPLE, DETACH, True,
            )  # fmt: skip
    else:
        # Of other shapes than `of_row`, hence another name.
        plain = vlb_row(first, table, x0_min, x0_max, T, is_half(pred.tensor), CLIP, False)
        for tile in range(column_program, form.column_tiles, form.column_programs):
            start = tl.cast(tile, tl.int64) * COLUMNS
            mask = which_exist(row, start, form, COLUMNS, VECTOR)
            vlb_backward_tile(
                grad, pred, var_values, x0, given, stream, grad_pred, grad_values,
                plain, row, start, mask, form, vlb_scale, error_scale,
                T, VECTOR, BLOCKS, CLIP, SIMPLE, DETACH, False,
            )  # fmt: skip


def vlb(
    pred: Tensor, var_values: Tensor | None, x0: Tensor, key: Tensor | None, noise: Tensor | None,
    coefficients: Tensor, t: Tensor | None, x0_min: float, x0_max: float,
    vlb_scale: float, simple_scale: float, detach_mean: bool, reduction: int,
) -> Tensor:  # fmt: skip
    out = torch.empty_like(pred) if reduction == NONE else None
    by_sample = reduction == SAMPLE
    pinned = by_sample or varies(coefficients if t is None else t)
    turns = TURNS if out is None else 1
    tiles = Tiles(pred.shape, [pred, var_values, x0, noise, out], key, pinned, turns)
    stream = tiles.stream(key)
    partial = None if out is not None else new_partial(pred, tiles, reduction)
    launch(
        vlb_kernel, tiles.programs, pred.device,
        *map(tiles.operand, (pred, var_values, x0, noise)), stream, tiles.operand(out), partial,
        *tiles.table(coefficients, t), tiles.form, x0_min, x0_max, 0.5 * vlb_scale, simple_scale,
        T=arithmetic(pred), **tiles.meta, BLOCKS=blocks_together(stream, pred.dtype),
        CLIP=clamps(x0_min, x0_max), SIMPLE=simple_scale != 0.0, BY_ROW=by_sample,
    )  # fmt: skip
    return value_of(out, partial, pred, reduction)


def vlb_backward(
    grad: Tensor, pred: Tensor, var_values: Tensor | None, x0: Tensor,
    key: Tensor | None, noise: Tensor | None, coefficients: Tensor, t: Tensor | None,
    x0_min: float, x0_max: float, vlb_scale: float, simple_scale: float, detach_mean: bool,
    reduction: int, output_mask: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    outputs = new_gradients((pred, var_values), output_mask)
    spread = upstream(grad, pred, reduction)
    pinned = varies(coefficients if t is None else t)
    operands = [spread, pred, var_values, x0, noise, *outputs]
    tiles = Tiles(pred.shape, operands, key, pinned, TURNS)
    stream = tiles.stream(key)
    count = divisor(pred.shape, reduction)
    launch(
        vlb_backward_kernel, tiles.programs, pred.device,
        *map(tiles.operand, (spread, pred, var_values, x0, noise)), stream,
        *map(tiles.operand, outputs), *tiles.table(coefficients, t), tiles.form,
        x0_min, x0_max, over(vlb_scale, count), over(2.0 * simple_scale, count),
        T=arithmetic(pred), **tiles.meta, BLOCKS=blocks_together(stream, pred.dtype),
        CLIP=clamps(x0_min, x0_max), SIMPLE=simple_scale != 0.0, DETACH=detach_mean,
    )  # fmt: skip
    return tuple(pred.new_empty(0) if g is None else g for g in outputs)
