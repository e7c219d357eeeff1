"""The benchmarks' registry, gate and reports, at sizes that take no time. Nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import genkern
from benchmarks import __main__, calls, compile, gate, report, roof, run
from benchmarks.cases import CASES, Case
from benchmarks.problems import Problem, diffusion
from benchmarks.problems.vae import RSAMPLE_KL
from benchmarks.run import Options
from genkern._native import unavailable_reason

CPU = torch.device("cpu")
OPTIONS = Options(CPU, threads=1, rounds=2, seconds=0.01, without=frozenset({"compile"}))
# One case a problem that diffusers has, too.
MET = {
    case.problem.name: case.shrunk()
    for case in CASES
    if case.problem.diffusers is not None and case.noise != "given"
}
SMALL = [case for case in CASES if case.elements <= 4096]


@pytest.fixture(autouse=True)
def _as_benchmarks_run() -> Iterator[None]:
    """Threads put back afterwards, and no interpreter of Triton: nothing times that."""
    before = torch.get_num_threads()
    backend = "native" if unavailable_reason("cpu") is None else "reference"
    with genkern.use_backend(backend):
        yield
    torch.set_num_threads(before)


def test_names_are_unique_and_every_floor_is_below_its_goal() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
    for target in (target for case in CASES for target in case.targets):
        assert 0 < target.floor < target.goal
        assert target.against in ("eager", "compile", "diffusers", "1 thread", "roof", "limit")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_case_passes_its_gate(case: Case) -> None:
    assert gate.check(case.shrunk(), CPU) <= 1.0


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("output", range(4))
def test_the_gate_sees_a_wrong_result(noise: str, output: int) -> None:
    case = Case(RSAMPLE_KL, (5, 7), noise=noise, backward=True)

    class Wrong(torch.autograd.Function):
        """Off by a few epsilon, in the value or in the gradient."""

        @staticmethod
        def forward(ctx, x, value, gradient):
            ctx.gradient = gradient
            return x * value

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.gradient, None, None

    def wrong(mu, logvar, key, given):
        factors = [1.0] * 4
        factors[output] = 1.0 + 1e-5
        mu, logvar = Wrong.apply(mu, 1.0, factors[2]), Wrong.apply(logvar, 1.0, factors[3])
        z, kl = RSAMPLE_KL.genkern(mu, logvar, key, given)
        return Wrong.apply(z, factors[0], 1.0), Wrong.apply(kl, factors[1], 1.0)

    problem: Problem = dataclasses.replace(RSAMPLE_KL, genkern=wrong)
    assert gate.check(case, CPU) <= 1.0
    assert gate.check(dataclasses.replace(case, problem=problem), CPU) > 1.0


@pytest.mark.parametrize("case", MET.values(), ids=MET)
def test_diffusers_passes_its_gate(case: Case) -> None:
    pytest.importorskip("diffusers")
    assert gate.check_diffusers(case, CPU) <= 1.0


@pytest.mark.parametrize("option", [{"clip_sample_range": 0.999}, {"beta_end": 0.0201}])
def test_the_gate_sees_another_scheduler(option: dict[str, float]) -> None:
    pytest.importorskip("diffusers")
    problem = dataclasses.replace(
        diffusion.DDPM_STEP, diffusers=diffusion._diffusers_ddpm_step(**option)
    )
    assert gate.check_diffusers(dataclasses.replace(MET["ddpm_step"], problem=problem), CPU) > 1.0


def test_diffusers_is_timed_where_it_draws_its_noise() -> None:
    pytest.importorskip("diffusers")
    record, contenders = run.prepare(MET["ddpm_step"], OPTIONS)
    assert record["gate"]["diffusers"] <= 1.0 and "diffusers" in contenders
    given = dataclasses.replace(MET["ddpm_step"], noise="given")
    assert "diffusers" not in run.prepare(given, OPTIONS)[1]


def test_missing_diffusers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    record, contenders = run.prepare(MET["ddpm_step"], OPTIONS)
    assert record["unavailable"]["diffusers"] == "not installed"
    assert "eager" in contenders and "diffusers" not in contenders


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gate_sees_wrong_noise(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in CASES if c.problem.name == "normal" and c.dtype == dtype).shrunk()
    normal = genkern.random.normal
    monkeypatch.setattr(
        genkern.random, "normal", lambda *args, **options: normal(*args, **options) * (1 + 2.0**-6)
    )
    assert gate.check(case, CPU) > 1.0


def test_the_gates_philox_is_the_published_one() -> None:
    # Random123, kat_vectors: philox4x32-10 of counter 0 and key 0.
    seed, offset = gate._KEY
    try:
        gate._KEY = (0, 0)
        words = gate._philox(np.arange(1))
    finally:
        gate._KEY = (seed, offset)
    assert [int(w[0]) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_a_failed_gate_gives_no_speed_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "check", lambda case, device: 2.0)
    monkeypatch.setattr(__main__.environment, "measure_roof", lambda *args: {"missing": "nothing"})
    assert __main__.main(["--case", "rsample-given-64-float32-fwd"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "us" not in [word for line in out.splitlines() for word in line.split() if "│" in line]


def test_traffic_counts_streams_and_draws() -> None:
    case = next(c for c in CASES if c.id == "rsample_kl-drawn-4k-float32-fwd_bwd")
    given = calls.arguments(case, CPU)
    nbytes, draws = calls.traffic(calls.genkern_step(given))
    stream = 4 * case.elements
    # Forward reads mu and logvar and writes z; backward reads grad_z, mu, logvar, writes two.
    assert 8 * stream <= nbytes < 8 * stream + 64
    assert draws == 2


def test_kept_bytes_leaves_out_inputs_and_outputs() -> None:
    case = next(c for c in CASES if c.id == "rsample_kl-drawn-4k-float32-fwd_bwd")
    given = calls.arguments(case, CPU)
    assert calls.kept_bytes(case.problem.genkern, given, None, None) == 16  # the key
    # exp(logvar / 2), the noise and exp(logvar).
    assert calls.kept_bytes(case.problem.eager, given, None) == 3 * 4 * case.elements


@pytest.mark.skipif(unavailable_reason("cpu") is not None, reason="no native library")
def test_a_training_step_forms_its_gradient_with_the_loss() -> None:
    case = next(c for c in CASES if c.id == "q_sample_noise_loss-drawn-49k-float32-fwd_bwd")
    given = calls.arguments(case, CPU)
    nbytes, draws = calls.traffic(calls.genkern_step(given))
    stream, tables = 4 * case.elements, 1000 * (4 + 4) * 4
    # Reads x0 and pred; writes x_t and the gradient.
    assert 4 * stream <= nbytes <= 4 * stream + tables + 512
    assert draws == 2
    # The key and the gradient; the schedule's tables last anyway.
    assert calls.kept_bytes(case.problem.genkern, given, None, None) == 16 + stream
    # The noise.
    assert calls.kept_bytes(case.problem.eager, given, *given.tables, None) == stream


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_the_triads_are_triads(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _forget()
    library, reason = roof._library()
    _forget()
    assert library is not None, reason
    b, c = torch.randn(1003, dtype=torch.float32), torch.randn(1003, dtype=torch.float32)
    for triad in (library.triad_regular, library.triad_non_temporal):
        a = torch.empty(1003)
        triad(a.data_ptr(), b.data_ptr(), c.data_ptr(), 0.5, a.numel(), 2)
        assert torch.equal(a, b + 0.5 * c)


def test_the_roof_of_a_gpu_is_a_triad() -> None:
    for reuse in (False, True):
        (triad,) = roof._plain_triad(8, CPU, reuse).values()
        assert torch.equal(triad(), torch.full((8,), 1.5))
    assert roof.missing_reason(torch.device("cuda")) is None


def test_floors_and_goals_are_a_cpus() -> None:
    case = next(case for case in CASES if case.targets)
    assert run._targets(case, OPTIONS) == case.targets
    on_gpu = dataclasses.replace(OPTIONS, device=torch.device("cuda"))
    assert run._targets(case, on_gpu) == ()


def _forget() -> None:
    compile.library.cache_clear()
    roof._library.cache_clear()


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    _forget()
    reason, triads = roof.missing_reason(CPU), roof.triads(1 << 22, 1, CPU)
    _forget()
    assert reason == "no C++ compiler (c++, g++, clang++ or $CXX)"
    assert triads == {}


def test_the_command_line_writes_its_files(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__.environment, "_ROOF_STREAM", 1 << 16)
    first, second, picture = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "a.png"
    common = ["--case", "given-64|4k", "--quick", "--seconds", "0.01", "--without", "compile"]
    assert __main__.main([*common, "--json", str(first)]) == 0
    shown = capsys.readouterr().out
    assert "Speed" in shown and "Floors and goals" in shown and "torch:" in shown
    files = ["--json", str(second), "--compare", str(first), "--plot", str(picture)]
    assert __main__.main([*common, *files, "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "| case | eager |" in shown and "**Comparison of best times**" in shown
    records = json.loads(second.read_text())["records"]
    assert [r["case"] for r in records] == [
        c.id for c in SMALL if "given-64" in c.id or "-4k-" in c.id
    ]
    assert all(r["times"] and r["gbps"] > 0 for r in records)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_pattern_without_cases_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["--case", "nothing"])
    assert stopped.value.code == 2
    assert "no case matches 'nothing'" in capsys.readouterr().err


def _record(case: str, best: float, **ratios: float) -> report.Record:
    timing = {"best": best, "median": 1.1 * best, "worst": 2.0 * best, "rounds": 3}
    targets = [
        {"against": name, "floor": 2.0, "goal": 4.0, "ratio": ratio}
        for name, ratio in ratios.items()
    ]
    return {
        "case": case, "backend": "native", "times": {"native": timing}, "ratios": ratios,
        "targets": targets, "kept": {}, "gbps": 1.0, "failed": {}, "unavailable": {},
    }  # fmt: skip


def test_verdicts_and_summary() -> None:
    records = [
        _record("a", 1e-3, eager=1.0),
        _record("b", 1e-3, eager=2.0),
        _record("c", 1e-3, eager=4.0),
    ]
    assert [row[-1] for row in report.targets(records).rows] == ["missed", "floor met", "goal met"]
    assert report.summary(records)[0] == (
        "against eager: geometric mean 2.00x over 3 cases, worst 1.00x (a), best 4.00x (c)"
    )


def test_memory_that_is_used_again_is_the_roof_of_a_table() -> None:
    facts = {"elements": 8, "dtype": "float32", "threads": 2}
    normal = _record("normal", 2.0) | facts | {"problem": "normal", "targets": []}
    single = _record("normal, 1 thread", 9.0) | facts | {"problem": "normal", "threads": 1}
    rows = []
    for against, draws, nbytes in (("roof", 0, 6e9), ("limit", 1, 6e9), ("limit", 2, 1e9)):
        target = {"against": against, "floor": 0.85, "goal": 0.95, "ratio": 4.0}
        record = _record("x", 4.0) | facts | {"problem": "x", "draws": draws, "bytes": nbytes}
        rows.append(record | {"targets": [target]})
    roof = {"one buffer": {"triad": 1.5, "triad, non-temporal": 2.0}}
    found = report.one_buffer([normal, single | {"targets": []}, *rows], roof).rows
    # 3 s of memory; of memory and of noise that takes 2 s; of noise that takes 4 s.
    assert [row[1] for row in found] == ["triad, 2 GB/s", "triad, 2 GB/s", "normal alone"]
    assert [row[2] for row in found] == ["0.75", "0.75", "1.00"]
    assert [row[-1] for row in found] == ["missed", "missed", "goal met"]


def test_diffusers_has_columns_where_it_was_timed() -> None:
    assert not any("diffusers" in name for name in report.speed([_record("a", 1e-3)]).headings)
    record = _record("a", 1e-3, diffusers=2.0)
    record["times"]["diffusers"] = record["times"]["native"]
    table = report.speed([record])
    row = dict(zip(table.headings, table.rows[0], strict=True))
    assert row["diffusers"] == "1 ms" and row["diffusers /"] == "2.00x"


def test_compare_calls_a_change_within_the_spread_the_same() -> None:
    before = [_record("a", 1.0), _record("b", 1.0), _record("c", 1.0), _record("d", 1.0)]
    after = [_record("a", 1.05), _record("b", 1.5), _record("c", 0.5)]
    rows = report.compare(before, after).rows
    assert [row[-1] for row in rows] == ["same", "slower", "faster"]
    assert rows[1][2:5] == ["1 s", "1.5 s", "1.50"]


def test_records_are_json() -> None:
    record = run.run(SMALL[0], OPTIONS)
    assert json.loads(json.dumps(record)) == record
    assert record["backend"] in record["times"]
    assert all(math.isfinite(ratio) for ratio in record["ratios"].values())
