"""Several runs side by side, from their summary.json and csv/responses.csv.

compare(["runs/a", "runs/b"])  ->  {"runs": [...], "rows": [...], "paired": [...],
                                    "settings": {"train.lr": ["5e-05", "1e-04"]}}
show(found)                    ->  the tables for a terminal
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from facttune_ray.config.layers import flatten
from facttune_ray.errors import UserError, one_line
from facttune_ray.evaluation import comparisons, metrics
from facttune_ray.evaluation.report import text
from facttune_ray.evaluation.resampling import holm
from facttune_ray.storage.tables import Folder

FIGURES = ("correct", "incorrect", "error_rate", "length", "no_facts")
OWN = ("run.name", "run.out", "run.workers", "run.shards")  # settings that change no figure
# what is read of a summary: keys, and types of the values
_INTERVAL = dict.fromkeys(("value", "low", "high"), float | int | None)
_MODEL = dict.fromkeys(FIGURES, _INTERVAL) | {"factscore": {"factscore_lp": _INTERVAL}}
_SUMMARY = {
    "models": dict,
    "second_opinion": dict,
    "run": {
        "config": {"evaluation": {"resamples": int}},
        "seed": int,
        "estimator": str,
        "fingerprints": dict,
    },
}
COLUMNS = (  # of csv/responses.csv
    dict.fromkeys(("model", "response_id", "topic"), pa.string())
    | dict.fromkeys((*metrics.COUNTS, "supported", "judged", "words"), pa.int64())
    | dict.fromkeys(("no_facts", "abstained", "failed"), pa.bool_())
)


def compare(runs: Sequence[str]) -> dict[str, Any]:
    """rows: every model of every run; paired: each model of a later run against the one of that
    name in the first run, over the topics that both have, p corrected for their number (Holm);
    settings: keys that differ; warnings: what makes the figures incomparable."""
    if len(runs) < 2:
        raise UserError("compare needs at least two runs")
    summaries = [_summary(run) for run in runs]
    names = _names(runs)
    rows = [
        {"run": run, "model": model, "factscore": m["factscore"]["factscore_lp"]}
        | {k: m[k] for k in FIGURES}
        | {"second": s["second_opinion"].get("models", {}).get(model, {}).get("error_rate")}
        | {k: m[k] for k in m if k.startswith("f1@")}
        for run, s in zip(names, summaries, strict=True)
        for model, m in s["models"].items()
    ]
    return {
        "runs": [{"run": n} | s["run"] for n, s in zip(names, summaries, strict=True)],
        "rows": rows,
        "paired": _paired(runs, names, summaries),
        "settings": _differing(names, summaries),
        "warnings": _warnings(names, summaries),
    }


def _summary(run: str) -> dict[str, Any]:
    folder = Folder.of(run)
    if folder.is_file():
        raise UserError(f"{run} is a file: name the folder of a run")
    found = (folder / "summary.json").read_json()
    if found is None:
        raise UserError(f"{run}: no summary.json: run `facttune run` or `facttune report` first")
    if odd := _odd(found, _SUMMARY, "summary") or _odd_model(found):
        raise UserError(f"{run}/summary.json: {odd} is not as this version writes it: {AGAIN}")
    return found


AGAIN = "run `facttune report` again"


def _odd(found: Any, needed: Any, where: str) -> str:
    """Which value is absent or of another type than `needed`; "" when none is."""
    if not isinstance(needed, dict):
        return "" if isinstance(found, needed) else where
    if not isinstance(found, dict):
        return where
    inside = (_odd(found.get(k, ...), inner, f"{where}.{k}") for k, inner in needed.items())
    return next(filter(None, inside), "")


def _odd_model(summary: dict[str, Any]) -> str:
    for name, m in summary["models"].items():
        more = {k: _INTERVAL for k in m if k.startswith("f1@")} if isinstance(m, dict) else {}
        if odd := _odd(m, _MODEL | more, f"models.{name}"):
            return odd
    second = summary["second_opinion"].get("models", {})
    every = dict.fromkeys(second, {"error_rate": _INTERVAL}) if isinstance(second, dict) else {}
    return _odd(second, every, "second_opinion.models")


def _names(runs: Sequence[str]) -> list[str]:
    """The folders' own names, or whole where two are the same."""
    short = [r.rstrip("/").rsplit("/", 1)[-1] for r in runs]
    return [s if short.count(s) == 1 else r for s, r in zip(short, runs, strict=True)]


