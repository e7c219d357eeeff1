"""Tables of records, for the terminal and as Markdown, and the comparison of two runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def print(self, console: Console) -> None:
        """Prints the table in the terminal."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in self.rows:
            style = "red" if any("FAILED" in c for c in row) else None
            table.add_row(*row, style=style)
        console.print(table)

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [
            f"**{self.title}**",
            "",
            "| " + " | ".join(self.headings) + " |",
            "|" + "|".join([":---", *["---:"] * (len(self.headings) - 1)]) + "|",
        ]
        lines += ["| " + " | ".join(row).replace("\n", "<br>") + " |" for row in self.rows]
        return "\n".join(lines)


def show(tables: Iterable[Table], markdown: bool, width: int) -> None:
    """Prints tables: in Markdown, or for the terminal; `width` is that of a file."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else width)
    for table in tables:
        if markdown:
            print(table.markdown() + "\n")
        else:
            table.print(console)


def seconds(value: float) -> str:
    """A time with three digits and its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def nbytes(value: int) -> str:
    """A number of bytes with its unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value} B"


def verdict(target: Record) -> str:
    """What a target came to: goal met, floor met, or missed."""
    if target["ratio"] is None:
        return "not measured"
    if target["ratio"] >= target["goal"]:
        return "goal met"
    return "floor met" if target["ratio"] >= target["floor"] else "missed"


_VERDICTS = ("missed", "not measured", "floor met", "goal met")


def _ratio(record: Record, against: str) -> str:
    ratio = record["ratios"].get(against)
    return "-" if ratio is None else f"{ratio:.2f}x"


def _time(record: Record, name: str) -> str:
    if name in record["times"]:
        return seconds(record["times"][name]["best"])
    return "n/a" if name in record["unavailable"] else "-"


def speed(records: Sequence[Record]) -> Table:
    """One row a case."""
    ran = ("native", "triton", "reference")
    backends = [b for b in ran if any(b in r["times"] for r in records)]
    named = any("diffusers" in {*r["times"], *r["unavailable"]} for r in records)
    others = ["eager", "compile", *(["diffusers"] if named else [])]
    headings = [
        "case", *others, *backends, "median, worst", *(f"{name} /" for name in others),
        "GB/s", "of roof", "kept: genkern, eager", "floor/goal",
    ]  # fmt: skip
    rows = []
    for record in records:
        if not record["times"]:
            text = "; ".join(f"{b}: {why}" for b, why in record["failed"].items())
            rows.append(
                [record["case"], "FAILED", text or "no backend", *[""] * (len(headings) - 3)]
            )
            continue
        own = record["times"][record["backend"]]
        roof = record["ratios"].get("roof")
        kept = record["kept"]
        judged = [verdict(t) for t in record["targets"]]
        rows.append(
            [
                record["case"],
                *(_time(record, name) for name in (*others, *backends)),
                f"+{own['median'] / own['best'] - 1:.0%}, +{own['worst'] / own['best'] - 1:.0%}",
                *(_ratio(record, name) for name in others),
                f"{record['gbps']:.1f}",
                "-" if roof is None else f"{roof:.0%}",
                f"{nbytes(kept['genkern'])}, {nbytes(kept['eager'])}" if kept else "-",
                min(judged, key=_VERDICTS.index) if judged else "",
            ]
        )
    return Table(
        "Speed (best of the rounds; median and worst of genkern's over it)", headings, rows
    )


def targets(records: Sequence[Record]) -> Table:
    """One row a floor."""
    rows = [
        [
            record["case"],
            target["against"],
            "-" if target["ratio"] is None else f"{target['ratio']:.2f}",
            f"{target['floor']:g}",
            f"{target['goal']:g}",
            verdict(target),
        ]
        for record in records
        for target in record["targets"]
    ]
    headings = ["case", "against", "ratio", "floor", "goal", "verdict"]
    return Table("Floors and goals (the other's time, divided by genkern's)", headings, rows)


def one_buffer(records: Sequence[Record], roof: Record) -> Table:
    """The targets of the roof, with the triad into one buffer for it.

    The roof writes to new tensors, whose pages the system clears; genkern's results reuse memory.
    """
    rate = 1e9 * max(roof.get("one buffer", {"": math.inf}).values())
    normals = {
        (r["elements"], r["dtype"]): r["times"][r["backend"]]["best"]
        for r in records
        if r["problem"] == "normal" and r["threads"] != 1 and r["times"]
    }
    rows = []
    for record in records:
        for target in record["targets"]:
            if target["against"] not in ("roof", "limit") or not record["times"]:
                continue
            best, against = record["bytes"] / rate, f"triad, {rate / 1e9:.0f} GB/s"
            drawn = normals.get((record["elements"], record["dtype"]), 0.0) * record["draws"]
            if target["against"] == "limit" and drawn > best:
                best, against = drawn, "normal alone"
            ratio = best / record["times"][record["backend"]]["best"]
            said = verdict({**target, "ratio": ratio})
            floors = (f"{target['floor']:g}", f"{target['goal']:g}")
            rows.append([record["case"], against, f"{ratio:.2f}", *floors, said])
    headings = ["case", "against", "ratio", "floor", "goal", "verdict"]
    return Table("Against memory that is used again", headings, rows)


def _geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def summary(records: Sequence[Record]) -> list[str]:
    """Geometric mean, best and worst case against each other contender; what went wrong."""
    lines = []
    for against in ("eager", "compile", "diffusers"):
        known = [r for r in records if r["times"] and against in r["ratios"]]
        if not known:
            continue
        known.sort(key=lambda r: r["ratios"][against])
        worst, best = known[0], known[-1]
        mean = _geometric_mean(r["ratios"][against] for r in known)
        lines.append(
            f"against {against}: geometric mean {mean:.2f}x over {len(known)} cases,"
            f" worst {worst['ratios'][against]:.2f}x ({worst['case']}),"
            f" best {best['ratios'][against]:.2f}x ({best['case']})"
        )
    verdicts = [verdict(t) for r in records for t in r["targets"]]
    if verdicts:
        counts = (f"{verdicts.count(v)} {v}" for v in reversed(_VERDICTS) if v in verdicts)
        lines.append(f"floors and goals: {', '.join(counts)}")
    for name, reason in {
        (name, reason) for r in records for name, reason in r["unavailable"].items()
    }:
        lines.append(f"not timed: {name}: {reason}")
    failed = [r["case"] for r in records if not r["times"]]
    if failed:
        lines.append(f"FAILED: {', '.join(failed)}")
    return lines


def compare(before: Sequence[Record], after: Sequence[Record]) -> Table:
    """Each contender's best time in two runs of the same cases."""
    old = {r["case"]: r for r in before}
    rows = []
    for record in after:
        earlier = old.get(record["case"], {"times": {}})["times"]
        for name, now in record["times"].items():
            if name not in earlier:
                continue
            then = earlier[name]
            change = now["best"] / then["best"]
            # Two runs of the same code differ by about what the rounds of one do.
            noise = max(t["median"] / t["best"] for t in (now, then))
            word = "slower" if change > noise else "faster" if change * noise < 1 else "same"
            rows.append(
                [
                    record["case"],
                    name,
                    seconds(then["best"]),
                    seconds(now["best"]),
                    f"{change:.2f}",
                    word,
                ]
            )
    headings = ["case", "contender", "before", "after", "after / before", "beyond the spread"]
    return Table("Comparison of best times", headings, rows)
