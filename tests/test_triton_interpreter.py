"""The Triton backend in its interpreter: what the common suites cannot say."""

from __future__ import annotations

import math

import pytest
import torch
from support import OPS, randn, same_bits

from genkern._triton import launch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
which_exist = pytest.importorskip("genkern._triton.tile").which_exist

KEY = torch.tensor([0x123456789ABCDEF, 2**63 - 3])
KEYS = torch.tensor([[5, 0xFFFFFFFF], [-3, -1], [7, 2**40]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (KEY, (9001,)),  # a tile and a part of one; the block counter passes 2^63
        (KEYS, (3, 4100)),  # rows that start with a block
        (KEYS, (3, 41)),  # rows that start inside one
    ],
)
def test_normals_have_the_bits_of_the_reference(key, shape, dtype):
    from genkern._triton import random

    expected = OPS["normal"].reference(key, list(shape), dtype)
    assert same_bits(random.normal(key, shape, dtype), expected.contiguous())


def test_draws_continue_the_stream_of_each_sample():
    from genkern._triton import vae

    mu, zero = torch.zeros(3, 7), torch.full((3, 7), -math.inf)
    no_clamp = (-math.inf, math.inf)
    z = vae.rsample(mu, torch.zeros(3, 7), KEYS, None, 5, *no_clamp)
    expected = OPS["normal"].reference(KEYS, [3, 5, 7], torch.float32).transpose(0, 1)
    assert same_bits(z, expected)
    assert torch.equal(vae.rsample(mu, zero, KEYS, None, 5, *no_clamp), torch.zeros(5, 3, 7))


def _form(shape, *tensors, **options):
    tiles = launch.Tiles(shape, tensors, **options)
    return tiles.rows, [*(n for t in tensors for n in tiles.operand(t).inner or (0,))]


def test_common_layouts_have_columns_of_stride_one():
    x = torch.empty(4, 6, 8, 8)
    assert _form(x.shape, x, x) == (1, [1, 1])
    assert _form(x.shape, x, torch.ones(()).expand(x.shape)) == (1, [1, 0])
    channels_last = x.to(memory_format=torch.channels_last)
    assert _form(x.shape, channels_last, torch.empty_like(channels_last)) == (1, [1, 1])
    halves = torch.empty(4, 12, 8, 8).chunk(2, dim=1)
    assert _form(x.shape, *halves, x) == (4, [1, 1, 1])
    per_sample = torch.ones(4, 1, 1, 1).expand(x.shape)
    assert _form(x.shape, x, per_sample) == (4, [1, 0])
    assert _form(x.shape, x, key=KEYS[:1].expand(4, 2)) == (4, [1])
    assert _form(x.shape, x, by_sample=True) == (4, [1])
    draws = torch.empty(3, *x.shape)
    assert _form(x.shape, x, draws) == (1, [1, 1])


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 24, 1000, 2**20 + 1, 2**30 + 3, 2**31 - 1])
def test_division_by_a_factor_and_a_shift(divisor):
    factor, shift = launch._reciprocal(divisor)
    assert factor < 2**32
    largest = (2**31 - 1) // divisor * divisor
    for n in (0, 1, divisor - 1, divisor, 2 * divisor - 1, largest - 1, largest, 2**31 - 1):
        if 0 <= n < 2**31:
            assert (n * factor >> 31) >> shift == n // divisor


def test_any_number_of_dimensions():
    from genkern._triton import vae

    # No two dimensions of the one merge where those of the other do.
    shape = (2, 3, 2, 2, 3, 2, 2, 2)
    a = randn(*shape)
    b = randn(*shape[::-1], seed=1).permute(*reversed(range(len(shape))))
    result = vae.bernoulli_nll(a, b, launch.NONE)
    expected = OPS["bernoulli_nll"].reference(a.double(), b.double(), launch.NONE)
    # Three roundings of numbers below |a b| + |a| + 1, and 2 ulp of log(1 + e) <= 1.
    assert ((result - expected).abs() <= 8 * 2.0**-24 * (1 + a.abs() * (1 + b.abs()))).all()


def test_gradients_over_many_draws_stay_exact():
    from genkern._triton import vae

    draws = 300
    mu = torch.zeros(2, 3)
    grad = randn(draws, 2, 3) + 1.0
    noise = randn(draws, 2, 3, seed=1)
    no_clamp = (-math.inf, math.inf)
    grad_mu, grad_logvar, *_ = vae.rsample_kl_backward(
        grad, None, mu, mu, None, None, None, noise, draws, 0.0, 0.0, 0.0, *no_clamp, 0, 0b11
    )
    # Kahan: two roundings of the sum of magnitudes; products and the factor 1/2 sigma: one each.
    products = grad.double() * noise.double()
    bound = 3 * 2.0**-24
    assert ((grad_mu - grad.double().sum(0)).abs() <= bound * grad.double().abs().sum(0)).all()
    expected = 0.5 * products.sum(0)
    assert ((grad_logvar - expected).abs() <= bound * 0.5 * products.abs().sum(0)).all()


