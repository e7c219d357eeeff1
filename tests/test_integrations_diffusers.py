"""genkern's schedulers and posterior do what diffusers' do: same noise, same numbers."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import pickle
import warnings

import pytest
import torch
from support import randn

import genkern

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffusers import (
        AutoencoderKL,
        DDIMPipeline,
        DDIMScheduler,
        DDPMPipeline,
        DDPMScheduler,
        UNet2DModel,
    )
    from diffusers.models.autoencoders import autoencoder_kl
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    from genkern.integrations import _patch
    from genkern.integrations import diffusers as integration

from test_diffusers import EPS, KINDS, alphas, check, rounding

Ours = {
    DDPMScheduler: integration.GenkernDDPMScheduler,
    DDIMScheduler: integration.GenkernDDIMScheduler,
}
Posterior = integration.GenkernDiagonalGaussianDistribution
SHAPE = (2, 3, 8, 8)
CLIPS = {
    "free": {"clip_sample": False},
    "clip": {"clip_sample_range": 0.7},
    "threshold": {
        "thresholding": True,
        "sample_max_value": 2.5,
        "dynamic_thresholding_ratio": 0.9,
    },
}


@pytest.fixture(autouse=True)
def log(caplog):
    """What the integration said in this test, which may have been said before."""
    _patch.say_once.cache_clear()
    integration.revert()
    caplog.set_level(logging.INFO, logger="genkern.integrations")
    yield lambda: [record.getMessage() for record in caplog.records]
    integration.revert()


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(stock, **config):
    """A stock scheduler, and ours made from its config."""
    theirs = stock(**config)
    return theirs, Ours[stock].from_config(theirs.config)


def previous(scheduler, t: int) -> int:
    if isinstance(scheduler, DDPMScheduler):
        return int(scheduler.previous_timestep(t))
    return t - len(scheduler) // scheduler.num_inference_steps


def compare_step(theirs, ours, t, x, output, device="cpu", **options):
    """One step of both, ours on a device, with generators of one seed and one state after it."""
    kind = theirs.config.prediction_type
    a, b = seeded(), seeded()
    want = theirs.step(output, t, x, generator=a, **options)
    got = ours.step(output.to(device), t, x.to(device), generator=b, **options)
    assert type(got) is type(want)
    assert torch.equal(a.get_state(), b.get_state())
    now, before = alphas(theirs, int(t), previous(theirs, int(t)))
    pred, noise = output[:, : x.shape[1]], torch.randn(x.shape, generator=seeded())
    bound = rounding(now, before, kind, x, pred, noise)
    if output.shape != x.shape and t > 0:
        bound = bound + learned_rounding(now, before, output[:, x.shape[1] :], noise)
    check(got.prev_sample.cpu(), want.prev_sample, bound)
    check(
        got.pred_original_sample.cpu(),
        want.pred_original_sample,
        rounding(now, 1.0, kind, x, pred, noise),
    )


def learned_rounding(now: float, before: float, values, noise) -> torch.Tensor:
    """The same for the noise of a learned variance, exp(1/2 (frac high + (1 - frac) low)).

    Each term of the exponent is rounded about three times on either side.
    """
    beta = 1 - now / before
    low, high = math.log(max((1 - before) / (1 - now) * beta, 1e-20)), math.log(beta)
    frac = (values.double() + 1) / 2
    exponent = (frac * high).abs() + ((1 - frac) * low).abs() + abs(low) + abs(high)
    std = torch.exp(0.5 * (frac * high + (1 - frac) * low))
    return 3 * EPS * (1 + 0.5 * exponent) * std * noise.double().abs()


# ---- the schedulers


@pytest.mark.parametrize("stock", Ours)
def test_is_the_stock_scheduler(stock, tmp_path):
    theirs, ours = pair(stock, beta_end=0.03, beta_schedule="scaled_linear", steps_offset=1)
    assert isinstance(ours, stock)
    assert {k: ours.config[k] for k in theirs.config} == dict(theirs.config)
    assert {c.__name__ for c in stock().compatibles} == {c.__name__ for c in ours.compatibles}
    ours.save_pretrained(tmp_path)
    for kind in (Ours[stock], stock, DDIMScheduler):
        loaded = kind.from_pretrained(tmp_path)
        assert type(loaded) is kind and loaded.config.beta_end == 0.03
    for name in ("betas", "alphas_cumprod", "timesteps"):
        assert torch.equal(getattr(theirs, name), getattr(ours, name))
    ours.set_timesteps(10)
    x = randn(*SHAPE)
    want = ours.step(x, 501, x, generator=seeded()).prev_sample
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other.step(x, 501, x, generator=seeded()).prev_sample, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(
    "variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"]
)
def test_ddpm_step(kind, clip, variance, log):
    x, output = randn(*SHAPE), randn(*SHAPE, seed=1)
    if variance == "learned_range":
        output = torch.cat((output, randn(*SHAPE, seed=2)), 1)
    for spacing, zero_snr in itertools.product(("leading", "trailing"), (False, True)):
        if zero_snr and kind == "epsilon":
            continue
        theirs, ours = pair(
            DDPMScheduler,
            prediction_type=kind,
            variance_type=variance,
            timestep_spacing=spacing,
            rescale_betas_zero_snr=zero_snr,
            **CLIPS[clip],
        )
        for t in (999, torch.tensor(1), 0):
            compare_step(theirs, ours, t, x, output)
        for n in (1000, 50):
            theirs.set_timesteps(n)
            ours.set_timesteps(n)
            for t in theirs.timesteps[[0, 1, n // 2, n - 2, n - 1]]:
                compare_step(theirs, ours, t, x, output)
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(timesteps=[900, 500, 3])
        for t in (900, 500, 3):
            compare_step(theirs, ours, t, x, output)
    assert log() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("eta", [0, 0.6, 1.0])
def test_ddim_step(kind, clip, eta, log):
    x, output, noise = (randn(*SHAPE, seed=s) for s in range(3))
    for spacing, to_one, rederive in itertools.product(
        ("leading", "linspace", "trailing"), (False, True), (False, True)
    ):
        theirs, ours = pair(
            DDIMScheduler,
            prediction_type=kind,
            timestep_spacing=spacing,
            set_alpha_to_one=to_one,
            **CLIPS[clip],
        )
        for n in (1000, 50):
            theirs.set_timesteps(n)
            ours.set_timesteps(n)
            options = {"eta": eta, "use_clipped_model_output": rederive}
            for t in (*theirs.timesteps[[0, n // 2, n - 2, n - 1]], 777, 1):
                compare_step(theirs, ours, t, x, output, **options)
        want = theirs.step(output, 500, x, variance_noise=noise, **options).prev_sample
        got = ours.step(output, 500, x, variance_noise=noise, **options).prev_sample
        check(got, want, rounding(*alphas(theirs, 500, 480), kind, x, output, noise))
    assert log() == []


@pytest.mark.parametrize("stock", Ours)
def test_a_run_draws_the_noise_of_diffusers(stock):
    options = {} if stock is DDPMScheduler else {"eta": 0.8}
    for generators in (lambda: seeded(1), lambda: [seeded(i) for i in range(2)]):
        ends = []
        for scheduler in pair(stock):
            scheduler.set_timesteps(30)
            g = generators()
            x = randn(*SHAPE)
            for t in scheduler.timesteps:
                x = scheduler.step(torch.tanh(x), t, x, generator=g, **options).prev_sample
            ends.append((x, [one.get_state() for one in (g if isinstance(g, list) else [g])]))
        (theirs, their_states), (ours, our_states) = ends
        assert all(map(torch.equal, their_states, our_states))
        # 30 steps that each round, of values near 1, and shrink what came before.
        assert (theirs - ours).abs().max() <= 30 * 8 * EPS


@pytest.mark.parametrize("stock", Ours)
def test_outputs_and_tuples(stock):
    _, ours = pair(stock)
    ours.set_timesteps(50)
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)
    as_tuple = ours.step(pred, 500, x, generator=seeded(), return_dict=False)
    output = ours.step(pred, 500, x, generator=seeded())
    assert type(as_tuple) is tuple
    assert torch.equal(as_tuple[0], output.prev_sample)
    assert torch.equal(as_tuple[1], output.pred_original_sample)
    # Made past its own constructor, it is what that makes.
    made = type(output)(output.prev_sample, output.pred_original_sample)
    for x in (output, pickle.loads(pickle.dumps(output))):
        assert list(x) == list(made) and vars(x).keys() == vars(made).keys()
        assert all(map(torch.equal, x.to_tuple(), made.to_tuple()))
        assert torch.equal(x["prev_sample"], x[0]) and x[1] is x.pred_original_sample
    output.prev_sample = pred
    assert output[0] is pred


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    """Nearer to float64 than diffusers, which rounds each operation."""
    theirs, ours = pair(DDPMScheduler, clip_sample=False)
    x, pred = randn(*SHAPE).to(dtype), randn(*SHAPE, seed=1).to(dtype)
    noise = torch.randn(SHAPE, generator=seeded(), dtype=dtype)
    got = ours.step(pred, 500, x, generator=seeded()).prev_sample
    want = theirs.step(pred, 500, x, generator=seeded()).prev_sample
    assert got.dtype == want.dtype == dtype
    a, before = alphas(theirs, 500, 499)
    beta = 1 - a / before
    x, pred, noise = x.double(), pred.double(), noise.double()
    x0 = (x - (1 - a) ** 0.5 * pred) / a**0.5
    mean = before**0.5 * beta / (1 - a) * x0 + (a / before) ** 0.5 * (1 - before) / (1 - a) * x
    exact = mean + ((1 - before) / (1 - a) * beta) ** 0.5 * noise
    error = (got.double() - exact).abs()
    # Half a unit of the result; the coefficients are float32 numbers.
    unit = torch.finfo(dtype).eps * exact.abs() / 2 + torch.finfo(dtype).smallest_normal
    assert (error <= unit + 2e-4 * exact.abs().max()).all()
    if dtype != torch.float64:
        assert error.mean() < (want.double() - exact).abs().mean()


def test_mixed_dtypes_are_promoted():
    theirs, ours = pair(DDPMScheduler)
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1).double()
    want = theirs.step(pred, 500, x, generator=seeded()).prev_sample
    got = ours.step(pred, 500, x, generator=seeded()).prev_sample
    check(got, want, rounding(*alphas(theirs, 500, 499), "epsilon", x, pred, pred))
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1).half()
    want = theirs.step(pred, 500, x, generator=seeded()).prev_sample
    got = ours.step(pred, 500, x, generator=seeded()).prev_sample
    noise = torch.randn(SHAPE, generator=seeded(), dtype=torch.float16)
    # diffusers rounds the noise to half precision once more, after it is scaled.
    bound = rounding(*alphas(theirs, 500, 499), "epsilon", x, pred, noise)
    check(got, want, bound + 2.0**-10 * (0.1 * noise.double().abs() + pred.double().abs()))


def test_steps_have_gradients():
    theirs, ours = pair(DDIMScheduler)
    grads = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(50)
        x, pred = randn(*SHAPE).requires_grad_(), randn(*SHAPE, seed=1).requires_grad_()
        out = scheduler.step(pred, 500, x)
        loss = (out.prev_sample + out.pred_original_sample).square().sum()
        grads.append(torch.autograd.grad(loss, (x, pred)))
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_changes_to_a_scheduler_are_seen():
    theirs, ours = pair(DDPMScheduler)
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)
    compare_step(theirs, ours, 500, x, pred)
    for change in (
        lambda s: s.set_timesteps(50),
        lambda s: s.set_timesteps(timesteps=[900, 500, 20]),
        lambda s: s.register_to_config(clip_sample=False),
        lambda s: s.register_to_config(prediction_type="sample"),
        lambda s: setattr(s, "alphas_cumprod", s.alphas_cumprod**1.1),
    ):
        change(theirs)
        change(ours)
        compare_step(theirs, ours, 500, x, pred)
        t = torch.tensor([500, 20])
        assert torch.allclose(theirs.add_noise(x, pred, t), ours.add_noise(x, pred, t), atol=1e-6)


@pytest.mark.parametrize("stock", Ours)
@pytest.mark.parametrize(
    "t", [torch.tensor([0, 999]), torch.tensor([7]), torch.tensor(500), torch.tensor([3, 4]).int()]
)
def test_add_noise_and_get_velocity(stock, t, log):
    theirs, ours = pair(stock, rescale_betas_zero_snr=True)
    x, noise = randn(*SHAPE), randn(*SHAPE, seed=1)
    bound = 2 * EPS * (x.abs() + noise.abs())
    for name in ("add_noise", "get_velocity"):
        check(getattr(ours, name)(x, noise, t), getattr(theirs, name)(x, noise, t), bound)
    half = ours.add_noise(x.bfloat16(), noise.bfloat16(), t)
    exact = ours.add_noise(x.bfloat16().double(), noise.bfloat16().double(), t)
    assert half.dtype == torch.bfloat16
    assert ((half.double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-30).all()
    assert log() == []


def test_noise_from_keys():
    _, ours = pair(DDPMScheduler)
    ours.noise = "key"
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)
    schedule = genkern.diffusion.NoiseSchedule.from_diffusers(ours, table_dtype=torch.float32)
    got = ours.step(pred, 500, x, generator=seeded()).prev_sample
    key = genkern.random.new_key(generator=seeded())
    want = genkern.diffusion.ddpm_step(x, pred, 500, schedule, key=key, clip_range=1.0)
    assert torch.equal(got, want)
    # With a list of generators, a sample does not depend on its batch.
    both = ours.step(pred, 500, x, generator=[seeded(1), seeded(2)]).prev_sample
    alone = ours.step(pred[1:], 500, x[1:], generator=[seeded(2)]).prev_sample
    assert torch.equal(both[1:], alone)
    ours.noise = "keys"
    with pytest.raises(ValueError, match="step: noise must be one of diffusers, key, got 'keys'"):
        ours.step(pred, 500, x)


def test_a_step_is_one_kernel():
    """Nothing is computed on tensors in a step but x_prev and the estimate of x0."""
    _, ours = pair(DDIMScheduler)
    ours.set_timesteps(50)
    x, pred, t = randn(*SHAPE), randn(*SHAPE, seed=1), torch.tensor(500)
    ours.step(pred, t, x)
    with torch.profiler.profile() as profile, torch.no_grad():
        ours.step(pred, t, x)
    counts = {event.key: event.count for event in profile.key_averages()}
    kernels = {k: n for k, n in counts.items() if k.startswith(("_genkern", "genkern"))}
    assert sum(kernels.values()) == 1, counts
    others = set(counts) - set(kernels)
    assert others <= {"aten::item", "aten::_local_scalar_dense", "aten::empty_like",
                      "aten::empty", "aten::empty_strided", "[memory]"}, others  # fmt: skip


# ---- what is left to diffusers


def test_what_has_no_kernel_is_left_to_diffusers(log):
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)

    class Own(integration.GenkernDDPMScheduler):
        def _get_variance(self, t, predicted_variance=None, variance_type=None):
            return torch.tensor(4.0)

    theirs = DDPMScheduler(variance_type="fixed_large_log")
    cases = [
        (integration.GenkernDDPMScheduler(variance_type="fixed_large_log"), theirs),
        (integration.GenkernDDPMScheduler(variance_type="learned"), None),
        (Own(), None),
    ]
    for ours, _ in cases:
        output = torch.cat((pred, pred.abs()), 1) if ours.variance_type == "learned" else pred
        for _ in range(2):
            got = ours.step(output, 500, x, generator=seeded()).prev_sample
        want = DDPMScheduler.step(ours, output, 500, x, generator=seeded()).prev_sample
        assert torch.equal(got, want) or (got.isnan() & want.isnan()).all()
    assert log() == [
        "GenkernDDPMScheduler.step is left to diffusers: variance_type 'fixed_large_log' has no"
        " kernel",
        "GenkernDDPMScheduler.step is left to diffusers: variance_type 'learned' has no kernel",
        "Own.step is left to diffusers: Own has a _get_variance of its own",
    ]


def test_an_untested_release_is_left_to_diffusers(log, monkeypatch):
    monkeypatch.setattr(integration, "_UNTESTED", "9.9.0 is not a tested release (0.42.*)")
    theirs, ours = pair(DDIMScheduler)
    x, noise, t = randn(*SHAPE), randn(*SHAPE, seed=1), torch.tensor([3, 500])
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(50)
    assert torch.equal(ours.step(noise, 500, x).prev_sample, theirs.step(noise, 500, x).prev_sample)
    assert torch.equal(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t))
    moments = randn(2, 8, 3, 3)
    got, want = Posterior(moments), DiagonalGaussianDistribution(moments)
    assert torch.equal(got.kl(), want.kl())
    with integration.apply():
        assert DDIMScheduler.step is integration._DDIM_SAMPLER.step
    assert len(log()) == 4
    assert all(line.endswith("9.9.0 is not a tested release (0.42.*)") for line in log())


def test_errors_are_those_of_diffusers():
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)
    for scheduler in pair(DDPMScheduler):
        scheduler.set_timesteps(50)
        with pytest.raises(IndexError):
            scheduler.step(pred, 501, x)  # not in the run
    for scheduler in pair(DDIMScheduler):
        with pytest.raises(ValueError, match="set_timesteps"):
            scheduler.step(pred, 500, x)
        scheduler.set_timesteps(50)
        with pytest.raises(ValueError, match="both generator and variance_noise"):
            scheduler.step(pred, 500, x, eta=1.0, generator=seeded(), variance_noise=x)
        with pytest.raises(IndexError):
            scheduler.step(pred, 1000, x)
        with pytest.raises(IndexError):
            scheduler.add_noise(x, pred, torch.tensor([0, 1000]))
        with pytest.raises(RuntimeError):
            scheduler.step(pred[:, :2], 500, x)
    theirs, ours = pair(DDIMScheduler)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(50)
    # A negative step counts from the end.
    assert torch.equal(ours.step(pred, -1, x).prev_sample, theirs.step(pred, -1, x).prev_sample)
    t = torch.tensor([-1, 3])
    assert torch.equal(ours.add_noise(x, pred, t), theirs.add_noise(x, pred, t))


# ---- the stock classes


def attributes():
    return [dict(vars(kind)) for kind in (DDPMScheduler, DDIMScheduler, autoencoder_kl)]


def test_apply_and_revert(log):
    before = attributes()
    scheduler, moments = DDPMScheduler(), randn(2, 8, 3, 3)
    x, pred = randn(*SHAPE), randn(*SHAPE, seed=1)
    want = integration.GenkernDDPMScheduler().step(pred, 500, x, generator=seeded())
    integration.apply()
    got = scheduler.step(pred, 500, x, generator=seeded())
    assert torch.equal(got.prev_sample, want.prev_sample)
    assert scheduler._genkern_run is not None
    assert type(autoencoder_kl.DiagonalGaussianDistribution(moments)) is Posterior
    with integration.apply(noise="key"):
        keyed = scheduler.step(pred, 500, x, generator=seeded())
        assert not torch.equal(keyed.prev_sample, want.prev_sample)
    got = scheduler.step(pred, 500, x, generator=seeded())
    assert torch.equal(got.prev_sample, want.prev_sample)
    integration.revert()
    assert attributes() == before
    assert type(autoencoder_kl.DiagonalGaussianDistribution(moments)) is (
        DiagonalGaussianDistribution
    )
    integration.revert()
    lines = log()
    assert len(lines) == len(set(lines))
    path = "diffusers.schedulers.scheduling_ddpm.DDPMScheduler"
    assert {f"replaced {path}.{m}" for m in ("step", "add_noise", "get_velocity")} <= set(lines)
    with pytest.raises(RuntimeError), integration.apply():
        raise RuntimeError
    assert attributes() == before
    with pytest.raises(ValueError, match="apply: noise must be one of diffusers, key, got 'x'"):
        integration.apply(noise="x")


# ---- the posterior


@pytest.mark.parametrize("generators", [lambda: seeded(), lambda: [seeded(1), seeded(2)]])
def test_posterior(generators):
    moments = 3 * randn(2, 8, 5, 3)
    moments[0, 4, 0, 0], moments[0, 4, 0, 1] = -40.0, 25.0  # beyond the clamp
    other = DiagonalGaussianDistribution(randn(2, 8, 5, 3, seed=1))
    x = randn(2, 4, 5, 3, seed=2)
    made = []
    for kind in (DiagonalGaussianDistribution, Posterior):
        m = moments.clone().requires_grad_()
        d = kind(m)
        values = [d.sample(generators()), d.mode(), d.kl(), d.kl(other), d.nll(x), d.nll(x, [1])]
        values += [d.mean, d.logvar, d.std, d.var]
        upstream = [randn(*v.shape, seed=9) for v in values]
        grads = [
            torch.autograd.grad((v * u).sum(), m, retain_graph=True)[0]
            for v, u in zip(values, upstream, strict=True)
        ]
        made.append((values, grads))
    for theirs, ours in zip(*(values + grads for values, grads in made), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_posterior_is_the_stock_one_where_it_has_to_be(log):
    moments = randn(2, 8, 3, 3)
    kinds = (DiagonalGaussianDistribution, Posterior)
    theirs, ours = (kind(moments, deterministic=True) for kind in kinds)
    assert torch.equal(ours.kl(), theirs.kl())
    assert torch.equal(ours.nll(moments), theirs.nll(moments))
    assert torch.equal(ours.sample(), theirs.sample()) and torch.equal(ours.var, theirs.var)
    assert log() == []
    video = randn(2, 8, 2, 3, 3)
    theirs, ours = DiagonalGaussianDistribution(video), Posterior(video)
    assert torch.equal(ours.sample(seeded()), theirs.sample(seeded()))
    assert torch.equal(ours.kl(), theirs.kl())
    assert log() == [
        "DiagonalGaussianDistribution is left to diffusers: its parameters are not (B, 2C, H, W)"
    ]
    with pytest.raises(AttributeError, match="has no attribute 'deviation'"):
        ours.deviation  # noqa: B018


def test_posterior_in_half_precision():
    """KL near the prior, where diffusers cancels: 1/2 (mu^2 + e^l - 1 - l) >= 0."""
    moments = torch.zeros(1, 2, 4, 4)
    moments[:, 1] = 1e-3
    moments = moments.bfloat16()
    exact = 8 * (torch.expm1(moments[0, 1, 0, 0].double()) - moments[0, 1, 0, 0].double())
    got = Posterior(moments).kl()
    assert got.dtype == torch.bfloat16
    assert abs(float(got) - float(exact)) <= 2.0**-8 * float(exact)
    assert DiagonalGaussianDistribution(moments).kl() < 0


# ---- pipelines and models that are made here


def tiny_unet(channels=3):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.mark.parametrize(
    ("pipeline", "stock", "options"),
    [
        (DDPMPipeline, DDPMScheduler, {}),
        (DDIMPipeline, DDIMScheduler, {"eta": 0.0}),
        (DDIMPipeline, DDIMScheduler, {"eta": 1.0}),
    ],
)
def test_a_pipeline_gives_the_same_images(pipeline, stock, options, tmp_path):
    def images(pipe):
        pipe.set_progress_bar_config(disable=True)
        return torch.as_tensor(
            pipe(
                batch_size=2,
                generator=seeded(),
                num_inference_steps=10,
                output_type="np",
                **options,
            ).images
        )

    unet = tiny_unet()
    want = images(pipeline(unet, stock()))
    ours = pipeline(unet, Ours[stock]())
    # Ten steps of a network whose outputs are near 1.
    torch.testing.assert_close(images(ours), want, rtol=0, atol=1e-4)
    assert want.std() > 0.05
    with integration.apply():
        torch.testing.assert_close(images(pipeline(unet, stock())), want, rtol=0, atol=1e-4)
    if pipeline is DDPMPipeline:
        ours.save_pretrained(tmp_path)
        loaded = pipeline.from_pretrained(tmp_path)
        assert type(loaded.scheduler) is Ours[stock]
        torch.testing.assert_close(images(loaded), want, rtol=0, atol=1e-4)


def test_an_autoencoder_gives_the_same_loss():
    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    x = randn(2, 3, 8, 8)

    def gradients():
        model.zero_grad()
        posterior = model.encode(x).latent_dist
        z = posterior.sample(seeded())
        loss = (model.decode(z).sample - x).square().mean() + 1e-3 * posterior.kl().mean()
        loss.backward()
        return type(posterior), loss.detach(), [p.grad.clone() for p in model.parameters()]

    kind, want, their_grads = gradients()
    assert kind is DiagonalGaussianDistribution
    with integration.apply():
        kind, got, our_grads = gradients()
    assert kind is Posterior
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(our_grads, their_grads, rtol=1e-4, atol=1e-5)


# ---- torch.compile


def compiled(function):
    """The function compiled whole, and the list of its graphs."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    return torch.compile(function, fullgraph=True, backend=backend), graphs


