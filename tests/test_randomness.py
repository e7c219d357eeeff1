"""The randomness of the streams: `python -m benchmarks.randomness`, on fewer draws.

Keys are fixed, so a p value is the same in every run; a wrong generator gives some near 0 or 1.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks.randomness import battery, independence, normals, streams
from genkern import random

EXTREME = 1e-4


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if battery.compiler() is None:
        pytest.skip("the battery is C++: there is no compiler")
    return battery.build(tmp_path_factory.mktemp("battery"))


def test_words_pass_the_battery(program):
    found = battery.run(program, streams.one_key(random.key(7)))
    assert len(found) == 15
    assert all(EXTREME < p < 1.0 - EXTREME for p in found.values()), found


def test_normals_pass_the_battery(program):
    found = battery.run(program, streams.normals(random.key(7)))
    assert all(EXTREME < p < 1.0 - EXTREME for p in found.values()), found


def test_every_test_of_the_battery_sees_a_bad_generator(program):
    """Multiples of an odd number: each word comes equally often, and they are not random."""

    def multiples():
        words = np.arange(1 << 18, dtype=np.uint32)
        while True:
            yield words * np.uint32(2654435769)
            words = words + np.uint32(len(words))

    found = battery.run(program, multiples())
    assert all(p < 1e-10 for p in found.values()), found


def test_words_that_end_are_an_error(program):
    with pytest.raises(RuntimeError, match="exit code 1"):
        battery.run(program, [np.zeros(8, np.uint32)])


@pytest.mark.parametrize("name", streams.STREAMS)
def test_streams_are_what_they_say(name):
    key, count = random.key(11), 64
    first = next(streams.STREAMS[name](key))[:count]

    def words(k, n):
        return random.split(k, n).view(torch.int32).numpy().view(np.uint32).ravel()

    expected = {
        "one_key": lambda: words(key, 16)[:count],
        "one_lane": lambda: words(key, count)[::4],
        "split_keys": lambda: [w for k in random.split(key, 16) for w in words(k, 1)],
        "fold_in_keys": lambda: [words(random.fold_in(key, i), 1)[0] for i in range(count)],
        "seeds": lambda: [words(random.key(11 + i), 1)[0] for i in range(count)],
    }
    if name in expected:
        assert first.ravel()[:count].tolist() == list(expected[name]())
        return
    dtype = torch.float64 if name == "normals64" else torch.float32
    drawn = random.normal(key, 2 * count, dtype=dtype)
    phi = [0.5 * math.erfc(-z / math.sqrt(2.0)) for z in drawn.tolist()]
    if name == "normals":
        halves = [int(p * 2**16) for p in phi]
        assert first.ravel()[: count // 2].tolist() == [
            a << 16 | b for a, b in zip(halves[0:count:2], halves[1:count:2], strict=True)
        ]
    else:
        gap = np.abs(first.ravel().astype(float)[:count] - np.array(phi[:count]) * 2.0**32)
        assert gap.max() <= 1.0


def test_a_stream_goes_on_where_it_stopped(monkeypatch):
    wanted = {name: np.concatenate([*_first(s, 2)]) for name, s in streams.STREAMS.items()}
    monkeypatch.setattr(streams, "_BLOCKS", 2 * streams._BLOCKS)
    for name, stream in streams.STREAMS.items():
        assert np.array_equal(next(stream(random.key(3))).ravel(), wanted[name]), name


def _first(stream, count):
    return (chunk.ravel() for chunk in itertools.islice(stream(random.key(3)), count))


# ---- laws


def test_laws_of_walks_by_enumeration():
    steps = 10
    counts: dict[str, Counter[int]] = {name: Counter() for name in battery.walk_laws(steps)}
    for walk in itertools.product((-1, 1), repeat=steps):
        places = [0, *itertools.accumulate(walk)]
        signs = [p > 0 for p in places if p]
        pairs = list(itertools.pairwise(places))
        counts["walk_ups"][walk.count(1)] += 1
        counts["walk_maximum"][max(places)] += 1
        counts["walk_above"][sum(a > 0 or b > 0 for a, b in pairs)] += 1
        counts["walk_returns"][places.count(0) - 1] += 1
        counts["walk_sign_changes"][sum(a != b for a, b in itertools.pairwise(signs))] += 1
    for name, law in battery.walk_laws(steps).items():
        found = [counts[name][i] / 2**steps for i in range(steps + 1)]
        np.testing.assert_allclose(law, found, rtol=1e-12, atol=1e-15, err_msg=name)


def test_laws_of_tables_add_to_one():
    laws = [battery._gap_law(4096), battery._coupon_law(512), battery._rank_law(60)]
    for law in (*laws, battery._distinct(64, 64)[64]):
        assert law.min() >= 0.0
        assert abs(law.sum() - 1.0) < 1e-12
    # Matrices of one and of two rows, counted by hand.
    np.testing.assert_allclose(battery._rank_law(1), [1 / 2, 1 / 2])
    np.testing.assert_allclose(battery._rank_law(2), [1 / 16, 9 / 16, 6 / 16])


@pytest.mark.parametrize(("statistic", "p"), [(1.9330, 0.10), (2.4924, 0.05), (3.8781, 0.01)])
def test_anderson_darling_quantiles(statistic, p):
    assert abs(battery.anderson_darling(statistic) - p) < 1e-4


def test_every_word_has_a_unit():
    """On the words around each power of two, where the rounding changes, counted one by one."""
    units: Counter[float] = Counter()
    for u, n in _some_units():
        units[float(u)] += int(n)
    for power in range(24, 33):
        center = 1 << power
        words = np.arange(center - 2048, min(center + 2048, 1 << 32), dtype=np.uint64)
        x = words.astype(np.float32).astype(np.float64)
        values = (x * 2.0**-32 + 2.0**-33).astype(np.float32).tolist()
        inside = Counter(values)
        for value in {values[0], values[-1]} - {1.0}:
            del inside[value]  # some of its words may lie outside
        for value, count in inside.items():
            assert units[value] == count, (power, value)


def _some_units():
    """The first and last values of each group."""
    for u, words in normals._units():
        ends = np.unique(np.r_[: min(4096, len(u)), max(0, len(u) - 4096) : len(u)])
        yield from zip(u[ends], words[ends], strict=True)


# ---- draws


def test_statistics_of_ten_million_normals():
    found = normals.statistics(random.key(5), 10**7, torch.float32)
    assert all(abs(m["z"]) < 4.0 for m in found["moments"]), found["moments"]
    for judged in (found["kolmogorov_smirnov"], found["anderson_darling"], found["largest"]):
        assert EXTREME < judged["p"] < 1.0 - EXTREME, found
    assert all(t["p"] > EXTREME for t in found["tails"]), found["tails"]


@pytest.mark.parametrize("wrong", ["scale", "shift", "tail"])
def test_statistics_see_a_wrong_normal(wrong, monkeypatch):
    drawn = random.normal

    def draw(key, *shape, dtype=None):
        z = drawn(key, *shape, dtype=dtype)
        if wrong == "tail":
            return z.clamp(-3.5, 3.5)
        return z * 1.002 if wrong == "scale" else z + 0.004

    monkeypatch.setattr(random, "normal", draw)
    found = normals.statistics(random.key(5), 1 << 22, torch.float32)
    judged = {
        "scale": found["moments"][1]["z"] > 4.0,
        "shift": found["anderson_darling"]["p"] < EXTREME
        and found["kolmogorov_smirnov"]["p"] < EXTREME,
        "tail": found["tails"][1]["p"] < EXTREME,
    }
    assert judged[wrong], found


def test_lanes_and_keys_are_independent():
    found = {
        "lanes": independence.lanes(random.key(5), 1 << 18),
        **independence.families(random.key(5), 32, 1 << 15),
    }
    for name, r in found.items():
        assert r["p"] > EXTREME and r["largest_p"] > EXTREME, (name, r)


@pytest.mark.parametrize("wrong", ["shared", "mirrored", "scaled together"])
def test_rows_that_depend_are_seen(wrong):
    z = random.normal(random.key(5), 8, 1 << 15)
    mix = 0.05 * z[0]
    z[1] = {
        "shared": z[1] + mix,
        "mirrored": torch.where(torch.arange(1 << 15) % 16 == 0, -z[0], z[1]),
        "scaled together": z[1] * (1.0 + mix.abs()),
    }[wrong]
    assert independence.rows(z)["largest_p"] < EXTREME
