"""guided-diffusion's methods against its mathematics in float64; the package is not on PyPI."""

from __future__ import annotations

import enum
import logging
import math

import numpy as np
import pytest
import torch
from support import decoder_nll, randn

from genkern import random
from genkern.integrations import _patch
from genkern.integrations import guided_diffusion as integration

T = 20
SHAPE = (4, 2, 3, 3)
Mean = enum.Enum("ModelMeanType", ["PREVIOUS_X", "START_X", "EPSILON"])
Var = enum.Enum("ModelVarType", ["LEARNED", "FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE"])
Loss = enum.Enum("LossType", ["MSE", "RESCALED_MSE", "KL", "RESCALED_KL"])


class GaussianDiffusion:
    """The attributes of guided-diffusion's class, and its methods as formulas, in float64."""

    def __init__(self, mean="EPSILON", var="LEARNED_RANGE", loss="RESCALED_MSE"):
        self.betas = np.linspace(1e-3, 0.2, T)
        self.num_timesteps = T
        self.model_mean_type, self.model_var_type, self.loss_type = Mean[mean], Var[var], Loss[loss]
        a = self.a = np.cumprod(1.0 - self.betas)
        p = self.p = np.append(1.0, a[:-1])
        self.variance = self.betas * (1 - p) / (1 - a)
        self.log_variance = np.log(np.append(self.variance[1], self.variance[1:]))

    def _scale_timesteps(self, t):
        return t * (1000.0 / self.num_timesteps)

    def at(self, values, t):
        return torch.as_tensor(values)[t].reshape(-1, 1, 1, 1)

    def q_sample(self, x_start, t, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        a = self.at(self.a, t)
        return a.sqrt() * x_start.double() + (1 - a).sqrt() * noise.double()

    def q_posterior_mean_variance(self, x_start, x_t, t):
        a, p, b = (self.at(v, t) for v in (self.a, self.p, self.betas))
        mean = b * p.sqrt() / (1 - a) * x_start + (1 - p) * (1 - b).sqrt() / (1 - a) * x_t
        shape = x_t.shape
        return (
            mean,
            self.at(self.variance, t).expand(shape),
            self.at(self.log_variance, t).expand(shape),
        )

    def parts(self, model, x, t, clip):
        """The model's mean, log-variance and x0."""
        output = model(x.float(), self._scale_timesteps(t)).double()
        kind = self.model_var_type
        if kind in (Var.LEARNED, Var.LEARNED_RANGE):
            output, values = output.chunk(2, dim=1)
        high, low = self.at(np.log(self.betas), t), self.at(self.log_variance, t)
        if kind == Var.LEARNED:
            lv = values
        elif kind == Var.LEARNED_RANGE:
            frac = (values + 1) / 2
            lv = frac * high + (1 - frac) * low
        elif kind == Var.FIXED_LARGE:
            lv = self.at(np.log(np.append(self.variance[1], self.betas[1:])), t)
        else:
            lv = low
        a = self.at(self.a, t)
        x0 = output
        if self.model_mean_type == Mean.EPSILON:
            x0 = (x - (1 - a).sqrt() * output) / a.sqrt()
        x0 = x0.clamp(-1, 1) if clip else x0
        return self.q_posterior_mean_variance(x0, x, t)[0], lv, x0, output

    def p_sample(
        self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None
    ):
        noise = torch.randn_like(x).double()
        mean, lv, x0, _ = self.parts(model, x.double(), t, clip_denoised)
        if cond_fn is not None:
            mean = mean + cond_fn(x, t)
        sample = mean + (t != 0).reshape(-1, 1, 1, 1) * torch.exp(0.5 * lv) * noise
        return {"sample": sample, "pred_xstart": x0}

    def ddim_sample(
        self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        eta=0.0,
    ):  # fmt: skip
        noise = torch.randn_like(x).double()
        x0 = self.parts(model, x.double(), t, clip_denoised)[2]
        a, p = self.at(self.a, t), self.at(self.p, t)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        sigma = eta * ((1 - p) / (1 - a) * (1 - a / p)).sqrt()
        mean = p.sqrt() * x0 + (1 - p - sigma**2).clamp(min=0).sqrt() * eps
        return {"sample": mean + sigma * noise, "pred_xstart": x0}

    def training_losses(self, model, x_start, t, model_kwargs=None, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        x_start, noise = x_start.double(), noise.double()
        x_t = self.q_sample(x_start, t, noise)
        mean, lv, _, output = self.parts(model, x_t, t, False)
        learned = self.model_var_type in (Var.LEARNED, Var.LEARNED_RANGE)
        simple = self.loss_type in (Loss.MSE, Loss.RESCALED_MSE)
        mean = mean.detach() if simple else mean
        true_mean, _, true_lv = self.q_posterior_mean_variance(x_start, x_t, t)
        kl = 0.5 * (lv - true_lv - 1 + torch.exp(true_lv - lv) + (true_mean - mean) ** 2 / lv.exp())
        bound = torch.where(t.reshape(-1, 1, 1, 1) == 0, decoder_nll(x_start, mean, lv), kl)
        bound = bound.flatten(1).mean(1) / math.log(2)
        if not simple:
            return {"loss": bound * (T if self.loss_type == Loss.RESCALED_KL else 1)}
        target = noise if self.model_mean_type == Mean.EPSILON else x_start
        terms = {"mse": (target - output).square().flatten(1).mean(1)}
        terms["loss"] = terms["mse"]
        if learned:
            terms["vb"] = bound * (T / 1000 if self.loss_type == Loss.RESCALED_MSE else 1)
            terms["loss"] = terms["mse"] + terms["vb"]
        return terms


class Network(torch.nn.Module):
    """Near a perfect prediction of small data, so that every probability has its digits."""

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Conv2d(2, channels, 1)
        self.seen = []

    def forward(self, x, t, **kwargs):
        self.seen.append((t.clone(), kwargs))
        return torch.tanh(self.net(x))


@pytest.fixture(autouse=True)
def log(caplog):
    _patch.say_once.cache_clear()
    caplog.set_level(logging.INFO, logger="genkern.integrations")
    yield lambda: [record.getMessage() for record in caplog.records]
    integration.revert()


def network(diffusion):
    return Network(4 if diffusion.model_var_type.name.startswith("LEARNED") else 2)


def both(call):
    """A call of the formulas and of the kernels, from one state of the generator."""
    torch.manual_seed(5)
    want = call(), torch.get_rng_state()
    with integration.apply(GaussianDiffusion):
        torch.manual_seed(5)
        got = call(), torch.get_rng_state()
    assert torch.equal(got[1], want[1])
    return got[0], want[0]


def close(got, want):
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name].double(), want[name], rtol=2e-5, atol=5e-6)


