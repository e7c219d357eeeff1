"""Bad input: the type and the text of every error, and that nothing happens before it."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from support import NO_CLAMP, skip_unless_usable

import genkern
from genkern._ops import checks
from genkern._ops.op import BACKENDS, OPS
from genkern.gan import (
    clip_weights_,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    interpolate,
    js_divergence,
    optimal_discriminator,
    r1_penalty,
)
from genkern.random import fold_in, key, new_key, normal, split, uniform
from genkern.vae import (
    DiagonalGaussian,
    active_units,
    bernoulli_nll,
    elbo_loss,
    gaussian_nll,
    kl,
    kl_weight,
    rsample,
    rsample_kl,
)

X = torch.zeros(2, 3)
K = key(0)
INT = torch.zeros(2, 3, dtype=torch.int64)
META = torch.zeros(2, 3, device="meta")
GENERATOR = torch.Generator()
FLOATS = "float32, float64, bfloat16 or float16"
WORDS = "none, mean, sum, batchmean, sample"
INF = math.inf
KINDS = "minimax, saturating, non_saturating, hinge, wasserstein, least_squares, relativistic"

# (call, type, text): the whole text.
ERRORS = [
    # random
    (lambda: key(1.5), TypeError, "key: seed must be an integer, got float"),
    (lambda: key("1"), TypeError, "key: seed must be an integer, got str"),
    (lambda: key(2**64), ValueError, f"key: seed must be in [-2**63, 2**64), got {2**64}"),
    (
        lambda: key(-(2**63) - 1),
        ValueError,
        f"key: seed must be in [-2**63, 2**64), got {-(2**63) - 1}",
    ),
    (lambda: key(True), TypeError, "key: seed must be an integer, got bool"),
    (lambda: new_key(2.0), TypeError, "new_key: batch must be an integer, got float"),
    (
        lambda: new_key(generator=5),
        TypeError,
        "new_key: generator must be a torch.Generator, got int",
    ),
    (lambda: split(K, 2.0), TypeError, "split: num must be an integer, got float"),
    (lambda: split(K, X[0, 0]), TypeError, "split: num must be an integer, got Tensor"),
    (
        lambda: fold_in(K, True),
        TypeError,
        "fold_in: data must be an integer or a tensor, got bool",
    ),
    (
        lambda: fold_in(K, 2**63),
        ValueError,
        f"fold_in: data must be in [-2**63, 2**63), got {2**63}",
    ),
    (
        lambda: normal(K, 2.5),
        TypeError,
        "normal: sizes must be a sequence of integers, got (2.5,)",
    ),
    (
        lambda: normal(K, 2, (3,)),
        TypeError,
        "normal: sizes must be a sequence of integers, got (2, (3,))",
    ),
    (
        lambda: uniform(K, (2, True)),
        TypeError,
        "uniform: sizes must be a sequence of integers, got (2, True)",
    ),
    (lambda: new_key(-1), ValueError, "new_key: batch must be at least 0, got -1"),
    (lambda: split([0, 1]), TypeError, "split: key must be a tensor, got list"),
    (lambda: split(X), TypeError, "split: key must be uint64 or int64, got torch.float32"),
    (lambda: split(INT), ValueError, "split: key must have shape (2,) or (B, 2), got (2, 3)"),
    (
        lambda: split(INT[0]),
        ValueError,
        "split: key must have shape (2,) or (B, 2), got (3,)",
    ),
    (
        lambda: split(torch.zeros(1, 1, 2, dtype=torch.int64)),
        ValueError,
        "split: key must have shape (2,) or (B, 2), got (1, 1, 2)",
    ),
    (lambda: split(K[0]), ValueError, "split: key must have shape (2,) or (B, 2), got ()"),
    (lambda: split(K, -1), ValueError, "split: num must be at least 0, got -1"),
    (lambda: fold_in(X, 1), TypeError, "fold_in: key must be uint64 or int64, got torch.float32"),
    (lambda: fold_in(K, 1.0), TypeError, "fold_in: data must be an integer or a tensor, got float"),
    (lambda: fold_in(K, X), TypeError, "fold_in: data must be int64, got torch.float32"),
    (
        lambda: fold_in(K, INT),
        ValueError,
        "fold_in: data must have shape () or (B,) to go with the key, got data (2, 3) and key (2,)",
    ),
    (
        lambda: fold_in(split(K, 4), INT[0]),
        ValueError,
        "fold_in: data must have shape () or (B,) to go with the key, got data (3,) and key (4, 2)",
    ),
    (lambda: normal(X, 3), TypeError, "normal: key must be uint64 or int64, got torch.float32"),
    (lambda: normal(K, 3, -1), ValueError, "normal: sizes must be at least 0, got (3, -1)"),
    (
        lambda: normal(split(K, 4), 3, 4),
        ValueError,
        "normal: with a key of shape (4, 2) the first size must be 4, got (3, 4)",
    ),
    (
        lambda: uniform(split(K, 4)),
        ValueError,
        "uniform: with a key of shape (4, 2) the first size must be 4, got ()",
    ),
    (
        lambda: uniform(K, 3, dtype=torch.int64),
        TypeError,
        f"uniform: dtype must be {FLOATS}, got torch.int64",
    ),
    # noise sources
    (
        lambda: rsample(X, X, key=K, noise=X),
        ValueError,
        "rsample: expected at most one of key, noise, generator, got key and noise",
    ),
    (
        lambda: rsample_kl(X, X, key=K, noise=X, generator=GENERATOR),
        ValueError,
        "rsample_kl: expected at most one of key, noise, generator,"
        " got key and noise and generator",
    ),
    (
        lambda: rsample(X, X, noise=X[0]),
        ValueError,
        "rsample: noise must have shape (2, 3), got (3,)",
    ),
    (
        lambda: rsample(X, X, noise=X, num_samples=2),
        ValueError,
        "rsample: noise must have shape (2, 2, 3), got (2, 3)",
    ),
    (
        lambda: rsample(X, X, noise=INT),
        TypeError,
        f"rsample: noise must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: rsample(X, X, noise=META),
        ValueError,
        "rsample: noise and mu must be on one device, got meta and cpu",
    ),
    (
        lambda: rsample(X, X, key=K.to("meta")),
        ValueError,
        "rsample: key and mu must be on one device, got meta and cpu",
    ),
    (
        lambda: rsample(X, X, key=split(K, 3)),
        ValueError,
        "rsample: keys, one a sample, must have shape (2, 2), got (3, 2)",
    ),
    (
        lambda: rsample(X[0, 0], X[0, 0], key=split(K, 0)),
        ValueError,
        "rsample: keys, one a sample, must have shape (2,) where the data has no dimension,"
        " got (0, 2)",
    ),
    (
        lambda: rsample(X, X, generator=5),
        TypeError,
        "rsample: generator must be a torch.Generator, got int",
    ),
    (
        lambda: rsample(X, X, num_samples=2.0),
        TypeError,
        "rsample: num_samples must be an integer, got float",
    ),
    (
        lambda: rsample(X, X, num_samples=-1),
        ValueError,
        "rsample: num_samples must be at least 0, got -1",
    ),
    # mu and logvar
    (lambda: kl([1.0], X), TypeError, "kl: mu must be a tensor, got list"),
    (lambda: kl(INT, X), TypeError, f"kl: mu must be {FLOATS}, got torch.int64"),
    (
        lambda: rsample_kl(X, X.to(torch.complex64)),
        TypeError,
        f"rsample_kl: logvar must be {FLOATS}, got torch.complex64",
    ),
    (
        lambda: kl(X, X[:, :2]),
        ValueError,
        "kl: mu and logvar must have one shape, got (2, 3) and (2, 2)",
    ),
    (
        lambda: rsample(X, X[0]),
        ValueError,
        "rsample: mu and logvar must have one shape, got (2, 3) and (3,)",
    ),
    (
        lambda: kl(X, META),
        ValueError,
        "kl: mu and logvar must be on one device, got cpu and meta",
    ),
    # options
    (
        lambda: kl(X, X, reduction="avg"),
        ValueError,
        f"kl: reduction must be one of {WORDS}, got 'avg'",
    ),
    (
        lambda: rsample_kl(X, X, reduction=None),
        ValueError,
        f"rsample_kl: reduction must be one of {WORDS}, got None",
    ),
    (
        lambda: kl(X, X, "zero"),
        TypeError,
        "kl: prior_mu must be a tensor or a number, got str",
    ),
    (
        lambda: kl(X, X, None, INT),
        TypeError,
        f"kl: prior_logvar must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: kl(X, X, X[:, :2]),
        ValueError,
        "kl: prior_mu must broadcast to mu's shape (2, 3), got (2, 2)",
    ),
    (
        lambda: kl(X, X, torch.zeros(4, 2, 3)),
        ValueError,
        "kl: prior_mu must broadcast to mu's shape (2, 3), got (4, 2, 3)",
    ),
    (
        lambda: rsample_kl(X, X, prior_mu=META),
        ValueError,
        "rsample_kl: prior_mu and mu must be on one device, got meta and cpu",
    ),
    (
        lambda: kl(X, X, free_bits=-0.1),
        ValueError,
        "kl: free_bits must be at least 0 and finite, got -0.1",
    ),
    (
        lambda: kl(X, X, free_bits=INF - INF),
        ValueError,
        "kl: free_bits must be at least 0 and finite, got nan",
    ),
    (
        lambda: kl(X, X, free_bits="0.1"),
        TypeError,
        "kl: free_bits must be a number, got str",
    ),
    (lambda: kl(X, X, True), TypeError, "kl: prior_mu must be a tensor or a number, got bool"),
    (
        lambda: kl(X, X, logvar_clamp=3.0),
        TypeError,
        "kl: logvar_clamp must be (low, high), got float",
    ),
    (
        lambda: kl(X, X, logvar_clamp=(-1.0, 0.0, 1.0)),
        ValueError,
        "kl: logvar_clamp must be (low, high), got (-1.0, 0.0, 1.0)",
    ),
    (
        lambda: rsample_kl(X, X, logvar_clamp=("a", 1.0)),
        TypeError,
        "rsample_kl: logvar_clamp must be (low, high) of numbers, got ('a', 1.0)",
    ),
    (
        lambda: rsample_kl(X, X, logvar_clamp=(-1.0, INF - INF)),
        ValueError,
        "rsample_kl: logvar_clamp must be (low, high), got (-1.0, nan)",
    ),
    (
        lambda: kl(X, X, logvar_clamp=(1.0, -1.0)),
        ValueError,
        "kl: logvar_clamp must be (low, high), got (1.0, -1.0)",
    ),
    (
        lambda: gaussian_nll(X, X, sigma=0.0),
        ValueError,
        "gaussian_nll: sigma must be in [2**-126, 2**126], got 0.0",
    ),
    (
        lambda: gaussian_nll(X, X, sigma=INF),
        ValueError,
        "gaussian_nll: sigma must be in [2**-126, 2**126], got inf",
    ),
    (
        lambda: gaussian_nll(X, X, sigma="1"),
        TypeError,
        "gaussian_nll: sigma must be a number, got str",
    ),
    (
        lambda: gaussian_nll(X, X, sigma=torch.tensor(1.0)),
        TypeError,
        "gaussian_nll: sigma must be a number, got Tensor",
    ),
    (
        lambda: gaussian_nll(X, X, sigma=1e-40),
        ValueError,
        "gaussian_nll: sigma must be in [2**-126, 2**126], got 1e-40",
    ),
    (
        lambda: gaussian_nll(X.half(), X.half(), sigma=1e39),
        ValueError,
        "gaussian_nll: sigma must be in [2**-126, 2**126], got 1e+39",
    ),
    (
        lambda: gaussian_nll(X.double(), X, sigma=1e-308),
        ValueError,
        "gaussian_nll: sigma must be in [2**-1022, 2**1022], got 1e-308",
    ),
    (
        lambda: gaussian_nll(X, X[:1]),
        ValueError,
        "gaussian_nll: x_hat and x must have one shape, got (2, 3) and (1, 3)",
    ),
    (
        lambda: bernoulli_nll(X, INT),
        TypeError,
        f"bernoulli_nll: x must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: bernoulli_nll(X, X, reduction="max"),
        ValueError,
        f"bernoulli_nll: reduction must be one of {WORDS}, got 'max'",
    ),
    (
        lambda: elbo_loss(X, X, X, X, likelihood="poisson"),
        ValueError,
        "elbo_loss: likelihood must be one of bernoulli, gaussian, got 'poisson'",
    ),
    (
        lambda: elbo_loss(X, X, INT.view(3, 2).float(), X.view(3, 2)),
        ValueError,
        "elbo_loss: x_hat and mu must have one batch size, got shapes (2, 3) and (3, 2)",
    ),
    (
        lambda: elbo_loss(X, X[:1], X, X),
        ValueError,
        "elbo_loss: x_hat and x must have one shape, got (2, 3) and (1, 3)",
    ),
    (
        lambda: elbo_loss(X, X, X, INT),
        TypeError,
        f"elbo_loss: logvar must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: elbo_loss(X, X, META, META),
        ValueError,
        "elbo_loss: x_hat and mu must be on one device, got cpu and meta",
    ),
    (
        lambda: elbo_loss(X, X, X, X, sigma=-3.0),
        ValueError,
        "elbo_loss: sigma must be in [2**-126, 2**126], got -3.0",
    ),
    (
        lambda: elbo_loss(X, X, X, X, free_bits=-1.0),
        ValueError,
        "elbo_loss: free_bits must be at least 0 and finite, got -1.0",
    ),
    (
        lambda: elbo_loss(X, X, X, X, beta="1"),
        TypeError,
        "elbo_loss: beta must be a number, got str",
    ),
    (
        lambda: kl_weight("1", warmup=5),
        TypeError,
        "kl_weight: step must be a number, got str",
    ),
    (
        lambda: kl_weight(1, warmup=5, cycles=1.5),
        TypeError,
        "kl_weight: cycles must be an integer, got float",
    ),
    (
        lambda: active_units(X, threshold=None),
        TypeError,
        "active_units: threshold must be a number, got NoneType",
    ),
    (
        lambda: DiagonalGaussian(X[:, :2]).kl(5),
        TypeError,
        "kl: other must be a DiagonalGaussian, got int",
    ),
    (
        lambda: kl_weight(1, warmup=0),
        ValueError,
        "kl_weight: warmup must be positive, got 0",
    ),
    (lambda: kl_weight(-1, warmup=5), ValueError, "kl_weight: step must be at least 0, got -1"),
    (
        lambda: kl_weight(1, warmup=5, kind="step"),
        ValueError,
        "kl_weight: kind must be one of linear, cosine, sigmoid, cyclical, got 'step'",
    ),
    (
        lambda: kl_weight(1, warmup=5, cycles=2),
        ValueError,
        "kl_weight: cycles must be at least 1, and 1 unless kind is cyclical, got 2 with linear",
    ),
    (
        lambda: kl_weight(1, warmup=5, kind="cyclical", cycles=0),
        ValueError,
        "kl_weight: cycles must be at least 1, and 1 unless kind is cyclical, got 0 with cyclical",
    ),
    (
        lambda: active_units(X[:1]),
        ValueError,
        "active_units: mu must have at least 2 samples in dim 0, got (1, 3)",
    ),
    (lambda: active_units(INT), TypeError, f"active_units: mu must be {FLOATS}, got torch.int64"),
    (
        lambda: DiagonalGaussian(X),
        ValueError,
        "DiagonalGaussian: moments must have shape (B, 2C, ...), got (2, 3)",
    ),
    (
        lambda: DiagonalGaussian(X[0]),
        ValueError,
        "DiagonalGaussian: moments must have shape (B, 2C, ...), got (3,)",
    ),
    (
        lambda: DiagonalGaussian(X[:, :2], logvar_clamp=(1, 0)),
        ValueError,
        "DiagonalGaussian: logvar_clamp must be (low, high), got (1, 0)",
    ),
    (
        lambda: DiagonalGaussian(X[:, :2]).nll(X),
        ValueError,
        "nll: x and mean must have one shape, got (2, 3) and (2, 1)",
    ),
    # gan
    (
        lambda: discriminator_loss(X, X, kind="wgan"),
        ValueError,
        f"discriminator_loss: kind must be one of {KINDS}, got 'wgan'",
    ),
    (
        lambda: generator_loss(X, kind=None),
        ValueError,
        f"generator_loss: kind must be one of {KINDS}, got None",
    ),
    (
        lambda: discriminator_loss(INT, X),
        TypeError,
        f"discriminator_loss: real_logits must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: discriminator_loss(X, [0.0]),
        TypeError,
        "discriminator_loss: fake_logits must be a tensor, got list",
    ),
    (
        lambda: generator_loss(INT),
        TypeError,
        f"generator_loss: fake_logits must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: discriminator_loss(X, META),
        ValueError,
        "discriminator_loss: real_logits and fake_logits must be on one device, got cpu and meta",
    ),
    (
        lambda: discriminator_loss(X, X[:1], reduction="none"),
        ValueError,
        "discriminator_loss: real_logits and fake_logits must have one shape with"
        " reduction='none', got (2, 3) and (1, 3)",
    ),
    (
        lambda: discriminator_loss(X, X[:, :1], reduction="sample"),
        ValueError,
        "discriminator_loss: real_logits and fake_logits must have one shape with"
        " reduction='sample', got (2, 3) and (2, 1)",
    ),
    (
        lambda: discriminator_loss(X, X[0], kind="relativistic"),
        ValueError,
        "discriminator_loss: real_logits and fake_logits must have one shape with"
        " kind='relativistic', got (2, 3) and (3,)",
    ),
    (
        lambda: discriminator_loss(X, X, kind="hinge", label_smoothing=0.1),
        ValueError,
        "discriminator_loss: label_smoothing must be 0 with kind='hinge', got 0.1",
    ),
    (
        lambda: discriminator_loss(X, X, label_smoothing=1.0),
        ValueError,
        "discriminator_loss: label_smoothing must be in [0, 1), got 1.0",
    ),
    (
        lambda: discriminator_loss(X, X, label_smoothing=INF - INF),
        ValueError,
        "discriminator_loss: label_smoothing must be in [0, 1), got nan",
    ),
    (
        lambda: discriminator_loss(X, X, label_smoothing="0.1"),
        TypeError,
        "discriminator_loss: label_smoothing must be a number, got str",
    ),
    (
        lambda: gradient_penalty(X, center="1"),
        TypeError,
        "gradient_penalty: center must be a number, got str",
    ),
    (
        lambda: interpolate(X, X, generator=5),
        TypeError,
        "interpolate: generator must be a torch.Generator, got int",
    ),
    (
        lambda: clip_weights_([X], "1"),
        TypeError,
        "clip_weights_: bound must be a number, got str",
    ),
    (
        lambda: clip_weights_(torch.zeros(7).as_strided((4, 4), (1, 1)), 1.0),
        ValueError,
        "clip_weights_: params[0] must have memory for each element,"
        " got shape (4, 4) with strides (1, 1)",
    ),
    (
        lambda: discriminator_loss(X, X, reduction="avg"),
        ValueError,
        f"discriminator_loss: reduction must be one of {WORDS}, got 'avg'",
    ),
    (
        lambda: generator_loss(X, kind="relativistic"),
        ValueError,
        "generator_loss: kind='relativistic' needs real_logits, got None",
    ),
    (
        lambda: generator_loss(X, X[:1], kind="relativistic"),
        ValueError,
        "generator_loss: fake_logits and real_logits must have one shape, got (2, 3) and (1, 3)",
    ),
    (
        lambda: gradient_penalty(X[0, 0]),
        ValueError,
        "gradient_penalty: grads must have a batch dimension, (B, ...), got ()",
    ),
    (
        lambda: r1_penalty(X[0, 0]),
        ValueError,
        "r1_penalty: grads must have a batch dimension, (B, ...), got ()",
    ),
    (
        lambda: gradient_penalty((X,)),
        TypeError,
        "gradient_penalty: grads must be a tensor, got tuple",
    ),
    (lambda: r1_penalty(INT), TypeError, f"r1_penalty: grads must be {FLOATS}, got torch.int64"),
    (
        lambda: gradient_penalty(X, center=-1.0),
        ValueError,
        "gradient_penalty: center must be at least 0 and finite, got -1.0",
    ),
    (
        lambda: r1_penalty(X, reduction="max"),
        ValueError,
        f"r1_penalty: reduction must be one of {WORDS}, got 'max'",
    ),
    (
        lambda: interpolate(X, X[:1]),
        ValueError,
        "interpolate: real and fake must have one shape, got (2, 3) and (1, 3)",
    ),
    (
        lambda: interpolate(X[0, 0], X[0, 0]),
        ValueError,
        "interpolate: real must have a batch dimension, (B, ...), got ()",
    ),
    (
        lambda: interpolate(X, X, noise=X),
        ValueError,
        "interpolate: noise must have shape (2,), got (2, 3)",
    ),
    (
        lambda: interpolate(X, X, key=K, generator=GENERATOR),
        ValueError,
        "interpolate: expected at most one of key, noise, generator, got key and generator",
    ),
    (
        lambda: interpolate(X, X, key=split(K, 3)),
        ValueError,
        "interpolate: keys, one a sample, must have shape (2, 2), got (3, 2)",
    ),
    (
        lambda: optimal_discriminator(X, X[0]),
        ValueError,
        "optimal_discriminator: log_p and log_q must have one shape, got (2, 3) and (3,)",
    ),
    (
        lambda: js_divergence(X, INT),
        TypeError,
        f"js_divergence: fake_logits must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: clip_weights_([X], 0.0),
        ValueError,
        "clip_weights_: bound must be positive and finite, got 0.0",
    ),
    (
        lambda: clip_weights_([X], INF),
        ValueError,
        "clip_weights_: bound must be positive and finite, got inf",
    ),
    (
        lambda: clip_weights_([X.clone(), INT], 1.0),
        TypeError,
        f"clip_weights_: params[1] must be {FLOATS}, got torch.int64",
    ),
    (
        lambda: clip_weights_(X[:1].expand(2, 3), 1.0),
        ValueError,
        "clip_weights_: params[0] must have memory for each element,"
        " got shape (2, 3) with strides (0, 1)",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[text[:60] for *_, text in ERRORS])
def test_message(call, kind, text):
    state, own = torch.get_rng_state(), GENERATOR.get_state()
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value) == text
    # Nothing was drawn before the check.
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(own, GENERATOR.get_state())


def test_every_message_has_the_same_form():
    for *_, text in ERRORS:
        assert re.fullmatch(r"\w+: .+, got .+", text), text


# ---- the operators called directly: what reads memory itself checks, and raises

F = torch.float32
BAD_CALLS = {
    "key of three words": ("normal", (INT[0], [4], F)),
    "key of float": ("normal", (X[0, :2], [4], F)),
    "keys for another batch": ("normal", (split(K, 3), [4, 2], F)),
    "keys for a scalar": ("normal", (split(K, 3), [], F)),
    "integer noise": ("uniform", (K, [4], torch.int64)),
    "split of three words": ("split", (INT[0], 2)),
    "negative split": ("split", (K, -1)),
    "float data": ("fold_in", (K, X[0])),
    "data for another batch": ("fold_in", (split(K, 3), torch.arange(4))),
    "no noise": ("rsample", (X, X, None, None, None, *NO_CLAMP)),
    "logvar of another shape": ("rsample", (X, X[:1], K, None, None, *NO_CLAMP)),
    "logvar of another dtype": ("rsample", (X, X.double(), K, None, None, *NO_CLAMP)),
    "noise of another shape": ("rsample", (X, X, None, X[:1], None, *NO_CLAMP)),
    "noise without samples": ("rsample", (X, X, None, X, 2, *NO_CLAMP)),
    "keys of another batch": ("rsample", (X, X, split(K, 3), None, None, *NO_CLAMP)),
    "integers": ("kl", (INT, INT, None, None, 0.0, 0.0, 0.0, *NO_CLAMP, 2)),
    "prior of another shape": ("kl", (X, X, X[:1], None, 0.0, 0.0, 0.0, *NO_CLAMP, 2)),
    "x of another shape": ("bernoulli_nll", (X, X[:1], 2)),
    "upstream of another shape": ("bernoulli_nll_backward", (X[:1], X, X, 0, 3)),
    "an unknown kind": ("discriminator_loss", (X, X, 6, 0.0, 1)),
    "elements of two shapes": ("discriminator_loss", (X, X[:1], 0, 0.0, 0)),
    "logits of two dtypes": ("discriminator_loss", (X, X[:1].double(), 0, 0.0, 1)),
    "relativistic without real": ("generator_loss", (X, None, 5, 1)),
    "relativistic of two shapes": ("generator_loss_forming", (X, X[:1], 5, 1)),
    "loss's upstream of another shape": ("generator_loss_backward", (X[0], X, None, 0, 1, 1)),
    "a penalty of a scalar": ("gradient_penalty", (X[0, 0], 1.0, 1.0, 1)),
    "penalty's upstream of another shape": ("gradient_penalty_backward", (X[0], X, 1.0, 1.0, 4)),
    "products of another shape": (
        "gradient_penalty_backward_backward",
        (X[:1], X[0, 0], X, 1.0, 1.0, 1, 3),
    ),
    "points without weights": ("interpolate", (X, X, None, None)),
    "weights of another shape": ("interpolate", (X, X, None, X[0])),
    "points of two shapes": ("interpolate", (X, X[:1], K, None)),
    "densities of two shapes": ("optimal_discriminator", (X, X[:1])),
    "variance of another shape": ("gaussian_nll", (X, X, X[:1], 1.0, *NO_CLAMP, 2)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_direct_calls_of_native_code_raise(name):
    skip_unless_usable(next(b for b in BACKENDS if b.name == "native"))
    op, args = BAD_CALLS[name]
    with genkern.use_backend("native"), pytest.raises((RuntimeError, ValueError, TypeError)):
        OPS[op].overload(*args)


def test_unknown_backend_and_operator():
    with pytest.raises(ValueError, match=r"^use_backend: name must be one of native, triton, ref"):
        genkern.use_backend("cuda")
    with pytest.raises(ValueError, match=r"^explain: op must be one of normal, .*, got 'conv2d'$"):
        genkern.explain("conv2d", X)
    with pytest.raises(
        ValueError, match=r"^explain: expected at least one tensor argument of kl, got none$"
    ):
        genkern.explain(kl)
    with pytest.raises(ValueError, match=r"^explain: op must be one of .*, got 'Linear'$"):
        genkern.explain(torch.nn.Linear, X)


# ---- memory that is written


def _addresses(x):
    """The numbers of the elements in x's storage."""
    offsets = torch.arange(1000).as_strided(x.shape, x.stride(), x.storage_offset())
    return offsets.reshape(-1).tolist()


