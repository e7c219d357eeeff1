"""Load and surroundings: many threads, processes, interrupts, two copies, no place to write."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support import randn, same_bits
from torch.utils.data import DataLoader, Dataset

import genkern
from genkern import _native, diffusion, gan, vae
from genkern.random import fold_in, key, normal

SCHEDULE = diffusion.NoiseSchedule.linear(50)


def _training_step(seed: int) -> tuple[torch.Tensor, ...]:
    """A little of each family, forwards and backwards."""
    x, y = randn(4, 33, seed=seed).requires_grad_(), randn(4, 33, seed=seed + 1).requires_grad_()
    k = fold_in(key(3), seed)
    z, divergence = vae.rsample_kl(x, y, key=k)
    noised = diffusion.q_sample(x, torch.arange(4), SCHEDULE, key=k)
    loss = divergence + gan.discriminator_loss(z, noised) + gan.r1_penalty(x)
    return loss.detach(), *torch.autograd.grad(loss, (x, y))


# ---- threads


def test_10_000_calls_from_32_threads_at_once():
    want = [_training_step(seed) for seed in range(8)]
    barrier = threading.Barrier(32)

    def work(number: int) -> int:
        barrier.wait()
        # Each step runs more than ten operators.
        return sum(
            all(map(same_bits, _training_step(seed % 8), want[seed % 8]))
            for seed in range(number, number + 32)
        )

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(work, range(32))) == 32 * 32


def test_threads_choose_backends_for_themselves():
    x = randn(3, 4)

    def work(number: int) -> str:
        with genkern.use_backend(("native", "reference")[number % 2]):
            vae.kl(x, x)
            return genkern._ops.op._chosen.get()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(64))) == ["native", "reference"] * 32


# ---- processes


class Noised(Dataset):
    """An item is noised in the worker, from its index."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        # Large enough for several threads.
        return diffusion.q_sample(torch.ones(40000), 20, SCHEDULE, key=fold_in(key(1), index))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(start):
    data = Noised()
    want = torch.stack([data[i] for i in range(6)])  # in this process first, on its threads
    loader = DataLoader(data, batch_size=3, num_workers=2 if start == "fork" else 1,
                        multiprocessing_context=start)  # fmt: skip
    assert same_bits(torch.cat(list(loader)), want)


# ---- interrupts


class Interrupt(Exception):
    """Raised by the signal's handler."""


def test_interrupts_leave_nothing_behind():
    x, out = randn(64, 1025), torch.empty(64, 1025)
    want = diffusion.ddpm_step(x, x, 20, SCHEDULE, key=key(1))

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    caught = 0
    try:
        while caught < 30:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 * (caught % 7 + 1))
                with genkern.use_backend("reference" if caught % 2 else None):
                    while True:
                        diffusion.ddpm_step(x, x, 20, SCHEDULE, key=key(1), out=out)
                        _training_step(caught)
            except Interrupt:
                caught += 1
                assert genkern._ops.op._chosen.get() is None
                # An interrupted call wrote all of its result or none, and the next is right.
                assert same_bits(diffusion.ddpm_step(x, x, 20, SCHEDULE, key=key(1)), want)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- copies and places


def _python(code: str, *arguments: str, **options) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout.strip()


PACKAGE = Path(genkern.__file__).parent


def test_the_library_is_loaded_twice():
    """As when the module that loads it is imported again."""
    if _native.unavailable_reason("cpu") is not None:
        pytest.skip(_native.unavailable_reason("cpu"))
    assert _native._load("cpu") is None
    x = randn(2, 3)
    assert vae.kl(x, x).isfinite()


def test_two_copies_in_one_process(tmp_path):
    """A library of another copy is not loaded, and another copy is not imported."""
    shutil.copytree(PACKAGE, tmp_path / "genkern", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import sys, pathlib, torch, genkern
from genkern import _native
print(_native.unavailable_reason("cpu"))
if _native.unavailable_reason("cpu") is None:
    _native._DIRECTORY = pathlib.Path(sys.argv[1], "genkern")
    print(_native._load("cpu"))
first = genkern
for name in [n for n in sys.modules if n.split(".")[0] == "genkern"]:
    del sys.modules[name]
sys.path.insert(0, sys.argv[1])
try:
    import genkern
except ImportError as error:
    print(error)
print(first.vae.kl(torch.zeros(2), torch.zeros(2)).item())
"""
    reason, *lines = _python(code, str(tmp_path), cwd=PACKAGE.parent).splitlines()
    if reason == "None":
        assert lines.pop(0) == "another libgenkern_cpu.so is loaded in this process"
    assert lines == ["genkern: a process can import one copy, another is imported", "0.0"]


def test_nothing_is_written_and_no_home_is_needed(tmp_path):
    """Every file that is opened to be written fails, as on a read-only file system."""
    code = """
import os, sys, torch

def read_only(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path) != os.devnull:
            raise OSError(30, "Read-only file system", path)
    if event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "tempfile.mkstemp"):
        raise OSError(30, "Read-only file system", str(arguments[0]))

sys.addaudithook(read_only)
import genkern
x = torch.ones(3, 4, requires_grad=True)
z, kl = genkern.vae.rsample_kl(x, x)
(z.sum() + kl).backward()
genkern.info()
try:
    open("written", "w")
except OSError as error:
    print(error.errno, x.grad.shape)
"""
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH")}
    environment |= {"PYTHONPATH": str(PACKAGE.parent)}
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    assert _python(code, cwd=folder, env=environment) == "30 torch.Size([3, 4])"


# ---- more than 2^31 and 2^32 elements: about 9 GB


def _at(offset_blocks: int) -> torch.Tensor:
    return torch.tensor([5, offset_blocks], dtype=torch.int64).view(torch.uint64)


@pytest.mark.large
@pytest.mark.parametrize("boundary", [2**31, 2**32])
def test_streams_across_the_boundary(boundary):
    """float16: the elements there are those of a key whose offset leads there."""
    whole = normal(key(5), boundary + 4096, dtype=torch.float16)
    for start in (2**31 - 64, boundary - 64, boundary + 4032):
        want = normal(_at(start // 4), 64, dtype=torch.float16)
        assert same_bits(whole[start : start + 64], want)


@pytest.mark.large
def test_a_step_across_the_boundary():
    """In bfloat16, with a t a sample, inputs that are expanded and a new output."""
    rows, columns = 2**16 + 2, 2**15
    assert rows * columns > 2**31
    x = torch.linspace(-1, 1, columns).bfloat16()
    t = torch.arange(rows) % 50
    out = diffusion.q_sample(x.expand(rows, columns), t, SCHEDULE, key=key(5))
    for row in (2**16 - 1, 2**16, rows - 1):
        k = _at(row * columns // 4)
        assert same_bits(
            out[row], diffusion.q_sample(x[None], t[row : row + 1], SCHEDULE, key=k)[0]
        )


@pytest.mark.large
def test_sums_of_more_than_2_32_elements():
    rows, columns = 2**17 + 3, 2**15
    assert rows * columns > 2**32
    real = torch.linspace(-2, 2, columns).bfloat16().expand(rows, columns)
    fake = torch.linspace(2, -2, columns).bfloat16().expand(rows, columns)
    row = gan.discriminator_loss(real[:1].double(), fake[:1].double(), reduction="sum")
    total = gan.discriminator_loss(real, fake, reduction="sum")
    assert total.item() == pytest.approx(row.item() * rows, rel=1e-6)
    each = gan.r1_penalty(real, reduction="sample")
    assert same_bits(each, each[:1].expand(rows)) and each.shape == (rows,)
