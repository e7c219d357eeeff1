"""Hypothesis state machine over the public functions, native against reference and exact values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

import genkern
from benchmarks.fuzz.calls import CALLS, SCHEDULES, Draw, Run
from benchmarks.fuzz.compare import comparing, outputs, same_bits, strides
from benchmarks.fuzz.inputs import DTYPES, LAYOUTS, SHAPES, VALUES, values

# What a public function may raise.
ERRORS = (ValueError, TypeError, IndexError, NotImplementedError)
_KEPT = 6
_STEPS = 25

_seeds = st.integers(0, 2**16)


class Tally:
    """How many calls there were, of what, and how they ended."""

    def __init__(self, on_case: Callable[[], object] = lambda: None) -> None:
        self.calls: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.on_case = on_case
        self.next_seed = 0

    @property
    def cases(self) -> int:
        """The calls so far."""
        return sum(self.calls.values())


def _leaves(tensors: Sequence[Any], which: int) -> list[Any]:
    """The tensors, with gradients where `which` has a bit."""
    return [
        x.detach().requires_grad_()
        if which >> i & 1 and isinstance(x, Tensor) and x.is_floating_point() and not x.is_meta
        else x
        for i, x in enumerate(tensors)
    ]


def _upstream(x: Tensor, dense: bool) -> Tensor:
    """1 for all, in one number's memory; or numbers whose dimensions are in another order."""
    if not dense:
        return torch.ones((), dtype=x.dtype).expand(x.shape)
    return LAYOUTS["reversed"](values(5, "normal", tuple(x.shape), x.dtype))


def _call(
    run: Run, tensors: Sequence[Any], derivatives: int, which: int, dense: bool
) -> tuple[Tensor, ...]:
    """The results and their derivatives by the tensors."""
    leaves = _leaves(tensors, which if derivatives else 0)
    found = list(outputs(run(*leaves)))
    wanted = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    last = found
    for order in range(derivatives):
        last = [x for x in last if x is not None and x.requires_grad]
        if not last or not wanted:
            break
        last = list(
            torch.autograd.grad(
                last, wanted, [_upstream(x, dense) for x in last],
                create_graph=order + 1 < derivatives, allow_unused=True,
            )
        )  # fmt: skip
        found += [x for x in last if x is not None]
    return tuple(found)


def _attempt(call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...] | type[Exception]:
    """The tensors, or the kind of exception; then nothing was drawn from torch's generator."""
    # Not torch.manual_seed, which takes a millisecond to note the seed for every kind of device.
    torch.default_generator.manual_seed(11)
    before = torch.get_rng_state()
    try:
        return call()
    except ERRORS as error:
        assert torch.equal(before, torch.get_rng_state()), f"drawn before the check: {error}"
        return type(error)


def _layout(x: Tensor) -> tuple[Any, ...]:
    return tuple(x.shape), x.dtype, strides(x), x.requires_grad


