"""genkern_host: the same noise for NumPy, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import genkern

host = pytest.importorskip("genkern_host", reason="genkern_host is not built", exc_type=ImportError)

ANSWERS = np.load(Path(__file__).parent / "data" / "torch_stateless_random_kat.npz")
STREAMS = range(6)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# One number, part of a batch of blocks, exactly one, and several with a tail.
COUNTS = (0, 1, 3, 255, 256, 257, 1003)
KEY = np.array([0x0123456789ABCDEF, 2**32 - 2], np.uint64)
KEYS = np.array([[1, 2], [2**64 - 1, 2**64 - 1], [7, 2**32 - 1]], np.uint64)


@pytest.fixture(autouse=True)
def against_the_reference():
    """Other backends are held to the reference's bits in tests of their own."""
    with genkern.use_backend("reference"):
        yield


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int64)).view(torch.uint64)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def near_float64(actual: np.ndarray, expected: np.ndarray) -> None:
    # The contract allows 1e-14 relative + 4e-15 absolute from the exact value; both are inexact.
    np.testing.assert_allclose(actual, expected, rtol=2e-14, atol=8e-15)


@pytest.mark.parametrize("stream", STREAMS)
def test_recorded_answers(stream):
    key = ANSWERS[f"key_{stream}"]
    for dtype, tag in (("float32", "f32"), ("float64", "f64")):
        expected = ANSWERS[f"uniform_{tag}_{stream}"]
        np.testing.assert_array_equal(host.uniform(key, expected.shape, dtype), expected)
    expected = ANSWERS[f"normal_f32_{stream}"]
    np.testing.assert_allclose(host.normal(key, expected.shape), expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(host.split(key, 5), ANSWERS[f"split_{stream}"])
    np.testing.assert_array_equal(host.fold_in(key, 3), ANSWERS[f"fold_in_3_{stream}"])


@pytest.mark.parametrize("count", COUNTS)
def test_same_bits_as_torch(count):
    key = as_tensor(KEY)
    for draw in ("uniform", "normal"):
        expected = getattr(genkern.random, draw)(key, count, dtype=torch.float32).numpy()
        np.testing.assert_array_equal(bits(getattr(host, draw)(KEY, count)), bits(expected))
    expected = genkern.random.uniform(key, count, dtype=torch.float64).numpy()
    np.testing.assert_array_equal(host.uniform(KEY, count, "float64"), expected)
    expected = genkern.random.normal(key, count, dtype=torch.float64).numpy()
    near_float64(host.normal(KEY, count, np.float64), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_a_sample(dtype):
    shape = (3, 5, 67)
    batched = host.normal(KEYS, shape, dtype)
    assert batched.dtype == dtype and batched.shape == shape
    expected = genkern.random.normal(as_tensor(KEYS), *shape, dtype=DTYPES[dtype]).numpy()
    if dtype == "float32":
        np.testing.assert_array_equal(bits(batched), bits(expected))
    else:
        near_float64(batched, expected)
    for key, sample in zip(KEYS, batched, strict=True):
        np.testing.assert_array_equal(sample, host.normal(key, (5, 67), dtype))


def test_shapes_and_element_order():
    flat = host.normal(KEY, 24)
    np.testing.assert_array_equal(host.normal(KEY, (2, 3, 4)), flat.reshape(2, 3, 4))
    np.testing.assert_array_equal(host.normal(KEY, [np.int64(24)]), flat)
    np.testing.assert_array_equal(host.normal(KEY, np.int64(24)), flat)
    assert host.normal(KEY, ()).shape == () and host.normal(KEY, ())[()] == flat[0]
    assert host.normal(KEY, (0, 3)).shape == (0, 3)
    assert host.normal(KEYS[:0], (0, 3)).shape == (0, 3)


def test_split_and_fold_in():
    children = host.split(KEYS, 4)
    assert children.shape == (4, 3, 2) and children.dtype == np.uint64
    np.testing.assert_array_equal(children, genkern.random.split(as_tensor(KEYS), 4).numpy())
    for i, child in enumerate(children):
        np.testing.assert_array_equal(child, host.fold_in(KEYS, i))
    assert host.split(KEY).shape == (2, 2)
    assert host.split(KEY, 0).shape == (0, 2)

    data = np.array([5, -1, 2**62])
    folded = genkern.random.fold_in(as_tensor(KEYS), torch.from_numpy(data)).numpy()
    np.testing.assert_array_equal(host.fold_in(KEYS, data), folded)
    np.testing.assert_array_equal(host.fold_in(KEYS, data.astype(np.uint64)), folded)
    one_key = genkern.random.fold_in(as_tensor(KEY), torch.from_numpy(data)).numpy()
    np.testing.assert_array_equal(host.fold_in(KEY, data), one_key)
    np.testing.assert_array_equal(host.fold_in(KEY, -1), one_key[1])


def test_int64_and_strided_keys_are_taken_bit_for_bit():
    signed = KEYS.view(np.int64)
    np.testing.assert_array_equal(host.normal(signed, (3, 9)), host.normal(KEYS, (3, 9)))
    assert host.split(signed).dtype == np.int64
    np.testing.assert_array_equal(host.split(signed).view(np.uint64), host.split(KEYS))
    strided = np.asfortranarray(np.repeat(KEYS, 2, axis=0))[::2]
    np.testing.assert_array_equal(host.normal(strided, (3, 9)), host.normal(KEYS, (3, 9)))


def test_several_threads_draw_the_same_numbers():
    expected = host.normal(KEY, 1 << 18)
    drawn = [None] * 4

    def draw(i: int) -> None:
        drawn[i] = host.normal(KEY, 1 << 18)

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(len(drawn))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for numbers in drawn:
        np.testing.assert_array_equal(numbers, expected)


def run(code: str, **environment: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout


def test_imports_without_torch():
    code = "import sys, genkern_host; genkern_host.build_info(); print('torch' in sys.modules)"
    assert run(code) == "False\n"


@pytest.mark.parametrize("capability", ("baseline", "avx2", "avx512"))
def test_every_instruction_set_draws_the_same_bits(capability):
    code = (
        "import numpy as np, hashlib, genkern_host as h\n"
        f"keys = np.array({KEYS.tolist()}, np.uint64)\n"
        "drawn = [f(keys, (3, 40001), d) for f in (h.uniform, h.normal) for d in ('f4', 'f8')]\n"
        "print(h.build_info()['capability'], hashlib.sha256(b''.join(drawn)).hexdigest())"
    )
    chosen, digest = run(code, GENKERN_CPU_CAPABILITY=capability).split()
    if chosen != capability:
        pytest.skip(f"this processor has no {capability}")
    assert digest == run(code, GENKERN_CPU_CAPABILITY="baseline").split()[1]


def test_build_info():
    info = host.build_info()
    assert info["version"] == host.__version__
    assert "-ffp-contract=off" in info["flags"] and info["compiler"]


def test_every_function_has_a_docstring():
    for name in ("uniform", "normal", "split", "fold_in", "build_info"):
        assert len(getattr(host, name).__doc__.splitlines()) > 1


ERRORS = {
    "key dtype": (
        lambda: host.normal(np.zeros(2), 3),
        TypeError,
        "normal: expected key to be a uint64 array (or int64), got float64 of shape (2,)",
    ),
    "key shape": (
        lambda: host.uniform(np.zeros((2, 3), np.uint64), 3),
        ValueError,
        "uniform: expected key to be a uint64 array of shape (2,) or (B, 2), got uint64 of"
        " shape (2, 3)",
    ),
    "key 0-d": (
        lambda: host.split(np.uint64(3)),
        ValueError,
        "split: expected key to be a uint64 array of shape (2,) or (B, 2), got uint64 of shape ()",
    ),
    "negative size": (
        lambda: host.normal(KEY, (2, -1)),
        ValueError,
        "normal: expected shape to be non-negative, got (2, -1)",
    ),
    "fractional size": (
        lambda: host.normal(KEY, 2.5),
        TypeError,
        "normal: expected shape to be integers, got 2.5",
    ),
    "batch": (
        lambda: host.normal(KEYS, (2, 4)),
        ValueError,
        "normal: expected shape to start with 3, the number of keys, got (2, 4)",
    ),
    "no batch": (
        lambda: host.uniform(KEYS, ()),
        ValueError,
        "uniform: expected shape to start with 3, the number of keys, got ()",
    ),
    "dtype": (
        lambda: host.normal(KEY, 3, "int32"),
        TypeError,
        "normal: expected dtype to be float32 or float64, got int32",
    ),
    "num": (
        lambda: host.split(KEY, -1),
        ValueError,
        "split: expected num to be non-negative, got -1",
    ),
    "data dtype": (
        lambda: host.fold_in(KEY, 1.5),
        TypeError,
        "fold_in: expected data to be integers, got float64 of shape ()",
    ),
    "data shape": (
        lambda: host.fold_in(KEYS, np.arange(2)),
        ValueError,
        "fold_in: expected data to be one integer or one for each key, got int64 of shape (2,)"
        " for key of shape (3, 2)",
    ),
}


@pytest.mark.parametrize("call, error, text", ERRORS.values(), ids=ERRORS)
def test_errors(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text


def test_too_many_numbers_is_an_error_and_no_crash():
    with pytest.raises((ValueError, MemoryError)):
        host.normal(KEY, (2**40, 2**40))
