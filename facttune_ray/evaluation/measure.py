"""Finished tables -> figures: what each model got right, which round to take, the report's data.

    select(root, [round_1, round_2], "net")  ->  {"chosen": "facttune_fs/round_2", ...}
    write(root, cfg, measured={"base": "base/test", ...}, ...)  ->  the summary, written

Tables are read shard by shard; only per-response counts are held.
"""

from __future__ import annotations

import datetime
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray import config_layers, tables
from facttune_ray.config import Config
from facttune_ray.evaluation import charts, metrics, report
from facttune_ray.evaluation import rewards as rewards_of
from facttune_ray.storage import staged
from facttune_ray.tables import Folder


class Named(Protocol):
    @property
    def name(self) -> str: ...


def counts(
    root: Folder, scope: str, split: str | None = None, model: str | None = None
) -> pa.Table:
    """`metrics.response_counts` of a scope's responses, of one split or model if given."""
    out = []
    for shard in range(tables.manifest(root / scope / "responses")["shards"]):
        responses = tables.read_part(root / scope / "responses", shard)
        if split:
            responses = responses.filter(pc.equal(responses["split"], split))
        if model:
            responses = responses.filter(pc.equal(responses["model"], model))
        ids = responses["response_id"]
        facts = _of(tables.read_part(root / scope / "facts", shard), ids)
        verdicts = _of(tables.read_part(root / scope / "verdicts", shard), ids)
        counted = metrics.response_counts(responses, facts, verdicts)
        out.append(counted.drop_columns(["response_id"]))
    return pa.concat_tables(out)


def _of(table: pa.Table, response_ids: pa.ChunkedArray) -> pa.Table:
    return table.filter(pc.is_in(table["response_id"], value_set=response_ids.combine_chunks()))


SELECT = {  # val figure that chooses the round: from `metrics.summarise`, higher is better
    "net": ("correct - incorrect", lambda m: m["correct"]["value"] - m["incorrect"]["value"]),
    "error_rate": ("-error rate", lambda m: -m["error_rate"]["value"]),
    "correct": ("correct", lambda m: m["correct"]["value"]),
}


def select(root: Folder, rounds: list[Any], by: str) -> dict:
    """The round with the best val figure; the earlier one of equals. Test topics play no part."""
    label, figure = SELECT[by]
    candidates = []
    for snapshot in rounds:
        found = metrics.summarise(counts(root, f"{snapshot.name}/tune", "val"), resamples=0)
        shown = {k: found[k]["value"] for k in ("error_rate", "correct", "incorrect")}
        value = figure(found) if shown["error_rate"] is not None else None
        candidates.append({"round": snapshot.name, "value": value} | shown)
    best = max(candidates, key=lambda c: float("-inf") if c["value"] is None else c["value"])
    return {"chosen": best["round"], "metric": f"val {label}", "candidates": candidates}


def write(
    root: Folder,
    cfg: Config,
    *,
    measured: dict[str, str],
    imported: str,
    rewards: str,
    selection: dict[str, dict],
    manifests: dict[str, dict],
    fingerprint: str,
) -> dict:
    """summary.json, report.html and the pictures of a finished run.

    `measured`: model -> scope of its test tables; `imported`: scope of imported responses, or "";
    `rewards`: scope of the first rewards table.
    """
    settings = {"resamples": cfg.evaluation.resamples, "seed": cfg.run.seed}
    found = {name: counts(root, scope) for name, scope in measured.items()}
    human: dict[str, dict] = {}
    if imported:
        for model in _models(root, imported):
            found[model] = counts(root, imported, model=model)
            human[model] = _human(root, imported, model)
    summary: dict[str, Any] = {
        "run": {
            "name": cfg.run.name,
            "seed": cfg.run.seed,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "fingerprint": fingerprint,
            "config": config_layers.to_dict(cfg),
            "versions": versions(),
            "wall_s": round(sum(m["wall_s"] for m in manifests.values()), 1),
            "split": "all" if imported else "test",
        },
        "models": {
            name: metrics.summarise(c, **settings)
            | {"factscore": metrics.factscore(c, cfg.rewards.gamma)}
            for name, c in found.items()
        },
        "comparisons": {
            name: metrics.compare(found["base"], c, **settings)
            for name, c in found.items()
            if "base" in found and name != "base"
        },
        "rewards": _rewards(root, rewards, cfg.groups.threshold),
        "selection": selection,
        "training": {n: _training(root, n) for n in cfg.tune},
        "stages": [_stage(name, m) for name, m in manifests.items()],
    }
    if any(h["facts"] for h in human.values()):
        summary["human"] = human
    scopes = measured or {"": imported}
    examples = _examples(root, scopes, cfg.evaluation.examples)
    with staged(root) as here:
        report.write_summary(summary, here)
        report.write_report(summary, examples, here / "report.html")
        charts.headline_png(summary, here / "headline.png")
        charts.reliability_png(summary, here / "reliability.png")
    return summary


