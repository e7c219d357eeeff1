"""The documentation's tables, taken from the JSON files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cuda_on_host, report
from benchmarks.evidence.parts import ROOT
from benchmarks.numerics import __main__ as numerics
from benchmarks.profile.__main__ import PARTS as PROFILED
from benchmarks.randomness import __main__ as randomness
from benchmarks.report import Table

Results = dict[str, Any]

# A title and what stands below it, as Table.markdown writes them.
_TABLE = re.compile(r"^\*\*(?P<title>[^*\n]+)\*\*\n\n(?P<table>(?:\|.*\n)+)", re.M)


def _profile(results: Results) -> list[Table]:
    """The tables of the profile's parts."""
    measured = {n: p["found"] for n, p in results.items() if n in PROFILED}
    return [
        table
        for name, found in measured.items()
        if "skipped" not in found
        for table in PROFILED[name].tables(found)
    ]


def _speed(results: Results) -> list[Table]:
    records = results["records"]
    return [
        report.speed(records),
        report.targets(records),
        report.one_buffer(records, results["roof"]),
    ]


# The pages that show a part's tables.
_PAGES = {
    "speed": (_speed, ("docs/benchmarks.md", "README.md")),
    "profile": (_profile, ("docs/profile.md",)),
    "cuda_on_host": (cuda_on_host.tables, ("docs/cuda_on_host.md",)),
    "numerics": (numerics.tables, ("docs/numerics.md",)),
    "randomness": (randomness.tables, ("docs/randomness.md",)),
}


def _masked(title: str) -> str:
    """A title without its numbers; those of words, as in float64, stay."""
    return re.sub(r"(?<![a-zA-Z])[\d.]+", "#", title)


def _titled(title: str, tables: Sequence[Table]) -> Table | None:
    """The table of this title, or the only one that differs in measured numbers alone."""
    exact = [table for table in tables if table.title == title]
    like = [table for table in tables if _masked(table.title) == _masked(title)]
    found = exact or like
    return found[0] if len(found) == 1 else None


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _chosen(table: Table, headings: Sequence[str], names: Iterable[str]) -> Table:
    """The columns of these headings and the rows of these names."""
    columns = [list(table.headings).index(heading) for heading in headings]
    rows = {row[0]: [row[c] for c in columns] for row in table.rows}
    return Table(table.title, headings, [rows[name] for name in names])


def renewed(text: str, tables: Sequence[Table]) -> str:
    """A page's text with these tables in the place of those of the same titles.

    A table of fewer columns is an excerpt: it keeps its columns and its rows.
    """

    def replace(found: re.Match[str]) -> str:
        table = _titled(found["title"], tables)
        if table is None:
            return found[0]
        headings, _, *rows = map(_cells, found["table"].splitlines())
        if len(headings) < len(table.headings):
            table = _chosen(table, headings, [row[0] for row in rows])
        return table.markdown() + "\n"

    return _TABLE.sub(replace, text)


def pages(found: dict[str, Results]) -> dict[Path, str]:
    """The pages with tables, by their files, as they are by these results."""
    texts: dict[Path, str] = {}
    for name, (tables, files) in _PAGES.items():
        for file in files if name in found else ():
            path = ROOT / file
            before = texts.get(path) or path.read_text()
            texts[path] = renewed(before, tables(found[name]))
    return texts
