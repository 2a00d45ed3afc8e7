"""The page of `facttune compare --html`: one file, which needs no network, as report.html.

    page(compare_runs.compare(runs), shared.models, shared.topics, cards)  ->  "<!doctype html>..."

Tables need no script. The script sorts the topics and shows a topic's responses side by side.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from facttune_ray.evaluation.report import charts, parts, text
from facttune_ray.evaluation.report.page import inert, rendered

LABEL = 20  # characters of a name beside the chart
Comparison = Mapping[str, Any]  # as `compare_runs.compare` returns it


def page(
    found: Comparison, models: Mapping[str, list[dict]], topics: int, cards: list[dict]
) -> str:
    """`models`: rows of topics by model, as `compare_topics.Shared`; `topics`: the number of shared
    topics, of which some may be left out."""
    packed, shown = _packed(cards)
    names = [r["run"] for r in found["runs"]]
    now = datetime.datetime.now(datetime.UTC)
    return rendered(
        "compare.html",
        ("elements.js", "parts.js", "facts.js", "compare.js"),
        c=found,
        names=names,
        created=now.isoformat(timespec="minutes")[:16].replace("T", " "),
        headline=headline(found),
        at_k=list(dict.fromkeys(k for r in found["rows"] for k in r if k.startswith("f1@"))),
        second=any(r["second"] for r in found["rows"]),
        chart=_chart(found),
        models=models,
        left_out=topics - len({r["topic"] for rows in models.values() for r in rows}),
        opened={c["topic"] for c in shown},
        topics=topics,
        packed=packed,
        names_json=inert({"runs": names, "models": {m: text.display_name(m) for m in models}}),
    )


def _packed(cards: list[dict]) -> tuple[str, list[dict]]:
    """(base64 of gzipped JSON {strings, cards}, the cards in it). The last topics are left out if
    it would exceed the limit of the report."""
    cards = [c | {"responses": [r | {"n": _n(r)} for r in c["responses"]]} for c in cards]
    while True:
        data = parts.shared(cards)
        named = [c | {"topic": of["topic"]} for c, of in zip(data["cards"], cards, strict=True)]
        packed = parts.compressed(data | {"cards": named})
        topics = list(dict.fromkeys(c["topic"] for c in cards))
        if len(packed) <= parts.INLINE_BYTES or len(topics) <= 1:
            return packed, cards
        most = max(1, int(0.9 * len(topics) * parts.INLINE_BYTES / len(packed)))
        cards = [c for c in cards if c["topic"] in set(topics[:most])]


def _n(response: dict) -> dict[str, int]:
    _, _, _, true, false, unknown, failed, _ = parts.counted(response)
    return {"true": true, "false": false, "unknown": unknown, "failed": failed}


def headline(found: Comparison) -> list[str]:
    """A sentence about each model whose error rate differs clearly from that of the first run, and
    a sentence about all other models."""
    lines: list[str] = []
    alike: list[str] = []
    unknown: list[str] = []  # without an interval
    first = found["runs"][0]["run"]
    for r in found["paired"]:
        size, interval = text.size_of_cut(r["error_rate_reduction"])
        who = f"{text.display_name(r['model'])} of {r['run']}"
        if not size:
            (alike if interval else unknown).append(who)
            continue
        lines.append(
            f"{who}: the error rate is {size} than in {first} (95% interval {interval}, p "
            f"{text.p_value(r['p_holm'])}) over {text.whole(r['topics'])} shared topics."
        )
    if alike:
        lines.append(f"No clear change of the error rate against {first}: {', '.join(alike)}.")
    if unknown:
        lines.append(f"Too few topics or errors for an interval: {', '.join(unknown)}.")
    return lines


def _chart(found: Comparison) -> str:
    """Draw the error rates of every model of every run. A label holds the last LABEL characters of
    the model's name and of the run's name. Return "" if two models have the same label."""
    rows: Sequence[dict] = found["rows"]
    models = {
        f"{text.display_name(r['model'])[-LABEL:]}\n{r['run'][-LABEL:]}": {
            "error_rate": r["error_rate"]
        }
        for r in sorted(rows, key=lambda r: [x["model"] for x in rows].index(r["model"]))
    }
    whole = len(models) == len(rows)
    return charts.error_rates({"models": models, "training": {}, "selection": {}}) if whole else ""
