"""The schedulers for diffusers against its own, on the CPU with the same noise."""

from __future__ import annotations

import pytest
import torch
from support import randn, same_bits
from test_integrations_diffusers import Ours, Posterior, compare_step, pair, seeded

SHAPE = (2, 3, 8, 8)
KINDS = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stock", Ours, ids=lambda s: s.__name__)
def test_steps_of_a_run(backend, device, stock, kind):
    theirs, ours = pair(stock, prediction_type=kind, clip_sample=False)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
    x, output = randn(*SHAPE), randn(*SHAPE, seed=1)
    for t in theirs.timesteps[::6]:
        compare_step(theirs, ours, t, x, output, device=device)


@pytest.mark.parametrize("stock", Ours, ids=lambda s: s.__name__)
def test_noising_of_a_batch(backend, device, stock):
    theirs, ours = pair(stock)
    x, noise, t = randn(*SHAPE), randn(*SHAPE, seed=1), torch.tensor([990, 3])
    got = ours.add_noise(*(a.to(device) for a in (x, noise, t)))
    assert got.device == device
    torch.testing.assert_close(got.cpu(), theirs.add_noise(x, noise, t))


def test_posterior(backend, device):
    moments = randn(2, 8, 4, 4)
    theirs = Posterior.__mro__[1](moments)
    ours = Posterior(moments.to(device))
    assert ours.sample(seeded()).device == device
    torch.testing.assert_close(ours.sample(seeded()).cpu(), theirs.sample(seeded()))
    torch.testing.assert_close(ours.kl().cpu(), theirs.kl())


def test_keys_of_genkern(backend, device):
    _, ours = pair(next(iter(Ours)))
    ours.noise = "key"
    x, output = (randn(*SHAPE, seed=s, device=device) for s in range(2))
    results = []
    for _ in range(2):
        generator = torch.Generator(device).manual_seed(3)
        results.append(ours.step(output, 500, x, generator=generator).prev_sample)
    assert results[0].device == device and same_bits(*results)
