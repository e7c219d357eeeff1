"""Command line: `python -m genkern info`."""

import argparse

from genkern import info


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m genkern", description=__doc__)
    parser.add_argument("command", choices=["info"], help="info: what is installed and usable")
    parser.parse_args()
    print(info())


if __name__ == "__main__":
    main()
