"""Pictures as SVG elements for a page: text stays text, and colours are those of the page's light or dark mode."""

import re
import warnings
from collections.abc import Callable
from io import StringIO

from markupsafe import Markup
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from plaudit.evaluation.plots import BASELINE, FIRST, GRID, INK, MUTED, SECOND

__all__ = ["draw_svg"]

# The page sets these properties for each mode.
_PROPERTIES = {
    FIRST: "--first", SECOND: "--second", BASELINE: "--third", INK: "--ink", MUTED: "--muted", GRID: "--grid"
}  # fmt: skip
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw_svg(draw: Callable[..., object], name: str, title: str, description: str, height: float = 3.1) -> Markup:
    """Draw one picture and return it as an `svg` element, the same bytes for the same input.

    Args:
        draw: A function that draws on the axes `ax`.
        name: The identifier of the picture, which occurs once on a page: a letter, then letters, digits and hyphens.
        title: The name of the picture, for readers who cannot see it.
        description: The text alternative.
        height: Height in inches; the width is 5 inches.
    """
    buffer = StringIO()
    with rc_context(), warnings.catch_warnings():
        rcdefaults()
        # Text remains text: it is smaller than outlines, can be searched, and is set in the page's font.
        rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.5})
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has further fonts
        figure = Figure(figsize=(5, height), layout="constrained")
        axes = figure.subplots()
        draw(ax=axes)
        figure.patch.set_visible(False)  # the background is the page's
        axes.patch.set_visible(False)
        FigureCanvasSVG(figure).print_svg(buffer, metadata=_METADATA)
    file = buffer.getvalue()
    box = re.search(r'viewBox="[^"]+"', file)
    head = Markup(f'<svg {box[0] if box else ""} role="img" aria-labelledby="{name}-title {name}-desc">')
    texts = Markup('<title id="{0}-title">{1}</title><desc id="{0}-desc">{2}</desc>').format(name, title, description)
    return head + texts + Markup(_reduce(file[file.index(">", file.index("<svg")) + 1 :]))


def _reduce(svg: str) -> str:
    """Reduce the content of an SVG file to what a page needs."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<defs>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)  # every picture has an "axes_1"
    svg = re.sub(r"<[^>]+>", _shorten, svg.replace(' xlink:href="', ' href="'))
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _shorten(tag: re.Match[str]) -> str:
    """Return a tag with coordinates of one decimal, and with the colours of the page."""
    text = re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), tag[0])
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    return re.sub("|".join(_PROPERTIES), lambda colour: f"var({_PROPERTIES[colour[0]]})", text)
