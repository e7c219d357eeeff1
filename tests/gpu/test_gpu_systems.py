"""torch.compile, autocast, torch.func, the sampling loop, and several devices."""

from __future__ import annotations

import pytest
import torch
from gpu_support import CALLS, inputs_on, on_cpu
from public_calls import SCHEDULE, SHAPE, value_and_gradients
from support import same_bits

from genkern import diffusion, random, vae

# Inductor and functorch use what torch.jit deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def _training_step(i):
    z, kl = vae.rsample_kl(i.x, i.y, key=i.keys)
    x_t = diffusion.q_sample(z, i.t, SCHEDULE, key=i.keys)
    return diffusion.noise_loss(x_t, z, i.t, SCHEDULE, key=i.keys) + kl


def test_compiles_in_one_graph(backend, device):
    # Inductor makes Triton code for GPUs; for CPUs it would need minutes of a compiler.
    name = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(_training_step, fullgraph=True, backend=name)
    got = value_and_gradients(compiled, inputs_on(device))
    want = value_and_gradients(_training_step, inputs_on(device))
    # Inductor may fuse what surrounds the operators: additions of gradients here.
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_autocast(backend, device):
    network = torch.nn.Linear(3, 3).to(device)
    i = inputs_on(device)
    with torch.autocast(device.type, torch.bfloat16):
        pred = network(diffusion.q_sample(i.x, i.t, SCHEDULE, key=i.keys))
        loss = diffusion.noise_loss(pred, i.x, i.t, SCHEDULE, key=i.keys)
    assert pred.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_vmap_of_grad(backend, device):
    i = inputs_on(device)
    grad = torch.func.grad(lambda mu, logvar: vae.kl(mu, logvar, reduction="sum"))
    got = torch.func.vmap(grad)(i.x, i.y)
    torch.testing.assert_close(got, i.x)  # of 1/2 mu^2


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "ode"])
def test_the_sampling_loop_gives_the_images_of_the_cpu(backend, device, sampler):
    def images(device):
        return diffusion.sample(
            lambda x, t: 0.3 * x, SHAPE, SCHEDULE, sampler=sampler, num_steps=10,
            key=random.key(7, device=device), progress=False,
        )  # fmt: skip

    # Ten steps of a contraction, each rounded within a few epsilons of values below 8.
    torch.testing.assert_close(images(device).cpu(), on_cpu(images, "cpu"), rtol=0, atol=1e-4)


@pytest.fixture
def second(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    return torch.device("cuda", 1)


@pytest.mark.parametrize("name", CALLS)
def test_another_device_than_the_current_one(backend, device, second, name):
    with torch.cuda.device(0):
        want = value_and_gradients(CALLS[name], inputs_on(torch.device("cuda", 0)))
        got = value_and_gradients(CALLS[name], inputs_on(second))
    for g, w in zip(got, want, strict=True):
        assert g.device == second
        assert same_bits(g.detach().cpu(), w.detach().cpu())
