"""What several test files need: the matrix of operators, backends and dtypes, and bit patterns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from genkern._ops.op import BACKENDS, OPS, Backend, Op
from genkern.backends import explain  # noqa: F401  (completes the registry)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NO_CLAMP = (-float("inf"), float("inf"))

each_op = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[-1])


def skip_if_refused(backend: Backend, op: Op, args: tuple[Any, ...]) -> None:
    reason = backend.refuses(op, args)
    if reason is not None:
        assert reason and isinstance(reason, str)
        pytest.skip(f"{backend.name}: {reason}")


def skip_unless_usable(backend: Backend, device: torch.device | str = "cpu") -> None:
    """Skips where the backend cannot run a plain call on a device."""
    x = torch.zeros(2, 3, device=device)
    skip_if_refused(backend, OPS["bernoulli_nll"], (x, x, 0))


def writes(op: Op) -> bool:
    """Whether the operator returns nothing and writes its last argument."""
    return not op.overload._schema.returns


def run(backend: Backend, op: Op, args: tuple[Any, ...]) -> Any:
    """A call of this backend alone: no routing, no autograd. The result, also of what writes it."""
    kernel = backend.kernel(op, args)
    assert not isinstance(kernel, str), kernel
    if not writes(op):
        return kernel(*args)
    out = args[-1].clone()
    assert kernel(*(out if a is args[-1] else a for a in args)) is None
    return out


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


_FAKE_MODE = FakeTensorMode()


def fake_outputs(op: Op, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    with _FAKE_MODE as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        result = op.overload(*fakes)
        return outputs(fakes[-1] if writes(op) else result)


def bits(x: Tensor) -> Tensor:
    """The bit patterns of the elements: NaNs and zeros of either sign compare as themselves."""
    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(words)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def randn(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def decoder_nll(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """-log of the discretised Gaussian at x: Ho et al., arXiv:2006.11239, (13); in float64."""
    x, mean, scale = x.double(), mean.double(), torch.exp(-0.5 * log_variance.double())
    far = torch.tensor(1e15, dtype=torch.float64)
    upper = torch.where(x > 0.999, far, (x - mean + 1 / 255) * scale)
    lower = torch.where(x < -0.999, -far, (x - mean - 1 / 255) * scale)
    # On the side of the bell where a tail keeps its digits.
    mirrored = lower > 0
    a, b = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return -(log_b + torch.log1p(-torch.exp(log_a - log_b)))
