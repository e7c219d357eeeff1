"""pythae's VAE and BetaVAE give the same losses and gradients with genkern's kernels."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch

from genkern import random

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("pythae", reason="pythae is not installed")
    from pythae.models import VAE, BetaVAE, BetaVAEConfig, VAEConfig

    from genkern.integrations import _patch
    from genkern.integrations import pythae as integration

SIZE = {"input_dim": (1, 4, 4), "latent_dim": 3}


@pytest.fixture(autouse=True)
def log(caplog):
    _patch.say_once.cache_clear()
    caplog.set_level(logging.INFO, logger="genkern.integrations")
    yield lambda: [record.getMessage() for record in caplog.records]
    integration.revert()


def model_of(kind, reconstruction):
    torch.manual_seed(0)
    if kind is VAE:
        return VAE(VAEConfig(reconstruction_loss=reconstruction, **SIZE))
    return BetaVAE(BetaVAEConfig(reconstruction_loss=reconstruction, beta=3.0, **SIZE))


def run(model, x):
    model.zero_grad()
    torch.manual_seed(7)
    output = model({"data": x})
    output.loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    return {k: v.detach() for k, v in output.items()}, grads, torch.get_rng_state()


@pytest.mark.parametrize("kind", [VAE, BetaVAE])
@pytest.mark.parametrize("reconstruction", ["mse", "bce"])
def test_losses_and_gradients(kind, reconstruction, log):
    model, x = model_of(kind, reconstruction), torch.rand(5, 1, 4, 4)
    want, their_grads, their_state = run(model, x)
    with integration.apply():
        got, our_grads, our_state = run(model, x)
    assert list(got) == list(want) and torch.equal(our_state, their_state)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(our_grads, their_grads, rtol=1e-4, atol=1e-6)
    assert all(line.startswith("replaced pythae.models.") for line in log())


def test_noise_from_keys():
    model, x = model_of(VAE, "mse"), torch.rand(5, 1, 4, 4)
    with integration.apply(noise="key"):
        got, _, _ = run(model, x)
    torch.manual_seed(7)
    eps = random.normal(random.new_key(), 5, 3)
    with torch.no_grad():
        encoded = model.encoder(x)
    mu, log_var = encoded.embedding, encoded.log_covariance
    torch.testing.assert_close(got["z"], mu + torch.exp(0.5 * log_var) * eps)


def test_the_kl_does_not_cancel():
    """Near the prior 1 + l - e^l loses its digits: 1/2 (mu^2 + e^l - 1 - l) in float64."""
    model, x = model_of(VAE, "mse"), torch.rand(5, 1, 4, 4)
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.mul_(0.01)
    encoded = model.encoder(x)
    mu, l = encoded.embedding.double(), encoded.log_covariance.double()
    exact = 0.5 * (mu.square() + torch.expm1(l) - l).sum(1).mean()
    with integration.apply():
        torch.testing.assert_close(model({"data": x}).reg_loss.double(), exact, rtol=1e-5, atol=0.0)


def test_a_subclass_with_lines_of_its_own_is_left_alone(log):
    class Own(VAE):
        def loss_function(self, recon_x, x, mu, log_var, z):
            return tuple(2 * v for v in super().loss_function(recon_x, x, mu, log_var, z))

    torch.manual_seed(0)
    model, x = Own(VAEConfig(**SIZE)), torch.rand(5, 1, 4, 4)
    want = run(model, x)[0]
    with integration.apply():
        got = run(model, x)[0]
    assert all(torch.equal(got[k], want[k]) for k in want)
    assert log()[-1] == "Own is left to pythae: it differs from its base"


def test_apply_and_revert(monkeypatch, log):
    before = [dict(vars(kind)) for kind in (VAE, BetaVAE)]
    with integration.apply(), integration.apply("key"):
        assert VAE.forward is not before[0]["forward"]
    assert before == [dict(vars(kind)) for kind in (VAE, BetaVAE)]
    monkeypatch.setattr(integration, "_VERSION", "9.9.9")
    integration.apply()
    assert before == [dict(vars(kind)) for kind in (VAE, BetaVAE)]
    assert log()[-1] == ("everything is left to pythae: 9.9.9 is not a tested release (0.1.2)")
    with pytest.raises(ValueError, match="apply: noise must be one of torch, key, got 'x'"):
        integration.apply("x")
