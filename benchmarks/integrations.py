"""Times of diffusers' loops with and without genkern, outside the network.

    python -m benchmarks.integrations [--threads 2] [--compile] [--json FILE]

A sampling loop with a network that costs nothing, and a training step's share of an autoencoder's
posterior. The best of several runs, the contenders in turn.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import environment

_SHAPE = (16, 3, 32, 32)
_MOMENTS = (8, 8, 64, 64)

Loop = Callable[[], object]


def _best(loops: dict[str, Loop], runs: int) -> dict[str, float]:
    best = dict.fromkeys(loops, float("inf"))
    for run in range(runs + 1):
        for name, loop in loops.items():
            start = time.perf_counter()
            loop()
            if run:  # the first one warms up
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _sampling(scheduler: Any, steps: int, compiled: bool) -> Loop:
    generator = torch.Generator().manual_seed(0)
    x_t, pred = (torch.randn(_SHAPE, generator=generator) for _ in range(2))

    def walk(x: Tensor) -> Tensor:
        for t in scheduler.timesteps:
            x = scheduler.step(pred, t, x).prev_sample
        return x

    if compiled:
        walk = torch.compile(walk, fullgraph=True)

    @torch.no_grad()
    def loop() -> Tensor:
        scheduler.set_timesteps(steps)
        return walk(x_t)

    return loop


def _posterior(kind: Any) -> Loop:
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(_MOMENTS, generator=generator).requires_grad_()
    upstream = torch.randn(8, 4, 64, 64, generator=generator), torch.ones(8)

    def call() -> tuple[Tensor, ...]:
        posterior = kind(moments)
        return torch.autograd.grad((posterior.sample(), posterior.kl()), moments, upstream)

    return call


def _contenders(stock: Any, ours: Any) -> dict[str, Any]:
    keyed = type(ours.__name__, (ours,), {"noise": "key"})
    return {"diffusers": stock, "genkern, diffusers' noise": ours, "genkern, keys": keyed}


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also torch.compile around loops")
    parser.add_argument("--json", metavar="FILE", help="write the times")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DDIMScheduler, DDPMScheduler
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        from genkern.integrations import diffusers as integration

    tables = []
    ddpm = DDPMScheduler, integration.GenkernDDPMScheduler
    ddim = DDIMScheduler, integration.GenkernDDIMScheduler
    cases = [(*ddpm, 1000, 3), (*ddim, 50, 20)]
    if arguments.compile:
        # Not of 1000 steps, which are unrolled.
        cases.append((*ddpm, 50, 20))
    for stock, ours, steps, runs in cases:
        loops = {
            name: _sampling(kind(), steps, compiled=False)
            for name, kind in _contenders(stock, ours).items()
        }
        if arguments.compile and steps == 50:
            keyed = _contenders(stock, ours)["genkern, keys"]
            loops["genkern, keys, compiled loop"] = _sampling(keyed(), steps, compiled=True)
        tables.append((f"{stock.__name__}, {steps} steps, {_SHAPE}", _best(loops, runs)))
    posteriors = _contenders(
        DiagonalGaussianDistribution, integration.GenkernDiagonalGaussianDistribution
    )
    calls = {name: _posterior(kind) for name, kind in posteriors.items()}
    tables.append((f"posterior, sample + kl, forward and backward, {_MOMENTS}", _best(calls, 30)))
    for title, times in tables:
        print(title)
        for name, seconds in times.items():
            ratio = times["diffusers"] / seconds
            print(f"  {name:28} {1e3 * seconds:9.2f} ms {ratio:7.2f}x")
    if arguments.json:
        facts = environment.describe(torch.device("cpu"), arguments.threads)
        named = [{"title": title, "times": times} for title, times in tables]
        results = {"environment": facts, "tables": named}
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
