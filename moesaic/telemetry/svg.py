"""From a matplotlib figure to SVG text that lives inside a page.

Charts are drawn in stand-in colours, one a role; in the text each stand-in becomes the page's CSS variable of
that role, so one drawing serves the light and the dark page. Text stays text, in the page's own font.
"""

import html
import io
import re
from collections.abc import Callable
from typing import Any

# What a colour is for. The page defines a variable --NAME for each, once for light and once for dark.
ROLES = ("ink", "muted", "grid", "train", "held-out", "optimizer", "speed", "routing")
_STAND_INS = {role: f"#0f1e{index:02x}" for index, role in enumerate(ROLES)}

# Sizes are CSS pixels: at 72 dots an inch, matplotlib's point is one unit of the SVG.
_DOTS_PER_INCH = 72
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.edgecolor": _STAND_INS["grid"],
    "axes.labelcolor": _STAND_INS["muted"],
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _STAND_INS["grid"],
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "text.color": _STAND_INS["ink"],
    "xtick.color": _STAND_INS["muted"],
    "ytick.color": _STAND_INS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


def role_color(role: str) -> str:
    """Return the stand-in colour to draw a role in."""
    return _STAND_INS[role]


def render_svg(name: str, size: tuple[int, int], draw: Callable[[Any], None], title: str, description: str) -> str:
    """Draw a figure and return it as one `<svg>` element; equal drawings give equal text.

    Args:
        name: unique within the page; prefixes the element ids.
        size: width and height, CSS pixels.
        draw: fills the figure it is given.
        title: shown when the pointer rests on the chart.
        description: read aloud in place of the chart.
    """
    import matplotlib
    from matplotlib.figure import Figure

    width, height = size
    buffer = io.StringIO()
    # The reader's own matplotlib settings are put aside, or the same run would look different elsewhere.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name})
        figure = Figure(figsize=(width / _DOTS_PER_INCH, height / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH)
        draw(figure)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    opening = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(description)}">'
        f"<title>{html.escape(title)}</title>"
    )
    return opening + _dress(buffer.getvalue(), name)


def _dress(text: str, name: str) -> str:
    """Return what follows the opening tag, fit for a page that holds other charts."""
    text = text[text.index("<svg") :]
    text = text[text.index(">") + 1 :]
    # The style element would restyle the whole page.
    text = re.sub(r"<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = _scope_ids(text, name)
    # The font is named in one property or in two, as matplotlib sees fit; only its size is kept.
    text = re.sub(r"font: (\S+)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for role, color in _STAND_INS.items():
        text = text.replace(color, f"var(--{role})")
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), text)
    return re.sub(r"\s*\n\s*", "\n", text)


def _scope_ids(text: str, name: str) -> str:
    """Drop ids that nothing refers to and prefix the others, so that charts of one page never collide."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
