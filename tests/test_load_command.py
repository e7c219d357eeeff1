"""The command that records the tests of load and scale."""

from __future__ import annotations

import sys

import pytest

from benchmarks import load


def test_each_test_has_a_record(tmp_path):
    file = tmp_path / "test_three.py"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('start', ['fork_a'])\n"
        "def test_it_goes_well(start): pass\n"
        "def test_it_fails_at_2_31(): assert False, 'why'\n"
        "@pytest.mark.skip(reason='no reason')\n"
        "def test_it_is_left_out(): pass\n"
    )
    records = load.run((str(file),))
    assert [(r["test"], r["outcome"]) for r in records] == [
        ("it goes well, fork_a", "passed"),
        ("it fails at 2^31", "failed"),
        ("it is left out", "skipped"),
    ]
    assert "why" in records[1]["said"] and records[2]["said"] == "no reason"
    (table,) = load.tables({"tests": records})
    assert [row[1] for row in table.rows] == ["passed", "FAILED", "skipped"]
    with pytest.raises(SystemExit, match="the tests ended with 4"):
        load.run((str(tmp_path / "no_such_file.py"),))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much is free")
def test_the_memory_that_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(load, "MEMORY", 1)
    assert load.missing() is None
    monkeypatch.setattr(load, "MEMORY", 1 << 60)
    assert load.missing() == "1.15e+09 GB of memory that is free"
