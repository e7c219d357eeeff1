"""Elementary functions in Triton: csrc/include/genkern/math.h.

In float32 `tl.exp` and `tl.exp2` compile to an approximation whose error grows with the argument.
For what is rounded to 16 bits (HALF) it is good enough; else arguments are reduced.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from genkern._triton.normal import log1p_small
from genkern._triton.ptx import add, fma, mul, sub

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def at_least(x, low):
    """The larger of the two, NaN kept."""
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, high):
    """The smaller of the two, NaN kept."""
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp(x, lo, hi):
    """lo <= x <= hi, NaN kept."""
    return at_most(at_least(x, lo), hi)


@triton.jit
def clamp_gradient(x, gradient, lo, hi):
    """`gradient` where x is inside or at the bounds, 0 outside; NaN counts as inside."""
    return tl.where((x < lo) | (x > hi), 0.0, gradient)


@triton.jit
def divide(x, y):
    """x / y, correctly rounded: in float32 the plain operator is an approximation."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def exp_single(x):
    """e^x in float32 for -1000 <= x <= 88.72284, where it is infinite; below 2^-126 it is 0.

    As precise as the hardware's 2^y, like CUDA's expf: the rounding error of y = x log2 e is made
    good.
    """
    y = mul(x, LOG2_E)
    rest = fma(y, 1.9046542121259336e-09, fma(y, -0.6931471824645996, x))
    e = tl.exp2(y)
    return fma(e, rest, e)


