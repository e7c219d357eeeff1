"""Random calls of every public function that computes on tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from genkern import diffusion, gan, random, vae
from genkern._schedules import Schedule

SCHEDULES: dict[str, Schedule] = {
    "linear": diffusion.NoiseSchedule.linear(50, 1e-3, 0.2),
    "float32": diffusion.NoiseSchedule.cosine(20, table_dtype=torch.float32),
    "zero terminal": diffusion.NoiseSchedule.linear(20).zero_terminal_snr(),
    "flow": diffusion.FlowSchedule(9),
    "edm": diffusion.EDMSchedule(9),
}
REDUCTIONS = ("none", "sum", "mean", "batchmean", "sample")

# A function of the leaves, which gets the tensors that were drawn.
Run = Callable[..., Any]
_INT, _META = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, device="meta")
_BAD_TENSORS = (None, 1.5, [0.0], _INT, _META, torch.zeros(7, 1, 2), torch.zeros(2, 3).bool())
_BAD_KEYS = (
    1, torch.zeros(2), torch.zeros(3, dtype=torch.uint64), torch.zeros(9, 2, dtype=torch.int64),
    torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64, device="meta"),
)  # fmt: skip
_BAD_STEPS = (
    -1, 10**6, 2**63, 1.5, math.nan, True, "1", torch.tensor(2.0), torch.tensor([-1]),
    torch.full((1,), 10**12), torch.zeros(2, 3, dtype=torch.int64),
)  # fmt: skip
_BAD_NUMBERS = (math.nan, math.inf, -1.0, -math.inf, "1", None, True, torch.zeros(()), (1, 2, 3))
_BAD_WORDS = ("", "Mean", None, 0, "epsilon ")


@dataclass
class Draw:
    """Draws the arguments of one call; the argument of number `bad`, where there is one, is bad."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    pool: Sequence[Tensor]
    schedule: Schedule
    bad: int = -1
    drawn: int = 0
    spoiled: bool = False

    def __post_init__(self) -> None:
        self.tensors: list[Any] = []

    def of(self, options: Sequence[Any], bad: Sequence[Any] = ()) -> Any:
        """One of the options."""
        self.drawn += 1
        if bad and self.drawn - 1 == self.bad:
            self.spoiled = True
            options = bad
        return options[self.draw(st.integers(0, len(options) - 1))]

    def tensor(self) -> int:
        """The place of a tensor among the call's leaves."""
        self.tensors.append(self.of(self.pool, _BAD_TENSORS))
        return len(self.tensors) - 1

    def two(self) -> tuple[int, int]:
        return self.tensor(), self.tensor()

    def maybe(self) -> int | None:
        return self.tensor() if self.of((False, True)) else None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pool[0].shape)

    @property
    def batch(self) -> int:
        return self.shape[0] if self.shape else 1

    def number(self, *options: Any) -> Any:
        return self.of(options, _BAD_NUMBERS)

    def word(self, options: Sequence[str | None]) -> Any:
        return self.of(options, _BAD_WORDS)

    def reduction(self) -> Any:
        return self.word(REDUCTIONS)

    def key(self) -> Any:
        seed = self.draw(st.integers(0, 3))
        one = random.key(seed)
        far = torch.tensor([seed, -3]).view(torch.uint64)  # the offset overflows
        options = [one, far, one.view(torch.int64)]
        if self.shape:
            keys = random.split(one, self.batch)
            padded = torch.cat((keys.view(torch.int64),) * 2, 1)[:, ::2].flip(1)
            options += [keys, keys.view(torch.int64), padded, one.expand(self.batch, 2)]
        return self.of(options, _BAD_KEYS)

    def noise(self, needed: bool = False) -> dict[str, Any]:
        """One of key=, noise= or nothing; in a bad call several."""
        kinds = ("key", "noise") if needed else ("key", "noise", "none")
        kind = self.of(kinds, ("both",))
        given: dict[str, Any] = {}
        if kind in ("key", "both"):
            given["key"] = self.key()
        if kind in ("noise", "both"):
            given["noise"] = self.tensor()
        return given

    def steps(self) -> tuple[Any, Any]:
        """A t and a prev_t or None."""
        size = len(self.schedule)
        t = self.draw(st.integers(0, size - 1))
        options: list[Any] = [t, torch.tensor(t)]
        if self.shape:
            each = torch.arange(self.batch) * 7 % size
            options += [
                each,
                torch.stack((each, each), 1)[:, 0],
                torch.tensor([t]).expand(each.shape),
            ]
        chosen = self.of(options, _BAD_STEPS)
        if not self.of((False, True)):
            return chosen, None
        earlier: list[Any] = [-1, 0]
        if isinstance(chosen, Tensor):
            earlier += [chosen - 1, torch.full_like(chosen, -1)]
        return chosen, self.of(earlier, _BAD_STEPS)

    def prediction(self) -> Any:
        return self.word(self.schedule.prediction_types)

    def clip(self) -> Any:
        return self.of((None, None, 0.5, 1, (-0.25, 2.0)), (0.0, -1.0, (1, 0), "1", math.nan, (1,)))

    def clamp(self) -> Any:
        return self.of((None, (-1.0, 1.0), (-30.0, 20.0)), ((1, 0), 3.0, (math.nan, 1), ("a", 1)))

    def wide(self) -> Any:
        """A prediction with variances: twice the channels."""
        first, second = self.of(self.pool, _BAD_TENSORS), self.of(self.pool)
        if isinstance(first, Tensor) and first.dim() > 1 and first.shape == second.shape:
            first = torch.cat((first, second.to(first.dtype)), 1)
        self.tensors.append(first)
        return len(self.tensors) - 1


