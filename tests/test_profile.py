"""The profile's readers and ratios, and its parts on one operator. No time is judged here."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

import genkern
from benchmarks import gate
from benchmarks.problems import diffusion, gan
from benchmarks.profile import __main__, instructions, latency, sizes, vectorised
from benchmarks.profile.operators import OPERATORS, Operator
from genkern._native import unavailable_reason

_DUMP = """\
version: 1
desc: Trigger: Client Request: q_sample-drawn-fwd float32 4096
positions: line
events: Ir
ob=(1) /lib/python
fn=(1) call
10 500
cob=(2) /somewhere/genkern/libgenkern_cpu.so
cfn=(2) affine
calls=1 0
11 7000

ob=(2)
fn=(2) affine
0 40
+3 2
cob=(3) /lib/x86_64-linux-gnu/libc.so.6
cfn=(3) memcpy
calls=1 0
* 9
-1 8

ob=(3)
fn=(3) memcpy
5 9

ob=(1)
fn=(4) other
1 1000

totals: 1559
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    backend = "native" if unavailable_reason("cpu") is None else "reference"
    with genkern.use_backend(backend):
        yield
    torch.set_num_threads(before)


def test_names_are_unique() -> None:
    assert len({operator.name for operator in OPERATORS}) == len(OPERATORS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "problem",
    [diffusion.DDPM_STEP_RESCALED, diffusion.DDPM_STEP_THRESHOLD, gan.OPTIMAL_DISCRIMINATOR],
    ids=lambda problem: problem.name,
)
def test_problems_that_only_the_profile_has_are_right(problem, dtype: torch.dtype) -> None:
    noise = "" if problem is gan.OPTIMAL_DISCRIMINATOR else "drawn"
    backward = problem is gan.OPTIMAL_DISCRIMINATOR
    case = Operator(problem, noise, backward).case((4, 6), dtype)
    assert gate.check(case, torch.device("cpu")) <= 1.0


def test_callgrinds_file_is_read() -> None:
    # What the kernel and the copy ran themselves: neither Python, nor a callee's total twice.
    found = instructions.read(iter(_DUMP.splitlines(keepends=True)))
    assert found == ("q_sample-drawn-fwd float32 4096", 40 + 2 + 8 + 9)
    end = _DUMP.replace("Client Request: q_sample-drawn-fwd float32 4096", "Program termination")
    assert instructions.read(iter(end.splitlines(keepends=True))) is None


def test_an_odd_size_has_its_even_neighbour() -> None:
    assert sizes.neighbour((1, 1025)) == (1, 1024)
    assert sizes.neighbour((1, 63)) == (1, 64)
    assert sizes.neighbour((64, 1023)) == (64, 1024)
    assert sizes.neighbour((1, 64)) is None
    found = sizes.ratios({"1023": 3.0 * 1023, "1024": 2.0 * 1024, "64 x 1024": 1.0})
    assert found == {"1023": 1.5}


def test_what_cannot_be_measured_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    monkeypatch.setattr(vectorised, "missing_reason", lambda: "cmake was not found")
    assert __main__.main(["instructions", "vectorised", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "instructions: skipped, valgrind was not found" in out
    assert "vectorised: skipped, cmake was not found" in out


def test_an_unknown_part_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["nothing"])
    assert stopped.value.code == 2
    assert "no part 'nothing'; there are instructions," in capsys.readouterr().err


def test_parts_write_their_numbers_and_keep_the_others(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its processes take seconds; one of the calls stands for all.
    monkeypatch.setattr(latency, "_imports", lambda runs: {"torch": 1.0, "genkern": 0.1})
    monkeypatch.setattr(latency, "_first_calls", lambda runs: {"vae.kl": [5e-3, 7e-6]})
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"instructions": "kept"}))
    parts = ["latency", "sizes", "dtypes", "scaling"]
    assert __main__.main([*parts, "--quick", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    for title in ("First calls", "One element", "Sizes", "Dtypes", "Scaling"):
        assert title in shown
    results = json.loads(file.read_text())
    assert results["instructions"] == "kept"
    assert set(results) == {"instructions", *parts}
    assert all("load average" in results[part]["environment"] for part in parts)
    by = results["dtypes"]["found"]["q_sample-given-fwd"]
    assert by["float32"]["bytes"] > by["bfloat16"]["bytes"]
    assert __main__.main(["sizes", "--quick", "--markdown"]) == 0
    assert "| operator | 1 element |" in capsys.readouterr().out


def test_a_ratio_below_the_floor_is_judged() -> None:
    def judged(compiler: float, explicit: float, nbytes: float = 12.0) -> str:
        times = {"compiler": compiler, "explicit": explicit, "bytes": nbytes}
        return vectorised.judged(times, 1e11)

    # 12 bytes take 0.12 ns at the triad's rate.
    assert judged(1.5e-9, 1e-9) == "met"
    assert judged(1.4e-9, 1e-9) == "below"
    assert judged(0.17e-9, 0.16e-9) == "cache-bound"
    times = {"compiler": 0.17e-9, "explicit": 0.16e-9, "bytes": 12.0}
    assert vectorised.judged(times, None) == "below"
    by = dict.fromkeys(("float32", "bfloat16", "float16"), times)
    (table,) = vectorised.tables({"triad, bytes a second": 1e11, "operators": {"kl-fwd": by}})
    assert table.rows[0][-2:] == ["75%", "cache-bound"]
