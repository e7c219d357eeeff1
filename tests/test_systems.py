"""Every public function under PyTorch's systems, and what a training loop puts around them.

The operators one by one are in test_operators.py.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from public_calls import (
    CALLS,
    OTHERS,
    RANDOM,
    SCHEDULE,
    SHAPE,
    Inputs,
    inputs,
    tensors,
    value_and_gradients,
)
from support import randn, same_bits
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import checkpoint

import genkern
from genkern import diffusion, gan, vae
from genkern.random import fold_in, key, split

# Inductor and functorch use what torch.jit deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

F64 = torch.float64

each_call = pytest.mark.parametrize("name", CALLS)
# The calls that give the same each time.
REPEATABLE = [name for name in CALLS if name not in RANDOM]
each_repeatable = pytest.mark.parametrize("name", REPEATABLE)


def test_every_public_function_is_called():
    called = {name.split()[0] for name in CALLS}
    public = {
        f"{module.__name__.removeprefix('genkern.')}.{name}"
        for module in (genkern.random, genkern.vae, genkern.diffusion, genkern.gan)
        for name in module.__all__
    }
    assert called | OTHERS == public and not called & OTHERS


# ---- modes


@each_call
def test_fake_tensors(name):
    """Shapes, dtypes and strides; a read of a value raises."""
    want = value_and_gradients(CALLS[name], inputs())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = inputs()
        fakes = Inputs(*map(mode.from_tensor, vars(given).values()))
        got = value_and_gradients(CALLS[name], fakes)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert isinstance(g, FakeTensor)
        assert (g.shape, g.dtype, g.stride()) == (w.shape, w.dtype, w.stride())


@each_repeatable
def test_inference_mode(name):
    want = tensors(CALLS[name](inputs()))
    with torch.inference_mode():
        got = tensors(CALLS[name](inputs()))
    assert all(g.is_inference() for g in got)
    assert all(map(same_bits, got, want))
    # What it left in the schedules can be used where gradients are.
    assert all(map(same_bits, value_and_gradients(CALLS[name], inputs()), want))


@each_repeatable
def test_autocast_changes_no_bit(name):
    want = value_and_gradients(CALLS[name], inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradients(CALLS[name], inputs())
    assert all(map(same_bits, got, want))


@each_repeatable
def test_deterministic_algorithms_are_the_only_ones(name):
    assert torch.are_deterministic_algorithms_enabled()
    want = value_and_gradients(CALLS[name], inputs())
    torch.use_deterministic_algorithms(False)
    try:
        got = value_and_gradients(CALLS[name], inputs())
    finally:
        torch.use_deterministic_algorithms(True)
    assert all(map(same_bits, got, want))


# ---- training


DRAWING = {
    "rsample": lambda x, y: vae.rsample(x, y),
    "rsample_kl": lambda x, y: sum(map(torch.sum, vae.rsample_kl(x, y))),
    "q_sample": lambda x, y: diffusion.q_sample(x, 20, SCHEDULE) * y,
    "ddpm_step": lambda x, y: diffusion.ddpm_step(x, y, 20, SCHEDULE),
    "interpolate": lambda x, y: gan.interpolate(x, y),
}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", DRAWING)
def test_checkpoint_draws_the_same_noise_again(name, use_reentrant):
    found = []
    for run in (
        DRAWING[name],
        partial(checkpoint, DRAWING[name], use_reentrant=use_reentrant),
    ):
        x, y = randn(*SHAPE).requires_grad_(), randn(*SHAPE, seed=1).requires_grad_()
        torch.manual_seed(3)
        result = run(x, y)
        torch.rand(5)  # the recomputation restores the generator's state
        result.square().sum().backward()
        found.append((result, x.grad, y.grad))
    assert all(map(same_bits, *found))


class Denoiser(torch.nn.Module):
    """A network that holds its schedule."""

    def __init__(self, schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.network = torch.nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x, t, keys):
        x_t = diffusion.q_sample(x, t, self.schedule, key=keys)
        pred = self.network(x_t)
        return diffusion.noise_loss(pred, x, t, self.schedule, key=keys)


def _denoiser(schedule=SCHEDULE) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(schedule)


def _loss(model: Denoiser) -> torch.Tensor:
    i = inputs()
    return model(i.x, i.t.clamp(max=len(model.schedule) - 1), i.keys)


def test_grad_scaler():
    plain, scaled = _denoiser(), _denoiser()
    _loss(plain).backward()
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(_loss(scaled)).backward()
    scaler.unscale_(optimizer)
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert same_bits(p.grad, q.grad)  # a power of two
    # An overflow is found, and the step is left out.
    before = [p.detach().clone() for p in scaled.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer.zero_grad()
    scaler.scale(1e6 * _loss(scaled)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(map(same_bits, before, (p.detach() for p in scaled.parameters())))
    assert scaler.get_scale() == 2.0**126


SCHEDULES = {
    "noise": SCHEDULE,
    "zero terminal": diffusion.NoiseSchedule.linear(20).zero_terminal_snr(),
    "flow": diffusion.FlowSchedule(9),
    "edm": diffusion.EDMSchedule(9),
}


def _by_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), _by_torch_save]
)
def test_modules_that_hold_schedules_can_be_copied(copied, schedule):
    model = _denoiser(SCHEDULES[schedule])
    want = _loss(model)  # leaves tables in the schedule
    torch._dynamo.reset()
    torch.compile(model, backend="eager")(*_arguments(model))  # leaves others
    other = copied(model)
    assert other.schedule is not model.schedule and not other.schedule._tables
    assert same_bits(_loss(other), want)
    assert list(model.state_dict()) == ["network.weight", "network.bias"]


def _arguments(model):
    i = inputs()
    return i.x, i.t.clamp(max=len(model.schedule) - 1), i.keys


# ---- torch.func


KEYED = {
    "rsample": lambda x, y, k: vae.rsample(x, y, key=k),
    "q_sample": lambda x, y, k: diffusion.q_sample(x, 20, SCHEDULE, key=k),
    "noise_loss": lambda x, y, k: diffusion.noise_loss(
        y, x, 20, SCHEDULE, key=k, reduction="sample"
    ),
    "ddpm_step": lambda x, y, k: diffusion.ddpm_step(x, y, 20, SCHEDULE, key=k),
    "vlb_terms": lambda x, y, k: diffusion.vlb_terms(y, x, 20, SCHEDULE, key=k),
    "interpolate": lambda x, y, k: gan.interpolate(x, y, key=k),
}


@pytest.mark.parametrize("name", KEYED)
def test_vmap_with_a_key_a_sample(name):
    call, x, y = KEYED[name], randn(*SHAPE, dtype=F64), randn(*SHAPE, dtype=F64, seed=1)
    keys = split(key(1), len(x))

    def one(x, y, k):
        return call(x[None], y[None], k[None])[0]

    assert same_bits(torch.vmap(one)(x, y, keys), call(x, y, keys))
    # Per-sample gradients: those of the sum, where the samples do not mix.
    per_sample = torch.vmap(torch.func.grad(lambda *a: one(*a).sum(), (0, 1)))(x, y, keys)
    x, y = x.requires_grad_(), y.requires_grad_()
    want = torch.autograd.grad(call(x, y, keys).sum(), (x, y), materialize_grads=True)
    for g, w in zip(per_sample, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["ddpm_step", "noise_loss", "interpolate"])
def test_jacrev_agrees_with_autograd(name):
    x, y = randn(2, 2, 1, dtype=F64), randn(2, 2, 1, dtype=F64, seed=1)
    f = partial(KEYED[name], k=split(key(1), 2))
    got = torch.func.jacrev(f, (0, 1))(x, y)
    want = torch.autograd.functional.jacobian(f, (x, y))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-13, atol=1e-14)


# ---- torch.compile and torch.export


class Everything(torch.nn.Module):
    """All calls that give the same each time, in one graph."""

    def forward(self, x, y, t, prev_t, keys):
        results = []
        for name in REPEATABLE:
            results.extend(tensors(CALLS[name](Inputs(x, y, t, prev_t, keys))))
        return results


def test_everything_compiles_in_one_graph():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Everything(), fullgraph=True, backend=counter)
    arguments = vars(inputs()).values()
    for got, want in zip(compiled(*arguments), Everything()(*arguments), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert counter.frame_count == 1


def test_everything_is_exported_stored_and_loaded():
    arguments = tuple(vars(inputs()).values())
    program = torch.export.export(Everything(), arguments)
    buffer = io.BytesIO()
    # uint64 cannot be stored: a key of an example travels as int64.
    program._example_inputs = None
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for got, want in zip(loaded(*arguments), Everything()(*arguments), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_clipped_weights_compile():
    torch._dynamo.reset()
    critic = torch.nn.Linear(3, 2)
    x = torch.ones(4, 3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def clip_and_run(x):
        gan.clip_weights_(critic.parameters(), 0.1)
        return critic(x).sum()

    clip_and_run(x).backward()
    assert critic.weight.abs().max() <= 0.1 and critic.weight.is_leaf
    torch.testing.assert_close(critic.weight.grad, torch.full((2, 3), 4.0))


@pytest.mark.parametrize("kind", ["tensors", "integers"])
def test_a_sampling_loop_compiles_its_step_once(kind):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    schedule, keys = diffusion.NoiseSchedule.linear(100), split(key(0), 4)

    def step(x, t, prev_t, k):
        return diffusion.ddim_step(x, 0.1 * x, t, schedule, prev_t=prev_t, key=k, eta=0.5)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    steps = schedule.timesteps(12)
    # The last one, to clean data, draws no noise: other code.
    pairs = list(itertools.pairwise(steps))
    if kind == "integers":
        pairs = [(int(t), int(prev)) for t, prev in pairs]
    x = y = torch.randn(SHAPE)
    counts = []
    for s, (t, prev) in enumerate(pairs):
        k = fold_in(keys, s)
        x, y = compiled(x, t, prev, k), step(y, t, prev, k)
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
        counts.append(counter.frame_count)
    # The first integers are constants until they change.
    assert counts[-1] == (1 if kind == "tensors" else 2) and counts[1] == counts[-1]


def test_double_backward_in_compiled_code():
    """WGAN-GP: the inner gradient is part of the graph, the outer one is autograd's."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Softplus(), torch.nn.Linear(8, 1))
    real, fake = randn(4, 6), randn(4, 6, seed=1)

    def loss(real, fake, keys):
        points = gan.interpolate(real, fake, key=keys)
        grads = torch.func.grad(lambda x: critic(x).sum())(points)
        return gan.gradient_penalty(grads) + gan.r1_penalty(grads)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = [f(real, fake, split(key(1), 4)) for f in (compiled, loss)]
    torch.testing.assert_close(*values)
    found = [torch.autograd.grad(v, list(critic.parameters())[:-1]) for v in values]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)
        assert got.abs().max() > 0.0


def test_double_backward_through_compiled_code():
    """Dynamo's graphs can be differentiated twice where no backward pass is compiled."""
    torch._dynamo.reset()
    x = randn(4, 3, dtype=F64).requires_grad_()
    found = []
    for f in (gan.r1_penalty, torch.compile(gan.r1_penalty, fullgraph=True, backend="eager")):
        (first,) = torch.autograd.grad(f(x), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x))
    assert all(map(same_bits, *found))


# ---- import


def test_import_brings_in_nothing_else():
    """Neither triton nor numpy nor an integration: nothing that torch has not imported already."""
    code = (
        "import sys, torch; before = set(sys.modules); import genkern;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "['genkern']", answer.stdout + answer.stderr