def _with(given: dict[str, Any], leaves: Sequence[Any]) -> dict[str, Any]:
    """The noise options, the tensor among them as a leaf."""
    return {k: leaves[v] if k == "noise" else v for k, v in given.items()}


def _at(leaves: Sequence[Any], place: int | None) -> Any:
    return None if place is None else leaves[place]


def _rsample(d: Draw) -> Run:
    (m, v), given = d.two(), d.noise()
    count = d.of((None, None, 1, 3, 0), (-1, 1.5, "2", True))
    if "noise" in given and count is not None and isinstance(d.tensors[given["noise"]], Tensor):
        noise = d.tensors[given["noise"]]
        count = max(count, 1) if type(count) is int else count
        d.tensors[given["noise"]] = noise.expand(3, *noise.shape)[
            : count if type(count) is int else 1
        ]
    return lambda *a: vae.rsample(a[m], a[v], num_samples=count, **_with(given, a))


def _priors(d: Draw) -> Callable[[Sequence[Any]], tuple[Any, Any]]:
    kinds = [d.of(("none", "number", "tensor", "row"), ("bad",)) for _ in range(2)]
    places = [d.tensor() if kind in ("tensor", "row") else None for kind in kinds]
    bad = {"none": None, "number": 0.3, "bad": "1"}

    def priors(leaves: Sequence[Any]) -> tuple[Any, Any]:
        found = []
        for kind, place in zip(kinds, places, strict=True):
            prior = bad[kind] if place is None else leaves[place]
            if kind == "row" and isinstance(prior, Tensor) and prior.dim() and prior.shape[0]:
                prior = prior[:1]
            found.append(prior)
        return found[0], found[1]

    return priors


def _kl(d: Draw) -> Run:
    (m, v), priors = d.two(), _priors(d)
    options = {
        "free_bits": d.number(0.0, 0.1),
        "logvar_clamp": d.clamp(),
        "reduction": d.reduction(),
    }
    return lambda *a: vae.kl(a[m], a[v], *priors(a), **options)


def _rsample_kl(d: Draw) -> Run:
    (m, v), priors, given = d.two(), _priors(d), d.noise()
    options = {
        "free_bits": d.number(0.0, 0.1),
        "logvar_clamp": d.clamp(),
        "reduction": d.reduction(),
    }
    return lambda *a: vae.rsample_kl(a[m], a[v], *priors(a), **options, **_with(given, a))


def _bernoulli_nll(d: Draw) -> Run:
    (x, y), reduction = d.two(), d.reduction()
    return lambda *a: vae.bernoulli_nll(a[x], a[y], reduction=reduction)


def _gaussian_nll(d: Draw) -> Run:
    (x, y), sigma, reduction = d.two(), d.number(1.0, 0.3, 2), d.reduction()
    return lambda *a: vae.gaussian_nll(a[x], a[y], sigma=sigma, reduction=reduction)


