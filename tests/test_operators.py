"""The operators under the rest of PyTorch: opcheck, compile, export, torch.func, autocast, ..."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from support import each_backend, each_op, randn, same_bits, skip_if_refused, skip_unless_usable
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import genkern
from genkern import testing
from genkern._ops.op import BACKENDS, OPS
from genkern.random import fold_in, key, new_key, normal, split, uniform
from genkern.vae import (
    DiagonalGaussian,
    bernoulli_nll,
    elbo_loss,
    gaussian_nll,
    kl,
    rsample,
    rsample_kl,
)

# Inductor and functorch use what torch.jit deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

# opcheck takes a second a call: for each operator the samples that differ most in kind.
OPCHECK = {
    "normal": ["1003", "per_sample", "empty"],
    "uniform": ["int64_key", "per_sample"],
    "split": ["5", "per_sample"],
    "fold_in": ["scalar", "per_sample"],
    "rsample": ["channels_last-noise", "chunk-keys-k2", "small"],
    "kl": ["chunk-sum", "expanded-none", "mixed-sample"],
    "rsample_kl": ["chunk-sample", "mixed-sum", "0d-none"],
    "rsample_kl_backward": ["chunk-sum", "kl-small-mean", "rsample-strided-keys-k2"],
    "bernoulli_nll": ["chunk-none", "small-batchmean"],
    "bernoulli_nll_backward": ["channels_last-none", "small-sample"],
    "gaussian_nll": ["mixed-sum", "chunk-none-logvar"],
    "gaussian_nll_backward": ["mixed-none", "small-sample-logvar"],
    "affine": ["channels_last-keys", "mixed-all", "small-noise"],
    "affine_out": ["small-key", "contiguous-noise-in_place"],
    "noise_loss": ["chunk-sample-keys", "small-none-noise", "mixed-x0"],
    "noise_loss_forming": ["small-mean-key", "mixed-none-noise"],
    "noise_loss_backward": ["chunk-batchmean-noise", "small-sample-keys"],
    "sampler_step": ["guided-chunk-noise", "learned-small-keys", "ft-mixed", "plain-0d"],
    "sampler_step_out": ["clip-small-key", "learned-contiguous-noise-in_place"],
    "sampler_step_x0": ["guided-small-noise", "learned-mixed-keys", "ft-mixed"],
    "sampler_step_backward": ["guided-small-noise", "clip-mixed-keys"],
    "guidance_factor": ["channels_last", "small"],
    "dynamic_threshold": ["guided-mixed", "small"],
    "vlb": ["small-none-key", "chunk-mean-noise", "mixed-sample-keys"],
    "vlb_backward": ["small-mean-key", "mixed-none-noise"],
    "discriminator_loss": ["small-mean-0", "chunk-none-0", "shapes-1-4"],
    "discriminator_loss_forming": ["small-mean-5", "shapes-2-2"],
    "discriminator_loss_backward": ["small-sample-5", "shapes-1-1"],
    "generator_loss": ["small-mean-5", "mixed-none-1"],
    "generator_loss_forming": ["small-mean-5", "small-none-0"],
    "generator_loss_backward": ["small-batchmean-5", "small-none-4"],
    "gradient_penalty": ["channels_last-mean", "zeros-1", "small-r1"],
    "gradient_penalty_backward": ["chunk-none", "small-sample"],
    "gradient_penalty_backward_backward": ["mixed-mean", "small-sample"],
    "interpolate": ["chunk-keys", "small-noise"],
    "interpolate_backward": ["mixed", "small-noise"],
    "optimal_discriminator": ["mixed"],
    "optimal_discriminator_backward": ["channels_last"],
}


# Coefficients of the diffusion operators: any, but with a row of the decoder.
TABLE = torch.linspace(0.2, 1.4, 32).reshape(4, 8)
TABLE[:, 7] = torch.tensor([1.0, 0.0, 0.0, 0.0])
TIMES = torch.tensor([2, 0, 3])


@pytest.fixture(autouse=True)
def _quiet_interpreter():
    with np.errstate(all="ignore"):
        yield


def _differentiable(args):
    return tuple(
        a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    )


@each_backend
@each_op
def test_opcheck(op, backend):
    chosen = [s for s in testing.samples(op.name, "cpu", torch.float32) if s.id in OPCHECK[op.name]]
    assert len(chosen) == len(OPCHECK[op.name])
    for sample in chosen[: 1 if backend.name == "triton" else None]:
        skip_if_refused(backend, op, sample.args)
        with genkern.use_backend(backend.name):
            # Operators without a backward are not called with what needs a gradient.
            args = sample.args if op._formula is None else _differentiable(sample.args)
            torch.library.opcheck(op.overload, args)


def test_native_schemas_are_those_of_the_operators():
    native = next(b for b in genkern.backends.BACKENDS if b.name == "native")
    skip_unless_usable(native)
    for op in OPS.values():
        ours = str(op.overload._schema).replace("genkern::", "")
        theirs = str(getattr(torch.ops._genkern_cpu, op.name).default._schema)
        assert theirs.replace("_genkern_cpu::", "") == ours


# ---- torch.compile and export


class Head(torch.nn.Module):
    """What a user's model does with the package."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(6, 8)
        self.decoder = torch.nn.Linear(4, 6)

    def forward(self, x, key):
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z, divergence = rsample_kl(mu, logvar, key=key, free_bits=0.01, logvar_clamp=(-5.0, 5.0))
        logits = self.decoder(z)
        return bernoulli_nll(logits, x.sigmoid()) + divergence + gaussian_nll(logits, x, sigma=2.0)


