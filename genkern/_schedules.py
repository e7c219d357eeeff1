r"""The schedules: Gaussian paths :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` in T levels.

A schedule says what its levels (alphas_cumprod, s or sigma) mean, in `path`, and how a network's
prediction gives x0 and the noise, in `forms`. Everything else is a table made of these in
`genkern._coefficients`, so a new process or parametrisation is a few lines here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genkern import _coefficients
from genkern._levels import Forms, Schedule, Time
from genkern._ops import checks
from genkern._ops import diffusion as ops
from genkern._ops.elements import arithmetic

_TABLE_DTYPES = (torch.float64, torch.float32)


class NoiseSchedule(Schedule):
    r"""The discrete schedule of diffusion models, variance preserving.

    .. math::  x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad
               \bar\alpha_t = \prod_{s \le t} (1 - \beta_s)

    Ho et al., arXiv:2006.11239, (4). Step t = 0 is the first noised one, and -1 stands for clean
    data. Made by one of the class methods; `table_dtype` is the precision of its tables: float64,
    or float32 for those of diffusers, bit for bit.

    Args:
        betas: Variances of the steps, (T,), in (0, 1], float64 or float32, on the CPU.
        alphas_cumprod: The products of 1 - betas, strictly decreasing in [0, 1), likewise.

    Attributes:
        betas: (T,), in the table's dtype, on `device`; likewise the others.
        alphas: 1 - betas.
        alphas_cumprod: The products of the alphas.
        no_signal: T - 1 where alphas_cumprod ends at 0, else None.

    Raises:
        TypeError: If a table is not one of numbers, or a parameter not a number.
        ValueError: If betas or alphas_cumprod leave their range, or T is below 2.

    Example:
        >>> import genkern
        >>> schedule = genkern.diffusion.NoiseSchedule.linear(1000)
        >>> len(schedule), schedule.timesteps(4, spacing="trailing")
        (1000, tensor([999, 749, 499, 249]))
    """

    prediction_types = ("epsilon", "v_prediction", "sample")
    weightings = ("vlb", "min_snr")
    clean = 1.0

    def __init__(self, betas: Tensor, alphas_cumprod: Tensor) -> None:
        _check_tables("NoiseSchedule", betas, alphas_cumprod)
        self.betas, self.alphas_cumprod = betas, alphas_cumprod
        self.alphas = 1.0 - betas
        super().__init__(alphas_cumprod)
        # beta~_0 is 0: its logarithm is replaced by that of beta~_1, and so is the weight (42.9).
        first, second = alphas_cumprod[:1], alphas_cumprod[1:2]
        self.first_log_variance = math.log(float(_coefficients.posterior(second, first).variance))
        self.first_weight = float(self._x0_weight(second, first) / self.snr_of(second))

    @classmethod
    def linear(
        cls,
        T: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        *,
        table_dtype: torch.dtype = torch.float64,
    ) -> NoiseSchedule:
        """Betas equally spaced: Ho et al., arXiv:2006.11239, section 4.

        Args:
            T: Number of steps.
            beta_start: The first beta.
            beta_end: The last one.
            table_dtype: Of the tables: float64, or float32 for diffusers' to the bit.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If T is below 1, or a beta outside (0, 1].
        """
        _check_arguments("linear", T, table_dtype)
        beta_start = checks.number("linear", "beta_start", beta_start)
        beta_end = checks.number("linear", "beta_end", beta_end)
        betas = torch.linspace(beta_start, beta_end, T, dtype=table_dtype, device="cpu")
        return cls._of_betas("linear", betas)

    @classmethod
    def scaled_linear(
        cls,
        T: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        *,
        table_dtype: torch.dtype = torch.float64,
    ) -> NoiseSchedule:
        """Square roots of the betas equally spaced, as in latent diffusion models.

        Arguments and errors are those of `linear`.
        """
        _check_arguments("scaled_linear", T, table_dtype)
        expected = "at least 0 and finite"
        beta_start = checks.number(
            "scaled_linear", "beta_start", beta_start, 0.0, expected=expected
        )
        beta_end = checks.number("scaled_linear", "beta_end", beta_end, 0.0, expected=expected)
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=table_dtype, device="cpu")
        return cls._of_betas("scaled_linear", roots**2)

    @classmethod
    def cosine(cls, T: int = 1000, *, table_dtype: torch.dtype = torch.float64) -> NoiseSchedule:
        """The squared cosine: Nichol and Dhariwal, arXiv:2102.09672, (17); betas at most 0.999.

        Args:
            T: Number of steps.
            table_dtype: Of the tables, as for `linear`.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If T is below 1.
        """
        _check_arguments("cosine", T, table_dtype)

        def f(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - f((i + 1) / T) / f(i / T), 0.999) for i in range(T)]
        return cls._of_betas("cosine", torch.tensor(betas, dtype=table_dtype, device="cpu"))

    @classmethod
    def sigmoid(
        cls,
        T: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        *,
        table_dtype: torch.dtype = torch.float64,
    ) -> NoiseSchedule:
        """Betas on the logistic curve from -6 to 6: Xu et al., arXiv:2203.02923, appendix.

        Args:
            T: Number of steps.
            beta_start: Where the curve comes from.
            beta_end: Where it goes to.
            table_dtype: Of the tables: float64, or float32 for diffusers' to the bit.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If T is below 1, or a beta outside (0, 1].
        """
        _check_arguments("sigmoid", T, table_dtype)
        beta_start = checks.number("sigmoid", "beta_start", beta_start)
        beta_end = checks.number("sigmoid", "beta_end", beta_end)
        curve = torch.sigmoid(torch.linspace(-6, 6, T, dtype=table_dtype, device="cpu"))
        return cls._of_betas("sigmoid", curve * (beta_end - beta_start) + beta_start)

    @classmethod
    def from_betas(
        cls, betas: Tensor | Sequence[float], *, table_dtype: torch.dtype = torch.float64
    ) -> NoiseSchedule:
        """The schedule of given betas.

        Args:
            betas: (T,), in (0, 1].
            table_dtype: Of the tables, as for `linear`.

        Raises:
            TypeError: If betas are no real numbers.
            ValueError: If a beta is out of range, or there is none.
        """
        table, device = _given("from_betas", "betas", betas, table_dtype)
        return cls._of_betas("from_betas", table).to(device)

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor | Sequence[float], *, table_dtype: torch.dtype = torch.float64
    ) -> NoiseSchedule:
        """The schedule of given alphas_cumprod.

        Args:
            alphas_cumprod: (T,), strictly decreasing in [0, 1).
            table_dtype: Of the tables, as for `linear`.

        Raises:
            TypeError: If they are no real numbers.
            ValueError: If one is out of range or not below the one before, or there is none.
        """
        function = "from_alphas_cumprod"
        table, device = _given(function, "alphas_cumprod", alphas_cumprod, table_dtype)
        _check_alphas_cumprod(function, table)
        betas = 1.0 - torch.cat((table[:1], table[1:] / table[:-1]))
        _check_betas(function, betas)
        return cls(betas, table).to(device)

    @classmethod
    def from_diffusers(
        cls, scheduler: Any, *, table_dtype: torch.dtype = torch.float64
    ) -> NoiseSchedule:
        """The schedule of a diffusers scheduler.

        From its betas, or from its alphas_cumprod where it changes them afterwards (CogVideoX).

        Args:
            scheduler: The scheduler.
            table_dtype: Of the tables, as for `linear`.

        Raises:
            TypeError: If it has no betas.
            ValueError: If they are out of range.
        """
        function = "from_diffusers"
        betas = getattr(scheduler, "betas", None)
        if betas is None:
            got = type(scheduler).__name__
            raise TypeError(f"{function}: scheduler must have betas, got {got}")
        table, _ = _given(function, "betas", betas, table_dtype)
        found = cls._of_betas(function, table)
        theirs = getattr(scheduler, "alphas_cumprod", None)
        if theirs is None:
            return found
        theirs, _ = _given(function, "alphas_cumprod", theirs, table_dtype)
        # A product of T float32 factors is off by T half-ulps, theirs and ours.
        rounding = len(found) * torch.finfo(torch.float32).eps
        if (found.alphas_cumprod - theirs).abs().max() <= rounding:
            return found
        return cls.from_alphas_cumprod(theirs, table_dtype=table_dtype)

    @classmethod
    def _of_betas(cls, function: str, betas: Tensor) -> NoiseSchedule:
        _check_betas(function, betas)
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        _check_alphas_cumprod(function, alphas_cumprod)
        return cls(betas, alphas_cumprod)

    def zero_terminal_snr(self) -> NoiseSchedule:
        """The schedule stretched so that nothing of x0 is left at the last step.

        Lin et al., arXiv:2305.08891, algorithm 1. Epsilon prediction is refused at that step.
        """
        roots = torch.cumprod(1.0 - self.betas.cpu(), dim=0).sqrt()
        first, last = roots[0].clone(), roots[-1].clone()
        roots = (roots - last) * (first / (first - last))
        a = roots**2
        betas = 1 - torch.cat((a[:1], a[1:] / a[:-1]))
        return self._of_betas("zero_terminal_snr", betas).to(self.device)

    # ---- tables

    @property
    def snr(self) -> Tensor:
        """The signal-to-noise ratio alphas_cumprod / (1 - alphas_cumprod), (T,)."""
        return self.snr_of(self.alphas_cumprod)

    @property
    def posterior_variance(self) -> Tensor:
        """The variance of `q(x_{t-1} | x_t, x_0)`, (T,), 0 at t = 0; Ho et al., (7)."""
        return _coefficients.posterior(self.alphas_cumprod, self._previous).variance

    @property
    def posterior_log_variance_clipped(self) -> Tensor:
        """The logarithm of `posterior_variance`; at t = 0, where that is 0, the value at t = 1."""
        return _coefficients.posterior_log_variance(self, self.alphas_cumprod, self._previous)

    @property
    def vlb_weights(self) -> Tensor:
        """The weight (42.9) of the squared error of epsilon in L_{t-1}; at t = 0, that at 1."""
        return self.loss_weights("vlb")

    @property
    def min_snr_weights(self) -> Tensor:
        """The weight min(snr, 5) / snr of the squared error of epsilon."""
        return self.loss_weights("min_snr")

    def loss_weights(self, weighting: str, prediction_type: str = "epsilon") -> Tensor:
        """The weights of the squared error of a prediction, (T,).

        Args:
            weighting: "vlb" (42.9), or "min_snr" (Hang et al., arXiv:2303.09556, gamma = 5).
            prediction_type: "epsilon", "v_prediction" or "sample".

        Returns:
            The weights, in the tables' dtype; those of "vlb" at t = 0 are those at t = 1.

        Raises:
            ValueError: If an option is not valid.

        Example:
            >>> import genkern
            >>> schedule = genkern.diffusion.NoiseSchedule.from_alphas_cumprod([0.75, 0.5])
            >>> schedule.loss_weights("min_snr")
            tensor([1., 1.], dtype=torch.float64)
        """
        checks.one_of("loss_weights", "weighting", weighting, self.weightings)
        checks.one_of("loss_weights", "prediction_type", prediction_type, self.prediction_types)
        return _coefficients.loss_weight(
            self, self.alphas_cumprod, self._previous, prediction_type, weighting
        )

    @property
    def _previous(self) -> Tensor:
        a = self.alphas_cumprod
        return torch.cat((torch.ones_like(a[:1]), a[:-1]))

    # ---- the path

    def path(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma."""
        return level**0.5, (1.0 - level) ** 0.5

    def snr_of(self, level: Tensor) -> Tensor:
        """The signal-to-noise ratio."""
        return level / (1.0 - level)

    def check_eta(self, function: str, eta: float) -> None:
        """Raises unless a step may add noise in this proportion."""
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"{function}: eta must be in [0, 1], got {eta}")

    def vlb_x0_weight(self, level: Tensor, prev: Tensor) -> Tensor:
        """The weight of the squared error of x0 in L_{t-1}: Ho et al., (8)."""
        first = self.first_weight * self.snr_of(level)
        return torch.where(prev == self.clean, first, self._x0_weight(level, prev))

    @staticmethod
    def _x0_weight(level: Tensor, prev: Tensor) -> Tensor:
        p = _coefficients.posterior(level, prev)
        return p.mean_x0**2 / (2.0 * p.variance)

    def forms(self, level: Tensor, prediction_type: str) -> Forms:
        """Also "v_prediction": Salimans and Ho, arXiv:2202.00512, appendix D."""
        if prediction_type != "v_prediction":
            return super().forms(level, prediction_type)
        alpha, sigma = self.path(level)
        return Forms(alpha, -sigma, sigma, alpha, -sigma, alpha)


