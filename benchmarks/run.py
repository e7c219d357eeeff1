"""Runs cases: the gate first, then the times, and a record of both."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

import genkern
from benchmarks import calls, gate, roof
from benchmarks.cases import Case, Target
from benchmarks.timing import Contender, Timing, interleave, running
from genkern._ops.op import BACKENDS

Record = dict[str, Any]

# The reference is the definition, not a contender: beyond this it would only take time.
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
    """The backends to try, the preferred first."""
    # On CPUs Triton has an interpreter only: nothing to time.
    left_out = {"triton", *options.without} if options.device.type == "cpu" else options.without
    return [backend.name for backend in BACKENDS if backend.name not in left_out]


def _summary(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _gates(case: Case, options: Options, record: Record) -> list[str]:
    """Checks every backend, and diffusers; returns the backends that passed."""
    passed: list[str] = []

    def judge(name: str, error: float) -> bool:
        record["gate"][name] = error
        if error > 1.0:
            record["failed"][name] = f"error {error:.3g} times what is allowed"
        return error <= 1.0

    for name in candidates(case, options):
        if name == "reference" and passed and case.elements > _REFERENCE_ELEMENTS:
            continue
        try:
            with genkern.use_backend(name):
                error = gate.check(case, options.device)
        except NotImplementedError as refusal:
            # A line for each backend, "  name: reason".
            reasons = re.findall(rf"^  {name}: (.*)$", str(refusal), re.MULTILINE)
            record["unavailable"][name] = reasons[-1] if reasons else _summary(refusal)
            continue
        if judge(name, error):
            passed.append(name)
    if _meets_diffusers(case, options):
        if find_spec("diffusers") is None:
            record["unavailable"]["diffusers"] = "not installed"
        else:
            judge("diffusers", gate.check_diffusers(case, options.device))
    return passed


def _meets_diffusers(case: Case, options: Options) -> bool:
    """Whether diffusers has the case's operation; its DDPM step draws the noise itself."""
    has = case.problem.diffusers is not None and case.noise != "given"
    return has and "diffusers" not in options.without


def _targets(case: Case, options: Options) -> Sequence[Target]:
    """The case's floors and goals, which are a CPU's."""
    return case.targets if options.device.type == "cpu" else ()


def _contenders(
    given: calls.Arguments, options: Options, backends: list[str], record: Record
) -> dict[str, Contender]:
    """The calls to time, by name."""
    case, threads = given.case, record["threads"]
    step = calls.genkern_step(given)
    against = {target.against for target in _targets(case, options)}
    found: dict[str, Contender] = {}

    if "eager" not in options.without:
        found["eager"] = Contender(calls.eager_step(given), threads)
    if "compile" not in options.without:
        try:
            found["compile"] = Contender(calls.compiled_step(given), threads)
        except Exception as error:  # whatever Inductor raises: there is no compiled code to time
            record["unavailable"]["compile"] = _summary(error)
    if "diffusers" in record["gate"]:
        found["diffusers"] = Contender(calls.diffusers_step(given), threads)
    for name in backends:
        # The preferred backend as users call it, without asking for it.
        asked = None if name == backends[0] and name != "reference" else name
        found[name] = Contender(step, threads, asked)
    own = found[backends[0]]
    if "1 thread" in against and threads > 1:
        found["1 thread"] = dataclasses.replace(own, threads=1)
    if "limit" in against:
        noise = calls.noise_step(case, options.device)
        found["normal"] = dataclasses.replace(own, run=noise)
    stream = case.elements * case.dtype.itemsize
    if stream >= _ROOF_BYTES:
        for name, triad in roof.triads(stream, threads, options.device).items():
            found[name] = Contender(triad, threads)
    return found


def _kept(given: calls.Arguments) -> dict[str, int]:
    if not given.case.backward:
        return {}
    problem = given.case.problem
    return {
        "genkern": calls.kept_bytes(problem.genkern, given, None, given.noise),
        "eager": calls.kept_bytes(problem.eager, given, *given.tables, given.noise),
    }


def prepare(case: Case, options: Options) -> tuple[Record, dict[str, Contender]]:
    """Checks one case; returns what is known of it, and the calls to time if it passed."""
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
        "ratios": {},
        "kept": {},
        "targets": [],
    }
    # Compiled code keeps the number of threads that it was compiled with.
    torch.set_num_threads(record["threads"])
    backends = _gates(case, options, record)
    if record["failed"] or not backends:
        return record, {}
    given = calls.arguments(case, options.device)
    found = _contenders(given, options, backends, record)
    record["backend"] = backends[0]
    with running(found[backends[0]]) as step:
        record["bytes"], record["draws"] = calls.traffic(step)
    record["kept"] = _kept(given)
    return record, found


def _limits(case: Case, times: dict[str, Timing], record: Record) -> dict[str, float]:
    """Seconds that a target's ratio is taken of, by the target's `against`."""
    found = {name: timing.best for name, timing in times.items()}
    triads = [timing.best for name, timing in times.items() if name.startswith("triad")]
    if triads:
        streams = roof.STREAMS * case.elements * case.dtype.itemsize
        found["roof"] = min(triads) * record["bytes"] / streams
        if "normal" in times:
            found["limit"] = max(found["roof"], record["draws"] * found["normal"])
    return found


def run(case: Case, options: Options) -> Record:
    """Checks and times one case; the record holds only what JSON can."""
    record, timed = prepare(case, options)
    if not timed:
        return record
    times = interleave(timed, rounds=options.rounds, seconds=options.seconds, device=options.device)
    own, limits = times[record["backend"]].best, _limits(case, times, record)
    record["times"] = {name: dataclasses.asdict(timing) for name, timing in times.items()}
    record["gbps"] = record["bytes"] / own / 1e9
    record["ratios"] = {n: limits[n] / own for n in limits if n != record["backend"]}
    for target in _targets(case, options):
        ratio = record["ratios"].get(target.against)
        record["targets"].append({**dataclasses.asdict(target), "ratio": ratio})
    return record
