"""No function reads a GPU's memory on the host, and a second call copies nothing there.

That is what CUDA graphs ask for, and what keeps the host ahead of the device. Checked on tensors
that say they are on a GPU: plain eager takes the way it takes with real ones, while the operators
run on what is inside.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from public_calls import CALLS, RANDOM, Inputs, inputs, value_and_gradients
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# Of the devices that are not the CPU only this one needs no driver.
GPU = torch.device("meta")
aten = torch.ops.aten

# Operators that wait for the device: the result is on the host, or its size depends on data.
READS = {
    aten._local_scalar_dense, aten.item, aten.equal, aten.is_nonzero, aten.nonzero,
    aten.masked_select, aten._unique2, aten.unique_dim, aten.bincount,
}  # fmt: skip
READING_METHODS = {
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__",
}  # fmt: skip
# What fills device memory without a copy from the host.
FILLS = {"empty", "full", "zeros", "ones", "arange", "randint"}


class HostRead(Exception):
    pass


class HostCopy(Exception):
    pass


class OnGPU(Tensor):
    """A CPU tensor that says that it is on a GPU."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGPU:
        self = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=GPU
        )
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        if func.overloadpacket in READS:
            raise HostRead(func)
        if "device" in kwargs and kwargs["device"] is not None:
            if torch.device(kwargs["device"]).type != GPU.type:
                raise HostRead(func)
            kwargs["device"] = torch.device("cpu")
        wrappers: dict[int, OnGPU] = {}

        def unwrapped(a: Any) -> Any:
            if isinstance(a, OnGPU):
                wrappers[id(a.inner)] = a
                return a.inner
            if isinstance(a, Tensor) and a.is_meta and func is aten.where.self:
                # Made below the wrapper, in the derivative of a clamp.
                return torch.zeros((), dtype=a.dtype)
            if isinstance(a, Tensor) and a.dim():
                raise AssertionError(f"{func}: tensors on the CPU and on a GPU")
            return a

        args, kwargs = tree_map(unwrapped, args), tree_map(unwrapped, kwargs)
        if func.overloadpacket is aten.index and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            raise HostRead(func)
        result = func(*args, **kwargs)

        def wrapped(r: Any) -> Any:
            if not isinstance(r, Tensor):
                return r
            return wrappers[id(r)] if id(r) in wrappers else OnGPU(r)

        return tree_map(wrapped, result)


class Machine(TorchFunctionMode):
    """A machine with that GPU: makes tensors on it."""

    def __init__(self) -> None:
        self.copies: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        mine = [a for a in args if isinstance(a, OnGPU)]
        if mine and name in READING_METHODS:
            raise HostRead(name)
        if mine and func is torch.where:
            # The scalars become tensors of the GPU where the wrapper does not see it.
            args = [torch.tensor(a) if isinstance(a, float) else a for a in args]
        places = [a for a in (*args, kwargs.get("device")) if _is_gpu(a)]
        if not places or mine:
            return func(*args, **kwargs)
        if name not in FILLS:
            self.copies.append(name)
        cpu = torch.device("cpu")
        args = [cpu if _is_gpu(a) else a for a in args]
        if "device" in kwargs:
            kwargs["device"] = cpu
        return OnGPU(func(*args, **kwargs))


def _is_gpu(a: Any) -> bool:
    return isinstance(a, (str, torch.device)) and str(a).startswith(GPU.type)


def on_gpu(i: Inputs) -> Inputs:
    return Inputs(*(OnGPU(getattr(i, f.name)) for f in fields(i)))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.to("cpu"),
        lambda x: bool(x.any()), lambda x: float(x[0]), lambda x: x.nonzero(), lambda x: x[x > 0],
        lambda x: torch.equal(x, x), lambda x: x.numpy(), lambda x: x.masked_select(x > 0),
    ],
)  # fmt: skip
def test_a_read_raises(read):
    with Machine(), pytest.raises(HostRead):
        read(OnGPU(torch.ones(3)))


def test_a_copy_is_seen():
    with Machine() as machine:
        for make in (
            lambda: torch.tensor([1.0], device=GPU),
            lambda: torch.ones(1).to(GPU, torch.float64),
            lambda: torch.ones(1).to(device=GPU),
        ):
            assert make().device == GPU
    assert machine.copies == ["tensor", "to", "to"]


@pytest.mark.parametrize("name", CALLS)
def test_no_host_reads_and_no_second_copy(name):
    call = CALLS[name]
    want = value_and_gradients(call, inputs())
    with Machine() as machine:
        i = on_gpu(inputs())
        value_and_gradients(call, i)
        machine.copies.clear()
        got = value_and_gradients(call, i)
    assert machine.copies == []
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.device == GPU and g.dtype == w.dtype and g.shape == w.shape
        if name not in RANDOM:
            torch.testing.assert_close(g.inner, w, rtol=1e-6, atol=1e-6)