@triton.jit
def exp_polynomial(x):
    """e^x in float32 within 1.5 ulp for x <= 88, with NaN kept; below 2^-125 it is 0."""
    x = at_least(x, -87.5)
    # n = round(x log2 e), with 126 added; with the bound it is at least -126.
    shifted = fma(x, 1.4426950216293335, 12583038.0)
    minus_n = sub(12583038.0, shifted)
    r = fma(minus_n, 1.428606765330187e-06, fma(minus_n, 0.693145751953125, x))
    p = fma(r, 0.001381459878757596, 0.008368716575205326)
    p = fma(p, r, 0.04166838899254799)
    p = fma(p, r, 0.1666652113199234)
    p = fma(p, r, 0.4999999403953552)
    p = add(fma(mul(p, r), r, r), 1.0)
    # By 2 and 2^(n-1): shifted left, all that stays of `shifted` is n + 126.
    scale = (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
    return mul(add(p, p), scale)


@triton.jit
def exp(x, HALF: tl.constexpr, FACTOR: tl.constexpr = 1.0):
    """e^(FACTOR x); HALF: within (4 + |FACTOR x|) 2^-23.7 of it."""
    if HALF:
        return tl.exp2(mul(x, FACTOR * LOG2_E))
    elif x.dtype == tl.float64:
        return tl.exp(x * FACTOR)
    else:
        return exp_single(clamp(x * FACTOR, -1000.0, 88.72283935546875))


@triton.constexpr_function
def largest_exponent(x):
    """Largest number whose exponential is finite in the type of x."""
    return 709.0 if x.dtype == tl.float64 else 88.0


@triton.jit
def exp_finite(x, HALF: tl.constexpr, FACTOR: tl.constexpr):
    """As `exp`, where FACTOR x is bounded by `largest_exponent`."""
    if HALF or x.dtype == tl.float64:
        return exp(x, HALF, FACTOR)
    else:
        return exp_single(at_least(mul(x, FACTOR), -1000.0))


@triton.jit
def exp_saturated(x, HALF: tl.constexpr, FACTOR: tl.constexpr):
    """e^(FACTOR x), saturated where it would be infinite: 0 times it is 0.

    More precise than `exp`, since its fourth power is used.
    """
    if HALF:
        y = mul(x, FACTOR * LOG2_E)
        return tl.exp2(at_most(y, 127.0))
    elif x.dtype == tl.float64:
        return tl.exp(at_most(x * FACTOR, largest_exponent(x)))
    else:
        return exp_polynomial(at_most(x * FACTOR, largest_exponent(x)))


@triton.jit
def expm1_series(x, HALF: tl.constexpr, FACTOR: tl.constexpr):
    """Where |r| < 1/2, r = FACTOR x, and e^r - 1 - r there. HALF: within 2^-20."""
    if x.dtype == tl.float64:
        x *= FACTOR
        p = fma(x, 1.0 / 1307674368000.0, 1.0 / 87178291200.0)
        p = fma(p, x, 1.0 / 6227020800.0)
        p = fma(p, x, 1.0 / 479001600.0)
        p = fma(p, x, 1.0 / 39916800.0)
        p = fma(p, x, 1.0 / 3628800.0)
        p = fma(p, x, 1.0 / 362880.0)
        p = fma(p, x, 1.0 / 40320.0)
        p = fma(p, x, 1.0 / 5040.0)
        p = fma(p, x, 1.0 / 720.0)
        p = fma(p, x, 1.0 / 120.0)
        p = fma(p, x, 1.0 / 24.0)
        p = fma(p, x, 1.0 / 6.0)
        p = fma(p, x, 0.5)
        square = x * x
        return square < 0.25, square * p
    else:
        if HALF:
            p = fma(x, 0.0013914653100073338 * FACTOR**6, 0.00839541107416153 * FACTOR**5)
            p = fma(p, x, 0.041667476296424866 * FACTOR**4)
            p = fma(p, x, 0.16666279733181 * FACTOR**3)
        else:
            p = fma(x, 0.0001987562864087522 * FACTOR**7, 0.0013981997035443783 * FACTOR**6)
            p = fma(p, x, 0.008333452045917511 * FACTOR**5)
            p = fma(p, x, 0.04166579619050026 * FACTOR**4)
            p = fma(p, x, 0.1666666567325592 * FACTOR**3)
        p = fma(p, x, 0.5 * FACTOR**2)
        square = mul(x, x)
        return square < 0.25 / FACTOR**2, mul(square, p)


@triton.jit
def expm1(x, far, HALF: tl.constexpr, FACTOR: tl.constexpr = 1.0):
    """e^r - 1, r = FACTOR x, `far` from 0 the exponential less 1, which cancels near 0.

    HALF: the series is closer than what `far` cancels to.
    """
    near, series = expm1_series(x, HALF, FACTOR)
    return tl.where(near, fma(x, FACTOR, series), far)


@triton.jit
def expm1_minus(x, far, HALF: tl.constexpr, FACTOR: tl.constexpr = 1.0):
    """e^r - 1 - r, as `expm1`; x is finite where `far` is infinite: their difference is a NaN."""
    near, series = expm1_series(x, HALF, FACTOR)
    return tl.where(near, series, fma(x, -FACTOR, far))


@triton.jit
def log1p_exp(e):
    """log(1 + e) for e in [0, 1]. The quotient may be 2 ulp off: `div_rn` is a call."""
    if e.dtype == tl.float64:
        # Above sqrt(2) - 1, 1 + e is 2 (1 + f) with f = (e - 1) / 2, exactly.
        high = e > 0.41421356237309503
        f = tl.where(high, (e - 1.0) * 0.5, e)
        return fma(high.to(tl.float64), 0.6931471805599453, log1p_small(f))
    else:
        s = e / add(e, 2.0)
        q = mul(s, s)
        p = fma(q, 0.2817833125591278, 0.27960604429244995)
        p = fma(p, q, 0.40024909377098083)
        p = fma(p, q, 0.6666631698608398)
        p = fma(p, q, 2.0)
        return mul(p, s)


@triton.jit
def erfcx(x):
    """e^(x^2) erfc(x) for x >= 0 in float64, within 1e-15."""
    # (1 + 2 x) erfcx(x) is between 1 and 1.24, and smooth in t, which takes [0, inf] to [-1, 1]
    # (Shepherd and Laframboise, Math. Comp. 36, 1981): its Chebyshev series, cut off at 3e-17.
    x = tl.minimum(x, 1e150)
    # The quotients by x + 4 and by 1 + 2 x, at the price of one.
    inverse = 1.0 / ((x + 4.0) * (x + x + 1.0))
    t = (x - 4.0) * ((x + x + 1.0) * inverse)
    p = fma(t, 1.5738283774192037e-09, -6.9926126813398e-09)
    p = fma(p, t, -1.6371779763566967e-08)
    p = fma(p, t, 9.295292277973951e-08)
    p = fma(p, t, 7.115337800585303e-08)
    p = fma(p, t, -8.020193766522085e-07)
    p = fma(p, t, 2.9801353803031333e-07)
    p = fma(p, t, 5.689537732302816e-06)
    p = fma(p, t, -1.1225101875659178e-05)
    p = fma(p, t, -2.438779085759055e-05)
    p = fma(p, t, 0.00015062309720018628)
    p = fma(p, t, -0.00019926095315041177)
    p = fma(p, t, -0.000757773707063825)
    p = fma(p, t, 0.005031971002298884)
    p = fma(p, t, -0.016197733981455194)
    p = fma(p, t, 0.03716751538635946)
    p = fma(p, t, -0.06633036582031154)
    p = fma(p, t, 0.09373283501077742)
    p = fma(p, t, -0.10103906603586531)
    p = fma(p, t, 0.06809705425421975)
    p = fma(p, t, 0.015379652102610473)
    p = fma(p, t, -0.1396211168405572)
    p = fma(p, t, 1.2329951186255526)
    return p * ((x + 4.0) * inverse)