def _counts(run: str) -> pa.Table | None:
    """csv/responses.csv; None where there is none, or nothing was measured."""
    file = Folder.of(run) / "csv/responses.csv"
    if not file.exists() or not (data := file.read_bytes()):
        return None
    options = pacsv.ConvertOptions(
        column_types=COLUMNS, include_columns=list(COLUMNS), null_values=[]
    )
    try:
        return pacsv.read_csv(io.BytesIO(data), convert_options=options)
    except pa.ArrowException as e:
        why = f"cannot be read: {one_line(e)}: {AGAIN}"
        raise UserError(f"{run}/csv/responses.csv {why}") from None


def _paired(
    runs: Sequence[str], names: Sequence[str], summaries: Sequence[dict]
) -> list[dict[str, Any]]:
    first, out = _counts(runs[0]), []
    of_first = summaries[0]["run"]
    resamples, seed = of_first["config"]["evaluation"]["resamples"], of_first["seed"]
    for run, name in zip(runs[1:], names[1:], strict=True):
        other = _counts(run)
        if first is None or other is None:
            continue
        for model in pc.unique(first["model"]).to_pylist():
            a, b = (t.filter(pc.equal(t["model"], model)) for t in (first, other))
            if b.num_rows:
                found = comparisons.compare(a, b, resamples=resamples, seed=seed)
                if found["topics"]:
                    out.append({"run": name, "model": model} | found)
    adjusted = holm({str(i): row["p"]["error_rate"] for i, row in enumerate(out)})
    return [row | {"p_holm": adjusted[str(i)]} for i, row in enumerate(out)]


def _differing(names: Sequence[str], summaries: Sequence[dict]) -> dict[str, list[Any]]:
    flat = [flatten(s["run"]["config"]) for s in summaries]
    keys = list(dict.fromkeys(k for f in flat for k in f if k not in OWN))
    found = {k: [f.get(k) for f in flat] for k in keys}
    return {k: values for k, values in found.items() if any(v != values[0] for v in values)}


def _warnings(names: Sequence[str], summaries: Sequence[dict]) -> list[str]:
    out, first = [], summaries[0]["run"]
    for name, s in zip(names[1:], summaries[1:], strict=True):
        run = s["run"]
        if run["estimator"] != first["estimator"]:
            out.append(
                f"{name} is judged by {run['estimator']}, {names[0]} by {first['estimator']}: "
                f"their figures are not of the same kind"
            )
        prints = [r["fingerprints"].get("prompts") for r in (first, run)]
        if prints[0] != prints[1]:
            out.append(f"{name} and {names[0]} have other prompts or splits")
    return out


def show(found: dict[str, Any]) -> str:
    """Models of all runs, paired changes, settings that differ, warnings."""
    at = [k for k in found["rows"][0] if k.startswith("f1@")] if found["rows"] else []
    at = [k for k in at if all(k in r for r in found["rows"])]
    second = any(r["second"] for r in found["rows"])
    head = ["run", "model", "correct", "incorrect", "error rate (95% interval)"]
    head += ["second opinion"] * second + ["FActScore", *at, "no facts", "words"]
    table = [head]
    for r in found["rows"]:
        other = [text.percent(r["second"]["value"]) if r["second"] else ""] * second
        table.append(
            [
                r["run"],
                text.display_name(r["model"]),
                text.number(r["correct"]["value"]),
                text.number(r["incorrect"]["value"]),
                text.band(r["error_rate"]),
                *other,
                text.percent(r["factscore"]["value"]),
                *(text.percent(r[k]["value"]) for k in at),
                text.percent(r["no_facts"]["value"]),
                text.whole(r["length"]["value"]),
            ]
        )
    parts = [text.aligned(table)]
    if found["paired"]:
        base = found["runs"][0]["run"]
        head = [f"against {base}", "model", "topics", "error rate cut by (95% interval)"]
        head += ["correct", "incorrect", "topics won", "p (Holm)"]
        rows = [
            [
                r["run"],
                text.display_name(r["model"]),
                text.whole(r["topics"]),
                text.band(r["error_rate_reduction"]),
                _signed(r["correct_change"]["value"]),
                _signed(r["incorrect_change"]["value"]),
                text.percent(r["wins"]["error_rate"]["win_rate"]["value"]),
                text.p_value(r["p_holm"]),
            ]
            for r in found["paired"]
        ]
        parts.append(text.aligned([head, *rows]))
    if found["settings"]:
        rows = [[k, *(_cell(v) for v in values)] for k, values in found["settings"].items()]
        parts.append(text.aligned([["setting", *(r["run"] for r in found["runs"])], *rows]))
    parts += [f"warning: {line}" for line in found["warnings"]]
    return "\n\n".join(parts)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _cell(value: Any) -> str:
    said = "null" if value is None else str(value)
    return said if len(said) <= 40 else said[:37] + "..."
