"""report.html from a run's summary and packed responses: it needs no network.

    page(summary, parts.packed(cards))  ->  "<!doctype html>..."

Styles, charts and the script are inside. The page's content security policy allows this one
script, by its hash, and no request; where parts are files beside the page, it also allows the
scripts that this script adds, which are these files. The template escapes texts of models and
people, and the script makes text nodes of them, so markup in a response, or in the address, shows
as text. Without the script the page shows everything but the browser of responses.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from facttune_ray.evaluation.report import (
    charts,
    charts_rewards,
    charts_training,
    drawing,
    text,
)
from facttune_ray.evaluation.report.parts import FOLDER, Packed
from facttune_ray.evaluation.report.text import Summary

if TYPE_CHECKING:
    import jinja2

FILTERS = (
    text.percent,
    text.number,
    text.number3,
    text.signed,
    text.span,
    text.whole,
    text.duration,
    text.display_name,
    text.p_value,
)
SCRIPTS = ("elements.js", "parts.js", "address.js", "facts.js", "report.js")  # in this order
STAGE_SUMS = ("rows", "errors", "wall_s", "calls", "cached", "tokens", "cost_usd")


def page(summary: Summary, packed: Packed | None = None, responses: int = 0, live: str = "") -> str:
    """The whole page. Sections without data are left out. `responses`: the number of the run's
    responses, of which some may not be packed; `live`: the HTML of `live.render`, for the top of
    the page, which then has a script that asks the page's server for later states."""
    looks = drawing.looks(summary)
    live_script = _file("live.js") if live else ""
    return rendered(
        "report.html",
        SCRIPTS,
        (live_script,) if live else (),
        s=summary,
        headline=text.headline(summary),
        notes=text.notes(summary),
        alone=[n for n in summary["comparisons"] if text.not_independent(summary, n)],
        looks={n: (c, drawing.MARKERS[m]) for n, (c, m) in looks.items()},
        live=live,
        live_script=live_script,
        packed=packed if packed and packed.facets["responses"] else None,
        left_out=max(0, responses - packed.facets["responses"]) if packed else 0,
        folder=FOLDER,
        looks_json=inert(_looks(summary, looks)),
        paper=charts.PAPER,
        results=_drawn(charts.scatter(summary), charts.error_rates(summary)),
        where=_drawn(charts.by_group(summary), charts.lengths(summary)),
        rounds=charts_training.rounds(summary),
        training=charts_training.training(summary),
        trust=_drawn(charts_rewards.reliability(summary), charts_rewards.risk_coverage(summary)),
        agreement=charts_rewards.agreement(summary),
        stages=_by_stage(summary["stages"]),
        total={k: sum(t[k] for t in summary["stages"]) for k in STAGE_SUMS},
        config=json.dumps(summary["run"]["config"], indent=2, ensure_ascii=False),
    )


def rendered(
    template: str, scripts: Sequence[str], others: Sequence[str] = (), **values: Any
) -> str:
    """A page from a template of this folder, with the style sheet and the scripts as one script.
    `others`: texts of further scripts that the page allows."""
    script = "\n".join(map(_file, scripts))
    page = {
        "style": _style(),
        "script": script,
        "allowed": [_digest(text) for text in (script, *others)],
    }
    return environment().get_template(template).render(page | values)


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this folder; a template is compiled once."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("facttune_ray", "evaluation/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {f.__name__: f for f in FILTERS}
    return made


def _file(name: str) -> str:
    return (files("facttune_ray.evaluation.report") / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """The script's hash in the form of a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _style() -> str:
    """report.css with the colours of the dark page, by the browser's preference and by the button
    of the page."""
    paint = " ".join(f"--c{a[1:]}: {b};" for a, b in drawing.DARK.items())
    dark = DARK_PAGE + paint
    preferred = (
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}"
    )
    chosen = f":root[data-theme=dark] {{ {dark} }}"
    return _file("report.css").replace("DARK_PLACE", f"{preferred}\n{chosen}")


DARK_PAGE = (
    "color-scheme: dark; --bg: #14171a; --fg: #e7e9eb; --soft: #a7afb7; --line: #343a40; "
    "--card: #1b1f23; --link: #8bb8f5; --good: #5bd0ad; --bad: #ff9a8d; --unsure: #e0c15a; "
    "--good-bg: #16332b; --bad-bg: #40201d; --unsure-bg: #352e13; --bar: #3a5479; "
)


def inert(value: Any) -> str:
    """JSON that is safe inside a script element: it contains no "<"."""
    return json.dumps(value).replace("<", "\\u003c")


def _looks(summary: Summary, looks: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Name, marker and colour of each model for the script; " second": the second estimator."""
    out: dict[str, Any] = {
        n: {
            "name": text.display_name(n),
            "mark": drawing.MARKERS[mark],
            "paint": f"var(--c{paint[1:]}, {paint})",
        }
        for n, (paint, mark) in looks.items()
    }
    return out | {" second": summary["second_opinion"].get("estimator", "")}


def _drawn(*svgs: str) -> list[str]:
    return [svg for svg in svgs if svg]


def _by_stage(stages: list[dict]) -> list[dict]:
    """The figures of tables summed by stage, in order of falling duration."""
    sums: dict[str, Counter[str]] = {}
    for t in stages:
        name = t["table"].rsplit("/", 1)[-1]
        sums.setdefault(name, Counter()).update({k: t[k] for k in STAGE_SUMS} | {"tables": 1})
    rows = [{"stage": name} | dict(c) for name, c in sums.items()]
    return sorted(rows, key=lambda r: -r["wall_s"])
