"""Several processes: sharding rules of every operator, and training with DDP and FSDP2."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import each_op, outputs, randn, same_bits, writes
from torch import Tensor

from genkern import diffusion, gan, random, vae
from genkern._ops.elements import BATCHMEAN, MEAN, NONE
from genkern._ops.op import OPS

if not dist.is_available():
    pytest.skip("PyTorch was built without torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

PROCESSES, TIMEOUT = 4, 60
EPS = torch.finfo(torch.float64).eps


# ---- processes that wait for work, started once


def _serve(rank, pipe):
    torch.set_num_threads(1)
    pipe.send("ready")
    while True:
        function, size, file, args = pipe.recv()
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{file}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=TIMEOUT / 2),  # where another process has failed
            )
            try:
                result = function(*args)
            finally:
                dist.destroy_process_group()
            pipe.send((result, None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))


@pytest.fixture(scope="module")
def pipes():
    context = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ends, processes = [], []
        for rank in range(PROCESSES):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs), daemon=True)
            process.start()
            ends.append(ours)
            processes.append(process)
        for end in ends:
            assert end.poll(2 * TIMEOUT) and end.recv() == "ready"
    yield ends
    for process in processes:
        process.kill()


@pytest.fixture
def run(pipes, tmp_path):
    """run(size, function, *args): the function's results on the processes of a new group."""

    def run(size, function, *args):
        for pipe in pipes[:size]:
            pipe.send((function, size, tmp_path / f"{function.__name__}-{size}", args))
        answers = []
        for rank, pipe in enumerate(pipes[:size]):
            if not pipe.poll(TIMEOUT):
                pytest.fail(f"process {rank} of {size} did not answer in {TIMEOUT} s")
            answers.append(pipe.recv())
        for rank, (_, error) in enumerate(answers):
            assert error is None, f"process {rank} of {size}:\n{error}"
        return [result for result, _ in answers]

    return run


# ---- what runs in them


def _mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _placed(x: Tensor, placement) -> DTensor:
    """A tensor that every process holds, as a DTensor; int64 for uint64."""
    x = x.view(torch.int64) if x.dtype == torch.uint64 else x
    return distribute_tensor(x, _mesh(), [placement], src_data_rank=None)


def _shard(x: Tensor, dim: int = 0) -> DTensor:
    return _placed(x, Shard(dim))


def _replicate(x: Tensor) -> DTensor:
    return _placed(x, Replicate())


UPSTREAM = ("grad", "grad_z", "grad_kl", "grad_out")
LAYOUTS = ("contiguous", "small", "mixed", "channels_last", "5d", "chunk", "empty", "0d")
# Of operators without layouts.
OTHERS = ("per_sample", "int64_key", "indices", "scalar", "5", "none", "image", "zeros")


def _on_shards(call):
    """The arguments, sharded along the batch where they have one."""
    first = next(a for n, a in call.items() if isinstance(a, Tensor) and n not in UPSTREAM)
    placed = {}
    for name, a in call.items():
        if not isinstance(a, Tensor) or name == "coefficients":
            placed[name] = a
        elif first.dim() == 0 or a.dim() == 0 or (name == "key" and a.dim() == 1):
            placed[name] = _replicate(a)
        else:
            samples = name in ("noise", "grad_z") and call.get("num_samples") is not None
            placed[name] = _shard(a, 1 if samples else 0)
    return placed


def _sharded(call):
    return any(isinstance(a, DTensor) and a.placements[0].is_shard() for a in call.values())


def _terms(op, call):
    """The magnitudes of the terms of a reduced output."""
    call = {**call, "reduction": NONE}
    if op.name == "gradient_penalty_backward_backward":
        call["grad"] = torch.ones(len(call["grads"]), dtype=torch.float64)
        return op(*call.values())[0].abs()
    return outputs(OPS[op.name.removesuffix("_forming")](*call.values()))[-1].abs()


