"""The diffusion functions under the rest of PyTorch, and the sampling loop."""

from __future__ import annotations

import math
import sys
from functools import partial

import pytest
import torch
from support import randn, same_bits
from torch._subclasses import FakeTensorMode

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
    vlb_terms,
)
from genkern.random import fold_in, key, normal, split

# Inductor and functorch use what torch.jit deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F32, F64 = torch.float32, torch.float64
SCHEDULE = NoiseSchedule.linear(50, 1e-3, 0.2)
FLOW = FlowSchedule(9)
TIMES = torch.tensor([0, 1, 20, 49])
PREVS = torch.tensor([-1, 0, 7, 48])


def tensors(count: int, dtype=F64, shape=(4, 2, 3, 5)) -> list[torch.Tensor]:
    return [randn(*shape, dtype=dtype, seed=s) for s in range(count)]


# ---- under the rest of PyTorch


def _calls():
    k = key(1)
    return {
        "q_sample": lambda x, p: q_sample(x, TIMES, SCHEDULE, key=k),
        "noise_loss": lambda x, p: noise_loss(p, x, TIMES, SCHEDULE, key=k, weighting="min_snr"),
        "predict_x0": lambda x, p: predict_x0(x, p, TIMES, SCHEDULE),
        "q_posterior": lambda x, p: q_posterior(x, p, TIMES, SCHEDULE, prev_t=PREVS)[0],
        "ddpm_step": lambda x, p: ddpm_step(x, p, 20, SCHEDULE, key=k, clip_range=0.5),
        "ddpm_step_many": lambda x, p: ddpm_step(x, p, TIMES, SCHEDULE, key=k, prev_t=PREVS),
        "learned": lambda x, p: ddpm_step(
            x, torch.cat((p, x), 1), 20, SCHEDULE, key=k, variance_type="learned_range"
        ),
        "guided": lambda x, p: ddim_step(
            x, p, 20, SCHEDULE, prev_t=3, uncond=x * p, guidance_scale=2.0, guidance_rescale=0.5
        ),
        "threshold": lambda x, p: ddim_step(x, p, 20, SCHEDULE, threshold=(0.8, 3.0)),
        "vlb_terms": lambda x, p: vlb_terms(
            torch.cat((p, x), 1), x, TIMES, SCHEDULE, key=k, variance_type="learned_range"
        ),
        "prior_kl": lambda x, p: prior_kl(x * p, SCHEDULE),
        "hybrid_loss": lambda x, p: hybrid_loss(torch.cat((p, x), 1), x, TIMES, SCHEDULE, key=k),
        "flow": lambda x, p: ddim_step(x, p, 0.7, FLOW, prev_t=0.5),
    }


@pytest.mark.parametrize("name", [n for n in _calls() if n != "hybrid_loss"])  # it detaches
def test_gradients(name):
    f = _calls()[name]
    x, p = (0.3 * v.requires_grad_() for v in tensors(2, shape=(4, 2, 3)))
    x, p = x.detach().requires_grad_(), p.detach().requires_grad_()
    # The decoder's bins have edges at +-0.999, which x0 keeps away from.
    assert torch.autograd.gradcheck(f, (x, p))
    if name != "threshold":
        assert torch.autograd.gradgradcheck(f, (x, p))
    y = f(x, p)
    got = torch.autograd.grad(y.sum(), (x, p), allow_unused=True)
    want = torch.func.grad(lambda x, p: f(x, p).sum(), (0, 1))(x, p)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(torch.zeros_like(w) if g is None else g, w)


@pytest.mark.parametrize("name", _calls())
def test_compile(name):
    torch._dynamo.reset()
    f = _calls()[name]
    x, p = (v.requires_grad_() for v in tensors(2, F32))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    got, want = compiled(x, p), f(x, p)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(y.sum(), (x, p), allow_unused=True) for y in (got, want)]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_compile_with_steps_that_change():
    torch._dynamo.reset()
    f = torch.compile(
        lambda x, p, t: ddim_step(x, p, t, SCHEDULE), fullgraph=True, backend="aot_eager"
    )
    x, p = tensors(2, F32)
    for t in (3, 4, 5, 49, TIMES, TIMES + 0):
        torch.testing.assert_close(f(x, p, t), ddim_step(x, p, t, SCHEDULE), rtol=1e-6, atol=1e-6)


