"""Sphinx's settings: `make docs` builds the site from the Markdown pages and the docstrings."""

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

DOCS = Path(__file__).resolve().parent
os.environ["TQDM_DISABLE"] = "1"
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

project = "genkern"
author = copyright = "genkern developers"
release = version = installed("genkern")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "_ext.comments",
    "_ext.mathml",
    "_ext.measured",
    "_ext.picture",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "README.md"]  # index.rst includes the latter

# Pages are plain Markdown, read on a forge too: there and here, a ```math block is an equation.
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

default_role = "code"  # `x` in docstrings
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True

napoleon_use_rtype = False  # what stands before a colon under Returns is no type

# Every reference must lead somewhere, but for types of others: their inventories are not at hand
# offline.
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!genkern\.[a-z]).*")]

html_theme = "furo"
html_title = "genkern"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