def _check_output(op, call, sharded, got, whole):
    full = got.full_tensor()
    whole = whole.view(torch.int64) if whole.dtype == torch.uint64 else whole
    assert got.shape == whole.shape and got.stride() == whole.stride() and got.dtype == whole.dtype
    if sharded and whole.dim() == 0:
        assert got.placements == (Partial("sum"),)
        # Each order of summation is within (n - 1) eps / 2 times the sum of the magnitudes.
        terms = _terms(op, call)
        first = next(a for n, a in call.items() if isinstance(a, Tensor) and n not in UPSTREAM)
        divisor = {MEAN: terms.numel(), BATCHMEAN: len(first)}.get(call["reduction"], 1)
        allowed = terms.numel() * EPS * terms.sum() / max(divisor, 1)
        assert ((full - whole).abs() <= allowed) | (full.isnan() & whole.isnan())
    elif sharded and call.get("reduction") in (MEAN, BATCHMEAN):
        # A gradient, divided before its other factors are multiplied, and not after.
        allowed = 8 * EPS * whole.abs().max() if whole.numel() else 0.0
        assert ((full - whole).abs() <= allowed).all()
    else:
        assert same_bits(full, whole)
    if sharded and whole.dim():
        assert whole.numel() == 0 or got.placements[0].is_shard()


def _check_operator(name):
    op, checked, refused = OPS[name], 0, 0
    names = [a.name for a in op.overload._schema.arguments]
    for sample in op.samples(torch.device("cpu"), torch.float64):
        if not (set(sample.id.split("-")) & set(LAYOUTS) or sample.id in OTHERS):
            continue
        call = dict(zip(names, sample.args, strict=True))
        placed = _on_shards(call)
        sharded = _sharded(placed)
        draws = name not in ("split", "fold_in") and call.get("key") is not None
        # In turn as users call and by way of the dispatcher.
        function = op.overload if checked % 2 else op
        if sharded and draws and call["key"].dim() == 1:
            with pytest.raises(ValueError, match=r"key must have shape \(B, 2\)"):
                function(*placed.values())
            refused += 1
            continue
        if writes(op):
            call["out"] = call["out"].clone()
        whole = op(*call.values())  # first: in place, the shards are views of the arguments
        result = function(*placed.values())
        if writes(op):
            assert result is None
            result, whole = placed["out"], call["out"]
        pairs = list(zip(outputs(result), outputs(whole), strict=True))
        for i, pair in enumerate(pairs):
            if call.get("output_mask", -1) >> i & 1 or len(pairs) == 1:
                _check_output(op, call, sharded, *pair)
        checked += sharded
    return checked, refused


# Of 2, 3, 4 and 9 samples, three processes get even shards, uneven ones and empty ones.
@each_op
def test_an_operator_on_shards_is_the_whole_operator(op, run):
    for checked, refused in run(3, _check_operator, op.name):
        assert checked
        takes_key = "Tensor? key" in op.schema
        assert refused or not takes_key


# ---- noise


def _keys(count):
    """One a sample, as of their indices in a data set."""
    return random.fold_in(random.key(7), torch.arange(count) * 5 + 3)


