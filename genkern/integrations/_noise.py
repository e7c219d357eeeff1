"""Where a patched class gets its noise from."""

from __future__ import annotations

import torch
from torch import Tensor

from genkern._ops import checks
from genkern._ops.random import new_words

# "torch": the numbers that the package would have drawn. "key": genkern's.
SOURCES = ("torch", "key")


def check_source(source: str) -> None:
    """Raises unless it is one."""
    checks.one_of("apply", "noise", source, SOURCES)


def drawn(source: str, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A new key, or new noise from PyTorch's default generator."""
    if source == "key":
        return new_words(None, like.device, None), None
    return None, torch.randn_like(like)
