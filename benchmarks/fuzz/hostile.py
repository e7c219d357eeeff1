"""Hostile calls of the native operators, past every check in Python.

Each starts from a valid call and spoils some arguments: other sizes, strides, offsets, ranks,
dtypes and devices, memory that was freed, shrunk or is not aligned, numbers out of range. A call
may raise. Where it returns, its result must be the exact one, and the reference's if that returns
too. A crash ends the process: run it in one of its own, best under a sanitizer.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import genkern.backends  # noqa: F401  (completes the registry)
from benchmarks.fuzz.compare import problem
from genkern._native import unavailable_reason
from genkern._ops.op import OPS, Args, Op

# What an operator may raise: torch's errors are RuntimeErrors, and its lack of memory too.
ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, MemoryError)
# Results above this size are not asked for: they cost time and prove no more.
_LARGEST = 1 << 20

Rng = random.Random


def _restrided(x: Tensor, rng: Rng) -> Tensor:
    """The same sizes with any strides that stay inside the storage."""
    size = x.untyped_storage().nbytes() // max(x.element_size(), 1)
    strides, reach = [], 0
    for n in x.shape:
        stride = rng.choice((0, 1, 1, 2, 3, 7))
        if n > 1 and reach + (n - 1) * stride >= size:
            stride = 0
        reach += max(n - 1, 0) * stride
        strides.append(stride)
    return x.as_strided(x.shape, strides, rng.randint(0, max(size - 1 - reach, 0)))


def _resized(x: Tensor, rng: Rng) -> Tensor:
    """Any sizes and strides inside the storage."""
    shape = [rng.choice((0, 1, 2, 3, 5)) for _ in range(rng.randint(0, 5))]
    return _restrided(x.clone().resize_(max(x.numel(), 1)).as_strided(shape, [0] * len(shape)), rng)


def _freed(x: Tensor, rng: Rng) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(rng.choice((0, 0, x.untyped_storage().nbytes() // 2)))
    return x


def _misaligned(x: Tensor, rng: Rng) -> Tensor:
    offset = rng.randint(1, max(x.element_size() - 1, 1))
    data = torch.zeros(x.numel() * x.element_size() + 16, dtype=torch.uint8)
    raw = x.contiguous().reshape(-1).view(torch.uint8)
    data[offset : offset + raw.numel()] = raw
    # A tensor of bytes cannot be viewed from there; a buffer can be read from anywhere.
    buffer = data.numpy()
    if not x.numel():
        return x
    found = torch.frombuffer(buffer, dtype=x.dtype, count=x.numel(), offset=offset)
    return found.reshape(x.shape)


def _deep(x: Tensor, rng: Rng) -> Tensor:
    """Many dimensions, past what the kernels and most of torch take."""
    return x.reshape((1,) * rng.randint(55, 80) + tuple(x.shape))


def _deep_empty(x: Tensor, rng: Rng) -> Tensor:
    return x.new_zeros((0, *[2] * rng.randint(60, 80)))


def _other_dtype(x: Tensor, rng: Rng) -> Tensor:
    dtypes = (
        torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32,
        torch.uint64, torch.uint8, torch.bool, torch.complex64,
    )  # fmt: skip
    return x.to(rng.choice(dtypes))


def _huge(x: Tensor, rng: Rng) -> Tensor:
    """More elements than any memory holds, all of them one number."""
    return x.reshape(-1)[:1].reshape(()).expand(2 ** rng.choice((40, 62)), 1)


SPOILS: dict[str, Callable[[Tensor, Rng], Any]] = {
    "strides": _restrided,
    "strides again": _restrided,
    "sizes": _resized,
    "sizes again": _resized,
    "freed": _freed,
    "misaligned": _misaligned,
    "deep": _deep,
    "deep and empty": _deep_empty,
    "dtype": _other_dtype,
    "meta": lambda x, rng: x.to("meta"),
    "none": lambda x, rng: None,
    "empty": lambda x, rng: x.new_zeros(0),
    "scalar": lambda x, rng: x.new_zeros(()),
    "huge": _huge,
    "sparse": lambda x, rng: x.to_sparse(),
    "compressed": lambda x, rng: x.reshape(-1, 1).to_sparse_csr(),
    "negative": lambda x, rng: torch._neg_view(x),
    "zeros": lambda x, rng: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "gradient": lambda x, rng: x.detach().clone().requires_grad_(),
    "inference": lambda x, rng: _inference(x),
    "not finite": lambda x, rng: torch.full_like(x, rng.choice((math.nan, math.inf, -math.inf))),
    "integers": lambda x, rng: torch.full_like(x, rng.choice((-1, 2**62, -(2**63), 10**6))),
}


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


_NUMBERS: dict[type, tuple[Any, ...]] = {
    bool: (False, True),
    int: (-1, 5, 7, 2**31, 2**63 - 1, -(2**63), 0, 255, None),
    float: (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 5e-324, None),
    list: ([], [-1], [2**40, 2**40], [2**62, 2], [0, 2**62], [3, 2**61, 0, 7], [2**63 - 1]),
    torch.dtype: (torch.int64, torch.bool, torch.float64, torch.complex64, torch.bfloat16),
    type(None): (0, -1, 3, None),
}


def _spoil(value: Any, rng: Rng) -> tuple[str, Any]:
    if isinstance(value, Tensor):
        name = rng.choice(list(SPOILS))
        try:
            return name, SPOILS[name](value, rng)
        except ERRORS:  # torch itself refuses to make it
            return "unchanged", value
    for kind, numbers in _NUMBERS.items():
        if type(value) is kind:
            return "number", rng.choice(numbers)
    return "unchanged", value


def _large(args: Args) -> bool:
    """Whether a valid result would be too large, or take too long."""
    sizes = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    shapes = [math.prod(a) for a in args if isinstance(a, list)]
    return any(_LARGEST < n < 2**40 for n in (*sizes, *shapes))


def _plain(x: Any) -> Any:
    """Without marks for what is to be done with the numbers in memory."""
    if not isinstance(x, Tensor):
        return x
    return x.clone() if x._is_zerotensor() else x.resolve_neg()


class Hostile:
    """Makes the calls of a seed and checks each."""

    def __init__(self, seed: int) -> None:
        reason = unavailable_reason("cpu")
        if reason is not None:
            raise RuntimeError(f"fuzz: the native library is needed, got: {reason}")
        self.rng = Rng(seed)
        self.ended: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._samples: dict[tuple[str, torch.dtype], list[Args]] = {}

    def _sample(self) -> tuple[Op, Args]:
        op = OPS[self.rng.choice(list(OPS))]
        dtype = self.rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
        key = op.name, dtype
        if key not in self._samples:
            found = [s.args for s in op.samples(torch.device("cpu"), dtype)]
            self._samples[key] = self.rng.sample(found, min(len(found), 12))
        return op, self.rng.choice(self._samples[key])

    def call(self) -> str:
        """Makes one call; returns a text that says which."""
        op, valid = self._sample()
        args, names = list(valid), []
        for place in self.rng.sample(
            range(len(args)), min(self.rng.choice((1, 1, 2, 3)), len(args))
        ):
            name, args[place] = _spoil(args[place], self.rng)
            if op.overload._schema.arguments[place].name == "coefficients":
                name += ", the numbers of a table"
            names.append(f"{place}: {name}")
        text = f"{op.name}, {', '.join(names)}"
        self.calls[op.name] += 1
        if _large(tuple(args)):
            self.ended["left out: too large"] += 1
            return text
        result = self._result(op, tuple(args))
        # What a number out of range means is for the public functions to say, and the reference
        # reads freed tensors that the native operator has no use for.
        if result is not None and "number" not in text and "freed" not in text:
            self._compare(op, tuple(args), result, text)
        return text

    def _result(self, op: Op, args: Args) -> Any:
        """The result of the native operator, or None."""
        if any(isinstance(a, Tensor) and a.numel() > _LARGEST for a in args):
            # Refused, or too much to wait for.
            self.ended["left out: too large"] += 1
            return None
        try:
            result = getattr(torch.ops._genkern_cpu, op.name)(*args)
        except ERRORS as error:
            self.ended[type(error).__name__] += 1
            return None
        self.ended["a result"] += 1
        return result

    def _compare(self, op: Op, args: Args, result: Any, text: str) -> None:
        plain = tuple(_plain(a) for a in args)
        try:
            reference = op.reference(*plain)
            found = problem(op, plain, result, reference)
        except (*ERRORS, AttributeError):  # which None has not
            self.ended["a result where the reference has none"] += 1
            return
        assert found is None, f"{text}: {found}"
