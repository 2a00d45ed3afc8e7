"""What a model got right, per response and over topics. Pure: Arrow tables in, numbers out.

    counts = response_counts(responses, facts, verdicts)   # one row a response
    summarise(counts)["error_rate"]                        # {"value": 0.45, "low": 0.43, ...}

A fact repeated in its response counts once in every figure; `repeated` reports how many were.
Facts without a verdict are `unknown`, neither correct nor incorrect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COUNTS = ("correct", "incorrect", "unknown", "facts", "repeated", "total_facts")
Interval = dict[str, float | None]


def response_counts(responses: pa.Table, facts: pa.Table, verdicts: pa.Table) -> pa.Table:
    """One row a response: response_id, topic, the COUNTS, no_facts, words, failed.

    correct, incorrect, unknown: distinct facts judged supported, unsupported, not at all;
    facts: their sum; repeated: facts that say an earlier one again; total_facts: both;
    words: of the text; failed: the response or each of its sentences failed.
    """
    supported = dict(
        zip(verdicts["fact_id"].to_pylist(), verdicts["supported"].to_pylist(), strict=True)
    )
    ids = responses["response_id"].to_pylist()
    place = {r: i for i, r in enumerate(ids)}
    n = {name: np.zeros(len(ids), dtype=np.int64) for name in COUNTS}
    broken = np.zeros(len(ids), dtype=np.int64)
    columns = (facts[c].to_pylist() for c in ("response_id", "fact_id", "fact", "repeated"))
    for response_id, fact_id, fact, repeated in zip(*columns, strict=True):
        i = place[response_id]
        if fact is None:
            broken[i] += 1
            continue
        n["total_facts"][i] += 1
        if repeated:
            n["repeated"][i] += 1
            continue
        verdict = supported.get(fact_id)
        kind = "unknown" if verdict is None else "correct" if verdict else "incorrect"
        n[kind][i] += 1
        n["facts"][i] += 1
    words = [len((t or "").split()) for t in responses["text"].to_pylist()]
    errors = np.array([e is not None for e in responses["error"].to_pylist()], dtype=bool)
    return pa.table(
        {
            "response_id": pa.array(ids, pa.string()),
            "topic": responses["topic"].combine_chunks(),
            **{k: pa.array(v) for k, v in n.items()},
            "no_facts": pa.array(n["total_facts"] == 0),
            "words": pa.array(words, pa.int64()),
            "failed": pa.array(errors | ((broken > 0) & (n["total_facts"] == 0))),
        }
    )


RATIOS = {  # figure -> (numerator, denominator), each summed over all responses
    "correct": ("correct", "responses"),  # distinct correct facts a response
    "incorrect": ("incorrect", "responses"),
    "error_rate": ("incorrect", "judged"),  # incorrect / (correct + incorrect)
    "no_facts": ("no_facts", "responses"),  # share of responses
    "repeated": ("repeated", "total_facts"),  # share of all facts
    "unknown": ("unknown", "facts"),  # share of distinct facts
    "length": ("words", "responses"),  # words a response
}


def summarise(counts: pa.Table, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Each of RATIOS as {value, low, high}, and the plain counts topics, responses, failed.

    The interval is the percentile bootstrap's 95% (Efron & Tibshirani 1993, ch. 13), resampling
    topics with all their responses, since responses of one topic are not independent. Failed
    responses are left out. `resamples` 0 gives values alone.
    """
    topics, sums = _topic_sums(counts)
    drawn = _resample(len(topics), resamples, seed)
    out: dict[str, Any] = {
        name: _interval(_ratio(sums, top, bottom), _ratio(sums, top, bottom, drawn))
        for name, (top, bottom) in RATIOS.items()
    }
    out["topics"] = len(topics)
    out["responses"] = int(sums["responses"].sum())
    out["failed"] = counts.num_rows - out["responses"]
    return out


