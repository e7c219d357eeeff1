"""The cases under pytest-benchmark: `pytest benchmarks --benchmark-json=FILE`."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from benchmarks.cases import CASES, Case
from benchmarks.run import Options, Record, prepare
from benchmarks.timing import Contender, estimate, repeats, running
from genkern._ops.op import BACKENDS

# The project's tests turn warnings into errors; here torch.compile's own are none of our business.
pytestmark = pytest.mark.filterwarnings("default")

_NAMES = ("eager", "compile", "diffusers", *(backend.name for backend in BACKENDS))
_THREADS = torch.get_num_threads()
_ROUNDS = 7


# The case in hand only: the large ones hold hundreds of megabytes.
@functools.lru_cache(maxsize=1)
def _prepared(case: Case) -> tuple[Record, dict[str, Contender]]:
    options = Options(torch.device("cpu"), _THREADS, rounds=_ROUNDS, seconds=math.inf)
    return prepare(case, options)


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_speed(benchmark: Any, case: Case, name: str) -> None:
    record, contenders = _prepared(case)
    if record["failed"]:
        pytest.fail(f"FAILED, not timed: {record['failed']}")
    if name not in contenders:
        pytest.skip(record["unavailable"].get(name, "not timed at this size"))
    with running(contenders[name]) as run:
        benchmark.pedantic(run, rounds=_ROUNDS, iterations=repeats(estimate(run)))
    facts = ("shape", "dtype", "direction", "threads", "kept")
    benchmark.group = case.id
    benchmark.extra_info.update({fact: record[fact] for fact in facts})
    benchmark.extra_info.update(contender=name, torch=torch.__version__)
    if name in record["gate"]:
        gbps = record["bytes"] / benchmark.stats.stats.min / 1e9
        benchmark.extra_info.update(bytes=record["bytes"], gbps=gbps)
