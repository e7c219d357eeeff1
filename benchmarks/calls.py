"""From a case to calls: inputs, contenders, and what a call reads, writes and keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import genkern
from benchmarks.cases import Case
from benchmarks.problems import Outputs
from genkern._ops.op import OPS

_SEED = 20240607

Function = Callable[..., Outputs]


@dataclass(frozen=True)
class Arguments:
    """A case's inputs on a device."""

    case: Case
    tensors: tuple[Tensor, ...]
    noise: Tensor | None

    @property
    def wrt(self) -> tuple[Tensor, ...]:
        """The inputs whose gradients are asked for."""
        return tuple(self.tensors[i] for i in self.case.problem.wrt) if self.case.backward else ()


def arguments(case: Case, device: torch.device, dtype: torch.dtype | None = None) -> Arguments:
    """Makes the inputs, the same numbers whatever the dtype."""
    generator = torch.Generator().manual_seed(_SEED)
    layout = {"memory_format": case.memory_format}
    made = case.problem.inputs(case.shape, generator)
    if case.noise == "given":
        made = (*made, torch.randn(*case.shape, generator=generator, dtype=torch.float64))
    # Through the case's dtype, so that a wider one holds the same numbers.
    cast = [x.to(device, case.dtype).to(dtype or case.dtype) for x in made]
    if case.memory_format != torch.contiguous_format:
        cast = [x.contiguous(**layout) for x in cast]
    noise = cast.pop() if case.noise == "given" else None
    if case.backward:
        for i in case.problem.wrt:
            cast[i].requires_grad_()
    return Arguments(case, tuple(cast), noise)


def upstream(outputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The outputs' gradients: 1 for a scalar, random numbers of the case's dtype for a tensor."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    return tuple(
        torch.ones_like(out)
        if out.dim() == 0
        else torch.empty_like(out).copy_(torch.randn(out.shape, generator=generator).to(dtype))
        for out in outputs
    )


def evaluate(function: Function, given: Arguments, *rest: Any) -> Outputs:
    """A call's outputs and, for a case with a backward pass, its gradients."""
    outputs = function(*given.tensors, *rest)
    if not given.case.backward:
        return outputs
    gradients = torch.autograd.grad(outputs, given.wrt, upstream(outputs, given.case.dtype))
    return (*(out.detach() for out in outputs), *gradients)


def step(function: Function, given: Arguments, *rest: Any) -> Callable[[], Any]:
    """The call to time: forward, then the gradients for given upstream gradients."""
    tensors, wrt = given.tensors, given.wrt
    if not given.case.backward:
        return lambda: function(*tensors, *rest)
    outputs = [out.detach() for out in function(*tensors, *rest)]
    gradients = upstream(outputs, given.case.dtype)
    return lambda: torch.autograd.grad(function(*tensors, *rest), wrt, gradients)


def compiled(case: Case) -> Function:
    """The plain PyTorch lines under torch.compile."""
    # Cases share the functions' code, and only so many variants of one are kept.
    torch.compiler.reset()
    return torch.compile(case.problem.eager, fullgraph=True, dynamic=False)


def genkern_step(given: Arguments) -> Callable[[], Any]:
    """Genkern's call as a user writes it: without a key it makes a new one."""
    return step(given.case.problem.genkern, given, None, given.noise)


def noise_step(case: Case, device: torch.device) -> Callable[[], Any]:
    """Drawing the case's noise and nothing else; fused operators draw it in float32."""
    key = genkern.random.new_key(device=device)
    dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    return lambda: genkern.random.normal(key, *case.shape, dtype=dtype)


def kept_bytes(function: Function, given: Arguments, *rest: Any) -> int:
    """Bytes that a call keeps for its backward pass, beyond its inputs and outputs."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = function(*given.tensors, *rest)
    for tensor in (*given.tensors, *outputs, *(t for t in rest if isinstance(t, Tensor))):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


class _Traffic(TorchDispatchMode):
    """Adds up what the operators' specs say about each genkern call."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0
        self.draws = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "genkern":
            self.nbytes += OPS[func._opname].bytes_moved(*args)
            names = [argument.name for argument in func._schema.arguments]
            self.draws += "key" in names and args[names.index("key")] is not None
        return func(*args, **(kwargs or {}))


def traffic(run: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a genkern call must read and write, and how often it draws its noise."""
    with _Traffic() as mode:
        run()
    return mode.nbytes, mode.draws
