"""The report: a page of what the evidence shows, written from the JSON files alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu_static, report
from benchmarks.evidence.parts import PARTS, Part
from benchmarks.evidence.pictures import PICTURES
from benchmarks.numerics import __main__ as numerics
from benchmarks.report import Table

Results = dict[str, Any]

_HEAD = """\
# Report

<!-- Written by `make report`; edit benchmarks/evidence/page.py instead. -->

What is known of genkern from runs on a machine without a GPU, and where it loses. One command
measures everything again and writes this page:

```sh
make report                      # two hours; parts that lack a tool say so and are left out
make report ARGS=--quick         # a quarter of an hour, in short forms
make report ARGS="--only speed"  # one part
```
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

which runs the tests and the benchmarks there and writes `docs/evidence/gpu.json`; see
[On a GPU](gpu.md).
"""


def _where(facts: dict[str, Any]) -> str:
    return (
        f"{facts['date'][:10]}, {facts['cpu']}, {facts['instruction set']},"
        f" torch {facts['torch']}, genkern {facts['genkern']}"
    )


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
        missed.markdown() if missed.rows else "No floor is missed.",
        _losses(records).markdown(),
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


def _profile(results: Results) -> list[str]:
    from benchmarks.profile.__main__ import PARTS as parts

    found = []
    for name, part in results.items():
        if name in parts and "skipped" not in part["found"]:
            found += [table.markdown() for table in parts[name].tables(part["found"])[:1]]
    return [*found, "More: [CPU kernels](profile.md)."]


def _gpu_static(results: Results) -> list[str]:
    records = results["records"]
    far = gpu_static.above([r for r in records if r["backend"] == "cuda"])
    return [
        _picture("gpu_static", "Share of the memory's speed that each CUDA kernel can reach"),
        gpu_static.summary(records).markdown(),
        far.markdown(),
        "The model, and Triton's kernels: [GPU kernels](gpu_static.md).",
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


def _numerics(results: Results) -> list[str]:
    rows = []
    for dtype in dict.fromkeys(r["dtype"] for r in results["errors"]):
        for op in dict.fromkeys(r["op"] for r in results["errors"]):
            own = [r for r in results["errors"] if (r["op"], r["dtype"]) == (op, dtype)]
            own = [r for r in own if r["sweep"] in numerics.MODERATE]
            ours, theirs = numerics.merged(own, "genkern"), numerics.merged(own, "eager")
            if ours and theirs and (said := numerics.worse(ours, theirs)):
                pairs = (
                    f"{name.replace('_of_terms', '')} {ours[name]:.3g} ({theirs[name]:.3g})"
                    for name in said
                )
                rows.append([op, dtype, ", ".join(pairs)])
    title = "Where genkern's error is larger than eager PyTorch's, in ulp (eager's in brackets)"
    same = results["bits"]["threads and runs"]
    return [
        _picture("numerics", "Worst errors of genkern and of eager PyTorch, by operator"),
        Table(title, ["operator", "dtype", "worse in"], rows).markdown(),
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
    return [
        f"{public:,} random calls of public functions and {hostile:,} hostile calls of operators,"
        " without a fault.",
        Table("How the calls ended", ["calls", "number"], rows).markdown(),
        "What they found before: [Robustness](robustness.md).",
    ]


def _sanitize(results: Results) -> list[str]:
    rows = [
        [*(str(step[k]) for k in step if k not in ("exit code", "seconds")),
         "no fault" if step["exit code"] == 0 else "FAULT"]
        for step in results["steps"]
    ]  # fmt: skip
    heads = [*(k for k in results["steps"][0] if k not in ("exit code", "seconds")), "found"]
    return [Table("Sanitizers", heads, rows).markdown()]


def _soak(results: Results) -> list[str]:
    return [
        _picture("soak", "Resident memory over the minutes of training"),
        f"{results['rounds']} rounds of training in {results['minutes']:g} minutes; memory changes"
        f" by {results['kB a round']:.0f} kB a round.",
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
    "soak": ("Memory", _soak),
}


def _facts(part: Part, results: Results) -> dict[str, Any]:
    """The machine; a part of several runs has one a run."""
    if "environment" in results:
        return dict(results["environment"])
    return dict(next(iter(results.values()))["environment"])


def write(found: dict[str, Results], page: Path, pictures: Path) -> None:
    """Writes the page and its pictures.

    Args:
        found: The results by part; a part without results is said to be missing.
        page: Where the Markdown goes.
        pictures: The folder of the pictures.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    rows, sections = [], []
    for part in PARTS:
        title, section = _SECTIONS[part.name]
        if part.name not in found:
            rows.append([title, part.shows, "not run yet"])
            continue
        results = found[part.name]
        if part.name in PICTURES:
            PICTURES[part.name](results, pictures / f"{part.name}.png")
        anchor = title.lower().replace(",", "").replace("'", "").replace(" ", "-")
        rows.append([f"[{title}](#{anchor})", part.shows, _where(_facts(part, results))])
        sections += [f"## {title}", *section(results)]
    overview = Table("What was run", ["part", "shows", "on"], rows).markdown()
    page.write_text("\n\n".join([_HEAD + "\n" + overview, _NEVER.rstrip(), *sections]) + "\n")