def _check_noise(count):
    keys, x, y = _keys(count), randn(count, 3, 5), randn(count, 3, 5, seed=1)
    t = torch.arange(count) * 31 % 1000
    schedule = diffusion.NoiseSchedule.linear(1000)
    k, a, b = _shard(keys), _shard(x), _shard(y)
    pairs = [
        (random.normal(k, count, 3, 5), random.normal(keys, count, 3, 5)),
        (random.uniform(k, count, 7), random.uniform(keys, count, 7)),
        (vae.rsample(a, b, key=k), vae.rsample(x, y, key=keys)),
        (vae.rsample(a, b, key=k, num_samples=2), vae.rsample(x, y, key=keys, num_samples=2)),
        (
            diffusion.q_sample(a, _shard(t), schedule, key=k),
            diffusion.q_sample(x, t, schedule, key=keys),
        ),
        (
            diffusion.ddpm_step(a, b, 500, schedule, key=k),
            diffusion.ddpm_step(x, y, 500, schedule, key=keys),
        ),
        (gan.interpolate(a, b, key=k), gan.interpolate(x, y, key=keys)),
    ]
    for got, whole in pairs:
        assert got.placements[0].is_shard()
        assert same_bits(got.full_tensor(), whole)
    # Made of sharded indices; and split.
    made = random.fold_in(_replicate(random.key(7)), _shard(torch.arange(count) * 5 + 3))
    assert made.placements == (Shard(0),)
    assert torch.equal(made.full_tensor(), keys.view(torch.int64))
    parts = random.split(made, 3)
    assert parts.placements == (Shard(1),)
    assert torch.equal(parts.full_tensor(), random.split(keys, 3).view(torch.int64))
    # Replicated data may have one key for all, and every process draws all of it.
    one = random.new_key(generator=torch.Generator().manual_seed(0))
    drawn = vae.rsample(_replicate(x), _replicate(y), key=_replicate(one))
    assert drawn.placements == (Replicate(),)
    assert same_bits(drawn.to_local(), vae.rsample(x, y, key=one))


@pytest.mark.parametrize(("size", "count"), [(2, 6), (3, 7), (4, 3)], ids=["even", "uneven", "few"])
def test_keys_of_samples_give_the_unsharded_noise(size, count, run):
    run(size, _check_noise, count)


def _public(place):
    """Results of functions that do more with their arguments than one call."""
    x, y, both = place(randn(5, 2, 3)), place(randn(5, 2, 3, seed=1)), place(randn(5, 4, 3, seed=2))
    keys, t = place(_keys(5)), place(torch.tensor([3, 50, 99, 0, 1]))
    schedule = diffusion.NoiseSchedule.linear(100)
    posterior = vae.DiagonalGaussian(both)
    return {
        "posterior": posterior.sample(key=keys),
        "posterior_kl": posterior.kl(),
        "elbo": vae.elbo_loss(y, x.sigmoid(), x, y, beta=0.5).loss,
        "min_snr": diffusion.noise_loss(y, x, t, schedule, key=keys, weighting="min_snr"),
        "learned": diffusion.ddpm_step(
            x, both, 50, schedule, key=keys, variance_type="learned_range", clip_range=1.0
        ),
        "rescaled": diffusion.ddim_step(
            x, y, 50, schedule, prev_t=20, uncond=x, guidance_scale=2.0, guidance_rescale=0.5
        ),
        "vlb": diffusion.vlb_terms(y, x, t, schedule, key=keys),
        "hybrid": diffusion.hybrid_loss(both, x, t, schedule, key=keys),
        "images": diffusion.sample(
            lambda x, t: 0.1 * x, (5, 2, 3), schedule, num_steps=4, key=keys, progress=False
        ),
    }


def _check_public():
    sharded, whole = _public(_shard), _public(lambda x: x)
    for name, got in sharded.items():
        want = whole[name]
        assert got.placements == ((Shard(0),) if want.dim() else (Partial("sum"),)), name
        if want.dim():
            assert same_bits(got.full_tensor(), want), name
        else:
            # 30 terms of one sign.
            torch.testing.assert_close(got.full_tensor(), want, rtol=30 * 2**-23, atol=0.0)


def test_public_functions_on_shards(run):
    run(2, _check_public)


# ---- what is refused


