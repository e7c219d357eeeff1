"""diffusers with genkern's kernels: two schedulers and the posterior of an autoencoder.

`GenkernDDPMScheduler` and `GenkernDDIMScheduler` are the installed schedulers with fused `step`,
`add_noise` and `get_velocity`; `apply()` gives the stock classes the same methods, and diffusers'
autoencoders the class `GenkernDiagonalGaussianDistribution`. diffusers draws the noise, so that a
generator gives the numbers that it always gave; with `noise = "key"` genkern does.

The coefficients are diffusers' float32 numbers, made once a run. What has no kernel is left to
diffusers, and so is everything with an untested release; the log says so once.
"""

from __future__ import annotations

import functools
import logging
import math
import operator
import sys
from collections import OrderedDict
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias, TypeVar

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    # A pipeline's from_pretrained looks for it next to the class of the scheduler.
    SchedulerMixin,  # noqa: F401
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from genkern import _coefficients
from genkern._arguments import NO_CLIP, promoted
from genkern._levels import readable, tracing
from genkern._ops import checks
from genkern._ops import diffusion as ops
from genkern._ops.elements import arithmetic
from genkern._ops.random import new_words
from genkern._schedules import NoiseSchedule
from genkern.integrations._patch import Applied, Change, Patch, say_once
from genkern.vae import DiagonalGaussian, rsample_kl

__all__ = [
    "TESTED",
    "GenkernDDIMScheduler",
    "GenkernDDPMScheduler",
    "GenkernDiagonalGaussianDistribution",
    "apply",
    "revert",
]

# Releases of diffusers whose lines these are known to replace.
TESTED = ("0.42",)
_UNTESTED = (
    None
    if diffusers.__version__.rpartition(".")[0] in TESTED
    else f"{diffusers.__version__} is not a tested release ({', '.join(f'{v}.*' for v in TESTED)})"
)

Options: TypeAlias = tuple[Any, ...]
_Output = TypeVar("_Output", DDIMSchedulerOutput, DDPMSchedulerOutput)
Generators: TypeAlias = torch.Generator | list[torch.Generator] | None

_LOGGER = logging.getLogger(__name__)
_NOISES = ("diffusers", "key")
_VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")
_SMALLEST_VARIANCE = 1e-20
# Of a posterior's log-variance.
_CLAMP = (-30.0, 20.0)
_INTEGERS = (torch.int64, torch.int32)
# What a run depends on: attributes that are replaced, not written to, when they change.
_STATE = ("_internal_dict", "alphas_cumprod", "timesteps", "num_inference_steps")
# What a prediction means at a level does not depend on the other levels.
_PATH = NoiseSchedule.linear(2)


def _left_to_diffusers(what: str, reason: str) -> None:
    if not tracing():
        say_once(_LOGGER, logging.WARNING, f"{what} is left to diffusers: {reason}")


# ---- what a scheduler computes


class _Settings(NamedTuple):
    """What a scheduler's configuration asks of a step; `refusal` is why diffusers has to do it."""

    refusal: str | None
    kind: str = "epsilon"
    clip: tuple[float, float] = NO_CLIP
    threshold: tuple[float, float] | None = None
    learned: bool = False

    @property
    def clipped(self) -> bool:
        return self.clip != NO_CLIP or self.threshold is not None


