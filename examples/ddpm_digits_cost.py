"""What happens outside the network in a diffusion model's training and sampling steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.ddpm_digits import (
    SCHEDULE,
    Network,
    T,
    fused_loss,
    plain_ddim_step,
    plain_ddpm_step,
    plain_loss,
)
from examples.measure import Timing, alternate, bytes_held
from genkern import diffusion, random

try:
    from diffusers import DDIMScheduler, DDPMScheduler
except ImportError:
    DDIMScheduler = DDPMScheduler = None

STEP, DDIM_STEPS = 500, 50  # where the sampling steps are timed: t, and the steps of DDIM

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Cost:
    """One method at one shape."""

    shape: tuple[int, ...]
    what: str
    method: str
    timing: Timing
    bytes_held: int | None  # while the network runs, for a training step


def training_calls(shape: tuple[int, ...]) -> dict[str, Callable[[Network], Tensor]]:
    """The loss of a training step around a given network."""
    x0, t = torch.rand(shape) * 2 - 1, torch.randint(T, shape[:1])
    calls: dict[str, Callable[[Network], Tensor]] = {
        "genkern": lambda network: fused_loss(network, x0, t, random.new_key()),
        "plain, randn": lambda network: plain_loss(network, x0, t, torch.randn_like(x0)),
    }
    if DDPMScheduler is not None:
        scheduler = DDPMScheduler(T)

        def with_diffusers(network: Network) -> Tensor:
            noise = torch.randn_like(x0)
            return F.mse_loss(network(scheduler.add_noise(x0, noise, t), t), noise)

        calls["diffusers"] = with_diffusers
    return calls


def forward_and_backward(loss: Callable[[Network], Tensor], pred: Tensor) -> None:
    """A training step whose network is free."""
    torch.autograd.grad(loss(lambda x_t, t: pred), pred)


def sampling_calls(shape: tuple[int, ...], sampler: str) -> Calls:
    """One sampling step from a network's prediction."""
    x, pred, out = torch.randn(shape), torch.randn(shape), torch.empty(shape)
    key, prev_t = random.key(0), STEP - T // DDIM_STEPS
    calls: Calls
    if sampler == "DDPM":
        calls = {
            "genkern": lambda: diffusion.ddpm_step(
                x, pred, STEP, SCHEDULE, key=key, clip_range=1.0, out=out
            ),
            "plain, randn": lambda: plain_ddpm_step(x, pred, STEP, STEP - 1, torch.randn_like(x)),
        }
    else:
        calls = {
            "genkern": lambda: diffusion.ddim_step(
                x, pred, STEP, SCHEDULE, prev_t=prev_t, clip_range=1.0, out=out
            ),
            "plain, randn": lambda: plain_ddim_step(x, pred, STEP, prev_t),
        }
    if DDPMScheduler is not None:
        scheduler = (DDPMScheduler if sampler == "DDPM" else DDIMScheduler)(T)
        if sampler == "DDIM":
            scheduler.set_timesteps(DDIM_STEPS)
        calls["diffusers"] = lambda: scheduler.step(pred, STEP, x).prev_sample
    return calls


@torch.no_grad()
def sampling_costs(shape: tuple[int, ...], sampler: str, seconds_each: float) -> list[Cost]:
    """One sampling step at one shape."""
    timings = alternate(sampling_calls(shape, sampler), seconds_each)
    return [Cost(shape, f"{sampler} step", name, t, None) for name, t in timings.items()]


def training_costs(shape: tuple[int, ...], seconds_each: float) -> list[Cost]:
    """A training step at one shape."""
    losses = training_calls(shape)
    pred = torch.randn(shape, requires_grad=True)
    calls: Calls = {
        name: partial(forward_and_backward, loss, pred) for name, loss in losses.items()
    }
    return [
        Cost(shape, "training step", name, timing, bytes_held(losses[name]))
        for name, timing in alternate(calls, seconds_each).items()
    ]


def compare(shapes: Sequence[tuple[int, ...]], seconds_each: float) -> list[Cost]:
    """Training and sampling steps at every shape."""
    costs = []
    for shape in shapes:
        costs += training_costs(shape, seconds_each)
        costs += sampling_costs(shape, "DDPM", seconds_each)
        costs += sampling_costs(shape, "DDIM", seconds_each)
    return costs
