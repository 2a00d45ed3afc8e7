"""A run's summary -> summary.json, report.html and the closing table.

report.html is one file: styles and charts inside, no script, no network. Text of responses is
escaped by the template, so a response that contains markup shows as text.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from facttune_ray.evaluation import charts
from facttune_ray.evaluation.charts import display_name
from facttune_ray.tables import Folder

Summary = dict[str, Any]


def write_summary(summary: Summary, out_dir: str | Path) -> None:
    """`out_dir/summary.json`: strict JSON, keys sorted; a value that is not finite becomes null."""
    (Folder.of(str(out_dir)) / "summary.json").write_json(finite(summary))


def finite(value: Any) -> Any:
    """The same nested value with NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_report(summary: Summary, examples: list[dict], path: str | Path) -> None:
    """One self-contained HTML page. Sections without data are left out.

    examples: responses to one prompt side by side, each fact with its verdict:

        {"topic": "Ada", "prompt": "Write ...", "responses": [{"model": "base", "text": "Ada ...",
         "facts": [{"fact": "Ada sings.", "supported": False, "score": 0.1, "evidence": "Ada
         paints.", "human_label": "NS", "repeated": False, "question": None, "answers": None}]}]}
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("facttune_ray", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, number, number3, span, whole, duration, tally, verdict, display_name)
    environment.filters |= {f.__name__: f for f in filters}
    summary = finite(dict.fromkeys(OPTIONAL, {}) | summary)
    page = environment.get_template("report.html").render(
        s=summary,
        examples=finite(examples),
        headline=headline(summary),
        notes=notes(summary),
        looks={n: (c, charts.MARKERS[m]) for n, (c, m) in charts.looks(summary).items()},
        dark=charts.DARK,
        results=[svg for svg in (charts.scatter(summary), charts.error_rates(summary)) if svg],
        rounds=charts.rounds(summary),
        training=charts.training(summary),
        reliability=charts.reliability(summary),
        total={k: sum(t[k] for t in summary["stages"]) for k in STAGE_SUMS},
        config=json.dumps(summary["run"]["config"], indent=2, ensure_ascii=False),
    )
    (Folder.of(str(Path(path).parent)) / Path(path).name).write_bytes(page.encode())


OPTIONAL = ("comparisons", "selection", "training", "rewards", "human")
STAGE_SUMS = ("rows", "errors", "wall_s", "calls", "cached", "tokens", "cost_usd")


def headline(summary: Summary) -> list[str]:
    """What happened, in one or two sentences a tuned model or labelled file."""
    lines, models = [], summary["models"]
    for name, found in summary["comparisons"].items():
        cut, label = found["error_rate_reduction"], display_name(name)
        before, after = (models[n]["error_rate"]["value"] for n in ("base", name))
        if cut["value"] is None:
            why = "states no fact that could be judged" if after is None else "cannot be compared"
            lines.append(f"{label} {why}.")
            continue
        wrong = f"{percent(after)} of its facts are wrong, against {percent(before)}"
        known = cut["low"] is not None
        if known and cut["low"] <= 0 <= cut["high"]:
            line = f"{label} shows no clear change: {wrong} for the base model"
            line += f" (95% interval of the cut: {span(cut, 'percent')})."
        else:
            less = cut["value"] > 0
            size, ends = abs(cut["value"]), sorted(abs(cut[k] or 0) for k in ("low", "high"))
            line = f"{label} makes {100 * size:.0f}% {'fewer' if less else 'more'} errors"
            line += f" (95% interval {percent(ends[0])} to {percent(ends[1])})" if known else ""
            line += f" than the base model: {wrong}."
        change = found["correct_change"]["value"]
        if change is not None:
            line += f" Correct facts a response: {number(models[name]['correct']['value'])}"
            line += f" against {number(models['base']['correct']['value'])} ({change:+.2f})."
        lines.append(line)
    for name, found in summary.get("human", {}).items():
        if found["auroc"] is not None and found["pearson_score"] is not None:
            lines.append(
                f"On {name}, estimated verdicts agree with human labels at AUROC "
                f"{found['auroc']:.3f}; response scores correlate at {found['pearson_score']:.3f}."
            )
    return lines


def notes(summary: Summary) -> list[str]:
    """What a reader must know before trusting the headline, one line each; usually none."""
    lines, base = [], summary["models"].get("base")
    for name, m in summary["models"].items():
        label = display_name(name)
        share = {k: m[k]["value"] or 0.0 for k in ("repeated", "unknown", "no_facts", "length")}
        if m["failed"]:
            total = m["failed"] + m["responses"]
            lines.append(f"{label}: {m['failed']} of {total} responses failed and are left out.")
        if share["repeated"] > 0.1:
            lines.append(
                f"{label} repeats itself: {percent(share['repeated'])} of its facts say an "
                f"earlier one of the response again. They count once."
            )
        if m["no_article"]:
            lines.append(
                f"{label}: {m['no_article']} of {m['topics']} topics have no article in the "
                f"knowledge source; their facts have no verdict."
            )
        if share["unknown"] > 0.05:
            lines.append(
                f"{label}: {percent(share['unknown'])} of the facts have no verdict. They count "
                f"as neither correct nor incorrect."
            )
        if not base or name == "base":
            continue
        if share["no_facts"] > (base["no_facts"]["value"] or 0.0) + 0.05:
            lines.append(f"{label} states no fact in {percent(share['no_facts'])} of responses.")
        length = base["length"]["value"]
        if length and abs(share["length"] / length - 1) > 0.25:
            lines.append(
                f"{label} writes {share['length']:.0f} words a response, the base model "
                f"{length:.0f}: compare correct and incorrect facts, not the error rate alone."
            )
    return lines


def verdict(fact: dict) -> str:
    """ "true", "false" or "unknown"."""
    return {True: "true", False: "false", None: "unknown"}[fact["supported"]]


def tally(facts: list[dict]) -> dict[str, int]:
    """Distinct facts by verdict, and sentences that failed: {"true": 2, ..., "failed": 0}."""
    count = dict.fromkeys(("true", "false", "unknown", "failed"), 0)
    for f in facts:
        if f["fact"] is None:
            count["failed"] += 1
        elif not f["repeated"]:
            count[verdict(f)] += 1
    return count


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def number3(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """ "0.4 s", "59 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if not minutes:
        return f"{left} s"
    if minutes < 60:
        return f"{minutes} min {left:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def span(interval: dict[str, float | None], style: str = "number") -> str:
    """ "43.1% to 47.9%" or "2.40 to 2.62"; "" when it is unknown."""
    show = percent if style == "percent" else number
    if interval["low"] is None:
        return ""
    return f"{show(interval['low'])} to {show(interval['high'])}"


