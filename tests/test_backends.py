"""Which backend runs a call: the order, the explicit choice, what is said, and what is missing."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support import randn, skip_unless_usable

import genkern
from genkern._ops.op import BACKENDS, OPS, Backend
from genkern.vae import kl, rsample_kl

PACKAGE = Path(genkern.__file__).parent


def run_python(code: str, *, cwd: Path | None = None, **environment: str | None):
    env = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True
    )


class Spy(Backend):
    """Counts the calls that reach it, and runs the reference."""

    name = "spy"

    def __init__(self):
        self.calls = []

    def kernel(self, op, args):
        def counted(*args):
            self.calls.append((op.name, threading.current_thread()))
            return op.reference(*args)

        return counted


@pytest.fixture
def spy(monkeypatch):
    """The reference again under another name, behind all others: it runs only when chosen."""
    backend = Spy()
    monkeypatch.setattr("genkern._ops.op.BACKENDS", [*BACKENDS, backend])
    monkeypatch.setattr("genkern.backends.BACKENDS", [*BACKENDS, backend])
    return backend


class Refusing(Backend):
    name = "refusing"

    def kernel(self, op, args):
        return "it refuses everything"


def test_order_of_preference():
    assert [b.name for b in BACKENDS] == ["native", "triton", "reference"]


def test_the_first_backend_that_can_runs_the_call(monkeypatch):
    first, second = Spy(), Spy()
    monkeypatch.setattr("genkern._ops.op.BACKENDS", [Refusing(), first, second])
    kl(randn(2, 3), randn(2, 3))
    assert [name for name, _ in first.calls] == ["kl"] and not second.calls


def test_use_backend(spy):
    x = randn(2, 3)
    kl(x, x)
    assert not spy.calls
    with genkern.use_backend("spy"):
        kl(x, x)
        with genkern.use_backend(None):
            kl(x, x)
        with genkern.use_backend("reference"):
            kl(x, x)
        assert len(spy.calls) == 1
        kl(x, x)
    kl(x, x)
    assert len(spy.calls) == 2


def test_use_backend_ends_with_an_exception(spy):
    with pytest.raises(KeyError), genkern.use_backend("spy"):
        raise KeyError
    kl(randn(2, 3), randn(2, 3))
    assert not spy.calls


def test_other_threads_do_not_see_the_choice(spy):
    x = randn(2, 3)
    with genkern.use_backend("spy"):
        thread = threading.Thread(target=lambda: kl(x, x))
        thread.start()
        thread.join()
    assert not spy.calls


def test_backward_uses_the_choice_of_forward(spy):
    """Also on another thread, as for tensors on a GPU, and outside the block."""
    mu, logvar, noise = (randn(2, 3).requires_grad_() for _ in range(3))
    with genkern.use_backend("spy"):
        _, divergence = rsample_kl(mu, logvar, noise=noise)
    thread = threading.Thread(target=divergence.backward)
    thread.start()
    thread.join()
    assert mu.grad is not None
    assert [name for name, _ in spy.calls] == ["rsample_kl", "rsample_kl_backward"]
    assert spy.calls[1][1] is not threading.current_thread()
    # And the other way round: a choice made after the forward pass has no say.
    spy.calls.clear()
    divergence = kl(mu, logvar)
    with genkern.use_backend("spy"):
        divergence.backward()
    assert not spy.calls


def test_a_choice_that_cannot_be_met_raises_with_every_reason(monkeypatch):
    monkeypatch.setattr("genkern._ops.op.BACKENDS", [*BACKENDS, Refusing()])
    monkeypatch.setattr("genkern.backends.BACKENDS", [*BACKENDS, Refusing()])
    with (
        genkern.use_backend("refusing"),
        pytest.raises(NotImplementedError) as caught,
    ):
        kl(randn(2, 3), randn(2, 3))
    lines = str(caught.value).splitlines()
    assert lines[0] == "kl: the chosen backend 'refusing' cannot run this call"
    assert lines[1] == "genkern.kl: float32 (2, 3) on cpu, float32 (2, 3) on cpu"
    assert [line.split(":")[0].strip() for line in lines[2:]] == [
        "native", "triton", "reference", "refusing",
    ]  # fmt: skip
    assert lines[-1] == "  refusing: it refuses everything"


def test_explain():
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    text = genkern.explain("rsample_kl", x, x)
    assert genkern.explain(rsample_kl, x, x) == text
    lines = text.splitlines()
    assert lines[0] == "genkern.rsample_kl: bfloat16 (2, 3) on cpu, bfloat16 (2, 3) on cpu"
    assert len(lines) == 1 + len(BACKENDS)
    assert lines[-1] == "  reference: ready"
    meta = genkern.explain("kl", x.to("meta")).splitlines()
    assert meta[1] == "  native: there is no native library for meta"
    assert all(genkern.explain(name, x) for name in OPS)


def test_info():
    lines = genkern.info().splitlines()
    assert lines[0].startswith("genkern ")
    assert f"torch     {torch.__version__} (CUDA {torch.version.cuda or 'no'})" in lines
    for heading in ("built", "usable", "environment"):
        assert heading in lines
    assert any(line.startswith("  reference ") and "ready" in line for line in lines)
    for variable in ("GENKERN_BACKEND", "GENKERN_CPU_CAPABILITY", "GENKERN_BUILD"):
        assert any(variable in line for line in lines)


def test_info_says_what_the_variables_are(monkeypatch):
    monkeypatch.setenv("GENKERN_BACKEND", "bogus")
    monkeypatch.setenv("GENKERN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("GENKERN_BUILD", "")
    assert genkern.info().splitlines()[-3:] == [
        "  GENKERN_BACKEND         bogus     is not native, triton or reference:"
        " the backend of every call",
        "  GENKERN_CPU_CAPABILITY  avx2      baseline, avx2 or avx512:"
        " the most the CPU kernels may use",
        "  GENKERN_BUILD           unset     auto, none, cpu or cuda: what an install builds",
    ]


def test_the_public_namespace():
    """Nothing leaks from the package's own imports but its modules."""
    names = {name for name in vars(genkern) if not name.startswith("_")}
    modules = {name for name in names if inspect.ismodule(getattr(genkern, name))}
    families = {"random", "vae", "diffusion", "gan"}
    assert names - modules == {"explain", "info", "use_backend"}
    assert families <= modules <= families | {"backends", "distributed", "integrations", "testing"}
    assert all(getattr(genkern, name).__name__ == f"genkern.{name}" for name in modules)


