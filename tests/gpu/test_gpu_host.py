"""The host never waits: no synchronisation, the current stream, CUDA graphs.

Only CUDA has these. tests/test_host_reads.py checks the Python code for the same without a GPU.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from gpu_support import CALLS, copy_into, inputs_on
from public_calls import value_and_gradients
from support import same_bits

from genkern import random

each_call = pytest.mark.parametrize("name", CALLS)


def _set_sync_debug_mode(mode):
    with warnings.catch_warnings():
        # That the mode is a prototype and does not see every synchronisation.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


@contextmanager
def synchronisation_raises():
    torch.cuda.synchronize()
    _set_sync_debug_mode("error")
    try:
        yield
    finally:
        _set_sync_debug_mode("default")


def _run(name, i):
    """The call's values and gradients; `i` stays as it is."""
    return tuple(r.detach() for r in value_and_gradients(CALLS[name], replace(i)))


def _assert_same(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert same_bits(g.cpu(), w.cpu())


def test_a_synchronisation_raises(backend, cuda):
    x = torch.ones(2, device=cuda)
    with synchronisation_raises(), pytest.raises(RuntimeError, match="synchronizing"):
        x[0].item()


@each_call
def test_no_synchronisation(backend, cuda, name):
    """In a second call: the first copies a schedule's table to the device."""
    i = inputs_on(cuda)
    want = _run(name, i)
    with synchronisation_raises():
        got = _run(name, i)
    _assert_same(got, want)


@each_call
def test_runs_on_the_current_stream(backend, cuda, name):
    """On data that the stream writes late: a kernel of another stream would read the old."""
    i, new, stream = inputs_on(cuda), inputs_on(cuda, seed=1), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        want = _run(name, new)
        _run(name, i)  # leaves memory to the call below, which then allocates none
        stream.synchronize()
        torch.cuda._sleep(500_000_000)  # cycles, some 0.3 s
        copy_into(i, new)
        got = _run(name, i)
        assert not stream.query(), "the host waited for the device"
    stream.synchronize()
    _assert_same(got, want)


def _captured(call):
    """A graph of the call, and its result: https://docs.pytorch.org/docs/stable/notes/cuda.html."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


@each_call
def test_a_graph_replays(backend, cuda, name):
    i, old, new = inputs_on(cuda), inputs_on(cuda), inputs_on(cuda, seed=1)
    graph, result = _captured(lambda: _run(name, i))
    for other in (new, old, new):
        copy_into(i, other)
        graph.replay()
        _assert_same(result, _run(name, other))


def test_a_graph_draws_new_keys(backend, cuda):
    """From PyTorch's generator, so that a seed governs them."""
    graph, keys = _captured(lambda: random.new_key(3, device=cuda))
    torch.cuda.manual_seed(5)
    drawn = []
    for _ in range(2):
        graph.replay()
        drawn.append(keys.clone())
    assert not same_bits(*drawn)
    torch.cuda.manual_seed(5)
    graph.replay()
    assert same_bits(keys, drawn[0])
