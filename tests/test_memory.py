"""The memory of large results on a CPU: kept when it is freed, and given to the next one."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import genkern
from genkern._native import unavailable_reason

pytestmark = [
    pytest.mark.skipif(unavailable_reason("cpu") is not None, reason="no native library"),
    pytest.mark.skipif(sys.platform != "linux", reason="kept on Linux"),
    pytest.mark.skipif(
        torch.__version__ < (2, 11),  # type: ignore[operator]
        reason="PyTorch 2.10 takes no memory of others",
    ),
]

SHAPE = (3, 1 << 20)  # 12 MB


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with genkern.use_backend("native"):
        yield


def numbers(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return genkern.random.normal(genkern.random.key(seed), shape)


def lazily_free() -> int:
    """Bytes of this process that the system may take back at any time."""
    found = re.search(r"^LazyFree:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    assert found
    return int(found[1]) << 10


def test_the_next_result_of_a_size_has_the_memory_of_the_last() -> None:
    first = numbers(0)
    address, expected = first.data_ptr(), first.clone()
    del first
    again = numbers(0)
    assert again.data_ptr() == address
    assert torch.equal(again, expected)


def test_memory_in_use_is_not_given_away() -> None:
    results = [numbers(seed) for seed in range(20)]  # more than are kept
    view = results[0][1]
    results[0] = view  # a view keeps it too
    more = [numbers(seed) for seed in range(20)]
    assert len({x.untyped_storage().data_ptr() for x in results + more}) == 40
    for seed in range(1, 20):
        assert torch.equal(results[seed], more[seed])
    assert torch.equal(view, more[0][1])


def test_other_sizes_have_other_memory() -> None:
    large = numbers(0, (7, 1 << 20))
    address = large.data_ptr()
    del large
    small = numbers(0)
    assert small.data_ptr() != address


def test_what_is_kept_is_the_systems_to_take_back() -> None:
    shape = (5, 1 << 20)
    numbers(0, shape)
    kept = lazily_free()
    x = numbers(0, shape)
    used = lazily_free()
    del x
    assert kept - used == 20 << 20
    assert lazily_free() == kept


def test_results_are_tensors_like_others() -> None:
    x = numbers(0)
    assert x.untyped_storage().nbytes() == 12 << 20
    assert torch.equal(copy.deepcopy(x), x)
    assert torch.equal(torch.from_numpy(x.numpy()), x)
    assert torch.equal(torch.utils.dlpack.from_dlpack(x), x)
    expected = x.clone()
    assert torch.equal(x.share_memory_(), expected)
    y = numbers(0)
    y.resize_(2, 3)
    assert torch.equal(y, expected.flatten()[:6].view(2, 3))


def test_gradients_and_channels_last() -> None:
    mu = torch.zeros(2, 8, 512, 512).to(memory_format=torch.channels_last).requires_grad_()
    logvar = torch.zeros_like(mu).requires_grad_()
    key = genkern.random.key(1)
    for _ in range(2):
        z = genkern.vae.rsample(mu, logvar, key=key)
        assert z.stride() == mu.stride()
        (grad,) = torch.autograd.grad(z.sum(), logvar)
        torch.testing.assert_close(grad, 0.5 * z.detach())
        del z, grad


def test_many_threads() -> None:
    shapes = [(3, 1 << 20), (4, 1 << 20), (5, 1 << 20)]
    expected = [numbers(seed, shape) for seed, shape in enumerate(shapes)]

    def work(i: int) -> bool:
        seed = i % len(shapes)
        x = numbers(seed, shapes[seed])
        y = numbers(seed, shapes[seed])
        return torch.equal(x, expected[seed]) and torch.equal(y, expected[seed])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(60)))


def test_a_forked_process_has_its_own() -> None:
    torch.set_num_threads(torch.get_num_threads())
    expected = numbers(0)
    del expected
    expected = numbers(0).clone()
    child = os.fork()
    if child == 0:
        # Without threads, which a forked process does not have.
        torch.set_num_threads(1)
        numbers(1)
        os._exit(0 if torch.equal(numbers(0), expected) else 1)
    assert torch.equal(numbers(0), expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