def _layouts():
    """Tensors of one shape in one storage, of many strides and offsets."""
    memory = torch.zeros(1000)
    for strides in itertools.product((0, 1, 2, 3, 4, 6, 7, 24), repeat=3):
        for offset in (0, 1, 2, 3, 5, 6, 12, 18, 24, 36):
            yield memory.as_strided((4, 3, 2), strides, offset)


def test_memory_of_its_own_is_never_taken_for_granted():
    accepted = refused = 0
    for x in _layouts():
        found = _addresses(x)
        try:
            checks.own_memory("f", "x", x)
            assert len(set(found)) == len(found)
            accepted += 1
        except ValueError:
            refused += 1
    assert accepted and refused
    # What views of tensors with their own memory look like is accepted.
    x = torch.zeros(4, 6, 5, 8)
    for view in (
        x,
        x[:, 1::2],
        x.permute(3, 1, 0, 2),
        x[..., ::3],
        x[:1].expand(1, 6, 5, 8),
        x[:0],
    ):
        checks.own_memory("f", "x", view)


def test_shared_memory_is_found_exactly_where_the_strides_are_equal():
    outs = []
    for out in _layouts():
        try:
            checks.own_memory("f", "out", out)
        except ValueError:
            continue
        outs.append((out, set(_addresses(out))))
    answers = set()
    for out, taken in outs[::7]:
        for x, others in outs[::3]:
            shared = not taken.isdisjoint(others)
            got = checks.share_memory(x, out)
            equal = x.stride() == out.stride()
            assert got == shared if equal else got or not shared
            answers.add((equal, shared, got))
    assert {(True, True, True), (True, False, False), (False, False, False)} <= answers
