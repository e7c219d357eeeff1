"""Random and hostile calls, the same ones each time; `make fuzz` makes more."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from public_calls import CALLS as PUBLIC

import genkern
from benchmarks.fuzz import calls, compare, machine
from benchmarks.fuzz.hostile import Hostile
from genkern import diffusion, gan, vae
from genkern._native import unavailable_reason
from genkern._ops.elements import REDUCTIONS
from genkern._ops.op import OPS

pytestmark = pytest.mark.skipif(
    unavailable_reason("cpu") is not None, reason="the native library is needed"
)
CASES = 2000


def test_every_public_function_is_called():
    assert set(calls.CALLS) == {name.split()[0] for name in PUBLIC} - {"random.new_key"}


def test_random_calls_agree_with_the_reference_and_the_exact_values():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NaN and of empty tensors, where they are right
        tally = machine.run(CASES)
    assert tally.cases >= CASES
    # Most calls are good, and no function is left out.
    assert tally.ended["a result"] > CASES // 2 and tally.ended["ValueError"] > CASES // 50
    assert set(tally.calls) == set(calls.CALLS)
    # Every operator ran and was compared, but for what a sampler of few calls needs, and what only
    # the integrations call.
    assert set(OPS) - set(tally.operators) <= {"affine_out", "sampler_step_x0"}


def test_hostile_calls_raise_or_are_right():
    hostile = Hostile(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors
        for _ in range(CASES):
            hostile.call()
    assert hostile.ended["a result"] > CASES // 5 and hostile.ended["RuntimeError"] > CASES // 5


def test_a_wrong_result_is_found():
    """The comparison fails for an error of four roundings in one element."""
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    op, args = OPS["optimal_discriminator"], (x, y)
    right = op.reference(*args)
    assert compare.problem(op, args, right, right) is None
    wrong = right.clone()
    wrong[1, 2] *= 1 + 32 * torch.finfo(torch.float32).eps
    assert "native is off at (1, 2)" in compare.problem(op, args, wrong, right)
    wrong[1, 2] = float("nan")
    assert "at (1, 2): native gives nan" in compare.problem(op, args, wrong, right)
    assert "strides" in compare.problem(op, args, right.T.contiguous().T, right)


def test_a_mean_is_infinite_only_where_its_sum_is():
    """float32 partial sums overflow, in an order of their own; what is finite has to be right."""
    op, infinite = OPS["gaussian_nll"], torch.tensor(math.inf)
    for size, allowed in ((1.5e19, False), (2.5e19, True)):  # sums of 2.3e38 and 6.3e38
        args = torch.full((2,), size), torch.zeros(2), None, 1.0, 0.0, 0.0, REDUCTIONS["mean"]
        right = torch.tensor(size * size / 2)
        assert compare.problem(op, args, right, right) is None
        assert (compare.problem(op, args, right, infinite) is None) == allowed
        assert (compare.problem(op, args, infinite, right) is None) == allowed
        wrong = right * (1 + 32 * torch.finfo(torch.float32).eps)
        for other in (right, infinite) if allowed else (right,):
            assert "native is off" in compare.problem(op, args, wrong, other)
    # One that is not reduced has no terms to overflow.
    args = torch.full((2,), 2.5e19), torch.zeros(2), None, 1.0, 0.0, 0.0, REDUCTIONS["none"]
    assert "at (0,)" in compare.problem(op, args, infinite.repeat(2), right.repeat(2))


NO_CLIP = -math.inf, math.inf


def test_a_square_is_infinite_only_where_its_rounding_errors_are():
    """d is 0; a fused product leaves the other's rounding error, which is squared."""
    infinite, none = torch.full((1, 1), math.inf), torch.zeros(0)
    for size, allowed in ((3e38, True), (1e3, False)):
        x, zero = torch.full((1, 1), size), torch.zeros(1, 1)
        for decoder in (0.0, 1.0):
            row = torch.tensor([[0.0, -0.1, 0.1, 1.0, 0.0, 0.0, 1.0, decoder]])
            args = x, zero, zero, None, x, row, None, *NO_CLIP, 1e-3, 0.0, True, REDUCTIONS["none"]
            for name, given in (("vlb", args), ("vlb_backward", (torch.ones(1, 1), *args, 0b10))):
                right = OPS[name].reference(*given)
                wrong = infinite if name == "vlb" else (none, infinite)
                assert compare.problem(OPS[name], given, right, right) is None
                assert (compare.problem(OPS[name], given, wrong, right) is None) == allowed


