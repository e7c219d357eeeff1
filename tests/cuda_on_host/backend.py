"""The backend `cuda-on-host`: csrc/cuda's kernels on tensors of the CPU, for tests."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from genkern._ops.op import OPS, Args, Backend, Kernel, Op

NAMESPACE = "_genkern_cuda_on_host"


class CudaOnHost(Backend):
    name = "cuda-on-host"

    def __init__(self, path: str) -> None:
        torch.ops.load_library(path)
        self._library = ctypes.CDLL(path)
        self._autograd = torch.library.Library(NAMESPACE, "IMPL")
        for name in OPS:
            self._autograd.impl(name, torch.library.fallthrough_kernel, "Autograd")

    def kernel(self, op: Op, args: Args) -> Kernel | str:
        for a in args:
            if isinstance(a, Tensor) and not a.is_cpu:
                return f"a tensor is on {a.device}"
        return getattr(getattr(torch.ops, NAMESPACE), op.name).default._op

    @contextmanager
    def order(self, seed: int) -> Iterator[None]:
        """Threads and blocks run in an order of this seed's instead of that of their indices."""
        set_order = self._library.cuda_on_host_set_order
        set_order(ctypes.c_uint64(seed))
        try:
            yield
        finally:
            set_order(ctypes.c_uint64(0))
