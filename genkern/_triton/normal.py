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
def fma_saturated(a, b, c):
    """a b + c in [0, 1]; 0 for NaN."""
    return tl.inline_asm_elementwise(
        "fma.rn.sat.f32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], tl.float32, True, 1
    )


@triton.jit
def square_root(a):
    """sqrt(a), rounded correctly, of 0 and of numbers from 2^-101 to 1."""
    if cuda_arch() > 0 and cuda_arch() <= 100:
        # normal.h's refined_root: without the branch that sqrt_rn has for smaller numbers. For 0,
        # whose y is infinite, the sum is NaN.
        y = tl.rsqrt(a)
        root = mul(a, y)
        return fma_saturated(fma(mul(root, -1.0), root, a), mul(y, 0.5), root)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def radius(x):
    """sqrt(-2 ln u) / 8 for u = unit_interval(x): below 1.

    `angle` makes up for the 8. Powers of two, they change no other bit of normal.h's numbers.
    """
    bits = unit_interval(x).to(tl.uint32, bitcast=True)
    exponent = (bits - 0x3F3504F3) & 0xFF800000
    e = exponent.to(tl.int32, bitcast=True).to(tl.float32)
    f = sub((bits - exponent).to(tl.float32, bitcast=True), 1.0)
    p = fma(f, -0.17481084167957306 / 64, 0.2861981987953186 / 64)
    p = fma(p, f, -0.29833561182022095 / 64)
    p = fma(p, f, 0.3314005434513092 / 64)
    p = fma(p, f, -0.3992431163787842 / 64)
    p = fma(p, f, 0.5000357031822205 / 64)
    p = fma(p, f, -0.6666789650917053 / 64)
    p = fma(p, f, 0.9999998211860657 / 64)
    log_m = fma(f, -2.0 / 64, mul(p, mul(f, f)))
    return square_root(fma(e, -1.6525916635146132e-07 / 64, log_m))


@triton.jit
def angle(y):
    """8 cos and 8 sin of 2 pi v, 4 v = quarter_turns(y), but for a common sign: the third value."""
    w = quarter_turns(y)
    shifted = add(w, 12582912.0)
    f = add(w, sub(12582912.0, shifted))
    half = shifted.to(tl.uint32, bitcast=True) << 30
    odd = (half & 0x40000000) != 0
    g = mul(f, f)
    s = fma(g, -0.004683873616158962 * 8, 0.07971177995204926 * 8)
    s = fma(s, g, -0.6459665894508362 * 8)
    s = mul(fma(s, g, 1.5707963705062866 * 8), f)
    t = fma(g, -0.0204146821051836 * 8, 0.25360241532325745 * 8)
    t = fma(t, g, -1.2336976528167725 * 8)
    t = fma(t, g, 8.0)
    return tl.where(odd, s * -1.0, t), tl.where(odd, t, s), half & 0x80000000


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
def flip_sign_double(x, mask):
    """x with the sign bit of its upper word xored with `mask`, which has no other bit."""
    return (x.to(tl.uint64, bitcast=True) ^ (mask.to(tl.uint64) << 32)).to(tl.float64, bitcast=True)


@triton.jit
def approximation(OPERATION: tl.constexpr, x):
    """20 bits of 1 / x or 1 / sqrt(x) in float64."""
    return tl.inline_asm_elementwise(
        OPERATION + ".approx.ftz.f64 $0, $1;", "=d,d", [x], tl.float64, True, 1
    )


@triton.jit
def ratio(a, b):
    """a / b in float64 within 2 ulp, for b from 2^-1000 to 2^1000."""
    if cuda_arch() > 0:
        # Rounded correctly, it would have branches.
        y = approximation("rcp", b)
        e = fma(b * -1.0, y, 1.0)
        return a * fma(y, fma(e, e, e), y)
    else:
        return a / b


@triton.jit
def root(a):
    """sqrt(a) in float64 within 2 ulp, for a from 2^-1000 to 2^1000."""
    if cuda_arch() > 0:
        y = approximation("rsqrt", a)
        g = a * y
        e = fma(g * -1.0, y, 1.0)
        return fma(g * e, fma(e, 0.375, 0.5), g)
    else:
        return tl.sqrt(a)


