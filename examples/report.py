"""Tables and pictures, in the terminal and on one self-contained HTML page."""

from __future__ import annotations

import base64
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

import genkern
from examples import pictures

TEMPLATE = Path(__file__).with_name("page.html")
CONSOLE = Console()


@dataclass(frozen=True)
class Table:
    """Rows of text; the first `labels` columns name things, a name is not repeated."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 1
    ours: str = "genkern"  # the name of the rows to mark


@dataclass(frozen=True)
class Picture:
    """A picture, drawn once for each theme."""

    name: str  # of its files
    draw: Callable[[], Figure]
    wide: bool = True


@dataclass(frozen=True)
class Section:
    """A table or a picture and what there is to say about it."""

    title: str
    text: str
    content: Table | Picture
    remark: str = ""  # what came out; printed under the table in the terminal too


@dataclass(frozen=True)
class Part:
    """Sections that belong together."""

    title: str
    text: str
    sections: Sequence[Section]


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


def shape_text(shape: Sequence[int]) -> str:
    """A tensor's shape."""
    return "x".join(map(str, shape))


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


def starts_group(table: Table, i: int) -> bool:
    """Whether row i has another name in the first column than the row above."""
    return i == 0 or table.rows[i][0] != table.rows[i - 1][0]


def shown(table: Table, i: int) -> tuple[str, ...]:
    """Row i without a name that the row above has."""
    row = table.rows[i]
    return row if table.labels == 1 or starts_group(table, i) else ("", *row[1:])


def print_tables(parts: Sequence[Part]) -> None:
    """The tables of the page, in the terminal."""
    for section in (section for part in parts for section in part.sections):
        if isinstance(section.content, Table):
            print_table(section.title, section.content)
            if section.remark:
                CONSOLE.print(section.remark, highlight=False, soft_wrap=True)
    CONSOLE.print()
    for name, value in environment().items():
        CONSOLE.print(f"{name}: {value}", highlight=False)
    if backend() == "reference":
        CONSOLE.print(
            "The reference backend is there for correctness and is slow: "
            "`python -m genkern info` says what is missing for the fast ones."
        )


def print_table(title: str, table: Table) -> None:
    """One table in the terminal."""
    lines = RichTable(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for i, column in enumerate(table.columns):
        justify = "left" if i < table.labels else "right"
        lines.add_column(column, no_wrap=True, justify=justify)
    last = len(table.rows) - 1
    for i in range(len(table.rows)):
        end = table.labels > 1 and (i == last or starts_group(table, i + 1))
        lines.add_row(*shown(table, i), end_section=end)
    CONSOLE.print(lines)


def data_uri(png: Path) -> str:
    """The file's bytes in the page itself."""
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def write_page(title: str, text: str, parts: Sequence[Part], folder: Path) -> Path:
    """Writes the pictures and index.html, which needs no other file."""
    folder.mkdir(parents=True, exist_ok=True)

    def images(picture: Picture) -> dict[str, str]:
        files = pictures.save(picture.draw, picture.name, folder)
        return {theme: data_uri(file) for theme, file in files.items()}

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    page = folder / "index.html"
    page.write_text(
        template.render(
            title=title,
            text=text,
            parts=parts,
            is_table=lambda content: isinstance(content, Table),
            starts_group=starts_group,
            shown=shown,
            images=images,
            environment=environment(),
            info=genkern.info(),
        ),
        encoding="utf-8",
    )
    return page
