"""The documentation's code and the demo run as a reader would run them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from examples import gan_steps, loop_wgan_gp

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.fixture(autouse=True, scope="module")
def as_a_reader():
    # The suite may have turned Triton's interpreter on; a reader's calls do not go there.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield


def code_blocks():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(1))
            name = f"{page.relative_to(ROOT)}:{line + 1}"
            yield pytest.param(page, line, match[1], id=name)


@pytest.mark.parametrize(("page", "line", "code"), list(code_blocks()))
def test_code_block_runs(page, line, code):
    if "genkern_host" in code:
        pytest.importorskip("genkern_host")
    # Blank lines in front give a failure the page's own line number.
    exec(compile("\n" * line + code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def run_quickly(module, folder):
    for package in ("jinja2", "matplotlib", "rich", "sklearn", "tqdm"):
        pytest.importorskip(package)
    result = subprocess.run(
        [sys.executable, "-m", f"examples.{module}", "--quick", "--output", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def check_page(folder, printed):
    """The page is named in the terminal and needs no other file; the pictures' names."""
    page = folder / "index.html"
    assert str(page) in printed
    html = page.read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|srcset|href)="([^"]{,22})', html)) == {"data:image/png;base64,"}
    light, dark = ({p.name for p in folder.glob(f"*-{theme}.png")} for theme in ("light", "dark"))
    assert {name.replace("-light", "-dark") for name in light} == dark
    return {name.removesuffix("-light.png") for name in light}


def table(printed, title):
    """The rows of a printed table, as lists of their cells."""
    lines = printed[printed.index(f" {title}") :].splitlines()[1:]
    rows = [re.split(r"  +", line.strip()) for line in lines if line.strip()]
    start = next(
        i for i, row in enumerate(rows) if set(row[0]) == {"\N{BOX DRAWINGS LIGHT HORIZONTAL}"}
    )
    end = next(i for i, row in enumerate(rows) if i > start and len(row) == 1)
    return rows[start + 1 : end]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_quickly("digits", folder)


def by_method(rows, column=1):
    """A column of a table, by the method that a row belongs to."""
    found = {}
    for row in rows:
        name = next(i for i in (0, 1) if row[i].startswith(("genkern", "plain", "diffusers")))
        found.setdefault(row[name], []).append(row[column if column < 0 else name + column])
    return found


def test_vae_gives_equal_elbo_on_equal_noise(demo):
    found = by_method(table(demo[1], "VAE: training"))
    assert set(found) == {"genkern", "plain, same noise", "plain, randn"}
    assert found["genkern"] == found["plain, same noise"]


def test_vae_keeps_only_a_key(demo):
    added = by_method(table(demo[1], "VAE: sampling + KL alone"), column=-1)
    assert added["genkern"] == ["16 B"] * 2
    assert "16 B" not in added["plain, same noise"]


def test_ddpm_gives_equal_losses_on_equal_noise(demo):
    found = by_method(table(demo[1], "DDPM: training"))
    assert set(found) == {"genkern", "plain, same noise"}
    assert found["genkern"] == found["plain, same noise"]
    first, second = re.search(r"last step: (\S+) and (\S+);", demo[1]).groups()
    assert first == second


def test_ddpm_gives_equal_images_on_equal_noise(demo):
    largest = by_method(table(demo[1], "DDPM: samples"), column=-1)
    assert largest["genkern"] == ["-", "-"]
    assert len(largest["plain, same noise"]) == 2
    # float32 roundings of the losses and steps, of images in [-1, 1].
    assert all(float(d) < 1e-3 for d in largest["plain, same noise"])


def test_ddpm_holds_a_key_while_the_network_runs(demo):
    held = by_method(table(demo[1], "Training step: outside the network"), column=-1)
    assert held["genkern"] == ["16 B"]
    assert held["plain, randn"] == ["24 KiB"]  # the noise of 96 images


def test_demo_page_needs_no_other_file(demo):
    assert check_page(*demo) == {
        "vae-loss",
        "vae-reconstructions",
        "vae-prior",
        "vae-latent",
        "vae-kl",
        "ddpm-loss",
        "ddpm-samples",
        "ddpm-strip",
    }


# ---- the training steps of GANs


def test_gan_steps_run():
    result = subprocess.run(
        [sys.executable, "-m", "examples.gan_steps", "--steps", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    losses = re.findall(r"^(\w.*?)\s+(-?\d\.\d{3})\s+(-?\d\.\d{3})   \d of 8$", result.stdout, re.M)
    assert [name for name, *_ in losses] == list(gan_steps.RUNS)


def _train_discriminator(step, count):
    """Weights after some steps on the same data."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    ).double()
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    real, fake = torch.randn(16, 2).double(), torch.randn(16, 2).double()
    for i in range(count):
        step(network, optimiser, real, fake, i)
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def _plain_update(optimiser, loss):
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def test_lazy_r1_equals_plain_pytorch():
    def ours(network, optimiser, real, fake, i):
        gan_steps.r1_step(network, optimiser, real, fake, i, gamma=3.0, every=2)

    def plain(network, optimiser, real, fake, i):
        loss = F.softplus(-network(real)).mean() + F.softplus(network(fake)).mean()
        if i % 2 == 0:
            x = real.requires_grad_()
            (g,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
            loss = loss + 2 * 3.0 / 2 * g.square().sum(1).mean()
        _plain_update(optimiser, loss)

    got, want = _train_discriminator(ours, 5), _train_discriminator(plain, 5)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_the_clipping_step_equals_plain_pytorch():
    def ours(network, optimiser, real, fake, i):
        gan_steps.clipping_step(network, optimiser, real, fake, bound=0.2)

    def plain(network, optimiser, real, fake, i):
        _plain_update(optimiser, network(fake).mean() - network(real).mean())
        for p in network.parameters():
            p.data.clamp_(-0.2, 0.2)

    got, want = _train_discriminator(ours, 5), _train_discriminator(plain, 5)
    assert got.abs().max() == 0.2
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


# ---- loops to start from


@pytest.mark.parametrize("name", ["loop_vae", "loop_latent_diffusion"])
def test_a_loop_learns(name):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    losses = importlib.import_module(f"examples.{name}").train(60)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_wgan_gp_loop_is_the_same_with_lightning():
    losses, generator = loop_wgan_gp.train(3)
    assert len(losses) == 3
    pytest.importorskip("lightning", reason="lightning is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a few workers and an unlogged run
        theirs, trained = loop_wgan_gp.train_with_lightning(3)
    assert len(theirs) == 3
    torch.testing.assert_close([*generator.parameters()], [*trained.parameters()], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["loop_vae", "loop_latent_diffusion", "loop_wgan_gp"])
def test_a_loop_runs_from_the_command_line(name):
    if name != "loop_wgan_gp":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    result = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", "--steps", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert "at last" in result.stdout