def test_info_command():
    out = subprocess.run(
        [sys.executable, "-m", "genkern", "info"], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("genkern ") and not out.stderr
    wrong = subprocess.run([sys.executable, "-m", "genkern"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage" in wrong.stderr


# ---- in other processes

CALL = """
import torch, genkern
x = torch.ones(2, 3)
print(genkern.vae.kl(x, x).item())
print(genkern.explain("kl", x, x))
"""


@pytest.fixture
def without_native(tmp_path):
    """A copy of the package without the native libraries."""
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "genkern", ignore=skip)
    return tmp_path


def test_environment_variable():
    for name in ("reference", ""):
        out = run_python(CALL, GENKERN_BACKEND=name)
        assert out.returncode == 0, out.stderr
    out = run_python(CALL, GENKERN_BACKEND="triton", TRITON_INTERPRET=None)
    if torch.cuda.is_available():
        pytest.skip("a GPU is present")
    assert "NotImplementedError: kl: the chosen backend 'triton' cannot run this call" in out.stderr
    out = run_python(CALL, GENKERN_BACKEND="cuda")
    assert "ValueError: GENKERN_BACKEND must be one of native, triton, reference" in out.stderr
    # use_backend overrides it.
    code = "import genkern\nwith genkern.use_backend('reference'):" + CALL.replace("\n", "\n    ")
    assert run_python(code, GENKERN_BACKEND="cuda").returncode == 0


def test_without_the_native_library(without_native):
    out = run_python(CALL, cwd=without_native, GENKERN_BACKEND=None, TRITON_INTERPRET=None)
    assert out.returncode == 0 and not out.stderr, out.stderr
    lines = out.stdout.splitlines()
    assert float(lines[0]) == pytest.approx(1.5 * (2.718281828 - 1), rel=1e-6)
    assert lines[2] == "  native: libgenkern_cpu.so was not built"
    out = run_python(CALL, cwd=without_native, GENKERN_BACKEND="native")
    assert "libgenkern_cpu.so was not built" in out.stderr and out.returncode != 0


def test_a_native_library_that_does_not_load(without_native):
    (without_native / "genkern" / "libgenkern_cpu.so").write_bytes(b"not a library")
    out = run_python(CALL, cwd=without_native, GENKERN_BACKEND=None, TRITON_INTERPRET=None)
    assert out.returncode == 0
    assert "RuntimeWarning: genkern: libgenkern_cpu.so does not load" in out.stderr
    assert "  native: libgenkern_cpu.so does not load" in out.stdout
    # Importing alone neither loads nor warns.
    out = run_python("import genkern", cwd=without_native)
    assert out.returncode == 0 and not out.stderr


def test_without_triton():
    hidden = "import sys; sys.modules['triton'] = None\n"
    hidden += "import importlib.util as u; find = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
    out = run_python(hidden + CALL, GENKERN_BACKEND=None)
    assert out.returncode == 0, out.stderr
    assert "  triton: triton is not installed" in out.stdout
    out = run_python(hidden + CALL, GENKERN_BACKEND="triton")
    assert "  triton: triton is not installed" in out.stderr
    out = run_python(hidden + "import genkern; print(genkern.info())")
    assert "no: triton is not installed" in out.stdout


def test_without_a_gpu_triton_says_so():
    if torch.cuda.is_available():
        pytest.skip("a GPU is present")
    out = run_python(CALL, TRITON_INTERPRET=None, GENKERN_BACKEND=None)
    assert "no GPU" in next(x for x in out.stdout.splitlines() if x.startswith("  triton:"))


def test_importing_is_quiet_and_light(tmp_path):
    code = (
        "import sys, genkern\n"
        "assert 'triton' not in sys.modules\n"
        "assert not any(m.startswith('genkern._triton.') for m in sys.modules)\n"
        "import torch; x = torch.ones(2, 3, requires_grad=True)\n"
        "genkern.vae.kl(x, x).backward(); genkern.info()\n"
        "assert 'triton.language' not in sys.modules, 'a CPU call imported triton'\n"
    )
    native = next(b for b in BACKENDS if b.name == "native")
    skip_unless_usable(native)
    out = run_python(code, cwd=tmp_path, PYTHONPATH=str(PACKAGE.parent), GENKERN_BACKEND=None)
    assert out.returncode == 0 and not out.stderr, out.stderr
    assert not list(tmp_path.iterdir()), "files were written"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_short_mean_is_one_operator_of_pytorch(dtype):
    x = torch.linspace(-1.0, 2.0, 64, dtype=dtype).view(16, 2, 2).transpose(0, 2).requires_grad_()
    for kind in ("hinge", "wasserstein"):
        short = genkern.gan.generator_loss(x, kind=kind)
        assert short.grad_fn.name() == "DotBackward0"
        with genkern.use_backend("reference"):
            fused = genkern.gan.generator_loss(x, kind=kind)
        assert short.dtype == fused.dtype == dtype
        torch.testing.assert_close(short, fused)
        for loss in (short, fused):
            (grad,) = torch.autograd.grad(3.0 * loss, x, create_graph=True)
            torch.testing.assert_close(grad, torch.full_like(x, -3.0 / 64))
    # What would not be short, or not a plain mean, is the operator's.
    for other, reduction in (
        (torch.zeros(4097, requires_grad=True), "mean"),
        (x.detach().bfloat16().requires_grad_(), "mean"),
        (x, "sum"),
        (torch.zeros(0, requires_grad=True), "mean"),
    ):
        loss = genkern.gan.generator_loss(other, kind="hinge", reduction=reduction)
        assert loss.grad_fn.name() != "DotBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert genkern.gan.generator_loss(x, kind="hinge").dtype == dtype