class _Sampler:
    """A stock scheduler: its methods, and its coefficients in the order of its operations."""

    stock: Any
    # Methods that the stock `step` calls.
    calls: tuple[str, ...]
    # Whether a step need not be one of the run's.
    any_step: bool
    # The attributes that a run depends on.
    state: tuple[str, ...]

    def __init__(self) -> None:
        self.step = self.stock.step
        self.set_timesteps = self.stock.set_timesteps
        self.add_noise = self.stock.add_noise
        self.get_velocity = self.stock.get_velocity

    def options(self, scheduler: Any) -> Options:
        """What `step` is most often called with."""
        raise NotImplementedError

    def settings(self, scheduler: Any, options: Options) -> _Settings:
        refusal = self.refusal(scheduler, options)
        if refusal is not None:
            return _Settings(refusal)
        config = scheduler.config
        clip, threshold = NO_CLIP, None
        if config.thresholding:
            threshold = (config.dynamic_thresholding_ratio, config.sample_max_value)
        elif config.clip_sample:
            clip = (-float(config.clip_sample_range), float(config.clip_sample_range))
        learned = config.get("variance_type") == "learned_range"
        return _Settings(None, config.prediction_type, clip, threshold, learned)

    def refusal(self, scheduler: Any, options: Options) -> str | None:
        if _UNTESTED is not None:
            return _UNTESTED
        config, kind = scheduler.config, type(scheduler)
        for name in self.calls:
            if getattr(kind, name) is not getattr(self.stock, name):
                return f"{kind.__name__} has a {name} of its own"
        if config.prediction_type not in _PATH.prediction_types:
            return f"prediction_type {config.prediction_type!r} has no kernel"
        if config.thresholding:
            if not 0.0 <= config.dynamic_thresholding_ratio <= 1.0 or config.sample_max_value <= 0:
                return "its thresholding has a ratio outside [0, 1] or a bound that is not positive"
        elif config.clip_sample and config.clip_sample_range <= 0.0:
            return f"clip_sample_range {config.clip_sample_range} is not positive"
        return None

    def levels(self, scheduler: Any, t: Tensor) -> tuple[Tensor, Tensor]:
        """alphas_cumprod at the steps t, (R,), and at the steps that they lead to."""
        raise NotImplementedError

    def step_rows(
        self, level: Tensor, prev: Tensor, t: Tensor, settings: _Settings, options: Options
    ) -> Tensor:
        """`sampler_step_x0`: the rows of steps t, from one level to the other."""
        raise NotImplementedError

    def rows(self, scheduler: Any, settings: _Settings, options: Options, t: Tensor) -> Tensor:
        """`sampler_step_x0`: the rows of the steps t."""
        return self.step_rows(*self.levels(scheduler, t), t, settings, options)


class _DDPM(_Sampler):
    stock = DDPMScheduler
    calls = ("_get_variance", "_threshold_sample", "previous_timestep")
    any_step = False
    state = (*_STATE, "custom_timesteps", "variance_type")

    def options(self, scheduler: Any) -> Options:
        return (scheduler.variance_type,)

    def refusal(self, scheduler: Any, options: Options) -> str | None:
        variance_type = scheduler.config.variance_type
        if variance_type != scheduler.variance_type:
            return "its variance_type is not that of its config"
        if variance_type not in _VARIANCE_TYPES:
            return f"variance_type {variance_type!r} has no kernel"
        return super().refusal(scheduler, options)

    def levels(self, scheduler: Any, t: Tensor) -> tuple[Tensor, Tensor]:
        a = scheduler.alphas_cumprod.to(t.device)
        if not (scheduler.custom_timesteps or scheduler.num_inference_steps):
            return a[t], torch.where(t > 0, a[(t - 1).clamp(min=0)], 1.0)
        steps = scheduler.timesteps.to(t.device)
        # The step after each, -1 after the last, -2 after one that is not in the run. The place of
        # t = -1, with which some runs of diffusers end, is behind the others.
        following = torch.full((len(a) + 1,), -2, device=t.device)
        last = torch.full_like(steps[:1], -1)
        places = torch.where(steps < 0, len(a), steps)
        prev_t = following.scatter(0, places, torch.cat((steps[1:], last)))[t]
        prev = torch.where(prev_t >= 0, a[prev_t.clamp(min=0)], 1.0)
        # For a step that is not in the run diffusers raises, which a device cannot: NaN.
        return a[t], torch.where(prev_t == -2, math.nan, prev)

    def step_rows(
        self, level: Tensor, prev: Tensor, t: Tensor, settings: _Settings, options: Options
    ) -> Tensor:
        (variance_type,) = options
        p = _coefficients.posterior(level, prev)
        variance, zero = p.variance.clamp(min=_SMALLEST_VARIANCE), 0.0 * level
        offset = by_values = zero
        if variance_type == "learned_range":
            low, high = torch.log(variance), torch.log(p.beta)
            noise, offset, by_values = zero + 1.0, 0.5 * (low + high), 0.5 * (high - low)
        elif variance_type == "fixed_large":
            noise = p.beta**0.5
        elif variance_type == "fixed_small_log":
            noise = torch.exp(0.5 * torch.log(variance))
        else:
            noise = variance**0.5
        noise = torch.where(t > 0, noise, 0.0)
        forms = _PATH.forms(level, settings.kind)
        mean = _coefficients.step_mean(
            True, forms.x0_x_t, forms.x0_pred, p.mean_x0, p.mean_x_t, zero
        )
        return torch.stack((*mean, *(c.double() for c in (noise, offset, by_values))), dim=1)


