"""Bad input to the diffusion functions: the whole text of every error, and nothing written."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from genkern.diffusion import (
    EDMSchedule,
    FlowSchedule,
    NoiseSchedule,
    ddim_step,
    ddpm_step,
    hybrid_loss,
    noise_loss,
    predict_x0,
    prior_kl,
    q_posterior,
    q_sample,
    sample,
    score,
    vlb_terms,
)
from genkern.random import key, split

S = NoiseSchedule.linear(1000)
ZERO = NoiseSchedule.linear(10).zero_terminal_snr()
FLOW, EDM = FlowSchedule(10), EDMSchedule(10)
X = torch.zeros(4, 3, 2)
META = torch.zeros(4, 3, 2, device="meta")
INT = torch.zeros(4, 3, 2, dtype=torch.int64)
TWICE = torch.zeros(4, 6, 2)
K = key(0)
GENERATOR = torch.Generator()
T4 = torch.tensor([1, 2, 3, 1000])
FLOATS = "float32, float64, bfloat16 or float16"
NO_SIGNAL = "where nothing of x0 is left in x_t (alphas_cumprod, or alpha, is 0), got 'epsilon'"
MEMORY = torch.zeros(100)
PART = MEMORY[:24].view(4, 3, 2)
NEXT = MEMORY[12:36].view(4, 3, 2)
NEEDS = torch.zeros(4, 3, 2, requires_grad=True)


def model(x, t):
    return x[:, :1]


ERRORS = [
    # t
    (lambda: q_sample(X, 1000, S), IndexError, "q_sample: t must be in [0, 1000), got 1000"),
    (lambda: q_sample(X, -1, S), IndexError, "q_sample: t must be in [0, 1000), got -1"),
    (
        lambda: q_sample(X, T4, S),
        IndexError,
        "q_sample: t must be in [0, 1000), got 1000 at index 3",
    ),
    (
        lambda: q_sample(X, torch.tensor(-5), S),
        IndexError,
        "q_sample: t must be in [0, 1000), got -5",
    ),
    (
        lambda: noise_loss(X, X, T4, S, key=K),
        IndexError,
        "noise_loss: t must be in [0, 1000), got 1000 at index 3",
    ),
    (
        lambda: q_sample(X, T4.int(), S),
        TypeError,
        "q_sample: t must be int64, got torch.int32",
    ),
    (
        lambda: q_sample(X, T4.float(), S),
        TypeError,
        "q_sample: t must be an integer or an int64 tensor, got torch.float32",
    ),
    (
        lambda: ddpm_step(X, X, 3.0, S),
        TypeError,
        "ddpm_step: t must be an integer or an int64 tensor, got float",
    ),
    (
        lambda: score(X, "3", S),
        TypeError,
        "score: t must be an integer or an int64 tensor, got str",
    ),
    (
        lambda: score(X, True, S),
        TypeError,
        "score: t must be an integer or an int64 tensor, got bool",
    ),
    (
        lambda: predict_x0(X, X, T4[:2], S),
        ValueError,
        "predict_x0: t must have shape () or (4,), got (2,)",
    ),
    (
        lambda: predict_x0(X, X, T4[:, None], S),
        ValueError,
        "predict_x0: t must have shape () or (4,), got (4, 1)",
    ),
    (
        lambda: q_sample(X, T4.to("meta"), S),
        ValueError,
        "q_sample: t and the data must be on one device, got meta and cpu",
    ),
    # prev_t
    (
        lambda: ddpm_step(X, X, 5, S, prev_t=5),
        ValueError,
        "ddpm_step: prev_t must be in [-1, 5), got 5",
    ),
    (
        lambda: ddim_step(X, X, 5, S, prev_t=-2),
        ValueError,
        "ddim_step: prev_t must be in [-1, 5), got -2",
    ),
    (
        lambda: ddim_step(X, X, T4 - 1, S, prev_t=T4 - 1),
        ValueError,
        "ddim_step: prev_t must be at least -1 and below t, got 0 with t = 0 at index 0",
    ),
    (
        lambda: q_posterior(X, X, T4 - 1, S, prev_t=torch.tensor([-1, 0, 2, -2])),
        ValueError,
        "q_posterior: prev_t must be at least -1 and below t, got 2 with t = 2 at index 2",
    ),
    (
        lambda: q_posterior(X, X, 5, S, prev_t=torch.tensor(7)),
        ValueError,
        "q_posterior: prev_t must be at least -1 and below t, got 7 with t = 5",
    ),
    (
        lambda: ddim_step(X, X, 5, S, prev_t=0.5),
        TypeError,
        "ddim_step: prev_t must be an integer or an int64 tensor, got float",
    ),
    (
        lambda: ddim_step(X, X, 5, S, prev_t=T4.int()),
        TypeError,
        "ddim_step: prev_t must be an integer or an int64 tensor, got torch.int32",
    ),
    (
        lambda: ddim_step(X, X, 5, S, prev_t=T4[:3]),
        ValueError,
        "ddim_step: prev_t must have shape () or (4,), got (3,)",
    ),
    # levels
    (
        lambda: q_sample(X, 1.5, FLOW),
        IndexError,
        "q_sample: t must be a level in (0, 1], got 1.5",
    ),
    (
        lambda: q_sample(X, torch.tensor([0.1, 1.0, 0.0, 0.5]), FLOW),
        IndexError,
        "q_sample: t must be a level in (0, 1], got 0 at index 2",
    ),
    (
        lambda: q_sample(X, math.nan, EDM),
        IndexError,
        "q_sample: t must be a level in (0, inf), got nan",
    ),
    (
        lambda: q_sample(X, "0.5", FLOW),
        TypeError,
        "q_sample: t must be an integer or an int64 tensor, or a level, got str",
    ),
    (
        lambda: ddim_step(X, X, 0.5, FLOW),
        TypeError,
        "ddim_step: prev_t must be a level, as t is, got None",
    ),
    (
        lambda: ddim_step(X, X, 0.5, FLOW, prev_t=-1),
        TypeError,
        "ddim_step: prev_t must be a level, as t is, got int",
    ),
    (
        lambda: ddim_step(X, X, 0.5, FLOW, prev_t=0.6),
        ValueError,
        "ddim_step: prev_t must be at least 0 and below t, got 0.6 with t = 0.5",
    ),
    (
        lambda: noise_loss(X, X, 0.5, FLOW, key=K, weighting=torch.ones(10)),
        TypeError,
        "noise_loss: t must be a step where weighting is a tensor, got a level",
    ),
    (
        lambda: predict_x0(X, X, 1.0, FLOW),
        ValueError,
        f"predict_x0: prediction_type must be flow or sample at t = 1, {NO_SIGNAL}",
    ),
    (
        lambda: ddpm_step(X, X, 9, ZERO),
        ValueError,
        f"ddpm_step: prediction_type must be v_prediction or sample at t = 9, {NO_SIGNAL}",
    ),
    (
        lambda: sample(model, (2, 3), ZERO, progress=False),
        ValueError,
        f"sample: prediction_type must be v_prediction or sample at t = 9, {NO_SIGNAL}",
    ),
    # schedules
    (
        lambda: q_sample(X, 3, [0.1]),
        TypeError,
        "q_sample: schedule must be a NoiseSchedule, FlowSchedule or EDMSchedule, got list",
    ),
    (
        lambda: ddpm_step(X, X, 3, FLOW),
        TypeError,
        "ddpm_step: schedule must be a NoiseSchedule, got FlowSchedule",
    ),
    (
        lambda: prior_kl(X, EDM),
        TypeError,
        "prior_kl: schedule must be a NoiseSchedule, got EDMSchedule",
    ),
    (
        lambda: sample(model, (2, 3), FLOW, prediction_type="flow"),
        TypeError,
        "sample: schedule must be a NoiseSchedule, got FlowSchedule",
    ),
    # tensors
    (lambda: q_sample([1.0], 3, S), TypeError, "q_sample: x0 must be a tensor, got list"),
    (lambda: q_sample(INT, 3, S), TypeError, f"q_sample: x0 must be {FLOATS}, got torch.int64"),
    (
        lambda: noise_loss(X, X[:2], 3, S, key=K),
        ValueError,
        "noise_loss: pred and x0 must have one shape, got (4, 3, 2) and (2, 3, 2)",
    ),
    (
        lambda: ddpm_step(X, META, 3, S),
        ValueError,
        "ddpm_step: x_t and pred must be on one device, got cpu and meta",
    ),
    (
        lambda: ddpm_step(X, TWICE, 3, S),
        ValueError,
        "ddpm_step: x_t and pred must have one shape, got (4, 3, 2) and (4, 6, 2)",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, variance_type="learned_range"),
        ValueError,
        "ddpm_step: pred must have shape (4, 6, 2) for variance_type learned_range, got (4, 3, 2)",
    ),
    (
        lambda: hybrid_loss(X, X, 3, S, key=K),
        ValueError,
        "hybrid_loss: pred must have shape (4, 6, 2) for variance_type learned_range,"
        " got (4, 3, 2)",
    ),
    (
        lambda: vlb_terms(X[:, 0, 0], X[:, 0, 0], 3, S, key=K, variance_type="learned"),
        ValueError,
        "vlb_terms: pred must have shape (B, 2C, ...) for variance_type learned, got (4,)",
    ),
    # noise
    (
        lambda: q_sample(X, 3, S, key=K, noise=X),
        ValueError,
        "q_sample: expected at most one of key, noise, generator, got key and noise",
    ),
    (
        lambda: ddim_step(X, X, 3, S, noise=X, generator=GENERATOR),
        ValueError,
        "ddim_step: expected at most one of key, noise, generator, got noise and generator",
    ),
    (
        lambda: noise_loss(X, X, 3, S),
        ValueError,
        "noise_loss: expected the key or the noise that x_t was made with, got neither",
    ),
    (
        lambda: vlb_terms(X, X, 3, S),
        ValueError,
        "vlb_terms: expected the key or the noise that x_t was made with, got neither",
    ),
    (
        lambda: hybrid_loss(TWICE, X, 3, S),
        ValueError,
        "hybrid_loss: expected the key or the noise that x_t was made with, got neither",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, key=split(K, 3)),
        ValueError,
        "ddpm_step: keys, one a sample, must have shape (4, 2), got (3, 2)",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, noise=X[:1]),
        ValueError,
        "ddpm_step: noise must have shape (4, 3, 2), got (1, 3, 2)",
    ),
    # options
    (
        lambda: noise_loss(X, X, 3, S, key=K, prediction_type="v"),
        ValueError,
        "noise_loss: prediction_type must be one of epsilon, v_prediction, sample, got 'v'",
    ),
    (
        lambda: ddim_step(X, X, 3, EDM, prediction_type="flow"),
        ValueError,
        "ddim_step: prediction_type must be one of edm, epsilon, sample, got 'flow'",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, variance_type="fixed"),
        ValueError,
        "ddpm_step: variance_type must be one of fixed_small, fixed_large, learned,"
        " learned_range, got 'fixed'",
    ),
    (
        lambda: hybrid_loss(TWICE, X, 3, S, key=K, variance_type="fixed_small"),
        ValueError,
        "hybrid_loss: variance_type must be one of learned, learned_range, got 'fixed_small'",
    ),
    (
        lambda: hybrid_loss(TWICE, X, 3, S, key=K, vlb_weight=-1.0),
        ValueError,
        "hybrid_loss: vlb_weight must be at least 0 and finite, got -1.0",
    ),
    (
        lambda: noise_loss(X, X, 3, S, key=K, weighting="snr"),
        ValueError,
        "noise_loss: weighting must be one of vlb, min_snr, got 'snr'",
    ),
    (
        lambda: noise_loss(X, X, 3, FLOW, key=K, prediction_type="flow", weighting="vlb"),
        ValueError,
        "noise_loss: weighting must be one of min_snr, got 'vlb'",
    ),
    (
        lambda: noise_loss(X, X, 3, S, key=K, weighting=torch.ones(4)),
        ValueError,
        "noise_loss: weighting must have shape (1000,), got (4,)",
    ),
    (
        lambda: noise_loss(X, X, 3, S, key=K, sample_weight=torch.ones(3)),
        ValueError,
        "noise_loss: sample_weight must have shape (4,), got (3,)",
    ),
    (
        lambda: noise_loss(X, X, 3, S, key=K, sample_weight=T4),
        TypeError,
        f"noise_loss: sample_weight must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: noise_loss(X, X, 3, S, key=K, reduction="avg"),
        ValueError,
        "noise_loss: reduction must be one of none, mean, sum, batchmean, sample, got 'avg'",
    ),
    (
        lambda: vlb_terms(X, X, 3, S, key=K, units="bpd"),
        ValueError,
        "vlb_terms: units must be one of nats, bits, bits/dim, got 'bpd'",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, clip_range=-1.0),
        ValueError,
        "ddpm_step: clip_range must be c > 0 or (low, high), got -1.0",
    ),
    (
        lambda: ddim_step(X, X, 3, S, clip_range=(1.0, 0.0)),
        ValueError,
        "ddim_step: clip_range must be c > 0 or (low, high), got (1.0, 0.0)",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, clip_range=(1, 2, 3)),
        ValueError,
        "ddpm_step: clip_range must be c > 0 or (low, high), got (1, 2, 3)",
    ),
    (
        lambda: ddim_step(X, X, 3, S, clip_range=torch.tensor(1.0)),
        TypeError,
        "ddim_step: clip_range must be c > 0 or (low, high), got Tensor",
    ),
    (
        lambda: vlb_terms(X, X, 3, S, key=K, clip_range="ab"),
        TypeError,
        "vlb_terms: clip_range must be c > 0 or (low, high), got str",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, clip_range=(-1.0, "1")),
        TypeError,
        "ddpm_step: clip_range must be c > 0 or (low, high) of numbers, got (-1.0, '1')",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, threshold=0.9),
        TypeError,
        "ddpm_step: threshold must be (ratio in [0, 1], max_value > 0), got float",
    ),
    (
        lambda: ddim_step(X, X, 3, S, threshold=(0.9,)),
        ValueError,
        "ddim_step: threshold must be (ratio in [0, 1], max_value > 0), got (0.9,)",
    ),
    (
        lambda: ddim_step(X, X, 3, S, eta="0.5"),
        TypeError,
        "ddim_step: eta must be a number, got str",
    ),
    (
        lambda: ddim_step(X, X, 3, S, eta=math.nan),
        ValueError,
        "ddim_step: eta must be finite, got nan",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, uncond=X, guidance_scale="3"),
        TypeError,
        "ddpm_step: guidance_scale must be a number, got str",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, uncond=X, guidance_scale=math.nan),
        ValueError,
        "ddpm_step: guidance_scale must be finite, got nan",
    ),
    (
        lambda: ddim_step(X, X, 3, S, uncond=X, guidance_scale=math.inf),
        ValueError,
        "ddim_step: guidance_scale must be finite, got inf",
    ),
    (
        lambda: ddim_step(X, X, 3, S, uncond=X, guidance_rescale="1"),
        TypeError,
        "ddim_step: guidance_rescale must be a number, got str",
    ),
    (
        lambda: hybrid_loss(TWICE, X, 3, S, key=K, vlb_weight=None),
        TypeError,
        "hybrid_loss: vlb_weight must be a number, got NoneType",
    ),
    (
        lambda: q_sample(X, 3, S, generator=5),
        TypeError,
        "q_sample: generator must be a torch.Generator, got int",
    ),
    (
        lambda: q_sample(X[0, 0, 0], 3, S, key=split(K, 0)),
        ValueError,
        "q_sample: keys, one a sample, must have shape (2,) where the data has no dimension,"
        " got (0, 2)",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, clip_range=1.0, threshold=(0.9, 1.0)),
        ValueError,
        "ddpm_step: expected at most one of clip_range, threshold, got both",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, threshold=(1.1, 1.0)),
        ValueError,
        "ddpm_step: threshold must be (ratio in [0, 1], max_value > 0), got (1.1, 1.0)",
    ),
    (
        lambda: ddim_step(X, X, 3, S, eta=1.5),
        ValueError,
        "ddim_step: eta must be in [0, 1], got 1.5",
    ),
    (
        lambda: ddim_step(X, X, 3, FLOW, eta=0.5, prediction_type="flow"),
        ValueError,
        "ddim_step: eta must be 0 with a FlowSchedule, got 0.5",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, guidance_scale=7.5),
        ValueError,
        "ddpm_step: uncond must be given with guidance_scale 7.5 and guidance_rescale 0.0,"
        " got None",
    ),
    (
        lambda: ddim_step(X, X, 3, S, guidance_rescale=0.7),
        ValueError,
        "ddim_step: uncond must be given with guidance_scale 1.0 and guidance_rescale 0.7,"
        " got None",
    ),
    (
        lambda: ddim_step(X, X, 3, S, uncond=X, guidance_rescale=1.7),
        ValueError,
        "ddim_step: guidance_rescale must be in [0, 1], got 1.7",
    ),
    (
        lambda: ddim_step(X, X, 3, S, uncond=X[:2], guidance_scale=2.0),
        ValueError,
        "ddim_step: x_t and uncond must have one shape, got (4, 3, 2) and (2, 3, 2)",
    ),
    # out
    (
        lambda: ddim_step(X, X, 3, S, out=[0.0]),
        TypeError,
        "ddim_step: out must be a tensor, got list",
    ),
    (
        lambda: ddim_step(X, X, 3, S, out=torch.zeros(4, 3)),
        ValueError,
        "ddim_step: out must be torch.float32 of shape (4, 3, 2),"
        " got torch.float32 of shape (4, 3)",
    ),
    (
        lambda: ddim_step(X, X.double(), 3, S, out=X),
        ValueError,
        "ddim_step: out must be torch.float64 of shape (4, 3, 2),"
        " got torch.float32 of shape (4, 3, 2)",
    ),
    (
        lambda: ddim_step(PART, X, 3, S, out=NEXT),
        ValueError,
        "ddim_step: out must be x_t itself or share no memory with it, got overlapping tensors",
    ),
    (
        lambda: ddim_step(X, PART, 3, S, out=NEXT),
        ValueError,
        "ddim_step: out must share no memory with pred, got overlapping tensors",
    ),
    (
        lambda: ddpm_step(X, PART, 3, S, key=K, out=PART),
        ValueError,
        "ddpm_step: out must share no memory with pred, got overlapping tensors",
    ),
    (
        lambda: ddpm_step(X, X, 3, S, noise=PART, out=NEXT),
        ValueError,
        "ddpm_step: out must share no memory with noise, got overlapping tensors",
    ),
    (
        lambda: ddim_step(X, X, 3, S, uncond=PART, guidance_scale=2.0, out=NEXT),
        ValueError,
        "ddim_step: out must share no memory with uncond, got overlapping tensors",
    ),
    (
        lambda: ddpm_step(X, TWICE, 3, S, variance_type="learned", key=K, out=TWICE[:, 3:]),
        ValueError,
        "ddpm_step: out must share no memory with pred's variance, got overlapping tensors",
    ),
    (
        lambda: ddim_step(X, X, 3, S, out=MEMORY[:1].expand(4, 3, 2)),
        ValueError,
        "ddim_step: out must have memory for each element,"
        " got shape (4, 3, 2) with strides (0, 0, 0)",
    ),
    (
        lambda: ddim_step(X, X, 3, S, out=MEMORY.as_strided((4, 3, 2), (1, 1, 4))),
        ValueError,
        "ddim_step: out must have memory for each element,"
        " got shape (4, 3, 2) with strides (1, 1, 4)",
    ),
    (
        lambda: torch.func.vmap(lambda x: ddim_step(x, x, 3, S, out=x))(X),
        ValueError,
        "ddim_step: out must be None under torch.func's transforms, got a tensor",
    ),
    (
        lambda: ddim_step(X, NEEDS, 3, S, out=PART),
        ValueError,
        "ddim_step: with out no tensor may require grad (use torch.no_grad()), got pred that does",
    ),
    # sample
    (
        lambda: sample(model, (2, 3), S, sampler="heun"),
        ValueError,
        "sample: sampler must be one of ddpm, ddim, ode, got 'heun'",
    ),
    (lambda: sample(model, (), S), ValueError, "sample: shape must be (B, ...), got ()"),
    (
        lambda: sample(model, (2, -3), S),
        ValueError,
        "sample: shape must be (B, ...), got (2, -3)",
    ),
    (
        lambda: sample(model, (5.0, 3), S),
        TypeError,
        "sample: shape must be a sequence of integers, got (5.0, 3)",
    ),
    (lambda: sample(model, 5, S), TypeError, "sample: shape must be a sequence of integers, got 5"),
    (
        lambda: sample(model, (2,), S, variance_type="learned"),
        ValueError,
        "sample: shape must be (B, C, ...) with variance_type learned, got (2,)",
    ),
    (
        lambda: sample(lambda x, t: (x,), (2, 3), S, key=K, progress=False),
        TypeError,
        "sample: the model's output must be a tensor, got tuple",
    ),
    (
        lambda: sample(model, (2, 3), S, num_steps=10.0),
        TypeError,
        "sample: num_steps must be an integer, got float",
    ),
    (
        lambda: sample(model, (2, 3), S, sampler="ddim", eta="0"),
        TypeError,
        "sample: eta must be a number, got str",
    ),
    (
        lambda: sample(model, (2, 3), S, generator=5),
        TypeError,
        "sample: generator must be a torch.Generator, got int",
    ),
    (
        lambda: sample(model, (2, 3), S, num_steps=1001),
        ValueError,
        "sample: num_steps must be in [1, 1000], got 1001",
    ),
    (
        lambda: sample(model, (2, 3), S, callback=3),
        TypeError,
        "sample: callback must be a function or None, got int",
    ),
    (
        lambda: q_sample(X, np.array([1, 2]), S),
        TypeError,
        "q_sample: t must be an integer or an int64 tensor, got ndarray",
    ),
    (
        lambda: sample(model, (2, 3), S, spacing="even"),
        ValueError,
        "sample: spacing must be one of leading, linspace, trailing, got 'even'",
    ),
    (
        lambda: sample(model, (2, 3), S, eta=0.5),
        ValueError,
        "sample: eta must be 0 with sampler 'ddpm', got 0.5",
    ),
    (
        lambda: sample(model, (2, 3), S, sampler="ode", clip_range=1.0),
        ValueError,
        "sample: clip_range must be None with sampler 'ode', got 1.0",
    ),
    (
        lambda: sample(model, (2, 3), S, key=K, generator=GENERATOR),
        ValueError,
        "sample: expected at most one of key, generator, got key and generator",
    ),
    (
        lambda: sample(model, (2, 3), S, key=split(K, 3)),
        ValueError,
        "sample: keys, one a sample, must have shape (2, 2), got (3, 2)",
    ),
    (
        lambda: sample(model, (2, 3), S, dtype=torch.int64),
        TypeError,
        f"sample: dtype must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: sample(model, (2, 3), S, key=K, progress=False),
        ValueError,
        "sample: the model must return shape (2, 3), got (2, 1)",
    ),
    (
        lambda: sample(model, (2, 3), S, key=K, variance_type="learned", progress=False),
        ValueError,
        "sample: the model must return shape (2, 6), got (2, 1)",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[text[:70] for *_, text in ERRORS])
def test_message(call, kind, text):
    state, own = torch.get_rng_state(), GENERATOR.get_state()
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value) == text
    # Nothing was drawn or written before the check.
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(own, GENERATOR.get_state())
    assert not any(x.any() for x in (X, TWICE, MEMORY))


def test_every_message_has_the_same_form():
    for *_, text in ERRORS:
        assert re.fullmatch(r"\w+: .+, got .+", text), text


def test_large_batches_are_checked_too():
    x = torch.zeros(5000, 1)
    t = torch.full((5000,), 999)
    q_sample(x, t, S)
    t[4321] = 1000
    with pytest.raises(IndexError, match=r"got 1000 at index 4321$"):
        q_sample(x, t, S)
