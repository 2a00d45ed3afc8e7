"""Charts of training: curves over optimizer steps, and the val figures that chose a round.

training(summary)  ->  ['<svg ...>', ...]
rounds(summary)    ->  '<svg ...>', or "" with one round a model
"""

from __future__ import annotations

from collections import Counter

from facttune_ray.evaluation.report.drawing import chart, looks, svg
from facttune_ray.evaluation.report.text import Summary, display_name

CURVES = {  # column of the training log -> title
    "loss": "loss",
    "reward_accuracy": "share of pairs in the right order",
    "margin": "mean margin of pairs",
}


def training(summary: Summary) -> list[str]:
    """One chart for each of CURVES over optimizer steps, with a line for each round, and hollow
    marks for held-out figures."""
    logs = {n: lines for n, lines in summary["training"].items() if lines}
    kept = [k for k in CURVES if any(k in r for lines in logs.values() for r in lines)]
    return [_curve(summary, logs, key) for key in kept]


def by_round(log: list[dict], key: str) -> dict[int, list[tuple[int, float]]]:
    """Round -> (optimizer step over all rounds, value); rounds without a value are left out.

    `reward_accuracy` leaves out the first step of a round, which compares the model with itself:
    every margin is 0.
    """
    out: dict[int, list[tuple[int, float]]] = {}
    seen: set[int] = set()
    for step, r in enumerate(log, 1):
        first = r["round"] not in seen
        seen.add(r["round"])
        if r.get(key) is not None and not (first and key == "reward_accuracy"):
            out.setdefault(r["round"], []).append((step, r[key]))
    return out


def held_out(log: list[dict], measured: list[dict], key: str) -> list[tuple[int, float]]:
    """(optimizer step over all rounds, value) of each measurement on held-out topics."""
    steps = Counter(r["round"] for r in log)
    before = {number: sum(n for r, n in steps.items() if r < number) for number in steps}
    return [
        (before[m["round"]] + m["step"], m[key])
        for m in measured
        if m.get(key) is not None and m["round"] in before
    ]


def _curve(summary: Summary, logs: dict[str, list[dict]], key: str) -> str:
    with chart(4.4, 2.7) as (figure, axes):
        look, ends = looks(summary), []
        for name, lines in logs.items():
            paint, marker = look[name]
            label: str | None = display_name(name)
            for number, points in by_round(lines, key).items():
                steps, values = zip(*points, strict=True)
                width = len(values) // 20  # a long round also gets a line of running means
                faint = 0.3 if width > 1 else 1.0
                mark = marker if len(values) <= 12 else None
                axes.plot(steps, values, color=paint, lw=1.3, alpha=faint, marker=mark, ms=4)
                if width > 1:
                    axes.plot(steps, _running(values, width), color=paint, lw=1.6)
                axes.plot([], [], color=paint, lw=1.6, marker=mark, ms=4, label=label)
                label = None
                ends.append(f"{display_name(name)} round {number}: {values[-1]:.3f}")
            held = held_out(lines, summary["heldout"].get(name, []), key)
            if held:
                axes.plot(*zip(*held, strict=True), marker, ms=7, mfc="none", color=paint)
        axes.set_title(CURVES[key], loc="left")
        axes.set_xlabel("optimizer step; a break is a new round")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if key == "reward_accuracy":
            axes.set_ylim(0, 1.03)
        if len(logs) > 1:
            figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
        return svg(figure, f"Training, {CURVES[key]} at the end of each round: {', '.join(ends)}")


def rounds(summary: Summary) -> str:
    """The val figure of each round, with a ring around the chosen round; "" if no model has several
    rounds with figures."""
    selections = {
        n: s for n, s in summary["selection"].items() if len(s["candidates"]) > 1 and s["metric"]
    }
    if not selections:
        return ""
    with chart(4.4, 2.7) as (figure, axes):
        look = looks(summary)
        for name, selection in selections.items():
            paint, mark = look[name]
            points = [
                (k, c["value"], c["round"] == selection["chosen"])
                for k, c in enumerate(selection["candidates"], 1)
                if c["value"] is not None
            ]
            xs, ys = [p[0] for p in points], [p[1] for p in points]
            label = display_name(name)
            axes.plot(xs, ys, color=paint, marker=mark, ms=6, lw=1.3, label=label)
            for x, y, chosen in points:
                if chosen:
                    axes.plot(x, y, "o", ms=14, mfc="none", color=paint)
        count = max(len(s["candidates"]) for s in selections.values())
        axes.set(xlim=(0.6, count + 0.4), xlabel="round; the ring is the chosen round")
        axes.set_xticks(range(1, count + 1))
        axes.margins(y=0.2)
        axes.set_title(next(iter(selections.values()))["metric"], loc="left")
        if len(selections) > 1:
            figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
        label = ", ".join(f"{display_name(n)} {s['chosen']}" for n, s in selections.items())
        return svg(figure, f"Val figure of each round; chosen: {label}")


def _running(values: tuple[float, ...], width: int) -> list[float]:
    """The mean of each value and the `width` - 1 values before it, fewer at the start."""
    return [
        sum(values[max(0, k - width + 1) : k + 1]) / min(k + 1, width) for k in range(len(values))
    ]