class _DDIM(_Sampler):
    stock = DDIMScheduler
    calls = ("_get_variance", "_threshold_sample")
    any_step = True
    state = (*_STATE, "final_alpha_cumprod")

    def options(self, scheduler: Any) -> Options:
        return (0.0, False)

    def refusal(self, scheduler: Any, options: Options) -> str | None:
        eta, _ = options
        if not (isinstance(eta, (int, float)) and 0.0 <= eta <= 1.0):
            return f"eta {eta} is not a number in [0, 1]"
        return super().refusal(scheduler, options)

    def levels(self, scheduler: Any, t: Tensor) -> tuple[Tensor, Tensor]:
        a = scheduler.alphas_cumprod.to(t.device)
        prev_t = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        last = scheduler.final_alpha_cumprod.to(t.device)
        return a[t], torch.where(prev_t >= 0, a[prev_t.clamp(min=0)], last)

    def step_rows(
        self, level: Tensor, prev: Tensor, t: Tensor, settings: _Settings, options: Options
    ) -> Tensor:
        eta, rederived = options
        return _coefficients.ddim_step(
            _PATH, level, prev, settings.kind, float(eta), True, settings.clipped and rederived
        )


_DDPM_SAMPLER, _DDIM_SAMPLER = _DDPM(), _DDIM()


# ---- what the steps of a run share


