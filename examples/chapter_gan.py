"""The chapter's GAN theory in one dimension: D*, the value it gives, saturation, JS against W."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.integrate import quad
from scipy.stats import norm, wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor, nn
from tqdm import tqdm

from examples.pictures import BLUE, ORANGE
from examples.report import Part, Picture, Section, Table
from genkern import gan, random

DATA, GENERATOR = (1.0, 1.0), (-1.0, 1.5)  # mean and standard deviation
DRAWS = 4000  # of each, for the regression
GRID = np.linspace(-7, 7, 701)
DISTANCES = (1.0, 2.0, 4.0, 6.0, 8.0)  # between data and generator, in standard deviations
SHIFTS = (0.0, 0.5, 1.0, 2.0, 4.0)  # of one unit interval from the other


def log_density(x: np.ndarray | float, which: tuple[float, float]) -> Tensor:
    """Logarithm of a normal density."""
    return torch.as_tensor(norm.logpdf(x, *which))


def best(x: np.ndarray) -> np.ndarray:
    """D* between the chapter's two Gaussians."""
    return gan.optimal_discriminator(log_density(x, DATA), log_density(x, GENERATOR)).numpy()


def draw(key: Tensor, which: tuple[float, float], count: int) -> np.ndarray:
    """Draws of a Gaussian, (count, 1)."""
    return which[0] + which[1] * random.normal(key, count, 1, dtype=torch.float64).numpy()


# --- Figure 42.2 ---------------------------------------------------------------------------------


def fit_discriminator(key: Tensor) -> Pipeline:
    """A logistic regression on a polynomial of degree 4."""
    first, second = random.split(key, 2)
    x = np.concatenate([draw(first, DATA, DRAWS), draw(second, GENERATOR, DRAWS)])
    model = make_pipeline(
        PolynomialFeatures(4, include_bias=False), StandardScaler(), LogisticRegression()
    )
    return model.fit(x, np.repeat([1, 0], DRAWS))


def gaps(model: Pipeline) -> tuple[float, float]:
    """The largest and the mean distance from D* on the grid."""
    gap = np.abs(model.predict_proba(GRID[:, None])[:, 1] - best(GRID))
    return gap.max(), gap.mean()


def figure_42_2(models: list[Pipeline]) -> Figure:
    """D* and fits over it, each on draws of its own."""
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    axis.plot(GRID, best(GRID), color=BLUE, linewidth=5, alpha=0.6, label="$D^*$")
    fitted = np.stack([model.predict_proba(GRID[:, None])[:, 1] for model in models], 1)
    axis.plot(GRID, fitted[:, 0], color=ORANGE, linewidth=1.4, label="logistic regressions")
    axis.plot(GRID, fitted[:, 1:], color=ORANGE, linewidth=0.7, alpha=0.5)
    axis.set(xlabel="$x$", ylabel="probability that $x$ is data")
    axis.legend()
    return figure


def gap_table(models: list[Pipeline]) -> Table:
    """The chapter's one fit among many."""
    found = np.array([gaps(model) for model in models])
    rows = []
    for name, claim, values in zip(("largest", "mean"), (0.075, 0.017), found.T, strict=True):
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        share = f"{np.mean(values <= claim):.0%}"
        rows.append((name, f"{claim:.3f}", share, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"))
    columns = ("Gap on [-7, 7]", "Chapter", "Fits as near", "Median", "5 to 95 %")
    return Table(columns, rows)


# --- Table 42.2 ----------------------------------------------------------------------------------


def exact_js() -> float:
    """JS of the chapter's two Gaussians, by quadrature."""

    def integrand(x: float) -> float:
        p, q = norm.pdf(x, *DATA), norm.pdf(x, *GENERATOR)
        return 0.5 * (p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q)))

    return quad(integrand, -15, 15, epsabs=1e-12, limit=200)[0]


def table_42_2(count: int, seed: int) -> Table:
    """JS and the value of the game, exact and from genkern's losses on samples."""
    real_key, fake_key = random.split(random.key(seed), 2)
    # The logit of D* is the difference of the log-densities.
    real, fake = (
        log_density(x, DATA) - log_density(x, GENERATOR)
        for x in (draw(real_key, DATA, count), draw(fake_key, GENERATOR, count))
    )
    js, floor = exact_js(), -2 * math.log(2)
    estimate = gan.js_divergence(real, fake).item()
    value = -gan.discriminator_loss(real, fake).item()
    rows = [
        ("JS(data || generator)", "0.2532", f"{js:.4f}", f"{estimate:.4f}"),
        ("V(G, D*) = -log 4 + 2 JS", "-0.8799", f"{floor + 2 * js:.4f}", f"{value:.4f}"),
        ("floor, -log 4", "-1.3863", f"{floor:.4f}", "-"),
    ]
    return Table(("Quantity", "Chapter", "Quadrature", f"{count:.0e} draws"), rows)


# --- saturation ----------------------------------------------------------------------------------


