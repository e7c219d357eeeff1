"""The report: a page of what the evidence shows, written from the JSON files alone."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import gpu, gpu_static, load, report, soak
from benchmarks.evidence.parts import PARTS, ROOT, Part
from benchmarks.evidence.pictures import PICTURES
from benchmarks.gpu_model import GPUS
from benchmarks.numerics import __main__ as numerics
from benchmarks.report import Table, nbytes

Results = dict[str, Any]

_HEAD = """\
# Report

<!-- Written by `make report`; edit benchmarks/evidence/page.py instead. -->

What is known of genkern from runs on a machine without a GPU, and where it loses. One command
measures everything again, and writes this page and the tables of the pages that it leads to:

```sh
make report                      # two hours; parts that lack a tool say so and are left out
make report ARGS=--quick         # a quarter of an hour, in short forms, to build/evidence/quick
make report ARGS="--only speed"  # one part
```
"""

_SHORT = """
**Short forms**: few cases and short times. Nothing here is a result.
"""

_NEVER = """\
## What has never run on a GPU

genkern was written without a GPU at hand. The CUDA library and the Triton kernels compile for A100,
H100 and B200, Triton's for MI300X and MI355X too; their machine code is read, the CUDA sources are
executed on the CPU, thread for thread, and Triton's kernels in its interpreter. Not one kernel of
either has run on a GPU: no speed, no result and no synchronisation of a real one is known. Whoever
has one completes this page with

```sh
make gpu
```

