"""Correct and incorrect facts, per response and over topics. Pure: Arrow tables in, numbers out.

    counts = response_counts(responses, facts, verdicts)   # one row a response
    summarise(counts)["error_rate"]                        # {"value": 0.45, "low": 0.43, ...}

A fact that its response repeats counts once in every figure but FActScore's; `repeated` is the
share of repeats. Facts without a verdict are `unknown`, neither correct nor incorrect. A response
has S correct and N incorrect distinct facts. Figures are means over responses unless a sum is
given. Figures with a * leave out responses of whose facts none could be judged (see `known`),
because their S is unknown, not 0:

    correct, incorrect*  S, N                       FactTune (Tian et al., ICLR 2024, section 4)
    error_rate           sum N / sum (S + N)        1 - the paper's "% correct"
    precision            sum S / sum (S + N)        the paper's "% correct"
    recall@K*            min(S / K, 1)              SAFE (Wei et al. 2024, section 5)
    f1@K*                2 P R / (P + R), P = S / (S + N), R = recall@K; 0 when S = 0 (the same)
    factscore            supported / judged facts   FActScore (Min et al., EMNLP 2023)
    factscore_lp         that times exp(1 - gamma / facts) when facts <= gamma (the same)
    respond_ratio        share of responses that state facts (the same)

Array names carry shapes: N responses, T topics, K sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facttune_ray.evaluation.agreement import of_facts
from facttune_ray.evaluation.resampling import interval, resampled

COUNTS = ("correct", "incorrect", "unknown", "facts", "repeated", "total_facts")
RATIOS = {  # figure -> (numerator, denominator), each summed over all responses
    "correct": ("correct", "known"),  # distinct correct facts a response
    "incorrect": ("incorrect", "known"),
    "facts": ("facts", "responses"),  # distinct, judged or not
    "error_rate": ("incorrect", "distinct_judged"),
    "precision": ("correct", "distinct_judged"),
    "no_facts": ("no_facts", "responses"),  # share of responses
    "abstained": ("abstained", "responses"),  # share of responses that declined to answer
    "repeated": ("repeated", "total_facts"),  # share of all facts
    "unknown": ("unknown", "facts"),  # share of distinct facts
    "length": ("words", "responses"),  # words a response
}
FACTSCORE = {
    "factscore": ("score", "scored"),
    "factscore_lp": ("penalised", "scored"),
    "respond_ratio": ("responding", "responses"),
    "facts_per_response": ("total_facts", "responding"),
}


def response_counts(responses: pa.Table, facts: pa.Table, verdicts: pa.Table) -> pa.Table:
    """One row a response: response_id, prompt_id, topic, the COUNTS, supported, judged, no_facts,
    abstained, no_article, words, failed.

    correct, incorrect, unknown: distinct facts that are supported, unsupported, not judged;
    facts: their sum; repeated: facts that repeat an earlier fact; total_facts: facts + repeated;
    supported, judged: facts with repeats, as FActScore counts; no_facts: no fact is stated; words:
    of the text; failed: the response or each of its sentences failed. Tables as in
    storage/schema.py. ValueError if a fact's response is not in `responses`.

        {"response_id": "r1", "prompt_id": "p1", "topic": "Ada", "correct": 2, "incorrect": 1,
         "unknown": 0, "facts": 3, "repeated": 1, "total_facts": 4, "supported": 3, "judged": 4,
         "no_facts": False, "abstained": False, "no_article": False, "words": 21, "failed": False}
    """
    place = pc.index_in(facts["response_id"], value_set=responses["response_id"].combine_chunks())
    if place.null_count:
        raise ValueError(f"{place.null_count} facts of responses that are not in the table")
    supported = of_facts(facts, verdicts, "supported")
    stated = pc.is_valid(facts["fact"])  # null: a sentence that failed, or an abstention
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
        rows = place.filter(mask).to_numpy()
        return np.bincount(rows, minlength=responses.num_rows).astype(np.int64)

    n = {name: per_response(mask) for name, mask in kinds.items()}
    none = n["total_facts"] == 0
    broken = pc.is_valid(responses["error"]).to_numpy()
    abstained = per_response(pc.fill_null(facts["abstained"], False)) > 0
    failed = per_response(pc.and_not(pc.is_valid(facts["error"]), stated)) > 0
    reason = pc.fill_null(of_facts(facts, verdicts, "reason"), "")
    no_article = per_response(pc.starts_with(reason, "no article")) > 0
    words = pc.count_substring_regex(pc.fill_null(responses["text"], ""), r"\S+")
    return pa.table(
        {
            **{k: responses[k] for k in ("response_id", "prompt_id", "topic")},
            **{name: pa.array(v) for name, v in n.items()},
            "no_facts": pa.array(none),
            "abstained": pa.array(abstained),
            "no_article": pa.array(no_article),
            "words": words.cast(pa.int64()),
            "failed": pa.array(broken | (none & failed)),
        }
    )


def known(counts: pa.Table) -> pa.ChunkedArray:
    """Whether the numbers of correct and incorrect facts of a response are known: it did not fail,
    and at least one of its facts is judged or it states no fact."""
    judged = pc.greater(pc.add(counts["correct"], counts["incorrect"]), 0)
    return pc.and_not(pc.or_(judged, pc.equal(counts["facts"], 0)), counts["failed"])


def summarise(
    counts: pa.Table, *, resamples: int = 2000, seed: int = 0, ks: Sequence[int] = ()
) -> dict[str, Any]:
    """Each of RATIOS, and `f1@K` and `recall@K` for each of `ks`, as {value, low, high}; and the
    plain counts topics, responses, failed, no_article (topics whose facts could not be judged
    because there is no article).

    A figure is the ratio of two sums over all responses (pooled, so a topic with more facts
    weighs more in `error_rate`); null if its denominator is 0. The 95% interval is a bootstrap
    (`resampling.interval`) over topics with all their responses. Failed responses are left out and
    counted. `resamples` 0: no intervals.
    """
    sums = Sums(counts, ks=ks)
    out: dict[str, Any] = sums.intervals(sums.ratios, resamples, seed)
    out["topics"] = len(sums.topics)
    without = counts["topic"].filter(pc.and_not(counts["no_article"], counts["failed"]))
    out["no_article"] = len(pc.unique(without))
    out["responses"] = sums.responses
    out["failed"] = counts.num_rows - sums.responses
    return out


def factscore(
    counts: pa.Table, gamma: float, *, resamples: int = 0, seed: int = 0
) -> dict[str, Any]:
    """FActScore of one model (Min et al., EMNLP 2023; factscorer.py): each of FACTSCORE as {value,
    low, high}, and the plain numbers abstained and gamma.

    factscore_lp: supported / judged facts of a response, times exp(1 - gamma / facts) when
    facts <= gamma, averaged over responses that did not abstain and have a judged fact;
    factscore: without the penalty; respond_ratio: responses with facts / all responses;
    facts_per_response: over responses with facts. Repeated facts count. Failed responses are left
    out.
    """
    sums = Sums(counts, gamma=gamma)
    kept = counts.filter(pc.invert(counts["failed"]))
    abstained = int(pc.sum(kept["abstained"]).as_py() or 0)
    figures: dict[str, Any] = sums.intervals(FACTSCORE, resamples, seed)
    return figures | {"abstained": abstained, "gamma": gamma}


def median_and_maximum(counts: Sequence[pa.Table]) -> list[int]:
    """The default K of f1@K: the median and the largest number of distinct facts of a response,
    over the responses of all models that state a fact (Wei et al. 2024, section 5)."""
    kept = [c["facts"].filter(pc.invert(c["failed"])).to_numpy() for c in counts]
    facts = np.concatenate(kept) if kept else np.zeros(0)
    facts = facts[facts > 0]
    if not len(facts):
        return []
    return sorted({max(1, round(float(np.median(facts)))), int(facts.max())})


class Sums:
    """Sums over the responses of each topic that did not fail, and ratios of these sums."""

    def __init__(
        self, counts: pa.Table, *, ks: Sequence[int] = (), gamma: float | None = None
    ) -> None:
        kept = counts.filter(pc.invert(counts["failed"]))
        columns = _columns(kept, ks, gamma)
        topic_N = kept["topic"].combine_chunks().dictionary_encode()
        names = np.array(topic_N.dictionary.to_pylist(), dtype=str)
        self.topics, number = np.unique(names, return_inverse=True)
        number_N = number[topic_N.indices.to_numpy()]
        self.at = {name: k for k, name in enumerate(columns)}
        summed = [np.bincount(number_N, c, len(self.topics)) for c in columns.values()]
        self.sums_TK = np.stack(summed, axis=1)
        self.responses = kept.num_rows
        self.ratios = RATIOS | {f"{m}@{k}": (f"{m}@{k}", "known") for k in ks for m in AT_K}

    def ratio(self, sums_RK: np.ndarray, pair: tuple[str, str]) -> np.ndarray:
        """[R]: the ratio of two of the K sums; 0 / 0 is NaN."""
        top, bottom = pair
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums_RK[:, self.at[top]] / sums_RK[:, self.at[bottom]]

    def topics_of(self, sums_TK: np.ndarray, pair: tuple[str, str]) -> int:
        """The number of topics that contribute to a ratio."""
        return int(np.count_nonzero(sums_TK[:, self.at[pair[1]]]))

    def intervals(self, ratios: dict[str, tuple[str, str]], resamples: int, seed: int) -> dict:
        total_1K = self.sums_TK.sum(0, keepdims=True)
        drawn_RK = resampled(self.sums_TK, resamples, seed)
        return {
            name: interval(
                self.ratio(total_1K, r)[0],
                self.ratio(drawn_RK, r),
                self.topics_of(self.sums_TK, r),
            )
            for name, r in ratios.items()
        }


AT_K = ("f1", "recall")


def _columns(kept: pa.Table, ks: Sequence[int], gamma: float | None) -> dict[str, np.ndarray]:
    """The arrays [N] that `Sums` adds up, by name."""
    names = (*COUNTS, "no_facts", "abstained", "words", "supported", "judged")
    out = {k: kept[k].to_numpy().astype(float) for k in names}
    out["responses"] = np.ones(kept.num_rows)
    out["known"] = known(kept).to_numpy().astype(float)
    out["distinct_judged"] = out["correct"] + out["incorrect"]
    right, judged = out["correct"], out["distinct_judged"]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = right / judged
        for k in ks:
            recall = np.minimum(right / k, 1)
            f1 = 2 * precision * recall / (precision + recall)
            out[f"recall@{k}"] = recall
            out[f"f1@{k}"] = np.where(right > 0, f1, 0.0)
        if gamma is not None:
            scored = out["judged"] > 0
            score = np.where(scored, out["supported"] / out["judged"], 0.0)
            short = scored & (gamma > 0) & (out["judged"] <= gamma)
            penalty = np.where(short, np.exp(1 - gamma / out["judged"]), 1.0)
            out |= {"scored": scored.astype(float), "score": score, "penalised": score * penalty}
            out["responding"] = (out["total_facts"] > 0).astype(float)
    return out