@triton.jit
def log1p_small(f, FACTOR: tl.constexpr = 1.0):
    """FACTOR log(1 + f) in float64 for sqrt(1/2) <= 1 + f <= sqrt(2); FACTOR: 1 or -2."""
    # 2 atanh(s) = s (2 + q p(q)), q = s^2, p minimax: 2^-59 of the whole.
    s = ratio(f, f + 2.0)
    q = s * s
    p = fma(q, 0.14795488561115577 * FACTOR, 0.1531409757369574 * FACTOR)
    p = fma(p, q, 0.1818356245135015 * FACTOR)
    p = fma(p, q, 0.22222198609955557 * FACTOR)
    p = fma(p, q, 0.28571428742022964 * FACTOR)
    p = fma(p, q, 0.3999999999941634 * FACTOR)
    p = fma(p, q, 0.6666666666666734 * FACTOR)
    return s * fma(p, q, 2.0 * FACTOR)


@triton.jit
def sine_double(x):
    """sin x for |x| <= pi/4: minimax, 2^-56 of the whole."""
    g = x * x
    p = fma(g, 1.5896230180687828e-10, -2.505074776333573e-08)
    p = fma(p, g, 2.7557313621389356e-06)
    p = fma(p, g, -0.0001984126982958955)
    p = fma(p, g, 0.008333333333322118)
    p = fma(p, g, -0.1666666666666663)
    return fma(x * g, p, x)


@triton.jit
def cosine_double(x):
    """cos x for |x| <= pi/4: minimax, 2^-59 of the whole."""
    g = x * x
    p = fma(g, -1.1358536508219977e-11, 2.087570084165005e-09)
    p = fma(p, g, -2.7557314179293617e-07)
    p = fma(p, g, 2.480158728885169e-05)
    p = fma(p, g, -0.0013888888888873056)
    p = fma(p, g, 0.041666666666666595)
    return fma(g * g, p, fma(g, -0.5, 1.0))


@triton.jit
def radius_double(x):
    """sqrt(-2 ln u), u = (x + 1/2) 2^-64, with full relative precision at both ends."""
    high = (x >> 32).to(tl.uint32)
    # u, less 1 where that is at least 1/2: there it has the precision that u lacks.
    rest = fma(
        x.to(tl.int64, bitcast=True).to(tl.float64), 5.421010862427522e-20, 2.710505431213761e-20
    )
    u = rest + tl.where(high >= 0x80000000, 1.0, 0.0).to(tl.float64)
    # u = 2^e (1 + f), with 1 + f in [sqrt(1/2), sqrt(2)): as in `radius`, by the upper word.
    bits = u.to(tl.uint64, bitcast=True)
    exponent = ((bits >> 32).to(tl.uint32) - 0x3FE6A09E) & 0xFFF00000
    m = join_words((bits >> 32).to(tl.uint32) - exponent, bits.to(tl.uint32))
    # From sqrt(1/2) on e is 0.
    f = tl.where(high >= 0xB504F334, rest, m.to(tl.float64, bitcast=True) - 1.0)
    e = exponent.to(tl.int32, bitcast=True).to(tl.float64)
    return root(fma(e, -1.3220733271788507e-06, log1p_small(f, -2.0)))


@triton.jit
def box_muller_double(x, y):
    """The two normals of a pair of 64-bit words."""
    # v = (y + 1/2) 2^-64 less its nearest quarter turn, the top two bits of `turns`.
    turns = (y >> 32).to(tl.uint32) + 0x20000000
    rest = (y << 2).to(tl.int64, bitcast=True).to(tl.float64)
    theta = fma(rest, 8.515303950216386e-20, 1.7030607900432772e-19)  # 2 pi 2^-66, 2 pi 2^-65
    # As in `angle`.
    odd = (turns & 0x40000000) != 0
    h = flip_sign_double(theta, (turns << 1) & 0x80000000)
    s = sine_double(h)
    c = cosine_double(h)
    r = flip_sign_double(radius_double(x), turns & 0x80000000)
    return r * tl.where(odd, s, c), r * tl.where(odd, c, s)


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
