"""How far numbers agree with verdicts, and with each other. Pure: arrays in, numbers out.

    auroc(np.array([1, 0, 1]), np.array([0.9, 0.2, 0.4]))     ->  1.0
    reliability(labels_F, scores_F)["ece"]                     ->  0.08
    risk_coverage(labels_F, scores_F)["prr"]                   ->  0.61

Array names carry shapes: F facts, N responses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BINS = 10  # of equal width over [0, 1]
POINTS = 40  # of a risk-coverage curve, as it is drawn


def auroc(labels_F: np.ndarray, scores_F: np.ndarray) -> float | None:
    """P(score of a true one > score of a false one), ties half, by midranks: (R - p(p+1)/2) / pn
    with R the rank sum of the p true ones (Mann & Whitney 1947; Hanley & McNeil 1982). None when
    there is only one class."""
    positive = int((labels_F == 1).sum())
    negative = len(labels_F) - positive
    if not positive or not negative:
        return None
    ranks = midranks(scores_F)[labels_F == 1].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def midranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal ones share the mean of their ranks."""
    _, at, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[at]


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson correlation; None with fewer than two points or no spread."""
    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return None
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson correlation of the midranks (Spearman 1904)."""
    return pearson(midranks(a), midranks(b)) if len(a) else None


def kappa(a_F: np.ndarray, b_F: np.ndarray) -> float | None:
    """Cohen's kappa (1960) of two true-or-false judges: (o - e) / (1 - e), o the share on which
    they agree, e the share that their own shares of true would give by chance."""
    if not len(a_F):
        return None
    p, q = a_F.mean(), b_F.mean()
    expected = p * q + (1 - p) * (1 - q)
    return float(((a_F == b_F).mean() - expected) / (1 - expected)) if expected < 1 else None


def reliability(labels_F: np.ndarray, scores_F: np.ndarray) -> dict[str, Any]:
    """Bins of equal width, each with its facts, mean score and share supported, and `ece`, the
    expected calibration error (Guo et al. 2017, equation 3: mean over facts of |share supported -
    mean score| in the fact's bin). Scores are read as probabilities in [0, 1]."""
    bins, place_F = [], np.minimum((scores_F * BINS).astype(int), BINS - 1)
    for b in range(BINS):
        inside = place_F == b
        if inside.any():
            mean, share = float(scores_F[inside].mean()), float(labels_F[inside].mean())
            counted = {"facts": int(inside.sum()), "confidence": mean, "supported": share}
            bins.append({"low": b / BINS, "high": (b + 1) / BINS} | counted)
    apart = sum(b["facts"] * abs(b["supported"] - b["confidence"]) for b in bins)
    return {"ece": apart / len(labels_F) if len(labels_F) else None, "bins": bins}


def risk_coverage(labels_F: np.ndarray, scores_F: np.ndarray) -> dict[str, Any]:
    """Risk (share of wrong facts) among the most confident share c of the facts, for every c.

    aurc: its mean over the coverages 1/F, 2/F ... 1 (Geifman et al. 2019); prr: the prediction
    rejection ratio (Malinin & Gales 2021; over what is kept, as in Vashurin et al. 2025),
    (aurc of chance - aurc) / (aurc of chance - aurc of an oracle): 1 ranks every right fact before
    every wrong one, 0 is chance. Facts of one score stand in random order: the risk inside a tie
    is its expectation. `curve`: [coverage, risk] points. Null without both kinds of fact.
    """
    size, wrong = len(labels_F), int((labels_F == 0).sum())
    if not wrong or wrong == size:
        return {"aurc": None, "prr": None, "curve": []}
    values, at, count = np.unique(-scores_F, return_inverse=True, return_counts=True)
    errors = np.bincount(at, weights=(labels_F == 0).astype(float), minlength=len(values))
    each_F = np.repeat(errors / count, count)  # a fact's chance of being wrong, in its tie
    kept_F = np.arange(1, size + 1)
    risk_F = np.cumsum(each_F) / kept_F
    oracle_F = np.maximum(0, kept_F - (size - wrong)) / kept_F
    aurc, chance, best = risk_F.mean(), wrong / size, oracle_F.mean()
    shown = np.unique(np.linspace(0, size - 1, POINTS).astype(int))
    curve = [[float(kept_F[i] / size), float(risk_F[i])] for i in shown]
    return {"aurc": float(aurc), "prr": float((chance - aurc) / (chance - best)), "curve": curve}


