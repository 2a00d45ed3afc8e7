"""Style, colours and SVG output of the report's charts.

    with chart(4.4, 3.5) as (figure, axes):
        ...
        return svg(figure, "Error rate: base 43.4%")

Each chart is narrow (4.4 inches), so that its text stays readable on a phone; the page puts charts
side by side. Text stays text, in the page's font. Colours become variables of the page's style
sheet, so that the light and the dark page both work. Models differ by marker and by colour.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from facttune_ray.evaluation.report.text import Summary

INK, GRID = "#1d2126", "#9aa0a8"
CORRECT, INCORRECT = "#12806a", "#c4453a"
MODELS = {"base": "#6b7280", "facttune_fs": "#2563b8", "facttune_mc": "#b35c00"}
OTHERS = ("#7c3aad", "#0e7490", "#a8325e", "#4d7c0f")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
STYLE = {
    "font.size": 9.5,
    "text.parse_math": False,  # a "$" in a model's name is no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.alpha": 0.28,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def looks(summary: Summary) -> dict[str, tuple[str, str]]:
    """Colour and marker of each model, the same in every chart and table."""
    names = list(dict.fromkeys([*summary["models"], *summary["training"], *summary["selection"]]))
    others = [n for n in names if n not in MODELS]
    paint = MODELS | {n: OTHERS[i % len(OTHERS)] for i, n in enumerate(others)}
    marks = list(MARKERS)
    return {n: (paint[n], marks[i % len(marks)]) for i, n in enumerate(names)}


def high(interval: dict[str, float | None]) -> float:
    """The upper end, else the value, else 0."""
    return float(interval["high"] if interval["high"] is not None else interval["value"] or 0.0)


def error(interval: dict[str, Any]) -> list[list[float]] | None:
    """Lengths of matplotlib's error bar below and above the value; None without an interval."""
    value, low, high = interval["value"], interval["low"], interval["high"]
    if low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


@contextmanager
def chart(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """(figure, axes) of so many inches. Draw and save it in the block, where STYLE holds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot, which needs a display and has global state

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def svg(figure: Any, label: str) -> str:
    """Inline SVG with `label` as its name, in the page's colours and font. Unused ids are removed.
    The same figure gives the same bytes."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": label}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: (?:bold |[0-9]+ )*([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r"(#[0-9a-f]{6})", lambda m: f"var(--c{m[1][1:]}, {m[1]})", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


# Chart colour -> lighter colour of the same hue, for the dark page.
DARK = {
    INK: "#e7e9eb",
    GRID: "#7d858d",
    "#6b7280": "#a7afb8",
    "#2563b8": "#74a9f2",
    "#b35c00": "#f0a64e",
    "#7c3aad": "#c49af0",
    "#0e7490": "#5cc4dc",
    "#a8325e": "#f08db0",
    "#4d7c0f": "#a5cf5f",
}