def test_noising_and_the_posterior():
    diffusion, x, t = GaussianDiffusion(), randn(*SHAPE), torch.tensor([0, 1, 10, T - 1])
    got, want = both(lambda: diffusion.q_sample(x, t))
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    y = randn(*SHAPE, seed=1)
    got, want = both(lambda: diffusion.q_posterior_mean_variance(x, y, t))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)
    half = integration.q_sample(diffusion, x.half(), t, noise=y.half())
    assert half.dtype == torch.float32


@pytest.mark.parametrize("mean", ["EPSILON", "START_X"])
@pytest.mark.parametrize("var", Var.__members__)
@pytest.mark.parametrize("clip", [False, True])
def test_steps(mean, var, clip):
    diffusion, x = GaussianDiffusion(mean, var), randn(*SHAPE)
    model = network(diffusion)
    options = {"clip_denoised": clip, "model_kwargs": {}}
    with torch.no_grad():
        for t in (0, 1, T - 1):
            steps = torch.full((4,), t)
            close(*both(lambda s=steps: diffusion.p_sample(model, x, s, **options)))
            for eta in (0.0, 0.7):
                close(*both(lambda s=steps, e=eta: diffusion.ddim_sample(
                    model, x, s, eta=e, **options)))  # fmt: skip


@pytest.mark.parametrize("mean", ["EPSILON", "START_X"])
@pytest.mark.parametrize("var", Var.__members__)
@pytest.mark.parametrize("loss", Loss.__members__)
def test_training_losses(mean, var, loss):
    diffusion = GaussianDiffusion(mean, var, loss)
    model, t = network(diffusion), torch.tensor([0, 1, 10, T - 1])
    x = (0.3 * randn(*SHAPE)).clamp(-1, 1)
    x[0, 0, 0] = torch.tensor([-1.0, 1.0, 0.999])

    def call():
        model.zero_grad()
        terms = diffusion.training_losses(model, x, t)
        terms["loss"].sum().backward()
        return {k: v.detach() for k, v in terms.items()}, [
            p.grad.clone() for p in model.parameters()
        ]

    (got, our_grads), (want, their_grads) = both(call)
    close(got, want)
    torch.testing.assert_close(our_grads, their_grads, rtol=2e-4, atol=1e-4)