def reward_agreement(columns: dict[str, np.ndarray], prompts_N: np.ndarray) -> dict[str, Any]:
    """How rewards agree on the same responses, each with each.

    columns: name -> values [N], NaN where it is unknown; prompts_N: whole numbers, a response's
    prompt. spearman: rank correlation over the responses that have both; order: of the pairs of
    responses to one prompt that both rewards tell apart, the share that both put in the same
    order (what DPO would learn from either). Matrices in the order of `names`; null: no such pair.
    """
    names = list(columns)
    order = np.argsort(prompts_N, kind="stable")
    ends = np.flatnonzero(np.diff(prompts_N[order])) + 1
    same = _pairs(np.split(order, ends))
    signs = {n: np.sign(v[same[:, 0]] - v[same[:, 1]]) for n, v in columns.items()}
    out: dict[str, Any] = {"names": names, "spearman": [], "order": []}
    for a in names:
        known = [np.isfinite(columns[a]) & np.isfinite(columns[b]) for b in names]
        out["spearman"].append(
            [spearman(columns[a][k], columns[b][k]) for b, k in zip(names, known, strict=True)]
        )
        row: list[float | None] = []
        for b in names:
            both = signs[a] * signs[b]
            told = np.isfinite(both) & (both != 0)
            row.append(float((both[told] > 0).mean()) if told.any() else None)
        out["order"].append(row)
    return out


def _pairs(groups: list[np.ndarray]) -> np.ndarray:
    """[P, 2]: every i < j of each group."""
    found = [np.stack([g[a] for a in np.triu_indices(len(g), 1)], axis=1) for g in groups]
    return np.concatenate(found) if found else np.zeros((0, 2), int)


def of_facts(facts: pa.Table, verdicts: pa.Table, column: str) -> pa.ChunkedArray:
    """A column of the verdicts in the order of the facts; null where a fact has no verdict."""
    at = pc.index_in(facts["fact_id"], value_set=verdicts["fact_id"].combine_chunks())
    return verdicts[column].take(at)


def human_agreement(
    facts: pa.Table, verdicts: pa.Table, threshold: float | None = None
) -> dict[str, Any]:
    """How far verdicts agree with human labels S and NS (IR and unlabelled facts play no part).

    auroc: of `score`; accuracy: share of facts whose `supported` equals the label (with
    `threshold`: whose score >= threshold does); pearson_score, pearson_supported: over
    responses, the human share of S against the mean score and against the share supported;
    human_supported, estimated_supported: the two shares over all facts; facts, responses: how
    many these are over; no_verdict: labelled facts left out for a null verdict; no_article:
    topics without an article; abstained: responses; ece, bins, aurc, prr, curve: of `score` read as
    the probability of S. A figure that is undefined is None.
    """
    reason = pc.fill_null(of_facts(facts, verdicts, "reason"), "")
    without = pc.unique(facts["topic"].filter(pc.starts_with(reason, "no article")))
    labelled = pc.is_in(facts["human_label"], value_set=pa.array(["S", "NS"]))
    score = of_facts(facts, verdicts, "score")
    supported = of_facts(facts, verdicts, "supported")
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
        "kappa": kappa(y, v),
        "pearson_score": pearson(means(y), means(s)),
        "pearson_supported": pearson(means(y), means(v)),
        "human_supported": float(y.mean()) if len(y) else None,
        "estimated_supported": float(v.mean()) if len(y) else None,
        "facts": len(y),
        "responses": len(names),
        "no_verdict": (pc.sum(labelled).as_py() or 0) - len(y),
        "no_article": len(without),
        "abstained": pc.sum(facts["abstained"]).as_py() or 0,
        **reliability(y, s),
        **risk_coverage(y, s),
    }
