"""Choose a round by its val figures, and write the figures and the report of a finished run.

    select(root, [round_1, round_2], "net")  ->  {"chosen": "facttune_fs/round_2", ...}
    write(root, cfg, measured={"base": "base/test", ...}, ...)  ->  the summary, written

Tables are read shard by shard; memory holds only counts of each response, and the responses that
the report shows.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.config import Config, GroupsConfig
from facttune_ray.config.wanted import by_verdicts
from facttune_ray.evaluation import breakdowns, comparisons, hacking, metrics
from facttune_ray.evaluation import rewards as rewards_of
from facttune_ray.evaluation.agreement import human_agreement, of_facts
from facttune_ray.evaluation.breakdowns import Scope, counts, shards_of
from facttune_ray.evaluation.report import browser, files, parts
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder

VERSION = 4  # of the summary's figures and the report's data
SELECT = {  # the val figure that chooses the round, from `metrics.summarise`; higher is better
    "net": ("correct - incorrect", lambda m: m["correct"]["value"] - m["incorrect"]["value"]),
    "error_rate": ("-error rate", lambda m: -m["error_rate"]["value"]),
    "correct": ("correct", lambda m: m["correct"]["value"]),
}


def recipe(cfg: Config) -> dict:
    """The settings that the summary depends on, beside the tables."""
    return {**vars(cfg.evaluation), "version": VERSION}


def select(root: Folder, rounds: list[Any], by: str) -> dict:
    """The round with the best val figure; of equal rounds the earliest. If no val topic gave a
    figure, the last round, with `metric` null. Test topics are not used."""
    label, figure = SELECT[by]
    candidates = []
    for snapshot in rounds:
        of_val = counts(root, Scope(f"{snapshot.name}/tune", only="val"))
        summary = metrics.summarise(of_val, resamples=0)
        figures = {k: summary[k]["value"] for k in ("error_rate", "correct", "incorrect")}
        value = figure(summary) if figures["error_rate"] is not None else None
        candidates.append({"round": snapshot.name, "value": value} | figures)
    known = [c for c in candidates if c["value"] is not None]
    best = max(known, key=lambda c: c["value"]) if known else candidates[-1]
    metric = f"val {label}" if known else None
    return {"chosen": best["round"], "metric": metric, "candidates": candidates}


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
    knowledge: str = "",
    traces: browser.Traces | None = None,
) -> dict:
    """Write summary.json, report.html, the tables as CSV and the pictures of a finished run.

    `measured`: model -> scope of its test tables; `imported`: scope of imported responses, or "";
    `rewards`: scope of the first rewards table; `knowledge`: the database of articles;
    `traces`: gives the traces of a shard's facts.
    """
    scopes = {name: Scope(scope) for name, scope in measured.items()}
    if imported:
        for model in models(root, imported):
            scopes[f"{model} (imported)" if model in measured else model] = Scope(imported, model)
    found = collect(
        root,
        cfg,
        scopes=scopes,
        rewards=rewards,
        train="" if imported else rewards,
        trained=list(cfg.tune),
        selection=selection,
        manifests=manifests,
        fingerprint=fingerprint,
        knowledge=knowledge,
        traces=traces,
    )
    found.summary["human"] = _human(root, found.scopes) if imported else {}
    found.summary["errors"] = _errors(root, manifests)
    write_files(root, files.contents(found.summary, found.by_model, found.cards))
    return found.summary


class Collected(NamedTuple):
    summary: dict[str, Any]
    by_model: dict[str, pa.Table]  # counts of each response
    cards: browser.Cards
    scopes: dict[str, Scope]  # with the shards that were read


def collect(
    root: Folder,
    cfg: Config,
    *,
    scopes: dict[str, Scope],
    rewards: str,
    train: str,
    trained: Sequence[str],
    selection: dict[str, dict],
    manifests: dict[str, dict],
    fingerprint: str = "",
    knowledge: str = "",
    traces: browser.Traces | None = None,
) -> Collected:
    """Compute a summary from finished tables, and write nothing. `human` and `errors` are empty.

    `scopes`: model -> its measured responses; `rewards`: scope of a table of rewards, or "";
    `train`: scope whose train responses the report shows, or ""; `trained`: names of tuned models;
    `traces`: finds what the judges of a fact were asked and answered; None: without traces.
    """
    all_shards = shards_of(root, *scopes.values())
    scopes = breakdowns.limited(root, scopes, cfg.evaluation.most)
    shards = shards_of(root, *scopes.values())
    group_of = _groups(root, knowledge, shards)
    by_model = {name: counts(root, scope) for name, scope in scopes.items()}
    of_rewards = {"": Scope(rewards)} if rewards else {}
    rewarded = list(breakdowns.limited(root, of_rewards, cfg.evaluation.most).values())
    summary = _summary(root, cfg, scopes, by_model, group_of)
    summary["run"] = {
        "name": cfg.run.name,
        "seed": cfg.run.seed,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "fingerprints": {name: m["fingerprint"] for name, m in manifests.items()},
        "config": dataclasses.asdict(cfg),
        "versions": versions(),
        "wall_s": round(sum(m["wall_s"] for m in manifests.values()), 1),
        "splits": {name: scope.split for name, scope in scopes.items()},
        "scopes": {name: dataclasses.asdict(scope) for name, scope in scopes.items()},
        "estimator": cfg.verdicts.estimator,
        "rewarded": [n for n, t in cfg.tune.items() if by_verdicts(cfg, t.reward)],
        "judge": cfg.llm.model,
        "parts": [len(shards), len(all_shards)],  # measured, of all
        "reward_parts": [len(shards_of(root, *s)) for s in (rewarded, of_rewards.values())],
    }
    summary |= {
        "human": {},
        "rewards": _rewards(root, rewarded[0], cfg.groups) if rewarded else {},
        "reward_agreement": rewards_of.agreement(root, rewarded[0]) if rewarded else {},
        "selection": selection,
        "training": {n: _log(root, n, "train") for n in trained},
        "heldout": {n: _log(root, n, "heldout") for n in trained},
        "stages": [_stage(name, m) for name, m in manifests.items()],
        "errors": [],
    }
    cards = browser.cards(
        root,
        scopes,
        group_of,
        most=cfg.evaluation.examples,
        train=train,
        traces=traces,
    )
    return Collected(summary, by_model, cards, scopes)


def write_files(root: Folder, contents: dict[str, bytes]) -> None:
    """Write the files in their order: parts before the page that reads them. Then remove the parts
    of an earlier page."""
    for name, data in contents.items():
        (root / name).write_bytes(data)
    for name in (root / parts.FOLDER).names():
        if f"{parts.FOLDER}/{name}" not in contents:
            (root / parts.FOLDER / name).delete_file()


def _summary(
    root: Folder,
    cfg: Config,
    scopes: dict[str, Scope],
    by_model: dict[str, pa.Table],
    group_of: dict[str, str],
) -> dict[str, Any]:
    """The figures of models, alone and against the base model."""
    settings = {"resamples": cfg.evaluation.resamples, "seed": cfg.run.seed}
    ks = list(cfg.evaluation.k) or metrics.median_and_maximum(list(by_model.values()))
    base, tuned = by_model.get("base"), breakdowns.against_base(scopes)

    def against_base(compare: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {n: compare(base, by_model[n], **settings) for n in tuned}

    return {
        "models": {
            name: metrics.summarise(c, ks=ks, **settings)
            | {"factscore": metrics.factscore(c, cfg.rewards.gamma, **settings)}
            for name, c in by_model.items()
        },
        "k": ks,
        "comparisons": comparisons.corrected(against_base(comparisons.compare)),
        "length_matched": against_base(comparisons.length_matched),
        "second_opinion": breakdowns.second_opinion(root, scopes, **settings),
        "judged": breakdowns.judged(root, {n: scopes[n] for n in tuned}),
        "hacking": hacking.signs(root, scopes),
        "groups": breakdowns.groups(by_model, group_of, **settings),
        "kinds": breakdowns.kinds(root, scopes, by_model),
        "lengths": {name: breakdowns.lengths(c) for name, c in by_model.items()},
    }


def versions() -> dict[str, str]:
    """Versions of the software that computes the figures."""
    out = {"python": platform.python_version()}
    for name in ("facttune_ray", "ray", "torch", "transformers", "deepspeed", "openai", "pyarrow"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def models(root: Folder, scope: str) -> list[str]:
    """The models that imported responses name, in order."""
    shards = range(tables.manifest(root / scope / "responses")["shards"])
    parts = (tables.read_part(root / scope / "responses", s, ["model"])["model"] for s in shards)
    return list(dict.fromkeys(name for p in parts for name in pc.unique(p).to_pylist()))


def _groups(root: Folder, knowledge: str, shards: range) -> dict[str, str]:
    """topic of these shards -> its group: the column `group` of the prompts, or else the length of
    its article, in thirds."""
    given: dict[str, str] = {}
    topics: dict[str, None] = {}
    if not tables.has_manifest(root / "prompts"):
        return {}
    for shard in shards:
        for row in tables.rows(root / "prompts", shard):
            topics[row["topic"]] = None
            if row.get("group"):
                given[row["topic"]] = row["group"]
    return given or (_by_article(list(topics), knowledge) if knowledge else {})


def _by_article(topics: list[str], knowledge: str) -> dict[str, str]:
    """Thirds by the words of the articles: more is written about a topic with a long article."""
    from facttune_ray.errors import UserError
    from facttune_ray.knowledge.articles import Articles
    from facttune_ray.knowledge.local import local_copy

    try:
        articles = Articles(local_copy(knowledge))
    except (OSError, UserError):
        return {}
    counted = ((t, sum(len(p.split()) for p in articles.passages(t) or ())) for t in topics)
    words = {t: n for t, n in counted if n}
    order = sorted(words, key=lambda t: (words[t], t))
    thirds = ("short article", "middling article", "long article")
    out = {t: thirds[3 * i // len(order)] for i, t in enumerate(order)}
    return out | {t: "no article" for t in topics if t not in words} if out else {}


def _human(root: Folder, scopes: dict[str, Scope]) -> dict[str, dict]:
    """Agreement with human labels of each model's facts; {} without human labels."""
    out = {}
    for model, scope in scopes.items():
        parts = [_labelled(f, v) for _, f, v in breakdowns.parts(root, scope)]
        facts, verdicts = (pa.concat_tables(part) for part in zip(*parts, strict=True))
        out[model] = human_agreement(facts, verdicts)
    return out if any(h["facts"] for h in out.values()) else {}


