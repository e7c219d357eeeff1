"""What `explain` says of every public function: the operators that its calls run, and no others."""

from __future__ import annotations

import inspect

import pytest
from support import randn
from torch.utils._python_dispatch import TorchDispatchMode

import genkern
from genkern import diffusion, gan, random, vae
from genkern._ops.op import BACKENDS
from genkern.backends import OPERATORS

X = randn(2, 4)
WIDE = X.double()
TWICE = randn(2, 8)
K = random.key(0)
S = diffusion.NoiseSchedule.linear(10)
EDM = diffusion.EDMSchedule(10)
POSTERIOR = vae.DiagonalGaussian(TWICE)
LEARNED = {"key": K, "variance_type": "learned"}
GUIDED = {"uncond": X, "guidance_scale": 2.0, "guidance_rescale": 0.5}


def call(function, *args, **kwargs):
    return function, args, kwargs


# At least one call of every public function; together they run all that it names.
CALLS = [
    call(random.key, 1),
    call(random.new_key),
    call(random.normal, K, 3),
    call(random.uniform, K, 3),
    call(random.split, K),
    call(random.fold_in, K, 1),
    call(vae.rsample, X, X),
    call(vae.kl, X, X),
    call(vae.rsample_kl, X, X, key=K),
    call(vae.bernoulli_nll, X, X),
    call(vae.gaussian_nll, X, X),
    call(vae.elbo_loss, X, X, X, X),
    call(vae.elbo_loss, X, X, X, X, likelihood="gaussian"),
    call(vae.kl_weight, 1, warmup=2),
    call(vae.active_units, X),
    call(POSTERIOR.sample),
    call(POSTERIOR.mode),
    call(POSTERIOR.kl),
    call(POSTERIOR.nll, X),
    call(diffusion.q_sample, X, 3, S),
    call(diffusion.noise_loss, X, X, 3, S, key=K),
    call(diffusion.noise_loss, WIDE, X, 3, S, key=K),
    call(diffusion.q_posterior, X, X, 3, S),
    call(diffusion.predict_x0, X, X, 3, S),
    call(diffusion.score, X, 3, S),
    call(diffusion.ddpm_step, X, X, 3, S, **GUIDED),
    call(diffusion.ddpm_step, X, X, 3, S, threshold=(0.9, 2.0), out=X.clone()),
    call(diffusion.ddim_step, X, X, 3, S, **GUIDED),
    call(diffusion.ddim_step, X, X, 3, S, threshold=(0.9, 2.0), out=X.clone()),
    call(diffusion.vlb_terms, X, X, 3, S, key=K),
    call(diffusion.vlb_terms, WIDE, X, 3, S, key=K),
    call(diffusion.hybrid_loss, TWICE, X, 3, S, **LEARNED),
    call(diffusion.hybrid_loss, TWICE.double(), X, 3, S, **LEARNED),
    call(diffusion.prior_kl, X, S),
    call(diffusion.sample, lambda x, t: x, (2, 4), S, progress=False),
    call(diffusion.sample, lambda x, t: x, (2, 4), S, sampler="ode", progress=False),
    call(EDM.model_input, X, 3),
    call(gan.discriminator_loss, X, X),
    call(gan.generator_loss, X),
    call(gan.gradient_penalty, X),
    call(gan.r1_penalty, X),
    call(gan.interpolate, X, X),
    call(gan.optimal_discriminator, X, X),
    call(gan.js_divergence, X, X),
    call(gan.clip_weights_, [X.clone()], 1.0),
]


class Recorder(TorchDispatchMode):
    """Notes the operators of genkern that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "genkern":
            self.names.add(func._schema.name.removeprefix("genkern::"))
        return func(*args, **(kwargs or {}))


def test_every_public_function_names_the_operators_it_runs():
    ran = {}
    for function, args, kwargs in CALLS:
        with Recorder() as recorder:
            function(*args, **kwargs)
        ran.setdefault(function.__qualname__, set()).update(recorder.names)
    assert ran == {name: set(operators) for name, operators in OPERATORS.items()}
    public = {
        name
        for module in (random, vae, diffusion, gan)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    methods = {"DiagonalGaussian.sample", "DiagonalGaussian.mode", "DiagonalGaussian.kl"}
    methods |= {"DiagonalGaussian.nll", "EDMSchedule.model_input"}
    assert set(OPERATORS) == public | methods


@pytest.mark.parametrize(
    ("function", "args", "kwargs"), CALLS, ids=[function.__qualname__ for function, *_ in CALLS]
)
def test_every_call_is_explained(function, args, kwargs):
    name = function.__qualname__
    text = genkern.explain(function, *args, **kwargs)
    lines = text.splitlines()
    operators = OPERATORS[name]
    if not operators:
        assert lines == [
            f"genkern.{name} runs no operator: it is plain Python, or PyTorch on any device"
        ]
        return
    if operators != (name,):
        assert lines.pop(0) == f"genkern.{name} runs {', '.join(operators)}"
    assert len(lines) == len(operators) * (1 + len(BACKENDS))
    for operator, header in zip(operators, lines[:: 1 + len(BACKENDS)], strict=True):
        assert header.startswith(f"genkern.{operator}: float") or "uint64" in header
    assert lines.count("  reference: ready") == len(operators)
    if not inspect.ismethod(function) and name != "sample":
        assert genkern.explain(name, *args, **kwargs) == text


def test_a_call_without_tensors_has_the_device_of_its_schedule():
    lines = genkern.explain("sample", None, (2, 3), S.to("meta")).splitlines()
    assert lines[1] == "genkern.split: float32 (0,) on meta"
    assert lines[2] == "  native: there is no native library for meta"
    lines = genkern.explain("q_sample", noise=X.to("meta")).splitlines()
    assert lines[1] == "genkern.affine: float32 (2, 4) on meta"
