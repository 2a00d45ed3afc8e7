"""Static charts as SVG text, drawn with matplotlib. Colours come from the page's style sheet
variables, so that light and dark both work: text and axes inherit `currentColor`."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

COLOURS = {"base": "#7a7f87", "facttune_fs": "#0f8b6d", "facttune_mc": "#b0660a"}
OTHERS = ("#3b6fb6", "#8a4fa3", "#b03a48", "#4d7c0f")


def colour(name: str, index: int) -> str:
    return COLOURS.get(name, OTHERS[index % len(OTHERS)])


def scatter(summary: dict[str, Any]) -> str:
    """Correct against incorrect facts a response, with 95% intervals; down and right is better."""
    figure, axes = _axes(6.4, 3.8)
    models = summary["models"]
    start = models.get("base")
    for i, (name, m) in enumerate(models.items()):
        x, y = m["correct"], m["incorrect"]
        if x["value"] is None or y["value"] is None:
            continue
        if start and name != "base":
            axes.annotate(
                "",
                xy=(x["value"], y["value"]),
                xytext=(start["correct"]["value"], start["incorrect"]["value"]),
                arrowprops={"arrowstyle": "->", "color": "#9aa0a8", "lw": 1, "shrinkB": 6},
            )
        axes.errorbar(
            x["value"],
            y["value"],
            xerr=_error(x),
            yerr=_error(y),
            fmt="o",
            markersize=8,
            color=colour(name, i),
            capsize=3,
            label=_label(name),
        )
    axes.set_xlabel("correct facts a response")
    axes.set_ylabel("incorrect facts a response")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.legend(frameon=False)
    return _svg(figure, "Correct against incorrect facts a response, each model with its interval")


def training(summary: dict[str, Any]) -> str:
    """DPO loss and share of pairs in the right order, over all rounds of each tuned model."""
    figure, axes = _axes(6.4, 3.0, panels=2)
    for i, (name, lines) in enumerate(summary["training"].items()):
        if not lines:
            continue
        steps = range(1, len(lines) + 1)
        for panel, key in zip(axes, ("loss", "reward_accuracy"), strict=True):
            panel.plot(steps, [r[key] for r in lines], color=colour(name, i), label=_label(name))
            for k in range(1, len(lines)):
                if lines[k]["round"] != lines[k - 1]["round"]:
                    panel.axvline(k + 0.5, color="#9aa0a8", lw=0.6, ls=":")
    for panel, title in zip(axes, ("DPO loss", "pairs in the right order"), strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("optimizer step (dotted: next round)")
    axes[1].legend(frameon=False, loc="lower right")
    return _svg(figure, "Training curves: DPO loss and share of pairs in the right order")


def headline_png(summary: dict[str, Any], path: str | Path) -> None:
    """Bars of correct and incorrect facts a response for each model: the README's picture."""
    figure, axes = _axes(6.4, 2.6)
    models = summary["models"]
    for row, m in enumerate(models.values()):
        good, bad = m["correct"]["value"] or 0.0, m["incorrect"]["value"] or 0.0
        rate = m["error_rate"]["value"]
        axes.barh(row, good, color="#0f8b6d", label="correct" if row == 0 else None)
        axes.barh(row, bad, left=good, color="#c2483d", label="incorrect" if row == 0 else None)
        shown = "nothing judged" if rate is None else f"{100 * rate:.1f}% wrong"
        axes.text(good + bad + 0.04, row, shown, va="center", fontsize=9)
    axes.set_yticks(range(len(models)), [_label(n) for n in models])
    axes.invert_yaxis()
    where = {"all": "all topics"}.get(summary["run"]["split"], "held-out topics")
    axes.set_xlabel(f"distinct facts a response, {where}")
    axes.margins(x=0.14)
    figure.legend(frameon=False, loc="outside upper right", fontsize=9, ncols=2)
    figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white")


def _label(name: str) -> str:
    return "FactTune-" + name[9:].upper() if name.startswith("facttune_") else name


def _error(interval: dict[str, float | None]) -> list[list[float]] | None:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None or low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _axes(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, panels)
    for panel in [axes] if panels == 1 else axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#9aa0a8", alpha=0.25, lw=0.6)
        panel.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
    for black in ("#000000", "black"):  # text and axes follow the page's colour
        svg = svg.replace(f"stroke: {black}", "stroke: currentColor")
        svg = svg.replace(f"fill: {black}", "fill: currentColor")
    svg = svg.replace("<text ", '<text fill="currentColor" ')
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
