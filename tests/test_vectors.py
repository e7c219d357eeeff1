"""Numbers have the same bits in vectors and one at a time, in every instruction set.

And where they are written past the caches, which large outputs are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from instruction_sets import capability_in_use, each_capability, run_under

import genkern
from genkern import diffusion, gan, random, vae

_SHORT = 7  # numbers, fewer than a vector holds

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "kl": lambda x: vae.kl(-x, x, reduction="none"),
    "rsample": lambda x: vae.rsample(-x, x, noise=x),
    "bernoulli_nll": lambda x: vae.bernoulli_nll(x, torch.zeros_like(x), reduction="none"),
    "generator_loss": lambda x: gan.generator_loss(x, reduction="none"),
    "optimal_discriminator": lambda x: gan.optimal_discriminator(x, torch.zeros_like(x)),
}


def both(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Values and gradients."""
    x = x.detach().requires_grad_()
    value = f(x)
    (gradient,) = torch.autograd.grad(value, x, torch.ones_like(value))
    return torch.stack([value.detach(), gradient])


def check(f: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Numbers of every size, infinite ones and NaN among them, in one row and in short ones."""
    patterns = torch.arange(0, 1 << 16, 3, dtype=torch.int32).to(torch.int16).view(torch.float16)
    # About -87 the exponential leaves the normal numbers.
    x = torch.cat([patterns.float(), torch.linspace(-89.0, -86.0, 2048)])
    with genkern.use_backend("native"):
        row = both(f, x)
        short = torch.cat([both(f, part) for part in x.split(_SHORT)], dim=1)
    number = ~short.isnan()
    assert torch.equal(row.isnan(), ~number)
    assert torch.equal(row.view(torch.int32)[number], short.view(torch.int32)[number])


# More than the 8 MB from which the CPU library writes past the caches, in 16 bits too. The second
# sample begins within a line.
_LARGE = 3, 1_400_003
_SCHEDULE = diffusion.NoiseSchedule.linear(1000)
_T = torch.tensor([3, 500, 999])


def _gradients(f: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """The gradients of a sum, one below the other."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    return torch.cat(torch.autograd.grad(f(*leaves).sum(), leaves))


_STEPS: dict[str, Callable[..., torch.Tensor]] = {
    "q_sample": lambda x, _, eps: diffusion.q_sample(x, _T, _SCHEDULE, noise=eps),
    "ddpm_step": lambda x, m, eps: diffusion.ddpm_step(x, m, _T, _SCHEDULE, noise=eps),
    "ddim_step": lambda x, m, _: diffusion.ddim_step(x, m, _T, _SCHEDULE, prev_t=_T - 1),
    "rsample": lambda mu, logvar, eps: vae.rsample(mu, logvar, noise=eps),
    "rsample backward": lambda mu, logvar, eps: _gradients(
        lambda m, l: vae.rsample(m, l, noise=eps), mu, logvar
    ),
    "noise_loss backward": lambda m, x, eps: _gradients(
        lambda p: diffusion.noise_loss(p, x, _T, _SCHEDULE, noise=eps, reduction="sum"), m
    ),
    "interpolate": lambda x, y, _: gan.interpolate(x, y, key=random.key(3)),
}


def check_large(f: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    """A large output has the bits of small ones."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(_LARGE, generator=generator).to(dtype) for _ in range(3)]
    columns = zip(*(x.split(100_000, dim=1) for x in given), strict=True)
    with genkern.use_backend("native"):
        small = torch.cat([f(*part) for part in columns], dim=1)
        assert torch.equal(f(*given), small)


def check_large_out() -> None:
    """So does one that is written to the caller's memory, which begins within a line."""
    x, m, eps = (torch.linspace(-2.0, 2.0, 4_200_000).roll(k)[None] for k in range(3))
    memory = torch.zeros(1, x.numel() + 2)
    step = functools.partial(diffusion.ddpm_step, x, m, 500, _SCHEDULE, noise=eps)
    with genkern.use_backend("native"):
        expected = step()
        step(out=memory[:, 1:-1])
    assert torch.equal(memory[:, 1:-1], expected)
    assert memory[0, 0] == memory[0, -1] == 0


def main() -> None:
    """Prints the instruction set that was checked."""
    for f in _FUNCTIONS.values():
        check(f)
    for step in _STEPS.values():
        check_large(step, torch.float32)
        check_large(step, torch.bfloat16)
    check_large_out()
    print(capability_in_use())


@each_capability
def test_vectors_numbers_and_large_outputs_have_the_same_bits(capability: str) -> None:
    run_under(capability, __file__)


if __name__ == "__main__":
    main()
