r"""Equations as MathML, which browsers draw by themselves: no script, and nothing to download."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

TAG = re.compile(r"\\tag\{(.*?)\}")


def inline(writer: HTML5Translator, node: nodes.math) -> None:
    """An equation in a line."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(writer: HTML5Translator, node: nodes.math_block) -> None:
    r"""An equation on a line of its own, with the number of its \tag at the end."""
    text = node.astext()
    tag = TAG.search(text)
    text = TAG.sub("", text).strip()
    if r"\\" in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    number = f'<span class="number">({tag[1]})</span>' if tag else ""
    writer.body.append(f'<div class="math">{convert(text, display="block")}{number}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
