"""Which kernels run a call, and why.

In the order of preference: `native` (the C++ library on CPUs, the CUDA one on NVIDIA GPUs),
`triton` (GPUs), `reference` (PyTorch, everywhere).
"""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from genkern import _native
from genkern._ops.checks import one_of
from genkern._ops.op import BACKENDS, OPS, Args, Backend, Kernel, Op, choosing

__all__ = ["explain", "use_backend"]


class NativeBackend(Backend):
    """The libraries libgenkern_cpu and libgenkern_cuda."""

    name = "native"

    def __init__(self) -> None:
        self._found: defaultdict[str, dict[str, Kernel]] = defaultdict(dict)
        # The operators of the native libraries have no autograd of their own: pass through.
        self._libraries: dict[str, torch.library.Library] = {}
        # Those whose shapes compiled code can ask for.
        self._fakes: set[str] = set()

    def kernel(self, op: Op[Any], args: Args) -> Kernel | str:
        for a in args:
            if isinstance(a, Tensor):
                device = "cpu" if a.is_cpu else a.device.type
                return self._found[device].get(op.name) or self._find(op, device)
        return "no argument is a tensor"

    def cpu_operator(self, op: Op[Any]) -> torch._ops.OpOverload | None:
        if op.name not in self._found["cpu"] and isinstance(self._find(op, "cpu"), str):
            return None
        if op.name not in self._fakes:
            library = self._libraries["_genkern_cpu"]
            torch.library.register_fake(f"_genkern_cpu::{op.name}", op.fake, lib=library)
            self._fakes.add(op.name)
        return getattr(torch.ops._genkern_cpu, op.name).default  # type: ignore[no-any-return]

    def _find(self, op: Op[Any], device: str) -> Kernel | str:
        reason = _native.unavailable_reason(device)
        if reason is not None:
            return reason
        namespace = f"_genkern_{device}"
        try:
            # The overload's own callable: its __call__ would only forward.
            kernel: Kernel = getattr(getattr(torch.ops, namespace), op.name).default._op
        except AttributeError:
            return f"libgenkern_{device}.so has no {op.name}"
        library = self._libraries.setdefault(namespace, torch.library.Library(namespace, "IMPL"))
        library.impl(op.name, torch.library.fallthrough_kernel, "Autograd")
        self._found[device][op.name] = kernel
        return kernel


@functools.cache
def _triton_launch() -> ModuleType | str:
    """The module that launches Triton kernels, or why it cannot be used."""
    launch = importlib.import_module("genkern._triton.launch")
    return launch.unavailable_reason() or launch


class TritonBackend(Backend):
    """The Triton kernels, imported when first used."""

    name = "triton"

    def kernel(self, op: Op[Any], args: Args) -> Kernel | str:
        launch = _triton_launch()
        if isinstance(launch, str):
            return launch
        reason: str | None = launch.refuses(*args)
        if reason is not None:
            return reason
        # An operator that writes to `out` is of the family of the one it is made from.
        of_family = OPS[op.name.removesuffix("_out")]
        family = of_family.reference.__module__.rsplit(".", 1)[-1]
        kernel: Kernel | None = getattr(
            importlib.import_module(f"genkern._triton.{family}"), op.name, None
        )
        return kernel or f"there is no Triton kernel of {op.name}"


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
        one_of("use_backend", "name", name, [backend.name for backend in BACKENDS])
    return choosing(name)


# The operators that each public function runs, with some options at least.
_STEP = ("sampler_step", "sampler_step_out", "guidance_factor", "dynamic_threshold")
OPERATORS: dict[str, tuple[str, ...]] = {
    # genkern.random
    "normal": ("normal",),
    "uniform": ("uniform",),
    "split": ("split",),
    "fold_in": ("fold_in",),
    "key": (),
    "new_key": (),
    # genkern.vae
    "rsample": ("rsample",),
    "kl": ("kl",),
    "rsample_kl": ("rsample_kl",),
    "bernoulli_nll": ("bernoulli_nll",),
    "gaussian_nll": ("gaussian_nll",),
    "elbo_loss": ("bernoulli_nll", "gaussian_nll", "kl"),
    "kl_weight": (),
    "active_units": (),
    "DiagonalGaussian.sample": ("rsample",),
    "DiagonalGaussian.mode": (),
    "DiagonalGaussian.kl": ("kl",),
    "DiagonalGaussian.nll": ("gaussian_nll",),
    # genkern.diffusion
    "q_sample": ("affine",),
    "noise_loss": ("noise_loss", "normal"),
    "q_posterior": ("affine",),
    "predict_x0": ("affine",),
    "score": ("affine",),
    "ddpm_step": _STEP,
    "ddim_step": _STEP,
    "vlb_terms": ("vlb", "normal"),
    "hybrid_loss": ("vlb", "normal"),
    "prior_kl": ("noise_loss",),
    "sample": ("split", "normal", "sampler_step_out", "affine_out"),
    "EDMSchedule.model_input": ("affine",),
    # genkern.gan
    "discriminator_loss": ("discriminator_loss",),
    "generator_loss": ("generator_loss",),
    "gradient_penalty": ("gradient_penalty",),
    "r1_penalty": ("gradient_penalty",),
    "interpolate": ("interpolate",),
    "optimal_discriminator": ("optimal_discriminator",),
    "js_divergence": ("discriminator_loss",),
    "clip_weights_": (),
}


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Tells which backends can run a call, and why the others cannot.

    Args:
        op: A public function or its name, such as "rsample_kl", or the name of an operator.
        args: The call's arguments, or as many tensors of it as are known. Without a tensor, the
            device of a schedule or a generator counts.
        kwargs: The call's keyword arguments, likewise.

    Returns:
        The operators that the function may run, if they are not just the one of its name; then,
        for each, one line for the tensors and one a backend, in the order of preference.

    Raises:
        ValueError: If there is no such function or operator, or neither a tensor nor a device.

    Example:
        >>> import torch, genkern
        >>> x = torch.zeros(2, 3)
        >>> print(genkern.explain("kl", x, x).splitlines()[0])
        genkern.kl: float32 (2, 3) on cpu, float32 (2, 3) on cpu
        >>> print(genkern.explain(genkern.gan.r1_penalty, x).splitlines()[0])
        genkern.r1_penalty runs gradient_penalty
    """
    name = op if isinstance(op, str) else getattr(op, "__qualname__", repr(op))
    if name not in OPS:
        one_of("explain", "op", name, OPERATORS)
    names = OPERATORS.get(name, (name,))
    if not names:
        return f"genkern.{name} runs no operator: it is plain Python, or PyTorch on any device"
    # A bound method's tensors are its object's.
    owner = getattr(op, "__self__", None)
    values = [*args, *kwargs.values(), *(vars(owner).values() if owner is not None else ())]
    tensors = [a for a in values if isinstance(a, Tensor)]
    if not tensors:
        devices = [a.device for a in values if hasattr(a, "device")]
        if not devices:
            raise ValueError(f"explain: expected at least one tensor argument of {name}, got none")
        tensors = [torch.empty(0, device=devices[0])]
    lines = [] if names == (name,) else [f"genkern.{name} runs {', '.join(names)}"]
    return "\n".join([*lines, *(OPS[n].explain(tuple(tensors)) for n in names)])