def _elbo_loss(d: Draw) -> Run:
    (x, y), (m, v) = d.two(), d.two()
    options = {"likelihood": d.word(("bernoulli", "gaussian")), "beta": d.number(1.0, 0.5)}
    options |= {"free_bits": d.number(0.0, 0.1)}
    return lambda *a: vae.elbo_loss(a[x], a[y], a[m], a[v], **options)


def _active_units(d: Draw) -> Run:
    x, threshold = d.tensor(), d.number(0.01, 0.5)
    return lambda *a: vae.active_units(a[x], threshold=threshold)


def _posterior(d: Draw) -> Run:
    q, p, x, given = d.wide(), d.wide(), d.tensor(), d.noise()
    clamp, reduction = d.clamp(), d.reduction()

    def run(*a: Any) -> Any:
        first, second = vae.DiagonalGaussian(a[q], logvar_clamp=clamp), vae.DiagonalGaussian(a[p])
        # The sample last: what is wrong with the others shows before noise is drawn.
        losses = (
            first.kl(reduction=reduction),
            first.kl(second),
            first.nll(a[x], reduction=reduction),
        )
        return *losses, first.mode(), first.sample(**_with(given, a))

    return run


def _q_sample(d: Draw) -> Run:
    x, (t, _), given = d.tensor(), d.steps(), d.noise()
    return lambda *a: diffusion.q_sample(a[x], t, d.schedule, **_with(given, a))


def _noise_loss(d: Draw) -> Run:
    (p, x), (t, _), given = d.two(), d.steps(), d.noise(needed=True)
    weights = torch.linspace(0.5, 2.0, len(d.schedule))
    options = {
        "prediction_type": d.prediction(),
        "weighting": d.of((None, None, *d.schedule.weightings, weights), ("snr", weights[1:], 1.0)),
        "sample_weight": d.of((None, torch.linspace(0, 1, d.batch)), (torch.ones(99), 1.0)),
        "reduction": d.reduction(),
    }
    return lambda *a: diffusion.noise_loss(a[p], a[x], t, d.schedule, **_with(given, a), **options)


def _q_posterior(d: Draw) -> Run:
    (x, y), (t, prev) = d.two(), d.steps()
    return lambda *a: diffusion.q_posterior(a[x], a[y], t, d.schedule, prev_t=prev)


def _predict_x0(d: Draw) -> Run:
    (x, y), (t, _), kind = d.two(), d.steps(), d.prediction()
    return lambda *a: diffusion.predict_x0(a[x], a[y], t, d.schedule, prediction_type=kind)


def _score(d: Draw) -> Run:
    x, (t, _) = d.tensor(), d.steps()
    return lambda *a: diffusion.score(a[x], t, d.schedule)


def _step_options(d: Draw) -> tuple[dict[str, Any], int | None]:
    options = {
        "prediction_type": d.prediction(),
        "clip_range": d.clip(),
        "threshold": d.of((None, None, None, (0.8, 2.0), (1.0, 1.5)), ((2.0, 1.0), 0.5, (0.5, -1))),
    }
    if options["threshold"] is not None and not d.spoiled:
        options["clip_range"] = None
    uncond = d.maybe()
    if uncond is not None:
        options |= {
            "guidance_scale": d.number(1.0, 3.0, 0.0),
            "guidance_rescale": d.of((0.0, 0.0, 0.7), (-0.1, 1.1, math.nan, "1")),
        }
    return options, uncond


def _out(d: Draw) -> Callable[[Any], dict[str, Any]]:
    kind = d.of(("none", "none", "new", "strided", "input"), ("expanded", "shape", "dtype", "list"))

    def out(x: Any) -> dict[str, Any]:
        if kind == "none" or not isinstance(x, Tensor) or x.is_meta:
            return {}
        new = torch.zeros_like(x, memory_format=torch.contiguous_format)
        made: dict[str, Callable[[], Any]] = {
            "new": lambda: new,
            "strided": lambda: torch.zeros((*x.shape, 3), dtype=x.dtype)[..., 1],
            "input": lambda: x,
            "expanded": lambda: new.flatten()[:1].expand(x.shape) if x.dim() and x.numel() else new,
            "shape": lambda: torch.zeros((*x.shape, 2), dtype=x.dtype),
            "dtype": lambda: torch.zeros(x.shape, dtype=torch.int32),
            "list": lambda: [0.0],
        }
        return {"out": made[kind]()}

    return out