class FlowSchedule(Schedule):
    r"""Rectified flow: straight lines from the data to the noise.

    .. math::  x_s = (1 - s)\, x_0 + s\, \epsilon, \qquad v = \epsilon - x_0

    Liu et al., arXiv:2209.03003, (1); Lipman et al., arXiv:2210.02747, section 4.1. Step t has the
    level s = (t + 1) / T; every function also takes a level itself, a float or a floating tensor
    in (0, 1], as `t`. Prediction types: "flow" (the velocity v), "epsilon" and "sample".

    Args:
        T: Number of steps.
        table_dtype: Precision of its tables, float64 or float32.

    Attributes:
        levels: s, (T,).

    Raises:
        TypeError: If table_dtype is neither float64 nor float32.
        ValueError: If T is below 2.

    Example:
        >>> import genkern
        >>> genkern.diffusion.FlowSchedule(4).levels
        tensor([0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """

    prediction_types = ("flow", "epsilon", "sample")
    clean = 0.0
    highest = 1.0

    def __init__(self, T: int = 1000, *, table_dtype: torch.dtype = torch.float64) -> None:
        _check_arguments("FlowSchedule", T, table_dtype)
        self.levels = torch.arange(1, T + 1, dtype=table_dtype, device="cpu") / T
        super().__init__(self.levels)

    def path(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma."""
        return 1.0 - level, level

    def forms(self, level: Tensor, prediction_type: str) -> Forms:
        """Also "flow", the velocity."""
        if prediction_type != "flow":
            return super().forms(level, prediction_type)
        alpha, sigma = self.path(level)
        one = torch.ones_like(alpha)
        return Forms(one, -sigma, one, alpha, -one, one)

    def drift(self, level: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
        """The velocity: x_s moves with s itself, and no level is singular."""
        forms = self.forms(level, prediction_type)
        return forms.noise_x_t - forms.x0_x_t, forms.noise_pred - forms.x0_pred

    def flow_step(self, level: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        """The multiples of x_s and of the velocity in a step."""
        return torch.ones_like(level), prev - level

    def has_slope(self, t: int) -> bool:
        """Always."""
        return True


class EDMSchedule(Schedule):
    r"""The variance-exploding path of Karras et al., arXiv:2206.00364, and its preconditioning.

    .. math::  x = x_0 + \sigma \epsilon, \qquad D(x) = c_{skip} x + c_{out} F(c_{in} x, c_{noise})

    The T levels are those of the paper's (5), with step 0 at sigma_min; every function also takes a
    level itself, a float or a floating tensor in (0, inf), as `t`. Prediction types: "edm" (the
    network F), "epsilon" and "sample" (the denoiser D). An unweighted loss of F is the paper's
    weighted loss of D.

    Args:
        T: Number of levels; the paper's samplers use 18 to 40.
        sigma_min: Least noise level.
        sigma_max: Greatest noise level.
        rho: How much the levels crowd towards sigma_min.
        sigma_data: Standard deviation of the data.
        table_dtype: Precision of its tables, float64 or float32.

    Attributes:
        levels: sigma, (T,), ascending.

    Raises:
        TypeError: If table_dtype is neither float64 nor float32.
        ValueError: If T is below 2, or a parameter is not positive or not ordered.

    Example:
        >>> import genkern
        >>> schedule = genkern.diffusion.EDMSchedule(3)
        >>> schedule.levels
        tensor([2.0000e-03, 2.5152e+00, 8.0000e+01], dtype=torch.float64)
    """

    prediction_types = ("edm", "epsilon", "sample")
    clean = 0.0
    highest = math.inf

    def __init__(
        self,
        T: int = 18,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        sigma_data: float = 0.5,
        table_dtype: torch.dtype = torch.float64,
    ) -> None:
        _check_arguments("EDMSchedule", T, table_dtype)
        for name, value in {
            "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho, "sigma_data": sigma_data,
        }.items():  # fmt: skip
            checks.number("EDMSchedule", name, value, checks.LEAST, expected="positive and finite")
        if not sigma_min < sigma_max:
            raise ValueError(
                "EDMSchedule: expected 0 < sigma_min < sigma_max < inf,"
                f" got {sigma_min} and {sigma_max}"
            )
        self.sigma_data = sigma_data
        low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
        ramp = torch.linspace(0.0, 1.0, T, dtype=torch.float64, device="cpu")
        self.levels = ((low + ramp * (high - low)) ** rho).to(table_dtype)
        super().__init__(self.levels)

    def model_input(self, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """What the network F takes: (c_in x_t, c_noise), Karras et al., table 1.

        Args:
            x_t: Noised data, (B, ...).
            t: Step or level.

        Returns:
            c_in x_t in x_t's dtype, and c_noise in float32 (float64), (B,).

        Raises:
            TypeError: If x_t is not floating point, or t of the wrong type.
            ValueError: If shapes or devices disagree.
            IndexError: If t is out of range.

        Example:
            >>> import torch, genkern
            >>> schedule = genkern.diffusion.EDMSchedule(18)
            >>> schedule.model_input(torch.ones(1, 2), 1.0)
            (tensor([[0.8944, 0.8944]]), tensor([0.]))
        """
        checks.floating("model_input", "x_t", x_t)
        c, index = self.rows("model_input", _coefficients.edm_input, (), t, x_t, x_t.dtype)
        # A copy: the schedule keeps the table, and results are the caller's to change.
        c_noise = (c.clone() if index is None else c[index.reshape(-1)])[:, 1]
        return ops.affine(x_t, None, None, None, None, c, index), c_noise.expand(x_t.shape[:1])

    def model_inputs(
        self,
        batch: int,
        prediction_type: str,
        timesteps: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """The level for a model of x0 or the noise, `model_input` for "edm"."""
        run = (tuple(timesteps), arithmetic(dtype), device)
        rows = self.steps(_coefficients.edm_input, (), *run)
        edm = prediction_type == "edm"
        times = rows[:, 1] if edm else self.steps(_coefficients.level, (), *run)[:, 0]
        each = times.unsqueeze(1).repeat(1, batch).unbind(0)
        if not edm:
            return lambda x, step: (x, each[step])
        scales = rows.split(1)
        scaled: list[Tensor] = []

        def inputs(x: Tensor, step: int) -> tuple[Tensor, Tensor]:
            if not scaled:
                scaled.append(torch.empty_like(x))
            ops.affine_out(x, None, None, None, None, scales[step], None, scaled[0])
            return scaled[0], each[step]

        return inputs

    def initial_scale(self, t: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The first level: x_T is that much noise."""
        return self.steps(_coefficients.level, (), (t,), arithmetic(dtype), device)[0]

    def path(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma."""
        return torch.ones_like(level), level

    def forms(self, level: Tensor, prediction_type: str) -> Forms:
        """Also "edm", the network F of D = c_skip x + c_out F."""
        if prediction_type != "edm":
            return super().forms(level, prediction_type)
        # With s = sigma_data and n = sqrt(sigma^2 + s^2): c_skip = s^2 / n^2, c_out = sigma s / n.
        s, n = self.sigma_data, (level**2 + self.sigma_data**2) ** 0.5
        return Forms(
            x0_x_t=(s / n) ** 2,
            x0_pred=level * s / n,
            noise_x_t=level / n**2,
            noise_pred=-s / n,
            target_x0=level / (s * n),
            target_noise=-s / n,
        )


def check_schedule(function: str, schedule: object) -> None:
    """Raises unless it is one."""
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"{function}: schedule must be a NoiseSchedule, FlowSchedule or EDMSchedule,"
            f" got {type(schedule).__name__}"
        )


def check_noise_schedule(function: str, schedule: object) -> None:
    """Raises unless it is a NoiseSchedule."""
    if not isinstance(schedule, NoiseSchedule):
        raise TypeError(
            f"{function}: schedule must be a NoiseSchedule, got {type(schedule).__name__}"
        )


def _check_arguments(function: str, T: int, table_dtype: torch.dtype) -> None:
    checks.integer(function, "T", T, 2)
    _check_table_dtype(function, table_dtype)


def _check_tables(function: str, betas: Tensor, alphas_cumprod: Tensor) -> None:
    for name, table in (("betas", betas), ("alphas_cumprod", alphas_cumprod)):
        if not isinstance(table, Tensor) or table.dtype not in _TABLE_DTYPES:
            got = table.dtype if isinstance(table, Tensor) else type(table).__name__
            raise TypeError(f"{function}: {name} must be a float64 or float32 tensor, got {got}")
        _check_table_shape(function, name, table)
    if betas.shape != alphas_cumprod.shape or not (betas.is_cpu and alphas_cumprod.is_cpu):
        raise ValueError(
            f"{function}: betas and alphas_cumprod must have one shape and be on the CPU,"
            f" got {tuple(betas.shape)} on {betas.device}"
            f" and {tuple(alphas_cumprod.shape)} on {alphas_cumprod.device}"
        )
    _check_betas(function, betas)
    _check_alphas_cumprod(function, alphas_cumprod)


def _check_table_shape(function: str, name: str, table: Tensor) -> None:
    if table.dim() != 1 or len(table) < 2:
        raise ValueError(
            f"{function}: {name} must have shape (T,), T at least 2, got {tuple(table.shape)}"
        )


def _check_table_dtype(function: str, table_dtype: torch.dtype) -> None:
    if table_dtype not in _TABLE_DTYPES:
        raise TypeError(
            f"{function}: table_dtype must be torch.float64 or torch.float32, got {table_dtype}"
        )


def _given(
    function: str, name: str, values: Any, table_dtype: torch.dtype
) -> tuple[Tensor, torch.device]:
    """A user's table on the CPU in the table's dtype, and where it was."""
    _check_table_dtype(function, table_dtype)
    try:
        table = torch.as_tensor(values, dtype=None if isinstance(values, Tensor) else table_dtype)
    except (TypeError, ValueError, RuntimeError):
        got = type(values).__name__
        raise TypeError(f"{function}: {name} must be a table of numbers, got {got}") from None
    if table.is_complex():
        raise TypeError(f"{function}: {name} must be real numbers, got {table.dtype}")
    _check_table_shape(function, name, table)
    return table.detach().to("cpu", table_dtype, copy=True), table.device


def _check_betas(function: str, betas: Tensor) -> None:
    wrong = ~((betas > 0.0) & (betas <= 1.0))
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(f"{function}: betas must be in (0, 1], got {betas[i]:g} at index {i}")


def _check_alphas_cumprod(function: str, a: Tensor) -> None:
    wrong = ~((a >= 0.0) & (a < 1.0))
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(f"{function}: alphas_cumprod must be in [0, 1), got {a[i]:g} at index {i}")
    wrong = a[1:] >= a[:-1]
    if wrong.any():
        i = int(wrong.nonzero()[0]) + 1
        raise ValueError(
            f"{function}: alphas_cumprod must be strictly decreasing,"
            f" got {a[i]:g} after {a[i - 1]:g} at index {i}"
        )
