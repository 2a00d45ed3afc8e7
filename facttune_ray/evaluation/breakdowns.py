"""Finished tables -> where models differ: by kind of topic, by kind of fact, by another judge.

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
from facttune_ray.evaluation.agreement import kappa, of_facts
from facttune_ray.evaluation.comparisons import compare, corrected, tally
from facttune_ray.evaluation.resampling import holm
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder
from facttune_ray.text.kinds import kind_of

SECOND = "second_opinion"  # folder of the other estimator's verdicts, within a scope
QUALITIES = ("fluency", "helpfulness")
KINDS = 15  # shown at most
BINS = 6  # of length, each with as many responses


@dataclass(frozen=True)
class Scope:
    """Where a measured model's responses stand."""

    name: str  # folder: "facttune_fs/round_2/test"
    model: str | None = None  # of several in it: the one that `responses` names so
    shards: int | None = None  # so many of its shards, where that is not all

    @property
    def split(self) -> str:
        """The topics that its responses are to."""
        return "all" if self.model else "test"


def limited(root: Folder, scopes: Mapping[str, Scope], most: int) -> dict[str, Scope]:
    """The scopes with as many shards, the same of each, as hold at most so many responses of a
    model. Topics fall into shards by digest, so some shards are a fair sample of all."""
    models = Counter(s.name for s in scopes.values())  # several may stand in one table
    made = [(tables.manifest(root / name / "responses"), n) for name, n in models.items()]
    if all(m["rows"] <= most * n for m, n in made):
        return dict(scopes)
    shards = min(m["shards"] * most * n // max(1, m["rows"]) for m, n in made)
    return {name: replace(s, shards=max(1, shards)) for name, s in scopes.items()}


def shards_of(root: Folder, *scopes: Scope) -> range:
    """The shards that count: the same of every scope of a run."""
    made = (tables.manifest(root / s.name / "responses")["shards"] for s in scopes)
    return range(max((s.shards or n for s, n in zip(scopes, made, strict=True)), default=0))


def parts(
    root: Folder, scope: Scope, verdicts: str = "verdicts", split: str | None = None
) -> Iterator[tuple[pa.Table, pa.Table, pa.Table]]:
    """(responses, facts, verdicts) of the scope's model, shard by shard."""
    for shard in shards_of(root, scope):
        responses = tables.read_part(root / scope.name / "responses", shard)
        for column, value in (("split", split), ("model", scope.model)):
            if value:
                responses = responses.filter(pc.equal(responses[column], value))
        ids = responses["response_id"].combine_chunks()
        found = (tables.read_part(root / scope.name / name, shard) for name in ("facts", verdicts))
        facts, judged = (t.filter(pc.is_in(t["response_id"], value_set=ids)) for t in found)
        yield responses, facts, judged


def counts(
    root: Folder, scope: Scope, verdicts: str = "verdicts", split: str | None = None
) -> pa.Table:
    """`metrics.response_counts` of a scope."""
    return pa.concat_tables(
        metrics.response_counts(*found) for found in parts(root, scope, verdicts, split)
    )


def against_base(scopes: Mapping[str, Scope]) -> list[str]:
    """The models that are compared with base: those whose responses are to the same topics."""
    base = scopes.get("base")
    return [n for n, s in scopes.items() if base and n != "base" and s.split == base.split]


def groups(
    found: Mapping[str, pa.Table], group_of: Mapping[str, str], **settings: Any
) -> list[dict[str, Any]]:
    """Each kind of topic with error rate, correct and incorrect facts of each model; the kinds with
    the most errors last, by the first model."""
    names = sorted({group_of[t] for c in found.values() for t in _topics(c) if t in group_of})
    out = []
    for group in names:
        models = {}
        for model, c in found.items():
            inside = [group_of.get(t) == group for t in c["topic"].to_pylist()]
            figures = metrics.summarise(c.filter(pa.array(inside, pa.bool_())), **settings)
            models[model] = {k: figures[k] for k in ("error_rate", "correct", "incorrect")}
            models[model]["topics"] = figures["topics"]
        out.append({"group": group, "models": models})
    first = next(iter(found), "")
    return sorted(out, key=lambda g: g["models"][first]["error_rate"]["value"] or 0.0)


def _topics(c: pa.Table) -> list[str]:
    return pc.unique(c["topic"]).to_pylist()


def kinds(
    root: Folder, scopes: Mapping[str, Scope], found: Mapping[str, pa.Table]
) -> list[dict[str, Any]]:
    """What the distinct facts are about (`scoring.kinds`), correct and incorrect ones a response of
    each model, so that all kinds add up to its figures: the most changed kinds first, where models
    are compared with base, else the most frequent. `found`: the models' `counts`.
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

    responses = {model: pc.sum(metrics.known(c)).as_py() for model, c in found.items()}

    def share(model: str, kind: str) -> dict[str, float]:
        n = responses[model] or 1
        named = (("correct", True), ("incorrect", False))
        return {name: tallies[model][kind, value] / n for name, value in named}

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


def second_opinion(
    root: Folder, scopes: Mapping[str, Scope], first: Mapping[str, pa.Table], **settings: Any
) -> dict[str, Any]:
    """The same facts by another estimator: its figures, comparisons, and how far it agrees with
    the first a fact (share, Cohen's kappa). shared: estimators that the two have in common, where
    they are made of several. {} where no scope has it."""
    there = {
        n: s for n, s in scopes.items() if tables.has_manifest(root / s.name / SECOND / "verdicts")
    }
    if not there:
        return {}
    found = {n: counts(root, s, f"{SECOND}/verdicts") for n, s in there.items()}
    one = next(iter(there.values()))
    made = (
        tables.manifest(root / name / "verdicts") for name in (one.name, f"{one.name}/{SECOND}")
    )
    names = [m["recipe"].get("verdicts.estimator", "") for m in made]
    shared = sorted(set(names[0].split("+")) & set(names[1].split("+")))
    out: dict[str, Any] = {"estimator": names[1], "shared": shared, "models": {}}
    for name, c in found.items():
        figures = metrics.summarise(c, **settings)
        kept = ("correct", "incorrect", "error_rate", "unknown")
        out["models"][name] = {k: figures[k] for k in kept} | _agreement(root, there[name])
    tuned = against_base(there)
    out["comparisons"] = corrected({n: compare(found["base"], found[n], **settings) for n in tuned})
    return out


def _agreement(root: Folder, scope: Scope) -> dict[str, Any]:
    """Over distinct facts that both estimators judge."""
    both: list[np.ndarray] = []
    for (_, facts, one), (_, _, other) in zip(
        parts(root, scope), parts(root, scope, f"{SECOND}/verdicts"), strict=True
    ):
        a, b = of_facts(facts, one, "supported"), of_facts(facts, other, "supported")
        distinct = pc.invert(pc.fill_null(facts["repeated"], False))
        told = pc.and_(distinct, pc.and_(pc.is_valid(a), pc.is_valid(b)))
        both.append(np.stack([x.filter(told).to_numpy().astype(bool) for x in (a, b)], axis=1))
    joined = np.concatenate(both)
    share = float((joined[:, 0] == joined[:, 1]).mean()) if len(joined) else None
    return {
        "facts": len(joined),
        "agree": share,
        "kappa": kappa(joined[:, 0].astype(float), joined[:, 1].astype(float)),
    }


def judged(root: Folder, scopes: Mapping[str, Scope]) -> dict[str, dict[str, Any]]:
    """Fluency and helpfulness of models against base, as an LLM judged pairs in both orders.

    Of each quality: pairs, wins, losses, ties (among them `by_order`: each order preferred
    another), failed; win_rate over topics, ties half, with p of the sign test over topics and
    p_holm, corrected for the number of models. Models of which nothing was judged are left out.
    """
    there = {n: s for n, s in scopes.items() if tables.has_manifest(root / s.name / "judgements")}
    out = {name: _judged(root, scope) for name, scope in there.items()}
    for quality in QUALITIES:
        adjusted = holm({name: found[quality]["p"] for name, found in out.items()})
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
    """Is a longer response a worse one? spearman: of words and share of facts that are correct,
    over responses with a judged fact; bins: of length, each with its mean words and pooled share.
    """
    from facttune_ray.evaluation.agreement import spearman

    kept = c.filter(pc.invert(c["failed"]))
    right, wrong, words = (kept[k].to_numpy() for k in ("correct", "incorrect", "words"))
    told = right + wrong > 0
    right, wrong, words = right[told], wrong[told], words[told]
    bins = [
        {
            "words": float(words[some].mean()),
            "precision": float(right[some].sum() / (right[some] + wrong[some]).sum()),
            "responses": len(some),
        }
        for some in np.array_split(np.argsort(words, kind="stable"), BINS)
        if len(some)
    ]
    return {"spearman": spearman(words, right / (right + wrong)), "bins": bins}
