"""Which kernels run a call, and why.

In the order of preference: `native` (the C++ library on CPUs, the CUDA one on NVIDIA GPUs),
`triton` (GPUs), `reference` (PyTorch, everywhere).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from genkern import _native
from genkern._ops.checks import one_of
from genkern._ops.op import BACKENDS, OPS, Args, Backend, Op, choosing

__all__ = ["explain", "use_backend"]


def _device(args: Args) -> torch.device:
    return next(a.device for a in args if isinstance(a, Tensor))


class NativeBackend(Backend):
    """The libraries libgenkern_cpu and libgenkern_cuda."""

    name = "native"

    def __init__(self) -> None:
        self._kernels: dict[tuple[str, str], Callable[..., Any]] = {}

    def refuses(self, op: Op, args: Args) -> str | None:
        device = _device(args).type
        if (op.name, device) in self._kernels:
            return None
        reason = _native.unavailable_reason(device)
        if reason is not None:
            return reason
        try:
            kernel = getattr(getattr(torch.ops, f"_genkern_{device}"), op.name).default
        except AttributeError:
            return f"libgenkern_{device}.so has no {op.name}"
        self._kernels[op.name, device] = kernel
        return None

    def run(self, op: Op, args: Args) -> Any:
        return self._kernels[op.name, _device(args).type](*args)


def _triton_launch() -> ModuleType:
    return importlib.import_module("genkern._triton.launch")


@functools.cache
def _triton_missing() -> str | None:
    reason: str | None = _triton_launch().unavailable_reason()
    return reason


class TritonBackend(Backend):
    """The Triton kernels, imported when first used."""

    name = "triton"

    def refuses(self, op: Op, args: Args) -> str | None:
        reason: str | None = _triton_missing() or _triton_launch().refuses(*args)
        if reason is None and self._kernel(op) is None:
            return f"there is no Triton kernel of {op.name}"
        return reason

    def run(self, op: Op, args: Args) -> Any:
        kernel = self._kernel(op)
        if kernel is None:
            raise NotImplementedError(f"{op.name}: there is no Triton kernel")
        return kernel(*args)

    @staticmethod
    def _kernel(op: Op) -> Callable[..., Any] | None:
        family = op.reference.__module__.rsplit(".", 1)[-1]
        return getattr(importlib.import_module(f"genkern._triton.{family}"), op.name, None)


BACKENDS[:0] = [NativeBackend(), TritonBackend()]


def use_backend(name: str | None) -> AbstractContextManager[None]:
    """Chooses the backend for the calls in a `with` block.

    A call that the chosen backend cannot run raises NotImplementedError with every backend's
    reason. The environment variable GENKERN_BACKEND chooses for the process. Under torch.compile
    the choice that counts is the one in force when the compiled code runs.

    Args:
        name: "native", "triton" or "reference"; None for the first that can.

    Raises:
        ValueError: If there is no such backend.

    Example:
        >>> import genkern
        >>> with genkern.use_backend("reference"):
        ...     genkern.random.normal(genkern.random.key(42), 2)
        tensor([-0.9702,  0.1940])
    """
    if name is not None:
        one_of("use_backend", "name", name, (backend.name for backend in BACKENDS))
    return choosing(name)


def explain(op: str | Callable[..., Any], *args: Any) -> str:
    """Tells which backends can run a call, and why the others cannot.

    Args:
        op: An operator's name, such as "rsample_kl", or the public function of that name.
        args: The call's arguments, or as many tensors of it as are known.

    Returns:
        One line for the tensors, one a backend in the order of preference.

    Raises:
        ValueError: If there is no such operator.

    Example:
        >>> import torch, genkern
        >>> x = torch.zeros(2, 3)
        >>> print(genkern.explain("kl", x, x).splitlines()[0])
        genkern.kl: float32 (2, 3) on cpu, float32 (2, 3) on cpu
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", str(op))
    one_of("explain", "op", name, OPS)
    if not any(isinstance(a, Tensor) for a in args):
        raise ValueError(f"explain: expected at least one tensor argument of {name}, got none")
    return OPS[name].explain(args)