which runs the tests and the benchmarks there and writes `docs/evidence/gpu.json`, and then
`make report ARGS=--draw`; see [On a GPU](gpu.md).
"""


def _machine(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cpu']}, {facts['instruction set']},"
        f" torch {facts['torch']}, genkern {facts['genkern']}"
    )


def _when(facts: dict[str, Any]) -> str:
    return f"{facts['date'][:16].replace('T', ' ')}, {facts.get('commit', 'not recorded')}"


def _rows(table: Table, none: str) -> str:
    """The table, or words where it has no rows."""
    return table.markdown() if table.rows else none


def _picture(name: str, alt: str) -> str:
    return f"![{alt}](_static/report/{name}.png)"


def _losses(records: list[dict[str, Any]]) -> Table:
    """The cases in which someone else is faster."""
    rows = [
        [record["case"], against, f"{ratio:.2f}x", report.seconds(own), report.seconds(other)]
        for record in records
        if record["times"]
        for against in ("eager", "compile", "diffusers")
        if (ratio := record["ratios"].get(against)) is not None and ratio < 1.0
        for own in [record["times"][record["backend"]]["best"]]
        for other in [record["times"][against]["best"]]
    ]
    rows.sort(key=lambda row: float(row[2][:-1]))
    return Table("Where genkern is slower", ["case", "than", "ratio", "genkern", "the other"], rows)


def _speed(results: Results) -> list[str]:
    records = results["records"]
    missed = Table(
        "Floors that are missed",
        ["case", "against", "ratio", "floor", "goal"],
        [row[:5] for row in report.targets(records).rows if row[5] == "missed"],
    )
    lines = "\n".join(f"- {line}" for line in report.summary(records))
    return [
        lines,
        _picture("speed", "Speed over eager PyTorch, torch.compile and diffusers, by case"),
        _rows(missed, "No floor is missed."),
        _rows(_losses(records), "In no case is another faster."),
        report.one_buffer(records, results["roof"]).markdown(),
        "All cases, and why the floors are missed: [Benchmarks](benchmarks.md).",
    ]


def _integrations(results: Results) -> list[str]:
    rows = [
        [table["title"], name, report.seconds(seconds), f"{table['times'][first] / seconds:.2f}x"]
        for table in results["tables"]
        for first in [next(iter(table["times"]))]
        for name, seconds in table["times"].items()
    ]
    title = "Loops of other packages, outside the network"
    return [
        Table(title, ["loop", "with", "time", "faster"], rows).markdown(),
        "More: [Integrations](integrations.md).",
    ]


def _vectorised(operators: dict[str, Any]) -> list[str]:
    ratios = {
        name: {dtype: t["compiler"] / t["explicit"] for dtype, t in by.items()}
        for name, by in operators.items()
    }
    dtypes = list(next(iter(ratios.values())))
    counts = (f"{sum(r[d] >= 1.5 for r in ratios.values())} in {d}" for d in dtypes)
    slower = [
        [name, *(f"{r[d]:.2f}x" for d in dtypes)]
        for name, r in ratios.items()
        if min(r.values()) < 1
    ]
    return [
        f"With AVX2, of {len(ratios)} operators these are at least 1.5 times as fast as the same"
        f" code with the compiler's own vectors, in the second-level cache: {', '.join(counts)}.",
        _rows(Table("Slower than the compiler's vectors", ["operator", *dtypes], slower), ""),
    ]


def _one_element(times: dict[str, Any]) -> list[str]:
    slower = sorted(
        ([name, report.seconds(t["genkern"]), report.seconds(t["eager"]),
          f"{t['eager'] / t['genkern']:.2f}x"]
         for name, t in times.items() if t["eager"] < 0.995 * t["genkern"]),
        key=lambda row: row[3],
    )  # fmt: skip
    title = "One element: slower than eager PyTorch"
    return [
        f"A call of one element is faster than eager PyTorch's in {len(times) - len(slower)} of"
        f" {len(times)} operators.",
        _rows(Table(title, ["operator", "genkern", "eager", "ratio"], slower), ""),
    ]


def _scaling(times: dict[str, Any]) -> list[str]:
    most = max(next(iter(times.values())), key=int)
    ratios = {name: round(t["1"] / t[most], 2) for name, t in times.items()}
    below = [[name, f"{r:.2f}x"] for name, r in sorted(ratios.items(), key=lambda i: i[1])]
    below = [row for row in below if ratios[row[0]] < 1.7]
    return [
        f"{most} threads are {statistics.median(ratios.values()):.2f} times as fast as one in the"
        f" middle; {len(ratios) - len(below)} of {len(ratios)} operators of 1M elements reach"
        " 1.7 times.",
        _rows(Table(f"{most} threads: below 1.7 times", ["operator", "speedup"], below), ""),
    ]


def _profile(results: Results) -> list[str]:
    found = {name: part["found"] for name, part in results.items() if "found" in part}
    lines: list[str] = []
    if "skipped" not in found["vectorised"]:
        lines += _vectorised(found["vectorised"]["operators"])
    lines += _one_element(found["latency"]["one element"])
    lines += _scaling(found["scaling"])
    return [
        _picture("profile", "By operator: over the compiler's vectors, over eager, two threads"),
        *filter(None, lines),
        "Instructions an element, first calls, odd sizes, dtypes and all operators:"
        " [CPU kernels](profile.md).",
    ]


def _slowest(records: Iterable[dict[str, Any]], count: int) -> Table:
    """The kernels that reach the least of the memory's speed by the model."""
    below = sorted((r for r in records if r["roof"] < 0.995), key=lambda r: float(r["roof"]))
    rows = [
        [r["kernel"].removesuffix("_kernel"), r["dtype"], GPUS[r["target"]].name,
         r["bound"], f"{r['roof']:.0%}"]
        for r in below[:count]
    ]  # fmt: skip
    headings = ["kernel", "dtype", "GPU", "bound by", "of the memory's speed"]
    backend = below[0]["backend"] if below else ""
    title = f"{backend}: the slowest of the {len(below)} below the memory's speed"
    return Table(title, headings, rows)


def _gpu_static(results: Results) -> list[str]:
    records = results["records"]
    by = {b: [r for r in records if r["backend"] == b] for b in ("cuda", "triton")}
    far = gpu_static.above(by["cuda"])
    return [
        _picture("gpu_static", "Share of the memory's speed that kernels can reach by the model"),
        gpu_static.summary(records).markdown(),
        _rows(far, "No CUDA kernel is above its limit of instructions an element."),
        *(_rows(_slowest(chosen, 12), "") for chosen in by.values() if chosen),
        "The model, and the limits: [GPU kernels](gpu_static.md).",
    ]


def _gpu(results: Results) -> list[str]:
    timed = results.get("benchmarks", {}).get("records", [])
    return [
        f"{results['environment']['device']}: {_when(results['environment'])}",
        gpu.table(results["tests"]).markdown(),
        *(f"Missing: {line}" for line in results["missing"]),
        "\n".join(f"- {line}" for line in report.summary(timed)),
        _rows(_losses(timed), "In no case is another faster.") if timed else "Nothing was timed.",
        "How it was measured: [On a GPU](gpu.md).",
    ]


