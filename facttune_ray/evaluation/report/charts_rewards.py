"""Charts of rewards: calibration, ranking of facts, agreement with each other.

reliability(summary)  ->  '<svg ...>'; "" if no confidence has a verdict
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from facttune_ray.evaluation.report.drawing import GRID, MARKERS, MODELS, OTHERS, chart, svg
from facttune_ray.evaluation.report.text import Summary

_PAINT = (MODELS["facttune_mc"], MODELS["facttune_fs"], *OTHERS)


def scored(summary: Summary, key: str) -> dict[str, dict]:
    """The rewards and the labelled models that have scores of facts, with `key`, by name."""
    human = {f"{n}, human labels": h for n, h in summary["human"].items()}
    return {n: r for n, r in (summary["rewards"] | human).items() if r.get(key)}


def reliability(summary: Summary, save: Callable[[Any, str], Any] = svg) -> Any:
    """Share of facts that are supported against their score, in bins. A point on the diagonal is
    calibrated; a larger point has more facts. `save`: makes the result of the figure and its label.
    """
    scores = scored(summary, "bins")
    if not scores:
        return ""
    with chart(4.4, 3.5) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=GRID, lw=0.9, ls=(0, (4, 3)))
        for (name, r), paint, mark in zip(scores.items(), _PAINT, MARKERS, strict=False):
            xs, ys = [b["confidence"] for b in r["bins"]], [b["supported"] for b in r["bins"]]
            sizes = [12 + 110 * b["facts"] / r["facts"] for b in r["bins"]]
            axes.plot(xs, ys, color=paint, lw=1.3)
            axes.scatter(xs, ys, s=sizes, color=paint, marker=mark, label=name)
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="score of the fact, as a probability")
        axes.set_title("share of such facts that are supported", loc="left", pad=14)
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.2, columnspacing=1.2)
        label = ", ".join(
            f"{n} AUROC {r['auroc']:.3f}" for n, r in scores.items() if r["auroc"] is not None
        )
        return save(figure, f"Reliability of confidence: {label}")


def risk_coverage(summary: Summary) -> str:
    """Share of wrong facts among the most confident facts. The faster it falls to the left, the
    better the score ranks; a flat line is chance."""
    scores = scored(summary, "curve")
    if not scores:
        return ""
    with chart(4.4, 3.5) as (figure, axes):
        for i, (name, r) in enumerate(scores.items()):
            paint, mark = _PAINT[i % len(_PAINT)], list(MARKERS)[i % len(MARKERS)]
            xs, ys = zip(*r["curve"], strict=True)
            curve = {"color": paint, "lw": 1.5, "marker": mark, "ms": 4.5, "markevery": 0.12}
            axes.plot(xs, ys, label=name, **curve)
        axes.set(xlim=(0, 1.02), ylim=(0, None), xlabel="share of facts kept, surest first")
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f}%")
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}%")
        axes.set_title("of these, share that is wrong", loc="left", pad=14)
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.2)
        label = ", ".join(f"{n} PRR {r['prr']:.2f}" for n, r in scores.items())
        return svg(figure, f"Risk against coverage: {label}")


def agreement(summary: Summary) -> str:
    """The matrix of rank correlations of the rewards."""
    names = summary["reward_agreement"].get("names", [])
    if len(names) < 2:
        return ""
    correlations = summary["reward_agreement"]["spearman"]
    side = max(2.6, 1.5 + 0.42 * len(names))
    with chart(max(4.4, side), side) as (figure, axes):
        for i, row in enumerate(correlations):
            for j, value in enumerate(row):
                if value is None:
                    continue
                paint = MODELS["facttune_fs"] if value >= 0 else MODELS["facttune_mc"]
                mark = "s" if value >= 0 else "D"
                axes.plot(j, i, mark, ms=24, color=paint, alpha=0.5 * abs(value))
                small = {"ha": "center", "va": "center", "fontsize": 8.5}
                axes.text(j, i, f"{value:.2f}", **small)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axes.set_yticks(range(len(names)), names)
        ends = (-0.6, len(names) - 0.4)
        axes.set(xlim=ends, ylim=ends[::-1])
        axes.grid(visible=False)
        axes.set_title("rank correlation of rewards", loc="left")
        pairs = [
            f"{a} and {b} {correlations[i][j]:.2f}"
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i < j and correlations[i][j] is not None
        ]
        return svg(figure, f"Rank correlation of rewards: {', '.join(pairs)}")
