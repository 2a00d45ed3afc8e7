"""A run's summary in words: the headline, the notes, the closing table, summary.md.

headline(summary)  ->  ["FactTune-FS's error rate is 79% lower than the base model's ..."]
table(summary)     ->  the table that `facttune run` prints at its end
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from facttune_ray.evaluation.hacking import CLEARER, SIGNS

Summary = dict[str, Any]


def display_name(model: str) -> str:
    """ "facttune_fs" -> "FactTune-FS"; other names unchanged."""
    if not model.startswith("facttune_"):
        return model
    name = model.removeprefix("facttune_")
    return "FactTune-" + (name.upper() if len(name) <= 3 else name)


def topics_of(summary: Summary, model: str) -> str:
    """ "test topics" or "all topics", which a model's figures are over; "" if equal for all."""
    splits = summary["run"]["splits"]
    return f"{splits[model]} topics" if len(set(splits.values())) > 1 else ""


def _label(summary: Summary, model: str) -> str:
    """The name of a model in a table."""
    topics = topics_of(summary, model)
    return display_name(model) + (f", {topics}" if topics else "")


def headline(summary: Summary) -> list[str]:
    """One to three sentences about each tuned model and labelled file."""
    lines, models = [], summary["models"]
    for name, comparison in summary["comparisons"].items():
        cut, label = comparison["error_rate_reduction"], display_name(name)
        before, after = (models[n]["error_rate"]["value"] for n in ("base", name))
        if cut["value"] is None:
            why = "states no fact that could be judged" if after is None else "cannot be compared"
            lines.append(f"{label} {why}.")
            continue
        wrong = f"{percent(after)} of its facts are wrong, against {percent(before)}"
        change, interval = size_of_cut(cut)
        if change:
            line = f"{label}'s error rate is {change} than the base model's"
            line += f" (95% interval {interval}): {wrong}."
        elif interval:
            line = f"{label} shows no clear change: {wrong} for the base model"
            line += f" (95% interval of the cut: {interval})."
        else:
            line = f"{label}: {_no_interval(summary)}: {wrong} for the base model."
        more = comparison["correct_change"]["value"]
        if more is not None:
            line += f" Correct facts a response: {number(models[name]['correct']['value'])}"
            line += f" against {number(models['base']['correct']['value'])} ({more:+.2f})."
        lines.append(line + _second_judge(summary, name) + not_independent(summary, name))
    for name, h in summary["human"].items():
        if h["auroc"] is not None and h["pearson_score"] is not None:
            lines.append(
                f"On {name}, estimated verdicts agree with human labels at AUROC "
                f"{h['auroc']:.3f}; response scores correlate at {h['pearson_score']:.3f}."
            )
    return lines


def size_of_cut(cut: dict[str, Any]) -> tuple[str, str]:
    """("63% lower", "58.0% to 68.0%"); ("", "-2.0% to 8.0%") if the interval holds 0; ("", "") if
    there is no interval."""
    interval = span(cut, "percent")
    if not interval or cut["low"] <= 0 <= cut["high"]:
        return "", interval
    ends = sorted(abs(cut[k]) for k in ("low", "high"))
    size = f"{100 * abs(cut['value']):.0f}% {'lower' if cut['value'] > 0 else 'higher'}"
    return size, f"{percent(ends[0])} to {percent(ends[1])}"


def _no_interval(summary: Summary) -> str:
    resamples = summary["run"]["config"]["evaluation"]["resamples"]
    return "too few topics or errors for an interval" if resamples else "evaluation.resamples=0"


def _second_judge(summary: Summary, name: str) -> str:
    second = summary["second_opinion"]
    cut = second.get("comparisons", {}).get(name, {}).get("error_rate_reduction", {})
    if cut.get("value") is None:
        return ""
    change, interval = size_of_cut(cut)
    start = f" By the second estimator, {second['estimator']}"
    if change:
        return f"{start}, it is {change} ({interval})."
    if interval:
        return f"{start}, there is no clear change (95% interval of the cut: {interval})."
    return f"{start}: {_no_interval(summary)}."


def not_independent(summary: Summary, name: str) -> str:
    """The sentence that says that no independent judge has measured the model; "" if one has, or
    if no verdict rewarded the model."""
    run, second = summary["run"], summary["second_opinion"]
    if name not in run.get("rewarded", ()):
        return ""
    if not second:
        return (
            f" No independent judge: {run['estimator']} rewarded this model and measured it, which "
            f"flatters it (evaluation.estimator)."
        )
    if second.get("shared"):
        return (
            f" No independent judge: {run['estimator']} rewarded this model, and the second "
            f"estimator shares {', '.join(second['shared'])} with it (evaluation.estimator)."
        )
    return ""