def _head() -> Head:
    torch.manual_seed(0)
    return Head()


def _gradients(model, *args):
    loss = model(*args)
    return loss, *torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()
    model = _head()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for batch in (3, 5, 5) if dynamic else (3, 3):
        args = randn(batch, 6, seed=batch), split(key(1), batch)
        loss, want = compiled(*args), model(*args)
        torch.testing.assert_close(loss, want)
        got = torch.autograd.grad(loss, list(model.parameters()))
        for g, w in zip(got, torch.autograd.grad(want, list(model.parameters())), strict=True):
            torch.testing.assert_close(g, w)


def test_compile_does_not_recompile_for_batches_of_other_sizes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda m, v, k: rsample_kl(m, v, key=k, reduction="sample"),
        fullgraph=True,
        dynamic=True,
        backend=counter,
    )
    counts = []
    for batch in (3, 4, 7, 9):
        mu, logvar = randn(batch, 6), randn(batch, 6, seed=1)
        for got, want in zip(
            function(mu, logvar, split(key(1), batch)),
            rsample_kl(mu, logvar, key=split(key(1), batch), reduction="sample"),
            strict=True,
        ):
            assert same_bits(got, want)
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1


def test_compile_everything_in_one_graph():
    torch._dynamo.reset()

    def everything(mu, logvar, k):
        children = split(k, 3)
        z = rsample(mu, logvar, key=children[0], num_samples=2)
        noise = normal(children[1], 4, 3) + uniform(fold_in(children[2], 5), 4, 3)
        posterior = DiagonalGaussian(torch.cat((mu, logvar), 1))
        elbo = elbo_loss(z[0], noise.sigmoid(), mu, logvar, beta=2.0, free_bits=0.1)
        return z, noise, posterior.sample(key=children[2]), posterior.kl(), elbo.loss

    mu, logvar = randn(4, 3), randn(4, 3, seed=1)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(mu, logvar, key(2)), everything(mu, logvar, key(2)), strict=True):
        torch.testing.assert_close(got, want)


