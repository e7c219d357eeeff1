"""denoising-diffusion-pytorch gives the same losses and samples with genkern's kernels."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import types
import warnings

import pytest
import torch
from support import decoder_nll, randn

from genkern import random

if importlib.util.find_spec("torchvision") is None:
    # Only its Trainer uses it, and there is no torchvision for every torch.
    for module_name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        sys.modules[module_name] = types.ModuleType(module_name)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    sys.modules["torchvision"].utils = sys.modules["torchvision.utils"]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        pytest.importorskip(
            "denoising_diffusion_pytorch", reason="denoising-diffusion-pytorch is not installed"
        )
    finally:
        if sys.modules.get("torchvision") and sys.modules["torchvision"].__spec__ is None:
            for module_name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
                del sys.modules[module_name]
    from denoising_diffusion_pytorch import GaussianDiffusion, LearnedGaussianDiffusion

    from genkern.integrations import _patch
    from genkern.integrations import ddpm_pytorch as integration

T = 50
SHAPE = (3, 2, 4, 4)


class Network(torch.nn.Module):
    channels, self_condition = 2, False

    def __init__(self, out_dim=2):
        super().__init__()
        torch.manual_seed(0)
        self.out_dim = out_dim
        self.net = torch.nn.Conv2d(2, out_dim, 3, padding=1)

    def forward(self, x, t, x_self_cond=None):
        return self.net(x) * (1 + t.view(-1, 1, 1, 1) / T)


@pytest.fixture(autouse=True)
def log(caplog):
    _patch.say_once.cache_clear()
    caplog.set_level(logging.INFO, logger="genkern.integrations")
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno > 20]
    integration.revert()


def plain(objective="pred_noise", **options):
    return GaussianDiffusion(
        Network(), image_size=4, timesteps=T, objective=objective, beta_schedule="linear", **options
    )


def learned():
    return LearnedGaussianDiffusion(
        Network(4),
        image_size=4,
        timesteps=T,
        objective="pred_noise",
        beta_schedule="linear",
        vb_loss_weight=1.0,
    )


def both(call):
    """A call without and with the kernels, from one state of the generator."""
    torch.manual_seed(5)
    want = call(), torch.get_rng_state()
    with integration.apply():
        torch.manual_seed(5)
        got = call(), torch.get_rng_state()
    assert torch.equal(got[1], want[1])
    return got[0], want[0]


def close(got, want):
    """Sums of a few float32 terms near 1, rounded on either side."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


def test_q_sample(log):
    model, x, t = plain(), randn(*SHAPE), torch.tensor([0, 7, T - 1])
    close(*both(lambda: model.q_sample(x, t)))
    close(*both(lambda: model.q_sample(x_start=x, t=t, noise=x)))
    assert log() == []


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_and_gradients(objective, reduction, log):
    model = plain(objective, min_snr_loss_weight=True)
    x, t = randn(*SHAPE).clamp(-1, 1), torch.tensor([0, 7, T - 1])

    def call():
        model.zero_grad()
        loss = model.p_losses(x, t, loss_reduction=reduction)
        loss.sum().backward()
        return loss.detach(), *(p.grad.clone() for p in model.parameters())

    got, want = both(call)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-5)
    close(*both(lambda: model((x + 1) / 2)))
    assert log() == []


