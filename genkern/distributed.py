"""Sharding rules of every operator, for DTensor.

A call with DTensors runs on each process's shard and returns DTensors. One rule serves every
operator:

- Each tensor has the batch in one dimension, except tables and keys of shape (2,), which have none.
  Over a dimension of the mesh that shards one argument along the batch, all are sharded so, and so
  are the outputs; over the others all are replicated. DTensor moves what is placed otherwise.
- A sum over the batch becomes `Partial("sum")`, and a mean such a sum divided by the size of the
  whole: shards may be uneven. What is reduced to one value a sample stays sharded.
- A key of shape (2,) numbers the elements of the whole tensor, which a shard cannot know: refused
  there. Keys of shape (B, 2), sharded with the batch, give the noise of the unsharded call.

The first eager call with a DTensor imports this module. Code that meets DTensors under
`torch.compile` or calls `torch.ops.genkern` has to import it before. docs/distributed.md shows how
to use it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

import genkern.backends  # noqa: F401  (completes the registry)
from genkern._ops.elements import BATCHMEAN, MEAN, SUM
from genkern._ops.op import OPS, Args, Op, library

__all__: list[str] = []

# They make keys and draw no numbers.
_MAKE_KEYS = ("split", "fold_in")
# Upstream gradients, of which these belong to a reduced value.
_UPSTREAM = ("grad", "grad_kl", "grad_z", "grad_out")
_OF_REDUCED = ("grad", "grad_kl")

Call = dict[str, Any]  # arguments by name


def _on_mesh(op: Op[Any], call: Call) -> DeviceMesh:
    """The mesh of all tensors; a plain table becomes a replicated DTensor."""
    tensors = {name: a for name, a in call.items() if isinstance(a, Tensor)}
    mesh: DeviceMesh = next(x.device_mesh for x in tensors.values() if isinstance(x, DTensor))
    replicated = [Replicate()] * mesh.ndim
    for name, x in tensors.items():
        if isinstance(x, DTensor):
            if x.device_mesh != mesh:
                raise ValueError(
                    f"{op.name}: {name} must be on the mesh of the arguments before, {mesh},"
                    f" got {x.device_mesh}"
                )
        elif name == "coefficients":
            # Made from a schedule, by the same arithmetic on every process.
            call[name] = DTensor.from_local(x, mesh, replicated, run_check=False)
        else:
            raise TypeError(
                f"{op.name}: {name} must be a DTensor, as other arguments are, got a plain tensor"
                " (if all processes hold the same: DTensor.from_local(x, mesh, [Replicate()]))"
            )
    return mesh


def _data(call: Call) -> list[Tensor]:
    """The tensors but for upstream gradients; the first has the shape that is reduced."""
    return [x for name, x in call.items() if isinstance(x, Tensor) and name not in _UPSTREAM]


def _batch_dim(name: str, x: Tensor, call: Call) -> int | None:
    """The dimension of an argument that is the batch."""
    if x.dim() == 0 or _data(call)[0].dim() == 0 or (name == "key" and x.dim() == 1):
        return None
    if name == "coefficients":
        return 0 if call["t"] is None and len(x) > 1 else None
    return 1 if name in ("noise", "grad_z") and call.get("num_samples") is not None else 0


def _placements(sharded: Sequence[bool], dim: int | None) -> list[Placement]:
    return [Replicate() if dim is None or not s else Shard(dim) for s in sharded]


def _divisor(op: Op[Any], call: Call) -> int:
    """What a mean divides the sum by."""
    first, *others = _data(call)
    if op.name.startswith("discriminator_loss") and first.shape != others[0].shape:
        raise ValueError(
            f"{op.name}: logits of two shapes, each with a mean of its own, cannot be sharded, got"
            f" {tuple(first.shape)} and {tuple(others[0].shape)}: use reduction 'sum'"
        )
    # A penalty has one value a sample.
    of_samples = call["reduction"] == BATCHMEAN or op.name.startswith("gradient_penalty")
    return first.shape[0] if of_samples else first.numel()


def _local(op: Op[Any], name: str, x: DTensor, placements: list[Placement]) -> Tensor:
    """This process's part of an argument, differentiable."""
    if list(x.placements) != placements:
        if name == "out":
            raise ValueError(
                f"{op.name}: out must be placed as the result, {placements}, got"
                f" {list(x.placements)}"
            )
        x = x.redistribute(placements=placements)
    return x.to_local()


