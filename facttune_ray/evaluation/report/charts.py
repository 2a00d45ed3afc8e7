"""Charts of correct and incorrect facts: SVG for the report.

    scatter(summary)      ->  '<svg role="img" aria-label="Correct against ...">...</svg>'

A chart without data is "".
"""

from __future__ import annotations

from typing import Any

from facttune_ray.evaluation.report.drawing import GRID, INK, chart, error, high, looks, svg
from facttune_ray.evaluation.report.text import Summary, display_name

# Tian et al. (arXiv 2311.08401v1), biographies, Llama-2 7B after FactTune-FS: facts a response
PAPER: dict[str, Any] = {"name": "paper: FactTune-FS 7B", "correct": 17.06, "incorrect": 2.00}


def scatter(summary: Summary) -> str:
    """Correct against incorrect facts a response, with 95% intervals: right and down is better.

    Both axes start at 0, so that a line through the origin has one error rate. The paper's figure
    is a hollow star. If it is far outside, the star is at the edge, on the line of its error rate.
    """
    shown = {
        name: (m["correct"], m["incorrect"])
        for name, m in summary["models"].items()
        if m["correct"]["value"] is not None and m["incorrect"]["value"] is not None
    }
    if not shown:
        return ""
    with chart(4.4, 3.5) as (figure, axes):
        right = 1.12 * max(high(x) for x, _ in shown.values()) or 1.0
        top = 1.3 * max(high(y) for _, y in shown.values()) or 1.0
        near = PAPER["correct"] < 2.5 * right
        if near:
            right = max(right, 1.12 * PAPER["correct"])
            top = max(top, 1.3 * PAPER["incorrect"])
        _error_rate_lines(axes, right, top)
        look, start = looks(summary), shown.get("base")
        for name, (x, y) in shown.items():
            at, (paint, mark) = (x["value"], y["value"]), look[name]
            if start and name in summary["comparisons"]:
                arrow = {"arrowstyle": "-|>", "color": paint, "alpha": 0.55, "lw": 1.1}
                ends = {"xy": at, "xytext": (start[0]["value"], start[1]["value"])}
                axes.annotate("", **ends, arrowprops=arrow | {"shrinkA": 6, "shrinkB": 6})
            axes.errorbar(
                *at, xerr=error(x), yerr=error(y), fmt="none", ecolor=paint, elinewidth=1.2
            )
            size, above = (5, 4) if name == "base" else (8, 3)  # both visible at the same place
            axes.plot(*at, mark, ms=size, color=paint, label=display_name(name), zorder=above)
        share = 1.0 if near else 0.97 * right / PAPER["correct"]
        at = (share * PAPER["correct"], share * PAPER["incorrect"])
        name = PAPER["name"] + ("" if near else ", beyond")
        axes.plot(*at, "*", ms=11, mfc="none", color=INK, label=name, zorder=2, clip_on=False)
        axes.set(xlim=(0, right), ylim=(0, top), xlabel="correct facts a response")
        axes.set_title("incorrect facts a response; dashed: error rate", loc="left", pad=14)
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.2, columnspacing=1.2)
        label = "; ".join(
            f"{display_name(n)} {x['value']:.2f} correct, {y['value']:.2f} incorrect"
            for n, (x, y) in shown.items()
        )
        label += f"; {PAPER['name']} {PAPER['correct']} correct, {PAPER['incorrect']:.2f} incorrect"
        return svg(figure, f"Correct against incorrect facts a response: {label}")


def _error_rate_lines(axes: Any, right: float, top: float) -> None:
    """Faint lines of constant error rate e: incorrect = correct * e / (1 - e)."""
    for e in (0.1, 0.25, 0.5):
        slope = e / (1 - e)
        x = min(right, top / slope)
        axes.plot([0, x], [0, x * slope], color=GRID, lw=0.9, ls=(0, (4, 3)), zorder=1)
        side = {"ha": "left", "va": "center"} if x == right else {"ha": "center", "va": "bottom"}
        axes.annotate(
            f"{100 * e:.0f}%",
            (x, x * slope),
            xytext=(3, 0) if x == right else (0, 2),  # outside the axes, away from the points
            textcoords="offset points",
            fontsize=8.5,
            annotation_clip=False,
            **side,
        )