def band(interval: dict[str, float | None]) -> str:
    """ "45.6% (43.1% to 47.9%)"."""
    inside = span(interval, "percent")
    return percent(interval["value"]) + (f" ({inside})" if inside else "")


def table(summary: Summary) -> str:
    """The closing table for a terminal, and the human agreement where there are labels.

    model        correct  incorrect  error rate (95% interval)  change  no facts  repeated  words
    base            1.63       1.37     45.6% (43.1% to 47.9%)              0.0%      0.5%     14
    FactTune-FS     2.51       0.46     15.5% (13.6% to 17.4%)    -66%      0.0%      0.3%     14
    """
    head = ["model", "correct", "incorrect", "error rate (95% interval)", "change"]
    head += ["no facts", "repeated", "words"]
    rows = []
    for name, m in summary["models"].items():
        cut = summary["comparisons"].get(name, {}).get("error_rate_reduction", {}).get("value")
        rows.append(
            [
                display_name(name),
                number(m["correct"]["value"]),
                number(m["incorrect"]["value"]),
                band(m["error_rate"]),
                "" if cut is None else f"{-100 * cut:+.0f}%",
                percent(m["no_facts"]["value"]),
                percent(m["repeated"]["value"]),
                whole(m["length"]["value"]),
            ]
        )
    text = aligned([head, *rows])
    head = ["FActScore", "score", "without penalty", "respond ratio", "facts a response"]
    lines = [
        [
            display_name(name),
            percent(f["factscore_lp"]),
            percent(f["factscore"]),
            percent(f["respond_ratio"]),
            number(f["facts_per_response"]),
        ]
        for name, f in ((name, m["factscore"]) for name, m in summary["models"].items())
    ]
    text += "\n\n" + aligned([head, *lines])
    human = summary.get("human", {})
    if human:
        head = ["against human labels", "AUROC", "accuracy", "Pearson", "facts", "no article"]
        lines = [
            [
                name,
                number3(h["auroc"]),
                number3(h["accuracy"]),
                number3(h["pearson_score"]),
                whole(h["facts"]),
                f"{h['no_article']} topics",
            ]
            for name, h in human.items()
        ]
        text += "\n\n" + aligned([head, *lines])
    return text


def aligned(rows: list[list[str]]) -> str:
    """Columns padded to their width: the first to the left, the others to the right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = []
    for r in rows:
        cells = [r[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
