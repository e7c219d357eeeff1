"""Random and hostile calls in the number asked for; the first fault ends the run with its call."""

from __future__ import annotations

import argparse
import faulthandler
import json
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks import environment
from benchmarks.fuzz import machine
from benchmarks.fuzz.hostile import Hostile
from benchmarks.report import Table


def public(cases: int, seed: int, minutes: float) -> dict[str, Any]:
    """Runs the state machine; the number of calls, and how they ended."""
    started, before = time.monotonic(), time.process_time()
    total: dict[str, Counter[str]] = {name: Counter() for name in ("calls", "operators", "ended")}
    done = 0
    with tqdm(total=cases, desc="public functions", unit="call") as bar:
        while done < cases and time.monotonic() - started < 60 * minutes:
            tally = machine.run(min(500, cases - done), seed, bar.update)
            seed = tally.next_seed
            done += tally.cases
            for name, counter in total.items():
                counter.update(getattr(tally, name))
    return {
        "cases": done,
        "compared operator calls": sum(total["operators"].values()),
        "cpu seconds": round(time.process_time() - before),
        **{name: dict(counter.most_common()) for name, counter in total.items()},
    }


def hostile(cases: int, seed: int) -> dict[str, Any]:
    """Makes hostile calls; the number, and how they ended."""
    before, calls = time.process_time(), Hostile(seed)
    for _ in tqdm(range(cases), desc="hostile calls", unit="call"):
        calls.call()
    return {
        "cases": cases,
        "cpu seconds": round(time.process_time() - before),
        "calls": dict(calls.calls.most_common()),
        "ended": dict(calls.ended.most_common()),
    }


def _rows(found: dict[str, Any]) -> list[list[str]]:
    return [[how, f"{count:,}"] for how, count in found["ended"].items()]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="calls of public functions")
    parser.add_argument("--hostile", type=int, default=100_000, help="calls past the checks")
    parser.add_argument("--minutes", type=float, default=600.0, help="end the former after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2,000 calls of each kind")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    if options.quick:
        options.cases = options.hostile = 2000
    faulthandler.enable()
    # NumPy and torch warn where NaN is the right result.
    warnings.simplefilter("ignore")
    result = {
        "environment": environment.describe(torch.device("cpu"), torch.get_num_threads()),
        "seed": options.seed,
        "hostile": hostile(options.hostile, options.seed),
        "public": public(options.cases, options.seed, options.minutes),
    }
    console = Console()
    for title in ("public", "hostile"):
        found = result[title]
        head = f"{title}: {found['cases']:,} calls, no fault, {found['cpu seconds']} CPU seconds"
        Table(head, ("ended with", "calls"), _rows(found)).print(console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