def test_compile_the_diffusion_operators_in_one_graph():
    torch._dynamo.reset()
    shape = (3, 4, 5)

    def everything(x, p, v, u, keys, t):
        factor = OPS["guidance_factor"](p, u, 2.0, 0.7)
        threshold = OPS["dynamic_threshold"](x, p, u, TABLE, t, factor, 2.0, 0.9, 100.0)
        x_t = OPS["affine"](x, None, None, keys, None, TABLE, t)
        whole = (keys, None, TABLE, t, factor, threshold, 2.0, -1.0, 1.0)
        out = torch.empty_like(x)
        OPS["affine_out"](x, p, None, None, None, TABLE, t, out)
        return (
            x_t,
            out,
            OPS["sampler_step"](x, p, v, u, *whole),
            *OPS["sampler_step_x0"](x, p, v, u, *whole),
            OPS["noise_loss"](p, x, keys, None, TABLE[:, :4], t, factor, 1),
            OPS["vlb"](p, v, x, keys, None, TABLE, t, -1.0, 1.0, 0.5, 1.0, True, 4),
        )

    tensors = [randn(*shape, seed=s) for s in range(4)]
    arguments = (*tensors, split(key(1), 3), TIMES)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(*arguments), everything(*arguments), strict=True):
        assert same_bits(got, want)

    def gradients(function):
        x, p, v, u = (a.clone().requires_grad_() for a in tensors)
        x_t, _, step, x_prev, x0, loss, bound = function(x, p, v, u, *arguments[4:])
        total = x_t.sum() + (step + x_prev * x0).square().sum() + loss + bound.sum()
        return torch.autograd.grad(total, (x, p, v, u))

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for got, want in zip(gradients(compiled), gradients(everything), strict=True):
        torch.testing.assert_close(got, want)


def test_compile_draws_new_keys():
    torch._dynamo.reset()
    mu, logvar = torch.zeros(4, 50), torch.zeros(4, 50)
    compiled = torch.compile(lambda m, v: rsample(m, v), fullgraph=True)
    torch.manual_seed(1)
    first, second = compiled(mu, logvar), compiled(mu, logvar)
    torch.manual_seed(1)
    again = compiled(mu, logvar)
    assert same_bits(first, again) and not torch.equal(first, second)


def test_compiled_code_calls_a_cpu_kernel_unless_a_backend_is_chosen():
    skip_unless_usable(BACKENDS[0])
    torch._dynamo.reset()
    called = []

    def backend(graph, inputs):
        called.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph

    def draw(mu, logvar, noise):
        return rsample(mu, logvar, noise=noise)

    compiled = torch.compile(draw, fullgraph=True, backend=backend)
    tensors = [randn(3, 4, seed=s) for s in range(3)]
    want = rsample(*tensors[:2], noise=tensors[2])
    with torch.no_grad():
        assert same_bits(compiled(*tensors), want)
        with genkern.use_backend("reference"):
            torch.testing.assert_close(compiled(*tensors), want)
        assert same_bits(compiled(*tensors), want)
    mu = tensors[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(compiled(mu, *tensors[1:]).sum(), mu)
    assert torch.equal(grad, torch.ones_like(mu))
    assert called == [
        ["_genkern_cpu.rsample.default"],
        ["genkern.rsample.default"],
        ["genkern.rsample.default"],
    ]


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    model = _head().eval()
    args = randn(3, 6), split(key(1), 3)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        model, args, dynamic_shapes={"x": {0: batch}, "key": {0: batch}}, strict=strict
    )
    assert "genkern.rsample_kl" in str(program.graph)
    other = randn(5, 6, seed=2), split(key(2), 5)
    torch.testing.assert_close(program.module()(*other), model(*other))


def test_make_fx_and_fake_tensors():
    mu, logvar = randn(4, 3), randn(4, 3, seed=1)
    graph = make_fx(lambda m, v, k: rsample_kl(m, v, key=k))(mu, logvar, key(1))
    assert OPS["rsample_kl"].overload in {n.target for n in graph.graph.nodes}
    assert all(map(same_bits, graph(mu, logvar, key(1)), rsample_kl(mu, logvar, key=key(1))))
    with FakeTensorMode():
        fake_mu, fake_logvar = torch.empty(4, 3, dtype=torch.bfloat16), torch.empty(4, 3)
        z, divergence = rsample_kl(fake_mu, fake_logvar)
        assert z.dtype == torch.float32 and z.shape == (4, 3) and divergence.shape == ()
        assert normal(new_key(5), 5, 7).shape == (5, 7)


