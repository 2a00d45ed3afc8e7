"""What a model got right, per response and over topics. Pure: Arrow tables in, numbers out.

    counts = response_counts(responses, facts, verdicts)   # one row a response
    summarise(counts)["error_rate"]                        # {"value": 0.45, "low": 0.43, ...}

A fact repeated in its response counts once in every figure; `repeated` reports how many were.
Facts without a verdict are `unknown`, neither correct nor incorrect. Correct and incorrect facts
a response are the figures of FactTune (Tian et al., ICLR 2024, section 4); a fact is an atomic
fact of FActScore (Min et al., EMNLP 2023). Array names carry shapes: T topics, K sums,
R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.scoring.factscore import summarise as summarise_factscore

COUNTS = ("correct", "incorrect", "unknown", "facts", "repeated", "total_facts")
SUMS = (*COUNTS, "no_facts", "words", "responses", "judged")  # K columns, summed over a topic
AT = {name: k for k, name in enumerate(SUMS)}
RATIOS = {  # figure -> (numerator, denominator), each summed over all responses
    "correct": ("correct", "responses"),  # distinct correct facts a response
    "incorrect": ("incorrect", "responses"),
    "error_rate": ("incorrect", "judged"),  # incorrect / (correct + incorrect)
    "no_facts": ("no_facts", "responses"),  # share of responses
    "repeated": ("repeated", "total_facts"),  # share of all facts
    "unknown": ("unknown", "facts"),  # share of distinct facts
    "length": ("words", "responses"),  # words a response
}
CELLS = 1 << 22  # of the resampling matrix held at once: 32 MB
Interval = dict[str, float | None]


def response_counts(responses: pa.Table, facts: pa.Table, verdicts: pa.Table) -> pa.Table:
    """One row a response: response_id, topic, the COUNTS, supported, judged, no_facts, abstained,
    no_article, words, failed.

    correct, incorrect, unknown: distinct facts judged supported, unsupported, not at all;
    facts: their sum; repeated: facts that say an earlier one again; total_facts: both;
    supported, judged: facts with repeats, as FActScore counts; no_facts: not one fact; words: of
    the text; failed: the response or each of its sentences failed. Tables as in schema.py; facts
    of responses that are not given raise ValueError.

        {"response_id": "r1", "topic": "Ada", "correct": 2, "incorrect": 1, "unknown": 0,
         "facts": 3, "repeated": 1, "total_facts": 4, "supported": 3, "judged": 4,
         "no_facts": False, "abstained": False, "no_article": False, "words": 21, "failed": False}
    """
    place = pc.index_in(facts["response_id"], value_set=responses["response_id"].combine_chunks())
    if place.null_count:
        raise ValueError(f"{place.null_count} facts of responses that are not in the table")
    supported = _verdict(facts, verdicts, "supported")
    stated = pc.is_valid(facts["fact"])  # the others: sentences that failed, abstentions
    repeated = pc.fill_null(facts["repeated"], False)
    distinct = pc.and_not(stated, repeated)
    kinds = {
        "correct": pc.and_(distinct, pc.fill_null(supported, False)),
        "incorrect": pc.and_(distinct, pc.fill_null(pc.invert(supported), False)),
        "unknown": pc.and_(distinct, pc.is_null(supported)),
        "facts": distinct,
        "repeated": pc.and_(stated, repeated),
        "total_facts": stated,
        "supported": pc.and_(stated, pc.fill_null(supported, False)),
        "judged": pc.and_(stated, pc.is_valid(supported)),
    }

    def per_response(mask: pa.ChunkedArray) -> np.ndarray:
        found = place.filter(mask).to_numpy()
        return np.bincount(found, minlength=responses.num_rows).astype(np.int64)

    n = {name: per_response(mask) for name, mask in kinds.items()}
    none = n["total_facts"] == 0
    broken = pc.is_valid(responses["error"]).to_numpy()
    abstained = per_response(pc.fill_null(facts["abstained"], False)) > 0
    failed = per_response(pc.and_not(pc.is_valid(facts["error"]), stated)) > 0
    reason = pc.fill_null(_verdict(facts, verdicts, "reason"), "")
    no_article = per_response(pc.starts_with(reason, "no article")) > 0
    words = pc.count_substring_regex(pc.fill_null(responses["text"], ""), r"\S+")
    return pa.table(
        {
            "response_id": responses["response_id"],
            "topic": responses["topic"],
            **{name: pa.array(v) for name, v in n.items()},
            "no_facts": pa.array(none),
            "abstained": pa.array(abstained),
            "no_article": pa.array(no_article),
            "words": words.cast(pa.int64()),
            "failed": pa.array(broken | (none & failed)),
        }
    )


def _verdict(facts: pa.Table, verdicts: pa.Table, column: str) -> pa.ChunkedArray:
    """A column of the verdicts in the order of the facts; null where a fact has no verdict."""
    at = pc.index_in(facts["fact_id"], value_set=verdicts["fact_id"].combine_chunks())
    return verdicts[column].take(at)


def summarise(counts: pa.Table, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Each of RATIOS as {value, low, high}, and the plain counts topics, responses, failed,
    no_article (topics whose facts could not be judged for want of an article).

    A figure is the ratio of two sums over all responses (pooled, so a topic with more facts
    weighs more in `error_rate`); null where its denominator is 0. The interval is the
    percentile bootstrap's 95% (Efron & Tibshirani 1993, ch. 13), resampling topics with all
    their responses, since responses of one topic are not independent (Davison & Hinkley 1997,
    section 3.8). Failed responses are left out and counted. `resamples` 0: values alone.
    """
    topics, sums_TK = _topic_sums(counts)
    total_1K, drawn_RK = sums_TK.sum(0, keepdims=True), _resampled(sums_TK, resamples, seed)
    out: dict[str, Any] = {
        name: _interval(_ratio(total_1K, name), _ratio(drawn_RK, name)) for name in RATIOS
    }
    out["topics"] = len(topics)
    without = counts["topic"].filter(pc.and_not(counts["no_article"], counts["failed"]))
    out["no_article"] = len(pc.unique(without))
    out["responses"] = int(total_1K[0, AT["responses"]])
    out["failed"] = counts.num_rows - out["responses"]
    return out


