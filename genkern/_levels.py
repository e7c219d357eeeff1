r"""What every schedule has: levels, tables of coefficients, respacing, checks of t and prev_t."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from genkern._ops import checks
from genkern._ops.elements import arithmetic

# A step, or a level, of all samples or of each.
Time: TypeAlias = int | float | Tensor
# One of genkern._coefficients.
Build: TypeAlias = Callable[..., Tensor]
_S = TypeVar("_S", bound="Schedule")

_SPACINGS = ("leading", "linspace", "trailing")
# Rows of single (t, prev_t) pairs that are kept; a run of a sampler needs one a step.
_KEPT = 4096
# Up to here a list is faster than a reduction.
_FEW = 256

# Names of the attributes in which compiled code finds what schedules keep, the same for all.
_PREFIX = "_kept_"
_ATTRIBUTES: dict[Any, str] = {}


class Forms(NamedTuple):
    """A prediction type at some levels.

    x0 = x0_x_t x_t + x0_pred pred, eps = noise_x_t x_t + noise_pred pred, and a perfect network
    predicts target_x0 x0 + target_noise eps.
    """

    x0_x_t: Tensor
    x0_pred: Tensor
    noise_x_t: Tensor
    noise_pred: Tensor
    target_x0: Tensor
    target_noise: Tensor


class Schedule:
    """What every path has: levels, their tables, respacing.

    The levels are kept on the CPU, where the tables are computed; each table moves to a device
    once.
    """

    prediction_types: ClassVar[tuple[str, ...]]
    weightings: ClassVar[tuple[str, ...]] = ("min_snr",)
    # The level of clean data, which prev_t = -1 stands for.
    clean: ClassVar[float]
    # The highest level, where a level itself may be given as t; None where it may not.
    highest: ClassVar[float | None] = None

    def __init__(self, levels: Tensor) -> None:
        self._levels = levels
        self._tables: dict[Any, Any] = {}
        self.device = torch.device("cpu")
        # The step at which nothing is left of x0: there the noise does not determine it.
        signal = float(self.path(levels[-1:])[0])
        self.no_signal = len(levels) - 1 if signal == 0.0 else None

    def __len__(self) -> int:
        return len(self._levels)

    def __repr__(self) -> str:
        dtype = str(self._levels.dtype).removeprefix("torch.")
        return f"{type(self).__name__}(T={len(self)}, table_dtype={dtype}, device={self.device})"

    def __getstate__(self) -> dict[str, Any]:
        state = {name: v for name, v in vars(self).items() if not name.startswith(_PREFIX)}
        return {**state, "_tables": {}}

    def to(self: _S, device: torch.device | str) -> _S:
        """The same schedule with its tensors on another device."""
        moved = copy.copy(self)
        moved.device = torch.empty(0, device=device).device
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and not name.startswith("_"):
                setattr(moved, name, value.to(device))
        return moved

    def timesteps(self, num_steps: int, spacing: str = "leading") -> Tensor:
        """The steps of a shorter run, int64, descending, on the schedule's device.

        Those of diffusers' DDPM and DDIM schedulers: Lin et al., arXiv:2305.08891, table 2. The
        prev_t of each is the next one, and -1 for the last.

        Args:
            num_steps: Number of steps, at most T.
            spacing: "leading" (ends at 0), "linspace" (from T - 1 to 0) or "trailing" (starts at
                T - 1).

        Returns:
            The steps, (num_steps,).

        Raises:
            TypeError: If num_steps is no integer.
            ValueError: If num_steps is not in [1, T], or spacing is not valid.

        Example:
            >>> import genkern
            >>> genkern.diffusion.NoiseSchedule.linear(1000).timesteps(4)
            tensor([750, 500, 250,   0])
        """
        steps = self.spaced("timesteps", num_steps, spacing)
        return torch.tensor(steps, dtype=torch.int64, device=self.device)

    def spaced(self, function: str, num_steps: int, spacing: str) -> list[int]:
        """The same as integers, for what must not wait for a device."""
        checks.one_of(function, "spacing", spacing, _SPACINGS)
        length = len(self)
        num_steps = checks.integer(function, "num_steps", num_steps, 1, length, f"in [1, {length}]")
        if spacing == "leading":
            ratio = length // num_steps
            return [i * ratio for i in reversed(range(num_steps))]
        # In floating point, step by step as NumPy's linspace and arange are evaluated, so that
        # halves round to the same side.
        if spacing == "linspace":
            step = (length - 1) / max(num_steps - 1, 1)
            ascending = [float(i) * step for i in range(num_steps)]
            if num_steps > 1:
                ascending[-1] = float(length - 1)
            return [round(value) for value in reversed(ascending)]
        step = (length - length / num_steps) - length
        return [round(length + i * step) - 1 for i in range(num_steps)]

    # ---- what a path is

    def path(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma."""
        raise NotImplementedError

    def snr_of(self, level: Tensor) -> Tensor:
        """The signal-to-noise ratio alpha^2 / sigma^2."""
        alpha, sigma = self.path(level)
        return (alpha / sigma) ** 2

    def vlb_x0_weight(self, level: Tensor, prev: Tensor) -> Tensor:
        """The weight of the squared error of x0 in the bound, where "vlb" is a weighting."""
        raise NotImplementedError

    def forms(self, level: Tensor, prediction_type: str) -> Forms:
        """The prediction types that every path has: "epsilon" and "sample"."""
        alpha, sigma = self.path(level)
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        if prediction_type == "epsilon":
            return Forms(1.0 / alpha, -sigma / alpha, zero, one, zero, one)
        return Forms(zero, one, 1.0 / sigma, -alpha / sigma, one, zero)

    def drift(self, level: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
        """The slope of the probability flow, as multiples of x_t and pred.

        Here x_t / alpha_t moves with sigma_t / alpha_t, and its slope is the noise: Song et al.,
        arXiv:2010.02502, (14).
        """
        forms = self.forms(level, prediction_type)
        return forms.noise_x_t, forms.noise_pred

    def flow_step(self, level: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        """The multiples of x_t and of the slope in a step of the probability flow."""
        (alpha, sigma), (prev_alpha, prev_sigma) = self.path(level), self.path(prev)
        ratio = prev_alpha / alpha
        return ratio, prev_sigma - sigma * ratio

    def has_slope(self, t: int) -> bool:
        """Whether `flow_step` is finite at t."""
        return t != self.no_signal

    def check_eta(self, function: str, eta: float) -> None:
        """Raises unless a step may add noise in this proportion."""
        if eta != 0.0:
            raise ValueError(f"{function}: eta must be 0 with a {type(self).__name__}, got {eta}")

    def model_inputs(
        self,
        batch: int,
        prediction_type: str,
        timesteps: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """For a run: what the model takes, from x_t and the step's number in the run."""
        times = self.kept(_steps_on, tuple(timesteps), device)
        each = times.unsqueeze(1).repeat(1, batch).unbind(0)
        return lambda x, step: (x, each[step])

    def initial_scale(self, t: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What x_T = N(0, 1) is multiplied by; None for 1."""
        return None

    # ---- rows of coefficients

    def rows(
        self,
        function: str,
        build: Build,
        options: tuple[Any, ...],
        t: Time,
        like: Tensor,
        dtype: torch.dtype,
        prev_t: Time | None = None,
        needs_signal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Checks t and prev_t, and returns what an operator takes: coefficients and t.

        Args:
            function: For messages.
            build: One of `genkern._coefficients`.
            options: Its options.
            t: Step or level, as the user gave it.
            like: The data, for its batch size and device.
            dtype: The data's dtype.
            prev_t: The step to go to, as the user gave it; t - 1 when None.
            needs_signal: Whether `no_signal` is refused.
        """
        if not isinstance(t, (int, Tensor)):
            t = _as_time(t)
        if prev_t is not None and not isinstance(prev_t, (int, Tensor)):
            prev_t = _as_time(prev_t)
        dtype, device = arithmetic(dtype), like.device
        # Compiled code takes tables as inputs; other tracers take no tensor that is not theirs.
        compiling, keep = torch.compiler.is_compiling(), not tracing()
        if type(t) is int:
            self._check_int(function, t, needs_signal)
            if prev_t is None:
                prev_t = t - 1
            elif type(prev_t) is int and not -1 <= prev_t < t:
                raise ValueError(f"{function}: prev_t must be in [-1, {t}), got {prev_t}")
            if type(prev_t) is int and (keep or compiling):
                if prev_t == t - 1:
                    of_all = (build, options, dtype, device)
                    if compiling:
                        return self.kept(_table, *of_all).narrow(0, t, 1), None
                    return self.kept(_rows, *of_all)[t], None
                if keep:
                    return self.kept(_pair, build, options, dtype, device, t, prev_t), None
        elif isinstance(t, Tensor) and not t.is_floating_point():
            if t.dtype != torch.int64:
                raise TypeError(f"{function}: t must be int64, got {t.dtype}")
            _check_shape(function, "t", t, like)
            if keep:
                self._check_steps(function, t, needs_signal)
            if prev_t is None:
                if keep or compiling:
                    # The kernels look at t themselves.
                    return self.kept(_table, build, options, dtype, device), t
                prev_t = t - 1
        else:
            self._check_level(function, t, like, needs_signal)
        level = self.level(t, device)
        if prev_t is None:
            prev = torch.full_like(level, self.clean)
        else:
            self._check_prev(function, t, prev_t, like)
            prev = self.level(prev_t, device)
        level, prev = torch.broadcast_tensors(level, prev)
        return build(self, level, prev, *options).to(dtype), None

    def steps(
        self,
        build: Build,
        options: tuple[Any, ...],
        timesteps: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """The rows of a run: each of its steps to the next one, the last to clean data."""
        found: Tensor = self.kept(_run, build, options, timesteps, dtype, device)
        return found

    def kept(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """make(self, *arguments), made once."""
        if torch.compiler.is_compiling():
            return getattr(self, self._attribute(make, arguments))
        return make(self, *arguments) if tracing() else self._made(make, arguments)

    # Runs while code is compiled, which then finds a tensor in the attribute: one of its inputs,
    # whichever schedule it is called with.
    def _attribute(self, make: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
        name = _ATTRIBUTES.setdefault((make, arguments), f"{_PREFIX}{len(_ATTRIBUTES)}")
        if name not in vars(self):
            setattr(self, name, self._made(make, arguments))
        return name

    # What torch.compiler.assume_constant_result does, which imports the compiler, sympy and triton.
    _attribute._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _made(self, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        key = (make, arguments)
        found = self._tables.get(key)
        if found is None:
            if len(self._tables) >= _KEPT:
                self._tables.clear()
            # Kept beyond the caller's modes: a tensor made in inference mode could not be saved
            # for a backward pass, and one of torch.export's would be no constant.
            with _disable_current_modes(), torch.inference_mode(False):
                found = make(self, *arguments)
            self._tables[key] = found
        return found

    def level(self, t: Time, device: torch.device) -> Tensor:
        """The levels of steps, (1,) or (B,); -1 is clean data."""
        if isinstance(t, float):
            return torch.full((1,), t, dtype=self._levels.dtype, device=device)
        if isinstance(t, Tensor) and t.is_floating_point():
            return t.detach().reshape(-1).to(self._levels.dtype)
        levels = self._levels
        if levels.device != device or tracing():
            levels = self.kept(_levels_on, device)
        if isinstance(t, Tensor):
            t = t.reshape(-1)
            return torch.where(t < 0, self.clean, levels[t.clamp(0, len(self) - 1)])
        if t < 0:
            return torch.full_like(levels[:1], self.clean)
        return levels.narrow(0, t, 1)

    # ---- checks of t and prev_t

    def _check_int(self, function: str, t: int, needs_signal: bool) -> None:
        if not 0 <= t < len(self):
            raise IndexError(f"{function}: t must be in [0, {len(self)}), got {t}")
        if needs_signal and t == self.no_signal:
            self.refuse_epsilon(function, f"t = {t}")

    def _check_steps(self, function: str, t: Tensor, needs_signal: bool) -> None:
        if not readable(t) or t.numel() == 0:
            return
        if t.numel() <= _FEW:
            values = t.reshape(-1).tolist()
            lowest, highest = min(values), max(values)
        else:
            lowest, highest = (int(v) for v in torch.aminmax(t))
        if lowest < 0 or highest >= len(self):
            values = t.reshape(-1).tolist()
            i = next(i for i, v in enumerate(values) if not 0 <= v < len(self))
            got = f"{values[i]}{f' at index {i}' if t.dim() else ''}"
            raise IndexError(f"{function}: t must be in [0, {len(self)}), got {got}")
        # That step is the last one.
        if needs_signal and highest == self.no_signal:
            self.refuse_epsilon(function, f"t = {highest}")

    def refuse_epsilon(self, function: str, where: str) -> None:
        others = " or ".join(word for word in self.prediction_types if word != "epsilon")
        raise ValueError(
            f"{function}: prediction_type must be {others} at {where}, where nothing of x0 is left"
            f" in x_t (alphas_cumprod, or alpha, is 0), got 'epsilon'"
        )

    def _check_level(self, function: str, t: Time, like: Tensor, needs_signal: bool) -> None:
        if self.highest is None or not (
            isinstance(t, float) or (isinstance(t, Tensor) and t.dtype in checks.FLOATING)
        ):
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            level = "" if self.highest is None else ", or a level"
            raise TypeError(
                f"{function}: t must be an integer or an int64 tensor{level}, got {got}"
            )
        if isinstance(t, Tensor):
            _check_shape(function, "t", t, like)
        values = _values(t) if isinstance(t, Tensor) else [t]
        if isinstance(t, Tensor) and values is None:
            within = (t > 0.0) & (t <= self.highest) & (t < math.inf)
            expected = f"t to be levels in (0, {self.highest:g}]"
            _assert_all(within, f"{function}: expected {expected}")
        for i, v in enumerate(values or ()):
            if not (0.0 < v <= self.highest and v < math.inf):
                where = f" at index {i}" if isinstance(t, Tensor) and t.dim() else ""
                end = f"{self.highest:g}]" if self.highest < math.inf else "inf)"
                raise IndexError(f"{function}: t must be a level in (0, {end}, got {v:g}{where}")
            if needs_signal and self.no_signal is not None and v == self.highest:
                self.refuse_epsilon(function, f"t = {v:g}")

    def _assert_order(self, function: str, t: Any, prev_t: Any) -> None:
        """What `_check_prev` and the kernels ask, of values that cannot be read here."""
        step = not is_level(t)
        right = (prev_t >= (-1 if step else 0.0)) & (prev_t < t)
        if step:
            right = right & (t < len(self))
        expected = f"t in [0, {len(self)}) and prev_t in [-1, t)" if step else "prev_t in [0, t)"
        _assert_all(right, f"{function}: expected {expected}")

    def _check_prev(self, function: str, t: Time, prev_t: Time, like: Tensor) -> None:
        step = not is_level(t)
        if isinstance(prev_t, Tensor):
            same_kind = prev_t.dtype == torch.int64 if step else prev_t.dtype in checks.FLOATING
        else:
            same_kind = type(prev_t) is (int if step else float)
        if not same_kind:
            expected = "an integer or an int64 tensor" if step else "a level, as t is"
            got = prev_t.dtype if isinstance(prev_t, Tensor) else type(prev_t).__name__
            raise TypeError(f"{function}: prev_t must be {expected}, got {got}")
        if isinstance(prev_t, Tensor):
            _check_shape(function, "prev_t", prev_t, like)
        now = _values(t) if isinstance(t, Tensor) else [t]
        before = _values(prev_t) if isinstance(prev_t, Tensor) else [prev_t]
        if now is None or before is None:
            self._assert_order(function, t, prev_t)
        if not now or not before:
            return
        count = max(len(now), len(before))
        lowest = -1 if step else 0.0
        for i in range(count):
            v, p = now[i % len(now)], before[i % len(before)]
            if not lowest <= p < v:
                where = f" at index {i}" if count > 1 else ""
                raise ValueError(
                    f"{function}: prev_t must be at least {lowest:g} and below t,"
                    f" got {p:g} with t = {v:g}{where}"
                )


# ---- what a schedule keeps


def _levels_on(schedule: Schedule, device: torch.device) -> Tensor:
    # By way of numbers: a fake or a graph's own tensor where one is asked for.
    with _disable_current_modes():
        levels = schedule._levels.tolist()
    return torch.tensor(levels, dtype=schedule._levels.dtype, device=device)


def _steps_on(schedule: Schedule, timesteps: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(timesteps, dtype=torch.int64, device=device)


def _table(
    schedule: Schedule,
    build: Build,
    options: tuple[Any, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The rows of all T steps to the one before."""
    levels = schedule._levels
    prev = torch.cat((torch.full_like(levels[:1], schedule.clean), levels[:-1]))
    return build(schedule, levels, prev, *options).to(device, dtype)


def _rows(schedule: Schedule, *arguments: Any) -> tuple[Tensor, ...]:
    """The same, one by one."""
    rows: tuple[Tensor, ...] = schedule.kept(_table, *arguments).split(1)
    return rows


def _pair(
    schedule: Schedule,
    build: Build,
    options: tuple[Any, ...],
    dtype: torch.dtype,
    device: torch.device,
    t: int,
    prev_t: int,
) -> Tensor:
    """The row of one step to any other."""
    level, prev = (schedule.level(i, schedule._levels.device) for i in (t, prev_t))
    return build(schedule, level, prev, *options).to(device, dtype)


def _run(
    schedule: Schedule,
    build: Build,
    options: tuple[Any, ...],
    timesteps: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The rows of `Schedule.steps`."""
    levels = torch.cat([schedule.level(t, schedule._levels.device) for t in (*timesteps, -1)])
    return build(schedule, levels[:-1], levels[1:], *options).to(device, dtype)


def _as_time(t: Any) -> Any:
    """Other integers than Python's, such as NumPy's, as Python's."""
    try:
        return operator.index(t)
    except TypeError:
        return t


def _assert_all(right: Tensor, message: str) -> None:
    """Raises a RuntimeError where values are, when they are there, unless all are true."""
    if not torch.compiler.is_compiling():
        functorch = torch._C._functorch
        # No transform has a rule for the assertion, which asks the same of all that it holds.
        while functorch.is_functorch_wrapped_tensor(right):
            right = functorch.get_unwrapped(right)
    torch._assert_async(right.all(), message)


def is_level(t: Time) -> bool:
    """Whether t is a level and not a step."""
    return t.is_floating_point() if isinstance(t, Tensor) else isinstance(t, float)


def tracing() -> bool:
    """Whether tensors made now may be a graph's, or fakes: not to be kept."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def readable(t: Tensor) -> bool:
    """Whether reading the values makes nothing wait and breaks no graph."""
    return (
        type(t) is Tensor
        and t.is_cpu
        and not tracing()
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
    )


def _values(t: Tensor) -> list[Any] | None:
    return t.reshape(-1).tolist() if readable(t) else None


def _check_shape(function: str, name: str, t: Tensor, like: Tensor) -> None:
    if t.dim() and t.shape != like.shape[:1]:
        expected = f"() or ({like.shape[0]},)" if like.dim() else "()"
        raise ValueError(f"{function}: {name} must have shape {expected}, got {tuple(t.shape)}")
    if t.device != like.device:
        raise ValueError(
            f"{function}: {name} and the data must be on one device,"
            f" got {t.device} and {like.device}"
        )
