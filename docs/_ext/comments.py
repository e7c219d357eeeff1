"""Text for the site alone: a page's `<!-- site ... -->`, which other readers of Markdown hide."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

SITE = re.compile(r"^<!-- site\n(.*?)^-->$", re.MULTILINE | re.DOTALL)


def uncomment(app: Sphinx, name: str, source: list[str]) -> None:
    """Takes the marks away from around the text."""
    source[0] = SITE.sub(r"\1", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", uncomment)
    return {"parallel_read_safe": True}