def _meta(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _locals(op: Op[Any], call: Call, mesh: DeviceMesh) -> tuple[Call, list[bool], int | None]:
    """The arguments of a process's call, over which dimensions the batch is sharded, its size."""
    tensors: dict[str, DTensor] = {n: a for n, a in call.items() if isinstance(a, DTensor)}
    dims = {name: _batch_dim(name, x, call) for name, x in tensors.items()}
    batched = {name: dim for name, dim in dims.items() if dim is not None}
    sharded = [
        any(tensors[name].placements[i] == Shard(dim) for name, dim in batched.items())
        for i in range(mesh.ndim)
    ]
    if any(sharded) and dims.get("key", 0) is None and op.name not in _MAKE_KEYS:
        raise ValueError(
            f"{op.name}: key must have shape (B, 2) where the batch is sharded, got (2,), which"
            " numbers the elements of the whole tensor: make one a sample, as by"
            " fold_in(key, indices)"
        )
    local = dict(call)
    for name, x in tensors.items():
        local[name] = _local(op, name, x, _placements(sharded, dims[name]))
    if any(sharded) and "shape" in call:
        local["shape"] = [len(local["key"]), *call["shape"][1:]]
    batch = next((tensors[name].shape[dim] for name, dim in batched.items()), None)
    return local, sharded, batch


def _out_dim(op: Op[Any], call: Call, out: Tensor, batch: int | None) -> int | None:
    """The dimension of an output that is the batch; None also for one that was not asked for."""
    samples = call.get("num_samples") is not None and out.dim() > call["mu"].dim()
    dim = 1 if samples or op.name == "split" else 0
    return dim if out.dim() > dim and out.shape[dim] == batch else None


def call_sharded(op: Op[Any], args: Args) -> Any:
    """Calls an operator on DTensors: on each process's shard, differentiable to any order.

    Args:
        op: The operator.
        args: Its arguments. Tensors are DTensors; a table of coefficients may be a plain tensor.

    Returns:
        The operator's outputs, as DTensors.

    Raises:
        TypeError: If a tensor is plain.
        ValueError: If the meshes differ, or no shard can give its part of the result.
    """
    names = [argument.name for argument in op.overload._schema.arguments]
    call: Call = dict(zip(names, args, strict=True))
    mesh = _on_mesh(op, call)
    local, sharded, batch = _locals(op, call, mesh)
    divisor = None
    if any(sharded) and call.get("reduction") in (MEAN, BATCHMEAN):
        divisor = _divisor(op, call)
        local["reduction"] = SUM
        for name in _OF_REDUCED:
            if local.get(name) is not None:
                local[name] = local[name] / divisor

    def wrapped(out: Tensor, whole: Tensor) -> DTensor:
        """This process's part of an output that has the shape of `whole`."""
        # What a loss forms with its value is a gradient of the value.
        if divisor is not None and (whole.dim() == 0 or op.name.endswith("_forming")):
            out = out / divisor
        if whole.dim() == 0:
            placements: list[Placement] = [Partial() if s else Replicate() for s in sharded]
        else:
            placements = _placements(sharded, _out_dim(op, call, whole, batch))
        return DTensor.from_local(
            out, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )

    result = op(*local.values())
    if result is None:
        return None
    whole = op.fake(*map(_meta, call.values()))
    if isinstance(result, tuple):
        return tuple(map(wrapped, result, whole))
    return wrapped(result, whole)


def _dispatched(op: Op[Any], cls: type, func: Any, types: Any, args: Args, kwargs: Any) -> Any:
    """The rule for calls that come from PyTorch's dispatcher, below autograd."""
    with torch.no_grad():
        return call_sharded(op, args)


for _op in OPS.values():
    torch.library.register_torch_dispatch(
        f"genkern::{_op.name}", DTensor, functools.partial(_dispatched, _op), lib=library
    )
