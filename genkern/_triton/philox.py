"""Philox4x32-10 in Triton: csrc/include/genkern/philox.h."""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from genkern._triton.ptx import wide_product

M0 = tl.constexpr(0xD2511F53)
M1 = tl.constexpr(0xCD9E8D57)
W0 = tl.constexpr(0x9E3779B9)
W1 = tl.constexpr(0xBB67AE85)
ROUNDS = tl.constexpr(10)


@triton.jit
def words_of(x):
    """The low and the high 32 bits of a 64-bit integer."""
    x = x.to(tl.uint64)
    return x.to(tl.uint32), (x >> 32).to(tl.uint32)


@triton.jit
def philox_block(seed, offset, index):
    """Block `index` of a key's stream: four uint32 words."""
    k0, k1 = words_of(seed)
    c0, c1 = words_of(offset.to(tl.uint64) + index.to(tl.uint64))
    c2 = tl.zeros_like(c0)
    c3 = c2
    for _ in tl.static_range(ROUNDS):
        low0, high0 = words_of(wide_product(c0, M0))
        low1, high1 = words_of(wide_product(c2, M1))
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += W0
        k1 += W1
    return c0, c1, c2, c3


@triton.jit
def join_words(high, low):
    return (high.to(tl.uint64) << 32) | low.to(tl.uint64)
