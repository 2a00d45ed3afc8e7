"""Static charts of a run's summary: SVG for the report, one picture for the README.

    scatter(summary)      ->  '<svg role="img" aria-label="Correct against ...">...</svg>'

Each chart is narrow (4.4 inches), so that its text stays readable on a phone; the page lays them
out side by side. Text stays text in the page's font. Colours become the page's style sheet
variables, so that light and dark both work. A model is told by marker as well as by colour.
"""

from __future__ import annotations

import html
import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

Summary = dict[str, Any]

INK, GRID = "#1d2126", "#9aa0a8"
CORRECT, INCORRECT = "#12806a", "#c4453a"
MODELS = {"base": "#6b7280", "facttune_fs": "#2563b8", "facttune_mc": "#b35c00"}
OTHERS = ("#7c3aad", "#0e7490", "#a8325e", "#4d7c0f")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
STYLE = {
    "font.size": 9.5,
    "text.parse_math": False,  # a "$" in a model's name is a dollar
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


def display_name(model: str) -> str:
    """ "facttune_fs" -> "FactTune-FS"; other names as they are."""
    if not model.startswith("facttune_"):
        return model
    name = model.removeprefix("facttune_")
    return "FactTune-" + (name.upper() if len(name) <= 3 else name)


def looks(summary: Summary) -> dict[str, tuple[str, str]]:
    """Colour and marker of each model, the same in every chart and table."""
    names = list(dict.fromkeys([*summary["models"], *summary["training"], *summary["selection"]]))
    others = [n for n in names if n not in MODELS]
    paint = MODELS | {n: OTHERS[i % len(OTHERS)] for i, n in enumerate(others)}
    marks = list(MARKERS)
    return {n: (paint[n], marks[i % len(marks)]) for i, n in enumerate(names)}


def scatter(summary: Summary) -> str:
    """Correct against incorrect facts a response, with 95% intervals: right and down is better.

    Both axes start at 0, so that a line through the origin is one error rate.
    """
    shown = {
        name: (m["correct"], m["incorrect"])
        for name, m in summary["models"].items()
        if m["correct"]["value"] is not None and m["incorrect"]["value"] is not None
    }
    if not shown:
        return ""
    with _style():
        figure, axes = _axes(4.4, 3.5)
        right = 1.12 * max(_high(x) for x, _ in shown.values()) or 1.0
        top = 1.3 * max(_high(y) for _, y in shown.values()) or 1.0
        _error_rate_lines(axes, right, top)
        look, start = looks(summary), shown.get("base")
        for name, (x, y) in shown.items():
            at, (paint, mark) = (x["value"], y["value"]), look[name]
            if start and name != "base":
                axes.annotate(
                    "",
                    xy=at,
                    xytext=(start[0]["value"], start[1]["value"]),
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": paint,
                        "alpha": 0.55,
                        "lw": 1.1,
                        "shrinkA": 6,
                        "shrinkB": 6,
                    },
                )
            axes.errorbar(
                *at, xerr=_error(x), yerr=_error(y), fmt="none", ecolor=paint, elinewidth=1.2
            )
            size, above = (5, 4) if name == "base" else (8, 3)  # seen even where they coincide
            axes.plot(*at, mark, ms=size, color=paint, label=display_name(name), zorder=above)
        axes.set(xlim=(0, right), ylim=(0, top), xlabel="correct facts a response")
        axes.set_title("incorrect facts a response; dashed: error rate", loc="left", pad=14)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.2)
        told = "; ".join(
            f"{display_name(n)} {x['value']:.2f} correct, {y['value']:.2f} incorrect"
            for n, (x, y) in shown.items()
        )
        return _svg(figure, f"Correct against incorrect facts a response: {told}")


def error_rates(summary: Summary) -> str:
    """Error rate of each model with its 95% interval, from 0."""
    shown = {
        n: m["error_rate"]
        for n, m in summary["models"].items()
        if m["error_rate"]["value"] is not None
    }
    if not shown:
        return ""
    with _style():
        figure, axes = _axes(4.4, 1.15 + 0.55 * len(shown))
        look = looks(summary)
        for i, (name, rate) in enumerate(shown.items()):
            paint, mark = look[name]
            axes.errorbar(
                rate["value"], i, xerr=_error(rate), fmt="none", ecolor=paint, elinewidth=2
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
        axes.set(xlim=(0, 1.08 * max(map(_high, shown.values())) or 1.0))
        axes.set(ylim=(len(shown) - 0.5, -0.65))
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f}%")
        axes.grid(axis="y", visible=False)
        axes.set_title("error rate: wrong facts among those judged", loc="left")
        told = ", ".join(f"{display_name(n)} {100 * r['value']:.1f}%" for n, r in shown.items())
        return _svg(figure, f"Error rate: {told}")


