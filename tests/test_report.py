"""The report: its page is written from the recorded numbers alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import page
from benchmarks.evidence.parts import PARTS

RECORDED = {p.name: json.loads(p.file.read_text()) for p in PARTS if p.file.exists()}


def test_the_page_shows_what_was_recorded_and_says_what_was_not(tmp_path):
    left_out = "fuzz"
    found = {name: results for name, results in RECORDED.items() if name != left_out}
    page.write(found, tmp_path / "report.md", tmp_path / "_static" / "report")
    text = (tmp_path / "report.md").read_text()
    assert "| Random and hostile calls | random and hostile calls | not run yet |" in text
    assert "make gpu" in text and "has never run on a GPU" in text
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures and all((tmp_path / name).stat().st_size > 1000 for name in pictures)
    sections = {line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")}
    linked = re.findall(r"^\| \[([^]]+)\]\(#", text, re.M)
    assert linked and set(linked) <= sections and len(linked) == len(found)
    assert "nan" not in text.lower().replace("nan-", "").split()


def test_each_part_is_a_command_that_there_is():
    for part in PARTS:
        _, module, *_, flag, file = part.command(quick=True)
        assert flag == "--json" and file.endswith(f"{part.name}.json")
        help_text = subprocess.run(
            [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for quick in (True, False):
            for word in part.command(quick)[2:]:
                assert not word.startswith("--") or word in help_text


def test_a_part_that_lacks_a_tool_is_left_out_and_one_that_fails_is_named(tmp_path):
    console = Console(file=(tmp_path / "said").open("w"), width=300)
    lacking = replace(PARTS[0], lacks=lambda: "a tool")
    failing = replace(PARTS[-1], name="failing", module="benchmarks.no_such_module")
    assert evidence.run([lacking, failing], True, console) == ["failing"]
    console.file.close()
    said = (tmp_path / "said").read_text()
    assert "speed: left out, missing: a tool" in said and "failing: FAILED with 1" in said


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        evidence.main(["--only", "everything"])
    assert "--only" in capsys.readouterr().err
