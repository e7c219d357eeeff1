"""Calls every operator once at two sizes under callgrind: `instructions.py` starts this file."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

from benchmarks import calls
from benchmarks.profile.operators import DTYPES, OPERATORS, short

SIZES = (4096, 12288)
ROWS = 4


def main(library: str, pattern: str) -> None:
    """Counts the operators whose names hold `pattern`."""
    requests = ctypes.CDLL(library)
    torch.set_num_threads(1)
    gc.disable()
    started = False
    for operator in OPERATORS:
        if pattern not in operator.name:
            continue
        for dtype in DTYPES:
            for size in SIZES:
                case = operator.case((ROWS, size // ROWS), dtype)
                step = calls.genkern_step(calls.arguments(case, torch.device("cpu")))
                step()  # the first call looks up and allocates more than the others
                if not started:
                    requests.start()
                    started = True
                step()
                requests.zero()
                step()
                label = f"{operator.name} {short(dtype)} {size}"
                requests.dump(label.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
