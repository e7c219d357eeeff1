"""One operator: its schema, fake, autograd, vmap rule and the choice of a backend."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from genkern._ops.elements import arithmetic

Args = tuple[Any, ...]
Backward = Callable[..., tuple[Tensor | None, ...]]
R = TypeVar("R")  # what an operator returns: a tensor, or a tuple of them

try:
    library = torch.library.Library("genkern", "DEF")
except RuntimeError as error:
    raise ImportError("genkern: a process can import one copy, another is imported") from error

OPS: dict[str, Op[Any]] = {}


@dataclass(frozen=True)
class Sample:
    """One call of an operator, for tests, opcheck and benchmarks."""

    id: str
    args: Args


Kernel = Callable[..., Any]


class Backend:
    """A source of kernels.

    What it refuses is a function of the arguments alone (and of what is installed): preferences
    belong to `use_backend`.
    """

    name: str

    def kernel(self, op: Op[Any], args: Args) -> Kernel | str:
        """The kernel for a call, or the reason why there is none."""
        raise NotImplementedError

    def refuses(self, op: Op[Any], args: Args) -> str | None:
        """The reason why this backend cannot run the call, or None."""
        kernel = self.kernel(op, args)
        return kernel if isinstance(kernel, str) else None

    def cpu_operator(self, op: Op[Any]) -> torch._ops.OpOverload | None:
        """An operator that is the kernel for every call on a CPU, for compiled code."""
        return None


class ReferenceBackend(Backend):
    """The operator's definition in PyTorch: any device, any shape."""

    name = "reference"

    def kernel(self, op: Op[Any], args: Args) -> Kernel | str:
        return op.reference


# In the order of preference; genkern.backends inserts the others before the reference.
BACKENDS: list[Backend] = [ReferenceBackend()]

# The name of the chosen backend; None for the first that can. The variable is read once, since
# every call asks.
_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "genkern_backend", default=os.environ.get("GENKERN_BACKEND") or None
)


# Whether any thread may have chosen: compiled code is compiled once for each answer. The count is
# never too small, even where a signal interrupts.
_may_choose = _chosen.get() is not None
_choices = int(_may_choose)
_counting = threading.Lock()


def _count_choices(difference: int) -> None:
    global _choices, _may_choose
    with _counting:
        _choices += difference
        _may_choose = _choices > 0


@contextlib.contextmanager
def choosing(name: str | None) -> Iterator[None]:
    """Sets the chosen backend in this context."""
    _count_choices(1)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
        _count_choices(-1)


def is_plain_cpu(x: Tensor) -> bool:
    """Whether x is a plain tensor on a CPU, in plain eager, with no backend chosen."""
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and _chosen.get() is None
        and not (_compiling() or _dispatch_modes())
        and _functorch_level() is None
    )


