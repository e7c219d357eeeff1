"""The divergence near the prior, and losses of a thousand million elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.numerics.errors import Errors, native
from benchmarks.numerics.sweep import generator_of
from genkern import gan, testing, vae
from genkern._ops.op import OPS

# Of |logvar|, in powers of 2.
_RANGES = ((-60, -40), (-40, -24), (-24, -12), (-12, -4), (-4, 0), (0, 6))
_COUNT = 50_000
_NO_CLAMP = (-math.inf, math.inf)


def near_prior(dtype: torch.dtype) -> list[dict[str, Any]]:
    """KL(N(0, e^logvar) || N(0, 1)) as logvar goes to 0: in ulp, and how often it is negative."""
    rows = []
    rng = generator_of("near the prior")
    limits = torch.finfo(dtype)
    for low, high in _RANGES:
        sign = rng.choice((-1.0, 1.0), _COUNT)
        logvar = torch.from_numpy(sign * np.exp2(rng.uniform(low, high, _COUNT))).to(dtype)
        args = (torch.zeros_like(logvar), logvar, None, None, 0.0, 0.0, 0.0, *_NO_CLAMP, 0)
        (exact,) = testing.expected("kl", args)
        assert exact is not None
        if exact.value.max() < limits.smallest_normal:
            continue
        row: dict[str, Any] = {"low": low, "high": high}
        kl = 0.5 * (torch.exp(logvar) - 1.0 - logvar)
        for name, found in (("genkern", native(OPS["kl"], args)[0]), ("eager", kl)):
            errors = Errors()
            errors.add(found, exact)
            row[name] = {
                **(errors.summary() or {}),
                "negative": float((found < 0).double().mean()),
            }
        rows.append(row)
    return rows


def large_losses(elements: int) -> list[dict[str, Any]]:
    """Sums of float32 losses against the exact sum of float64 ones, a chunk at a time."""
    chunk = 1 << 22
    x = torch.empty(elements)
    generator = torch.Generator().manual_seed(0)
    for part in x.split(chunk):
        part.normal_(generator=generator)
    half = torch.tensor(0.5).expand(elements)
    losses: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]] = {
        "kl": (
            lambda: vae.kl(half, x, reduction="sum"),
            lambda v: 0.5 * (0.25 + torch.expm1(v) - v),
        ),
        "bernoulli_nll": (
            lambda: vae.bernoulli_nll(x, half, reduction="sum"),
            lambda v: v.clamp(min=0.0) - 0.5 * v + torch.log1p(torch.exp(-v.abs())),
        ),
        "gaussian_nll": (
            lambda: vae.gaussian_nll(x, half, reduction="sum"),
            lambda v: 0.5 * (v - 0.5) ** 2 + 0.5 * math.log(2.0 * math.pi),
        ),
        "discriminator_loss": (
            lambda: gan.discriminator_loss(x, half, reduction="sum"),
            lambda v: (
                torch.nn.functional.softplus(-v, threshold=1000.0) + math.log1p(math.exp(0.5))
            ),
        ),
    }
    rows = []
    for name, (loss, exact) in track(losses.items(), "large losses", transient=True):
        found = loss().item()
        total = math.fsum(float(exact(part.double()).sum()) for part in x.split(chunk))
        spacing = 2.0 ** (math.floor(math.log2(total)) - 23)
        rows.append(
            {"loss": name, "elements": elements, "exact": total, "found": found,
             "ulp": abs(found - total) / spacing, "relative": abs(found - total) / total}
        )  # fmt: skip
    return rows
