"""Elementary functions in Triton: csrc/include/genkern/math.h.

float32 has own polynomials, because `tl.exp` compiles to an approximation whose error grows with
the argument; float64 has `tl.exp`, which compiles to the vendor's accurate function.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from genkern._triton.normal import log1p_small


@triton.jit
def clamp(x, lo, hi):
    """lo <= x <= hi, NaN kept."""
    return tl.where(x < lo, lo, tl.where(x > hi, hi, x))


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
def exp(x):
    """e^x within 1.5 ulp, with overflow to infinity and NaN kept; below 2^-125 it is 0."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        y = tl.maximum(x, -87.5, propagate_nan=tl.PropagateNan.ALL)
        y = tl.minimum(y, 89.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = tl.fma(y, 1.4426950216293335, 12582912.0)
        n = shifted - 12582912.0
        r = tl.fma(n, -1.428606765330187e-06, tl.fma(n, -0.693145751953125, y))
        p = tl.fma(r, 0.001381459878757596, 0.008368716575205326)
        p = tl.fma(p, r, 0.04166838899254799)
        p = tl.fma(p, r, 0.1666652113199234)
        p = tl.fma(p, r, 0.4999999403953552)
        p = tl.fma(p * r, r, r) + 1.0
        # By 2 and 2^(n-1): shifted left, all that stays of `shifted` is n.
        scale = (shifted.to(tl.int32, bitcast=True) << 23) + (126 << 23)
        return (p + p) * scale.to(tl.float32, bitcast=True)


@triton.jit
def exp_saturated(x):
    """e^x, saturated where it would be infinite: 0 times it is 0."""
    if x.dtype == tl.float64:
        return exp(tl.minimum(x, 709.0, propagate_nan=tl.PropagateNan.ALL))
    else:
        return exp(tl.minimum(x, 88.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def expm1(x, e):
    """e^x - 1, and e^x - 1 - x, which cancels near 0, hence the series; given e = e^x."""
    if x.dtype == tl.float64:
        p = tl.fma(x, 1.0 / 1307674368000.0, 1.0 / 87178291200.0)
        p = tl.fma(p, x, 1.0 / 6227020800.0)
        p = tl.fma(p, x, 1.0 / 479001600.0)
        p = tl.fma(p, x, 1.0 / 39916800.0)
        p = tl.fma(p, x, 1.0 / 3628800.0)
        p = tl.fma(p, x, 1.0 / 362880.0)
        p = tl.fma(p, x, 1.0 / 40320.0)
        p = tl.fma(p, x, 1.0 / 5040.0)
        p = tl.fma(p, x, 1.0 / 720.0)
        p = tl.fma(p, x, 1.0 / 120.0)
        p = tl.fma(p, x, 1.0 / 24.0)
        p = tl.fma(p, x, 1.0 / 6.0)
        p = tl.fma(p, x, 0.5)
    else:
        p = tl.fma(x, 0.0001987562864087522, 0.0013981997035443783)
        p = tl.fma(p, x, 0.008333452045917511)
        p = tl.fma(p, x, 0.04166579619050026)
        p = tl.fma(p, x, 0.1666666567325592)
        p = tl.fma(p, x, 0.5)
    near = tl.abs(x) < 0.5
    series, far = x * x * p, e - 1.0
    # e^88 absorbs 88 in either precision: the bound only keeps infinity minus infinity away.
    finite = tl.minimum(x, 88.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(near, x + series, far), tl.where(near, series, far - finite)


@triton.jit
def log1p_exp(e):
    """log(1 + e) for e in [0, 1]. The quotient may be 2 ulp off: `div_rn` is a call."""
    if e.dtype == tl.float64:
        # Above sqrt(2) - 1, 1 + e is 2 (1 + f) with f = (e - 1) / 2, exactly.
        high = e > 0.41421356237309503
        f = tl.where(high, (e - 1.0) * 0.5, e)
        return tl.fma(high.to(tl.float64), 0.6931471805599453, log1p_small(f))
    else:
        s = e / (e + 2.0)
        q = s * s
        p = tl.fma(q, 0.2817833125591278, 0.27960604429244995)
        p = tl.fma(p, q, 0.40024909377098083)
        p = tl.fma(p, q, 0.6666631698608398)
        p = tl.fma(p, q, 2.0)
        return p * s


@triton.jit
def erfcx(x):
    """e^(x^2) erfc(x) for x >= 0 in float64, within 1e-15."""
    # (1 + 2 x) erfcx(x) is between 1 and 1.24, and smooth in t, which takes [0, inf] to [-1, 1]
    # (Shepherd and Laframboise, Math. Comp. 36, 1981): its Chebyshev series, cut off at 3e-17.
    x = tl.minimum(x, 1e150)
    # The quotients by x + 4 and by 1 + 2 x, at the price of one.
    inverse = 1.0 / ((x + 4.0) * (x + x + 1.0))
    t = (x - 4.0) * ((x + x + 1.0) * inverse)
    p = tl.fma(t, 1.5738283774192037e-09, -6.9926126813398e-09)
    p = tl.fma(p, t, -1.6371779763566967e-08)
    p = tl.fma(p, t, 9.295292277973951e-08)
    p = tl.fma(p, t, 7.115337800585303e-08)
    p = tl.fma(p, t, -8.020193766522085e-07)
    p = tl.fma(p, t, 2.9801353803031333e-07)
    p = tl.fma(p, t, 5.689537732302816e-06)
    p = tl.fma(p, t, -1.1225101875659178e-05)
    p = tl.fma(p, t, -2.438779085759055e-05)
    p = tl.fma(p, t, 0.00015062309720018628)
    p = tl.fma(p, t, -0.00019926095315041177)
    p = tl.fma(p, t, -0.000757773707063825)
    p = tl.fma(p, t, 0.005031971002298884)
    p = tl.fma(p, t, -0.016197733981455194)
    p = tl.fma(p, t, 0.03716751538635946)
    p = tl.fma(p, t, -0.06633036582031154)
    p = tl.fma(p, t, 0.09373283501077742)
    p = tl.fma(p, t, -0.10103906603586531)
    p = tl.fma(p, t, 0.06809705425421975)
    p = tl.fma(p, t, 0.015379652102610473)
    p = tl.fma(p, t, -0.1396211168405572)
    p = tl.fma(p, t, 1.2329951186255526)
    return p * ((x + 4.0) * inverse)
