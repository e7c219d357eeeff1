"""The demonstration's training again and again: memory must stay flat, and losses the same bits.

One round trains the VAE and the diffusion model of examples/ for an epoch each and draws samples.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tqdm import tqdm

import genkern
from benchmarks import environment
from benchmarks.report import Table
from examples import ddpm_digits, vae_digits
from examples.data import load_digits

# Pools and caches fill in the first rounds.
WARM_UP = 0.2
# 1 kB for each of a round's 30 training steps: the smallest allocation that a step could lose, with
# what surrounds it, is more.
ALLOWED_KB_A_ROUND = 30.0


def resident_kb() -> int:
    """The process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def open_files() -> int:
    """The number of open file descriptors."""
    return len(os.listdir("/proc/self/fd"))


def one_round() -> tuple[float, ...]:
    """Trains and draws; the last losses and a sum of the samples."""
    digits = load_digits()
    with contextlib.redirect_stderr(io.StringIO()):
        vae_run = vae_digits.train(vae_digits.METHODS[0], digits, 1, 0)
        ddpm_run = ddpm_digits.train(ddpm_digits.METHODS[0], digits, 1, 0)
        images = genkern.diffusion.sample(
            ddpm_run.network, (4, 1, 8, 8), ddpm_digits.SCHEDULE, sampler="ddim", num_steps=5,
            key=genkern.random.key(0), progress=False,
        )  # fmt: skip
    return float(vae_run.loss[-1]), float(ddpm_run.loss[-1]), float(images.sum())


def slope(values: list[int]) -> float:
    """Increase of the values a round: the least squares line after the warm-up."""
    kept = values[int(len(values) * WARM_UP) :]
    return float(np.polyfit(range(len(kept)), kept, 1)[0]) if len(kept) > 2 else 0.0


def soak(minutes: float) -> dict[str, Any]:
    """Rounds for so many minutes; raises where the losses change."""
    end = time.monotonic() + 60 * minutes
    memory: list[int] = []
    first = None
    with tqdm(total=round(60 * minutes), desc="soak", unit="s") as bar:
        while time.monotonic() < end or len(memory) < 3:
            found = one_round()
            first = first or found
            if found != first:
                raise AssertionError(f"round {len(memory)} gave {found}, the first {first}")
            memory.append(resident_kb())
            bar.n = min(bar.total, round(60 * minutes - (end - time.monotonic())))
            bar.set_postfix(rounds=len(memory), rss=f"{memory[-1] / 1024:.1f} MB")
    return {
        "minutes": minutes,
        "rounds": len(memory),
        "losses": first,
        "resident kB": memory[:: max(1, len(memory) // 100)],
        "resident kB, first and last round": [memory[0], memory[-1]],
        "kB a round": round(slope(memory), 3),
        "open files": open_files(),
        "threads": threading.active_count(),
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    if options.quick:
        options.minutes = 0.5
    result = {"environment": environment.describe(torch.device("cpu"), torch.get_num_threads())}
    result |= soak(options.minutes)
    shown = ("rounds", "resident kB, first and last round", "kB a round", "open files", "threads")
    rows = [[name, str(result[name])] for name in shown]
    Table(f"Soak of {options.minutes:g} minutes", ("what", "value"), rows).print(Console())
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if result["kB a round"] > ALLOWED_KB_A_ROUND:
        raise SystemExit(f"memory grows by {result['kB a round']} kB a round")


if __name__ == "__main__":
    main()
