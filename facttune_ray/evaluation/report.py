"""A run's summary -> summary.json, report.html and the closing table.

report.html is one file: styles, charts and data inside, no network. Text of responses is escaped
by the template, so a response that contains markup shows as text.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from facttune_ray.evaluation import charts
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
    """One self-contained HTML page. Sections without data are left out."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("facttune_ray", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "number3": number3}
    environment.filters["span"] = span
    summary = finite(summary)
    page = environment.get_template("report.html").render(
        s=summary,
        examples=examples,
        headline=headline(summary),
        names=display_name,
        scatter=charts.scatter(summary) if summary["models"] else "",
        training=charts.training(summary) if any(summary["training"].values()) else "",
        config=json.dumps(summary["run"]["config"], indent=2),
    )
    (Folder.of(str(Path(path).parent)) / Path(path).name).write_bytes(page.encode())


def display_name(model: str) -> str:
    """ "facttune_fs" -> "FactTune-FS"; other names as they are."""
    return "FactTune-" + model[9:].upper() if model.startswith("facttune_") else model


def headline(summary: Summary) -> list[str]:
    """What happened, one sentence a tuned model or labelled file."""
    lines = []
    for name, found in summary["comparisons"].items():
        cut, change = found["error_rate_reduction"], found["correct_change"]
        if cut["value"] is None:
            lines.append(f"{display_name(name)} states no fact that could be judged.")
            continue
        low, high = percent(cut["low"]), percent(cut["high"])
        rate = "lower" if cut["value"] >= 0 else "higher"
        more = "more" if change["value"] >= 0 else "fewer"
        lines.append(
            f"{display_name(name)} has a {percent(abs(cut['value']))} {rate} error rate than the "
            f"base model (95% interval of the cut: {low} to {high}), with "
            f"{abs(change['value']):.2f} {more} correct facts a response."
        )
    for name, found in summary.get("human", {}).items():
        if found["auroc"] is not None and found["pearson_score"] is not None:
            lines.append(
                f"On {name}, estimated verdicts agree with human labels at AUROC "
                f"{found['auroc']:.3f}; response scores correlate at {found['pearson_score']:.3f}."
            )
    return lines


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


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
    """The closing table for a terminal, and the human agreement where there are labels."""
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
                f"{m['length']['value']:.0f}" if m["length"]["value"] is not None else "-",
            ]
        )
    text = aligned([head, *rows])
    human = summary.get("human", {})
    if human:
        head = ["against human labels", "AUROC", "accuracy", "Pearson", "facts", "no article"]
        lines = [
            [
                name,
                number3(h["auroc"]),
                number3(h["accuracy"]),
                number3(h["pearson_score"]),
                f"{h['facts']:,}",
                f"{h['no_article']} topics",
            ]
            for name, h in human.items()
        ]
        text += "\n\n" + aligned([head, *lines])
    return text


def number3(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def aligned(rows: list[list[str]]) -> str:
    """Columns padded to their width: the first to the left, the others to the right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = []
    for r in rows:
        cells = [r[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
