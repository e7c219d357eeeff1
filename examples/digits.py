"""Generative models of handwritten digits, with genkern and with the lines that it replaces.

Trains a VAE and a diffusion model, measures what happens around the networks, and writes a page;
then reproduces the chapter behind the package, in its quick form.

Run it with `python -m examples.digits`, or `make demo`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples import chapter, ddpm_digits_page, report, vae_digits_page
from examples.data import load_digits


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=Path("demo_output"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="under a minute, for a first look")
    return parser.parse_args()


def main() -> None:
    """Runs the parts and writes the pages."""
    arguments = parse_arguments()
    digits = load_digits()
    parts = [
        module.run(digits, arguments.seed, arguments.quick)
        for module in (vae_digits_page, ddpm_digits_page)
    ]
    page = report.write_page(
        "Generative models on digits",
        "Models of scikit-learn's 1797 digits of 8 x 8 pixels, each trained with genkern and with "
        "the plain PyTorch lines that it replaces, fed the same noise.",
        parts,
        arguments.output,
    )
    report.print_tables(parts)
    chapter_page = chapter.reproduce(arguments.output / "chapter", arguments.seed, quick=True)
    print(f"\nPages: {page.resolve()}")
    print(f"       {chapter_page.resolve()}, in full by `make chapter`")


if __name__ == "__main__":
    main()