def test_vmap_over_steps():
    x, p = tensors(2, F32)
    got = torch.vmap(lambda x, p, t: predict_x0(x, p, t, SCHEDULE))(x, p, TIMES)
    assert same_bits(got, predict_x0(x, p, TIMES, SCHEDULE))


def test_steps_out_of_range_are_refused_under_vmap():
    x, p = tensors(2, F32)
    flow, late = FlowSchedule(10), torch.full_like(TIMES, 5000)
    step = torch.vmap(lambda t, prev_t: ddim_step(x[0], p[0], t, SCHEDULE, prev_t=prev_t))
    assert step(TIMES, TIMES - 1).isfinite().all()
    for t, prev_t in ((late, TIMES), (TIMES, TIMES), (TIMES, TIMES - 5000)):
        with pytest.raises(RuntimeError, match=r"ddim_step: expected t in \[0, .* and prev_t in"):
            step(t, prev_t)
    noise = torch.vmap(lambda s: q_sample(x[0], s, flow, noise=p[0]))
    assert noise(torch.tensor([0.1, 1.0])).isfinite().all()
    for level in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(RuntimeError, match=r"q_sample: expected t to be levels in \(0, 1\]"):
            noise(torch.tensor([0.5, level]))


# ---- the loop


def toy(x, t):
    return 0.3 * x + 0.01 * t.reshape(-1, 1, 1).to(x.dtype)


def toy_learned(x, t):
    return torch.cat((toy(x, t), torch.tanh(x)), 1)