@pytest.mark.parametrize(
    ("stock", "options", "config"),
    [
        (DDPMScheduler, {}, {}),
        (DDPMScheduler, {}, {"variance_type": "learned_range", "thresholding": True}),
        (DDIMScheduler, {}, {}),
        (DDIMScheduler, {"eta": 1.0}, {}),
    ],
)
@pytest.mark.parametrize("noise", ["diffusers", "key"])
def test_a_compiled_step_has_one_graph(stock, options, config, noise):
    ours = Ours[stock](**config)
    ours.noise = noise
    x, output = randn(*SHAPE), randn(*SHAPE, seed=1)
    if config:
        output = torch.cat((output, x), 1)
    step, graphs = compiled(lambda out, t, x: ours.step(out, t, x, **options).prev_sample)
    for n in (10, 4):
        ours.set_timesteps(n)
        ends = []
        for function in (step, lambda out, t, x: ours.step(out, t, x, **options).prev_sample):
            torch.manual_seed(0)
            y = x
            for t in ours.timesteps:
                y = function(output, t, y)
            ends.append(y)
        torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)
    # One more for the other number of steps, and none for a step.
    assert len(graphs) == 2


def test_training_compiles_whole():
    ours = integration.GenkernDDPMScheduler()
    x, noise = randn(*SHAPE), randn(*SHAPE, seed=1)

    def targets(x, noise, t):
        return ours.add_noise(x, noise, t), ours.get_velocity(x, noise, t)

    function, graphs = compiled(targets)
    for t in (torch.tensor([3, 500]), torch.tensor([999, 0])):
        torch.testing.assert_close(function(x, noise, t), targets(x, noise, t), rtol=0, atol=1e-6)

    def posterior(moments):
        d = Posterior(moments)
        return d.sample().square().sum() + d.kl().sum()

    function, more = compiled(posterior)
    moments = randn(2, 8, 3, 3).requires_grad_()
    function(moments).backward()
    assert moments.grad.isfinite().all()
    assert len(graphs) == len(more) == 1
