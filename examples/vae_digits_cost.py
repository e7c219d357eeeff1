"""What the sampling and KL of a training step cost: time, and bytes kept for backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from examples.measure import Timing, alternate, bytes_for_backward
from examples.vae_digits import METHODS, SampleKL
from genkern import random


@dataclass(frozen=True)
class Cost:
    """One method at one latent shape."""

    shape: tuple[int, ...]
    method: str
    timing: Timing  # of forward and backward
    bytes_kept: int  # of all tensors saved for backward
    bytes_added: int  # of those that are not the inputs mu and logvar


def make_inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Makes mu and logvar as an encoder gives them: the halves of one tensor, not contiguous."""
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(shape[0], 2 * shape[1], *shape[2:], generator=generator)
    mu, logvar = moments.chunk(2, dim=1)
    return mu.requires_grad_(), logvar.requires_grad_()


def compare_at(shape: tuple[int, ...], seconds_each: float) -> list[Cost]:
    """The methods at one latent shape."""
    mu, logvar = make_inputs(shape)
    keys, grads = random.split(random.key(0), 1), (torch.ones(shape), torch.ones(()))

    def forward(sample_kl: SampleKL) -> tuple[Tensor, Tensor]:
        return sample_kl(mu, logvar, keys, 0)

    def both(sample_kl: SampleKL) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(sample_kl), (mu, logvar), grads)

    timings = alternate({method.name: both(method.sample_kl) for method in METHODS}, seconds_each)
    costs = []
    for method in METHODS:
        kept, added = bytes_for_backward(partial(forward, method.sample_kl), (mu, logvar))
        costs.append(Cost(shape, method.name, timings[method.name], kept, added))
    return costs


def compare(shapes: Sequence[tuple[int, ...]], seconds_each: float) -> list[Cost]:
    """Costs of every method at every latent shape."""
    return [cost for shape in shapes for cost in compare_at(shape, seconds_each)]