def compare(
    base: pa.Table, tuned: pa.Table, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Tuned against base on their common topics, with paired bootstrap intervals over them.

    error_rate_reduction = 1 - tuned error rate / base error rate; correct_change and
    incorrect_change are differences in facts a response.
    """
    topics_a, a = _topic_sums(base)
    topics_b, b = _topic_sums(tuned)
    common, at_a, at_b = np.intersect1d(topics_a, topics_b, return_indices=True)
    a = {k: v[at_a] for k, v in a.items()}
    b = {k: v[at_b] for k, v in b.items()}
    drawn = _resample(len(common), resamples, seed)

    def both(figure: str, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return _ratio(a, *RATIOS[figure], weights), _ratio(b, *RATIOS[figure], weights)

    def reduction(weights: np.ndarray | None) -> np.ndarray:
        before, after = both("error_rate", weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - after / before

    def change(figure: str, weights: np.ndarray | None) -> np.ndarray:
        before, after = both(figure, weights)
        return after - before

    return {
        "error_rate_reduction": _interval(reduction(None), reduction(drawn)),
        "correct_change": _interval(change("correct", None), change("correct", drawn)),
        "incorrect_change": _interval(change("incorrect", None), change("incorrect", drawn)),
    }


def _topic_sums(counts: pa.Table) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Topics in order, and per topic the sums of every count over its responses."""
    kept = counts.filter(pc.invert(counts["failed"]))
    topics, at = np.unique(np.array(kept["topic"].to_pylist(), dtype=str), return_inverse=True)
    names = (*COUNTS, "no_facts", "words")
    sums = {
        name: np.bincount(at, weights=kept[name].to_numpy().astype(float), minlength=len(topics))
        for name in names
    }
    sums["responses"] = np.bincount(at, minlength=len(topics)).astype(float)
    sums["judged"] = sums["correct"] + sums["incorrect"]
    return topics, sums


def _resample(topics: int, resamples: int, seed: int) -> np.ndarray:
    """[resamples, topics]: how often each topic was drawn, with replacement."""
    rng = np.random.default_rng(seed)
    if not topics or not resamples:
        return np.zeros((0, topics))
    return rng.multinomial(topics, np.full(topics, 1 / topics), size=resamples).astype(float)


def _ratio(
    sums: dict[str, np.ndarray], top: str, bottom: str, weights: np.ndarray | None = None
) -> np.ndarray:
    """Ratio of sums over topics: [1], or one value a row of `weights`. 0 / 0 is NaN."""
    if weights is None:
        weights = np.ones((1, len(sums[top])))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights @ sums[top]) / (weights @ sums[bottom])


def _interval(value: np.ndarray, drawn: np.ndarray) -> Interval:
    """{value, low, high}; null where nothing could be measured."""
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    found = {"value": value[0], "low": low, "high": high}
    return {k: float(v) if np.isfinite(v) else None for k, v in found.items()}


def human_agreement(facts: pa.Table, verdicts: pa.Table, responses: pa.Table) -> dict[str, Any]:
    """How far verdicts agree with human labels S and NS (IR and unlabelled facts play no part).

    auroc: of `score`; accuracy: of `supported`; pearson_score, pearson_supported: over
    responses, the human share of S against the mean score and the share supported;
    facts, responses: how many these are over; no_verdict: labelled facts without a verdict;
    no_article: topics without an article.
    """
    judged = {v["fact_id"]: v for v in verdicts.to_pylist()}
    labels, scores, supported, of = [], [], [], []
    without: set[str] = set()
    missing = 0
    for f in facts.to_pylist():
        verdict = judged.get(f["fact_id"], {})
        if verdict.get("reason") == "no article":
            without.add(f["topic"])
        if f["human_label"] not in ("S", "NS"):
            continue
        if verdict.get("score") is None:
            missing += 1
            continue
        labels.append(f["human_label"] == "S")
        scores.append(verdict["score"])
        supported.append(verdict["supported"])
        of.append(f["response_id"])
    y, s, v = np.array(labels, float), np.array(scores, float), np.array(supported, float)
    names, at = np.unique(np.array(of, dtype=str), return_inverse=True)

    def means(values: np.ndarray) -> np.ndarray:
        return np.bincount(at, weights=values) / np.bincount(at) if len(at) else values

    return {
        "auroc": auroc(y, s),
        "accuracy": float((y == v).mean()) if len(y) else None,
        "pearson_score": pearson(means(y), means(s)),
        "pearson_supported": pearson(means(y), means(v)),
        "facts": len(y),
        "responses": len(names),
        "no_verdict": missing,
        "no_article": len(without),
        "abstained": sum(bool(a) for a in responses["abstained"].to_pylist()),
    }


def auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """P(score of a true one > score of a false one), ties half (Mann & Whitney 1947); None when
    there is only one class."""
    positive = int((labels == 1).sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return None
    _, at, count = np.unique(scores, return_inverse=True, return_counts=True)
    midrank = np.cumsum(count) - (count - 1) / 2
    ranks = midrank[at][labels == 1].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson correlation; None with fewer than two points or no spread."""
    if len(a) < 2 or not a.std() or not b.std():
        return None
    return float(np.corrcoef(a, b)[0, 1])