def error_rates(summary: Summary) -> str:
    """Error rate of each model with its 95% interval, from 0."""
    shown = {
        n: m["error_rate"]
        for n, m in summary["models"].items()
        if m["error_rate"]["value"] is not None
    }
    if not shown:
        return ""
    with chart(4.4, 1.15 + 0.55 * len(shown)) as (figure, axes):
        look = looks(summary)
        for i, (name, rate) in enumerate(shown.items()):
            paint, mark = look[name]
            axes.errorbar(
                rate["value"], i, xerr=error(rate), fmt="none", ecolor=paint, elinewidth=2
            )
            axes.plot(rate["value"], i, mark, ms=7.5, color=paint)
            axes.annotate(
                f"{100 * rate['value']:.1f}%",
                (rate["value"], i),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
            )
        axes.set_yticks(range(len(shown)), [display_name(n) for n in shown])
        axes.set(xlim=(0, 1.08 * max(map(high, shown.values())) or 1.0))
        axes.set(ylim=(len(shown) - 0.5, -0.65))
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f}%")
        axes.grid(axis="y", visible=False)
        axes.set_title("error rate: wrong facts among those judged", loc="left")
        label = ", ".join(f"{display_name(n)} {100 * r['value']:.1f}%" for n, r in shown.items())
        return svg(figure, f"Error rate: {label}")


def by_group(summary: Summary) -> str:
    """Error rate of each model by group of topics, with 95% intervals."""
    rows = [
        g for g in summary["groups"] if any(m["error_rate"]["value"] for m in g["models"].values())
    ][:12]
    if len(rows) < 2:
        return ""
    names = list(summary["models"])
    with chart(4.4, 0.95 + len(rows) * (0.22 + 0.16 * len(names))) as (figure, axes):
        look, highest = looks(summary), 0.0
        for row, group in enumerate(rows):
            for i, name in enumerate(names):
                rate = group["models"].get(name, {}).get("error_rate")
                if not rate or rate["value"] is None:
                    continue
                paint, mark = look[name]
                y = row + (i - (len(names) - 1) / 2) * 0.7 / max(1, len(names))
                label = display_name(name) if row == 0 else None
                highest = max(highest, high(rate))
                bars = {"fmt": mark, "ecolor": paint, "color": paint, "ms": 5, "label": label}
                axes.errorbar(rate["value"], y, xerr=error(rate), elinewidth=1.3, **bars)
        labels = [f"{g['group']} ({max(m['topics'] for m in g['models'].values())})" for g in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set(xlim=(0, 1.05 * highest or 1.0), ylim=(len(rows) - 0.4, -0.6))
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f}%")
        axes.grid(axis="y", visible=False)
        axes.set_title("error rate by kind of topic (topics)", loc="left", pad=8)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.2)
        figures = "; ".join(
            f"{g['group']}: "
            + ", ".join(
                f"{display_name(n)} {100 * m['error_rate']['value']:.1f}%"
                for n, m in g["models"].items()
                if m["error_rate"]["value"] is not None
            )
            for g in rows
        )
        return svg(figure, f"Error rate by kind of topic. {figures}")


def lengths(summary: Summary) -> str:
    """Share of correct facts against the length of responses, in bins of equal numbers."""
    shown = {n: r for n, r in summary["lengths"].items() if len(r["bins"]) > 1}
    if not shown:
        return ""
    with chart(4.4, 2.9) as (figure, axes):
        look, correlations = looks(summary), []
        for name, r in shown.items():
            paint, mark = look[name]
            xs, ys = [b["words"] for b in r["bins"]], [b["precision"] for b in r["bins"]]
            axes.plot(xs, ys, color=paint, marker=mark, ms=5, lw=1.3, label=display_name(name))
            if r["spearman"] is not None:
                correlations.append(f"{display_name(name)} {r['spearman']:+.2f}")
        axes.set(ylim=(0, 1.03), xlabel="words a response; a point is a sixth of the responses")
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")
        axes.set_title("share of judged facts that are correct", loc="left", pad=8)
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
        return svg(figure, f"Length against score; rank correlation: {', '.join(correlations)}")