def test_a_term_that_overflows_may_make_its_sum_times_0_a_nan():
    """x less 2 x, with a weight of 0: 0, or in two roundings 0 times infinity."""
    row, grad, weight = torch.tensor([[2.0, 0.0, 1.0, 0.0]]), torch.ones(()), torch.zeros(1)
    op, none = OPS["noise_loss_backward"], torch.zeros(0)
    right, nan = (torch.zeros(1, 1), none, none), (torch.full((1, 1), math.nan), none, none)
    for size, allowed in ((3e38, True), (1e38, False)):
        x = torch.full((1, 1), size)
        args = grad, x, x, None, None, row, None, weight, REDUCTIONS["sum"], 1
        assert compare.problem(op, args, right, right) is None
        assert (compare.problem(op, args, right, nan) is None) == allowed


def test_what_is_not_finite_is_compared_too():
    """An input that is not finite has no scale, but the result a class."""
    op, rest = OPS["gaussian_nll"], (torch.zeros(1), None, 1.0, 0.0, 0.0, REDUCTIONS["none"])
    for x in (math.inf, math.nan):
        args = torch.full((1,), x), *rest
        right = op.reference(*args)
        assert compare.problem(op, args, right, right) is None
        for other in (0.0, math.nan) if x == math.inf else (0.0,):
            found = compare.problem(op, args, torch.full((1,), other), right)
            assert found is not None and "at (0,): native gives" in found


def test_a_fault_is_reported_with_its_call_and_seed(monkeypatch, capsys):
    monkeypatch.setitem(calls.CALLS, "gan.r1_penalty", _unequal)
    with pytest.raises(AssertionError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine.run(500, seed=3)
    assert "--seed 3 " in capsys.readouterr().out


def _unequal(d: calls.Draw) -> calls.Run:
    """A function whose result has another shape natively."""
    x = d.tensor()
    return lambda *a: a[x].new_zeros(2 + (compare.BACKENDS[0].name == "comparing"))


# ---- what the fuzzing found, each once


def test_a_clamped_logvar_has_no_gradient_where_the_kl_is_infinite():
    """Zero times infinity gave NaN."""
    mu = torch.zeros(3)
    logvar = torch.tensor([-9.0, 0.0, 9.0], requires_grad=True)
    loss = vae.kl(mu, logvar, 0.0, -100.0, logvar_clamp=(-1.0, 1.0), reduction="sum")
    (grad,) = torch.autograd.grad(loss, logvar)
    assert grad.tolist() == [0.0, float("inf"), 0.0]


def test_free_bits_have_no_gradient_where_the_upstream_gradient_is_infinite():
    """As above, below the floor."""
    mu = torch.tensor([0.0, 2.0], requires_grad=True)
    loss = vae.kl(mu, torch.zeros(2), free_bits=0.1, reduction="none")
    (grad,) = torch.autograd.grad(loss, mu, torch.full((2,), float("inf")))
    assert grad.tolist() == [0.0, float("inf")]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_gradient_does_not_overflow_before_its_small_factor(backend):
    """The bound's derivative, 1e39, is beyond float32; a thousandth of it is not."""
    pred, zeros = torch.tensor([[1e37]]), torch.zeros(1, 1)
    rows = torch.tensor([[0.0, 0.0, 10.0, 1.0, 0.0, 0.0, 0.0, 0.0]])  # d = 10 pred, KL = d^2 / 2
    options = *NO_CLIP, 1.0, 0.0, False, REDUCTIONS["none"], 1
    with genkern.use_backend(backend):
        grad, _ = OPS["vlb_backward"](
            torch.tensor([[1e-3]]), pred, None, zeros, None, zeros, rows, None, *options
        )
    assert grad.item() == pytest.approx(1e36)


@pytest.mark.parametrize("t", [0, 3])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_bound_of_an_infinite_prediction(backend, t):
    """Without variances, the native kernel multiplied the difference by 0 in their place."""
    pred, zeros = torch.tensor([[math.inf], [-math.inf]]), torch.zeros(2, 1)
    schedule = diffusion.NoiseSchedule.linear(10)
    with genkern.use_backend(backend):
        bound = diffusion.vlb_terms(pred, zeros, t, schedule, noise=zeros)
    assert bound.tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_half_a_square_does_not_overflow_before_its_half(backend):
    with genkern.use_backend(backend):
        value = vae.gaussian_nll(torch.tensor([2e19]), torch.zeros(1), reduction="sum")
    assert value.item() == pytest.approx(2e38)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_equal_numbers_deviate_by_nothing(backend):
    """The mean of 5000 equal numbers is rounded, and each deviated from it."""
    with genkern.use_backend(backend):
        factor = OPS["guidance_factor"](torch.full((1, 5000), 2.9346), _ramp(), 3.0, 1.0)
    assert factor.item() == 0.0


def _ramp() -> torch.Tensor:
    return torch.linspace(-1.0, 1.0, 5000)[None]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_guidance_factor_multiplies_an_unguided_prediction(backend):
    """It was left out where there was nothing to guide by."""
    x, pred, factor = torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.5, 3.0])
    rows = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    step = (x, pred, None, None, None, None, rows, None, factor, None, 1.0, *NO_CLIP)
    with genkern.use_backend(backend):
        assert OPS["sampler_step"](*step).tolist() == [[0.5], [3.0]]
        threshold = OPS["dynamic_threshold"](x, pred, None, rows, None, factor, 1.0, 0.5, 9.0)
    assert threshold.tolist() == [1.0, 3.0]


