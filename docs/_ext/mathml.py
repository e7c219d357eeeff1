r"""Equations as MathML, which browsers draw by themselves: no script, and nothing to download."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

# TeX sets a named function a thin space apart from what it is applied to.
FUNCTION = re.compile(r"(</m\w+>)?(<mi>(?:log|ln|cos|sin)</mi>)(?!<mo)")
THIN = '<mspace width="0.17em"/>'
TAG = re.compile(r"\\tag\{(.*?)\}")


def mathml(text: str, display: str) -> str:
    """The element of an equation in TeX's notation."""
    return FUNCTION.sub(
        lambda found: f"{found[1] + THIN if found[1] else ''}{found[2]}{THIN}",
        convert(text, display=display).replace(r"\_", "_"),  # inside \text it is left as it is
    )


def inline(writer: HTML5Translator, node: nodes.math) -> None:
    """An equation in a line."""
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(writer: HTML5Translator, node: nodes.math_block) -> None:
    r"""An equation on a line of its own, with the number of its \tag at the end."""
    text = node.astext()
    tag = TAG.search(text)
    text = TAG.sub("", text).strip()
    if r"\\" in text:
        text = rf"\begin{{split}}{text}\end{{split}}"
    number = f'<span class="number">({tag[1]})</span>' if tag else ""
    writer.body.append(f'<div class="math">{mathml(text, "block")}{number}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
