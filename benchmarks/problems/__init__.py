"""What is timed: each operation as genkern writes it and as plain PyTorch does, a file a family.

The PyTorch lines are those that people write, in the form with the fewest kernels. In float64 they
are also the mathematics that a result is checked against (`gate.py`), which is why they take the
noise as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Problem:
    """One operation, written twice or three times, and its inputs.

    Attributes:
        genkern: `genkern(*tensors, key, noise)`; both None draws a new key.
        eager: `eager(*tensors, *tables, noise)`; None draws the noise.
        inputs: `inputs(shape, generator)` makes the tensors, in float64 or int64.
        wrt: Indices of the inputs whose gradients are asked for.
        tables: What the plain lines look up, in float64; they get it in their arithmetic's dtype,
            as training code does that keeps its tables in float32 whatever the data's dtype.
        diffusers: Makes `step(*tensors)` of diffusers for a dtype, where diffusers has it.
    """

    name: str
    genkern: Callable[..., Outputs]
    eager: Callable[..., Outputs]
    inputs: Callable[[Sequence[int], torch.Generator], tuple[Tensor, ...]]
    wrt: tuple[int, ...] = (0, 1)
    tables: tuple[Tensor, ...] = ()
    diffusers: Callable[[torch.dtype], Callable[..., Outputs]] | None = None


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normals in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
