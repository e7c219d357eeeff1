r"""What a backend has to meet: every operator's mathematics, written again, and the tolerance.

`expected` computes an operator in NumPy's extended precision (`numpy.longdouble`, at least float64)
from the definitions in docs/, without PyTorch and without the reference. `assert_conforms` compares
a result with it. A new backend passes when, for every operator, dtype and sample::

    assert_conforms(op.name, sample.args, backend.kernel(op, sample.args)(*sample.args))

The tolerance of an element is

.. math::  (2 e + \varepsilon) s + \tfrac12 \varepsilon_{out} |v|

with v the exact value, s its scale (the sum of the magnitudes of the terms that v is made of: what
a rounding of any of them costs) and :math:`\varepsilon` the epsilon of the arithmetic, float32 or
float64. e is the error, in units of s, of the plain PyTorch expression that the operator replaces,
at the arithmetic's dtype: the worst over the operator's samples, since on a few elements it can be
accurate by chance. :math:`\varepsilon_{out} / 2` is the one rounding to the output's dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

import genkern.backends  # noqa: F401  (completes the registry)
from genkern._ops.op import OPS, Args, Sample
from genkern.testing import _diffusion, _gan, _random, _vae
from genkern.testing._common import Expected, arithmetic, real
from genkern.testing._random import key_words, philox4x32, standard_normal

__all__ = [
    "Expected",
    "assert_conforms",
    "eager",
    "expected",
    "philox4x32",
    "samples",
    "standard_normal",
    "tolerances",
]

# A family's module has the exact values and the eager expressions of its operators, by name.
_EXPECTED = _random.EXPECTED | _vae.EXPECTED | _diffusion.EXPECTED | _gan.EXPECTED
_EAGER = _random.EAGER | _vae.EAGER | _diffusion.EAGER | _gan.EAGER


def samples(op: str, device: torch.device | str, dtype: torch.dtype) -> Iterator[Sample]:
    """Representative calls of an operator: every layout, reduction, kind of noise and prior.

    Args:
        op: The operator's name.
        device: Device of the tensors.
        dtype: Their dtype.

    Returns:
        An iterator over samples with a name (`id`) and arguments (`args`).
    """
    return OPS[op].samples(torch.device(device), dtype)


def expected(op: str, args: Args) -> list[Expected | None]:
    """The exact outputs of a call.

    Args:
        op: The operator's name.
        args: Its arguments, as in its schema.

    Returns:
        One item an output; None for one that the call does not ask for.
    """
    with np.errstate(all="ignore"):
        return _EXPECTED[op](*args)


def eager(op: str, args: Args) -> tuple[Tensor | None, ...]:
    """What PyTorch code without this package computes, in float32 (float64 for float64 inputs).

    Args:
        op: The operator's name; the integer operators and `uniform` have no rounding to compare.
        args: Its arguments.

    Returns:
        The outputs, unrounded; None for a gradient that PyTorch did not compute.
    """
    wide = tuple(
        a.to(arithmetic(a.dtype)) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in args
    )
    result = _EAGER[op](*wide)
    return result if isinstance(result, tuple) else (result,)


@functools.cache
def tolerances(op: str, dtype: torch.dtype) -> tuple[float, ...]:
    """2 e + epsilon for each output of an operator: see the module's text.

    Args:
        op: The operator's name.
        dtype: The dtype of its tensors.

    Returns:
        One number an output, in units of `Expected.scale`.
    """
    if op not in _EAGER:  # exact
        return (0.0,)
    worst: list[float] = []
    for sample in samples(op, "cpu", dtype):
        outputs, exact = eager(op, sample.args), expected(op, sample.args)
        worst = worst or [0.0] * len(exact)
        for i, (out, want) in enumerate(zip(outputs, exact, strict=True)):
            if out is not None and want is not None and want.value.size:
                error = np.abs(real(out) - want.value)
                ratio = np.divide(error, want.scale, out=np.zeros_like(error), where=error > 0)
                worst[i] = max(worst[i], float(ratio.max()))
    return tuple(2.0 * e + torch.finfo(arithmetic(dtype)).eps for e in worst)


def _mismatch(out: Tensor, want: Expected, tolerance: float, rounding: float) -> str | None:
    if tuple(out.shape) != want.value.shape:
        return f"expected shape {want.value.shape}, got {tuple(out.shape)}"
    if not out.is_floating_point():
        wrong = key_words(out) != want.value
        return f"{wrong.sum()} of {wrong.size} integers differ" if wrong.any() else None
    limits = torch.finfo(out.dtype)
    with np.errstate(all="ignore"):
        overflow = np.abs(want.value) > limits.max
        value = np.where(overflow, np.copysign(np.inf, want.value), want.value)
        subnormal = limits.smallest_normal * limits.eps
        allowed = tolerance * want.scale + rounding * limits.eps * np.abs(value) + subnormal
        got = real(out)
        same = (got == value) | (np.isnan(got) & np.isnan(value))
        excess = np.where(same, 0, np.abs(got - value) / allowed)
    excess = np.where(np.isnan(excess), np.inf, excess)
    if not excess.size or excess.max() <= 1:
        return None
    at = np.unravel_index(int(excess.argmax()), excess.shape)
    where = tuple(int(n) for n in at)
    return (
        f"{int((excess > 1).sum())} of {excess.size} elements are off, the worst at {where}:"
        f" expected {want.value[where]:.17g} within {float(np.asarray(allowed)[where]):.3g},"
        f" got {got[where]:.17g}"
    )


def assert_conforms(
    op: str, args: Args, result: Tensor | Sequence[Tensor], *, rounding: float = 0.5
) -> None:
    """Raises unless the result of a call is right, within the tolerance of the module's text.

    Args:
        op: The operator's name.
        args: The call's arguments.
        result: What the backend returned.
        rounding: Error of the last rounding, in epsilons of the output's dtype: 1.0 for a tool
            that truncates, as Triton's interpreter does to bfloat16.

    Raises:
        AssertionError: With the worst element of the first wrong output.
    """
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    exact = expected(op, args)
    # The data's, which is the narrowest: coefficients and upstream gradients may be wider.
    floating = [a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    dtypes = floating or [a for a in args if isinstance(a, torch.dtype)] or [torch.float32]
    dtype = min(dtypes, key=lambda d: d.itemsize)
    for i, (out, want, tolerance) in enumerate(
        zip(outputs, exact, tolerances(op, dtype), strict=True)
    ):
        problem = None if want is None else _mismatch(out, want, tolerance, rounding)
        if problem:
            raise AssertionError(f"{op}, output {i}: {problem}")
