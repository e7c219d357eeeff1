"""The error of a result in units in the last place, and its summary.

Results below four times the dtype's smallest normal number are not among them: there an ulp is a
subnormal number, and kernels that give 0 for e^x below 2^-125 are off by millions. Where the terms
are as small, the error is told in smallest normal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.numerics.sweep import calls
from genkern import testing
from genkern._ops.op import BACKENDS, Args, Op
from genkern.testing import Expected
from genkern.testing._common import real

Array = npt.NDArray[np.longdouble]
Outputs = tuple[Tensor | None, ...]


def ulp(value: Array, dtype: torch.dtype) -> Array:
    """The distance of a dtype's numbers at a value."""
    limits = torch.finfo(dtype)
    smallest = np.longdouble(limits.smallest_normal)
    binade = np.frexp(np.maximum(np.abs(value), smallest))[1] - 1
    return np.asarray(np.ldexp(np.longdouble(limits.eps), binade))


@dataclass
class Errors:
    """The errors of many results: in ulp of the result, and in ulp of the sum of its terms."""

    ulps: list[Array] = field(default_factory=list)
    terms: list[Array] = field(default_factory=list)
    tiny: float = 0.0
    lost: int = 0

    def add(self, out: Tensor | None, want: Expected) -> None:
        """Of one output of a call that asked for it."""
        assert out is not None
        limits = torch.finfo(out.dtype)
        value, scale = (np.broadcast_to(x, out.shape) for x in want)
        got, size = real(out), np.abs(value)
        # No smaller than the result: rounding it once costs half an ulp of it.
        terms = np.maximum(scale, size)
        # With terms beyond the largest number, or just below it, any result will do.
        inside, beyond = terms <= limits.max / 16, (size > limits.max) & (terms <= 2 * size)
        # Finite, and not found; or beyond the largest number, and no infinity of the same sign.
        self.lost += int((inside & ~np.isfinite(got)).sum())
        self.lost += int((beyond & ~(np.sign(value) * got >= limits.max)).sum())
        kept = inside & np.isfinite(got)
        error, least = np.abs(got - value), 4.0 * limits.smallest_normal
        tiny, kept = kept & (terms < least), kept & (size >= least)
        self.tiny = max(self.tiny, float(error[tiny].max(initial=0.0) / limits.smallest_normal))
        self.ulps.append(error[kept] / ulp(value[kept], out.dtype))
        self.terms.append(error[kept] / ulp(terms[kept], out.dtype))

    def summary(self) -> dict[str, float | int] | None:
        """Median, root mean square and worst."""
        ulps, terms = (np.concatenate(x).astype(float) for x in (self.ulps, self.terms))
        if not ulps.size:
            return None
        return {
            "values": ulps.size,
            "median": float(np.median(ulps)),
            "rms": float(np.sqrt((ulps**2).mean())),
            "worst": float(ulps.max()),
            "rms_of_terms": float(np.sqrt((terms**2).mean())),
            "worst_of_terms": float(terms.max()),
            # In smallest normal numbers.
            "worst_of_tiny": self.tiny,
            # NaN or infinite where the exact value is finite, or finite where it is not.
            "lost": self.lost,
        }


def native(op: Op, args: Args) -> Outputs:
    kernel = next(b for b in BACKENDS if b.name == "native").kernel(op, args)
    if isinstance(kernel, str):
        raise RuntimeError(f"{op.name}: the native backend is needed, {kernel}")
    result = kernel(*args)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _eager(op: Op, args: Args, dtypes: list[torch.dtype], dtype: torch.dtype) -> Outputs | None:
    """In the dtype of the data throughout, as PyTorch code runs; None where PyTorch cannot."""
    same = tuple(
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )
    try:
        result = testing._EAGER[op.name](*same)
    except (NotImplementedError, RuntimeError):
        return None
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    return tuple(None if o is None else o.to(d) for o, d in zip(outputs, dtypes, strict=True))


def measure(op: Op, dtype: torch.dtype, sweep: str, *, eager: bool = True) -> dict[str, Any]:
    """The errors of genkern's kernels and of eager PyTorch on the same inputs."""
    ours, theirs = Errors(), Errors()
    for args in calls(op, dtype, sweep):
        exact, got = testing.expected(op.name, args), native(op, args)
        plain = _eager(op, args, [g.dtype for g in got], dtype) if eager else None
        for i, want in enumerate(exact):
            if want is None:
                continue
            with np.errstate(all="ignore"):
                ours.add(got[i], want)
                if plain is not None and plain[i] is not None:
                    theirs.add(plain[i], want)
    found = {"genkern": ours.summary()}
    if theirs.ulps:
        found["eager"] = theirs.summary()
    return {"op": op.name, "dtype": str(dtype).removeprefix("torch."), "sweep": sweep, **found}
