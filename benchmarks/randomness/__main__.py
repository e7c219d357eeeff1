"""Command line: `python -m benchmarks.randomness`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks import environment
from benchmarks.randomness import battery, independence, normals
from benchmarks.randomness.streams import STREAMS
from benchmarks.report import Table, show
from genkern import random

_EPILOG = """\
The battery is the ten tests of SmallCrush (TestU01), on SCALE times their samples, of each stream.
Other batteries can read a stream:
  python -m benchmarks.randomness --raw one_key | RNG_test stdin32        (PractRand)
  python -m benchmarks.randomness --raw one_key | dieharder -a -g 200     (Debian has it)
"""
_SEED = 20240


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.randomness",
        description="Tests of the words and of the normal numbers of genkern.random.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="scale 1, 10^7 draws, fewer keys")
    parser.add_argument("--scale", type=int, help="times SmallCrush's samples (default 4)")
    parser.add_argument("--raw", choices=STREAMS, help="write a stream's words, without end")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    return parser


def _batteries(scale: int) -> dict[str, dict[str, float]]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        program = battery.build(Path(folder))
        for i, (name, stream) in enumerate(track(STREAMS.items(), "battery", transient=True)):
            found[name] = battery.run(program, stream(random.key(_SEED + i)), scale)
    return found


def measure(quick: bool, scale: int) -> dict[str, Any]:
    """All of it."""
    key = random.key(_SEED)
    draws, keys, each = (10**7, 32, 1 << 16) if quick else (10**9, 256, 1 << 18)
    return {
        "battery": {"scale": scale, "streams": _batteries(scale)},
        "law_moments": normals.law_moments(),
        "normals": {
            "float32": normals.statistics(key, draws, torch.float32),
            "float64": normals.statistics(key, draws, torch.float64),
        },
        "lanes": independence.lanes(key, 1 << (20 if quick else 23)),
        "keys": independence.families(key, keys, each),
    }


def tables(results: dict[str, Any]) -> list[Table]:
    """The results, for the terminal and the docs."""
    streams = results["battery"]["streams"]
    names = list(next(iter(streams.values())))
    found = [
        Table(
            f"P values of SmallCrush's statistics, {results['battery']['scale']} times its samples",
            ["statistic", *streams],
            [[name, *(f"{p[name]:.3f}" for p in streams.values())] for name in names],
        ),
        Table(
            "Moments of the law of float32 normals, from all 2^32 words",
            ["order", "normal", "cosine's lane", "sine's lane"],
            [
                [str(m["order"]), f"{m['normal']:.0f}", f"{m['cosine']:.12g}", f"{m['sine']:.12g}"]
                for m in results["law_moments"]
            ],
        ),
    ]
    for dtype, s in results["normals"].items():
        drawn = f"{s['draws']:.0e} {dtype} normals"
        distances = s["kolmogorov_smirnov"], s["anderson_darling"], s["largest"]
        found += [
            Table(
                f"{drawn}: moments",
                ["order", "expected", "found", "standard errors off"],
                [
                    [str(m["order"]), f"{m['expected']:.0f}", f"{m['found']:.7g}", f"{m['z']:+.2f}"]
                    for m in s["moments"]
                ],
            ),
            Table(
                f"{drawn}: distance from the normal law",
                ["statistic", "value", "p"],
                [
                    [
                        "Kolmogorov-Smirnov, sqrt(n) D",
                        f"{distances[0]['root_n_d']:.3f}",
                        f"{distances[0]['p']:.3f}",
                    ],
                    [
                        "Anderson-Darling, A^2",
                        f"{distances[1]['a2']:.3f}",
                        f"{distances[1]['p']:.3f}",
                    ],
                    ["largest size", f"{distances[2]['value']:.4f}", f"{distances[2]['p']:.3f}"],
                ],
            ),
            Table(
                f"{drawn}: tails",
                ["beyond", "normal law", "law of the words", "expected", "found", "p"],
                [
                    [
                        f"{t['beyond']:g}",
                        f"{t['normal']:.6g}",
                        f"{t['law']:.6g}",
                        f"{t['expected']:.6g}",
                        str(t["found"]),
                        f"{t['p']:.3f}",
                    ]
                    for t in s["tails"]
                ],
            ),
        ]
    pairs = {"lanes, and blocks up to 3 apart": results["lanes"], **results["keys"]}
    found.append(
        Table(
            "Independence: means of products of Hermite polynomials",
            ["of", "draws", "products", "p of all", "largest", "p of the largest"],
            [
                [
                    name,
                    str(r["draws"]),
                    str(r["products"]),
                    f"{r['p']:.3f}",
                    f"{r['largest']:.2f}",
                    f"{r['largest_p']:.3f}",
                ]
                for name, r in pairs.items()
            ],
        )
    )
    return found


def main() -> None:
    """Runs the tests, prints tables and writes the results."""
    arguments = _parser().parse_args()
    if arguments.raw:
        try:
            for words in STREAMS[arguments.raw](random.key(_SEED)):
                sys.stdout.buffer.write(words.tobytes())
        except BrokenPipeError:
            sys.stdout = None  # its flush at exit would fail again
        return
    results = {"environment": environment.describe(torch.device("cpu"), torch.get_num_threads())}
    results |= measure(arguments.quick, arguments.scale or (1 if arguments.quick else 4))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    show(tables(results), arguments.markdown, 120)


if __name__ == "__main__":
    main()
