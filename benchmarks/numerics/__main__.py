"""Command line: `python -m benchmarks.numerics`."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks import environment
from benchmarks.numerics import bits, errors, special
from benchmarks.numerics.sweep import SWEEPS, operators
from benchmarks.report import Table, show

_PARTS = ("errors", "kl", "bits", "large")
_LARGE = 10**9
EXTREME = ("all exponents", "special values")
MODERATE = tuple(s for s in SWEEPS if s not in EXTREME)
# What a row is worse by before it is said to be: the figures of two maxima of the same law differ.
_WORSE = 1.05


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.numerics",
        description="Errors of every operator over the range of its inputs, and equality of bits.",
    )
    parser.add_argument("--quick", action="store_true", help="float32 alone, one sweep, no 'large'")
    parser.add_argument(
        "--part", action="append", choices=_PARTS, help="only this (repeatable); default: all"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the results; parts that were not run are kept"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    return parser


def measure_errors(dtypes: tuple[torch.dtype, ...], sweeps: list[str]) -> list[dict[str, Any]]:
    """A row for each operator, dtype and sweep."""
    work = [(op, d, s) for op in operators() for d in dtypes for s in sweeps]
    return [errors.measure(*item) for item in track(work, "errors", transient=True)]


def _measure(part: str, quick: bool) -> Any:
    dtypes = bits.DTYPES[:1] if quick else bits.DTYPES
    if part == "errors":
        return measure_errors(dtypes, ["2^-30 to 2^7"] if quick else list(SWEEPS))
    if part == "kl":
        return {str(d).removeprefix("torch."): special.near_prior(d) for d in dtypes}
    if part == "large":
        return special.large_losses(_LARGE)
    return {
        "threads and runs": bits.threads_and_runs(),
        "processes": bits.processes(),
        "splits": bits.splits(),
        "backends": bits.backends(1 << 18),
    }


# ---- tables


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.2g}"


def merged(rows: list[dict[str, Any]], who: str) -> dict[str, float] | None:
    """The summaries of several sweeps as one; the median is the largest of theirs."""
    found = [r[who] for r in rows if r.get(who)]
    if not found:
        return None
    count = sum(f["values"] for f in found)
    rms = sum(f["values"] * f["rms_of_terms"] ** 2 for f in found) / count
    largest = {
        name: max(f[name] for f in found)
        for name in ("median", "worst", "worst_of_terms", "worst_of_tiny")
    }
    lost = sum(f["lost"] for f in found)
    return {**largest, "values": count, "rms_of_terms": rms**0.5, "lost": lost}


def worse(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """In what genkern is worse than eager PyTorch."""
    names = ("median", "rms_of_terms", "worst_of_terms")
    found = [n for n in names if ours[n] > _WORSE * theirs[n] + 0.005]
    return found + (["lost"] if ours["lost"] > theirs["lost"] else [])


_SHORT = {"median": "median", "rms_of_terms": "rms", "worst_of_terms": "worst", "lost": "lost"}


def _error_table(rows: list[dict[str, Any]], dtype: str, sweeps: tuple[str, ...]) -> Table:
    lines = []
    chosen = [r for r in rows if r["dtype"] == dtype and r["sweep"] in sweeps]
    for op in dict.fromkeys(r["op"] for r in chosen):
        own = [r for r in chosen if r["op"] == op]
        ours, theirs = merged(own, "genkern"), merged(own, "eager")
        if ours is None:
            continue
        cells = []
        for name in ("median", "rms_of_terms", "worst_of_terms", "lost"):
            for side in (ours, theirs):
                if side is None:
                    cells.append("-")
                else:
                    cells.append(str(side[name]) if name == "lost" else _number(side[name]))
        said = ", ".join(_SHORT[n] for n in worse(ours, theirs)) if theirs else ""
        lines.append([op, *cells, said])
    headings = ["operator"]
    for name in ("median ulp", "rms of terms", "worst of terms", "lost"):
        headings += [f"{name}: genkern", "eager"]
    return Table(f"{dtype}, {'; '.join(sweeps)}", [*headings, "genkern worse in"], lines)


def tables(results: dict[str, Any]) -> list[Table]:
    """The results, for the terminal and the docs."""
    found = []
    for dtype in dict.fromkeys(r["dtype"] for r in results.get("errors", [])):
        for sweeps in (MODERATE, EXTREME):
            found.append(_error_table(results["errors"], dtype, sweeps))
    if "kl" in results:
        found.append(
            Table(
                "KL(N(0, e^logvar) || N(0, 1))",
                ["size of logvar", "worst ulp: genkern", "eager", "below 0: genkern", "eager"],
                [
                    [f"{dtype}, 2^{r['low']} to 2^{r['high']}",
                     *(_number(r[who].get("worst", float("nan"))) for who in ("genkern", "eager")),
                     *(f"{r[who]['negative']:.0%}" for who in ("genkern", "eager"))]
                    for dtype, rows in results["kl"].items() for r in rows
                ],
            )
        )  # fmt: skip
    if "large" in results:
        found.append(
            Table(
                "Sums of float32 losses",
                ["loss", "elements", "exact", "found", "ulp", "relative error"],
                [
                    [r["loss"], f"{r['elements']:.0e}", f"{r['exact']:.12g}", f"{r['found']:.9g}",
                     f"{r['ulp']:.2f}", f"{r['relative']:.2g}"]
                    for r in results["large"]
                ],
            )
        )  # fmt: skip
    if "bits" in results:
        found.append(_bits_table(results["bits"]))
    return found


def _bits_table(found: dict[str, Any]) -> Table:
    same = found["threads and runs"]
    rows = [
        ["every operator, 1, 2, 3 and 7 threads, and a second run", str(same["values"]),
         ", ".join(same["different"]) or "equal"]
    ]  # fmt: skip
    for p in found["processes"]["pairs"]:
        what = f"{p['kind']}: {p['first']} and {p['second']}"
        what += " in two processes" if p["first"] == p["second"] else ""
        different = len(p["different"])
        said = f"{different} of {p['calls']} operators and dtypes differ" if different else "equal"
        rows.append([what, str(p["values"]), said])
    for s in found["splits"]:
        said = "equal" if s["equal"] else "DIFFERENT"
        rows.append([f"{s['function']}: a batch whole and in parts", str(s["values"]), said])
    for b in found["backends"]:
        said = "equal" if b["equal"] else f"at most {b['largest difference']:.2g} apart"
        rows.append([f"{b['stream']}: native and {b['backend']}", str(b["values"]), said])
    return Table("Equality of bits", ["compared", "values", "found"], rows)


def main() -> None:
    """Runs the checks, prints tables and writes the results."""
    arguments = _parser().parse_args()
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    file = Path(arguments.json) if arguments.json else None
    results = json.loads(file.read_text()) if file and file.exists() else {}
    results["environment"] = environment.describe(torch.device("cpu"), torch.get_num_threads())
    parts = arguments.part or [p for p in _PARTS if not (arguments.quick and p == "large")]
    for part in parts:
        results[part] = _measure(part, arguments.quick)
        if file:
            file.write_text(json.dumps(results, indent=1) + "\n")
    show(tables(results), arguments.markdown, 160)


if __name__ == "__main__":
    main()