def _cuda_on_host(results: Results) -> list[str]:
    rows = [
        [f"{library}: {r['tests']}", str(r["passed"]), str(r["failed"]), str(r["skipped"])]
        for library, records in results["tests"].items()
        for r in records
    ]
    compiled = sum(k["compiled"] for k in results["kernels"])
    executed = sum(k["executed"] for k in results["kernels"])
    noticed = [bool(b["reported"]) for b in results.get("barriers", [])][1:]
    return [
        Table("Tests", ["tests", "passed", "failed", "skipped"], rows).markdown(),
        f"{executed} of {compiled} compiled kernels were executed. Of {len(noticed)} barriers that"
        f" were left out in turn, {sum(noticed)} were noticed.",
        "More: [CUDA kernels on the CPU](cuda_on_host.md).",
    ]


def _larger(errors: list[dict[str, Any]], sweeps: Iterable[str], title: str) -> Table:
    """Where genkern's errors are larger than eager PyTorch's."""
    rows = []
    for dtype in dict.fromkeys(r["dtype"] for r in errors):
        for op in dict.fromkeys(r["op"] for r in errors):
            own = [r for r in errors if (r["op"], r["dtype"]) == (op, dtype)]
            own = [r for r in own if r["sweep"] in sweeps]
            ours, theirs = numerics.merged(own, "genkern"), numerics.merged(own, "eager")
            if ours and theirs and (said := numerics.worse(ours, theirs)):
                pairs = (
                    f"{name.replace('_of_terms', '')} {ours[name]:.3g} ({theirs[name]:.3g})"
                    for name in said
                )
                rows.append([op, dtype, ", ".join(pairs)])
    return Table(title, ["operator", "dtype", "worse in"], rows)


def _numerics(results: Results) -> list[str]:
    errors = results["errors"]
    title = "Where genkern's error is larger than eager PyTorch's, in ulp (eager's in brackets)"
    extreme = "The same, of all exponents and special values"
    same = results["bits"]["threads and runs"]
    return [
        _picture("numerics", "Worst errors of genkern and of eager PyTorch, by operator"),
        _rows(_larger(errors, numerics.MODERATE, title), "No error is larger than eager's."),
        _rows(_larger(errors, numerics.EXTREME, extreme), "Nor of all exponents."),
        f"Bits of {same['values']:,} values with 1, 2, 3 and 7 threads and in a second run:"
        f" {', '.join(same['different']) or 'all equal'}.",
        "More: [Numerics](numerics.md).",
    ]


def _randomness(results: Results) -> list[str]:
    streams = results["battery"]["streams"]
    values = [p for stream in streams.values() for p in stream.values()]
    normals = results["normals"]["float32"]
    rows = [
        ["battery, smallest and largest p", f"{min(values):.4f}, {max(values):.4f}",
         f"{len(values)} values, {results['battery']['scale']} times SmallCrush's samples"],
        ["moments to order 8", f"{max(abs(m['z']) for m in normals['moments']):.2f}",
         "largest distance in standard errors"],
        ["Kolmogorov-Smirnov, p", f"{normals['kolmogorov_smirnov']['p']:.3f}",
         f"{normals['draws']:.0e} float32 normals"],
        ["Anderson-Darling, p", f"{normals['anderson_darling']['p']:.3f}", "the same"],
        *([f"independence of {name}, p", f"{r['p']:.3f}", f"{r['products']} products"]
          for name, r in {"lanes": results["lanes"], **results["keys"]}.items()),
    ]  # fmt: skip
    return [
        _picture("randomness", "P values of the battery; tails of the normal numbers"),
        Table("Noise", ["test", "value", "of"], rows).markdown(),
        "More: [Randomness](randomness.md).",
    ]


def _fuzz(results: Results) -> list[str]:
    rows = [
        [f"{kind}: {how}", f"{count:,}"]
        for kind in ("public", "hostile")
        for how, count in results[kind]["ended"].items()
    ]
    public, hostile = results["public"]["cases"], results["hostile"]["cases"]
    ran = hostile - sum(n for how, n in results["hostile"]["ended"].items() if "left out" in how)
    return [
        f"{public:,} random calls of public functions and {ran:,} hostile calls of operators"
        f" (of {hostile:,} that were made up; the others were too large to run), without a fault.",
        Table("How the calls ended", ["calls", "number"], rows).markdown(),
        "What they found before: [Robustness](robustness.md).",
    ]