class _Run:
    """A scheduler's settings and coefficients, for as long as nothing is changed in it."""

    def __init__(self, sampler: _Sampler, scheduler: Any, options: Options) -> None:
        self.settings = sampler.settings(scheduler, options)
        self._sampler, self.options = sampler, options
        self._state = self._state_of(scheduler)
        self._tables: dict[Any, Tensor] = {}
        self._rows: dict[Any, dict[int, Tensor]] = {}

    def _state_of(self, scheduler: Any) -> list[Any]:
        get = scheduler.__dict__.get
        return [get(name) for name in self._sampler.state]

    def is_of(self, scheduler: Any, options: Options) -> bool:
        """Whether this is what would be made of the scheduler now."""
        state = self._state_of(scheduler)
        return self.options == options and all(map(operator.is_, self._state, state))

    def renewed(self, scheduler: Any, options: Options) -> bool:
        """The same by value, for what has been set to what it was."""
        state = self._state_of(scheduler)
        if self.options != options or not all(map(_equal, self._state, state)):
            return False
        self._state = state
        return True

    def table(self, scheduler: Any, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The rows of all steps; None where they cannot be kept."""
        found = self._tables.get((dtype, device))
        if found is None and not tracing():
            # Kept beyond the caller's modes.
            with torch.inference_mode(False), torch.no_grad():
                a = scheduler.alphas_cumprod
                t = torch.arange(len(a), device=a.device)
                found = self._sampler.rows(scheduler, self.settings, self.options, t)
                found = found.to(device, dtype)
            self._tables[dtype, device] = found
        return found

    def row(
        self, scheduler: Any, dtype: torch.dtype, device: torch.device, t: int
    ) -> Tensor | None:
        """The row of one step; None where it is not in the run, or not a step at all."""
        rows = self._rows.setdefault((dtype, device), {})
        if t not in rows:
            steps = [step for step in scheduler.timesteps.tolist() if step >= 0]
            if t not in steps and self._sampler.any_step:
                steps = [t]
            if t not in steps or not 0 <= t < len(scheduler.alphas_cumprod):
                return None
            table = self.table(scheduler, dtype, device)
            assert table is not None
            with torch.inference_mode(False):
                index = torch.tensor(steps, device=device)
                rows.update(zip(steps, table[index].split(1), strict=True))
        return rows[t]


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if not isinstance(a, Tensor):
        return bool(a == b)
    # A device is not waited for.
    return isinstance(b, Tensor) and a.is_cpu and b.is_cpu and torch.equal(a, b)


# ---- step


def _step(
    sampler: _Sampler,
    scheduler: Any,
    output: Tensor,
    timestep: Any,
    x_t: Tensor,
    options: Options,
    noisy: bool,
    generator: Generators,
    given_noise: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """x_prev and the estimate of x0; None where diffusers has to make them."""
    run: _Run | None = scheduler.__dict__.get("_genkern_run")
    if run is None or not run.is_of(scheduler, options):
        run = _Run(sampler, scheduler, options)
        if not tracing():
            scheduler._genkern_run = run
    settings = run.settings
    reason = settings.refusal or _unfit(output, x_t, timestep, settings.learned, given_noise)
    if reason is not None:
        _left_to_diffusers(f"{type(scheduler).__name__}.step", reason)
        return None

    where = (arithmetic(x_t.dtype), x_t.device)
    index = None
    known = readable(timestep) if isinstance(timestep, Tensor) else not tracing()
    if not known:
        t = timestep if isinstance(timestep, Tensor) else torch.full((), timestep)
        rows = run.table(scheduler, *where)
        if rows is not None:
            index = t.reshape(()).to(x_t.device, torch.int64)
        else:
            rows = sampler.rows(scheduler, settings, options, t.reshape(1).to(x_t.device))
            rows = rows.to(where[0])
    else:
        step = int(timestep)
        rows = run.row(scheduler, *where, step)
        if rows is None:
            return None
        noisy = noisy and (step > 0 or sampler is _DDIM_SAMPLER)

    pred, values = output.chunk(2, dim=1) if settings.learned else (output, None)
    key = noise = None
    if noisy:
        key, noise = _drawn(scheduler.noise, pred, x_t, generator, given_noise)
    x_t, pred, values, noise = promoted(x_t, pred, values, noise)  # type: ignore[assignment]
    if rows.dtype != arithmetic(x_t.dtype):
        rows = rows.double()
    limit = None
    if settings.threshold is not None:
        limit = ops.dynamic_threshold(x_t, pred, None, rows, index, None, 1.0, *settings.threshold)
    whole = (rows, index, None, limit, 1.0, *settings.clip)
    return ops.sampler_step_x0(x_t, pred, values, None, key, noise, *whole)


def _unfit(output: Any, x_t: Any, timestep: Any, learned: bool, noise: Tensor | None) -> str | None:
    """Why these arguments have no kernel."""
    if not isinstance(output, Tensor) or output.dtype not in checks.FLOATING:
        return "model_output is not a floating tensor"
    if not isinstance(x_t, Tensor) or x_t.dtype not in checks.FLOATING:
        return "sample is not a floating tensor"
    if noise is not None and not (isinstance(noise, Tensor) and noise.dtype in checks.FLOATING):
        return "variance_noise is not a floating tensor"
    shape = x_t.shape
    if len(shape) < 2 or 0 in shape:
        return "sample has fewer than two dimensions or no elements"
    if learned:
        shape = torch.Size((shape[0], 2 * shape[1], *shape[2:]))
    if output.shape != shape or output.device != x_t.device:
        return "model_output does not have the shape and device that sample asks for"
    if noise is not None and (noise.shape != x_t.shape or noise.device != x_t.device):
        return "variance_noise does not have the shape and device of sample"
    if isinstance(timestep, Tensor):
        if timestep.numel() != 1 or timestep.dtype not in _INTEGERS:
            return "timestep is not one integer"
    elif not hasattr(timestep, "__index__"):
        return "timestep is not an integer"
    return None


def _drawn(
    source: str, pred: Tensor, x_t: Tensor, generator: Generators, given: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The key or the noise of a step."""
    if given is not None:
        return None, given
    if source == "diffusers":
        noise: Tensor = randn_tensor(
            pred.shape, generator=generator, device=pred.device, dtype=pred.dtype
        )
        return None, noise
    checks.one_of("step", "noise", source, _NOISES)
    device = x_t.device
    if isinstance(generator, list) and len(generator) == 1:
        generator = generator[0]
    if not isinstance(generator, list):
        if generator is not None:
            checks.generator("step", generator)
        return new_words(None, device, generator), None
    keys = [new_words(1, device, generator[i]) for i in range(len(x_t))]
    return torch.cat(keys), None


def _output(kind: type[_Output], prev_sample: Tensor, pred_original_sample: Tensor) -> _Output:
    """kind(prev_sample, pred_original_sample), without the checks that take as long as a step."""
    if torch.compiler.is_compiling():
        return kind(prev_sample, pred_original_sample)
    output, put = OrderedDict.__new__(kind), OrderedDict.__setitem__
    put(output, "prev_sample", prev_sample)
    put(output, "pred_original_sample", pred_original_sample)
    vars(output).update(prev_sample=prev_sample, pred_original_sample=pred_original_sample)
    return output


def _ddpm_step(
    self: Any,
    model_output: Tensor,
    timestep: int,
    sample: Tensor,
    generator: Generators = None,
    return_dict: bool = True,
) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
    """DDPMScheduler.step in one kernel."""
    made = _step(
        _DDPM_SAMPLER,
        self,
        model_output,
        timestep,
        sample,
        (self.variance_type,),
        True,
        generator,
    )
    if made is None:
        return _DDPM_SAMPLER.step(self, model_output, timestep, sample, generator, return_dict)
    return _output(DDPMSchedulerOutput, *made) if return_dict else made


def _ddim_step(
    self: Any,
    model_output: Tensor,
    timestep: int,
    sample: Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Generators = None,
    variance_noise: Tensor | None = None,
    return_dict: bool = True,
) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
    """DDIMScheduler.step in one kernel."""
    made = None
    # diffusers has the errors for what it does not take.
    if self.num_inference_steps is not None and (generator is None or variance_noise is None):
        options = (eta, bool(use_clipped_model_output))
        noisy = eta > 0
        made = _step(
            _DDIM_SAMPLER,
            self,
            model_output,
            timestep,
            sample,
            options,
            noisy,
            generator,
            variance_noise if noisy else None,
        )
    if made is None:
        return _DDIM_SAMPLER.step(
            self,
            model_output,
            timestep,
            sample,
            eta,
            use_clipped_model_output,
            generator,
            variance_noise,
            return_dict,
        )
    return _output(DDIMSchedulerOutput, *made) if return_dict else made


# ---- add_noise and get_velocity


def _noising(scheduler: Any, x0: Any, noise: Any, timesteps: Any, velocity: bool) -> Tensor | None:
    """x_t or its velocity; None where diffusers has to make it."""
    reason = _UNTESTED or _unfit_noising(x0, noise, timesteps)
    if reason is not None:
        name = "get_velocity" if velocity else "add_noise"
        _left_to_diffusers(f"{type(scheduler).__name__}.{name}", reason)
        return None
    a = scheduler.alphas_cumprod
    if timesteps.numel() == 1:
        timesteps = timesteps.reshape(())
    if readable(timesteps):
        steps = timesteps.reshape(-1).tolist()
        if steps and not 0 <= min(steps) <= max(steps) < len(a):
            return None
    x0, noise = promoted(x0, noise)
    t = timesteps.to(x0.device, torch.int64)
    if tracing():
        table, index = _noising_rows(a.to(x0.device)[t.reshape(-1)], velocity), None
    else:
        table, index = _noising_table(scheduler, x0, velocity), t
    table = table.to(arithmetic(x0.dtype))
    return ops.affine(x0, None, None, None, noise, table, index)


def _noising_rows(level: Tensor, velocity: bool) -> Tensor:
    """`affine`: x_t or its velocity from x0 and the noise."""
    alpha, sigma = _PATH.path(level)
    zero = 0.0 * alpha
    first, last = (-sigma, alpha) if velocity else (alpha, sigma)
    return torch.stack((first, zero, zero, last), dim=1)


def _noising_table(scheduler: Any, x: Tensor, velocity: bool) -> Tensor:
    """The rows of all steps, kept until the scheduler has other alphas_cumprod."""
    a = scheduler.alphas_cumprod
    kept = scheduler.__dict__.get("_genkern_noising")
    if kept is None or kept[0] is not a:
        kept = scheduler._genkern_noising = (a, {})
    key = (velocity, arithmetic(x.dtype), x.device)
    found: Tensor | None = kept[1].get(key)
    if found is None:
        with torch.inference_mode(False), torch.no_grad():
            found = _noising_rows(a, velocity).to(x.device, arithmetic(x.dtype))
        kept[1][key] = found
    return found


def _unfit_noising(x0: Any, noise: Any, timesteps: Any) -> str | None:
    """Why these arguments have no kernel."""
    for name, x in (("sample", x0), ("noise", noise)):
        if not isinstance(x, Tensor) or x.dtype not in checks.FLOATING:
            return f"its {name} is not a floating tensor"
    if x0.shape != noise.shape or x0.device != noise.device or x0.dim() == 0:
        return "its sample and noise do not have one shape and device"
    if not isinstance(timesteps, Tensor) or timesteps.dtype not in _INTEGERS:
        return "its timesteps are not integers"
    if timesteps.numel() not in (1, len(x0)):
        return "its timesteps are not one, or one a sample"
    return None


def _adding(sampler: _Sampler) -> Any:
    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Adds the noise of the timesteps in one kernel, with float32 coefficients."""
        made = _noising(self, original_samples, noise, timesteps, velocity=False)
        if made is None:
            made = sampler.add_noise(self, original_samples, noise, timesteps)
        return made

    return add_noise


def _velocity(sampler: _Sampler) -> Any:
    def get_velocity(self: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity at the timesteps in one kernel, with float32 coefficients."""
        made = _noising(self, sample, noise, timesteps, velocity=True)
        if made is None:
            made = sampler.get_velocity(self, sample, noise, timesteps)
        return made

    return get_velocity


def _preparing(sampler: _Sampler) -> Any:
    @functools.wraps(sampler.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        sampler.set_timesteps(self, *args, **kwargs)
        if tracing():
            return
        # Made here, the coefficients are constants for compiled code.
        run: _Run | None = self.__dict__.get("_genkern_run")
        options = sampler.options(self) if run is None else run.options
        if run is None or not run.renewed(self, options):
            run = self._genkern_run = _Run(sampler, self, options)
            if run.settings.refusal is None:
                run.table(self, torch.float32, self.timesteps.device)

    return set_timesteps


_METHODS: dict[type, dict[str, Any]] = {
    DDPMScheduler: {
        "set_timesteps": _preparing(_DDPM_SAMPLER),
        "step": _ddpm_step,
        "add_noise": _adding(_DDPM_SAMPLER),
        "get_velocity": _velocity(_DDPM_SAMPLER),
    },
    DDIMScheduler: {
        "set_timesteps": _preparing(_DDIM_SAMPLER),
        "step": _ddim_step,
        "add_noise": _adding(_DDIM_SAMPLER),
        "get_velocity": _velocity(_DDIM_SAMPLER),
    },
}


class GenkernDDPMScheduler(DDPMScheduler):
    """DDPMScheduler with fused `step`, `add_noise` and `get_velocity`.

    Attributes:
        noise: "diffusers" for the numbers that diffusers draws, "key" for genkern's: several times
            faster, and with a list of generators each sample's own.

    Example:
        >>> import torch
        >>> from diffusers import DDPMScheduler
        >>> from genkern.integrations.diffusers import GenkernDDPMScheduler
        >>> scheduler = GenkernDDPMScheduler.from_config(DDPMScheduler(beta_end=0.03).config)
        >>> scheduler.config.beta_end
        0.03
        >>> x, generator = torch.ones(1, 2, 1, 1), torch.Generator().manual_seed(0)
        >>> scheduler.step(torch.zeros(1, 2, 1, 1), 500, x, generator).prev_sample.flatten()
        tensor([1.1835, 0.9584])
    """

    noise = "diffusers"
    set_timesteps = _METHODS[DDPMScheduler]["set_timesteps"]
    step = _METHODS[DDPMScheduler]["step"]
    add_noise = _METHODS[DDPMScheduler]["add_noise"]
    get_velocity = _METHODS[DDPMScheduler]["get_velocity"]


class GenkernDDIMScheduler(DDIMScheduler):
    """DDIMScheduler with fused `step`, `add_noise` and `get_velocity`.

    Attributes:
        noise: As for :class:`GenkernDDPMScheduler`; drawn where eta is above 0.

    Example:
        >>> import torch
        >>> from genkern.integrations.diffusers import GenkernDDIMScheduler
        >>> scheduler = GenkernDDIMScheduler()
        >>> scheduler.set_timesteps(50)
        >>> x = torch.full((1, 2, 1, 1), 0.25)
        >>> scheduler.step(torch.zeros(1, 2, 1, 1), 500, x).prev_sample.flatten()
        tensor([0.2761, 0.2761])
    """

    noise = "diffusers"
    set_timesteps = _METHODS[DDIMScheduler]["set_timesteps"]
    step = _METHODS[DDIMScheduler]["step"]
    add_noise = _METHODS[DDIMScheduler]["add_noise"]
    get_velocity = _METHODS[DDIMScheduler]["get_velocity"]


# ---- the posterior of an autoencoder


class GenkernDiagonalGaussianDistribution(DiagonalGaussianDistribution):
    """DiagonalGaussianDistribution with fused `sample`, `kl` and `nll`.

    `logvar`, `std` and `var` are computed when they are read.

    Attributes:
        noise: As for :class:`GenkernDDPMScheduler`.

    Example:
        >>> import torch
        >>> from genkern.integrations.diffusers import GenkernDiagonalGaussianDistribution
        >>> posterior = GenkernDiagonalGaussianDistribution(torch.zeros(2, 8, 4, 4))
        >>> posterior.sample(torch.Generator().manual_seed(0)).shape, posterior.kl()
        (torch.Size([2, 4, 4, 4]), tensor([0., 0.]))
    """

    noise = "diffusers"

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self._gaussian = None
        reason = _UNTESTED
        if parameters.dim() != 4 or parameters.shape[1] % 2 or parameters.numel() == 0:
            reason = "its parameters are not (B, 2C, H, W)"
        elif parameters.dtype not in checks.FLOATING:
            reason = f"{parameters.dtype} has no kernel"
        if reason is not None:
            _left_to_diffusers("DiagonalGaussianDistribution", reason)
        if deterministic or reason is not None:
            super().__init__(parameters, deterministic)
            return
        self._gaussian = DiagonalGaussian(parameters)
        # The KL that a differentiable sample was drawn with, in the same pass.
        self._kl: Tensor | None = None
        self.parameters, self.deterministic = parameters, False
        self.mean = self._gaussian.mean

    def __getattr__(self, name: str) -> Tensor:
        """What the stock class computes at once, computed when it is first read."""
        if name not in ("logvar", "std", "var"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name == "logvar":
            assert self._gaussian is not None
            value: Tensor = torch.clamp(self._gaussian._logvar, *_CLAMP)
        else:
            value = torch.exp(0.5 * self.logvar if name == "std" else self.logvar)
        setattr(self, name, value)
        return value

    def sample(self, generator: Generators = None) -> Tensor:
        """A sample, (B, C, H, W)."""
        if self._gaussian is None:
            return super().sample(generator)  # type: ignore[no-any-return]
        key, noise = _drawn(self.noise, self.mean, self.mean, generator, None)
        if not (torch.is_grad_enabled() and self.parameters.requires_grad):
            return self._gaussian.sample(key=key, noise=noise)
        z, self._kl = rsample_kl(
            self.mean,
            self._gaussian._logvar,
            key=key,
            noise=noise,
            logvar_clamp=_CLAMP,
            reduction="sample",
        )
        return z

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """The KL divergence from `other`, or from N(0, 1), (B,)."""
        if self._gaussian is None or (other is not None and other.deterministic):
            return super().kl(other)  # type: ignore[no-any-return]
        if other is None and self._kl is not None and torch.is_grad_enabled():
            return self._kl.to(self.mean.dtype)
        return self._gaussian.kl(other).to(self.mean.dtype)

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """The negative log-density of a sample, (B,)."""
        if self._gaussian is None or tuple(dims) != (1, 2, 3) or sample.shape != self.mean.shape:
            return super().nll(sample, list(dims))  # type: ignore[no-any-return]
        return self._gaussian.nll(sample).to(self.mean.dtype)


# ---- the stock classes

_PATCH = Patch(_LOGGER)


def apply(noise: str = "diffusers") -> Applied:
    """Gives diffusers' own classes genkern's kernels, until `revert()` or the end of a block.

    Changed are the methods of DDPMScheduler and DDIMScheduler, also for schedulers that exist, and
    the class of the posteriors that diffusers' autoencoders make.

    Args:
        noise: "diffusers" or "key", as for :class:`GenkernDDPMScheduler`.

    Returns:
        A context manager that reverts; it need not be used.

    Raises:
        ValueError: If noise is neither.

    Example:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from genkern.integrations.diffusers import apply
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(50)
        >>> x = torch.full((1, 2, 1, 1), 0.25)
        >>> with apply():
        ...     scheduler.step(torch.zeros(1, 2, 1, 1), 500, x).prev_sample.flatten()
        tensor([0.2761, 0.2761])
    """
    checks.one_of("apply", "noise", noise, _NOISES)
    changes = []
    if _UNTESTED is None:
        posterior = GenkernDiagonalGaussianDistribution
        for kind, methods in _METHODS.items():
            changes += [Change(kind, name, value) for name, value in methods.items()]
            changes.append(Change(kind, "noise", noise))
        changes += [Change(m, DiagonalGaussianDistribution.__name__, posterior) for m in _users()]
        changes.append(Change(posterior, "noise", noise))
    else:
        _left_to_diffusers("everything", _UNTESTED)
    return _PATCH.apply(changes)


def revert() -> None:
    """Gives diffusers' classes their own methods back."""
    _PATCH.revert()


def _users() -> list[ModuleType]:
    """The modules of diffusers that make posteriors."""
    name = DiagonalGaussianDistribution.__name__
    kinds = (DiagonalGaussianDistribution, GenkernDiagonalGaussianDistribution)
    return [
        m
        for path, m in list(sys.modules.items())
        if path.startswith("diffusers.") and vars(m).get(name) in kinds
    ]