def test_a_gradient_of_integers_is_refused():
    """It came as float32."""
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="expected float32, float64, bfloat16 or float16"):
        OPS["interpolate_backward"](x, x, x.int(), torch.zeros(2, dtype=torch.int64), None, 3)


def _shrunk(x: torch.Tensor) -> torch.Tensor:
    x.untyped_storage().resize_(4)
    return x


def _unaligned() -> torch.Tensor:
    return torch.frombuffer(bytearray(17), dtype=torch.float32, count=4, offset=1)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.zeros([2, *[1] * 70, 0]), "expected at most 64 dimensions, got 72"),
        (_shrunk(torch.zeros(5)), "reaches beyond its storage of 4 bytes"),
        (_unaligned(), "is not aligned to its elements"),
    ],
    ids=["deep", "shrunk", "unaligned"],
)
def test_memory_is_checked(x, text):
    with pytest.raises(RuntimeError, match=text):
        OPS["gradient_penalty"](x, 1.0, 1.0, 1)


@pytest.mark.parametrize("reduction", [-1, 5, 2**40])
def test_an_unknown_reduction_is_refused(reduction):
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="expected a reduction from 0 to 4"):
        OPS["bernoulli_nll"](x, x, reduction)


def test_a_shape_beyond_all_numbers_is_refused():
    key = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"fewer than 2\^63"):
        OPS["normal"](key, [2**40, 2**40], torch.float32)


def test_weights_outside_0_and_1_are_compared_too():
    x = torch.tensor([[3.0], [-2.0]])
    assert gan.interpolate(x, x, noise=torch.tensor([-4.0, 7.0])).tolist() == [[3.0], [-2.0]]


def test_no_samples_have_no_guidance_factors():
    """The exact values asked for the size of a sample where there was none."""
    x = torch.zeros(0, 3)
    op, args = OPS["guidance_factor"], (x, x, 2.0, 0.7)
    assert compare.problem(op, args, op(*args), op.reference(*args)) is None
