"""What the sampling and KL of a training step cost: time, and bytes kept for backward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genkern import random

SampleKL = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]  # mu, logvar, keys, step

WARM_UP_CALLS = 2


@dataclass(frozen=True)
class Cost:
    """One method at one latent shape."""

    shape: tuple[int, ...]
    method: str
    seconds: float  # median of forward and backward
    spread: float  # between the quartiles, as a fraction of the median
    bytes_kept: int  # of all tensors saved for backward
    bytes_added: int  # of those that are not the inputs mu and logvar


def median(seconds: Sequence[float]) -> float:
    """The middle one: other programs only ever add to a time."""
    return statistics.median(seconds)


def make_inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Makes mu and logvar as an encoder gives them: the halves of one tensor, not contiguous."""
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(shape[0], 2 * shape[1], *shape[2:], generator=generator)
    mu, logvar = moments.chunk(2, dim=1)
    return mu.requires_grad_(), logvar.requires_grad_()


def time_call(
    sample_kl: SampleKL, mu: Tensor, logvar: Tensor, keys: Tensor, grads: Tensor
) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    outputs = sample_kl(mu, logvar, keys, 0)
    torch.autograd.grad(outputs, (mu, logvar), (grads, torch.ones_like(outputs[1])))
    return time.perf_counter() - start


def bytes_for_backward(
    sample_kl: SampleKL, mu: Tensor, logvar: Tensor, keys: Tensor
) -> tuple[int, int]:
    """Bytes of the tensors saved for backward: all, and those that are not the inputs.

    A tensor saved twice counts once.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = sample_kl(mu, logvar, keys, 0)  # alive, so that no address is used twice
    inputs = {mu.data_ptr(), logvar.data_ptr()}
    del outputs
    return sum(saved.values()), sum(n for address, n in saved.items() if address not in inputs)


def compare_at(
    methods: dict[str, SampleKL], shape: tuple[int, ...], seconds_each: float
) -> list[Cost]:
    """The methods in turn, so that a disturbance of the machine hits all alike."""
    mu, logvar = make_inputs(shape)
    keys, grads = random.split(random.key(0), 1), torch.ones(shape)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for sample_kl in methods.values():
        for _ in range(WARM_UP_CALLS):
            time_call(sample_kl, mu, logvar, keys, grads)
    end = time.perf_counter() + seconds_each * len(methods)
    while time.perf_counter() < end or len(times[next(iter(times))]) < 2:
        for name, sample_kl in methods.items():
            times[name].append(time_call(sample_kl, mu, logvar, keys, grads))

    costs = []
    for name, sample_kl in methods.items():
        low, middle, high = statistics.quantiles(times[name], n=4)
        kept, added = bytes_for_backward(sample_kl, mu, logvar, keys)
        costs.append(Cost(shape, name, middle, (high - low) / middle, kept, added))
    return costs


def compare(
    methods: dict[str, SampleKL], shapes: Sequence[tuple[int, ...]], seconds_each: float
) -> list[Cost]:
    """Costs of every method at every latent shape."""
    return [cost for shape in shapes for cost in compare_at(methods, shape, seconds_each)]
