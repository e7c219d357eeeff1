"""First calls: `latency.py` starts this file, which forks for every public function.

A fork of a process that has imported genkern and called nothing is a fresh process, without the
seconds that importing torch takes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from public_calls import CALLS, SHAPE, Inputs

_LATER = 50


def _inputs() -> Inputs:
    """As the tests' own, without the call that makes their keys."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    t, prev_t = torch.tensor([49, 3, 0, 20]), torch.tensor([7, 2, -1, -1])
    keys = torch.arange(8, dtype=torch.int64).reshape(4, 2).view(torch.uint64)
    return Inputs(x, y, t, prev_t, keys)


def _timed(call: str, inputs: Inputs) -> float:
    start = time.process_time()
    CALLS[call](inputs)
    return time.process_time() - start


def _first_and_later(call: str) -> tuple[float, float]:
    inputs = _inputs()
    first = _timed(call, inputs)
    return first, min(_timed(call, inputs) for _ in range(_LATER))


def _in_fork(call: str) -> tuple[float, float]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(write, "w") as pipe:
            json.dump(_first_and_later(call), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        first, later = json.loads(pipe.read())
    os.waitpid(child, 0)
    return first, later


def main(runs: int) -> None:
    """Prints a line for each call: its name, and the best of the runs."""
    torch.set_num_threads(1)
    for call in CALLS:
        found = [_in_fork(call) for _ in range(runs)]
        print(json.dumps([call, [min(f for f, _ in found), min(l for _, l in found)]]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