def versions() -> dict[str, str]:
    """Versions of what decides the figures."""
    out = {"python": platform.python_version()}
    for name in ("facttune_ray", "ray", "torch", "transformers", "deepspeed", "openai", "pyarrow"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def _models(root: Folder, scope: str) -> list[str]:
    shards = range(tables.manifest(root / scope / "responses")["shards"])
    parts = (tables.read_part(root / scope / "responses", s, ["model"])["model"] for s in shards)
    return list(dict.fromkeys(name for p in parts for name in pc.unique(p).to_pylist()))


FACT_COLUMNS = ["fact_id", "response_id", "topic", "fact", "human_label", "abstained"]
VERDICT_COLUMNS = ["fact_id", "response_id", "score", "supported", "reason"]


def _human(root: Folder, scope: str, model: str) -> dict:
    """Of the parts that hold a label; of those, the columns that count."""
    facts, verdicts = [], []
    for shard in range(tables.manifest(root / scope / "facts")["shards"]):
        found = tables.read_part(root / scope / "facts", shard, FACT_COLUMNS)
        if found["human_label"].null_count == len(found) and shard:
            continue
        responses = tables.read_part(root / scope / "responses", shard, ["response_id", "model"])
        ids = responses.filter(pc.equal(responses["model"], model))["response_id"]
        facts.append(_of(found, ids))
        judged = tables.read_part(root / scope / "verdicts", shard, VERDICT_COLUMNS)
        verdicts.append(_of(judged, ids))
    return metrics.human_agreement(pa.concat_tables(facts), pa.concat_tables(verdicts))


def _rewards(root: Folder, scope: str, threshold: float) -> dict[str, dict]:
    """Of each reward: its responses and pairs and, of a confidence, how it agrees with verdicts."""
    sure = rewards_of.confidence(root, scope)
    return {
        name: found | sure.get(name, {})
        for name, found in rewards_of.columns(root, scope, threshold).items()
    }


def _training(root: Folder, name: str) -> list[dict]:
    out = []
    for scope in sorted(n for n in (root / name).names() if n.startswith("round_")):
        log = root / name / scope / "train" / "train.jsonl"
        if log.exists():
            number = int(scope.removeprefix("round_"))
            lines = log.read_bytes().decode().splitlines()
            out += [{"round": number} | json.loads(line) for line in lines]
    return out


def _stage(name: str, manifest: dict) -> dict:
    keys = ("rows", "errors", "wall_s", "calls", "cached", "tokens", "cost_usd")
    return {"table": name} | {k: manifest.get(k, 0) for k in keys}


def _examples(root: Folder, scopes: dict[str, str], most: int) -> list[dict]:
    """The first topics' first responses with their facts, models side by side."""
    shown: dict[str, dict] = {}
    for label, scope in scopes.items():
        for shard in range(tables.manifest(root / scope / "responses")["shards"]):
            rows = {t: list(tables.rows(root / scope / t, shard)) for t in TABLES}
            facts = _facts(rows["facts"], rows["verdicts"])
            for r in rows["responses"]:
                if r["sample"] != 0:
                    continue
                if r["topic"] not in shown:
                    if len(shown) == most:
                        continue
                    head = {"topic": r["topic"], "prompt": r["prompt"]}
                    shown[r["topic"]] = head | {"responses": []}
                entry = {"model": label or r["model"], "text": r["text"]}
                entry["facts"] = facts.get(r["response_id"], [])
                shown[r["topic"]]["responses"].append(entry)
    return list(shown.values())


TABLES = ("responses", "facts", "verdicts")


def _facts(facts: list[dict], verdicts: list[dict]) -> dict[str, list[dict]]:
    judged = {v["fact_id"]: v for v in verdicts}
    out: dict[str, list[dict]] = {}
    for f in facts:
        if f["abstained"]:
            continue
        v = judged.get(f["fact_id"], {})
        entry = {k: f[k] for k in ("fact", "human_label", "repeated")}
        entry |= {k: v.get(k) for k in ("supported", "score", "evidence")}
        out.setdefault(f["response_id"], []).append(entry | {"question": None, "answers": None})
    return out
