"""A backend that runs each operator twice, natively and as the reference, and compares."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genkern import testing
from genkern._ops.elements import SUM
from genkern._ops.op import BACKENDS, Args, Backend, Kernel, Op, choosing
from genkern.testing._common import arithmetic, real
from genkern.testing._random import key_words


def outputs(result: Any) -> tuple[Tensor, ...]:
    """A call's tensors."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def strides(x: Tensor) -> tuple[int, ...]:
    """The strides that matter: those that are multiplied by something."""
    return tuple(s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1) if x.numel() else ()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    word = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(word), b.contiguous().view(word))


def _dtype(args: Args) -> torch.dtype:
    floating = [a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    dtypes = floating or [a for a in args if isinstance(a, torch.dtype)] or [torch.float32]
    return min(dtypes, key=lambda d: d.itemsize)


def _tolerances(op: Op, args: Args, output: int, want: testing.Expected) -> Iterator[float]:
    """Those of genkern.testing, in units of the scale, the quickly found ones first.

    All are of the form 2 e + epsilon, with e the error of the plain PyTorch expression: none, the
    one in this call, the worst in the operator's samples.
    """
    if op.name == "uniform":  # exact
        yield 0.0
        return
    epsilon = torch.finfo(arithmetic(_dtype(args))).eps
    yield epsilon
    yield 2.0 * _eager_error(op, args, output, want) + epsilon
    yield testing.tolerances(op.name, _dtype(args))[output]


def _eager_error(op: Op, args: Args, output: int, want: testing.Expected) -> float:
    """The error of the plain PyTorch expression in this call, in units of the scale."""
    found = testing.eager(op.name, args)[output]
    if found is None:
        return 0.0
    error = np.abs(real(found) - want.value)
    ratio = np.divide(error, want.scale, out=np.zeros_like(error), where=error > 0)
    return float(np.nanmax(np.where(np.isfinite(ratio), ratio, 0), initial=0.0))


def _off(
    x: Tensor, want: testing.Expected, tolerance: float, lost: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Where a result is off, and what is allowed. Only finite values are judged."""
    limits = torch.finfo(x.dtype)
    got = real(x)
    allowed = (
        tolerance * want.scale
        + 0.5 * limits.eps * np.abs(want.value)
        + max(limits.smallest_normal * limits.eps, lost)
    )
    finite = np.isfinite(got) & np.isfinite(want.value) & np.isfinite(allowed)
    return finite & (np.abs(got - want.value) > allowed), allowed


# Outside, squares and exponentials over- and underflow, where the exact values do not.
_ORDINARY = (1e-4, 40.0)
# An infinite coefficient is taken for the largest number: docs/robustness.md.
_SATURATED = ("gradient_penalty_backward", "gradient_penalty_backward_backward")
# float32 values below may come as 0: docs/gan.md. A factor can enlarge what is lost.
_LOST = 1e-37


def _ordinary(args: Args) -> bool:
    """Whether all numbers of a call are zero or of moderate size."""
    for a in args:
        if isinstance(a, Tensor) and a.is_floating_point() and a.numel():
            x = np.abs(real(a))
            if not ((x == 0) | ((x > _ORDINARY[0]) & (x < _ORDINARY[1]))).all():
                return False
    return True


def _lost(args: Args) -> float:
    if arithmetic(_dtype(args)) == torch.float64:
        return 0.0
    floating = [real(a) for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    finite = [x[np.isfinite(x)] for x in floating]
    return _LOST * max([1.0, *(float(np.abs(x).max()) for x in finite if x.size)])


def _class(x: np.ndarray) -> np.ndarray:
    """0 for a finite number, 1 and -1 for the infinities, 2 for NaN."""
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0))


def _terms_scale(op: Op, args: Args, index: int, want: testing.Expected) -> np.ndarray:
    """The largest that the terms of a result come to together: of a mean, before it is divided."""
    names = [a.name for a in op.overload._schema.arguments]
    if want.value.ndim or "reduction" not in names:
        return want.scale
    summed = tuple(SUM if n == "reduction" else a for n, a in zip(names, args, strict=True))
    whole = testing.expected(op.name, summed)[index]
    assert whole is not None
    return whole.scale


def _output_problem(
    op: Op, args: Args, index: int, got: Tensor, reference: Tensor, want: testing.Expected
) -> str | None:
    if tuple(got.shape) != want.value.shape:
        return f"shape {tuple(got.shape)}, expected {want.value.shape}"
    if not got.is_floating_point():
        return None if np.array_equal(key_words(got), want.value) else "other integers"
    first, second = _class(real(got)), _class(real(reference))
    unlike = first != second
    if unlike.any():
        # A result that rounds to infinity in one and to the largest number in the other is none.
        limit = torch.finfo(got.dtype).max * (1.0 - 4.0 * torch.finfo(got.dtype).eps)
        # Nor is one whose terms do: infinity less infinity depends on their order.
        scale = _terms_scale(op, args, index, want)
        in_range = (np.abs(want.value) < limit) & (scale < limit)
        infinite = np.isinf(want.value) & (op.name not in _SATURATED)
        # So does what is not a number in the exact order.
        finite_in_one = np.isnan(want.value) & ((first == 0) != (second == 0))
        unlike &= in_range | infinite | finite_in_one
    if unlike.any():
        at = tuple(map(int, np.argwhere(unlike)[0]))
        values = [float(x[at]) for x in (real(got), real(reference), want.value)]
        return "at {}: native gives {}, the reference {}, exact is {}".format(at, *values)
    for name, x in (("native", got), ("reference", reference)):
        for tolerance in _tolerances(op, args, index, want):
            off, allowed = _off(x, want, tolerance)
            if not off.any():
                break
        else:
            if name == "native" and not _ordinary(args):
                # Then it has to be what the reference gives, or exact where that overflows.
                value = np.where(second == 0, real(reference), want.value)
                other = testing.Expected(value, want.scale)
                off, allowed = _off(x, other, 2 * tolerance, _lost(args))
                if not off.any():
                    return None
            at = tuple(map(int, np.argwhere(off)[0]))
            return (
                f"{name} is off at {at}: expected {float(want.value[at]):.17g} within"
                f" {float(np.asarray(allowed)[at]):.3g}, got {float(real(x)[at]):.17g}"
            )
    return None


def problem(op: Op, args: Args, native: Any, reference: Any) -> str | None:
    """What is wrong with the two results of one call, if anything is."""
    # The plain expressions differentiate, and may be run inside a function without gradients.
    with np.errstate(all="ignore"), torch.enable_grad():
        exact = testing.expected(op.name, args)
        for i, (got, other, want) in enumerate(
            zip(outputs(native), outputs(reference), exact, strict=True)
        ):
            if want is None:
                continue
            if other.shape == (0,) != want.value.shape:
                # The gradient of a tensor that is not there, asked for all the same.
                want = testing.Expected(np.zeros(0), np.zeros(0))
            if (got.shape, got.dtype) != (other.shape, other.dtype):
                return f"output {i}: {got.dtype} {got.shape} and {other.dtype} {other.shape}"
            # What is written keeps its strides.
            made = op.overload._schema.returns
            if made and strides(got) != strides(other):
                return f"output {i}: strides {got.stride()} and {other.stride()}"
            found = _output_problem(op, args, i, got, other, want)
            if found:
                return f"output {i}: {found}"
    return None


class ComparingBackend(Backend):
    """Gives the native result after comparing it with the reference's and the exact one."""

    name = "comparing"

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self._native = next(b for b in BACKENDS if b.name == "native")

    def kernel(self, op: Op, args: Args) -> Kernel | str:
        native = self._native.kernel(op, args)
        if isinstance(native, str):
            return native

        def run(*args: Any) -> Any:
            if op.overload._schema.returns:
                result, reference = native(*args), op.reference(*args)
            else:
                # The last argument is written, and may be an input.
                kept = tuple(a.clone() if a is not None and a is args[-1] else a for a in args)
                op.reference(*kept)
                before = tuple(a.clone() if a is not None and a is args[-1] else a for a in args)
                native(*args)
                result, reference, args = args[-1], kept[-1], before
            self.compared[op.name] += 1
            try:
                found = problem(op, args, result, reference)
            except Exception as error:  # which a caller would take for the operator's
                raise AssertionError(f"{op.name}: no exact values: {error!r}") from error
            if found:
                raise AssertionError(f"{op.name}: {found}")
            return None if not op.overload._schema.returns else result

        return run


@contextlib.contextmanager
def comparing() -> Iterator[ComparingBackend]:
    """Chooses a comparing backend, which exists within this context."""
    backend = ComparingBackend()
    BACKENDS.insert(0, backend)
    try:
        with choosing(backend.name):
            yield backend
    finally:
        BACKENDS.remove(backend)