def notes(summary: Summary) -> list[str]:
    """Caveats of the headline, one line each; usually none."""
    lines, base, run = [], summary["models"].get("base"), summary["run"]
    measured, total = run.get("parts", (0, 0))
    if measured < total:
        lines.append(
            f"The figures come from {measured:,} of {total:,} parts of the responses, a fair "
            f"sample: there are more responses than "
            f"evaluation.most={run['config']['evaluation']['most']:,}."
        )
    measured, total = run.get("reward_parts", (0, 0))
    if measured < total:
        lines.append(
            f"The figures of rewards come from {measured:,} of {total:,} parts of the responses "
            f"that have them, a fair sample (evaluation.most)."
        )
    for name, selection in summary["selection"].items():
        if selection["metric"] is None and len(selection["candidates"]) > 1:
            lines.append(
                f"{display_name(name)}: no val topic gave a figure to choose a round by, so the "
                f"last round is measured."
            )
    for name, m in summary["models"].items():
        label = display_name(name)
        share = {k: m[k]["value"] or 0.0 for k in ("repeated", "unknown", "no_facts", "length")}
        if m["failed"]:
            total = m["failed"] + m["responses"]
            lines.append(f"{label}: {m['failed']} of {total} responses failed and are left out.")
        if share["repeated"] > 0.1:
            lines.append(
                f"{label} repeats itself: {percent(share['repeated'])} of its facts repeat an "
                f"earlier fact of the response. They count once."
            )
        if m["no_article"]:
            lines.append(
                f"{label}: {m['no_article']} of {m['topics']} topics have no article in the "
                f"knowledge source; their facts have no verdict, and count as neither correct nor "
                f"incorrect."
            )
        if share["unknown"] > 0.05:
            lines.append(
                f"{label}: {percent(share['unknown'])} of the facts have no verdict. They count "
                f"as neither correct nor incorrect."
            )
        if not base or name == "base":
            continue
        lines += _hacking_notes(summary["hacking"], name)
        if share["no_facts"] > (base["no_facts"]["value"] or 0.0) + 0.05:
            lines.append(f"{label} states no fact in {percent(share['no_facts'])} of responses.")
        length = base["length"]["value"]
        if length and abs(share["length"] / length - 1) > 0.25:
            matched = summary["length_matched"].get(name, {})
            cut = matched.get("error_rate_reduction", {}).get("value")
            advice = "compare correct and incorrect facts, not the error rate alone"
            if cut is not None and matched["pairs"]:
                pairs = f"{matched['pairs']:,}"
                advice = f"among pairs of similar length ({pairs}) the cut is {percent(cut)}"
            lines.append(
                f"{label} writes {share['length']:.0f} words a response, the base model "
                f"{length:.0f}: {advice}."
            )
        for quality, judged in summary["judged"].get(name, {}).items():
            rate, p = judged["win_rate"]["value"], judged["p_holm"]
            if p is not None and p < 0.05 and rate < 0.5:
                lines.append(
                    f"{label} loses in {quality}: the judge prefers it to base in "
                    f"{percent(rate)} of topics (ties count half; p {p_value(p)})."
                )
    return lines