CURVES = {  # column of the training log -> title
    "loss": "loss",
    "reward_accuracy": "share of pairs in the right order",
    "margin": "mean margin of pairs",
}


def training(summary: Summary) -> list[str]:
    """One chart for each of CURVES over optimizer steps, a new line each round."""
    logs = {n: lines for n, lines in summary["training"].items() if lines}
    kept = [k for k in CURVES if any(k in r for lines in logs.values() for r in lines)]
    return [_curve(summary, logs, key) for key in kept]


def by_round(log: list[dict], key: str) -> dict[int, list[tuple[int, float]]]:
    """Round -> (optimizer step over all rounds, value); rounds without a value are left out.

    The share of pairs in order leaves out a round's first step: it compares the model with
    itself, every margin is 0 and nothing is in order yet.
    """
    out: dict[int, list[tuple[int, float]]] = {}
    seen: set[int] = set()
    for step, r in enumerate(log, 1):
        first = r["round"] not in seen
        seen.add(r["round"])
        if r.get(key) is not None and not (first and key == "reward_accuracy"):
            out.setdefault(r["round"], []).append((step, r[key]))
    return out


def _curve(summary: Summary, logs: dict[str, list[dict]], key: str) -> str:
    with _style():
        figure, axes = _axes(4.4, 2.7)
        look, ends = looks(summary), []
        for name, lines in logs.items():
            paint, marker = look[name]
            label: str | None = display_name(name)
            for number, points in by_round(lines, key).items():
                steps, values = zip(*points, strict=True)
                width = len(values) // 20  # a long round: its mean over a twentieth on top
                faint = 0.3 if width > 1 else 1.0
                mark = marker if len(values) <= 12 else None
                axes.plot(steps, values, color=paint, lw=1.3, alpha=faint, marker=mark, ms=4)
                if width > 1:
                    axes.plot(steps, _running(values, width), color=paint, lw=1.6)
                axes.plot([], [], color=paint, lw=1.6, marker=mark, ms=4, label=label)
                label = None
                ends.append(f"{display_name(name)} round {number}: {values[-1]:.3f}")
        axes.set_title(CURVES[key], loc="left")
        axes.set_xlabel("optimizer step; a break is a new round")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if key == "reward_accuracy":
            axes.set_ylim(0, 1.03)
        if len(logs) > 1:
            figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
        return _svg(figure, f"Training, {CURVES[key]} at the end of each round: {', '.join(ends)}")


def rounds(summary: Summary) -> str:
    """The val figure of each round, the chosen one ringed; "" with one round a model."""
    found = {n: s for n, s in summary["selection"].items() if len(s["candidates"]) > 1}
    if not found:
        return ""
    with _style():
        figure, axes = _axes(4.4, 2.7)
        look = looks(summary)
        for name, choice in found.items():
            paint, mark = look[name]
            points = [
                (k, c["value"], c["round"] == choice["chosen"])
                for k, c in enumerate(choice["candidates"], 1)
                if c["value"] is not None
            ]
            xs, ys = [p[0] for p in points], [p[1] for p in points]
            label = display_name(name)
            axes.plot(xs, ys, color=paint, marker=mark, ms=6, lw=1.3, label=label)
            chosen = [(x, y) for x, y, taken in points if taken]
            if chosen:
                axes.plot(*zip(*chosen, strict=True), "o", ms=14, mfc="none", color=paint)
        most = max(len(s["candidates"]) for s in found.values())
        axes.set(xlim=(0.6, most + 0.4), xlabel="round; the ring is the one chosen")
        axes.set_xticks(range(1, most + 1))
        axes.margins(y=0.2)
        axes.set_title(next(iter(found.values()))["metric"], loc="left")
        if len(found) > 1:
            figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
        told = ", ".join(f"{display_name(n)} {s['chosen']}" for n, s in found.items())
        return _svg(figure, f"Val figure of each round; chosen: {told}")


def reliability(summary: Summary) -> str:
    """Share of facts that are supported against the model's confidence in them, in bins: a point
    on the diagonal is calibrated. A larger point stands for more facts."""
    with _style():
        figure, found = _reliability(summary)
        told = ", ".join(
            f"{n} AUROC {r['auroc']:.3f}" for n, r in found.items() if r["auroc"] is not None
        )
        return _svg(figure, f"Reliability of confidence: {told}") if found else ""


def reliability_png(summary: Summary, path: str | Path) -> None:
    """The same as a picture; nothing where no confidence has a verdict."""
    with _style():
        figure, found = _reliability(summary)
        if found:
            figure.savefig(path, dpi=160, facecolor="white", metadata=_undated(path))


