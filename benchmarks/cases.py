"""The registry: which problem is timed at which size, and what it has to reach."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from benchmarks.problems import Problem, diffusion, gan, vae

Shape = tuple[int, ...]

SMALL: Shape = (2, 32)
LATENT: Shape = (128, 32)
K262: Shape = (1024, 256)
M1: Shape = (1024, 1024)
M4: Shape = (4096, 1024)
M16: Shape = (4096, 4096)
IMAGE: Shape = (16, 4, 256, 256)
PIXELS: Shape = (64, 1, 256, 256)

# Of diffusion models: CIFAR-10 images, the latents of 512-pixel images, ImageNet at 64 and at 256.
CIFAR: Shape = (16, 3, 32, 32)
LATENTS64: Shape = (16, 4, 64, 64)
IMAGES64: Shape = (64, 3, 64, 64)
IMAGES256: Shape = (16, 3, 256, 256)
LATENTS512: Shape = (16, 4, 512, 512)

# Of discriminators: one logit a sample, and one a patch.
LOGITS: Shape = (64, 1)
PATCHES: Shape = (16, 1, 30, 30)


@dataclass(frozen=True)
class Target:
    """A ratio to reach: the time of `against`, divided by genkern's.

    `against` is a contender ("eager", "compile", "diffusers", "1 thread"), "roof" (the time in
    which memory could serve the call) or "limit" (the longer of that and of drawing the noise
    alone).
    """

    against: str
    floor: float
    goal: float


@dataclass(frozen=True)
class Case:
    """One problem at one size.

    Attributes:
        noise: "drawn" in the operator, "given" as a tensor, or "" for a problem without noise.
        backward: Whether the gradients are part of the call.
        threads: Number of threads, or None for the number the run was asked for.
    """

    problem: Problem
    shape: Shape
    dtype: torch.dtype = torch.float32
    noise: str = ""
    backward: bool = False
    memory_format: torch.memory_format = torch.contiguous_format
    threads: int | None = None
    targets: tuple[Target, ...] = ()

    @property
    def elements(self) -> int:
        """Elements of the tensor that gives the case its size."""
        return math.prod(self.shape)

    @property
    def id(self) -> str:
        """The case's name: problem, noise, size, dtype, direction, and what is special."""
        parts = [self.problem.name, self.noise, _size(self.elements), _dtype(self.dtype)]
        parts.append("fwd_bwd" if self.backward else "fwd")
        parts.append("channels_last" if self.memory_format == torch.channels_last else "")
        parts.append(f"{self.threads}_thread" if self.threads else "")
        return "-".join(part for part in parts if part)

    def shrunk(self) -> Case:
        """The same case with few elements, for tests."""
        return dataclasses.replace(self, shape=tuple(min(n, 5) for n in self.shape))


def _size(elements: int) -> str:
    for unit, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if elements >= unit and elements % unit == 0:
            # 262144 elements go by "262k".
            return f"{elements // (unit if letter == 'M' else 1000)}{letter}"
    return str(elements)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_BOTH = (torch.float32, torch.bfloat16)
# Two threads against one are asked of what is not memory-bound: drawing noise that stays in cache.
_THREADS = Target("1 thread", 1.7, 1.9)


def _noise_drawing() -> list[Case]:
    # The floors are ratios in float32; bfloat16 is there to see.
    cases = []
    for shape in (M1, M4, M16):
        for dtype in _BOTH:
            sample: tuple[Target, ...] = ()
            both: tuple[Target, ...] = ()
            forward: tuple[Target, ...] = ()
            if dtype == torch.float32:
                sample = (Target("eager", 6.0, 10.0), Target("compile", 20.0, 50.0))
                both = (Target("eager", 5.0, 8.0), Target("compile", 20.0, 50.0))
                if shape == M1:
                    sample, both = (*sample, _THREADS), (*both, _THREADS)
                if shape == M16:
                    sample = (*sample, Target("limit", 0.7, 0.85))
                    forward = (Target("limit", 0.55, 0.75),)
            rsample, rsample_kl = vae.RSAMPLE, vae.RSAMPLE_KL
            cases.append(Case(rsample, shape, dtype, "drawn", targets=sample))
            cases.append(Case(rsample_kl, shape, dtype, "drawn", backward=True, targets=both))
            if shape == M16:
                cases.append(Case(rsample_kl, shape, dtype, "drawn", targets=forward))
    return cases


def _small() -> list[Case]:
    def case(shape: Shape, floor: float, goal: float) -> Case:
        return Case(
            vae.RSAMPLE_KL,
            shape,
            noise="drawn",
            backward=True,
            targets=(Target("eager", floor, goal),),
        )

    return [case(K262, 2.5, 5.0), case(LATENT, 1.5, 2.5)]


def _noise_given() -> list[Case]:
    compiled = Target("compile", 1.0, 1.2)
    roof = Target("roof", 0.65, 0.85)
    cases = []
    for shape in (M1, M4, M16):
        at_roof = (roof,) if shape == M16 else ()
        cases.append(Case(vae.RSAMPLE, shape, noise="given", targets=(compiled,)))
        cases.append(
            Case(
                vae.RSAMPLE_KL,
                shape,
                noise="given",
                backward=True,
                targets=(compiled, *at_roof),
            )
        )
    cases.append(Case(vae.RSAMPLE_KL, M16, noise="given", targets=(compiled, roof)))
    cases.append(Case(vae.RSAMPLE_KL, M16, torch.bfloat16, "given", backward=True))
    return cases


