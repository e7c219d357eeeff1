"""Every operator on every backend, dtype and layout against the exact values."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from support import (
    NO_CLAMP,
    each_backend,
    each_dtype,
    each_op,
    fake_outputs,
    outputs,
    randn,
    run,
    same_bits,
    skip_if_refused,
    threads,
)
from torch import Tensor

import genkern
from genkern import testing
from genkern._triton.launch import interpreted

INTEGER_OPS = ("split", "fold_in")


def _samples(op, backend, dtype):
    """All of them for kernels; some, where the backend is slow and the dtype changes little."""
    samples = list(testing.samples(op.name, "cpu", dtype))
    if backend.name == "cuda-on-host" and os.environ.get("CUDA_ON_HOST_QUICK"):
        return samples[:: 1 if dtype == torch.float32 else 4]
    if backend.name in ("native", "cuda-on-host"):
        return samples
    return samples[:: 3 if dtype == torch.float32 else 7]


def _rounding(backend, dtype) -> float:
    # Triton's interpreter truncates float32 to bfloat16; GPUs round (cvt.rn.bf16.f32).
    truncates = backend.name == "triton" and interpreted() and dtype == torch.bfloat16
    return 1.0 if truncates else 0.5


def _layout(x: Tensor):
    # The strides of an empty tensor address nothing, and torch's own fakes differ there.
    return x.dtype, tuple(x.shape), x.stride() if x.numel() else None, x.device.type


def _problem(op, backend, args, dtype) -> str | None:
    before = [a.clone() if isinstance(a, Tensor) else None for a in args]
    result = outputs(run(backend, op, args))
    for arg, copy in zip(args, before, strict=True):
        if copy is not None and not same_bits(arg, copy):
            return "an input was changed"
    for i, (out, fake) in enumerate(zip(result, fake_outputs(op, args), strict=True)):
        if _layout(out) != _layout(fake):
            return f"output {i}: the fake has {_layout(fake)}, got {_layout(out)}"
    try:
        testing.assert_conforms(op.name, args, result, rounding=_rounding(backend, dtype))
    except AssertionError as error:
        return str(error)
    return None


@each_dtype
@each_backend
@each_op
def test_conforms(op, backend, dtype):
    if op.name in INTEGER_OPS and dtype != torch.float32:
        pytest.skip("integers have no dtype to vary")
    problems = []
    for sample in _samples(op, backend, dtype):
        skip_if_refused(backend, op, sample.args)
        problem = _problem(op, backend, sample.args, dtype)
        if problem:
            problems.append(f"{sample.id}: {problem}")
    assert not problems, f"{len(problems)} samples\n" + "\n".join(problems)


@each_dtype
@each_op
def test_tolerances_are_a_few_roundings(op, dtype):
    """One sample where the plain expression goes wrong would let every error pass."""
    if op.name in INTEGER_OPS and dtype != torch.float32:
        pytest.skip("integers have no dtype to vary")
    epsilon = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert all(t <= 64 * epsilon for t in testing.tolerances(op.name, dtype))


def _wide_calls():
    """Calls large enough for several threads, with rows that do not divide evenly."""
    mu, logvar, x, noise = (randn(37, 8191, seed=s) for s in range(4))
    key, keys = genkern.random.key(3), genkern.random.split(genkern.random.key(3), 37)
    options = (0.0, 0.0, 0.0, *NO_CLAMP)
    for reduction in range(5):
        grad = randn(37)[:, None].expand(37, 8191) if reduction == 0 else randn(37)
        grad = grad if reduction in (0, 4) else grad[0]
        yield "kl", (mu, logvar, x, noise, *options, reduction)
        yield "rsample_kl", (mu, logvar, None, None, key, None, *options, reduction)
        yield (
            "rsample_kl_backward",
            (x, grad, mu, logvar, x, noise, keys, None, None, *options, reduction, 0b1111),
        )
        yield "bernoulli_nll", (mu, x, reduction)
        yield "bernoulli_nll_backward", (grad, mu, x, reduction, 0b11)
        yield "gaussian_nll", (mu, x, logvar, 1.0, *NO_CLAMP, reduction)
        yield "gaussian_nll_backward", (grad, mu, x, logvar, 1.0, *NO_CLAMP, reduction, 0b111)
    yield "rsample", (mu, logvar, keys, None, 2, *NO_CLAMP)
    yield "normal", (key, [37, 8191], torch.float32)
    yield "normal", (keys, [37, 8191], torch.float64)
    yield "uniform", (keys, [37, 8191], torch.float32)
    yield "split", (keys, 3001)
    yield "fold_in", (key, torch.arange(100003))


def _wide_gan_calls():
    real, fake, grad = (randn(37, 8191, seed=s) for s in range(3))
    for reduction in range(5):
        up = grad if reduction == 0 else randn(37) if reduction == 4 else randn()
        for kind in (0, 5):
            options = (kind, 0.0, reduction)
            yield "discriminator_loss", (4.0 * real, 4.0 * fake, *options)
            yield "discriminator_loss_forming", (4.0 * real, 4.0 * fake, *options)
            yield "discriminator_loss_backward", (up, 4.0 * real, 4.0 * fake, *options, 0b11)
            losses = (4.0 * fake, 4.0 * real if kind == 5 else None, kind, reduction)
            yield "generator_loss", losses
            yield "generator_loss_forming", losses
            yield "generator_loss_backward", (up, *losses, 0b11 if kind == 5 else 0b01)
        # Samples that threads share whole, and one that they share in parts.
        for rows in (37, 1):
            g, v = real.reshape(rows, -1), fake.reshape(rows, -1)
            up = randn(rows) if reduction in (0, 4) else randn()
            options = (1.0, 1.0, reduction)
            yield "gradient_penalty", (g, *options)
            yield "gradient_penalty_backward", (up, g, *options)
            yield "gradient_penalty_backward_backward", (v, up, g, *options, 0b11)
    yield "discriminator_loss", (real, fake[:30], 2, 0.0, 1)
    yield "interpolate", (real, fake, genkern.random.key(3), None)
    yield "interpolate_backward", (grad, real, fake, None, randn(37), 0b111)
    yield "optimal_discriminator", (real, fake)
    yield "optimal_discriminator_backward", (grad, real, fake, 0b11)


def _wide_diffusion_calls():
    x, y, values, uncond, noise = (randn(37, 8191, seed=s) for s in range(5))
    key, keys = genkern.random.key(3), genkern.random.split(genkern.random.key(3), 37)
    table, t = randn(6, 8, seed=5).abs() + 0.1, torch.arange(37) % 6
    table[:, 7] = torch.arange(6) == 2  # the decoder's row
    factor = torch.linspace(0.5, 1.5, 37)
    affine = (x, y, values, key, None, table, t)
    step = (x, y, values, uncond, keys, None, table, t)
    yield "affine", affine
    yield "affine_out", (*affine, torch.empty_like(x))
    for options in ((factor, factor + 1.0, 2.0, *NO_CLAMP), (None, None, 2.0, -0.5, 0.5)):
        yield "sampler_step", (*step, *options)
        yield "sampler_step_out", (*step, *options, torch.empty_like(x))
        yield "sampler_step_x0", (*step, *options)
    noisy = (*step[:4], None, noise, table, t)
    yield "sampler_step_backward", (uncond, *noisy, 2.0, -0.5, 0.5, 0b11111)
    for rows in (37, 1):
        a, b, c = (v.reshape(rows, -1) for v in (x, y, uncond))
        yield "guidance_factor", (a, b, 3.0, 0.7)
        yield "dynamic_threshold", (a, b, c, table[:1], None, None, 3.0, 0.995, 100.0)
    for reduction in range(5):
        up = x if reduction == 0 else randn(37) if reduction == 4 else randn()
        loss = (x, y, None, noise, table[:, :4], t, factor, reduction)
        yield "noise_loss", loss
        yield "noise_loss_forming", loss
        yield "noise_loss_backward", (up, *loss, 0b111)
        vlb = (x, values, y.clamp(-1, 1), key, None, table, t, -1.0, 1.0, 0.7, 1.0, False)
        yield "vlb", (*vlb, reduction)
        yield "vlb_backward", (up, *vlb, reduction, 0b11)


@each_backend
@each_op
def test_same_bits_for_any_number_of_threads(op, backend):
    if backend.name == "triton":
        pytest.skip("triton: the interpreter runs one program after another")
    if backend.name == "cuda-on-host":
        pytest.skip("cuda-on-host: threads run one after another, see test_cuda_on_host.py")
    calls = itertools.chain(_wide_calls(), _wide_gan_calls(), _wide_diffusion_calls())
    for args in (args for name, args in calls if name == op.name):
        skip_if_refused(backend, op, args)
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(outputs(run(backend, op, args)))
        for other in results[1:]:
            assert all(map(same_bits, results[0], other)), args[-1]
