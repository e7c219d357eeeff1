"""Inputs over the whole range of a dtype, put into the calls of the operators' specs.

A spec's calls of 3 x 5000 elements are taken as they are, with every reduction changed to `none`
(each kind of prior, of loss and of noise is in them), and their data are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genkern import testing
from genkern._ops.elements import NONE
from genkern._ops.op import OPS, Args, Op

Array = npt.NDArray[np.float64]
Generator = np.random.Generator
# One sweep: the values of `count` tensors of n elements.
Sweep = Callable[[Generator, torch.dtype, int, int], list[Array]]

_SHAPE = (3, 5000)
# The rows of these are reduced in any case, and their upstream gradients are one a row.
_BY_ROW = ("gradient_penalty",)


def generator_of(name: str) -> Generator:
    """The generator of a sweep: its numbers depend on the name alone."""
    return np.random.default_rng(list(name.encode()))


def _powers(rng: Generator, low: float, high: float, n: int) -> Array:
    """Numbers of either sign, uniform in the logarithm."""
    return rng.choice((-1.0, 1.0), n) * np.exp2(rng.uniform(low, high, n))


def _standard(rng: Generator, dtype: torch.dtype, count: int, n: int) -> list[Array]:
    return [rng.standard_normal(n) for _ in range(count)]


def _exponents(rng: Generator, dtype: torch.dtype, count: int, n: int) -> list[Array]:
    """Every exponent there is, subnormal numbers among them."""
    limits = torch.finfo(dtype)
    low = np.log2(limits.smallest_normal * limits.eps)
    return [_powers(rng, low, np.log2(limits.max), n) for _ in range(count)]


def _moderate(rng: Generator, dtype: torch.dtype, count: int, n: int) -> list[Array]:
    """2^-30 to 2^7: where exponentials are neither 1 nor infinite."""
    return [_powers(rng, -30.0, 7.0, n) for _ in range(count)]


def _close(rng: Generator, dtype: torch.dtype, count: int, n: int) -> list[Array]:
    """Tensors that differ from one another by a factor near 1, down to the last digit."""
    shared = _powers(rng, -8.0, 6.0, n)
    spread = np.exp2(rng.uniform(np.log2(torch.finfo(dtype).eps), 0.0, n))
    return [shared * (1.0 + spread * rng.standard_normal(n)) for _ in range(count)]


def _special(rng: Generator, dtype: torch.dtype, count: int, n: int) -> list[Array]:
    """Zeros, the least numbers, bounds of options, limits of exponentials, and just below them."""
    limits = torch.finfo(dtype)
    tiny = limits.smallest_normal
    points = [0.0, tiny * limits.eps, tiny, limits.eps, 1.0 / 255.0, 0.25, 0.5, 0.999, 1.0, 1.5]
    points += [2.0, 20.0, 30.0, 87.0, 88.0, 88.72, 103.97, 709.0, 745.0]
    values = rng.choice((-1.0, 1.0), (count, n)) * rng.choice(points, (count, n))
    return list(values * (1.0 + limits.eps * rng.integers(-4, 1, (count, n))))


SWEEPS: dict[str, Sweep] = {
    "standard normal": _standard,
    "all exponents": _exponents,
    "2^-30 to 2^7": _moderate,
    "close to one another": _close,
    "special values": _special,
}


def operators() -> list[Op]:
    """Those that round: integers and uniforms are exact, and an `out=` form is the same kernel."""
    return [
        op
        for op in OPS.values()
        if op.name in testing._EAGER and op.name != "normal" and op.overload._schema.returns
    ]


def _swept(op: Op, args: Args, dtype: torch.dtype, sweep: Sweep, rng: Generator) -> Args:
    names = [a.name for a in op.overload._schema.arguments]
    found: list[Any] = list(args)
    unreduced = "reduction" in names and not op.name.startswith(_BY_ROW)
    if unreduced:
        found[names.index("reduction")] = NONE
    places = []
    for i, (name, value) in enumerate(zip(names, args, strict=True)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if name in ("grad", "grad_kl") and unreduced:
            # 1/2 adds no rounding of its own.
            found[i] = value.new_full((), 0.5).to(dtype).expand(_SHAPE)
        elif value.shape == _SHAPE and name not in ("grad", "grad_z"):
            places.append(i)
    limit = torch.finfo(dtype).max
    n = _SHAPE[0] * _SHAPE[1]
    for i, values in zip(places, sweep(rng, dtype, len(places), n), strict=True):
        finite = torch.from_numpy(values.clip(-limit, limit)).to(dtype)
        found[i] = finite.reshape(_SHAPE)
    return tuple(found)


def calls(op: Op, dtype: torch.dtype, sweep: str) -> Iterator[Args]:
    """The calls of an operator with one sweep's values."""
    rng = generator_of(sweep + op.name)
    for sample in op.samples(torch.device("cpu"), dtype):
        if "large" in sample.id:
            yield _swept(op, sample.args, dtype, SWEEPS[sweep], rng)
