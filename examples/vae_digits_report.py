"""The demo's tables, in the terminal and on one self-contained HTML page."""

from __future__ import annotations

import base64
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jinja2 import Environment, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table

import genkern
from examples.vae_digits_cost import Cost
from examples.vae_digits_figures import Picture

if TYPE_CHECKING:
    from examples.vae_digits import Run

TEMPLATE = Path(__file__).with_name("vae_digits_page.html")
RESULT_COLUMNS = ("Method", "ELBO, nats", "Step, ms")
COST_COLUMNS = ("Latent", "Method", "Time", "Spread", "Speed", "Kept", "Added")
COST_TITLE = "Sampling + KL alone: forward and backward, bytes kept for backward"


def quantity(value: float, units: Sequence[tuple[float, str]]) -> str:
    """At least three digits in the first unit that is not larger than the value."""
    scale, unit = next((u for u in units if value >= u[0]), units[-1])
    scaled = value / scale
    return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"


def time_text(seconds: float) -> str:
    """A time in s, ms or us."""
    return quantity(seconds, ((1, "s"), (1e-3, "ms"), (1e-6, "\N{MICRO SIGN}s")))


def bytes_text(count: int) -> str:
    """A size in MiB, KiB or bytes."""
    return quantity(count, ((2**20, "MiB"), (2**10, "KiB"), (1, "B")))


def result_rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """One row a run."""
    return [(r.method.name, f"{r.elbo:.4f}", f"{r.step_seconds * 1e3:.2f}") for r in runs]


def cost_rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """One row a method and latent shape; times are relative to the last method at that shape."""
    baseline = {cost.shape: cost.seconds for cost in costs}
    return [
        (
            "x".join(map(str, cost.shape)),
            cost.method,
            time_text(cost.seconds),
            f"{cost.spread:.0%}",
            f"{baseline[cost.shape] / cost.seconds:.2f}x",
            bytes_text(cost.bytes_kept),
            bytes_text(cost.bytes_added),
        )
        for cost in costs
    ]


def largest_difference(runs: Sequence[Run]) -> float:
    """Between the losses of the two runs on equal noise, over all steps."""
    return (runs[0].loss.double() - runs[1].loss.double()).abs().max().item()


def environment() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "genkern": f"{genkern.__version__}, backend {backend()}",
        "PyTorch": f"{torch.__version__}, threads: {torch.get_num_threads()}",
        "CPU": f"{cpu_name()}, cores: {os.cpu_count()}",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }


def backend() -> str:
    """The backend that ran genkern's part."""
    chosen = os.environ.get("GENKERN_BACKEND")
    if chosen:
        return f"{chosen} (GENKERN_BACKEND)"
    lines = genkern.explain("rsample_kl", torch.zeros(1, 1)).splitlines()
    return next(line.strip().removesuffix(": ready") for line in lines if line.endswith(": ready"))


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_tables(runs: Sequence[Run], costs: Sequence[Cost]) -> None:
    """The tables of the page, in the terminal."""
    console = Console()
    results = Table(*RESULT_COLUMNS, title="Training", box=box.SIMPLE)
    for row in result_rows(runs):
        results.add_row(*row)
    parts = Table(*COST_COLUMNS, title=COST_TITLE, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for i, row in enumerate(cost_rows(costs)):
        parts.add_row(*row, end_section=(i + 1) % len(runs) == 0)
    for table in (results, parts):
        for column in table.columns:
            column.no_wrap = True
            column.justify = "left" if column.header in ("Method", "Latent") else "right"
        console.print(table)
    console.print(
        "\nLargest difference of the losses of the two runs on equal noise: "
        f"{largest_difference(runs):.1e}"
    )
    for name, value in environment().items():
        console.print(f"{name}: {value}", highlight=False)
    if backend() == "reference":
        console.print(
            "The reference backend is there for correctness and is slow: "
            "`python -m genkern info` says what is missing for the fast ones."
        )


def data_uri(png: Path) -> str:
    """The file's bytes in the page itself."""
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def write_page(
    runs: Sequence[Run], costs: Sequence[Cost], pictures: Sequence[Picture], folder: Path
) -> Path:
    """Writes index.html; it needs no other file."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    page = folder / "index.html"
    page.write_text(
        template.render(
            result_columns=RESULT_COLUMNS,
            result_rows=result_rows(runs),
            cost_columns=COST_COLUMNS,
            cost_rows=cost_rows(costs),
            difference=f"{largest_difference(runs):.1e}",
            steps=len(runs[0].loss),
            pictures=pictures,
            data_uri=data_uri,
            environment=environment(),
            info=genkern.info(),
        ),
        encoding="utf-8",
    )
    return page
