"""From a case to calls: inputs, contenders, and what a call reads, writes and keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import genkern
from benchmarks.cases import Case
from benchmarks.problems import Outputs
from genkern._ops.elements import arithmetic
from genkern._ops.op import Op

_SEED = 20240607

Function = Callable[..., Outputs]


@dataclass(frozen=True)
class Arguments:
    """A case's inputs on a device, and what its plain lines look up."""

    case: Case
    tensors: tuple[Tensor, ...]
    tables: tuple[Tensor, ...]
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
    dtype = dtype or case.dtype
    # Through the case's dtype, so that a wider one holds the same numbers.
    cast = [
        x.to(device, case.dtype).to(dtype) if x.is_floating_point() else x.to(device) for x in made
    ]
    if case.memory_format != torch.contiguous_format:
        cast = [x.contiguous(**layout) for x in cast]
    noise = cast.pop() if case.noise == "given" else None
    tables = tuple(x.to(device, arithmetic(dtype)) for x in case.problem.tables)
    if case.backward:
        for i in case.problem.wrt:
            cast[i].requires_grad_()
    return Arguments(case, tuple(cast), tables, noise)


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
    live = _live(outputs)
    gradients = torch.autograd.grad(live, given.wrt, upstream(live, given.case.dtype))
    return (*(out.detach() for out in outputs), *gradients)


def _live(outputs: Outputs) -> Outputs:
    """The outputs that lead back to an input whose gradient is asked for."""
    return tuple(out for out in outputs if out.requires_grad)


def step(function: Function, given: Arguments, *rest: Any) -> Callable[[], Any]:
    """The call to time: forward, then the gradients for given upstream gradients."""
    tensors, wrt = given.tensors, given.wrt
    if not given.case.backward:
        return lambda: function(*tensors, *rest)
    live = [out.detach() for out in _live(function(*tensors, *rest))]
    gradients = upstream(live, given.case.dtype)
    return lambda: torch.autograd.grad(_live(function(*tensors, *rest)), wrt, gradients)


def eager_step(given: Arguments) -> Callable[[], Any]:
    """The plain PyTorch lines."""
    return step(given.case.problem.eager, given, *given.tables, given.noise)


def compiled_step(given: Arguments) -> Callable[[], Any]:
    """The plain PyTorch lines under torch.compile, compiled."""
    # Cases share the functions' code, and only so many variants of one are kept.
    torch.compiler.reset()
    function = torch.compile(given.case.problem.eager, fullgraph=True, dynamic=False)
    run = step(function, given, *given.tables, given.noise)
    run()
    return run


def diffusers_step(given: Arguments) -> Callable[[], Any]:
    """The step of diffusers' scheduler, which draws its noise."""
    assert given.case.problem.diffusers is not None
    return step(given.case.problem.diffusers(given.case.dtype), given)


def genkern_step(given: Arguments) -> Callable[[], Any]:
    """Genkern's call as a user writes it: without a key it makes a new one."""
    return step(given.case.problem.genkern, given, None, given.noise)


def noise_step(case: Case, device: torch.device) -> Callable[[], Any]:
    """Drawing the case's noise and nothing else; fused operators draw it in float32."""
    key = genkern.random.new_key(device=device)
    dtype = arithmetic(case.dtype)
    return lambda: genkern.random.normal(key, *case.shape, dtype=dtype)


def kept_bytes(function: Function, given: Arguments, *rest: Any) -> int:
    """Bytes that a call keeps for its backward pass, beyond its inputs and outputs.

    What every call shares, a schedule's table, is not counted.
    """
    shared: dict[int, int] = {}
    with _saved_in(shared):
        earlier = function(*given.tensors, *rest)
    kept: dict[int, int] = {}
    # The first call's graph lives on, and its storages with it.
    with _saved_in(kept):
        outputs = function(*given.tensors, *rest)
    for output in outputs:
        # A loss that formed its gradient in the forward pass holds it here.
        for tensor in getattr(output.grad_fn, "formed", ()):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    del earlier
    known = (*given.tensors, *outputs, *(t for t in rest if isinstance(t, Tensor)))
    left_out = shared.keys() | {tensor.untyped_storage().data_ptr() for tensor in known}
    return sum(nbytes for storage, nbytes in kept.items() if storage not in left_out)


def _saved_in(storages: dict[int, int]) -> contextlib.AbstractContextManager[Any]:
    """Notes the bytes of the storages that are saved for backward."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def traffic(run: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that a genkern call must read and write, and how often it draws its noise."""
    nbytes, draws, route = 0, 0, Op._route

    def counting(op: Op, *args: Any) -> Any:
        nonlocal nbytes, draws
        nbytes += op.bytes_moved(*args)
        names = [argument.name for argument in op.overload._schema.arguments]
        draws += "key" in names and args[names.index("key")] is not None
        # The operators that an operator calls itself are not the call's.
        with mock.patch.object(Op, "_route", route):
            return route(op, *args)

    # Not a dispatch mode: under one, eager calls go another way.
    with mock.patch.object(Op, "_route", counting):
        run()
    return nbytes, draws