def test_the_hybrid_loss(log):
    model = learned()
    x = randn(*SHAPE).clamp(-1, 1)

    def call(t):
        model.zero_grad()
        loss = model.p_losses(x, t, loss_reduction="none")
        loss.sum().backward()
        return loss.detach(), *(p.grad.clone() for p in model.parameters())

    got, want = both(lambda: call(torch.tensor([1, 7, T - 1])))
    torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5)
    assert log() == []
    # At t = 0 theirs takes an approximation of the distribution function, and clamps: the bound
    # there in float64, with the exact one.
    with integration.apply():
        torch.manual_seed(5)
        got = model.p_losses(x, torch.zeros(3, dtype=torch.int64), loss_reduction="none")
    torch.manual_seed(5)
    noise = torch.randn_like(x)
    t = torch.zeros(3, dtype=torch.int64)
    pred, values = (h.double() for h in model.model(model.q_sample(x, t, noise), t).chunk(2, 1))
    low = model.posterior_log_variance_clipped[0].double()
    lv = low + (values + 1) / 2 * (torch.log(model.betas[0]).double() - low)
    mean = x.double() + model.sqrt_recipm1_alphas_cumprod[0].double() * (noise.double() - pred)
    nll = decoder_nll(x, mean, lv).flatten(1).mean(1) / math.log(2)
    want = (pred - noise).square().flatten(1).mean(1) + nll
    torch.testing.assert_close(got.double(), want.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v", "learned"])
def test_steps_and_samples(objective, log):
    model = learned() if objective == "learned" else plain(objective)
    x = randn(*SHAPE)
    for t in (T - 1, 7, 0):
        for got, want in zip(*both(lambda t=t: model.p_sample(x, t)), strict=True):
            close(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got, want = both(lambda: model.p_sample_loop(SHAPE))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert log() == []


def test_noise_from_keys():
    model, x, t = plain(), randn(*SHAPE), torch.tensor([0, 7, T - 1])
    with integration.apply(noise="key"):
        torch.manual_seed(1)
        loss = model.p_losses(x, t)
    torch.manual_seed(1)
    noise = random.normal(random.new_key(), *SHAPE)
    torch.testing.assert_close(loss, model.p_losses(x, t, noise=noise), rtol=1e-5, atol=1e-6)


def test_a_loaded_schedule_is_seen():
    model, other, x = plain(), plain(), randn(*SHAPE)
    t = torch.tensor([3, 7, T - 1])
    for name, buffer in other.named_buffers():
        buffer.mul_(0.9 if name.startswith("sqrt") else 1.0)
    with integration.apply():
        model.q_sample(x, t, noise=x)
        model.load_state_dict(other.state_dict())
        close(model.q_sample(x, t, noise=x), other.q_sample(x, t, noise=x))


def test_what_has_no_kernel_is_left_alone(log):
    x, t = randn(*SHAPE), torch.tensor([0, 7, T - 1])

    class Own(GaussianDiffusion):
        def p_mean_variance(self, x, t, x_self_cond=None, clip_denoised=True):
            mean, *rest = super().p_mean_variance(x, t, x_self_cond, clip_denoised)
            return mean + 1.0, *rest

    own = Own(Network(), image_size=4, timesteps=T)
    for got, want in zip(*both(lambda: own.p_sample(x, 5)), strict=True):
        assert torch.equal(got, want)
    model = plain(offset_noise_strength=0.1)
    close(*both(lambda: model.p_losses(x, t)))
    end = "left to denoising_diffusion_pytorch"
    assert log() == [
        f"Own.p_sample is {end}: it differs from its base",
        f"GaussianDiffusion.p_losses is {end}: offset noise has no kernel",
    ]


def test_apply_and_revert(monkeypatch, log):
    before = [dict(vars(kind)) for kind in (GaussianDiffusion, LearnedGaussianDiffusion)]
    with integration.apply(), integration.apply("key"):
        assert GaussianDiffusion.q_sample is integration._q_sample
    assert before == [dict(vars(kind)) for kind in (GaussianDiffusion, LearnedGaussianDiffusion)]
    monkeypatch.setattr(integration, "_VERSION", "9.9.9")
    integration.apply()
    assert before == [dict(vars(kind)) for kind in (GaussianDiffusion, LearnedGaussianDiffusion)]
    assert log() == ["everything is left as it is: 9.9.9 is not a tested release (2.3.4)"]
    with pytest.raises(ValueError, match="apply: noise must be one of torch, key, got 'x'"):
        integration.apply("x")
