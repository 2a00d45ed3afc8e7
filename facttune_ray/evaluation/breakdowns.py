"""Figures of models by group of topics, by kind of fact, by length, and by other judges.

groups(counts, {"Mara Veldt": "very rare"})   ->  [{"group": "very rare", "models": {...}}]
kinds(root, {"base": Scope("base/test")}, counts)  ->  [{"kind": "born in", "models": {...}}]
second_opinion(root, scopes)                  ->  {"estimator": "lexical", "models": {...}, ...}
judged(root, {"facttune_fs": Scope("facttune_fs/round_2/test")})
    ->  {"facttune_fs": {"fluency": {"wins": 31, "ties": 60, ...}, ...}}
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.evaluation import metrics
from facttune_ray.evaluation.agreement import kappa, of_facts, spearman
from facttune_ray.evaluation.comparisons import compare, corrected, tally
from facttune_ray.evaluation.resampling import holm
from facttune_ray.storage import tables
from facttune_ray.storage.scopes import SECOND
from facttune_ray.storage.tables import Folder
from facttune_ray.text.kinds import kind_of

QUALITIES = ("fluency", "helpfulness")
KINDS = 15  # the largest number of kinds of fact shown
BINS = 6  # bins of length, each with the same number of responses


@dataclass(frozen=True)
class Scope:
    """The folder of a measured model's responses."""

    name: str  # folder: "facttune_fs/round_2/test"
    model: str | None = None  # only rows of `responses` with this model; None: all rows
    shards: int | None = None  # only this many shards; None: all shards
    only: str | None = None  # only topics of this split; None: all topics

    @property
    def split(self) -> str:
        """The split of the topics of its responses."""
        return self.only or ("all" if self.model else "test")


