"""Figures as SVG inside a page, in the colours of its theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from fedjx.experiment.drawing import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The page says what these are, in either theme.
_VARIABLES = {
    "#000000": "currentColor",
    "#ffffff": "var(--page)",
    **dict.fromkeys(("#808080", "#b0b0b0", "#cccccc"), "var(--grey)"),
    **dict(zip(("#1f77b4", "#ff7f0e"), ("var(--series-0)", "var(--series-1)"), strict=True)),
    **{colour: f"var(--series-{i})" for i, colour in enumerate(COLOURS)},
}


def picture(draw: Callable[[Any], None], text: str, size: tuple[float, float] = (4.4, 3.0)) -> str:
    """Draws on new axes, and returns what was drawn as the SVG of a page.

    Args:
      draw: Draws on the axes it is given.
      text: Says what there is to see, to those who do not see it.
      size: In inches; it fills the width that the page has, and so its letters are those of so wide a picture.
    """
    from matplotlib.figure import Figure

    def figure() -> Figure:
        made = Figure(figsize=size, layout="constrained")
        draw(made.subplots())
        return made

    return svg(figure, text)


def svg(figure: Callable[[], Figure], text: str) -> str:
    """Returns a figure, made in Matplotlib's own style, as the SVG of a page; the same figure is the same text."""
    from matplotlib import style

    file = io.StringIO()
    own = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": text}
    with style.context(["default", own]), warnings.catch_warnings():
        # Its letters are the browser's.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure().savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<[^>]+>", lambda tag: _in_page(tag[0]), drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1)


def _in_page(tag: str) -> str:
    """Changes a tag: variables for colours, shorter numbers, no size of its own, and names only where they are used."""
    if tag.startswith("<image"):
        return tag
    if tag.startswith("<svg"):
        return re.sub(r' (width|height|xmlns\S*|version)="[^"]*"', "", tag)
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda colour: _VARIABLES.get(colour[0], colour[0]), tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    return re.sub(r' id="[^"]*"', "", tag) if tag.startswith("<g") else tag
