"""A picture of `moesaic bench scale`: what a GPU reaches as there are more of them, published and predicted."""

import io
from pathlib import Path
from typing import Any

from moesaic.flush import replace_text

_COLOURS = {"SE-MoE": "#2563eb", "DeepSpeed": "#d97706"}


def draw_scale(published: list[dict[str, Any]], path: Path) -> None:
    """Write an SVG file.

    Args:
        published: that part of the result of `bench_scale`.
        path: the file; replaced.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and the same result gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "moesaic", "font.size": 9}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for system in published:
            _draw_system(axes, system)
        axes.set_xscale("log", base=2)
        ticks = [row["gpus"] for row in published[0]["rows"]]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_ylim(bottom=0)
        axes.set(xlabel="GPUs", ylabel="tokens/s of each")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4)
        axes.legend(frameon=False, loc="lower left")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    replace_text(path, text.getvalue())


def _draw_system(axes: Any, system: dict[str, Any]) -> None:
    rows, name = system["rows"], system["system"]
    colour = _COLOURS.get(name)

    def draw(key: str, style: str, label: str) -> None:
        known = [row for row in rows if row.get(key) is not None]
        if known:
            values = [row[key] / row["gpus"] for row in known]
            axes.plot([row["gpus"] for row in known], values, style, color=colour, label=label)

    draw("published_tokens_per_s", "o", f"{name}, published")
    draw("predicted_tokens_per_s", "-", f"{name}, predicted from its first three")
    draw("predicted_in_two_hops", ":", f"{name}, predicted with exchanges in two hops")
