"""The documentation's code, the demo and the chapter run as a reader would run them."""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from examples import gan_steps, loop_wgan_gp
from genkern import random

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


# ---- the chapter, which the demo runs at its end


def numbers(rows):
    """The cells of a table that are numbers; a row's name stays."""
    return {row[0]: [float(cell.replace(",", "")) for cell in row[1:]] for row in rows}


def test_chapter_table_42_1(demo):
    rows = {row[0]: row[1:] for row in table(demo[1], "Table 42.1")}
    printed = {t: (row[0], row[3]) for t, row in rows.items()}
    assert printed == {
        "0": ("8.290", "2.509"),
        "5": ("8.172", "2.423"),
        "10": ("7.810", "2.166"),
        "20": ("6.642", "1.402"),
        "30": ("5.283", "0.810"),
        "40": ("3.857", "0.358"),
    }
    assert all((row[1], row[4]) == printed[t] for t, row in rows.items())
    # 600 other draws: the variance of a coordinate has a relative error of sqrt(2 / 600) at most
    # (a Gaussian's; the mixture is flatter).
    for row in rows.values():
        assert row[2] == "-" or float(row[2]) == pytest.approx(float(row[0]), rel=4 * 300**-0.5)


def test_chapter_posterior_mean(demo):
    closed, simulated = table(demo[1], "The mean of the forward posterior")
    assert closed[1:] == ["1.0988", "1.0988"]
    mean, error = map(float, simulated[2].split(" +- "))
    assert 0 < error < 0.01
    assert abs(mean - 1.0988) < 4 * error


def test_chapter_table_42_2(demo):
    js, value, floor = (row[1:] for row in table(demo[1], "Table 42.2"))
    assert js[:2] == ["0.2532"] * 2
    assert value[:2] == ["-0.8799"] * 2
    assert floor[:2] == ["-1.3863"] * 2
    # A term is at most sp(-r) or sp(f), whose deviation is below 1 here: 4 sqrt(2 / 1e5) < 0.02.
    assert float(value[2]) == pytest.approx(-0.8799, abs=0.02)
    assert float(js[2]) == pytest.approx(0.2532, abs=0.01)


def test_chapter_saturation(demo):
    rows = numbers(table(demo[1], "Saturation"))
    # At a distance m the saturating gradient is E[D (m - ...)], far below the other's, about m.
    saturating, other = rows["8"][1:3]
    assert saturating < 1e-3 and other == pytest.approx(8, abs=0.1)
    ratios = [row[3] for row in rows.values()]
    assert ratios == sorted(ratios)


def test_chapter_distances(demo):
    rows = numbers(table(demo[1], "JS against Wasserstein"))
    for shift, (js, _, w, _) in rows.items():
        assert js == round(min(float(shift), 1) * math.log(2), 3)
        assert w == float(shift)


def test_chapter_gradient_estimators(demo):
    # 10,000 estimates of d coordinates; the exact gradient is 1 in each.
    for row in table(demo[1], "Two estimators of one gradient"):
        d = int(row[0])
        first, second, narrow, wide = (float(cell.replace(",", "")) for cell in row[1:5])
        # 1 + eps_j, of variance 1.
        assert abs(first - 1) < 4 / math.sqrt(10_000 * d) + 5e-4
        assert narrow == pytest.approx(1, abs=4 * math.sqrt(2 / (10_000 * d)) + 5e-3)
        # f eps_j where f = |1 + eps|^2 / 2. With a = (1 + eps_j)^2 and the sum b of the k other
        # squares, E[f^2 eps_j^2] = (E[a^2 eps_j^2] + 2 E[a eps_j^2] E[b] + E[b^2]) / 4.
        k = d - 1
        variance = (34 + 2 * 4 * 2 * k + 4 * k**2 + 6 * k) / 4 - 1
        assert wide == pytest.approx(variance, rel=0.15)
        assert abs(second - 1) < 4 * math.sqrt(variance / 10_000)


def test_chapter_collapse(demo):
    rows = table(demo[1], "Posterior collapse")
    assert [row[-5] for row in rows] == ["plain", "annealing", "free bits"] * 2
    kl = [float(row[-4]) for row in rows]
    assert kl[2] > max(kl[:2]) and kl[5] > max(kl[3:5])  # free bits hold it up


def test_chapter_ring(demo):
    rows = table(demo[1], "Modes covered")
    assert [row[0] for row in rows] == ["minimax", "non-saturating", "WGAN-GP"]
    assert all(re.fullmatch(r"[0-8] of 8", row[2]) for row in rows)


def test_chapter_families(demo):
    bits = {row[0]: row[-1] for row in table(demo[1], "The families: training")}
    assert bits["GAN"] == "-" and float(bits["VAE"]) > 0 and float(bits["diffusion"]) > 0
    held_out, *models = table(demo[1], "The families: samples")
    assert held_out[0] == "digits" and len(models) == 4
    frechet, precision, recall, _ = map(float, held_out[-4:])
    assert all(frechet < float(row[-4]) for row in models)
    assert min(precision, recall) > 0.8  # real digits are among real digits
    verdicts = table(demo[1], "The families: verdicts")
    assert len(verdicts) == 15


def test_chapter_page_needs_no_other_file(demo):
    assert check_page(demo[0] / "chapter", demo[1]) == {
        "figure-42-1",
        "figure-42-2",
        "collapse",
        "ring",
        "families-samples",
        "families-curves",
    }


# ---- the measures of samples


