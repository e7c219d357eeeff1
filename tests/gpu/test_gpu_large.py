"""More than 2^31 elements: bfloat16 results of 4.3 GB, and inputs that are expanded."""

from __future__ import annotations

import pytest
import torch
from support import same_bits

from genkern import diffusion, random, vae

COLUMNS = 2**15 + 8
NEEDED = 10 * 2**30


@pytest.fixture
def rows(device):
    if device.type == "cpu":
        return 5
    free, _ = torch.cuda.mem_get_info(device)
    if free < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of free memory on the device")
    rows = 2**16 + 1
    assert rows * COLUMNS > 2**31
    return rows


@pytest.fixture(autouse=True)
def _give_back(device):
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _row(device, start, end):
    return torch.linspace(start, end, COLUMNS, device=device).bfloat16()


def _key_of_row(row, device):
    """The key whose stream starts with what row `row` draws from key (2, 0)."""
    assert COLUMNS % 4 == 0
    return torch.tensor([2, row * COLUMNS // 4], device=device).view(torch.uint64)


def test_sums(backend, device, rows):
    mu, logvar = (_row(device, *ends).expand(rows, COLUMNS) for ends in ((-1, 1), (0, -1)))
    one = vae.kl(mu[:1].double(), logvar[:1].double(), reduction="sum")
    total = vae.kl(mu, logvar, reduction="sum")
    assert total.item() == pytest.approx(one.item() * rows, rel=1e-6)
    by_sample = vae.kl(mu, logvar, reduction="sample")
    assert same_bits(by_sample, by_sample[:1].expand(rows))


def test_noise(backend, device, rows):
    key = random.key(2, device=device)
    z = random.normal(key, rows, COLUMNS, dtype=torch.bfloat16)
    for row in (0, rows // 2, rows - 1):
        alone = random.normal(_key_of_row(row, device), COLUMNS, dtype=torch.bfloat16)
        assert same_bits(z[row], alone)


def test_samples(backend, device, rows):
    mu, logvar = (_row(device, *ends).expand(rows, COLUMNS) for ends in ((-1, 1), (0, -1)))
    z = vae.rsample(mu, logvar, key=random.key(2, device=device))
    last = vae.rsample(mu[-1:], logvar[-1:], key=_key_of_row(rows - 1, device))
    assert same_bits(z[-1:], last)


def test_noising(backend, device, rows):
    schedule = diffusion.NoiseSchedule.linear(50)
    x0, t = _row(device, -1, 1).expand(rows, COLUMNS), torch.arange(rows, device=device) % 50
    x = diffusion.q_sample(x0, t, schedule, key=random.key(2, device=device))
    last = diffusion.q_sample(x0[-1:], t[-1:], schedule, key=_key_of_row(rows - 1, device))
    assert same_bits(x[-1:], last)


def test_gradients(backend, device, rows):
    mu = _row(device, -1, 1).expand(rows, COLUMNS).detach().requires_grad_()
    logvar = torch.zeros((), dtype=torch.bfloat16, device=device).expand(rows, COLUMNS)
    (grad,) = torch.autograd.grad(vae.kl(mu, logvar, reduction="sum"), mu)
    for row in (0, rows // 2, rows - 1):
        assert same_bits(grad[row], mu[0].detach())
