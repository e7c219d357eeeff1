"""The directive `picture`: one of `_ext.pictures`, for light and dark pages, and its caption."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from _ext.pictures import PICTURES
from examples import pictures

FOLDER = "_build/pictures"


def draw(app: Sphinx) -> None:
    """Draws them all, within seconds; on one thread, since everything in them is small."""
    torch.set_num_threads(1)
    folder = Path(app.srcdir, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in PICTURES.items():
        pictures.save(figure, name, folder)


class Picture(SphinxDirective):
    """The picture of that name; its content is the caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"alt": str}

    def run(self) -> list[nodes.Node]:
        """The figure's node."""
        (name,) = self.arguments
        if name not in PICTURES:
            raise self.error(f"picture: expected one of {', '.join(PICTURES)}, got {name}")
        figure = nodes.figure()
        for theme in pictures.THEMES:
            uri = f"/{FOLDER}/{name}-{theme}.png"
            figure += nodes.image(uri=uri, alt=self.options["alt"], classes=[f"only-{theme}"])
        text, _ = self.parse_inline(" ".join(self.content))
        figure += nodes.caption("", "", *text)
        return [figure]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", draw)
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}