@pytest.fixture(scope="module")
def quality():
    return pytest.importorskip("examples.sample_quality")  # needs scikit-learn


def test_frechet_distance_of_gaussians(quality):
    x = random.normal(random.key(0), 500, 3, dtype=torch.float64).numpy()
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), (x - x.mean(0)).T).T
    assert quality.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    # Covariances I and diag(s^2): the sum of (1 - s)^2; a shift adds its square.
    s, shift = np.array([1.0, 2.0, 0.0]), np.array([0.0, 3.0, 4.0])
    expected = 0 + 1 + 1 + 25
    assert quality.frechet_distance(x, s * x + shift) == pytest.approx(expected, abs=1e-6)
    # The same in coordinates turned and scaled by 2.
    turn = 2 * np.linalg.qr(x[:3])[0]
    got = quality.frechet_distance(x @ turn, (s * x + shift) @ turn)
    assert got == pytest.approx(4 * expected, abs=1e-6)


def test_share_inside_counts_points_near_the_support(quality):
    support = np.arange(10.0)[:, None]  # the third neighbour is 2 away inside, 3 at the ends
    points = np.array([[-3.5], [-2.9], [4.5], [11.9], [12.1], [100.0]])
    assert quality.share_inside(points, support) == 3 / 6


# ---- the training steps of GANs


@pytest.fixture(scope="module")
def gan_ring():
    return pytest.importorskip("examples.gan_ring")  # needs tqdm


def test_gan_ring_runs(gan_ring):
    result = subprocess.run(
        [sys.executable, "-m", "examples.gan_ring", "--steps", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^(\w.*?)\s+[0-8] of 8 +\d+%$", result.stdout, re.M)
    assert rows == list(gan_ring.RUNS)


def test_coverage_counts_gaussians_with_a_tenth_of_their_share(gan_ring):
    assert gan_ring.coverage(gan_ring.ring(8000))[0] == 8
    far, centres = torch.zeros(1000, 2), gan_ring.CENTRES
    assert gan_ring.coverage(far) == (0, 0.0)
    # Of 1000 samples, 12.5 are a tenth of an even share.
    few = torch.cat([far[25:], centres[:1].expand(13, 2), centres[1:2].expand(12, 2)])
    assert gan_ring.coverage(few) == (1, pytest.approx(0.025))


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


DISCRIMINATOR_LOSSES = {
    "minimax": lambda r, f: F.softplus(-r).mean() + F.softplus(f).mean(),
    "non_saturating": lambda r, f: F.softplus(-r).mean() + F.softplus(f).mean(),
    "hinge": lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(),
    "least_squares": lambda r, f: (r - 1).square().mean() / 2 + f.square().mean() / 2,
    "relativistic": lambda r, f: F.softplus(f - r).mean(),
    "wasserstein": lambda r, f: f.mean() - r.mean(),
}
GENERATOR_LOSSES = {
    "minimax": lambda r, f: -F.softplus(f).mean(),
    "non_saturating": lambda r, f: F.softplus(-f).mean(),
    "hinge": lambda r, f: -f.mean(),
    "least_squares": lambda r, f: (f - 1).square().mean() / 2,
    "relativistic": lambda r, f: F.softplus(r - f).mean(),
    "wasserstein": lambda r, f: -f.mean(),
}


@pytest.mark.parametrize("kind", DISCRIMINATOR_LOSSES)
def test_the_discriminators_step_equals_plain_pytorch(kind):
    def ours(network, optimiser, real, fake, i):
        gan_steps.discriminator_step(network, optimiser, real, fake, kind=kind)

    def plain(network, optimiser, real, fake, i):
        _plain_update(optimiser, DISCRIMINATOR_LOSSES[kind](network(real), network(fake)))

    got, want = _train_discriminator(ours, 5), _train_discriminator(plain, 5)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", GENERATOR_LOSSES)
def test_the_generators_step_equals_plain_pytorch(kind):
    torch.manual_seed(1)
    discriminator = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(1, 1)).double()
    weights = [p.clone() for p in discriminator.parameters()]

    # The network that is trained is the generator here; its input is `fake`.
    def ours(network, optimiser, real, fake, i):
        compared = real[:, :1] if kind == "relativistic" else None
        gan_steps.generator_step(network, discriminator, optimiser, fake, kind=kind, real=compared)

    def plain(network, optimiser, real, fake, i):
        real_logits = discriminator(real[:, :1]).detach()
        loss = GENERATOR_LOSSES[kind](real_logits, discriminator(network(fake)))
        _plain_update(optimiser, loss)

    got, want = _train_discriminator(ours, 5), _train_discriminator(plain, 5)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(p, w) for p, w in zip(discriminator.parameters(), weights, strict=True))


def test_the_wgan_gp_step_equals_plain_pytorch():
    def ours(network, optimiser, real, fake, i):
        torch.manual_seed(i)
        gan_steps.wgan_gp_step(network, optimiser, real, fake, weight=3.0)

    def plain(network, optimiser, real, fake, i):
        torch.manual_seed(i)
        w = random.uniform(random.new_key(), len(real), dtype=torch.float64)[:, None]
        x = (w * real + (1 - w) * fake).requires_grad_()
        (g,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        penalty = (g.norm(dim=1) - 1).square().mean()
        _plain_update(optimiser, network(fake).mean() - network(real).mean() + 3.0 * penalty)

    got, want = _train_discriminator(ours, 5), _train_discriminator(plain, 5)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


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