def _stepping(name: str) -> Callable[[Draw], Run]:
    def draw(d: Draw) -> Run:
        learned = name == "ddpm_step" and len(d.shape) > 1 and d.of((False, False, True))
        x, p = d.tensor(), d.wide() if learned else d.tensor()
        (t, prev), given, (options, u), out = d.steps(), d.noise(), _step_options(d), _out(d)
        if name == "ddpm_step":
            kinds = ("learned", "learned_range") if learned else ("fixed_small", "fixed_large")
            options["variance_type"] = d.word(kinds)
        else:
            options["eta"] = d.number(0.0, 0.0, 0.5, 1.0)
            options["use_clipped_model_output"] = d.of((False, True))
        step = getattr(diffusion, name)

        def run(*a: Any) -> Any:
            # Written in place: on a copy, with the layout of the input where it has its own memory.
            written = out(a[x])
            first = a[x]
            if written.get("out") is first and isinstance(first, Tensor):
                first = torch.empty_like(first).copy_(first.detach())
                written = {"out": first}
            return step(
                first, a[p], t, d.schedule, prev_t=prev, uncond=_at(a, u), **written, **options,
                **_with(given, a),
            )  # fmt: skip

        return run

    return draw


def _vlb_terms(d: Draw) -> Run:
    learned = len(d.shape) > 1 and d.of((False, True))
    p = d.wide() if learned else d.tensor()
    x, (t, _), given = d.tensor(), d.steps(), d.noise(needed=True)
    kinds = ("learned", "learned_range") if learned else ("fixed_small", "fixed_large")
    options = {
        "prediction_type": d.prediction(), "variance_type": d.word(kinds),
        "clip_range": d.clip(), "units": d.word(("nats", "bits")), "reduction": d.reduction(),
    }  # fmt: skip
    return lambda *a: diffusion.vlb_terms(a[p], a[x], t, d.schedule, **_with(given, a), **options)


def _hybrid_loss(d: Draw) -> Run:
    p, x, (t, _), given = d.wide(), d.tensor(), d.steps(), d.noise(needed=True)
    options = {
        "variance_type": d.word(("learned_range", "learned")),
        "vlb_weight": d.number(1e-3, 1.0), "reduction": d.reduction(),
    }  # fmt: skip
    return lambda *a: diffusion.hybrid_loss(a[p], a[x], t, d.schedule, **_with(given, a), **options)


def _prior_kl(d: Draw) -> Run:
    x, units, reduction = d.tensor(), d.word(("nats", "bits")), d.reduction()
    return lambda *a: diffusion.prior_kl(a[x], d.schedule, units=units, reduction=reduction)


def _sample(d: Draw) -> Run:
    options = {
        "sampler": d.word(("ddpm", "ddim", "ode")), "num_steps": d.of((1, 3), (0, 10**6, "2")),
        "spacing": d.word(("leading", "linspace", "trailing")), "eta": d.number(0.0, 0.5),
        "prediction_type": d.prediction(), "clip_range": d.clip(),
        "dtype": d.of((None, torch.float64), (torch.int64, "float")), "key": d.key(),
    }  # fmt: skip

    def model(x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * x + 0.01 * t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)

    return lambda *a: diffusion.sample(model, d.shape, d.schedule, progress=False, **options)


def _discriminator_loss(d: Draw) -> Run:
    (x, y), kind, reduction = d.two(), d.word(KINDS), d.reduction()
    smoothing = d.number(0.0, 0.0, 0.1)
    return lambda *a: gan.discriminator_loss(
        a[x], a[y], kind=kind, label_smoothing=smoothing, reduction=reduction
    )


def _generator_loss(d: Draw) -> Run:
    x, y, kind, reduction = d.tensor(), d.maybe(), d.word(KINDS), d.reduction()
    return lambda *a: gan.generator_loss(a[x], _at(a, y), kind=kind, reduction=reduction)


KINDS = (
    "minimax", "saturating", "non_saturating", "hinge", "wasserstein", "least_squares",
    "relativistic",
)  # fmt: skip


