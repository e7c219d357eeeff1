"""The report: its page is written from the recorded numbers alone."""

from __future__ import annotations

import json
import re
import runpy
import sys
import warnings
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import page, tables
from benchmarks.evidence.parts import PARTS
from benchmarks.report import Table

RECORDED = {p.name: json.loads(p.file.read_text()) for p in PARTS if p.file.exists()}


def test_the_page_shows_what_was_recorded_and_says_what_was_not(tmp_path):
    left_out = "fuzz"
    found = {name: results for name, results in RECORDED.items() if name != left_out}
    page.write(found, tmp_path / "report.md", {"speed": "FAILED with 1"})
    text = (tmp_path / "report.md").read_text()
    assert "| Random and hostile calls | random and hostile calls | not run yet |" in text
    assert "make gpu" in text and "has never run on a GPU" in text
    assert "last run: FAILED with 1; below: " in text and "Short forms" not in text
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures and all((tmp_path / name).stat().st_size > 1000 for name in pictures)
    sections = {line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")}
    linked = re.findall(r"^\| \[([^]]+)\]\(#", text, re.M)
    assert linked and set(linked) <= sections and len(linked) == len(found)
    assert "nan" not in text.lower().replace("nan-", "").split()


def test_a_gpu_completes_the_page(tmp_path):
    group = {"group": "ops", "backend": "native", "passed": 7, "failed": 0, "skipped": 1}
    group |= {"seconds": 2.0, "failures": [], "skips": {}}
    facts = {"date": "2026-01-02T03:04:05", "device": "a GPU", "commit": "abc"}
    timed = {"records": RECORDED["speed"]["records"][:2]}
    gpu = {"environment": facts, "missing": ["x"], "tests": [group], "benchmarks": timed}
    page.write({"gpu": gpu}, tmp_path / "report.md", {}, short=True)
    text = (tmp_path / "report.md").read_text()
    assert "a GPU: 2026-01-02 03:04, abc" in text and "| ops | native | 7 | 0 | 1 |" in text
    assert "has never run on a GPU" not in text and "Short forms" in text
    # Its links are the documentation's, wherever the page is.
    (link,) = re.findall(r"\]\(([^)]*gpu\.md)\)", text)
    assert (tmp_path / link).resolve() == (page.ROOT / "docs" / "gpu.md").resolve()


def test_the_documentation_shows_the_recorded_numbers():
    for path, text in tables.pages(RECORDED).items():
        assert path.read_text() == text, f"{path.name}: python -m benchmarks.evidence --draw"


def test_a_table_is_renewed_whole_or_keeps_its_excerpt():
    new = Table("Times at 3 GHz", ["case", "time", "ratio"], [["a", "1", "2"], ["b", "3", "4"]])
    old = "**Times at 2 GHz**\n\n| case | {}ratio |\n|:---|---:|\n| a | {}0 |\n\nEnd.\n"
    assert tables.renewed(old.format("time | ", "5 | "), [new]) == new.markdown() + "\n\nEnd.\n"
    excerpt = tables.renewed(old.format("", ""), [new])
    assert "| a | 2 |" in excerpt and "| b |" not in excerpt and "time" not in excerpt
    # A number in a word is not one that was measured.
    types = [replace(new, title=f"1e+09 float{bits} normals") for bits in (32, 64)]
    renewed = tables.renewed(
        old.format("", "").replace("Times at 2 GHz", "1e+08 float64 normals"), types
    )
    assert renewed.startswith("**1e+09 float64 normals**")
    other = replace(new, title="Sizes")
    assert tables.renewed(old.format("", ""), [other]) == old.format("", "")


def test_each_part_is_a_command_that_there_is(tmp_path, capsys, monkeypatch):
    for part in PARTS:
        file = tmp_path / f"{part.name}.json"
        _, module, *_, flag, written = part.command(quick=True, file=file)
        assert flag == "--json" and written == str(file)
        monkeypatch.setattr(sys, "argv", [module, "--help"])
        # In this process: each would import torch once more.
        with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_module(module, run_name="__main__")
        help_text = capsys.readouterr().out
        assert not ended.value.code and "--json" in help_text
        for quick in (True, False):
            for word in part.command(quick, file)[2:]:
                assert not word.startswith("--") or word in help_text


def test_a_part_that_lacks_a_tool_is_left_out_and_one_that_fails_is_named(tmp_path):
    console = Console(file=(tmp_path / "said").open("w"), width=300)
    lacking = replace(PARTS[0], lacks=lambda: "a tool")
    failing = replace(PARTS[-1], name="failing", module="benchmarks.no_such_module")
    remarks = evidence.run([lacking, failing], True, console, tmp_path / "work")
    assert remarks["speed"] == "left out, missing: a tool"
    assert "FAILED with 1" in remarks["failing"] and not failing.file.exists()
    console.file.close()
    said = (tmp_path / "said").read_text()
    assert "speed: left out, missing: a tool" in said and "failing: FAILED with 1" in said


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        evidence.main(["--only", "everything"])
    assert "--only" in capsys.readouterr().err
