"""The noise: known answers, the exact formula, streams, and the same bits everywhere."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from support import each_dtype, same_bits, skip_unless_usable

import genkern
from genkern import testing
from genkern.random import fold_in, key, new_key, normal, split, uniform

DATA = Path(__file__).parent / "data"
# PyTorch's stateless generator, recorded with torch 2.14.1.
KAT = dict(np.load(DATA / "torch_stateless_random_kat.npz"))
KAT_KEYS = [k.removeprefix("key_") for k in KAT if k.startswith("key_")]
MASK = 2**64 - 1


@pytest.fixture(params=[b.name for b in genkern.backends.BACKENDS])
def chosen(request):
    """Runs a test with each backend chosen."""
    backend = next(b for b in genkern.backends.BACKENDS if b.name == request.param)
    skip_unless_usable(backend)
    with genkern.use_backend(request.param):
        yield request.param


def make_key(seed: int, offset: int = 0) -> torch.Tensor:
    return torch.tensor([seed & MASK, offset & MASK], dtype=torch.uint64)


def words(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().view(torch.int64).numpy().view(np.uint64)


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.longdouble) - exact) / spacing


def assert_noise_bits(chosen: str, got: torch.Tensor, want: torch.Tensor) -> None:
    if chosen == "triton" and want.dtype != torch.float64:
        # The interpreter has no fused multiply-add: a few units in the last place. GPUs have it.
        tolerance = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}[want.dtype]
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * 6)
    elif want.dtype == torch.float64:
        torch.testing.assert_close(got, want, rtol=1e-14, atol=4e-15)
    else:
        assert same_bits(got, want)


# ---- known answers


def test_philox_known_answers_of_random123():
    lines = (DATA / "random123_philox4x32_10.txt").read_text().splitlines()[1:]
    for line in lines:
        numbers = [np.uint64(int(w, 16)) for w in line.split()]
        assert list(testing.philox4x32(numbers[:4], numbers[4:6])) == numbers[6:]


@pytest.mark.parametrize("seed", [0, MASK, 0x299F31D0A4093822])
def test_philox_known_answers_through_the_backends(chosen, seed):
    # A key reaches the counters (lo, hi, 0, 0): the first vector, and the other two's keys.
    for offset in (0, MASK, 0x85A308D3243F6A88):
        counter = [np.uint64(n) for n in (offset & 0xFFFFFFFF, offset >> 32, 0, 0)]
        half = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
        w = [int(n) for n in testing.philox4x32(counter, half)]
        child = words(split(make_key(seed, offset), 1))[0]
        assert [int(n) for n in child] == [w[0] | w[1] << 32, w[2] | w[3] << 32]
    if seed == 0:
        assert words(split(make_key(0), 1)).tolist() == [[0xE169C58D6627E8D5, 0x9B00DBD8BC57AC4C]]


@pytest.mark.parametrize("name", KAT_KEYS)
def test_torch_known_answers(chosen, name):
    k = torch.from_numpy(KAT[f"key_{name}"])
    count = 1003 if chosen != "triton" else 203
    np.testing.assert_array_equal(words(split(k, 5)), KAT[f"split_{name}"])
    np.testing.assert_array_equal(words(fold_in(k, 3)), KAT[f"fold_in_3_{name}"])
    for dtype, suffix in ((torch.float32, "f32"), (torch.float64, "f64")):
        got = uniform(k, count, dtype=dtype).numpy()
        np.testing.assert_array_equal(got, KAT[f"uniform_{suffix}_{name}"][:count])
    got = normal(k, count).numpy()
    np.testing.assert_allclose(got, KAT[f"normal_f32_{name}"][:count], rtol=0, atol=2e-6)
    exact = testing.standard_normal(k, (count,), torch.float64)
    got = normal(k, count, dtype=torch.float64).numpy()
    assert np.all(np.abs(got - exact) <= 1e-14 * np.abs(exact) + 4e-15)
    np.testing.assert_allclose(got, KAT[f"normal_f64_{name}"][:count], rtol=1e-13, atol=1e-14)
    if chosen != "triton":  # its interpreter truncates to bfloat16
        # Twice half a unit in the last place, and the float32 difference.
        want = KAT[f"normal_bf16_as_f32_{name}"][:count]
        got = normal(k, count, dtype=torch.bfloat16).float().numpy()
        assert np.all(np.abs(got - want) <= 2.0**-7 * np.abs(want) + 2e-6)
        assert np.mean(got != want) < 0.01


# ---- the exact formula


def _exact_pair(x: int, y: int, bits: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    with mpmath.workdps(50):
        u, v = ((mpmath.mpf(n) + mpmath.mpf(1) / 2) / mpmath.mpf(2) ** bits for n in (x, y))
        r = mpmath.sqrt(-2 * mpmath.log(u))
        return r * mpmath.cos(2 * mpmath.pi * v), r * mpmath.sin(2 * mpmath.pi * v)


def test_the_oracle_of_normals_against_mpmath():
    k = make_key(42, 7)
    for i, block in enumerate(words(split(k, 50))):
        # split's words are those of the block.
        w = [int(block[0]) & 0xFFFFFFFF, int(block[0]) >> 32]
        w += [int(block[1]) & 0xFFFFFFFF, int(block[1]) >> 32]
        pair = _exact_pair(w[0] << 32 | w[1], w[2] << 32 | w[3], 64)
        oracle = testing.standard_normal(k, (100,), torch.float64)[2 * i : 2 * i + 2]
        for got, want in zip(oracle, pair, strict=True):
            assert abs(mpmath.mpf(float(got)) - want) <= 2e-16 * (abs(want) + 1)


def test_float32_normals_are_within_4_ulp(chosen):
    count = 1_000_000 if chosen == "native" else 100_000 if chosen == "reference" else 10_000
    k = make_key(2024)
    exact = testing.standard_normal(k, (count,), torch.float32)
    got = normal(k, count).numpy()
    wrong = (ulps(got, exact) > 4) & (np.abs(got - exact) > 1e-7)
    assert not wrong.any(), ulps(got, exact).max()


def test_float64_normals_are_near_the_formula(chosen):
    count = 500_001 if chosen == "native" else 50_001 if chosen == "reference" else 10_001
    k = make_key(2025)
    exact = testing.standard_normal(k, (count,), torch.float64)
    error = np.abs(normal(k, count, dtype=torch.float64).numpy() - exact)
    assert np.all(error <= 1e-14 * np.abs(exact) + 4e-15)


def _key_with_first_word(target: int, tries: int = 4_000_000) -> tuple[int, int]:
    """(seed, block) whose 64-bit word X has the high half nearest to `target`."""
    w = testing._random.stream_words(np.array([7, 0], dtype=np.uint64), 2 * tries, 2)
    distance = np.abs(w[:, 0].astype(np.int64) - target)
    return 7, int(distance.argmin())


@pytest.mark.parametrize("target", [0, 2**32 - 1, 2**31], ids=["tail", "near one", "half"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_normals_at_extreme_words(chosen, target, dtype):
    seed, block = _key_with_first_word(target, 400_000)
    k = make_key(seed, block)
    exact = testing.standard_normal(k, (2,), dtype)
    got = normal(k, 2, dtype=dtype).numpy()
    if dtype == torch.float64:
        assert np.all(np.abs(got - exact) <= 1e-14 * np.abs(exact) + 4e-15)
    else:
        assert np.all((ulps(got, exact) <= 4) | (np.abs(got - exact) <= 1e-7))


# ---- the structure of streams


@each_dtype
def test_reference_and_backends_draw_the_same_bits(chosen, dtype):
    k, keys = make_key(5, 11), split(make_key(5), 3)
    draws = [(k, (2003,)), (k, (3, 5, 7)), (keys, (3, 101)), (keys, (3, 2, 2))]
    got = [(normal(*d, dtype=dtype), uniform(*d, dtype=dtype)) for d in draws]
    with genkern.use_backend("reference"):
        for (n, u), d in zip(got, draws, strict=True):
            assert_noise_bits(chosen, n, normal(*d, dtype=dtype))
            if chosen == "triton" and dtype == torch.bfloat16:
                torch.testing.assert_close(u, uniform(*d, dtype=dtype), rtol=2**-7, atol=0)
            else:
                assert same_bits(u, uniform(*d, dtype=dtype))


@pytest.mark.parametrize("offset", [2**32 - 3, 2**64 - 3, 2**63 - 2])
def test_counters_carry(chosen, offset):
    numbers = normal(make_key(9, offset), 24)
    blocks = [normal(make_key(9, offset + i), 4) for i in range(6)]
    assert same_bits(numbers, torch.cat(blocks))
    children = split(make_key(9, offset), 6)
    assert same_bits(
        children, torch.stack([split(make_key(9, offset + i), 1)[0] for i in range(6)])
    )
    np.testing.assert_array_equal(
        words(children), testing.expected("split", (make_key(9, offset), 6))[0].value
    )


@each_dtype
@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_longer_draw_starts_with_the_shorter_one(chosen, draw, dtype):
    k = make_key(17)
    longest = draw(k, 70, dtype=dtype)
    for count in (1, 2, 3, 4, 5, 7, 9, 15, 17, 31, 33, 63, 65):
        assert same_bits(draw(k, count, dtype=dtype), longest[:count])


@each_dtype
def test_shape_and_layout_do_not_matter(chosen, dtype):
    k = make_key(18)
    flat = normal(k, 2 * 3 * 5 * 7, dtype=dtype)
    assert same_bits(normal(k, 2, 3, 5, 7, dtype=dtype).flatten(), flat)
    assert same_bits(normal(k, (6, 35), dtype=dtype).flatten(), flat)
    assert same_bits(normal(k, dtype=dtype), flat[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rest", [(), (3,), (4,), (5, 7)])
def test_per_sample_keys_do_not_depend_on_the_batch(chosen, dtype, rest):
    keys = split(make_key(19), 5)
    for draw in (normal, uniform):
        together = draw(keys, 5, *rest, dtype=dtype)
        for b in (0, 2, 4):
            assert same_bits(together[b], draw(keys[b], *rest, dtype=dtype))
        assert same_bits(together[1:3], draw(keys[1:3], 2, *rest, dtype=dtype))


def test_keys_of_any_strides(chosen):
    keys = split(make_key(20), 6)
    table = torch.stack((keys.view(torch.int64), keys.view(torch.int64).flip(0)))
    layouts = {
        "every other row": keys.view(torch.int64)[::2].view(torch.uint64),
        "transposed": table[0].t().contiguous().t(),
        "column of a table": table[:, 3],
        "expanded": table[0, :1].expand(4, 2),
    }
    for name, view in layouts.items():
        dense = view.view(torch.int64).clone(memory_format=torch.contiguous_format)
        n = len(view)
        for result, want in (
            (normal(view, n, 9), normal(dense, n, 9)),
            (uniform(view, n, 3), uniform(dense, n, 3)),
            (split(view, 3).view(torch.int64), split(dense, 3)),
            (fold_in(view, torch.arange(n)).view(torch.int64), fold_in(dense, torch.arange(n))),
        ):
            assert same_bits(result, want), name
    row = table[0].t().contiguous().t()[2]
    assert row.stride() != (1,)
    assert same_bits(normal(row, 7), normal(row.clone(), 7))


def test_int64_keys_are_taken_bit_for_bit(chosen):
    k = make_key(2**63 + 12345, 2**64 - 2)
    signed = k.view(torch.int64)
    assert same_bits(normal(k, 13), normal(signed, 13))
    assert same_bits(uniform(k, 13, dtype=torch.float64), uniform(signed, 13, dtype=torch.float64))
    for child in (split(signed, 3), fold_in(signed, 5)):
        assert child.dtype == torch.int64
    assert same_bits(split(k, 3).view(torch.int64), split(signed, 3))
    assert same_bits(fold_in(k, 5).view(torch.int64), fold_in(signed, 5))


def test_split_and_fold_in_agree(chosen):
    k, keys = make_key(21, 2**64 - 2), split(make_key(21), 4)
    children = split(k, 7)
    assert children.shape == (7, 2) and children.dtype == torch.uint64
    assert same_bits(children, torch.stack([fold_in(k, i) for i in range(7)]))
    assert same_bits(children, fold_in(k, torch.arange(7)))
    assert same_bits(split(k, 3), children[:3])
    by_sample = split(keys, 5)
    assert by_sample.shape == (5, 4, 2)
    for i in range(5):
        assert same_bits(by_sample[i], fold_in(keys, i))
        assert same_bits(by_sample[i], fold_in(keys, torch.full((4,), i)))
    for b in range(4):
        assert same_bits(by_sample[:, b], split(keys[b], 5))
    # A negative index wraps, as offset + i does.
    assert same_bits(fold_in(k, -1), split(make_key(21, 2**64 - 3), 1)[0])
    indices = torch.arange(20)[::3]
    assert same_bits(fold_in(k, indices), fold_in(k, indices.contiguous()))


def test_no_two_children_are_equal():
    children = split(key(0), 100_000).view(torch.int64)
    assert len(torch.unique(children, dim=0)) == 100_000


@pytest.mark.parametrize("num", [0, 1, 4, 5])
def test_empty_draws(chosen, num):
    assert split(key(0), num).shape == (num, 2)
    assert normal(key(0), num, 0).shape == (num, 0)
    keys = split(key(0), num)
    assert normal(keys, num, 0, 3).shape == (num, 0, 3)
    assert uniform(keys, num).shape == (num,)
    assert fold_in(keys, torch.arange(num)).shape == (num, 2)


def test_half_precision_is_the_float32_value_rounded_once(chosen):
    if chosen == "triton":
        pytest.skip("triton: the interpreter truncates to bfloat16")
    k = make_key(22)
    for draw in (normal, uniform):
        wide = draw(k, 10_001)
        for dtype in (torch.bfloat16, torch.float16):
            assert same_bits(draw(k, 10_001, dtype=dtype), wide.to(dtype))


def test_uniform_range(chosen):
    for dtype in (torch.float32, torch.float64):
        x = uniform(make_key(23), 5_000, dtype=dtype)
        assert x.min() >= 0 and x.max() < 1


# ---- distribution: at fixed seeds, so a pass stays a pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_distribution(dtype):
    keys, n = split(key(123), 40), 4_000
    z = normal(keys, 40, n, dtype=dtype).double().numpy()
    x = uniform(keys, 40, n, dtype=dtype).double().numpy()
    # The p-values of right numbers are uniform, which says more than one p-value above a limit.
    for draws, law in ((z, "norm"), (x, "uniform")):
        p = [scipy.stats.kstest(row, law).pvalue for row in draws]
        assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3
    # The k-th raw moment of n draws has variance (m_2k - m_k^2) / n; 4 standard errors.
    for k, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**k).mean() - moment) < 4 * math.sqrt(variance / z.size)
    # The two of a pair, the lanes of a block and the streams of sibling keys are independent.
    for other in (np.roll(z, 1, axis=1), np.roll(z, 2, axis=1), np.roll(z, 1, axis=0)):
        for f in (lambda v: v, np.square):
            correlation = np.corrcoef(f(z).ravel(), f(other).ravel())[0, 1]
            assert abs(correlation) < 4 / math.sqrt(z.size)


# ---- keys


def test_manual_seed_governs_new_keys():
    torch.manual_seed(5)
    first = [new_key(), new_key(3), new_key()]
    torch.manual_seed(5)
    again = [new_key(), new_key(3), new_key()]
    assert all(map(same_bits, first, again))
    assert not same_bits(first[0], first[2])
    assert [k.shape for k in first] == [(2,), (3, 2), (2,)]
    assert all(k.dtype == torch.uint64 for k in first)


def test_a_generator_gives_keys_and_leaves_the_default_one_alone():
    state = torch.get_rng_state()
    one = new_key(generator=torch.Generator().manual_seed(1))
    two = new_key(4, generator=torch.Generator().manual_seed(1), device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    assert same_bits(one, two[0])


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1, -(2**63)])
def test_key_of_a_seed(seed):
    assert words(key(seed)).tolist() == [seed % 2**64, 0]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint64])
def test_integers_of_numpy_are_integers(kind):
    assert same_bits(key(kind(42)), key(42))
    assert same_bits(fold_in(key(0), kind(7)), fold_in(key(0), 7))
    assert same_bits(split(key(0), kind(3)), split(key(0), 3))
    for draw in (normal, uniform):
        want = draw(key(0), 2, 3)
        assert same_bits(draw(key(0), kind(2), kind(3)), want)
        assert same_bits(draw(key(0), (kind(2), 3)), want)
    assert new_key(kind(3)).shape == (3, 2)


def test_default_dtype_is_torchs():
    assert normal(key(0), 3).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert normal(key(0), 3).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# ---- instruction sets and processes

DRAW = """
import hashlib, torch, genkern
from genkern._info import cpu_capability
from genkern.random import fold_in, key, normal, split, uniform
keys = split(key(3), 7)
mu = normal(keys, 7, 1003)
parts = [
    normal(key(1), 10007), mu, uniform(key(2), 1001), uniform(keys, 7, 99, dtype=torch.float64),
    split(key(4), 99), fold_in(keys, torch.arange(7)), normal(key(5), 999, dtype=torch.bfloat16),
    genkern.vae.rsample(mu, torch.zeros_like(mu), key=keys),
]
digest = hashlib.sha256()
for part in parts:
    digest.update(part.view(torch.uint8).numpy().tobytes())
print(cpu_capability(), digest.hexdigest())
"""


def _drawn_in_a_process(**environment) -> tuple[str, str]:
    out = subprocess.run(
        [sys.executable, "-c", DRAW],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return out[0], out[1]


def test_same_bits_with_every_instruction_set():
    _, reference = _drawn_in_a_process(GENKERN_BACKEND="reference")
    native = next(b for b in genkern.backends.BACKENDS if b.name == "native")
    skip_unless_usable(native)
    ran = set()
    for capability in ("baseline", "avx2", "avx512"):
        used, digest = _drawn_in_a_process(GENKERN_CPU_CAPABILITY=capability)
        # A processor without it uses the most it has.
        assert used == capability or capability == "avx512"
        assert digest == reference, used
        ran.add(used)
    assert {"baseline", "avx2"} <= ran