def test_meta_tensors():
    mu = torch.empty(4, 3, device="meta")
    k = torch.empty(2, dtype=torch.uint64, device="meta")
    z, divergence = rsample_kl(mu, mu, key=k, reduction="sample")
    assert z.is_meta and z.shape == (4, 3) and divergence.shape == (4,)


# ---- torch.func


@each_backend
def test_vmap(backend):
    skip_unless_usable(backend)
    mu, logvar, noise = (randn(3, 4, 5, seed=s) for s in range(3))
    keys = split(key(1), 3)
    with genkern.use_backend(backend.name):
        for call, args in (
            (lambda m, v, k: rsample(m, v, key=k), (mu, logvar, keys)),
            (lambda m, v, e: rsample_kl(m, v, noise=e), (mu, logvar, noise)),
            (lambda m, v: kl(m, v, reduction="sample"), (mu, logvar)),
            (lambda m, v: gaussian_nll(m, v, reduction="none"), (mu, logvar)),
            (lambda k: normal(k, 4), (keys,)),
            (lambda k: split(k, 2), (keys,)),
            (
                lambda m, v, k, t: OPS["affine"](m, v, None, k, None, TABLE, t),
                (mu, logvar, keys, TIMES),
            ),
            (
                lambda m, v, e, t: OPS["noise_loss"](m, v, None, e, TABLE[:, :4], t, None, 4),
                (mu, logvar, noise, TIMES),
            ),
            (
                lambda m, v, k, t: OPS["sampler_step"](
                    m, v, m, v, k, None, TABLE, t, None, None, 2.0, -0.5, 0.5
                ),
                (mu, logvar, keys, TIMES),
            ),
            (lambda m, v: OPS["guidance_factor"](m, v, 3.0, 0.7), (mu, logvar)),
            (
                lambda m, v, t: OPS["dynamic_threshold"](
                    m, v, None, TABLE, t, None, 1.0, 0.9, 100.0
                ),
                (mu, logvar, TIMES),
            ),
            (
                lambda m, v, e, t: OPS["vlb"](
                    m, v, e, None, v, TABLE, t, -1.0, 1.0, 0.5, 1.0, True, 1
                ),
                (mu, logvar, noise, TIMES),
            ),
        ):
            together = torch.vmap(call)(*args)
            one_by_one = [call(*(a[i] for a in args)) for i in range(3)]
            if not isinstance(together, tuple):
                together, one_by_one = (together,), [(o,) for o in one_by_one]
            for whole, parts in zip(together, zip(*one_by_one, strict=True), strict=True):
                assert same_bits(whole, torch.stack(parts))
        over_last = torch.vmap(lambda m: kl(m, logvar[0]), in_dims=2, out_dims=0)(
            mu.permute(1, 2, 0)
        )
        assert same_bits(over_last, torch.stack([kl(m, logvar[0]) for m in mu]))


def test_vmap_over_no_example_says_so():
    with pytest.raises(ValueError, match=r"^kl: vmap must be over at least 1 example, got 0$"):
        torch.vmap(kl)(torch.zeros(0, 3), torch.zeros(0, 3))


def test_forward_mode_is_refused():
    """As the README says: torch.func's reverse mode works."""
    x = randn(3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda m: kl(m, x), (x,), (x,))
    got = torch.func.jacrev(torch.func.grad(lambda m: kl(m, x, reduction="sum")))(x)
    torch.testing.assert_close(got, torch.eye(3))


