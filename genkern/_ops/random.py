"""Noise as operators: Philox4x32-10 and Box-Muller, the reference in PyTorch and the specs.

The reference computes on int64 tensors that hold unsigned words, and rounds as the kernels do: its
fused multiply-add is emulated (`_fma`), so its float32 normals have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genkern._ops.op import Op, Sample

_MASK = 0xFFFFFFFF
# Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.
_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def new_words(
    batch: int | None,
    device: torch.device | str | None,
    generator: torch.Generator | None,
) -> Tensor:
    """`genkern.random.new_key` as int64, which spares those who only hand it on a view."""
    words = torch.randint(
        -(2**63),
        2**63 - 1,
        (2,) if batch is None else (batch, 2),
        dtype=torch.int64,
        device=device if generator is None else generator.device,
        generator=generator,
    )
    return words if generator is None or device is None else words.to(device)


def _low(x: Tensor) -> Tensor:
    return x & _MASK


def _high(x: Tensor) -> Tensor:
    return (x >> 32) & _MASK


def philox(key: Tensor, index: Tensor) -> Words:
    """The four words of block `index` of a key's stream.

    `key` is int64 (..., 2) and broadcasts against `index`, int64; both hold unsigned bits. The
    words come as int64 in [0, 2^32).
    """
    seed, offset = key[..., 0], key[..., 1]
    n = offset + index
    k0, k1 = _low(seed), _high(seed)
    c0, c1 = _low(n), _high(n)
    c2 = c3 = torch.zeros_like(c0)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _M0, c2 * _M1  # modulo 2^64, as unsigned products are
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, _low(p1), _high(p0) ^ c3 ^ k1, _low(p0)
        k0, k1 = _low(k0 + _W0), _low(k1 + _W1)
    return c0, c1, c2, c3


def _fma(a: Tensor, b: float | Tensor, c: float | Tensor) -> Tensor:
    """a * b + c of float32 values, rounded once.

    The product of two 24-bit significands is exact in float64. The sum is rounded to odd there
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 57, 2008): with 53
    bits that makes the last rounding, to 24, the only one.
    """
    p = a.double() * b
    c64 = c.double() if isinstance(c, Tensor) else torch.full_like(p, c)
    s = p + c64
    t = s - p
    error = (p - (s - t)) + (c64 - t)
    bits = s.view(torch.int64)
    toward = torch.where((error > 0) == (s > 0), 1, -1)
    inexact_even = (error != 0) & ((bits & 1) == 0)
    return torch.where(inexact_even, bits + toward, bits).view(torch.float64).float()


def _unit_interval(x: Tensor) -> Tensor:
    # int64 -> float64 is exact here, so float32 gets the one rounding of a direct conversion.
    return _fma(x.double().float(), 2.0**-32, 2.0**-33)


def _constant(text: str) -> float:
    return float.fromhex(text)


def _radius(x: Tensor) -> Tensor:
    """sqrt(-2 ln u), the steps and constants of csrc/include/genkern/normal.h."""
    bits = _unit_interval(x).view(torch.int32) - 0x3F3504F3
    e = (bits >> 23).float()
    f = ((bits & 0x007FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    p = torch.full_like(f, _constant("-0x1.66033ap-3"))
    for c in (
        "0x1.251124p-2",
        "-0x1.317ee4p-2",
        "0x1.535aaap-2",
        "-0x1.98d33p-2",
        "0x1.0004aep-1",
        "-0x1.5556f2p-1",
        "0x1.fffffap-1",
    ):
        p = _fma(p, f, _constant(c))
    log_m = _fma(f, -2.0, p * (f * f))
    # PyTorch's own float32 sqrt is not correctly rounded where it calls MKL. The float64 one rounds
    # to the same float32 as the exact root, which is 2^-51 or more from every midpoint.
    return torch.sqrt(_fma(e, _constant("-0x1.62e43p+0"), log_m).double()).float()


def _angle(y: Tensor) -> tuple[Tensor, Tensor]:
    """cos 2 pi v and sin 2 pi v, the steps and constants of csrc/include/genkern/normal.h."""
    v = _unit_interval(y)
    shifted = _fma(v, 4.0, 12582912.0)
    q = shifted.view(torch.int32)
    f = _fma(shifted - 12582912.0, -0.25, v)
    g = f * f
    s = torch.full_like(f, _constant("-0x1.32f65cp+6"))
    for c in ("0x1.467fdcp+6", "-0x1.4abc22p+5", "0x1.921fb6p+2"):
        s = _fma(s, g, _constant(c))
    s = s * f
    t = torch.full_like(f, _constant("-0x1.4e7962p+6"))
    for c in ("0x1.03b05ap+6", "-0x1.3bd39cp+4", "1.0"):
        t = _fma(t, g, _constant(c))
    odd = (q & 1) == 1
    sine, cosine = torch.where(odd, t, s), torch.where(odd, s, t)
    return (
        torch.where(((q + 1) & 2) == 2, -cosine, cosine),
        torch.where((q & 2) == 2, -sine, sine),
    )


def _box_muller(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r = _radius(x)
    cosine, sine = _angle(y)
    return r * cosine, r * sine


def _to_double(x: Tensor) -> Tensor:
    """The float64 nearest to an unsigned 64-bit number held in int64."""
    # Halved with a sticky low bit, so that the doubling is exact and the rounding happens once.
    half = ((x >> 1) & 0x7FFFFFFFFFFFFFFF) | (x & 1)
    return torch.where(x < 0, half.double() * 2.0, x.double())


def _normal64(b: Words) -> tuple[Tensor, Tensor]:
    x, y = b[0] << 32 | b[1], b[2] << 32 | b[3]
    # u = (X + 1/2) 2^-64; above 1/2 the logarithm is that of 1 - (1 - u), see normal.h.
    upper = x < 0
    u = (_to_double(torch.where(upper, ~x, x)) + 0.5) * 2.0**-64
    r = torch.sqrt(-2.0 * torch.where(upper, torch.log1p(-u), torch.log(u)))
    q = ((y + (1 << 61)) >> 62) & 3
    theta = ((y - (q << 62)).double() + 0.5) * (2.0 * math.pi * 2.0**-64)
    s, c = torch.sin(theta), torch.cos(theta)
    odd = (q & 1) == 1
    cosine, sine = torch.where(odd, s, c), torch.where(odd, c, s)
    return (
        r * torch.where(((q + 1) & 2) == 2, -cosine, cosine),
        r * torch.where((q & 2) == 2, -sine, sine),
    )


def _stream(key: Tensor, shape: Sequence[int], dtype: torch.dtype, normal: bool) -> Tensor:
    per_sample = key.dim() == 2
    samples = shape[0] if per_sample else 1
    length = math.prod(shape[1:] if per_sample else shape)
    per_block = 2 if dtype == torch.float64 else 4
    blocks = -(-length // per_block)
    index = torch.arange(blocks, device=key.device)
    b = philox(key.view(torch.int64).reshape(-1, 1, 2), index.unsqueeze(0))
    if dtype == torch.float64:
        pairs = (b[0] << 32 | b[1], b[2] << 32 | b[3])
        values = (
            _normal64(b)
            if normal
            else tuple((p & 0x1FFFFFFFFFFFFF).double() * 2.0**-53 for p in pairs)
        )
    elif normal:
        values = (*_box_muller(b[0], b[1]), *_box_muller(b[2], b[3]))
    else:
        values = tuple((w & 0xFFFFFF).float() * 2.0**-24 for w in b)
    stream = torch.stack(values, dim=-1).reshape(samples, blocks * per_block)
    return stream[:, :length].reshape(list(shape)).to(dtype).contiguous()


def _normal_reference(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _stream(key, shape, dtype, normal=True)


def _uniform_reference(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _stream(key, shape, dtype, normal=False)


def _children(key: Tensor, index: Tensor) -> Tensor:
    b = philox(key.view(torch.int64), index)
    child = torch.stack((b[0] | b[1] << 32, b[2] | b[3] << 32), dim=-1)
    return child.view(key.dtype)


def _split_reference(key: Tensor, num: int) -> Tensor:
    index = torch.arange(num, device=key.device)
    return _children(key, index if key.dim() == 1 else index.unsqueeze(1))


def _fold_in_reference(key: Tensor, data: Tensor) -> Tensor:
    return _children(key, data)


def _numbers_fake(key: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return key.new_empty(shape, dtype=dtype)


def _split_fake(key: Tensor, num: int) -> Tensor:
    return key.new_empty((num, *key.shape))


def _fold_in_fake(key: Tensor, data: Tensor) -> Tensor:
    return key.new_empty((*(data.shape if key.dim() == 1 else key.shape[:1]), 2))


def sample_key(device: torch.device, batch: int | None = None) -> Tensor:
    """A fixed key (or `batch` of them) for samples."""
    index = torch.arange(1 if batch is None else batch, device=device).unsqueeze(1)
    words = torch.tensor([0x1234567890, 5], device=device) + index * torch.tensor(
        [17, 1], device=device
    )
    key = words.view(torch.uint64)
    return key[0] if batch is None else key


def _numbers_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample("1003", (sample_key(device), [1003], dtype))
    yield Sample("image", (sample_key(device), [4, 3, 8, 8], dtype))
    yield Sample("per_sample", (sample_key(device, 5), [5, 3, 7], dtype))
    yield Sample("int64_key", (sample_key(device).view(torch.int64), [9], dtype))
    yield Sample("scalar", (sample_key(device), [], dtype))
    yield Sample("empty", (sample_key(device), [0, 3], dtype))


def _split_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample("5", (sample_key(device), 5))
    yield Sample("per_sample", (sample_key(device, 3), 4))
    yield Sample("int64_key", (sample_key(device).view(torch.int64), 2))
    yield Sample("none", (sample_key(device), 0))


def _fold_in_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    index = torch.tensor([0, 7, -1], device=device)
    yield Sample("scalar", (sample_key(device), index[1]))
    yield Sample("indices", (sample_key(device), index))
    yield Sample("per_sample", (sample_key(device, 3), index))
    yield Sample("per_sample_scalar", (sample_key(device, 3), index[0]))


normal = Op(
    "normal(Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor",
    reference=_normal_reference,
    fake=_numbers_fake,
    samples=_numbers_samples,
)
uniform = Op(
    "uniform(Tensor key, SymInt[] shape, ScalarType dtype) -> Tensor",
    reference=_uniform_reference,
    fake=_numbers_fake,
    samples=_numbers_samples,
)
split = Op(
    "split(Tensor key, SymInt num) -> Tensor",
    reference=_split_reference,
    fake=_split_fake,
    samples=_split_samples,
)
fold_in = Op(
    "fold_in(Tensor key, Tensor data) -> Tensor",
    reference=_fold_in_reference,
    fake=_fold_in_fake,
    samples=_fold_in_samples,
)