def _reliability(summary: Summary) -> tuple[Any, dict[str, dict]]:
    found = {n: r for n, r in (summary["rewards"] or {}).items() if r.get("bins")}
    figure, axes = _axes(4.4, 3.5)
    axes.plot([0, 1], [0, 1], color=GRID, lw=0.9, ls=(0, (4, 3)))
    for (name, r), paint, mark in zip(found.items(), _CONFIDENCE, MARKERS, strict=False):
        xs, ys = [b["confidence"] for b in r["bins"]], [b["supported"] for b in r["bins"]]
        sizes = [12 + 110 * b["facts"] / r["facts"] for b in r["bins"]]
        axes.plot(xs, ys, color=paint, lw=1.3)
        axes.scatter(xs, ys, s=sizes, color=paint, marker=mark, label=name)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence of the model in the fact")
    axes.set_title("share of such facts that are supported", loc="left", pad=14)
    if found:
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.2)
    return figure, found


_CONFIDENCE = (MODELS["facttune_mc"], MODELS["facttune_fs"], OTHERS[0])


def headline_png(summary: Summary, path: str | Path) -> None:
    """Bars of correct and incorrect facts a response for each model, with the error rate: the
    README's picture. The suffix of `path` says which format (.png, .svg); ground is white."""
    with _style():
        models = summary["models"]
        figure, axes = _axes(6.4, 0.9 + 0.5 * len(models))
        shown = [
            (m["correct"]["value"] or 0.0, m["incorrect"]["value"] or 0.0) for m in models.values()
        ]
        widest = max((good + bad for good, bad in shown), default=0.0)
        for row, (m, (good, bad)) in enumerate(zip(models.values(), shown, strict=True)):
            axes.barh(row, good, height=0.62, color=CORRECT)
            axes.barh(row, bad, height=0.62, left=good, color=INCORRECT)
            for at, value in ((good / 2, good), (good + bad / 2, bad)):
                if value > 0.08 * widest:  # narrower bars cannot hold their number
                    place = {"ha": "center", "va": "center", "color": "white"}
                    axes.text(at, row, f"{value:.2f}", weight="bold", **place)
            rate = m["error_rate"]["value"]
            wrong = "  nothing judged" if rate is None else f"  {100 * rate:.1f}% wrong"
            axes.text(good + bad, row, wrong, va="center", weight="bold")
        axes.set_yticks(range(len(models)), [display_name(n) for n in models])
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.grid(visible=False)
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        where = "all topics" if summary["run"]["split"] == "all" else "held-out topics"
        axes.set_xlabel(f"distinct facts a response, {where}")
        bars = [axes.barh(0, 0, color=c, label=n) for c, n in _KEY]
        figure.legend(handles=bars, loc="outside upper left", ncols=2)
        figure.savefig(path, dpi=200, facecolor="white", metadata=_undated(path))


_KEY = ((CORRECT, "correct"), (INCORRECT, "incorrect"))


def _undated(path: str | Path) -> dict[str, None]:
    return {"Date": None} if str(path).endswith(".svg") else {}


def _error_rate_lines(axes: Any, right: float, top: float) -> None:
    """Faint lines of one error rate e through the origin: incorrect = correct * e / (1 - e)."""
    for e in (0.1, 0.25, 0.5):
        slope = e / (1 - e)
        x = min(right, top / slope)
        axes.plot([0, x], [0, x * slope], color=GRID, lw=0.9, ls=(0, (4, 3)), zorder=1)
        side = {"ha": "left", "va": "center"} if x == right else {"ha": "center", "va": "bottom"}
        axes.annotate(
            f"{100 * e:.0f}%",
            (x, x * slope),
            xytext=(3, 0) if x == right else (0, 2),  # outside the axes: never on a point
            textcoords="offset points",
            fontsize=8.5,
            annotation_clip=False,
            **side,
        )


def _running(values: tuple[float, ...], width: int) -> list[float]:
    """Mean over the last `width` values, fewer at the start."""
    return [
        sum(values[max(0, k - width + 1) : k + 1]) / min(k + 1, width) for k in range(len(values))
    ]


def _high(interval: dict[str, float | None]) -> float:
    return float(interval["high"] if interval["high"] is not None else interval["value"] or 0.0)


def _error(interval: dict[str, Any]) -> list[list[float]] | None:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _style() -> AbstractContextManager[Any]:
    from matplotlib import rc_context

    return rc_context(STYLE)  # type: ignore[arg-type]


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any, told: str) -> str:
    """Inline SVG named by `told`: the page's colours and font, no ids but those referred to."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": told}):  # the same figure, the same bytes
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: (?:bold |[0-9]+ )*([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r"(#[0-9a-f]{6})", lambda m: f"var(--c{m[1][1:]}, {m[1]})", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(told)}" ', 1)


# Colours of the dark page for those of the charts: the same hues, lighter.
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