def _labelled(facts: pa.Table, verdicts: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The facts that `human_agreement` counts, and their verdicts. They are few in most runs."""
    reason = pc.fill_null(of_facts(facts, verdicts, "reason"), "")
    without = pc.or_(pc.starts_with(reason, "no article"), pc.fill_null(facts["abstained"], False))
    kept = facts.filter(pc.or_(pc.is_valid(facts["human_label"]), without))
    ids = kept["fact_id"].combine_chunks()
    return kept, verdicts.filter(pc.is_in(verdicts["fact_id"], value_set=ids))


def _rewards(root: Folder, scope: Scope, groups: GroupsConfig) -> dict[str, dict]:
    """Responses and pairs of each reward; for a confidence, how well it agrees with verdicts."""
    confidence = rewards_of.confidence(root, scope)
    columns = rewards_of.columns(root, scope, groups)
    return {name: figures | confidence.get(name, {}) for name, figures in columns.items()}


def _log(root: Folder, name: str, kind: str) -> list[dict]:
    """Lines of train.jsonl or heldout.jsonl of every round; a line that is being written is left
    out."""
    out = []
    scopes = (n for n in (root / name).names() if n.startswith("round_"))
    for number in sorted(int(n.removeprefix("round_")) for n in scopes):
        log = root / name / f"round_{number}" / "train" / f"{kind}.jsonl"
        if log.exists():
            lines = log.read_bytes().rpartition(b"\n")[0].decode().splitlines()
            out += [{"round": number} | json.loads(line) for line in lines]
    return out


def _stage(name: str, manifest: dict) -> dict:
    keys = ("rows", "errors", "wall_s", "calls", "cached", "tokens", "cost_usd")
    path = {"path": manifest["path"]} if manifest.get("path") else {}
    return {"table": name} | {k: manifest.get(k, 0) for k in keys} | path


EXAMPLES = 3  # ids shown for each error


def _errors(root: Folder, manifests: dict[str, dict]) -> list[dict]:
    """Rows without a value, by table and reason, the most frequent first: rows with an error, and
    verdicts that are null for a reason such as "no article"."""
    out: list[dict] = []
    for name, m in manifests.items():
        judged = m["table"] == "verdicts"
        if not (m.get("errors") or judged) or "shards" not in m:
            continue
        seen: Counter[tuple[str, bool]] = Counter()
        ids: dict[tuple[str, bool], list[str]] = {}
        for shard in range(m["shards"]):
            rows = tables.read_part(root / name, shard)
            columns = ["error"] + ["reason"] * judged
            for column in columns:
                why = pc.is_valid(rows[column])
                if column == "reason":  # a judged fact may have one, too
                    why = pc.and_(why, pc.is_null(rows["supported"]))
                dead = rows.filter(why)
                for text, id_ in zip(dead[column].to_pylist(), dead[0].to_pylist(), strict=True):
                    key = (text[:200], column == "error")
                    seen[key] += 1
                    if seen[key] <= EXAMPLES:
                        ids.setdefault(key, []).append(id_)
        out += [
            {"table": name, "why": w, "error": e, "rows": n, "ids": ids[w, e]}
            for (w, e), n in seen.most_common()
            if w != "no fact"
        ]
    return out