class PublicApi(RuleBasedStateMachine):
    """A few tensors of one shape, and calls of public functions on them.

    Results of a call become inputs of the next ones.
    """

    tally: ClassVar[Tally] = Tally()

    @initialize(
        shape=SHAPES,
        schedule=st.sampled_from(list(SCHEDULES)),
        threads=st.sampled_from((1, 2)),
        mixed=st.booleans(),
        dtype=st.sampled_from(DTYPES),
        data=st.data(),
    )
    def begin(self, shape, schedule, threads, mixed, dtype, data) -> None:
        self.shape, self.schedule = shape, SCHEDULES[schedule]
        self.threads = torch.get_num_threads()
        torch.set_num_threads(threads)
        self.dtypes = DTYPES if mixed else (dtype,)
        self.pool: list[Tensor] = []
        for _ in range(2):
            self.make(data)

    @rule(data=st.data())
    def make(self, data) -> None:
        """Another tensor, of any values and layout."""
        dtype = data.draw(st.sampled_from(self.dtypes))
        kind, layout = data.draw(st.sampled_from(VALUES)), data.draw(st.sampled_from(list(LAYOUTS)))
        self.keep(LAYOUTS[layout](values(data.draw(_seeds), kind, self.shape, dtype)))

    def keep(self, x: Tensor) -> None:
        self.pool = [*self.pool, x][-_KEPT:]

    def run_case(self, name: str, data: Any, bad: int = -1) -> None:
        draw = Draw(data.draw, self.pool, self.schedule, bad)
        run = CALLS[name](draw)
        derivatives = data.draw(st.sampled_from((0, 1, 1, 1, 2)))
        which, dense = data.draw(st.sampled_from((-1, 1, 2, 3, 5))), data.draw(st.booleans())
        tensors = draw.tensors
        before = [x.clone() if isinstance(x, Tensor) else x for x in tensors]
        self.tally.calls[name] += 1
        self.tally.on_case()

        def call() -> tuple[Tensor, ...]:
            return _call(run, tensors, derivatives, which, dense)

        with comparing() as backend:
            got = _attempt(call)
        self.tally.operators.update(backend.compared)
        with genkern.use_backend("reference"):
            want = _attempt(call)
        for x, kept in zip(tensors, before, strict=True):
            assert not isinstance(x, Tensor) or x.is_meta or same_bits(x, kept), "an input changed"
        if isinstance(got, type) or isinstance(want, type):
            assert got is want, f"native {got}, reference {want}"
            self.tally.ended[got.__name__] += 1
            return
        self.tally.ended["a result"] += 1
        assert list(map(_layout, got)) == list(map(_layout, want))
        first = got[0].detach()
        if first.shape == self.shape and first.dtype in DTYPES and not first.is_meta:
            finite = bool(first.isfinite().all())
            if finite and (first.numel() == 0 or first.abs().max() < 20):
                self.keep(first)

    @rule(name=st.sampled_from([n for n in CALLS if n.startswith("random")]), data=st.data())
    def call_random(self, name, data) -> None:
        """A call of genkern.random."""
        self.run_case(name, data)

    @rule(name=st.sampled_from([n for n in CALLS if n.startswith("vae")]), data=st.data())
    def call_vae(self, name, data) -> None:
        """A call of genkern.vae."""
        self.run_case(name, data)

    @rule(name=st.sampled_from([n for n in CALLS if n.startswith("diffusion")]), data=st.data())
    def call_diffusion(self, name, data) -> None:
        """A call of genkern.diffusion."""
        self.run_case(name, data)

    @rule(name=st.sampled_from([n for n in CALLS if n.startswith("gan")]), data=st.data())
    def call_gan(self, name, data) -> None:
        """A call of genkern.gan."""
        self.run_case(name, data)

    @rule(name=st.sampled_from(list(CALLS)), bad=st.integers(0, 12), data=st.data())
    def call_badly(self, name, bad, data) -> None:
        """A call with one bad argument."""
        self.run_case(name, data, bad)

    def teardown(self) -> None:
        """Leaves the threads as they were."""
        if hasattr(self, "threads"):
            torch.set_num_threads(self.threads)


def run(cases: int, seed: int = 0, on_case: Callable[[], object] = lambda: None) -> Tally:
    """Runs at least so many calls, the same ones for the same seed; raises at the first fault.

    The fault's run of the machine is shown as it was, at once: shortening it takes minutes.

    Args:
        cases: How many calls.
        seed: Seed of the first twenty runs of the machine; the next twenty have the next.
        on_case: Called at each call.
    """
    tally = Tally(on_case)
    twenty = settings(
        max_examples=20, stateful_step_count=_STEPS, deadline=None, database=None,
        phases=(Phase.generate,), suppress_health_check=list(HealthCheck), print_blob=False,
        report_multiple_bugs=False,
    )  # fmt: skip
    while tally.cases < cases:
        machine = type("PublicApi", (PublicApi,), {"tally": tally})
        try:
            run_state_machine_as_test(seeded(seed)(machine), settings=twenty)
        except BaseException:
            print(f"fuzz: stopped; the same again: --seed {seed} --cases 1 --hostile 0", flush=True)
            raise
        seed += 1
    tally.next_seed = seed
    return tally
