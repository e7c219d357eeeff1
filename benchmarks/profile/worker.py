"""Times operators with one of two libraries: `vectorised.py` starts this file."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import calls, roof
from benchmarks.profile import clock
from benchmarks.profile.operators import DTYPES, OPERATORS, Operator, short
from genkern import _native

# All streams of an operator lie in a second-level cache of 1 MB. The difference of two sizes is
# the elements' own time, without the call's.
SIZES = (4096, 36864)
TRIAD = "triad"
_ROWS = 4
_TURNS = 12


def step(operator: Operator, size: int, dtype: str) -> Callable[[], Any]:
    """The call at one of the sizes."""
    kind = next(d for d in DTYPES if short(d) == dtype)
    case = operator.case((_ROWS, size // _ROWS), kind)
    return calls.genkern_step(calls.arguments(case, torch.device("cpu")))


@functools.lru_cache(maxsize=1)
def _steps(operator: str, dtype: str) -> dict[str, Callable[[], Any]]:
    if operator == TRIAD:
        return {
            str(size): roof.triads(4 * size, 1, torch.device("cpu"), reuse=True)["triad"]
            for size in SIZES
        }
    found = next(o for o in OPERATORS if o.name == operator)
    return {str(size): step(found, size, dtype) for size in SIZES}


def main(folder: str) -> None:
    """Answers each line, an operator and a dtype, with seconds a call at each size."""
    assert not _native._reasons, "a library was loaded before the one that is asked for"
    _native._DIRECTORY = Path(folder)
    torch.set_num_threads(1)
    for line in sys.stdin:
        best = clock.best(_steps(*line.split()), _TURNS)
        print(json.dumps([best[str(size)] for size in SIZES]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