# What a step of benchmarks.sanitize runs, by a word of its command.
_STEPS = {
    "test_conformance": "conformance of the CPU kernels",
    "test_layouts": "layouts and errors",
    "test_load": "calls from many threads",
    "test_memory": "memory",
    "benchmarks.fuzz": "random and hostile calls",
}


def _sanitize(results: Results) -> list[str]:
    rows = [
        [next((said for word, said in _STEPS.items() if word in step["command"]), step["command"]),
         step["sanitizer"], step["instruction set"], step["summary"].split(" in ")[0],
         "no fault" if step["exit code"] == 0 else "FAULT"]
        for step in results["steps"]
    ]  # fmt: skip
    heads = ["what runs", "under", "instruction set", "of it", "found"]
    return [
        Table("Sanitizers", heads, rows).markdown(),
        "How they are built, and what they found before: [Robustness](robustness.md).",
    ]


def _load(results: Results) -> list[str]:
    return [
        *(table.markdown() for table in load.tables(results)),
        f"The largest process had {nbytes(results['peak bytes'])} of memory.",
        "What each tries: [Robustness](robustness.md#load).",
    ]


def _soak(results: Results) -> list[str]:
    return [
        _picture("soak", "Resident memory over the minutes of training"),
        f"{results['rounds']} rounds of training in {results['minutes']:g} minutes; memory changes"
        f" by {results['kB a round']:+.0f} kB a round (+{soak.ALLOWED_KB_A_ROUND:.0f} allowed).",
    ]


_SECTIONS: dict[str, tuple[str, Callable[[Results], list[str]]]] = {
    "speed": ("Speed", _speed),
    "integrations": ("Other packages' loops", _integrations),
    "profile": ("CPU kernels", _profile),
    "gpu_static": ("GPU kernels, read", _gpu_static),
    "cuda_on_host": ("CUDA kernels, executed on the CPU", _cuda_on_host),
    "numerics": ("Numerics", _numerics),
    "randomness": ("Randomness", _randomness),
    "fuzz": ("Random and hostile calls", _fuzz),
    "sanitize": ("Sanitizers", _sanitize),
    "load": ("Scale and load", _load),
    "soak": ("Memory", _soak),
}


def _facts(part: Part, results: Results) -> dict[str, Any]:
    """The machine; a part of several runs has one a run."""
    if "environment" in results:
        return dict(results["environment"])
    return dict(next(iter(results.values()))["environment"])


def write(
    found: Mapping[str, Results], page: Path, remarks: Mapping[str, str], short: bool = False
) -> None:
    """Writes the page, and its pictures beside it.

    Args:
        found: The results by part, and a GPU's; a part without results is said to be missing.
        page: Where the Markdown goes.
        remarks: Why parts of this run have no new results, by their names.
        short: Whether these are short forms.
    """
    pictures = page.parent / "_static" / "report"
    pictures.mkdir(parents=True, exist_ok=True)
    rows, sections, machines = [], [], []
    for part in PARTS:
        title, section = _SECTIONS[part.name]
        if part.name not in found:
            rows.append([title, part.shows, remarks.get(part.name, "not run yet")])
            continue
        results = found[part.name]
        if part.name in PICTURES:
            PICTURES[part.name](results, pictures / f"{part.name}.png")
        anchor = title.lower().replace(",", "").replace("'", "").replace(" ", "-")
        facts = _facts(part, results)
        machines.append(_machine(facts))
        when = [_when(facts)]
        if part.name in remarks:
            when = [f"last run: {remarks[part.name]}", f"below: {when[0]}"]
        rows.append([f"[{title}](#{anchor})", part.shows, "; ".join(when)])
        sections += [f"## {title}", *section(results)]
    overview = Table("What was run", ["part", "shows", "when, and commit"], rows).markdown()
    where = f"On: {'; '.join(dict.fromkeys(machines))}."
    on_gpu = "\n\n".join(["## On a GPU", *_gpu(found["gpu"])]) if "gpu" in found else _NEVER
    head = _HEAD + (_SHORT if short else "")
    text = "\n\n".join([head + "\n" + overview, where, on_gpu.rstrip(), *sections]) + "\n"
    docs = os.path.relpath(ROOT / "docs", page.parent)
    page.write_text(text if docs == "." else re.sub(r"\]\((\w+\.md)\)", rf"]({docs}/\1)", text))
