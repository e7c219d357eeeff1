"""The chapter behind the package, reproduced: its figures, tables and claims, measured.

Run it with `python -m examples.chapter`, or `make chapter`; `make demo` runs its quick form.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples import chapter_diffusion, chapter_gan, report

PARTS = (chapter_diffusion, chapter_gan)


def reproduce(folder: Path, seed: int, quick: bool) -> Path:
    """Runs every part, prints the tables and writes the page."""
    parts = [module.run(seed, quick) for module in PARTS]
    page = report.write_page(
        "The chapter, reproduced",
        "Each number of a textbook chapter on generative models beside what genkern gives.",
        parts,
        folder,
    )
    report.print_tables(parts)
    return page


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.chapter", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=Path("chapter_output"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="under a minute, for a first look")
    arguments = parser.parse_args()
    page = reproduce(arguments.output, arguments.seed, arguments.quick)
    print(f"\nPage: {page.resolve()}")


if __name__ == "__main__":
    main()
