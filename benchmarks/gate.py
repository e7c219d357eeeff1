"""Checks a case against float64 mathematics before it is timed.

The noise is checked against Philox and Box-Muller written in NumPy; an operation that draws noise
is then given that noise in plain PyTorch, evaluated in float64 with its autograd.
"""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import genkern
from benchmarks.calls import arguments, evaluate
from benchmarks.cases import Case
from genkern._ops.elements import arithmetic

# Of float64: 1 - alphas_cumprod / previous loses up to the factor 1 / beta, and beta is above 1e-4.
_SCHEDULER_ERROR = 1e4 * torch.finfo(torch.float64).eps
_KEY = (0x0123456789ABCDEF, 2**32 - 3)  # the counter carries out of its low word at once
_CHUNK = 1 << 18
_WORD = np.uint64(0xFFFFFFFF)


def _philox(blocks: np.ndarray) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al., SC 2011): words of the counters (offset + block, 0)."""
    seed, offset = _KEY
    low, shift = _WORD, np.uint64(32)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    n = blocks.astype(np.uint64) + np.uint64(offset)
    x = [n & low, n >> shift, np.zeros_like(n), np.zeros_like(n)]
    for _ in range(10):
        p, q = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = [
            (q >> shift) ^ x[1] ^ np.uint64(k0),
            q & low,
            (p >> shift) ^ x[3] ^ np.uint64(k1),
            p & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x


def _unit_float32(words: np.ndarray) -> np.ndarray:
    # The float32 nearest to a word, times 2^-32, plus 2^-33, rounded to float32 once: the sum's
    # bits lie between 2^0 and 2^-33, so it is exact in float64.
    wide = words.astype(np.float32).astype(np.float64)
    return (wide * 2.0**-32 + 2.0**-33).astype(np.float32).astype(np.float64)


def _box_muller(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    radius, angle = np.sqrt(-2.0 * np.log(u)), 2.0 * math.pi * v
    return radius * np.cos(angle), radius * np.sin(angle)


def _box_muller_long(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pi = np.longdouble("3.14159265358979323846264338327950288")
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * pi * v
    return (
        (radius * np.cos(angle)).astype(np.float64),
        (radius * np.sin(angle)).astype(np.float64),
    )


def _exact_normals(start: int, stop: int, dtype: torch.dtype) -> np.ndarray:
    """Normals of blocks start to stop in float64."""
    w = _philox(np.arange(start, stop))
    if dtype == torch.float64:
        u, v = (a.astype(np.longdouble) * 2.0**32 + b for a, b in ((w[0], w[1]), (w[2], w[3])))
        half = np.longdouble(0.5)
        scale = np.longdouble(2.0) ** -64
        pairs: tuple[np.ndarray, ...] = _box_muller_long((u + half) * scale, (v + half) * scale)
    else:
        u, v, s, t = map(_unit_float32, w)
        pairs = (*_box_muller(u, v), *_box_muller(s, t))
    return np.stack(pairs, axis=-1).ravel()


def _ulp(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    info = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(x), info.smallest_normal))
    return np.ldexp(info.eps, exponent - 1)


def _noise_error(noise: Tensor) -> float:
    """The largest error of drawn normals, in units of what docs/noise.md allows."""
    per_block = 2 if noise.dtype == torch.float64 else 4
    flat = noise.reshape(-1)
    worst = 0.0
    for start in range(0, -(-flat.numel() // per_block), _CHUNK):
        part = flat[start * per_block : (start + _CHUNK) * per_block]
        exact = _exact_normals(start, start + _CHUNK, noise.dtype)[: part.numel()]
        if noise.dtype == torch.float64:
            allowed = 1e-14 * np.abs(exact) + 4e-15
        else:
            allowed = np.maximum(4.0 * _ulp(exact, torch.float32), 1e-7)
            if noise.dtype != torch.float32:  # the float32 value rounded once more
                allowed += 0.5 * _ulp(exact, noise.dtype)
        worst = max(worst, float(np.max(np.abs(part.double().cpu().numpy() - exact) / allowed)))
    return worst


def _error(found: Tensor, exact: Tensor) -> float:
    error = (found.double() - exact).abs().max().item()
    return error if math.isfinite(error) else math.inf


def check(case: Case, device: torch.device) -> float:
    """The largest error of a case's results under the backend in force, over what is allowed.

    A result may be off by twice the error of plain PyTorch in genkern's arithmetic (float32, or
    float64) plus one epsilon of its own dtype at its scale, for the rounding at the end: 1 or
    less passes.
    """
    precision = arithmetic(case.dtype)
    given = arguments(case, device)
    key, noise, worst = None, given.noise, 0.0
    if case.noise == "drawn":
        words = torch.tensor(_KEY, dtype=torch.int64, device=device)
        key = words.view(torch.uint64)
        drawn = case.dtype if case.problem.name == "normal" else precision
        noise = genkern.random.normal(key, *case.shape, dtype=drawn)
        worst = _noise_error(noise)
        if case.problem.name == "normal":
            return worst

    found = evaluate(case.problem.genkern, given, key, given.noise)

    def plain(dtype: torch.dtype) -> tuple[Tensor, ...]:
        wide = arguments(case, device, dtype)
        explicit = None if noise is None else noise.to(dtype)
        return evaluate(case.problem.eager, wide, *wide.tables, explicit)

    exact = plain(torch.float64)
    for result, truth, ours in zip(found, exact, plain(precision), strict=True):
        scale = truth.abs().max().item()
        allowed = 2.0 * _error(ours, truth) + torch.finfo(result.dtype).eps * scale
        worst = max(worst, _error(result, truth) / allowed)
    return worst


def check_diffusers(case: Case, device: torch.device) -> float:
    """The same of diffusers, in float64 with float64 tables: there a wrong argument shows."""
    assert case.problem.diffusers is not None
    wide = arguments(case, device, torch.float64)
    noise = wide.noise
    if case.noise == "drawn":
        noise = torch.randn(case.shape, dtype=torch.float64, device=device)
    step = case.problem.diffusers(torch.float64)
    # DDPMScheduler.step takes no noise.
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=noise):
        (found,) = step(*wide.tensors)
    (exact,) = evaluate(case.problem.eager, wide, *wide.tables, noise)
    return _error(found, exact) / (_SCHEDULER_ERROR * exact.abs().max().item())