def generator_gradient(kind: str, distance: float, z: Tensor) -> float:
    """The derivative of the generator's loss by its mean, at D* between N(0, 1) and N(m, 1)."""
    mean = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
    x = mean + z
    logits = distance * (distance / 2 - x)
    return torch.autograd.grad(gan.generator_loss(logits, kind=kind), mean)[0].item()


def saturation(count: int, seed: int) -> Table:
    """Gradients of both losses at growing distance."""
    z = random.normal(random.key(seed), count, dtype=torch.float64)
    rows = []
    for m in DISTANCES:
        probability = torch.sigmoid(m * (m / 2 - (m + z))).mean().item()
        saturating, other = (
            generator_gradient(kind, m, z) for kind in ("saturating", "non_saturating")
        )
        rows.append(
            (
                f"{m:.0f}",
                f"{probability:.1e}",
                f"{saturating:.1e}",
                f"{other:.2f}",
                f"{other / saturating:,.1f}",
            )
        )
    return Table(("Distance", "mean D(G(z))", "saturating", "non-saturating", "ratio"), rows)


# --- JS against W --------------------------------------------------------------------------------


def train_critic(kind: str, shift: float, steps: int, seed: int) -> float:
    """What a small network trained to tell U[0, 1] from U[shift, shift + 1] says of their distance.

    The critic's is the estimate of W, the discriminator's that of JS.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.Adam(network.parameters(), 3e-3, betas=(0.5, 0.9), fused=True)
    key = random.key(seed)
    real, fake = random.uniform(key, 2, 256, 1).unbind(0)
    fake = fake + shift
    for step in range(steps):
        loss = gan.discriminator_loss(network(real), network(fake), kind=kind)
        if kind == "wasserstein":
            x = gan.interpolate(real, fake, key=random.fold_in(key, step)).requires_grad_()
            slope = torch.autograd.grad(network(x).sum(), x, create_graph=True)[0]
            loss = loss + 10 * gan.gradient_penalty(slope)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        if kind == "wasserstein":
            return -gan.discriminator_loss(network(real), network(fake), kind=kind).item()
        return gan.js_divergence(network(real), network(fake)).item()


def distances(steps: int, seed: int) -> Table:
    """JS and W of two intervals, exact and learned."""
    points = (np.arange(1000) + 0.5) / 1000
    rows = []
    for shift in tqdm(SHIFTS, desc="JS against W", unit="shift"):
        rows.append(
            (
                f"{shift:.1f}",
                f"{min(shift, 1.0) * math.log(2):.3f}",
                f"{train_critic('minimax', shift, steps, seed):.3f}",
                f"{wasserstein_distance(points, points + shift):.3f}",
                f"{train_critic('wasserstein', shift, steps, seed):.3f}",
            )
        )
    return Table(("Shift", "JS", "discriminator", "W", "critic"), rows)


def run(seed: int, quick: bool) -> Part:
    """GAN theory."""
    keys = random.split(random.key(seed), 10 if quick else 100)
    models = [fit_discriminator(key) for key in tqdm(keys, desc="fits of D*", unit="fit")]
    shown = models[:10]
    return Part(
        "What a GAN's discriminator measures",
        "Data N(1, 1) and a generator N(-1, 1.5^2), whose best discriminator is known; then two "
        "ways in which the original game gives no gradient.",
        [
            Section(
                "Figure 42.2",
                f"D* of optimal_discriminator, and {len(shown)} logistic regressions on a "
                f"polynomial of degree 4, each fitted to {DRAWS} draws of its own of either.",
                Picture("figure-42-2", lambda: figure_42_2(shown)),
            ),
            Section(
                "The fit's distance from D*",
                f"Over {len(models)} sets of draws; the chapter has one. The exact logit is a "
                "polynomial of degree 2; what is left to degree 4 shows at the ends, where there "
                "are hardly any draws.",
                gap_table(models),
            ),
            Section(
                "Table 42.2",
                "By quadrature, and by js_divergence and discriminator_loss from the logits of D* "
                "on draws.",
                table_42_2(100_000 if quick else 1_000_000, seed),
            ),
            Section(
                "Saturation",
                "The gradient of the generator's loss by its mean, where data N(0, 1) and "
                "generator N(m, 1) are m apart and the discriminator is the best one. The chapter: "
                "log(1 - D) has the derivative -1/(1 - D), log D has 1/D, so that the first fades "
                "where the discriminator wins.",
                saturation(100_000, seed),
            ),
            Section(
                "JS against Wasserstein",
                "Two unit intervals, one shifted. The chapter: JS is log 2 = 0.693 whatever the "
                "distance once they are disjoint; W follows it. Beside the exact values what a "
                "discriminator (js_divergence) and a critic (gradient_penalty) of two layers learn "
                "from 256 draws of each. A penalty of finite weight leaves slopes above 1, and so "
                "an estimate of W that is too large.",
                distances(50 if quick else 500, seed),
            ),
        ],
    )
