"""The directive `measured`: the README's rows of some operators, so that numbers stand once."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

README = Path(__file__).resolve().parents[2] / "README.md"


def rows(text: str, operators: tuple[str, ...]) -> list[str]:
    """The lines of the table whose names start with one of these, below its two head lines."""
    head, rule, *cases = (line for line in text.splitlines() if line.startswith("|"))
    found = [case for case in cases if case.removeprefix("| ").startswith(operators)]
    return [head, rule, *found] if found else []


class Measured(SphinxDirective):
    """A table; nothing where none of the operators was measured yet."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The table's node."""
        self.env.note_dependency(str(README))
        _, _, text = README.read_text(encoding="utf-8").partition("<!-- benchmarks:begin -->")
        text, _, _ = text.partition("<!-- benchmarks:end -->")
        lines = rows(text, tuple(self.arguments[0].split()))
        table = nodes.container()
        self.state.nested_parse(StringList(lines, source=str(README)), self.content_offset, table)
        return table.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True}
