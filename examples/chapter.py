"""The chapter behind the package, reproduced: its figures, tables and claims, measured.

Run it with `python -m examples.chapter`, or `make chapter`; `make demo` runs its quick form.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from examples import (
    chapter_diffusion,
    chapter_families,
    chapter_gan,
    chapter_ring,
    chapter_vae,
    report,
)
from examples.data import load_digits


def reproduce(folder: Path, seed: int, quick: bool) -> Path:
    """Runs every part, prints the tables and writes the page."""
    # The networks are small: a second thread costs what it gives.
    torch.set_num_threads(1)
    threadpool_limits(1)  # those of NumPy and SciPy
    digits = load_digits()
    parts = [
        chapter_diffusion.run(seed, quick),
        chapter_vae.run(digits, seed, quick),
        chapter_gan.run(seed, quick),
        chapter_ring.run(seed, quick),
        chapter_families.run(digits, seed, quick),
    ]
    text = "Each number of a textbook chapter on generative models beside what genkern gives."
    if quick:
        text += " This is the quick form, with networks hardly trained; `make chapter` trains them."
    page = report.write_page(
        "The chapter, reproduced",
        text,
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