def limited(root: Folder, scopes: Mapping[str, Scope], most: int) -> dict[str, Scope]:
    """The scopes with `shards` set so that a model has at most `most` responses. `shards` is the
    same for all. A topic's shard is its digest, so the first shards are a fair sample of all."""
    models = Counter(s.name for s in scopes.values())  # a table may hold several models
    manifests = [(tables.manifest(root / name / "responses"), n) for name, n in models.items()]
    if all(m["rows"] <= most * n for m, n in manifests):
        return dict(scopes)
    shards = min(m["shards"] * most * n // max(1, m["rows"]) for m, n in manifests)
    return {name: replace(s, shards=max(1, shards)) for name, s in scopes.items()}


def shards_of(root: Folder, *scopes: Scope) -> range:
    """The shards that are measured. They are the same in every scope of a run."""
    totals = (tables.manifest(root / s.name / "responses")["shards"] for s in scopes)
    return range(max((s.shards or n for s, n in zip(scopes, totals, strict=True)), default=0))


def parts(
    root: Folder, scope: Scope, verdicts: str = "verdicts"
) -> Iterator[tuple[pa.Table, pa.Table, pa.Table]]:
    """(responses, facts, verdicts) of the scope's model, shard by shard."""
    for shard in shards_of(root, scope):
        responses = tables.read_part(root / scope.name / "responses", shard)
        for column, value in (("split", scope.only), ("model", scope.model)):
            if value:
                responses = responses.filter(pc.equal(responses[column], value))
        ids = responses["response_id"].combine_chunks()
        read = (tables.read_part(root / scope.name / name, shard) for name in ("facts", verdicts))
        facts, judged = (t.filter(pc.is_in(t["response_id"], value_set=ids)) for t in read)
        yield responses, facts, judged


def counts(root: Folder, scope: Scope, verdicts: str = "verdicts") -> pa.Table:
    """`metrics.response_counts` of a scope."""
    return pa.concat_tables(metrics.response_counts(*part) for part in parts(root, scope, verdicts))


def against_base(scopes: Mapping[str, Scope]) -> list[str]:
    """The models that are compared with base: their responses are about the same topics."""
    base = scopes.get("base")
    return [n for n, s in scopes.items() if base and n != "base" and s.split == base.split]


def groups(
    by_model: Mapping[str, pa.Table], group_of: Mapping[str, str], **settings: Any
) -> list[dict[str, Any]]:
    """Each group of topics with error rate, correct and incorrect facts of each model, in order of
    the first model's error rate. `by_model`: the models' `counts`."""
    topics = {t for c in by_model.values() for t in pc.unique(c["topic"]).to_pylist()}
    out = []
    for group in sorted({group_of[t] for t in topics if t in group_of}):
        models = {}
        for model, c in by_model.items():
            inside = [group_of.get(t) == group for t in c["topic"].to_pylist()]
            figures = metrics.summarise(c.filter(pa.array(inside, pa.bool_())), **settings)
            models[model] = {k: figures[k] for k in ("error_rate", "correct", "incorrect")}
            models[model]["topics"] = figures["topics"]
        out.append({"group": group, "models": models})
    first = next(iter(by_model), "")
    return sorted(out, key=lambda g: g["models"][first]["error_rate"]["value"] or 0.0)


def kinds(
    root: Folder, scopes: Mapping[str, Scope], by_model: Mapping[str, pa.Table]
) -> list[dict[str, Any]]:
    """Correct and incorrect distinct facts a response of each model, by kind of fact
    (`text.kinds`). All kinds add up to the model's figures. The most changed kinds come first if
    models are compared with base, else the most frequent. `by_model`: the models' `counts`.
    """
    tallies: dict[str, Counter[tuple[str, bool]]] = {}
    for model, scope in scopes.items():
        tallies[model] = Counter()
        for _, facts, verdicts in parts(root, scope):
            supported = of_facts(facts, verdicts, "supported").to_pylist()
            columns = (facts[k].to_pylist() for k in ("topic", "fact", "repeated"))
            for topic, fact, repeated, value in zip(*columns, supported, strict=True):
                if fact and not repeated and value is not None:
                    tallies[model][kind_of(topic, fact), value] += 1

    responses = {model: pc.sum(metrics.known(c)).as_py() for model, c in by_model.items()}

    def share(model: str, kind: str) -> dict[str, float]:
        n = responses[model] or 1
        names = (("correct", True), ("incorrect", False))
        return {name: tallies[model][kind, value] / n for name, value in names}

    out = [
        {"kind": kind, "models": {model: share(model, kind) for model in scopes}}
        for kind in sorted({kind for t in tallies.values() for kind, _ in t})
    ]

    tuned = against_base(scopes)

    def weight(row: dict[str, Any]) -> float:
        models = row["models"]
        if not tuned:
            return sum(sum(m.values()) for m in models.values())
        return max(abs(v - models["base"][k]) for n in tuned for k, v in models[n].items())

    return sorted(out, key=weight, reverse=True)[:KINDS]


def second_opinion(root: Folder, scopes: Mapping[str, Scope], **settings: Any) -> dict[str, Any]:
    """The figures and comparisons by a second estimator, and its agreement with the first on each
    fact (share, Cohen's kappa). shared: the estimators that the two have in common. {} if no scope
    has a second estimator."""
    judged_twice = {
        n: s for n, s in scopes.items() if tables.has_manifest(root / s.name / SECOND / "verdicts")
    }
    if not judged_twice:
        return {}
    by_model = {n: counts(root, s, f"{SECOND}/verdicts") for n, s in judged_twice.items()}
    folder = root / next(iter(judged_twice.values())).name
    manifests = (tables.manifest(folder / name) for name in ("verdicts", f"{SECOND}/verdicts"))
    names = [m["recipe"].get("verdicts.estimator", "") for m in manifests]
    shared = sorted(set(names[0].split("+")) & set(names[1].split("+")))
    out: dict[str, Any] = {"estimator": names[1], "shared": shared, "models": {}}
    for name, c in by_model.items():
        figures = metrics.summarise(c, **settings)
        kept = ("correct", "incorrect", "error_rate", "unknown")
        out["models"][name] = {k: figures[k] for k in kept} | _agreement(root, judged_twice[name])
    out["comparisons"] = corrected(
        {n: compare(by_model["base"], by_model[n], **settings) for n in against_base(judged_twice)}
    )
    return out


def _agreement(root: Folder, scope: Scope) -> dict[str, Any]:
    """Agreement of the two estimators on the distinct facts that both judge."""
    pairs: list[np.ndarray] = []
    for (_, facts, first), (_, _, second) in zip(
        parts(root, scope), parts(root, scope, f"{SECOND}/verdicts"), strict=True
    ):
        a, b = of_facts(facts, first, "supported"), of_facts(facts, second, "supported")
        distinct = pc.invert(pc.fill_null(facts["repeated"], False))
        both = pc.and_(distinct, pc.and_(pc.is_valid(a), pc.is_valid(b)))
        pairs.append(np.stack([x.filter(both).to_numpy().astype(bool) for x in (a, b)], axis=1))
    pairs_F2 = np.concatenate(pairs)
    a_F, b_F = pairs_F2.T
    share = float((a_F == b_F).mean()) if len(pairs_F2) else None
    return {
        "facts": len(pairs_F2),
        "agree": share,
        "kappa": kappa(a_F.astype(float), b_F.astype(float)),
    }


def judged(root: Folder, scopes: Mapping[str, Scope]) -> dict[str, dict[str, Any]]:
    """Fluency and helpfulness of models against base, as an LLM judged pairs in both orders.

    For each quality: pairs, wins, losses, ties (`by_order` of them because the two orders
    disagree), failed; win_rate over topics, ties count half, with p of the sign test over topics
    and p_holm, corrected for the number of models. Models without judgements are left out.
    """
    out = {
        name: _judged(root, scope)
        for name, scope in scopes.items()
        if tables.has_manifest(root / scope.name / "judgements")
    }
    for quality in QUALITIES:
        adjusted = holm({name: qualities[quality]["p"] for name, qualities in out.items()})
        for name, p in adjusted.items():
            out[name][quality]["p_holm"] = p
    return out


def _judged(root: Folder, scope: Scope) -> dict[str, Any]:
    points: dict[str, dict[str, list[float]]] = {q: defaultdict(list) for q in QUALITIES}
    seen: dict[str, Counter[str]] = {q: Counter() for q in QUALITIES}
    for shard in shards_of(root, scope):
        for r in tables.rows(root / scope.name / "judgements", shard):
            quality, preferred = r["quality"], r["preferred"]
            if preferred is None:
                seen[quality]["failed"] += 1
                continue
            seen[quality][preferred] += 1
            seen[quality]["by_order"] += r["shown_first"] != r["shown_second"]
            points[quality][r["topic"]].append({"tuned": 1.0, "base": -1.0, "tie": 0.0}[preferred])
    out = {}
    for quality in QUALITIES:
        n = seen[quality]
        over_topics = tally(np.sign([np.mean(p) for p in points[quality].values()]))
        out[quality] = {
            "pairs": n["tuned"] + n["base"] + n["tie"],
            "wins": n["tuned"],
            "losses": n["base"],
            "ties": n["tie"],
            "by_order": n["by_order"],
            "failed": n["failed"],
            "win_rate": over_topics["win_rate"],
            "p": over_topics["p"],
        }
    return out


def lengths(c: pa.Table) -> dict[str, Any]:
    """How correctness depends on length. spearman: of words and the share of facts that are
    correct, over responses with a judged fact; bins: of length, each with its mean words and
    pooled share."""
    kept = c.filter(pc.invert(c["failed"]))
    right, wrong, words = (kept[k].to_numpy() for k in ("correct", "incorrect", "words"))
    judged = right + wrong > 0
    right, wrong, words = right[judged], wrong[judged], words[judged]
    bins = [
        {
            "words": float(words[rows].mean()),
            "precision": float(right[rows].sum() / (right[rows] + wrong[rows]).sum()),
            "responses": len(rows),
        }
        for rows in np.array_split(np.argsort(words, kind="stable"), BINS)
        if len(rows)
    ]
    return {"spearman": spearman(words, right / (right + wrong)), "bins": bins}