def _check_refusals():
    count = 4
    x, keys = randn(count, 3), _keys(count)
    a = _shard(x)
    with pytest.raises(ValueError, match=r"rsample: key must have shape \(B, 2\) .* fold_in"):
        vae.rsample(a, a, key=_replicate(random.key(0)))
    with pytest.raises(TypeError, match=r"rsample: key must be a DTensor.*got a plain tensor"):
        vae.rsample(a, a, key=keys)
    with pytest.raises(TypeError, match="rsample: key must be a DTensor"):
        vae.rsample(a, a)  # a new key, another on every process
    with pytest.raises(TypeError, match="kl: logvar must be a DTensor"):
        vae.kl(a, x)
    other = init_device_mesh("cpu", (dist.get_world_size(), 1))
    b = distribute_tensor(x, other, [Shard(0), Replicate()], src_data_rank=None)
    with pytest.raises(ValueError, match="kl: logvar must be on the mesh"):
        vae.kl(a, b)
    real, fake = _shard(randn(4, 1)), _shard(randn(8, 1))
    with pytest.raises(ValueError, match="discriminator_loss: logits of two shapes"):
        gan.discriminator_loss(real, fake)
    total = gan.discriminator_loss(real, fake, reduction="sum")
    whole = gan.discriminator_loss(randn(4, 1), randn(8, 1), reduction="sum")
    torch.testing.assert_close(total.full_tensor(), whole, rtol=12 * 2**-23, atol=0.0)
    schedule = diffusion.NoiseSchedule.linear(10)
    out = _replicate(torch.zeros_like(x))
    with pytest.raises(ValueError, match="out must be placed as the result"):
        diffusion.ddpm_step(a, a, 5, schedule, key=_shard(keys), out=out)
    assert (out.to_local() == 0).all()


def test_what_no_shard_can_compute_is_refused(run):
    run(2, _check_refusals)


# ---- placements, derivatives


def _check_placements():
    """A mesh of two dimensions; inputs that DTensor has to move."""
    mesh = init_device_mesh("cpu", (2, 2))
    x, y, keys = randn(5, 4), randn(5, 4, seed=1), _keys(5).view(torch.int64)

    def place(x, *placements):
        return distribute_tensor(x, mesh, placements, src_data_rank=None)

    z, kl = vae.rsample_kl(
        place(x, Shard(0), Replicate()), place(y, Shard(0), Shard(1)),
        key=place(keys, Shard(0), Replicate()), reduction="mean",
    )  # fmt: skip
    whole = vae.rsample_kl(x, y, key=keys, reduction="mean")
    assert z.placements == (Shard(0), Replicate()) and kl.placements == (Partial(), Replicate())
    assert same_bits(z.full_tensor(), whole[0])
    torch.testing.assert_close(kl.full_tensor(), whole[1], rtol=20 * 2**-24, atol=0.0)
    both = vae.kl(*[place(a, Shard(0), Shard(0)) for a in (x, y)], reduction="sample")
    assert both.placements == (Shard(0), Shard(0))
    assert same_bits(both.full_tensor(), vae.kl(x, y, reduction="sample"))
    # Sums that are still to be made are made first.
    quarter = DTensor.from_local(x / 4, mesh, [Partial(), Partial()])
    moved = vae.kl(quarter, place(y, Replicate(), Replicate()), reduction="none")
    assert moved.placements == (Replicate(), Replicate())
    assert same_bits(moved.full_tensor(), vae.kl(x, y, reduction="none"))


def test_meshes_of_two_dimensions_and_other_placements(run):
    run(4, _check_placements)


def _derivatives(place, count):
    """Gradients of losses of every family, and of a penalty on a gradient."""
    shapes = {"mu": (count, 4), "logvar": (count, 4), "prior": (4,), "critic": (4, 1)}
    leaves = {
        name: place(randn(*shape, dtype=torch.float64, seed=i), shape[0] == count)
        for i, (name, shape) in enumerate(shapes.items())
    }
    for leaf in leaves.values():
        leaf.requires_grad_()
    keys, schedule = place(_keys(count), True), diffusion.NoiseSchedule.linear(100)
    t = place(torch.arange(count) * 7 % 100, True)
    mu, logvar = leaves["mu"], leaves["logvar"]
    z, kl = vae.rsample_kl(mu, logvar, leaves["prior"], key=keys)
    x_t = diffusion.q_sample(z, t, schedule, key=keys)
    loss = kl + diffusion.noise_loss(x_t.tanh(), z, t, schedule, key=keys, reduction="mean")
    logits = z.tanh() @ leaves["critic"]
    loss = loss + gan.generator_loss(logits, reduction="mean")
    (slopes,) = torch.autograd.grad(logits.sum(), z, create_graph=True)
    loss = loss + gan.gradient_penalty(slopes, reduction="batchmean")
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), list(leaves.values()))
    return [loss, *first, *second]