@each_backend
def test_per_sample_gradients(backend):
    skip_unless_usable(backend)
    model = _head().double()
    parameters = dict(model.named_parameters())
    x, keys = randn(3, 6, dtype=torch.float64), split(key(1), 3)

    def loss(p, x, k):
        return torch.func.functional_call(model, p, (x[None], k[None]))

    with genkern.use_backend(backend.name):
        found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, keys)
        for b in range(3):
            want = torch.autograd.grad(model(x[b : b + 1], keys[b : b + 1]), parameters.values())
            for name, w in zip(parameters, want, strict=True):
                torch.testing.assert_close(found[name][b], w, rtol=1e-12, atol=1e-14)


def test_grad_and_jacrev_agree_with_autograd():
    mu, logvar = randn(3, 2, dtype=torch.float64), randn(3, 2, dtype=torch.float64, seed=1)

    def f(m, v):
        z, divergence = rsample_kl(m, v, key=key(1), reduction="sample")
        return z.square().sum() + divergence.sum()

    got = torch.func.grad(f, (0, 1))(mu, logvar)
    leaves = [mu.clone().requires_grad_(), logvar.clone().requires_grad_()]
    want = torch.autograd.grad(f(*leaves), leaves)
    jacobian = torch.func.jacrev(f, (0, 1))(mu, logvar)
    value, pull_back = torch.func.vjp(f, mu, logvar)
    for triple in zip(got, want, jacobian, pull_back(torch.ones_like(value)), strict=True):
        for other in triple[1:]:
            torch.testing.assert_close(triple[0], other, rtol=1e-13, atol=1e-15)


# ---- autocast, checkpoint, modes, copies


def test_autocast_leaves_the_operators_precision_alone():
    """Autocast changes the layers around the operators, which compute in float32 anyway."""
    mu, logvar = randn(4, 3, dtype=torch.bfloat16), randn(4, 3, seed=1)
    outside = rsample_kl(mu, logvar, key=key(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = rsample_kl(mu, logvar, key=key(1))
        assert all(map(same_bits, inside, outside))
        model = _head()
        loss, *grads = _gradients(model, randn(3, 6), split(key(1), 3))
    assert loss.dtype == torch.float32 and all(g.dtype == torch.float32 for g in grads)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_draws_the_same_noise_again(use_reentrant):
    mu, logvar = randn(4, 30).requires_grad_(), randn(4, 30, seed=1).requires_grad_()

    def f(m, v):
        z, divergence = rsample_kl(m, v)
        return z.square().sum() + divergence

    torch.manual_seed(3)
    plain = f(mu, logvar)
    torch.manual_seed(3)
    saving = checkpoint(f, mu, logvar, use_reentrant=use_reentrant)
    assert same_bits(plain, saving)
    torch.rand(5)  # the recomputation restores the generator's state
    for got, want in zip(
        torch.autograd.grad(plain, (mu, logvar)), _backward(saving, mu, logvar), strict=True
    ):
        assert same_bits(got, want)


def _backward(loss, *leaves):
    loss.backward()  # the re-entrant kind does not work with autograd.grad
    return [x.grad for x in leaves]


def test_inference_mode():
    with torch.inference_mode():
        mu, logvar = randn(4, 3), randn(4, 3, seed=1)
        z, divergence = rsample_kl(mu, logvar, key=split(key(1), 4))
        assert z.is_inference() and not divergence.requires_grad
        assert new_key().shape == (2,)
    assert same_bits(rsample(mu.clone(), logvar.clone(), key=split(key(1), 4)), z)


def test_keys_can_be_copied_and_stored(tmp_path):
    k = split(new_key(), 3)
    assert same_bits(copy.deepcopy(k), k)
    as_int64 = pickle.loads(pickle.dumps(k.view(torch.int64)))
    assert same_bits(normal(as_int64, 3, 5), normal(k, 3, 5))
    torch.save(k.view(torch.int64), tmp_path / "key.pt")
    loaded = torch.load(tmp_path / "key.pt").view(torch.uint64)
    assert same_bits(loaded, k)


def test_tensor_subclasses_see_the_operator():
    seen = []

    class Logging(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    mu, logvar = randn(4, 3), randn(4, 3, seed=1)
    with Logging():
        kl(mu, logvar)
    assert OPS["kl"].overload in seen
