"""Uniform and normal numbers from Philox words: csrc/include/genkern/normal.h.

Compiled with `enable_fp_fusion=False`, the float32 normals have the same bits as those of every
other backend; in the interpreter too, where `tl.fma` rounds once (Triton 3.9; 3.4 rounds twice).
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from genkern._triton.philox import join_words, philox_block
from genkern._triton.ptx import add, cuda_arch, fma, mul, sub


@triton.jit
def unit_interval(x):
    """(x + 1/2) 2^-32, rounded twice: in (0, 1]."""
    return fma(x.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)


@triton.jit
def quarter_turns(y):
    """4 unit_interval(y): the scaling is exact."""
    return fma(y.to(tl.float32), 9.313225746154785e-10, 4.656612873077393e-10)


@triton.jit
def flip_sign(x, mask):
    """x with its sign bit xored with `mask`, which has no other bit."""
    return (x.to(tl.uint32, bitcast=True) ^ mask).to(tl.float32, bitcast=True)


@triton.jit
def square_root(a):
    """sqrt(a), rounded correctly, of 0 and of numbers from 2^-101 on."""
    if cuda_arch() > 0 and cuda_arch() <= 100:
        # normal.h's refined_root: without the branch that sqrt_rn has for smaller numbers.
        y = tl.minimum(tl.rsqrt(a), 9223372036854775808.0)  # finite for 0
        root = mul(a, y)
        return fma(fma(mul(root, -1.0), root, a), mul(y, 0.5), root)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def radius(x):
    """sqrt(-2 ln u) for u = unit_interval(x)."""
    bits = unit_interval(x).to(tl.uint32, bitcast=True)
    exponent = (bits - 0x3F3504F3) & 0xFF800000
    e = exponent.to(tl.int32, bitcast=True).to(tl.float32)
    f = sub((bits - exponent).to(tl.float32, bitcast=True), 1.0)
    p = fma(f, -0.17481084167957306, 0.2861981987953186)
    p = fma(p, f, -0.29833561182022095)
    p = fma(p, f, 0.3314005434513092)
    p = fma(p, f, -0.3992431163787842)
    p = fma(p, f, 0.5000357031822205)
    p = fma(p, f, -0.6666789650917053)
    p = fma(p, f, 0.9999998211860657)
    log_m = fma(f, -2.0, mul(p, mul(f, f)))
    return square_root(fma(e, -1.6525916635146132e-07, log_m))


@triton.jit
def angle(y):
    """cos and sin of 2 pi v, 4 v = quarter_turns(y), but for a common sign: the third value."""
    w = quarter_turns(y)
    shifted = add(w, 12582912.0)
    f = add(w, sub(12582912.0, shifted))
    half = shifted.to(tl.uint32, bitcast=True) << 30
    odd = half + half
    h = flip_sign(f, odd)
    g = mul(f, f)
    s = fma(g, -0.004683873616158962, 0.07971177995204926)
    s = fma(s, g, -0.6459665894508362)
    s = mul(fma(s, g, 1.5707963705062866), h)
    t = fma(g, -0.0204146821051836, 0.25360241532325745)
    t = fma(t, g, -1.2336976528167725)
    t = fma(t, g, 1.0)
    swap = odd != 0
    return tl.where(swap, s, t), tl.where(swap, t, s), half & 0x80000000


@triton.jit
def box_muller(x, y):
    """The two normals of a pair of words: r cos 2 pi v and r sin 2 pi v."""
    cosine, sine, sign = angle(y)
    r = flip_sign(radius(x), sign)
    return mul(r, cosine), mul(r, sine)


@triton.jit
def uniform_float(w):
    """Low 24 bits times 2^-24."""
    return (w & 0x00FFFFFF).to(tl.float32) * 5.960464477539063e-08


@triton.jit
def uniform_double(high, low):
    """Low 53 bits times 2^-53."""
    low_bits = join_words(high, low) & 0x1FFFFFFFFFFFFF
    return low_bits.to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def log1p_small(f):
    """log(1 + f) in float64 for sqrt(1/2) <= 1 + f <= sqrt(2)."""
    # 2 atanh(s) = 2 s (1 + q / 3 + q^2 / 5 + ...), q = s^2 <= 0.0295: the first term left out is
    # q^11 / 23 < 2^-60 of the sum.
    s = f / (f + 2.0)
    q = s * s
    p = tl.fma(q, 1.0 / 21.0, 1.0 / 19.0)
    p = tl.fma(p, q, 1.0 / 17.0)
    p = tl.fma(p, q, 1.0 / 15.0)
    p = tl.fma(p, q, 1.0 / 13.0)
    p = tl.fma(p, q, 1.0 / 11.0)
    p = tl.fma(p, q, 1.0 / 9.0)
    p = tl.fma(p, q, 1.0 / 7.0)
    p = tl.fma(p, q, 1.0 / 5.0)
    p = tl.fma(p, q, 1.0 / 3.0)
    s = s + s
    return tl.fma(s * q, p, s)


@triton.jit
def sine_double(x):
    """sin x for |x| <= pi/4: Taylor to x^17 / 17!, the next term is below 2^-62 of the sum."""
    g = x * x
    p = tl.fma(g, 1.0 / 355687428096000.0, -1.0 / 1307674368000.0)
    p = tl.fma(p, g, 1.0 / 6227020800.0)
    p = tl.fma(p, g, -1.0 / 39916800.0)
    p = tl.fma(p, g, 1.0 / 362880.0)
    p = tl.fma(p, g, -1.0 / 5040.0)
    p = tl.fma(p, g, 1.0 / 120.0)
    p = tl.fma(p, g, -1.0 / 6.0)
    return tl.fma(x * g, p, x)


@triton.jit
def cosine_double(x):
    """cos x for |x| <= pi/4: Taylor to x^16 / 16!, the next term is below 2^-57 of the sum."""
    g = x * x
    p = tl.fma(g, 1.0 / 20922789888000.0, -1.0 / 87178291200.0)
    p = tl.fma(p, g, 1.0 / 479001600.0)
    p = tl.fma(p, g, -1.0 / 3628800.0)
    p = tl.fma(p, g, 1.0 / 40320.0)
    p = tl.fma(p, g, -1.0 / 720.0)
    p = tl.fma(p, g, 1.0 / 24.0)
    return tl.fma(g * g, p, tl.fma(g, -0.5, 1.0))


@triton.jit
def radius_double(x):
    """sqrt(-2 ln u), u = (x + 1/2) 2^-64, with full relative precision at both ends."""
    upper = x.to(tl.int64, bitcast=True) < 0
    w = tl.where(upper, ~x, x).to(tl.float64) * 5.421010862427522e-20 + 2.710505431213761e-20
    # u = w, or 1 - w if upper. As 2^e (1 + f), with 1 + f in [sqrt(1/2), sqrt(2)):
    bits = w.to(tl.int64, bitcast=True) - 0x3FE6A09E667F3BCC  # the bits of sqrt(1/2)
    mantissa = (bits & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCC
    near_1 = w <= 0.2928932188134524
    f_upper = tl.where(near_1, -w, 1.0 - (w + w))
    f = tl.where(upper, f_upper, mantissa.to(tl.float64, bitcast=True) - 1.0)
    e = tl.where(upper, tl.where(near_1, 0, -1), (bits >> 52).to(tl.int32)).to(tl.float64)
    return tl.sqrt(-2.0 * tl.fma(e, 0.6931471805599453, log1p_small(f)))


@triton.jit
def box_muller_double(x, y):
    """The two normals of a pair of 64-bit words."""
    r = radius_double(x)
    # v = (y + 1/2) 2^-64 less its nearest quarter turn, before it is rounded.
    q = (y + (1 << 61)) >> 62
    rest = (y - (q << 62)).to(tl.int64, bitcast=True)
    theta = (rest.to(tl.float64) + 0.5) * 3.4061215800865545e-19  # 2 pi 2^-64
    s = sine_double(theta)
    c = cosine_double(theta)
    odd = (q & 1) != 0
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    return (
        r * tl.where(((q + 1) & 2) != 0, -cosine, cosine),
        r * tl.where((q & 2) != 0, -sine, sine),
    )


@triton.jit
def draws(w0, w1, w2, w3, NORMAL: tl.constexpr):
    """The four float32 numbers of a block."""
    if NORMAL:
        n0, n1 = box_muller(w0, w1)
        n2, n3 = box_muller(w2, w3)
    else:
        n0 = uniform_float(w0)
        n1 = uniform_float(w1)
        n2 = uniform_float(w2)
        n3 = uniform_float(w3)
    return n0, n1, n2, n3


@triton.jit
def draws_double(w0, w1, w2, w3, NORMAL: tl.constexpr):
    """The two float64 numbers of a block."""
    if NORMAL:
        n0, n1 = box_muller_double(join_words(w0, w1), join_words(w2, w3))
    else:
        n0 = uniform_double(w0, w1)
        n1 = uniform_double(w2, w3)
    return n0, n1


@triton.jit
def draw_one(w0, w1, w2, w3, lane, NORMAL: tl.constexpr):
    """The float32 number of lane `lane` alone: only its pair of words is worked on."""
    first = lane < 2
    x = tl.where(first, w0, w2)
    y = tl.where(first, w1, w3)
    if NORMAL:
        a, b = box_muller(x, y)
    else:
        a = uniform_float(x)
        b = uniform_float(y)
    return tl.where((lane & 1) == 0, a, b)


@triton.jit
def noise_tile(
    seed, offset, start, COLUMNS: tl.constexpr, T: tl.constexpr, BLOCKS: tl.constexpr,
    NORMAL: tl.constexpr,
):  # fmt: skip
    """Elements start .. start + COLUMNS of each row's stream.

    Args:
        seed, offset: The key's words, scalars or (rows, 1).
        start: Index in the stream of the row's first column, (rows, 1).
        BLOCKS: How many neighbouring blocks a thread works on, so that it ends up with the elements
            that it loads and stores at once; 0 where a row may start inside a block, and each
            element computes its own.
    """
    PER_BLOCK: tl.constexpr = 2 if T == tl.float64 else 4
    SHIFT: tl.constexpr = 1 if T == tl.float64 else 2
    if BLOCKS == 0:
        element = start + tl.arange(0, COLUMNS)[None, :]
        lane = (element % PER_BLOCK).to(tl.int32)
        w0, w1, w2, w3 = philox_block(seed, offset, element // PER_BLOCK)
        if T == tl.float64:
            n0, n1 = draws_double(w0, w1, w2, w3, NORMAL)
            return tl.where(lane == 0, n0, n1)
        else:
            return draw_one(w0, w1, w2, w3, lane, NORMAL)
    else:
        first = tl.arange(0, COLUMNS // PER_BLOCK // BLOCKS)[None, :] * BLOCKS
        w0, w1, w2, w3 = philox_block(seed, offset, (start >> SHIFT) + first)
        if T == tl.float64:
            n0, n1 = draws_double(w0, w1, w2, w3, NORMAL)
            return tl.interleave(n0, n1)
        else:
            n0, n1, n2, n3 = draws(w0, w1, w2, w3, NORMAL)
            if BLOCKS == 2:
                w0, w1, w2, w3 = philox_block(seed, offset, (start >> SHIFT) + first + 1)
                n4, n5, n6, n7 = draws(w0, w1, w2, w3, NORMAL)
                n0 = tl.interleave(n0, n4)
                n1 = tl.interleave(n1, n5)
                n2 = tl.interleave(n2, n6)
                n3 = tl.interleave(n3, n7)
            return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