def _normal() -> list[Case]:
    cases = []
    for shape in (M1, M16):
        one = (Target("eager", 3.5, 5.0),)
        many = (Target("eager", 5.0, 9.0), *((_THREADS,) if shape == M1 else ()))
        cases.append(Case(vae.NORMAL, shape, noise="drawn", threads=1, targets=one))
        cases.append(Case(vae.NORMAL, shape, noise="drawn", targets=many))
    cases.append(Case(vae.NORMAL, M1, torch.float64, "drawn"))
    cases.append(Case(vae.NORMAL, M1, torch.bfloat16, "drawn"))
    return cases


def _losses() -> list[Case]:
    losses = (
        (vae.KL, M4),
        (vae.BERNOULLI_NLL, PIXELS),
        (vae.GAUSSIAN_NLL, PIXELS),
        (vae.ELBO_LOSS, PIXELS),
    )
    return [
        Case(problem, shape, dtype, backward=True) for problem, shape in losses for dtype in _BOTH
    ]


def _layouts() -> list[Case]:
    channels_last = torch.channels_last
    return [
        Case(vae.DIAGONAL_GAUSSIAN, IMAGE, noise="drawn", backward=True),
        Case(vae.DIAGONAL_GAUSSIAN, IMAGE, torch.bfloat16, "drawn", backward=True),
        *(
            Case(
                vae.RSAMPLE_KL,
                IMAGE,
                noise=noise,
                backward=True,
                memory_format=channels_last,
            )
            for noise in ("drawn", "given")
        ),
    ]


def _overhead() -> list[Case]:
    """64 elements: what a call costs before it computes anything."""
    rsample, rsample_kl = vae.RSAMPLE, vae.RSAMPLE_KL
    return [
        Case(rsample, SMALL, noise="given"),
        Case(rsample, SMALL, noise="drawn"),
        Case(rsample_kl, SMALL, noise="given", backward=True),
        Case(rsample_kl, SMALL, noise="drawn", backward=True),
    ]


def _diffusion() -> list[Case]:
    """Noising, a training step's loss and a sampler's step, with noise drawn and given."""
    q_sample, loss, step = diffusion.Q_SAMPLE, diffusion.Q_SAMPLE_NOISE_LOSS, diffusion.DDPM_STEP
    compiled = (Target("compile", 20.0, 50.0),)
    large_step = (Target("eager", 5.5, 10.0), Target("diffusers", 7.0, 12.0), *compiled)
    limit = Target("limit", 0.8, 0.95)
    # By shape: q_sample, q_sample and noise_loss, ddpm_step.
    drawn: dict[Shape, tuple[tuple[Target, ...], ...]] = {
        CIFAR: (
            (),
            (Target("eager", 1.5, 3.0),),
            (Target("eager", 3.0, 5.0), Target("diffusers", 5.0, 10.0)),
        ),
        LATENTS64: ((), (), ()),
        IMAGES64: ((_THREADS,), (Target("eager", 2.0, 4.0), _THREADS), (_THREADS,)),
        IMAGES256: (
            (Target("eager", 6.0, 10.0), *compiled),
            (Target("eager", 2.5, 5.0), *compiled),
            large_step,
        ),
        LATENTS512: (
            (Target("eager", 6.0, 10.0), *compiled, limit),
            compiled,
            (*large_step, limit),
        ),
    }
    given = Target("compile", 1.0, 1.2)
    roof = Target("roof", 0.85, 0.95)
    large: dict[Shape, tuple[tuple[Target, ...], ...]] = {
        IMAGES256: ((given,), (given,), (given,)),
        LATENTS512: ((given, roof), (given,), (given, roof)),
    }
    return [
        Case(
            problem,
            shape,
            dtype,
            noise,
            backward=problem is loss,
            targets=targets if dtype == torch.float32 else (),
        )
        for noise, table in (("drawn", drawn), ("given", large))
        for shape, row in table.items()
        for dtype in _BOTH
        for problem, targets in zip((q_sample, loss, step), row, strict=True)
    ]


def _diffusion_variants() -> list[Case]:
    losses = (diffusion.Q_SAMPLE_VLB_TERMS, diffusion.Q_SAMPLE_HYBRID_LOSS)
    steps = (diffusion.DDPM_STEP_LEARNED, diffusion.DDPM_STEP_GUIDED)
    ddim = diffusion.DDIM_STEP
    return [
        *(Case(p, IMAGES64, dtype, "drawn", backward=True) for p in losses for dtype in _BOTH),
        *(Case(p, IMAGES64, dtype, "drawn") for p in steps for dtype in _BOTH),
        *(Case(ddim, shape, dtype) for shape in (CIFAR, IMAGES64, IMAGES256) for dtype in _BOTH),
    ]


def _gan() -> list[Case]:
    loss, twice = (Target("eager", 1.0, 1.5),), (Target("eager", 2.0, 4.0),)
    penalties = (gan.GRADIENT_PENALTY, gan.R1_PENALTY)
    return [
        *(
            Case(problem, shape, backward=True, targets=loss)
            for shape in (LOGITS, PATCHES)
            for problem in gan.LOSSES
        ),
        *(
            Case(problem, shape, dtype, backward=True, targets=targets)
            for shape in (IMAGES64, IMAGES256)
            for problem in penalties
            for dtype, targets in ((torch.float32, twice), (torch.bfloat16, ()))
        ),
    ]


CASES: tuple[Case, ...] = (
    *_noise_drawing(),
    *_small(),
    *_noise_given(),
    *_normal(),
    *_losses(),
    *_layouts(),
    *_overhead(),
    *_diffusion(),
    *_diffusion_variants(),
    *_gan(),
)