def _gradient_penalty(d: Draw) -> Run:
    x, center, reduction = d.tensor(), d.number(1.0, 0.0, 0.5), d.reduction()
    return lambda *a: gan.gradient_penalty(a[x], center=center, reduction=reduction)


def _r1_penalty(d: Draw) -> Run:
    x, reduction = d.tensor(), d.reduction()
    return lambda *a: gan.r1_penalty(a[x], reduction=reduction)


def _interpolate(d: Draw) -> Run:
    (x, y), kind = d.two(), d.of(("key", "noise", "none"))
    given: dict[str, Any] = {"key": d.key()} if kind == "key" else {}
    if kind == "noise":
        # One number a sample.
        first = d.of(d.pool)
        d.tensors.append(first.flatten()[: d.batch] if first.numel() else first)
        given["noise"] = len(d.tensors) - 1
    return lambda *a: gan.interpolate(a[x], a[y], **_with(given, a))


def _optimal_discriminator(d: Draw) -> Run:
    x, y = d.two()
    return lambda *a: gan.optimal_discriminator(a[x], a[y])


def _js_divergence(d: Draw) -> Run:
    x, y = d.two()
    return lambda *a: gan.js_divergence(a[x], a[y])


def _clip_weights(d: Draw) -> Run:
    x, bound = d.tensor(), d.number(0.5, 1e-3)

    def run(*a: Any) -> Any:
        weights = a[x].detach().clone() if isinstance(a[x], Tensor) else a[x]
        gan.clip_weights_([weights], bound)
        return weights

    return run


def _drawing(function: Callable[..., Tensor]) -> Callable[[Draw], Run]:
    def draw(d: Draw) -> Run:
        key = d.key()
        wide = (d.batch, 3 if d.batch > 17 else 1025)
        shape = d.of((d.shape, (d.batch, 3), wide), ((-1,), ("a",), (2.5,)))
        dtype = d.of((None, torch.float64, torch.float16), (torch.int64, "float"))
        return lambda *a: function(key, *shape, dtype=dtype)

    return draw


def _split(d: Draw) -> Run:
    key, num = d.key(), d.of((2, 0, 1, 130), (-1, 1.5, "2", True))
    return lambda *a: random.split(key, num)


def _fold_in(d: Draw) -> Run:
    key = d.key()
    data = d.of(
        (0, -5, 2**62, torch.tensor(3), torch.arange(d.batch), torch.arange(2 * d.batch)[::2]),
        (1.5, "1", torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64), True),
    )
    return lambda *a: random.fold_in(key, data)


CALLS: dict[str, Callable[[Draw], Run]] = {
    "random.normal": _drawing(random.normal),
    "random.uniform": _drawing(random.uniform),
    "random.split": _split,
    "random.fold_in": _fold_in,
    "vae.rsample": _rsample,
    "vae.kl": _kl,
    "vae.rsample_kl": _rsample_kl,
    "vae.bernoulli_nll": _bernoulli_nll,
    "vae.gaussian_nll": _gaussian_nll,
    "vae.elbo_loss": _elbo_loss,
    "vae.active_units": _active_units,
    "vae.DiagonalGaussian": _posterior,
    "diffusion.q_sample": _q_sample,
    "diffusion.noise_loss": _noise_loss,
    "diffusion.q_posterior": _q_posterior,
    "diffusion.predict_x0": _predict_x0,
    "diffusion.score": _score,
    "diffusion.ddpm_step": _stepping("ddpm_step"),
    "diffusion.ddim_step": _stepping("ddim_step"),
    "diffusion.vlb_terms": _vlb_terms,
    "diffusion.hybrid_loss": _hybrid_loss,
    "diffusion.prior_kl": _prior_kl,
    "diffusion.sample": _sample,
    "gan.discriminator_loss": _discriminator_loss,
    "gan.generator_loss": _generator_loss,
    "gan.gradient_penalty": _gradient_penalty,
    "gan.r1_penalty": _r1_penalty,
    "gan.interpolate": _interpolate,
    "gan.optimal_discriminator": _optimal_discriminator,
    "gan.js_divergence": _js_divergence,
    "gan.clip_weights_": _clip_weights,
}
