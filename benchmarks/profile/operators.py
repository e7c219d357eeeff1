"""What is profiled: every problem of the benchmarks, forward alone and with its backward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.cases import Case
from benchmarks.problems import Problem, diffusion, gan, vae

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def short(dtype: torch.dtype) -> str:
    """The name of a dtype without its module's."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Operator:
    """A problem without size and dtype; `noise` and `backward` as in a benchmark's case."""

    problem: Problem
    noise: str = ""
    backward: bool = False

    @property
    def name(self) -> str:
        """Problem, noise and direction."""
        direction = "fwd_bwd" if self.backward else "fwd"
        return "-".join(part for part in (self.problem.name, self.noise, direction) if part)

    def case(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Case:
        """The operator at one size."""
        return Case(self.problem, shape, dtype, self.noise, self.backward)


def _both(problem: Problem, *noises: str) -> tuple[Operator, ...]:
    return tuple(
        Operator(problem, noise, backward)
        for noise in noises or ("",)
        for backward in (False, True)
    )


OPERATORS: tuple[Operator, ...] = (
    Operator(vae.NORMAL, "drawn"),
    Operator(vae.UNIFORM, "drawn"),
    *_both(vae.RSAMPLE, "drawn", "given"),
    *_both(vae.RSAMPLE_KL, "drawn", "given"),
    *_both(vae.KL),
    *_both(vae.BERNOULLI_NLL),
    *_both(vae.GAUSSIAN_NLL),
    *_both(vae.ELBO_LOSS),
    *_both(vae.DIAGONAL_GAUSSIAN, "drawn"),
    *(Operator(diffusion.Q_SAMPLE, noise) for noise in ("drawn", "given")),
    *_both(diffusion.Q_SAMPLE_NOISE_LOSS, "drawn", "given"),
    *_both(diffusion.Q_SAMPLE_VLB_TERMS, "drawn"),
    *_both(diffusion.Q_SAMPLE_HYBRID_LOSS, "drawn"),
    *_both(diffusion.DDPM_STEP, "drawn", "given"),
    *_both(diffusion.DDPM_STEP_LEARNED, "drawn"),
    *_both(diffusion.DDPM_STEP_GUIDED, "drawn"),
    Operator(diffusion.DDPM_STEP_RESCALED, "drawn"),
    Operator(diffusion.DDPM_STEP_THRESHOLD, "drawn"),
    *_both(diffusion.DDIM_STEP),
    *(operator for problem in gan.LOSSES for operator in _both(problem)),
    Operator(gan.GRADIENT_PENALTY, backward=True),
    Operator(gan.R1_PENALTY, backward=True),
    *_both(gan.INTERPOLATE, "drawn"),
    *_both(gan.OPTIMAL_DISCRIMINATOR),
)
