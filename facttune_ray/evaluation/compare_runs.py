"""Several runs side by side, from their summary.json and csv/responses.csv.

compare(["runs/a", "runs/b"])  ->  {"runs": [...], "rows": [...], "paired": [...],
                                    "settings": {"train.lr": ["5e-05", "1e-04"]}}
show(comparison)               ->  the tables for a terminal
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from facttune_ray.config.layers import flatten
from facttune_ray.errors import UserError, one_line
from facttune_ray.evaluation import comparisons, metrics
from facttune_ray.evaluation.report import text
from facttune_ray.evaluation.resampling import holm
from facttune_ray.storage.folders import Folder
from facttune_ray.storage.scopes import run_folder

FIGURES = ("correct", "incorrect", "error_rate", "length", "no_facts")
HARMLESS = ("run.name", "run.out", "run.workers", "run.shards")  # settings that change no figure
# The keys that are read from a summary, and the types of their values.
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
    """rows: every model of every run; paired: each model of a later run against the same model of
    the first run, over their common topics, p corrected for the number of tests (Holm); settings:
    keys that differ; warnings: why figures cannot be compared."""
    if len(runs) < 2:
        raise UserError("compare needs at least two runs")
    summaries = [summary_of(run) for run in runs]
    names = names_of(runs)
    rows = [
        {"run": run, "model": model, "factscore": m["factscore"]["factscore_lp"]}
        | {k: m[k] for k in FIGURES}
        | {"second": s["second_opinion"].get("models", {}).get(model, {}).get("error_rate")}
        | {k: m[k] for k in m if k.startswith("f1@")}
        for run, s in zip(names, summaries, strict=True)
        for model, m in s["models"].items()
    ]
    counts = [counts_of(run) for run in runs]
    paired = _paired(names, summaries, counts)
    return {
        "runs": [{"run": n} | s["run"] for n, s in zip(names, summaries, strict=True)],
        "rows": rows,
        "paired": paired,
        "settings": _differing(names, summaries),
        "warnings": [*_warnings(names, summaries), *_unpaired(names, counts, paired)],
    }


def summary_of(run: str) -> dict[str, Any]:
    summary = (run_folder(run) / "summary.json").read_json()
    if summary is None:
        raise UserError(f"{run}: no summary.json: run `facttune run` or `facttune report` first")
    if key := _wrong_key(summary, _SUMMARY, "summary") or _wrong_model(summary):
        raise UserError(f"{run}/summary.json: {key} is not as this version writes it: {AGAIN}")
    return summary


AGAIN = "run `facttune report` again"


def _wrong_key(value: Any, needed: Any, key: str) -> str:
    """The first key that is absent or whose value has not the type in `needed`; "" if none."""
    if not isinstance(needed, dict):
        return "" if isinstance(value, needed) else key
    if not isinstance(value, dict):
        return key
    inside = (_wrong_key(value.get(k, ...), inner, f"{key}.{k}") for k, inner in needed.items())
    return next(filter(None, inside), "")


def _wrong_model(summary: dict[str, Any]) -> str:
    for name, m in summary["models"].items():
        at_k = {k: _INTERVAL for k in m if k.startswith("f1@")} if isinstance(m, dict) else {}
        if key := _wrong_key(m, _MODEL | at_k, f"models.{name}"):
            return key
    second = summary["second_opinion"].get("models", {})
    needed = dict.fromkeys(second, {"error_rate": _INTERVAL}) if isinstance(second, dict) else {}
    return _wrong_key(second, needed, "second_opinion.models")


def names_of(runs: Sequence[str]) -> list[str]:
    """The names of the folders, or their paths where two names are equal."""
    paths = [r.partition("?")[0].rstrip("/") for r in runs]
    short = [p.rsplit("/", 1)[-1] for p in paths]
    return [s if short.count(s) == 1 else p for s, p in zip(short, paths, strict=True)]


def counts_of(run: str) -> pa.Table | None:
    """`metrics.response_counts` of every model, from csv/responses.csv; None if it is missing or
    empty."""
    file = Folder.of(run) / "csv/responses.csv"
    if not file.exists() or not (data := file.read_bytes()):
        return None
    options = pacsv.ConvertOptions(
        column_types=COLUMNS, include_columns=list(COLUMNS), null_values=[]
    )
    try:
        return pacsv.read_csv(io.BytesIO(data), convert_options=options)
    except pa.ArrowException as e:
        raise UserError(f"{run}/csv/responses.csv cannot be read: {one_line(e)}: {AGAIN}") from None


def _paired(
    names: Sequence[str], summaries: Sequence[dict], counts: Sequence[pa.Table | None]
) -> list[dict[str, Any]]:
    first, out = counts[0], []
    run_1 = summaries[0]["run"]
    resamples, seed = run_1["config"]["evaluation"]["resamples"], run_1["seed"]
    for name, other in zip(names[1:], counts[1:], strict=True):
        if first is None or other is None:
            continue
        for model in pc.unique(first["model"]).to_pylist():
            a, b = (t.filter(pc.equal(t["model"], model)) for t in (first, other))
            if b.num_rows:
                change = comparisons.compare(a, b, resamples=resamples, seed=seed)
                if change["topics"]:
                    out.append({"run": name, "model": model} | change)
    adjusted = holm({str(i): row["p"]["error_rate"] for i, row in enumerate(out)})
    return [row | {"p_holm": adjusted[str(i)]} for i, row in enumerate(out)]


def _unpaired(
    names: Sequence[str], counts: Sequence[pa.Table | None], paired: Sequence[dict]
) -> Iterator[str]:
    """Why a run is in no paired comparison."""
    for name, table in zip(names, counts, strict=True):
        if table is None:
            yield f"{name}: csv/responses.csv is missing or empty, so nothing is paired: {AGAIN}"
        elif name not in (names[0], *(row["run"] for row in paired)) and counts[0] is not None:
            yield f"{name} and {names[0]} share no topic under a model of the same name"


def _differing(names: Sequence[str], summaries: Sequence[dict]) -> dict[str, list[Any]]:
    flat = [flatten(s["run"]["config"]) for s in summaries]
    keys = dict.fromkeys(k for f in flat for k in f if k not in HARMLESS)
    by_key = {k: [f.get(k) for f in flat] for k in keys}
    return {k: values for k, values in by_key.items() if any(v != values[0] for v in values)}


def _warnings(names: Sequence[str], summaries: Sequence[dict]) -> list[str]:
    out, first = [], summaries[0]["run"]
    for name, s in zip(names[1:], summaries[1:], strict=True):
        run = s["run"]
        if run["estimator"] != first["estimator"]:
            out.append(
                f"{name} is judged by {run['estimator']}, {names[0]} by {first['estimator']}: "
                f"their figures are not of the same kind"
            )
        if run["fingerprints"].get("prompts") != first["fingerprints"].get("prompts"):
            out.append(f"{name} and {names[0]} have different prompts or splits")
    return out


def show(comparison: dict[str, Any]) -> str:
    """Models of all runs, paired changes, settings that differ, warnings."""
    rows = comparison["rows"]
    at_k = [k for k in rows[0] if k.startswith("f1@")] if rows else []
    at_k = [k for k in at_k if all(k in r for r in rows)]
    second = any(r["second"] for r in rows)
    head = ["run", "model", "correct", "incorrect", "error rate (95% interval)"]
    head += ["second opinion"] * second + ["FActScore", *at_k, "no facts", "words"]
    table = [head]
    for r in rows:
        by_second = [text.percent(r["second"]["value"]) if r["second"] else ""] * second
        table.append(
            [
                r["run"],
                text.display_name(r["model"]),
                text.number(r["correct"]["value"]),
                text.number(r["incorrect"]["value"]),
                text.band(r["error_rate"]),
                *by_second,
                text.percent(r["factscore"]["value"]),
                *(text.percent(r[k]["value"]) for k in at_k),
                text.percent(r["no_facts"]["value"]),
                text.whole(r["length"]["value"]),
            ]
        )
    parts = [text.aligned(table)]
    if comparison["paired"]:
        base = comparison["runs"][0]["run"]
        head = [f"against {base}", "model", "topics", "error rate cut by (95% interval)"]
        head += ["correct", "incorrect", "topics won", "p (Holm)"]
        rows = [
            [
                r["run"],
                text.display_name(r["model"]),
                text.whole(r["topics"]),
                text.band(r["error_rate_reduction"]),
                text.signed(r["correct_change"]["value"]),
                text.signed(r["incorrect_change"]["value"]),
                text.percent(r["wins"]["error_rate"]["win_rate"]["value"]),
                text.p_value(r["p_holm"]),
            ]
            for r in comparison["paired"]
        ]
        parts.append(text.aligned([head, *rows]))
    if comparison["settings"]:
        rows = [[k, *(_cell(v) for v in values)] for k, values in comparison["settings"].items()]
        parts.append(text.aligned([["setting", *(r["run"] for r in comparison["runs"])], *rows]))
    parts += [f"warning: {line}" for line in comparison["warnings"]]
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
