"""Runs every n-th sample of each operator: `python every_sample.py DEVICE BACKEND N`."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import BACKENDS, OPS, run

from genkern import testing


def main(device: str, name: str, step: int) -> None:
    backend = next(b for b in BACKENDS if b.name == name)
    for op in OPS.values():
        for dtype in (torch.float32, torch.bfloat16):
            for sample in islice(testing.samples(op.name, device, dtype), None, None, step):
                run(backend, op, sample.args)
    if device != "cpu":
        torch.cuda.synchronize()
    print(f"{len(OPS)} operators")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
