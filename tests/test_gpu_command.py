"""`make gpu` without a GPU: the bodies of its tests work on a CPU, and it tells what came out."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from benchmarks import gpu


def test_the_bodies_run_on_a_cpu():
    """One case of each test, in one process; `skipped` are those that only CUDA has."""
    found = gpu.run_tests("cpu", gpu.groups(), "native", every=10**6)
    assert sorted(group["group"] for group in found) == gpu.groups()
    for group in found:
        assert group["failed"] == 0, group["failures"]
        assert group["passed"] > 0 or group["group"] == "host"


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_gpu_noise" name="test_a[native-x]" time="1.5"/>
<testcase classname="tests.gpu.test_gpu_noise" name="test_a[triton-x]" time="2"/>
<testcase classname="tests.gpu.test_gpu_noise" name="test_b[x-triton]" time="0.5">
<failure message="wrong&#10;bits">text</failure></testcase>
<testcase classname="tests.gpu.test_gpu_host" name="test_c[native]" time="0">
<skipped message="no graph"/></testcase>
<testcase classname="tests.gpu.test_gpu_host" name="test_d[native]" time="0">
<error message="lost">text</error></testcase>
</testsuite></testsuites>"""


def test_counts(tmp_path):
    file = tmp_path / "junit.xml"
    file.write_text(JUNIT)
    found = gpu.read(file)
    assert [row[:5] for row in gpu.table(found).rows] == [
        ["noise", "native", "1", "0", "0"],
        ["noise", "triton", "1", "1 FAILED", "0"],
        ["host", "native", "0", "1 FAILED", "1"],
    ]
    assert found[1]["seconds"] == 2.5
    assert found[1]["failures"] == [{"test": "test_b[x-triton]", "message": "wrong\nbits"}]
    assert found[2]["skips"] == {"no graph": 1}


def test_a_process_that_dies_is_a_failure(monkeypatch):
    def dies(command, **options):
        return subprocess.CompletedProcess(command, -11, "", "Segmentation fault")

    monkeypatch.setattr(subprocess, "run", dies)
    (group,) = gpu.run_tests("cpu", ["noise"], "native")
    assert group["failed"] == 1 and "-11" in group["failures"][0]["message"]


@pytest.mark.parametrize("failed", [0, 1])
def test_the_evidence(tmp_path, monkeypatch, failed):
    group = {
        "group": "noise", "backend": "native", "passed": 3, "failed": failed, "skipped": 0,
        "seconds": 1.0, "failures": [{"test": "t", "message": "m"}] * failed, "skips": {},
    }  # fmt: skip
    monkeypatch.setattr(gpu, "run_tests", lambda *args: [group])
    timed = {"records": [{"case": "a", "times": {"native": {}}}]}
    monkeypatch.setattr(gpu, "_benchmarks", lambda *args: timed)
    file = tmp_path / "evidence" / "gpu.json"
    assert gpu.main(["--device", "cpu", "--json", str(file)]) == failed
    written = json.loads(file.read_text())
    assert written["environment"]["device"] == "cpu" and written["missing"] == []
    assert written["tests"] == [group] * len(gpu.groups()) * len(gpu.BACKENDS)
    assert written["benchmarks"] == timed


def test_what_cannot_be_tested_is_named(monkeypatch):
    facts = {
        "notes": ["the CUDA library is not built, missing: nvcc.", "genkern_host is not built."]
    }
    monkeypatch.setattr(gpu, "build_facts", lambda: facts)
    monkeypatch.setattr(
        gpu, "unavailable_reason", lambda device: "libgenkern_cuda.so was not built"
    )
    monkeypatch.setattr(gpu.launch, "unavailable_reason", lambda: "triton is not installed")
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu.missing("cuda") == [
        "the native backend is not tested: libgenkern_cuda.so was not built."
        " the CUDA library is not built, missing: nvcc.",
        "the triton backend is not tested: triton is not installed.",
        "accesses are not checked: compute-sanitizer is not on PATH.",
    ]
    assert gpu.missing("cpu") == []


def test_without_a_gpu_one_line_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU is present")
    assert gpu.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err in (
        f"make: torch {torch.__version__} is not a CUDA build: set TORCH, see docs/gpu.md\n",
        "make: torch sees no CUDA device\n",
    )
