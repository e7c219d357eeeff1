"""Times of alternating calls, and bytes that autograd or a running function holds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UP_CALLS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of a call."""

    median: float  # other programs only ever add to a time
    spread: float  # between the quartiles, as a fraction of the median


def median(seconds: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(seconds)


def alternate(calls: Mapping[str, Callable[[], object]], seconds_each: float) -> dict[str, Timing]:
    """Times the calls in turn, so that a disturbance of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM_UP_CALLS):
            call()
    end = time.perf_counter() + seconds_each * len(calls)
    while time.perf_counter() < end or len(times[next(iter(times))]) < 2:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    timings = {}
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        timings[name] = Timing(middle, (high - low) / middle)
    return timings


def bytes_for_backward(call: Callable[[], object], inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes of the tensors saved for backward: all, and those that are not the inputs.

    A tensor saved twice counts once.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = call()  # alive, so that no address is used twice
    addresses = {x.data_ptr() for x in inputs}
    del outputs
    return sum(saved.values()), sum(n for address, n in saved.items() if address not in addresses)


def bytes_held(step: Callable[[Callable[[Tensor, Tensor], Tensor]], object]) -> int:
    """Bytes of the tensors that step(network) made and holds while the network runs.

    The network's own input does not count.
    """
    before = {storage for storage, _ in storages()}
    held = -1

    def network(x: Tensor, t: Tensor) -> Tensor:
        nonlocal held
        new = dict(pair for pair in storages() if pair[0] not in before)
        new.pop(x.untyped_storage().data_ptr())
        held = sum(new.values())
        return torch.zeros_like(x, requires_grad=True)

    step(network)
    return held


def storages() -> Iterator[tuple[int, int]]:
    """Address and size of the memory of every tensor that Python knows."""
    for item in gc.get_objects():
        if type(item) is Tensor:
            storage = item.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()
