"""AOTInductor packages: they load, give eager's numbers, and run where genkern is not imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from public_calls import SCHEDULE, Inputs, inputs, tensors
from support import same_bits

import genkern
from genkern import diffusion, gan, vae

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(genkern.__file__).with_name("libgenkern_cpu.so")
DOCUMENT = ROOT / "docs" / "backends.md"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]


class Model(torch.nn.Module):
    """Every kind of operator: noise, losses, steps, one that writes, bounds that are absent."""

    def forward(self, x, y, t, prev_t, keys):
        z, kl = vae.rsample_kl(x, y, key=keys)
        x_t = diffusion.q_sample(z, t, SCHEDULE, key=keys)
        out = torch.empty_like(x_t)
        diffusion.ddpm_step(x_t, y, 20, SCHEDULE, key=keys, out=out)
        step = diffusion.ddim_step(out, y, t, SCHEDULE, prev_t=prev_t)
        loss = diffusion.noise_loss(y, z, t, SCHEDULE, key=keys)
        return z, kl, step, loss, gan.gradient_penalty(step)


class Wide(torch.nn.Module):
    def forward(self, x):
        return vae.rsample(x, x, noise=x)


def export(model: torch.nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, tuple(vars(inputs()).values()))


def numbers(program: torch.export.ExportedProgram) -> list[float]:
    """The floats among the arguments of genkern's operators."""
    calls = [n for n in program.graph.nodes if str(n.target).startswith("genkern.")]
    assert calls
    return [a for n in calls for a in n.args if isinstance(a, float)]


def test_exported_programs_hold_no_infinity():
    found = numbers(export(Model()))
    assert max(found) == torch.finfo(torch.float32).max == -min(found)
    wide = torch.export.export(Wide(), (torch.zeros(2, dtype=torch.float64),))
    assert max(numbers(wide)) == torch.finfo(torch.float64).max


@pytest.mark.parametrize(
    "options",
    [
        {}, {"clip_range": 0.5}, {"clip_range": (-float("inf"), 0.5)}, {"threshold": (0.8, 2.0)},
        {"uncond": True, "guidance_scale": 2.0},
    ],
)  # fmt: skip
def test_exported_steps_are_those_of_eager(options):
    class Steps(torch.nn.Module):
        def forward(self, x, y, t, prev_t, keys):
            given = {**options, "uncond": x * y} if "uncond" in options else options
            return (
                diffusion.ddpm_step(x, y, t, SCHEDULE, key=keys, **given),
                diffusion.ddim_step(x, y, t, SCHEDULE, **given),
            )

    arguments = vars(inputs()).values()
    for got, want in zip(export(Steps()).module()(*arguments), Steps()(*arguments), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_exported_loops_are_those_of_eager():
    class Loop(torch.nn.Module):
        def forward(self, keys):
            run = lambda x, t: 0.3 * x  # noqa: E731
            return [
                diffusion.sample(
                    run, (4, 3), SCHEDULE, sampler=s, num_steps=3, key=keys, progress=False
                )
                for s in ("ddpm", "ddim", "ode")
            ]

    keys = inputs().keys
    program = torch.export.export(Loop(), (keys,))
    for got, want in zip(program.module()(keys), Loop()(keys), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def documented() -> str:
    text = DOCUMENT.read_text()
    return re.search(r"^```py\n(.*?)^```", text, re.M | re.S)[1]


@pytest.mark.skipif(not LIBRARY.exists(), reason="needs libgenkern_cpu.so")
@pytest.mark.skipif(not DOCUMENT.exists(), reason="needs the source tree")
def test_a_package_runs_with_and_without_genkern(tmp_path):
    i = inputs()
    # torch.save has no uint64.
    arguments = tuple(vars(Inputs(i.x, i.y, i.t, i.prev_t, i.keys.view(torch.int64))).values())
    want = Model()(*arguments)
    package = torch._inductor.aoti_compile_and_package(
        torch.export.export(Model(), arguments),
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    got = torch._inductor.aoti_load_package(package)(*arguments)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)

    torch.save(arguments, tmp_path / "arguments.pt")
    code = documented() + (
        "results = model(*torch.load(sys.argv[3]))\n"
        "torch.save([r.detach() for r in results], sys.argv[4])\n"
        "assert 'genkern' not in sys.modules\n"
    )
    (tmp_path / "run.py").write_text(code)
    paths = (tmp_path / name for name in ("run.py", "arguments.pt", "results.pt"))
    script, given, results = paths
    answer = subprocess.run(
        [sys.executable, script, LIBRARY, package, given, results], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert all(map(same_bits, tensors(torch.load(results)), (g.detach() for g in got)))
