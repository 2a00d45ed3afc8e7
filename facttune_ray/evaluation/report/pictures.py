"""Pictures of a run's summary for READMEs and slides: PNG on a white background.

headline(summary)     ->  b"\x89PNG..."
reliability(summary)  ->  b"\x89PNG...", or b"" if no confidence has a verdict
"""

from __future__ import annotations

import io
from typing import Any

from facttune_ray.evaluation.report import charts_rewards
from facttune_ray.evaluation.report.drawing import CORRECT, INCORRECT, chart
from facttune_ray.evaluation.report.text import Summary, display_name, topics_of


def headline(summary: Summary) -> bytes:
    """PNG with bars of correct and incorrect facts a response for each model, and error rates."""
    models = summary["models"]
    with chart(6.4, 0.9 + 0.5 * len(models)) as (figure, axes):
        shown = [
            (m["correct"]["value"] or 0.0, m["incorrect"]["value"] or 0.0) for m in models.values()
        ]
        widest = max((good + bad for good, bad in shown), default=0.0)
        for row, (m, (good, bad)) in enumerate(zip(models.values(), shown, strict=True)):
            axes.barh(row, good, height=0.62, color=CORRECT)
            axes.barh(row, bad, height=0.62, left=good, color=INCORRECT)
            for at, value in ((good / 2, good), (good + bad / 2, bad)):
                if value > 0.08 * widest:  # a narrower bar has no room for its number
                    place = {"ha": "center", "va": "center", "color": "white"}
                    axes.text(at, row, f"{value:.2f}", weight="bold", **place)
            rate = m["error_rate"]["value"]
            wrong = "  nothing judged" if rate is None else f"  {100 * rate:.1f}% wrong"
            axes.text(good + bad, row, wrong, va="center", weight="bold")
        labels = [f"{display_name(n)}\n{topics_of(summary, n)}".rstrip() for n in models]
        axes.set_yticks(range(len(models)), labels)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.grid(visible=False)
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        where = {("all",): ", all topics", ("test",): ", held-out topics"}
        splits = tuple(set(summary["run"]["splits"].values()))
        axes.set_xlabel(f"distinct facts a response{where.get(splits, '')}")
        key = ((CORRECT, "correct"), (INCORRECT, "incorrect"))
        bars = [axes.barh(0, 0, color=c, label=n) for c, n in key]
        figure.legend(handles=bars, loc="outside upper left", ncols=2)
        return _png(figure, 200)


def reliability(summary: Summary) -> bytes:
    """The report's chart of reliability as PNG; b"" if no confidence has a verdict."""
    return charts_rewards.reliability(summary, lambda figure, _: _png(figure, 160)) or b""


def _png(figure: Any, dpi: int) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor="white")
    return out.getvalue()