def _check_derivatives(count):
    def place(x, batched):
        return _shard(x) if batched else _replicate(x)

    got = [x.full_tensor() for x in _derivatives(place, count)]
    whole = _derivatives(lambda x, batched: x, count)
    for g, w in zip(got, whole, strict=True):
        # Sums of some dozen terms near 1, in another order, and divided at another place.
        torch.testing.assert_close(g, w, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("size", "count"), [(2, 6), (2, 5)], ids=["even", "uneven"])
def test_derivatives_on_shards_are_those_of_the_whole(size, count, run):
    run(size, _check_derivatives, count)


def _check_compiled():
    mu, logvar, keys = _shard(randn(6, 4)), _shard(randn(6, 4, seed=1)), _shard(_keys(6))

    def loss(mu, logvar, keys):
        z, kl = vae.rsample_kl(mu, logvar, key=keys, reduction="mean")
        return z.square().sum() + kl

    mu.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for function in (loss, compiled):
        value = function(mu, logvar, keys)
        (gradient,) = torch.autograd.grad(value, mu)
        yield value.full_tensor(), gradient.full_tensor()


def _check_compiled_equals_eager():
    import genkern.distributed  # noqa: F401

    eager, compiled = _check_compiled()
    torch.testing.assert_close(compiled, eager, rtol=2**-22, atol=2**-22)


def test_torch_compile_of_code_with_dtensors(run):
    run(2, _check_compiled_equals_eager)


def test_import_does_not_load_the_rules():
    code = "import sys, genkern; sys.exit('genkern.distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- training


@pytest.fixture(scope="module")
def example():
    for package in ("rich", "sklearn", "tqdm"):
        pytest.importorskip(package)
    return pytest.importorskip("examples.distributed", exc_type=ImportError)


STEPS = 4


def _train(name, method, dtype):
    from examples import distributed
    from examples.data import load_digits

    run = distributed.train(name, method, load_digits().train.to(dtype), STEPS, seed=0)
    return run.loss.numpy(), run.noise.numpy()


_ALONE = {}


def _alone(run, *args):
    """The run of one process, made once."""
    if args not in _ALONE:
        _ALONE[args] = run(1, _train, *args)[0]
    return _ALONE[args]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("size", "method"), [(2, "DDP"), (4, "DDP"), (2, "FSDP2")])
@pytest.mark.parametrize("name", ["VAE", "DDPM"])
def test_several_processes_train_as_one(name, size, method, dtype, run, example):
    loss, noise = _alone(run, name, "DDP", dtype)
    assert len(set(loss)) == STEPS
    # A last digit a step: gradients of the parts of a batch are summed in another order.
    rtol = STEPS * torch.finfo(dtype).eps
    for other_loss, other_noise in run(size, _train, name, method, dtype):
        assert (other_noise.view("int32") == noise.view("int32")).all()
        assert abs(other_loss / loss - 1).max() <= rtol


def test_the_example_runs(example):
    result = subprocess.run(
        [sys.executable, "-m", "examples.distributed", "--steps", "1"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"([124] x (?:DDP|FSDP2)) +\d+\.\d+ +(\S+) +(-|equal|differ)", result.stdout)
    assert [row[0] for row in rows] == ["1 x DDP", "2 x DDP", "4 x DDP", "2 x FSDP2"] * 2
    assert [row[2] for row in rows] == ["-", "equal", "equal", "equal"] * 2
    assert all(row[1] == "-" or float(row[1]) < 1e-6 for row in rows)
