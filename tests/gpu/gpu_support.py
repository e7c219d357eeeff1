"""What the tests of GPUs share: calls and inputs on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from public_calls import CALLS as EVERY_CALL
from public_calls import RANDOM, SHAPE, Inputs, inputs
from torch import Tensor

import genkern

# The calls that give the same each time.
CALLS = {name: call for name, call in EVERY_CALL.items() if name not in RANDOM}


def moved(args: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """The arguments on a device, with the strides and the shared memory that they have here."""
    flat: dict[int, Tensor] = {}

    def move(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        storage = a.untyped_storage()
        if storage.data_ptr() not in flat:
            flat[storage.data_ptr()] = torch.empty(0, dtype=a.dtype).set_(storage).to(device)
        base = flat[storage.data_ptr()]
        return base.as_strided(a.shape, a.stride(), a.storage_offset())

    return tuple(map(move, args))


def inputs_on(device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
    """Inputs of the public calls; another seed gives other numbers and steps."""
    i = inputs()
    if seed:
        generator = torch.Generator().manual_seed(seed)
        i.x, i.y = (torch.randn(SHAPE, generator=generator) for _ in range(2))
        i.t, i.prev_t, i.keys = i.t.flip(0), i.prev_t.flip(0), i.keys.view(torch.int64).flip(0)
        i.keys = i.keys.view(torch.uint64)
    i = replace(i, x=i.x.to(dtype), y=i.y.to(dtype))
    return Inputs(*(getattr(i, f.name).to(device) for f in fields(i)))


def copy_into(there: Inputs, new: Inputs) -> None:
    for f in fields(there):
        getattr(there, f.name).copy_(getattr(new, f.name))


def on_cpu(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The call on the backend that CPU tensors get, whatever the test has chosen."""
    with genkern.use_backend(None):
        return call(*args, **kwargs)