def factscore(counts: pa.Table, gamma: float) -> dict[str, float | int | None]:
    """FActScore of one model (Min et al., EMNLP 2023; factscorer.py): means over responses.

    factscore_lp: supported / judged facts of a response, times exp(1 - gamma / facts) when
    facts <= gamma, averaged over responses that did not abstain and have a judged fact;
    factscore: without the penalty; respond_ratio: responses with facts / all;
    facts_per_response: over those with facts. Repeated facts count. Failed responses are left out.
    """
    kept = counts.filter(pc.invert(counts["failed"]))
    columns = (kept[k].to_pylist() for k in ("supported", "judged", "total_facts"))
    found = summarise_factscore(zip(*columns, strict=True), gamma)
    return {
        "factscore": found.init_score,
        "factscore_lp": found.score,
        "respond_ratio": found.respond_ratio,
        "facts_per_response": found.facts_per_response,
        "abstained": int(pc.sum(kept["abstained"]).as_py() or 0),
        "gamma": gamma,
    }


def compare(
    base: pa.Table, tuned: pa.Table, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Tuned against base on their common topics, with paired bootstrap intervals over them.

    error_rate_reduction = 1 - tuned error rate / base error rate (0.58: 58% fewer errors among
    the facts stated; the paper's headline figure); correct_change and incorrect_change are
    differences in facts a response. Paired: a resample draws the same topics for both models,
    so that easy and hard topics cancel.
    """
    topics_a, a_TK = _topic_sums(base)
    topics_b, b_TK = _topic_sums(tuned)
    _, at_a, at_b = np.intersect1d(topics_a, topics_b, return_indices=True)
    both_T2K = np.concatenate([a_TK[at_a], b_TK[at_b]], axis=1)
    total, drawn = both_T2K.sum(0, keepdims=True), _resampled(both_T2K, resamples, seed)

    def change(figure: str, sums_R2K: np.ndarray) -> np.ndarray:
        before, after = (_ratio(half, figure) for half in np.split(sums_R2K, 2, axis=1))
        if figure != "error_rate":
            return after - before
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - after / before

    names = {
        "error_rate_reduction": "error_rate",
        "correct_change": "correct",
        "incorrect_change": "incorrect",
    }
    return {name: _interval(change(f, total), change(f, drawn)) for name, f in names.items()}


def _topic_sums(counts: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Topics in order [T], and the SUMS over each one's responses [T, K]."""
    kept = counts.filter(pc.invert(counts["failed"]))
    topics, at = np.unique(np.array(kept["topic"].to_pylist(), dtype=str), return_inverse=True)
    columns = {k: kept[k].to_numpy().astype(float) for k in (*COUNTS, "no_facts", "words")}
    columns["responses"] = np.ones(kept.num_rows)
    columns["judged"] = columns["correct"] + columns["incorrect"]
    sums = [np.bincount(at, weights=columns[k], minlength=len(topics)) for k in SUMS]
    return topics, np.stack(sums, axis=1)


def _resampled(sums_TK: np.ndarray, resamples: int, seed: int, cells: int = CELLS) -> np.ndarray:
    """[R, K]: the sums over T topics drawn with replacement, R times; NaN without topics.
    `cells` bounds the numbers held at once and changes nothing else."""
    topics = len(sums_TK)
    out_RK = np.full((resamples, sums_TK.shape[1]), np.nan)
    if not topics:
        return out_RK
    rng, rows = np.random.default_rng(seed), max(1, cells // topics)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        times_RT = rng.multinomial(topics, np.full(topics, 1 / topics), size=size)
        out_RK[start : start + size] = times_RT @ sums_TK
    return out_RK


def _ratio(sums_RK: np.ndarray, figure: str) -> np.ndarray:
    """One of RATIOS from each row of sums; 0 / 0 is NaN."""
    top, bottom = RATIOS[figure]
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums_RK[:, AT[top]] / sums_RK[:, AT[bottom]]


def _interval(value: np.ndarray, drawn: np.ndarray) -> Interval:
    """{value, low, high}; null where nothing could be measured."""
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    found = {"value": value[0], "low": low, "high": high}
    return {k: float(v) if np.isfinite(v) else None for k, v in found.items()}


def human_agreement(
    facts: pa.Table, verdicts: pa.Table, threshold: float | None = None
) -> dict[str, Any]:
    """How far verdicts agree with human labels S and NS (IR and unlabelled facts play no part).

    auroc: of `score`; accuracy: share of facts whose `supported` equals the label (with
    `threshold`: whose score >= threshold does); pearson_score, pearson_supported: over
    responses, the human share of S against the mean score and against the share supported;
    human_supported, estimated_supported: the two shares over all facts; facts, responses: how
    many these are over; no_verdict: labelled facts left out for a null verdict; no_article:
    topics without an article; abstained: responses. A figure that is undefined is None.
    """
    reason = pc.fill_null(_verdict(facts, verdicts, "reason"), "")
    without = pc.unique(facts["topic"].filter(pc.starts_with(reason, "no article")))
    labelled = pc.is_in(facts["human_label"], value_set=pa.array(["S", "NS"]))
    score = _verdict(facts, verdicts, "score")
    supported = _verdict(facts, verdicts, "supported")
    judged = pc.and_(labelled, pc.and_(pc.is_valid(score), pc.is_valid(supported)))
    y = pc.equal(facts["human_label"], "S").filter(judged).to_numpy().astype(float)
    s = score.filter(judged).to_numpy()
    v = supported.filter(judged).to_numpy().astype(float)
    if threshold is not None:
        v = (s >= threshold).astype(float)
    ids = np.array(facts["response_id"].filter(judged).to_pylist(), dtype=str)
    names, response = np.unique(ids, return_inverse=True)

    def means(values: np.ndarray) -> np.ndarray:
        return np.bincount(response, weights=values) / np.bincount(response)

    return {
        "auroc": auroc(y, s),
        "accuracy": float((y == v).mean()) if len(y) else None,
        "pearson_score": pearson(means(y), means(s)),
        "pearson_supported": pearson(means(y), means(v)),
        "human_supported": float(y.mean()) if len(y) else None,
        "estimated_supported": float(v.mean()) if len(y) else None,
        "facts": len(y),
        "responses": len(names),
        "no_verdict": (pc.sum(labelled).as_py() or 0) - len(y),
        "no_article": len(without),
        "abstained": pc.sum(facts["abstained"]).as_py() or 0,
    }


def auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """P(score of a true one > score of a false one), ties half, by midranks: (R - p(p+1)/2) / pn
    with R the rank sum of the p true ones (Mann & Whitney 1947; Hanley & McNeil 1982). None when
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
    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return None
    return float(np.corrcoef(a, b)[0, 1])
