"""Uniform and normal numbers from Philox words: csrc/include/genkern/normal.h.

Compiled with `enable_fp_fusion=False`, the float32 normals have the same bits as those of every
other backend. The interpreter's `tl.fma` rounds twice, so there they only come close.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from genkern._triton.philox import join_words, philox_block


@triton.jit
def unit_interval(x):
    """(x + 1/2) 2^-32, rounded twice: in (0, 1]."""
    return tl.fma(x.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)


@triton.jit
def radius(x):
    """sqrt(-2 ln u) for u = unit_interval(x)."""
    bits = unit_interval(x).to(tl.uint32, bitcast=True) - 0x3F3504F3
    e = (bits.to(tl.int32, bitcast=True) >> 23).to(tl.float32)
    mantissa = (bits & 0x007FFFFF) + 0x3F3504F3
    f = mantissa.to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, -0.17481084167957306, 0.2861981987953186)
    p = tl.fma(p, f, -0.29833561182022095)
    p = tl.fma(p, f, 0.3314005434513092)
    p = tl.fma(p, f, -0.3992431163787842)
    p = tl.fma(p, f, 0.5000357031822205)
    p = tl.fma(p, f, -0.6666789650917053)
    p = tl.fma(p, f, 0.9999998211860657)
    p = tl.fma(p, f, -2.0)
    return tl.sqrt_rn(tl.fma(e, -1.3862943649291992, p * f))


@triton.jit
def flip_sign(x, mask):
    """x with its sign bit xored with the top bit of `mask`."""
    sign = mask & 0x80000000
    return (x.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def angle(y):
    """cos(2 pi v) and sin(2 pi v) for v = unit_interval(y)."""
    v = unit_interval(y)
    shifted = tl.fma(v, 4.0, 12582912.0)
    q = shifted.to(tl.uint32, bitcast=True)
    f = tl.fma(shifted - 12582912.0, -0.25, v)
    g = f * f
    s = tl.fma(g, -76.74058532714844, 81.62486267089844)
    s = tl.fma(s, g, -41.341861724853516)
    s = tl.fma(s, g, 6.2831854820251465) * f
    t = tl.fma(g, -83.61853790283203, 64.9222183227539)
    t = tl.fma(t, g, -19.73916244506836)
    t = tl.fma(t, g, 1.0)
    half = q << 30
    odd = half + half
    swap = odd != 0
    cosine = flip_sign(tl.where(swap, s, t), half ^ odd)
    sine = flip_sign(tl.where(swap, t, s), half)
    return cosine, sine


@triton.jit
def box_muller(x, y):
    r = radius(x)
    cosine, sine = angle(y)
    return r * cosine, r * sine


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
def log1p_double(x):
    """log(1 + x): the logarithm of the rounded sum, corrected by what the rounding lost."""
    u = x + 1.0
    return tl.log(u) + (x - (u - 1.0)) / u


@triton.jit
def box_muller_double(w0, w1, w2, w3):
    x = join_words(w0, w1)
    y = join_words(w2, w3)
    upper = x.to(tl.int64, bitcast=True) < 0
    u = tl.where(upper, ~x, x).to(tl.float64) * 5.421010862427522e-20 + 2.710505431213761e-20
    r = tl.sqrt(-2.0 * tl.where(upper, log1p_double(-u), tl.log(u)))
    q = (y + (1 << 61)) >> 62
    f = (y - (q << 62)).to(tl.int64, bitcast=True).to(tl.float64) + 0.5
    theta = f * 3.4061215800865545e-19
    s = tl.sin(theta)
    c = tl.cos(theta)
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
        n0, n1 = box_muller_double(w0, w1, w2, w3)
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
        seed, offset: The key's words, (1, 1) or (rows, 1).
        start: Index in the stream of the row's first column, (rows, 1).
        BLOCKS: Whether every `start` is the first element of a block. Then a block is computed
            once for all of its elements; otherwise once for each.
    """
    PER_BLOCK: tl.constexpr = 2 if T == tl.float64 else 4
    if BLOCKS:
        index = start // PER_BLOCK + tl.arange(0, COLUMNS // PER_BLOCK)[None, :]
        w0, w1, w2, w3 = philox_block(seed, offset, index)
        if T == tl.float64:
            n0, n1 = draws_double(w0, w1, w2, w3, NORMAL)
            return tl.interleave(n0, n1)
        else:
            n0, n1, n2, n3 = draws(w0, w1, w2, w3, NORMAL)
            return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
    else:
        element = start + tl.arange(0, COLUMNS)[None, :]
        lane = (element % PER_BLOCK).to(tl.int32)
        w0, w1, w2, w3 = philox_block(seed, offset, element // PER_BLOCK)
        if T == tl.float64:
            n0, n1 = draws_double(w0, w1, w2, w3, NORMAL)
            return tl.where(lane == 0, n0, n1)
        else:
            return draw_one(w0, w1, w2, w3, lane, NORMAL)