def test_sums_do_not_depend_on_the_run():
    from genkern._triton import vae

    x, y = randn(5, 4099), randn(5, 4099, seed=1)
    for reduction in (launch.MEAN, launch.SUM, launch.BATCHMEAN, launch.SAMPLE):
        first = vae.bernoulli_nll(x, y, reduction)
        assert same_bits(first, vae.bernoulli_nll(x, y, reduction))


@pytest.mark.parametrize(
    ("op", "rows", "columns"),
    [
        ("noise_loss", 1, 5 * launch.TILE),
        ("noise_loss", 3, 10 * launch.TILE + 7),
        ("vlb", 2, 3 * launch.TILE + 7),
        ("hybrid", 1, 5 * launch.TILE),
    ],
)
def test_a_program_sums_up_several_tiles(monkeypatch, op, rows, columns):
    from genkern._triton import diffusion

    pred, noise = randn(rows, columns), randn(rows, columns, seed=1)
    t = torch.tensor([0, 1, 0])[:rows]
    if op == "noise_loss":
        table = randn(2, 4, seed=2)

        def loss(reduction):
            return diffusion.noise_loss(pred, None, None, noise, table, t, None, reduction)
    else:
        x0 = noise.clamp(-1.0, 1.0)
        table = randn(2, 8, seed=2)
        table[:, 7] = torch.tensor([0.0, 1.0])  # the decoder for t = 1

        def loss(reduction):
            options = -math.inf, math.inf, 1.5, 0.5 * (op == "hybrid"), False, reduction
            return diffusion.vlb(pred, None, x0, None, noise, table, t, *options)

    values = loss(launch.NONE).double()
    # Two programs fill this GPU: the tiles of a row are shared by three or fewer.
    monkeypatch.setattr(launch, "PROGRAMS", 2)
    tiles = launch.Tiles(pred.shape, [pred], None, True, launch.TURNS)
    assert 1 <= tiles.column_programs <= 3 < tiles.column_tiles
    total, each = loss(launch.SUM), loss(launch.SAMPLE)
    bound = 2.0**-20 * values.abs().sum(1)
    assert ((each - values.sum(1)).abs() <= bound).all()
    assert (total - values.sum()).abs() <= bound.sum()


def bound_gradients(pred, values, x0, table, t):
    from genkern._triton import diffusion

    table[:, 7] = torch.tensor([0.0, 1.0])  # the decoder for t = 1
    options = -1.0, 1.0, 1.5, 0.5, False, launch.SUM, 0b11
    noise = randn(*pred.shape, seed=4)
    args = torch.tensor(2.0), pred, values, x0.clamp(-1.0, 1.0), None, noise, table, t
    return diffusion.vlb_backward(*args, *options)


def step_gradients(x_t, pred, values, table, t):
    from genkern._triton import diffusion

    table[:, 5] = torch.tensor([0.5, 0.0])  # no noise for t = 1
    grad, uncond = (randn(*x_t.shape, seed=i) for i in (4, 5))
    key = torch.tensor([1, 2])
    args = grad, x_t, pred, values, uncond, key, None, table, t
    return diffusion.sampler_step_backward(*args, 3.0, -1.0, 1.0, 0b1111)[:4]


@pytest.mark.parametrize("gradients", [bound_gradients, step_gradients])
@pytest.mark.parametrize(("rows", "columns"), [(2, 3 * launch.TILE + 7), (1, 5 * launch.TILE)])
def test_gradients_do_not_depend_on_how_many_tiles_a_program_works_on(
    monkeypatch, gradients, rows, columns
):
    tensors = [randn(rows, columns, seed=i) for i in range(3)]
    args = *tensors, randn(2, 8, seed=3), torch.tensor([0, 1])[:rows]
    expected = gradients(*args)
    monkeypatch.setattr(launch, "PROGRAMS", 2)
    tiles = launch.Tiles(tensors[0].shape, tensors, None, True, launch.TURNS)
    assert 1 <= tiles.column_programs <= 3 < tiles.column_tiles
    assert all(same_bits(got, want) for got, want in zip(gradients(*args), expected, strict=True))


@triton.jit
def existence_kernel(out, start, form, COLUMNS: tl.constexpr, VECTOR: tl.constexpr):
    mask = which_exist(tl.zeros((1,), tl.int64), start, form, COLUMNS, VECTOR)
    tl.store(out + tl.arange(0, COLUMNS)[None, :], mask.to(tl.int32))


def test_a_row_of_more_than_2_to_the_31_columns_ends_inside_a_tile():
    columns = 2**31 + 32
    form = launch.Form(None, columns // 16, 1, 1, 0, 0, ())
    out = torch.full((64,), -1, dtype=torch.int32)
    existence_kernel[(1,)](out, 2**31, form, COLUMNS=64, VECTOR=16)
    assert out.tolist() == [1] * 32 + [0] * 32


def test_refuses_tensors_elsewhere():
    assert launch.refuses(torch.zeros(2), None, 1.0) is None
    assert launch.refuses(torch.zeros(2, device="meta")) == "a tensor is on meta"
