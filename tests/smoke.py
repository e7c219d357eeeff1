"""What an installed wheel must do under any torch that it serves: run as a script, by make compat.

Needs neither pytest nor NumPy. Every result of the native kernels is held against the reference's.
"""

from __future__ import annotations

import torch

import genkern
from genkern import diffusion, gan, random, vae


def results() -> list[torch.Tensor]:
    """Values and gradients of every family."""
    keys = random.split(random.key(42), 4)
    x, y = random.normal(keys, 4, 2, 3), random.normal(random.fold_in(keys, 1), 4, 2, 3)
    x, y = x.requires_grad_(), y.requires_grad_()
    schedule = diffusion.NoiseSchedule.linear(50)
    t = torch.tensor([0, 3, 20, 49])
    z, kl = vae.rsample_kl(x, y, key=keys)
    noise_loss = diffusion.noise_loss(y, x.detach(), t, schedule, key=keys)
    adversarial = gan.discriminator_loss(x, y) + gan.gradient_penalty(x)
    loss = z.square().sum() + kl + noise_loss + adversarial
    samples = diffusion.sample(
        lambda x, t: 0.1 * x, (4, 3), schedule, num_steps=5, key=keys, progress=False
    )
    return [z, loss, samples, *torch.autograd.grad(loss, (x, y))]


def main() -> None:
    start = random.normal(random.key(42), 2)
    assert [f"{v:.4f}" for v in start.tolist()] == ["-0.9702", "0.1940"], start
    with genkern.use_backend("native"):
        found = results()
    with genkern.use_backend("reference"):
        wanted = results()
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    # Large results have memory of their own, where torch takes it.
    large = random.normal(random.key(42), 3 << 20)
    assert torch.equal(large, random.normal(random.key(42), 3 << 20))
    assert torch.equal(large[:2], start)
    compiled = torch.compile(lambda x, k: vae.rsample(x, x, key=k), backend="aot_eager")
    x, k = torch.zeros(3, 5), random.key(1)
    assert torch.equal(compiled(x, k), vae.rsample(x, x, key=k))
    print(f"genkern {genkern.__version__} works under torch {torch.__version__}")


if __name__ == "__main__":
    main()
