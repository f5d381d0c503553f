"""The site of these pages: `make docs` builds it with Sphinx and MyST. It asks nothing of another machine."""

from __future__ import annotations

import tomllib
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]

project = "alignd"
version = release = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
extensions = ["myst_parser"]
root_doc = "index"
nitpicky = True

myst_heading_anchors = 4
"""A link may end in the heading that it means, as in `design.md#5-state-on-disk`."""
myst_all_links_external = False

html_theme = "alabaster"
html_theme_options = {
    "description": "keeps an open-weight language model aligned while it is in service",
    "fixed_sidebar": True,
    "page_width": "74rem",
    "sidebar_width": "15rem",
    "body_max_width": "56rem",
    "show_powered_by": False,
}
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
