"""Numbers have the same bits in vectors and one at a time, in every instruction set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from instruction_sets import capability_in_use, each_capability, run_under

import genkern
from genkern import gan, vae

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


def main() -> None:
    """Prints the instruction set that was checked."""
    for f in _FUNCTIONS.values():
        check(f)
    print(capability_in_use())


@each_capability
def test_vectors_and_numbers_have_the_same_bits(capability: str) -> None:
    run_under(capability, __file__)


if __name__ == "__main__":
    main()
