"""What Sphinx is told; `build.py` runs it."""

from __future__ import annotations

import collections.abc
from typing import Any

import api
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import fedjx

project = "fedjx"
author = "The fedjx authors"
release = fedjx.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

root_doc = "index"
myst_heading_anchors = 4  # as many levels as GitHub gives anchors to, and documents use
default_role = "py:obj"  # a name in single backticks is a link where the site describes it

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # `sign` writes them
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 80

html_theme = "furo"  # has what it shows, and asks no other server for anything
html_title = f"fedjx {release}"
html_copy_source = False
html_show_copyright = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

HOMES = api.aliases()
NAMES = list(HOMES.values())
SHORT = {name.rpartition(".")[2]: name for name in reversed(NAMES)}


def link(app: Sphinx, document: nodes.document) -> None:
    """Lets names lead to where they are described: by the module that defines them, or by themselves."""
    for node in document.findall(addnodes.pending_xref):
        if node.get("refdomain") == "py":
            node.attributes.pop("refspecific", None)  # with it any name with the same ending will do
            target = node["reftarget"]
            beside = f"{node.get('py:module')}.{target}"
            known = beside if beside in NAMES else HOMES.get(target) or SHORT.get(target)
            if node["reftype"] == "class" and hasattr(collections.abc, target):
                known = None  # in an annotation, Sequence is Python's
            node["reftarget"] = known or target


def plain(app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keeps Napoleon from reading the words before a colon as a property's type."""
    if kind == "property":
        lines.insert(0, "")


def skip(app: Sphinx, kind: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out what Python writes about the fields of a NamedTuple; the docstring of its class describes them."""
    return True if (getattr(value, "__doc__", None) or "").startswith("Alias for field number") else None


def sign(app: Sphinx, kind: str, name: str, value: Any, options: Any, *found: str) -> tuple[str, str] | None:
    """Shows signatures as the source has them."""
    return api.signature(value)


def setup(app: Sphinx) -> None:
    """Connects the functions."""
    app.connect("autodoc-process-signature", sign)
    app.connect("doctree-read", link)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before Napoleon, which has 500
    app.connect("autodoc-skip-member", skip)
