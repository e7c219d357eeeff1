"""The directive `measured`: the README's numbers of some operators, so that they stand once."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

README = Path(__file__).resolve().parents[2] / "README.md"


def excerpt(text: str, operators: tuple[str, ...]) -> list[str]:
    """The text above the table, its two head lines, and the rows that start with one of these."""
    lines = text.strip().splitlines()
    table = [i for i, line in enumerate(lines) if line.startswith("|")]
    rows = [lines[i] for i in table[2:] if lines[i].removeprefix("| ").startswith(operators)]
    return [*lines[: table[2]], *rows] if rows else []


class Measured(SphinxDirective):
    """A table; nothing where none of the operators was measured yet."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The nodes of the text and the table."""
        self.env.note_dependency(str(README))
        _, _, text = README.read_text(encoding="utf-8").partition("<!-- benchmarks:begin -->")
        text, _, _ = text.partition("<!-- benchmarks:end -->")
        lines = excerpt(text, tuple(self.arguments[0].split()))
        found = nodes.container()
        self.state.nested_parse(StringList(lines, source=str(README)), self.content_offset, found)
        return found.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True}
