"""Runs cases: the gate first, then the times, and a record of both."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch

import genkern
from benchmarks import calls, gate, roof
from benchmarks.cases import Case
from benchmarks.timing import Contender, Timing, interleave, running
from genkern._ops.op import BACKENDS

Record = dict[str, Any]

# The reference is the definition, not a contender: beyond this it only takes time.
_REFERENCE_ELEMENTS = 1 << 20
# Below this the streams lie in the processor's own caches, and memory is no roof.
_ROOF_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run."""

    device: torch.device
    threads: int
    rounds: int
    seconds: float
    without: frozenset[str] = frozenset()


def candidates(case: Case, options: Options) -> list[str]:
    """The backends that a case is run with, the preferred first."""
    found = []
    for backend in BACKENDS:
        name = backend.name
        # On CPUs Triton has an interpreter only: nothing to time.
        interpreted = name == "triton" and options.device.type == "cpu"
        too_slow = name == "reference" and case.elements > _REFERENCE_ELEMENTS and found
        if not (interpreted or too_slow or name in options.without):
            found.append(name)
    return found


def _summary(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _gates(case: Case, options: Options, record: Record) -> list[str]:
    """Checks every backend; returns those that passed."""
    passed = []
    for name in candidates(case, options):
        try:
            with genkern.use_backend(name):
                error = gate.check(case, options.device)
        except NotImplementedError as refusal:
            # A line for each backend, "  name: reason".
            reasons = re.findall(rf"^  {name}: (.*)$", str(refusal), re.MULTILINE)
            record["unavailable"][name] = reasons[-1] if reasons else _summary(refusal)
            continue
        record["gate"][name] = error
        if error <= 1.0:
            passed.append(name)
        else:
            record["failed"][name] = f"error {error:.3g} times what is allowed"
    return passed


def contenders(
    case: Case, options: Options, backends: list[str], record: Record
) -> dict[str, Contender]:
    """The calls to time, by name."""
    threads = min(case.threads or options.threads, options.threads)
    given = calls.arguments(case, options.device)
    step = calls.genkern_step(given)
    against = {target.against for target in case.targets}
    found: dict[str, Contender] = {}

    def add(name: str, make: Callable[[], Callable[[], Any]], threads: int = threads) -> None:
        if name not in options.without:
            found[name] = Contender(make(), threads)

    add("eager", lambda: calls.step(case.problem.eager, given, given.noise))
    try:
        torch.set_num_threads(threads)  # the compiled code keeps the number it was compiled with
        add("compile", lambda: calls.step(calls.compiled(case), given, given.noise))
    except Exception as error:  # whatever Inductor raises: there is no compiled code to time
        record["unavailable"]["compile"] = _summary(error)
    for name in backends:
        # The preferred backend as users call it, without asking for one.
        found[name] = Contender(step, threads, None if name == backends[0] else name)
    if "1 thread" in against and threads > 1:
        found["1 thread"] = Contender(step, 1)
    if "limit" in against:
        found["normal"] = Contender(calls.noise_step(case, options.device), threads)
    stream = case.elements * case.dtype.itemsize
    if options.device.type == "cpu" and stream >= _ROOF_BYTES:
        for name, triad in roof.triads(stream, threads).items():
            found[name] = Contender(triad, threads)
    return found


def _kept(case: Case, options: Options, given: calls.Arguments) -> dict[str, int]:
    if not case.backward:
        return {}
    problem = case.problem
    return {
        "genkern": calls.kept_bytes(problem.genkern, given, None, given.noise),
        "eager": calls.kept_bytes(problem.eager, given, given.noise),
    }


def _limits(case: Case, times: dict[str, Timing], record: Record) -> dict[str, float]:
    """Seconds that a target's ratio is taken of, by the target's `against`."""
    found = {name: timing.best for name, timing in times.items()}
    triads = [timing.best for name, timing in times.items() if name.startswith("triad")]
    if triads:
        streams = roof.STREAMS * case.elements * case.dtype.itemsize
        found["roof"] = min(triads) * record["bytes"] / streams
        found["limit"] = max(found["roof"], record["draws"] * found.get("normal", 0.0))
    return found


def run(case: Case, options: Options) -> Record:
    """Checks and times one case; the record holds only what JSON can."""
    record: Record = {
        "case": case.id,
        "problem": case.problem.name,
        "shape": list(case.shape),
        "elements": case.elements,
        "dtype": str(case.dtype).removeprefix("torch."),
        "direction": "forward+backward" if case.backward else "forward",
        "threads": min(case.threads or options.threads, options.threads),
        "gate": {},
        "failed": {},
        "unavailable": {},
        "times": {},
        "kept": {},
        "targets": [],
    }
    torch.set_num_threads(record["threads"])
    backends = _gates(case, options, record)
    if record["failed"] or not backends:
        return record
    timed = contenders(case, options, backends, record)
    with running(timed[backends[0]]) as step:
        record["bytes"], record["draws"] = calls.traffic(step)
    record["kept"] = _kept(case, options, calls.arguments(case, options.device))
    times = interleave(timed, rounds=options.rounds, seconds=options.seconds, device=options.device)
    record["backend"] = backends[0]
    record["times"] = {name: dataclasses.asdict(timing) for name, timing in times.items()}
    own, limits = times[backends[0]].best, _limits(case, times, record)
    record["gbps"] = record["bytes"] / own / 1e9
    record["ratios"] = {name: limits[name] / own for name in limits if name != backends[0]}
    for target in case.targets:
        ratio = record["ratios"].get(target.against)
        record["targets"].append({**dataclasses.asdict(target), "ratio": ratio})
    return record