def test_the_model_sees_scaled_steps_and_its_arguments():
    diffusion, x, t = GaussianDiffusion(), randn(*SHAPE), torch.tensor([0, 1, 10, T - 1])
    model, y = network(diffusion), torch.arange(4)
    integration.training_losses(diffusion, model, x, t, model_kwargs={"y": y}, noise=x)
    integration.p_sample(diffusion, model, x, t, model_kwargs={"y": y})
    for seen, kwargs in model.seen:
        assert torch.equal(seen, t * 50.0) and kwargs["y"] is y


def test_noise_from_keys():
    diffusion, x, t = GaussianDiffusion(), randn(*SHAPE), torch.tensor([0, 1, 10, T - 1])
    model = network(diffusion)
    with integration.apply(GaussianDiffusion, noise="key"):
        torch.manual_seed(1)
        got = diffusion.training_losses(model, x, t)["loss"]
        torch.manual_seed(1)
        noise = random.normal(random.new_key(), *SHAPE)
        want = diffusion.training_losses(model, x, t, noise=noise)["loss"]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_what_has_no_kernel_goes_to_the_class(log):
    diffusion, x, t = GaussianDiffusion(), randn(*SHAPE), torch.tensor([0, 1, 10, T - 1])
    model = network(diffusion)

    def call():
        with torch.no_grad():
            return diffusion.p_sample(model, x, t, cond_fn=lambda x, t: 1.0)["sample"]

    # The class's own method calls the others, which have kernels.
    torch.testing.assert_close(*both(call), rtol=0, atol=1e-12)
    assert log()[-1] == (
        "GaussianDiffusion.p_sample is left to the class: its options have no kernel"
    )
    with pytest.raises(NotImplementedError, match="denoised_fn and cond_fn must be None"):
        integration.p_sample(diffusion, model, x, t, cond_fn=lambda x, t: 1.0)
    with pytest.raises(NotImplementedError, match="must be one of EPSILON, START_X, got PREVIOUS"):
        integration.training_losses(GaussianDiffusion("PREVIOUS_X"), model, x, t)


def test_apply_and_revert():
    before = dict(vars(GaussianDiffusion))
    with integration.apply(GaussianDiffusion), integration.apply(GaussianDiffusion, "key"):
        assert GaussianDiffusion.q_sample is not before["q_sample"]
    assert dict(vars(GaussianDiffusion)) == before
    with pytest.raises(TypeError, match="apply: kind must have the methods of GaussianDiffusion"):
        integration.apply(Network)
    with pytest.raises(ValueError, match="apply: noise must be one of torch, key, got 'x'"):
        integration.apply(GaussianDiffusion, "x")