def _hacking_notes(signs: dict[str, Any], name: str) -> list[str]:
    """A line for each sign of reward hacking that is clearly more frequent than in base."""
    lines = []
    for sign, share_of in SIGNS.items():
        before, after = (signs.get(n, {}).get(sign, {}).get("value") for n in ("base", name))
        if before is not None and after is not None and after > before + CLEARER:
            lines.append(
                f"{display_name(name)}: {percent(after)} of its {share_of}, against "
                f"{percent(before)} of base's: a sign of reward hacking, no proof. Read responses."
            )
    return lines


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def number3(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """ "+0.20", "-0.20"; "0.00" for what rounds to 0."""
    return "-" if value is None else "0.00" if abs(value) < 0.005 else f"{value:+.2f}"


def whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def p_value(value: float | None) -> str:
    """ "0.031", "< 0.001"; "-" without a test."""
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


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
    """ "43.1% to 47.9%" or "2.40 to 2.62"; "" if an end is unknown."""
    show = percent if style == "percent" else number
    if None in (interval["low"], interval["high"]):
        return ""
    return f"{show(interval['low'])} to {show(interval['high'])}"


def band(interval: dict[str, float | None]) -> str:
    """ "45.6% (43.1% to 47.9%)"."""
    ends = span(interval, "percent")
    return percent(interval["value"]) + (f" ({ends})" if ends else "")


Rows = list[list[str]]


def tables(summary: Summary) -> list[Rows]:
    """Tables of strings, head first: models, FActScore, the second opinion, signs of reward
    hacking if models are compared with base, human labels."""
    second = summary["second_opinion"]
    head = ["model", "correct", "incorrect", "error rate (95% interval)", "change"]
    head += ["no facts", "repeated", "words"]
    rows = [
        [
            *_facts_row(summary, name, m, summary["comparisons"]),
            percent(m["no_facts"]["value"]),
            percent(m["repeated"]["value"]),
            whole(m["length"]["value"]),
        ]
        for name, m in summary["models"].items()
    ]
    out = [[head, *rows]]
    head = ["FActScore", "score", "without penalty", "respond ratio", "facts a response"]
    scores = {n: m["factscore"] for n, m in summary["models"].items()}
    rows = [
        [
            _label(summary, name),
            *(percent(f[k]["value"]) for k in ("factscore_lp", "factscore", "respond_ratio")),
            number(f["facts_per_response"]["value"]),
        ]
        for name, f in scores.items()
    ]
    out.append([head, *rows])
    if second:
        head = [f"by {second['estimator']}", "correct", "incorrect", "error rate", "change"]
        models, compared = second["models"], second["comparisons"]
        out.append([head, *(_facts_row(summary, n, m, compared) for n, m in models.items())])
    if summary["comparisons"]:
        head = ["signs of hacking", *SIGNS]
        rows = [
            [_label(summary, n), *(percent(found[sign]["value"]) for sign in SIGNS)]
            for n, found in summary["hacking"].items()
        ]
        out.append([[h.replace("_", " ") for h in head], *rows])
    if summary["human"]:
        head = ["against human labels", "AUROC", "accuracy", "Pearson", "facts", "no article"]
        rows = [
            [
                name,
                number3(h["auroc"]),
                number3(h["accuracy"]),
                number3(h["pearson_score"]),
                whole(h["facts"]),
                f"{h['no_article']} topics",
            ]
            for name, h in summary["human"].items()
        ]
        out.append([head, *rows])
    return out


def _facts_row(
    summary: Summary, name: str, m: dict[str, Any], comparisons: dict[str, Any]
) -> list[str]:
    """Cells of a model: name, correct, incorrect, error rate, change against base."""
    cut = comparisons.get(name, {}).get("error_rate_reduction", {}).get("value")
    return [
        _label(summary, name),
        number(m["correct"]["value"]),
        number(m["incorrect"]["value"]),
        band(m["error_rate"]),
        "" if cut is None else f"{-100 * cut:+.0f}%",
    ]


def table(summary: Summary) -> str:
    """The closing tables for a terminal, under a line for each model without independent judge.

    model        correct  incorrect  error rate (95% interval)  change  no facts  repeated  words
    base            1.63       1.37     45.6% (43.1% to 47.9%)              0.0%      0.5%     14
    FactTune-FS     2.51       0.46     15.5% (13.6% to 17.4%)    -66%      0.0%      0.3%     14
    """
    judged = ((n, not_independent(summary, n)) for n in summary["comparisons"])
    alone = [f"{display_name(name)}:{sentence}" for name, sentence in judged if sentence]
    return "\n\n".join([*alone, *map(aligned, tables(summary))])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines with padded columns: the first column left-aligned, the others right-aligned."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = []
    for r in rows:
        cells = [r[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(summary: Summary) -> str:
    """summary.md: headline, notes and tables."""
    run = summary["run"]
    parts = [f"# {_cell(run['name'])}", f"{run['created']}, seed {run['seed']}"]
    parts += headline(summary)
    if lines := notes(summary):
        parts.append("\n".join(f"- {line}" for line in lines))
    parts += ["\n".join(_md_rows(rows)) for rows in tables(summary)]
    return "\n\n".join(parts) + "\n"


def _md_rows(rows: Rows) -> list[str]:
    head, *rest = ([_cell(c) for c in r] for r in rows)
    rule = ["---", *("---:" for _ in head[1:])]
    return ["| " + " | ".join(r) + " |" for r in (head, rule, *rest)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