LOOPS = {
    "ddpm": {},
    "ddpm-clip": {"clip_range": 1.0, "variance_type": "fixed_large"},
    "ddpm-learned": {"variance_type": "learned_range", "num_steps": 7},
    "ddpm-spaced": {"num_steps": 7, "spacing": "trailing", "prediction_type": "v_prediction"},
    "ddim": {"sampler": "ddim", "num_steps": 9},
    "ddim-eta": {"sampler": "ddim", "num_steps": 9, "eta": 0.7, "spacing": "linspace"},
    "ode": {"sampler": "ode", "num_steps": 6, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", LOOPS)
def test_sample_is_its_steps(name):
    options = dict(LOOPS[name])
    schedule = NoiseSchedule.cosine(20)
    shape, k = (3, 2, 4), key(8)
    model = toy_learned if "learned" in name else toy
    got = sample(model, shape, schedule, key=k, progress=False, **options)
    sampler = options.pop("sampler", "ddpm")
    steps = schedule.timesteps(
        options.pop("num_steps", 20), options.pop("spacing", "leading")
    ).tolist()
    keys = split(k, 3)
    kind = options.get("prediction_type", "epsilon")
    x = normal(fold_in(keys, 0), *shape)
    for s, (t, prev) in enumerate(zip(steps, [*steps[1:], -1], strict=True)):
        pred = model(x, torch.full((3,), t))
        if sampler == "ode":
            euler = ddim_step(x, pred, t, schedule, prev_t=prev, prediction_type=kind)
            if prev >= 0:
                again = model(euler, torch.full((3,), prev))
                x = heun(schedule.alphas_cumprod, x, pred, t, euler, again, prev)
            else:
                x = euler
        else:
            step = ddpm_step if sampler == "ddpm" else ddim_step
            x = step(x, pred, t, schedule, key=fold_in(keys, s + 1), prev_t=prev, **options)
    if sampler == "ode":
        torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-5)
    else:
        assert same_bits(got, x)


def heun(abar, x, pred, t, euler, again, prev):
    """Karras et al., algorithm 1, in x / alpha and sigma / alpha, from predictions of v."""
    a, before = float(abar[t]), float(abar[prev])
    slopes = [
        (1 - at) ** 0.5 * y.double() + at**0.5 * v.double()
        for at, y, v in ((a, x, pred), (before, euler, again))
    ]
    step = ((1 - before) / before) ** 0.5 - ((1 - a) / a) ** 0.5
    return (before**0.5 * (x.double() / a**0.5 + step * (slopes[0] + slopes[1]) / 2)).float()


def test_samples_do_not_depend_on_their_batch():
    schedule = NoiseSchedule.cosine(12)
    keys = split(key(2), 5)
    for options in ({}, {"sampler": "ddim", "eta": 1.0}, {"sampler": "ode"}):
        options = {"progress": False, **options}
        whole = sample(toy, (5, 2, 3), schedule, key=key(2), **options)
        assert same_bits(whole, sample(toy, (5, 2, 3), schedule, key=keys, **options))
        parts = [
            sample(toy, (len(keys[i:j]), 2, 3), schedule, key=keys[i:j], **options)
            for i, j in ((0, 2), (2, 5))
        ]
        assert same_bits(whole, torch.cat(parts))


def test_what_the_model_and_the_callback_get():
    schedule = NoiseSchedule.cosine(20)
    seen, called = [], []

    def model(x, t):
        assert t.dtype == torch.int64 and t.shape == (2,) and x.shape == (2, 3)
        assert not torch.is_grad_enabled()
        seen.append(t.tolist())
        return x * parameter

    parameter = torch.ones((), requires_grad=True)
    x = sample(
        model, (2, 3), schedule, num_steps=4, progress=False, dtype=F64,
        callback=lambda *args: called.append(args),
    )  # fmt: skip
    assert x.dtype == F64 and not x.requires_grad
    assert seen == [[15, 15], [10, 10], [5, 5], [0, 0]]
    assert [(s, t) for s, t, _ in called] == [(0, 15), (1, 10), (2, 5), (3, 0)]
    assert called[-1][2] is x
    # Two calls a step but for the last.
    seen.clear()
    sample(model, (2, 3), schedule, sampler="ode", num_steps=3, progress=False)
    assert [t[0] for t in seen] == [12, 6, 6, 0, 0]
    torch.manual_seed(4)
    a = sample(toy, (2, 2, 3), schedule, progress=False)
    torch.manual_seed(4)
    assert same_bits(a, sample(toy, (2, 2, 3), schedule, progress=False))
    b = sample(toy, (2, 2, 3), schedule, progress=False, generator=torch.Generator().manual_seed(4))
    assert same_bits(a, b)
    # A model in another precision.
    half = sample(lambda x, t: toy(x, t).bfloat16(), (2, 2, 3), schedule, progress=False)
    assert half.dtype == F32


def test_what_an_edm_model_gets():
    schedule = EDMSchedule(5)
    seen = []

    def model(x, t):
        seen.append((x.clone(), t))
        return 0.1 * x

    k = key(1)
    sample(model, (2, 3), schedule, sampler="ode", prediction_type="edm", key=k, progress=False)
    start = 80.0 * normal(fold_in(split(k, 2), 0), 2, 3)
    want = schedule.model_input(start, 4)
    assert len(seen) == 9
    torch.testing.assert_close(seen[0][0], want[0])
    torch.testing.assert_close(seen[0][1], want[1])
    seen.clear()
    sample(model, (2, 3), schedule, sampler="ddim", prediction_type="sample", key=k, progress=False)
    assert [t.tolist() for _, t in seen] == [[s, s] for s in schedule.levels.flip(0).float()]
    assert same_bits(seen[0][0], start)


@pytest.mark.parametrize("name", LOOPS)
def test_sample_compiles_whole(name):
    torch._dynamo.reset()
    schedule = NoiseSchedule.cosine(20)
    options = {"num_steps": 4, **LOOPS[name], "progress": False}
    model = toy_learned if "learned" in name else toy

    def f(k):
        return sample(model, (3, 2, 4), schedule, key=k, **options)

    got = torch.compile(f, fullgraph=True, backend="aot_eager")(key(3))
    torch.testing.assert_close(got, f(key(3)), rtol=1e-5, atol=1e-5)


def test_progress(monkeypatch, capsys):
    schedule = NoiseSchedule.cosine(4)
    pytest.importorskip("tqdm")
    with_bar = sample(toy, (1, 2, 3), schedule, key=key(1))
    assert "4/4" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    sys.modules["genkern._sample"]._say_once.cache_clear()
    with pytest.warns(UserWarning, match=r"^sample: install tqdm to see progress"):
        without = sample(toy, (1, 2, 3), schedule, key=key(1))
    assert same_bits(without, with_bar)
    sample(toy, (1, 2, 3), schedule, key=key(1))  # said once


# ---- what compiled code checks, and what it takes for granted


@pytest.mark.parametrize("values", [[0, 1, 2, 1000], [0, -1, 2, 3]])
def test_compiled_code_refuses_steps_out_of_range(values):
    schedule, x = NoiseSchedule.linear(1000), torch.zeros(4, 3)
    weighting = torch.ones(1000)
    calls = (
        lambda t: q_sample(x, t, schedule, noise=x),
        lambda t: noise_loss(x, x, t, schedule, noise=x, weighting=weighting),
        lambda t: ddpm_step(x, x, t, schedule, prev_t=t - 1, noise=x),
    )
    for call in calls:
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        compiled(torch.arange(1, 5))
        with pytest.raises(RuntimeError, match=r"t (must be )?in \[0, 1000\)"):
            compiled(torch.tensor(values))


def test_compiled_code_refuses_prev_t_that_is_not_below_t():
    schedule, x = NoiseSchedule.linear(1000), torch.zeros(4, 3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(t, prev_t):
        return ddpm_step(x, x, t, schedule, prev_t=prev_t, noise=x)

    t = torch.arange(1, 5)
    step(t, t - 2)
    for prev_t in (t, t + 3, t - 6):
        with pytest.raises(RuntimeError, match=r"ddpm_step: expected .* prev_t in \[-1, t\)"):
            step(t, prev_t)


def test_exported_code_refuses_steps_out_of_range():
    schedule, x = NoiseSchedule.linear(1000), torch.zeros(4, 3)

    class Noising(torch.nn.Module):
        def forward(self, x, t):
            return q_sample(x, t, schedule, noise=x)

    exported = torch.export.export(Noising(), (x, torch.arange(4))).module()
    with pytest.raises(RuntimeError, match=r"t must be in \[0, 1000\)"):
        exported(x, torch.tensor([0, 1, 2, 1000]))


def test_compiled_code_computes_no_tables():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=backend)
    def noising(x, t, schedule):
        return q_sample(x, t, schedule, noise=x)

    x, t = torch.randn(4, 3), torch.tensor([0, 5, 500, 999])
    # Each schedule's own table, in one piece of code.
    for schedule in (NoiseSchedule.linear(1000), NoiseSchedule.cosine(1000)):
        for _ in range(2):
            expected = q_sample(x, t, schedule, noise=x)
            assert torch.equal(noising(x, t, schedule), expected)
    for graph in graphs:
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert called == ["genkern.affine.default"]


def test_fake_tensors_of_a_schedule_made_before():
    schedule, x, t = NoiseSchedule.linear(1000), torch.zeros(4, 3), torch.arange(4)
    with FakeTensorMode() as mode:
        x, t = mode.from_tensor(x), mode.from_tensor(t)
        assert q_sample(x, t, schedule, noise=x).shape == (4, 3)


def test_a_second_run_makes_nothing_on_the_host():
    """What CUDA graphs need: tables and times are there after the first run."""
    schedule, keys = NoiseSchedule.linear(50), key(0)
    for sampler in ("ddpm", "ddim", "ode"):
        run = partial(
            sample, lambda x, t: 0.1 * x, (4, 3), schedule,
            sampler=sampler, num_steps=5, key=keys, progress=False,
        )  # fmt: skip
        kept = dict(schedule._tables)
        first = run()
        made = dict(schedule._tables)
        assert len(made) > len(kept)
        assert torch.equal(run(), first)
        assert schedule._tables.keys() == made.keys()


# ---- what is written is seen to be written


def test_a_graph_sees_that_out_was_written():
    schedule, x = NoiseSchedule.linear(1000), torch.zeros(4, 3)
    a = torch.randn(4, 3, requires_grad=True)
    b = torch.exp(a)
    with torch.no_grad():
        ddpm_step(x, x, 5, schedule, key=key(0), out=b.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        b.sum().backward()
    with torch.inference_mode():
        ddpm_step(x, x, 5, schedule, key=key(0), out=torch.empty(4, 3))


def test_a_loss_gradient_is_its_receivers():
    schedule, x = NoiseSchedule.linear(1000), torch.randn(4, 3)
    pred = torch.randn(4, 3, requires_grad=True)
    loss = noise_loss(pred, x, 5, schedule, key=key(0))
    (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, pred)
    torch.testing.assert_close(second, expected)