class _EagerFunction(torch.autograd.Function):
    """Autograd in plain eager: half the overhead of `register_autograd`."""

    @staticmethod
    def forward(ctx: Any, op: Op[Any], *args: Any) -> Any:
        op._save(ctx, args)
        return op._route(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return (None, *ctx.call[0]._backward(ctx, grads, ctx.needs_input_grad[1:]))


def _over(grad: Tensor, like: Tensor) -> Tensor:
    """An upstream gradient of one number, or of one a sample, in a shape that broadcasts."""
    if grad.dim() == 0 or like.dim() == grad.dim():
        return grad
    return grad.reshape((*grad.shape, *[1] * (like.dim() - grad.dim())) if like.dim() else ())


class _FormingFunction(torch.autograd.Function):
    """Autograd in plain eager of a loss that forms its gradients with its value."""

    @staticmethod
    def forward(ctx: Any, op: Op[Any], *args: Any) -> Any:
        made = op.forming._route(*args)  # type: ignore[union-attr]
        op._save(ctx, args)
        # Not among the saved tensors: what a backward pass hands out is its receiver's to change.
        ctx.formed = made[1:]
        return made[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        needs = ctx.needs_input_grad
        # Where the gradient has to be differentiable, or is asked for a second time: by the
        # formula, as if it were not there.
        formed = None if _grad_enabled() else vars(ctx).pop("formed", None)
        op = ctx.call[0]
        if grad is None or formed is None:
            return (None, *op._backward(ctx, (grad,), needs[1:]))
        found: list[Tensor | None] = [None] * len(needs)
        # Reading a number of the CPU costs nothing, and it is 1 wherever a loss is the last step.
        scaled = grad.dim() or grad.item() != 1.0
        for i, g in enumerate(formed, 1):
            if needs[i]:
                found[i] = g.mul_(_over(grad, g)) if scaled else g
        return tuple(found)


class _FunctorchFunction(torch.autograd.Function):
    """Autograd under torch.func transforms, which refuse the other two forms."""

    @staticmethod
    def forward(op: Op[Any], *args: Any) -> Any:
        return op.overload(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Args, output: Any) -> None:
        inputs[0]._save(ctx, inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return (None, *ctx.call[0]._backward(ctx, grads, ctx.needs_input_grad[1:]))

    @staticmethod
    def vmap(info: Any, in_dims: Args, op: Op[Any], *args: Any) -> tuple[Any, Any]:
        return op._vmap(info, in_dims[1:], *args)


# `apply` without a second look for torch.func's transforms, a quarter of a small call's time.
_eager = super(torch.autograd.Function, _EagerFunction).apply
_forming = super(torch.autograd.Function, _FormingFunction).apply

_FORMING = (torch.float32, torch.float64, torch.bfloat16)

# Looked up once: a small call is made of little else.
_compiling = torch.compiler.is_compiling
_exporting = torch.compiler.is_exporting
_grad_enabled = torch.is_grad_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.peek_interpreter_stack


def _finite(args: Args) -> Args:
    """No bound as the largest number: PyTorch cannot load an AOTInductor package with infinity."""
    dtypes = [a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    if not dtypes:
        return args
    largest = torch.finfo(arithmetic(dtypes[0])).max
    return tuple(
        math.copysign(largest, a) if isinstance(a, float) and math.isinf(a) else a for a in args
    )


# Types whose calls no one else wants to see.
_PLAIN = (Tensor, torch.nn.Parameter)


class Op(Generic[R]):
    """An operator `genkern::<name>`.

    Args:
        schema: The operator's schema, the same for every backend.
        reference: The definition: tensor-only PyTorch, arithmetic in float32 (float64).
        fake: Shapes, dtypes and strides of the outputs.
        samples: `samples(device, dtype)` yields representative calls.
        backward: `backward(args, needs, *grads)` returns one gradient (or None) an argument; None
            for an operator without gradients. Where it is `"reference"`, the gradient is that of
            `reference`, to any order: the right choice for the operators of backward passes.
        saves: Names of the arguments that backward needs; the others reach it as None.
        forming: For a loss: an operator of the same arguments that returns the loss and the
            gradients of the first arguments for an upstream gradient of 1. Plain eager uses it on
            a CPU, where drawing noise a second time, or a second call, costs more than a pass over
            memory, except in float16, whose range does not hold a gradient before it is scaled.
            bfloat16 rounds it once more where the upstream gradient is not 1: PyTorch's own lines
            round more often.
    """

    def __init__(
        self,
        schema: str,
        *,
        reference: Callable[..., R],
        fake: Callable[..., Any],
        samples: Callable[[torch.device, torch.dtype], Iterator[Sample]],
        backward: Backward | str | None = None,
        saves: Sequence[str] | None = None,
        forming: Op[Any] | None = None,
    ) -> None:
        self.schema = schema
        self.name = schema[: schema.index("(")]
        self.reference: Callable[..., Any] = reference
        self.samples = samples
        self.forming = forming
        self.fake = fake
        self._formula: Backward | None = (
            self.reference_backward if isinstance(backward, str) else backward
        )

        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(self.name, self._route, "CompositeExplicitAutograd")
        qualname = f"genkern::{self.name}"
        torch.library.register_fake(qualname, fake, lib=library)
        torch.library.register_vmap(qualname, self._vmap, lib=library)
        if self._formula is not None:
            torch.library.register_autograd(
                qualname, self._registered_backward, setup_context=self._setup_context, lib=library
            )
        self.overload = getattr(torch.ops.genkern, self.name).default
        arguments = self.overload._schema.arguments
        # An operator with a gradient has its tensors first.
        self._tensors = [i for i, a in enumerate(arguments) if "Tensor" in str(a.type)]
        self._saved = [i for i in self._tensors if saves is None or arguments[i].name in saves]
        self._cpu_operator: Callable[..., Any] | None = None
        formed = 0 if forming is None else len(forming.overload._schema.returns) - 1
        self._constant = self._tensors[formed:]
        OPS[self.name] = self

    def __call__(self, *args: Any) -> R:
        if _compiling() or _dispatch_modes():
            if _exporting():
                return self.overload(*_finite(args))  # type: ignore[no-any-return]
            if _compiling() and self._goes_to_cpu(args) and self._has_cpu_operator():
                return self._cpu_operator(*args)  # type: ignore[misc, no-any-return]
            return self.overload(*args)  # type: ignore[no-any-return]
        if _functorch_level() is not None:
            if self._formula is None:
                return self.overload(*args)  # type: ignore[no-any-return]
            return _FunctorchFunction.apply(self, *args)  # type: ignore[no-any-return, no-untyped-call]
        needs_gradient = False
        for i in self._tensors:
            a = args[i]
            if a is not None:
                if type(a) not in _PLAIN or a.is_meta:
                    return self._dispatch(args)  # type: ignore[no-any-return]
                if a.requires_grad:
                    needs_gradient = True
        if needs_gradient and self._formula is not None and _grad_enabled():
            if self.forming is not None and args[0].is_cpu and args[0].dtype in _FORMING:
                for i in self._constant:
                    if args[i] is not None and args[i].requires_grad:
                        break
                else:
                    return _forming(self, *args)  # type: ignore[no-any-return, no-untyped-call]
            return _eager(self, *args)  # type: ignore[no-any-return, no-untyped-call]
        # Plain tensors in plain eager: the dispatcher would only lead back here, at the price of
        # two conversions of every argument.
        return self._route(*args)  # type: ignore[no-any-return]

    def _dispatch(self, args: Args) -> Any:
        """A call on other tensors than plain ones."""
        # Whoever has a DTensor has imported its module.
        sharding = sys.modules.get("torch.distributed.tensor")
        if sharding and any(isinstance(a, sharding.DTensor) for a in args):
            return importlib.import_module("genkern.distributed").call_sharded(self, args)
        return self.overload(*args)

    def bytes_moved(self, *args: Any) -> int:
        """Bytes a call must read and write: each tensor once, an expanded dimension not at all."""
        outputs = self.fake(*args)
        tensors = [*args, *(outputs if isinstance(outputs, tuple) else (outputs,))]
        return sum(
            a.element_size() * math.prod(n for n, s in zip(a.shape, a.stride(), strict=True) if s)
            for a in tensors
            if isinstance(a, Tensor)
        )

    # ---- in compiled code

    def _goes_to_cpu(self, args: Args) -> bool:
        """Whether compiled code can call a CPU's kernel without asking `_route` each time.

        Where a gradient may be asked for, only `overload` has one.
        """
        if _may_choose or _grad_enabled():
            return False
        for i in self._tensors:
            a = args[i]
            if a is not None and not (type(a) in _PLAIN and a.device.type == "cpu"):
                return False
        return True

    # Runs while code is compiled, which then finds the operator in the attribute.
    def _has_cpu_operator(self) -> bool:
        if _functorch_level() is not None:  # only `overload` has its rules
            return False
        self._cpu_operator = BACKENDS[0].cpu_operator(self)
        return self._cpu_operator is not None

    # What torch.compiler.assume_constant_result does, which imports the compiler, sympy and triton.
    _has_cpu_operator._dynamo_marked_constant = True  # type: ignore[attr-defined]

    # ---- choosing a backend

    def _route(self, *args: Any) -> Any:
        name = _chosen.get()
        if name is None:
            for backend in BACKENDS:
                kernel = backend.kernel(self, args)
                if not isinstance(kernel, str):
                    return kernel(*args)
        names = [backend.name for backend in BACKENDS]
        if name not in names:
            raise ValueError(f"GENKERN_BACKEND must be one of {', '.join(names)}, got {name!r}")
        kernel = BACKENDS[names.index(name)].kernel(self, args)
        if isinstance(kernel, str):
            raise NotImplementedError(
                f"{self.name}: the chosen backend {name!r} cannot run this call\n"
                f"{self.explain(args)}"
            )
        return kernel(*args)

    def explain(self, args: Args) -> str:
        """The call's tensors, and each backend's reason to refuse it, or 'ready', a line each."""
        tensors = [
            f"{str(a.dtype).removeprefix('torch.')} {tuple(a.shape)} on {a.device}"
            for a in args
            if isinstance(a, Tensor)
        ]
        lines = [f"genkern.{self.name}: {', '.join(tensors)}"]
        for backend in BACKENDS:
            lines.append(f"  {backend.name}: {backend.refuses(self, args) or 'ready'}")
        return "\n".join(lines)

    # ---- autograd: three ways in, one formula

    def _save(self, ctx: Any, args: Args) -> None:
        count = len(self._tensors)
        if len(self._saved) == count:
            ctx.save_for_backward(*args[:count])
        else:
            ctx.save_for_backward(*[args[i] for i in self._saved])
        ctx.set_materialize_grads(False)
        # Backward may run on another thread, which does not see this context's choice.
        ctx.call = self, args[count:], _chosen.get()

    def _backward(
        self, ctx: Any, grads: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        if self._formula is None or all(g is None for g in grads):
            return (None,) * len(needs)
        tensors: list[Tensor | None] = [None] * len(self._tensors)
        for i, saved in zip(self._saved, ctx.saved_tensors, strict=True):
            tensors[i] = saved
        _, constants, backend = ctx.call
        args = (*tensors, *constants)
        if backend == _chosen.get():
            return self._formula(args, needs, *grads)
        with choosing(backend):
            return self._formula(args, needs, *grads)

    def _setup_context(self, ctx: Any, inputs: Args, output: Any) -> None:
        self._save(ctx, inputs)

    def _registered_backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return self._backward(ctx, grads, ctx.needs_input_grad)

    def reference_backward(
        self, args: Args, needs: Sequence[bool], *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        wanted = [i for i, need in enumerate(needs) if need]
        live = [i for i, g in enumerate(grads) if g is not None]

        def outputs(*values: Tensor) -> tuple[Tensor, ...]:
            call = list(args)
            for i, value in zip(wanted, values, strict=True):
                call[i] = value
            result = self.reference(*call)
            result = result if isinstance(result, tuple) else (result,)
            return tuple(result[i] for i in live)

        pull_back = torch.func.vjp(outputs, *(args[i] for i in wanted))[1]
        found = pull_back(tuple(grads[i] for i in live))
        result: list[Tensor | None] = [None] * len(needs)
        for i, gradient in zip(wanted, found, strict=True):
            result[i] = gradient
        return tuple(result)

    # ---- vmap

    def _vmap(self, info: Any, in_dims: Args, *args: Any) -> tuple[Any, Any]:
        """One call an example: an operator is a function of its arguments alone, keys included."""
        # A list of sizes has a list of Nones for its dimension.
        pairs = [
            (a, d if isinstance(a, Tensor) else None) for a, d in zip(args, in_dims, strict=True)
        ]
        if info.batch_size == 0:
            raise ValueError(f"{self.name}: vmap must be over at least 1 example, got 0")
        results: list[Any] = [
            self(*(a if d is None else a.select(d, i) for a, d in pairs))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], tuple):
            stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
            return stacked, (0,) * len(stacked)
        return torch.stack(results), 0


class WritingOp(Op[None]):
    """The operator that writes `op`'s result to its last argument, `out`, and returns nothing.

    `out` may be `op`'s first argument.
    """

    def __init__(self, op: Op[Any], schema: str) -> None:
        def reference(*args: Any) -> None:
            args[-1].copy_(op.reference(*args[:-1]))

        def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
            for case in op.samples(device, dtype):
                first = case.args[0]
                dense = torch.zeros_like(first)
                yield Sample(case.id, (*case.args, dense))
                if dense.stride() == first.stride():
                    out = first.clone()
                    yield Sample(f"{case.id}-in_place", (out, *case.args[1:], out))

        super().__init__(schema, reference=reference, fake=lambda *args: None, samples=samples)

    def _goes_to_cpu(self, args: Args) -> bool:
        return False  # `_route` does more than the kernel

    def _route(self, *args: Any) -> None:
        super()._route(*args)
        out = args[-1]
        if not out.is_inference():
            # A graph that saved `out` has to see that it is another now.
            torch.autograd.graph.increment_version(out)
