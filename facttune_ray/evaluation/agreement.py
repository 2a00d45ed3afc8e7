"""How well scores agree with verdicts and with each other. Pure: arrays in, numbers out.

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
POINTS = 40  # points of a risk-coverage curve for drawing


def auroc(labels_F: np.ndarray, scores_F: np.ndarray) -> float | None:
    """P(score of a true fact > score of a false fact), ties count half, by midranks:
    (R - p(p+1)/2) / pn with R the rank sum of the p true facts (Mann & Whitney 1947; Hanley &
    McNeil 1982). None if all labels are equal."""
    positive = int((labels_F == 1).sum())
    negative = len(labels_F) - positive
    if not positive or not negative:
        return None
    ranks = midranks(scores_F)[labels_F == 1].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks, 1 for the smallest value; equal values get the mean of their ranks."""
    _, index, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[index]


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson correlation; None with fewer than two points or a constant."""
    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return None
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson correlation of the midranks (Spearman 1904)."""
    return pearson(midranks(a), midranks(b)) if len(a) else None


def kappa(a_F: np.ndarray, b_F: np.ndarray) -> float | None:
    """Cohen's kappa (1960) of two true-or-false judges: (o - e) / (1 - e). o is the share of facts
    on which they agree, e the share expected by chance from each judge's share of true."""
    if not len(a_F):
        return None
    p, q = a_F.mean(), b_F.mean()
    expected = p * q + (1 - p) * (1 - q)
    return float(((a_F == b_F).mean() - expected) / (1 - expected)) if expected < 1 else None


def reliability(labels_F: np.ndarray, scores_F: np.ndarray) -> dict[str, Any]:
    """Bins of equal width, each with its number of facts, mean score and share supported; and
    `ece`, the expected calibration error (Guo et al. 2017, equation 3: mean over facts of |share
    supported - mean score| in the fact's bin). Scores are probabilities in [0, 1]."""
    bins, bin_F = [], np.minimum((scores_F * BINS).astype(int), BINS - 1)
    for b in range(BINS):
        inside = bin_F == b
        if inside.any():
            mean, share = float(scores_F[inside].mean()), float(labels_F[inside].mean())
            figures = {"facts": int(inside.sum()), "confidence": mean, "supported": share}
            bins.append({"low": b / BINS, "high": (b + 1) / BINS} | figures)
    gap = sum(b["facts"] * abs(b["supported"] - b["confidence"]) for b in bins)
    return {"ece": gap / len(labels_F) if len(labels_F) else None, "bins": bins}


def risk_coverage(labels_F: np.ndarray, scores_F: np.ndarray) -> dict[str, Any]:
    """Risk (share of wrong facts) among the most confident share c of the facts, for every c.

    aurc: mean risk over the coverages 1/F, 2/F ... 1 (Geifman et al. 2019); prr: the prediction
    rejection ratio (Malinin & Gales 2021; over the facts kept, as in Vashurin et al. 2025),
    (aurc of chance - aurc) / (aurc of chance - aurc of an oracle): 1 if every right fact ranks
    before every wrong fact, 0 for chance. Facts with equal scores are in random order: the risk
    inside a tie is the expectation. `curve`: [coverage, risk] points. Null if all labels are equal.
    """
    size, wrong = len(labels_F), int((labels_F == 0).sum())
    if not wrong or wrong == size:
        return {"aurc": None, "prr": None, "curve": []}
    values, tie_F, count = np.unique(-scores_F, return_inverse=True, return_counts=True)
    errors = np.bincount(tie_F, weights=(labels_F == 0).astype(float), minlength=len(values))
    error_F = np.repeat(errors / count, count)  # the expected error of a fact within its tie
    kept_F = np.arange(1, size + 1)
    risk_F = np.cumsum(error_F) / kept_F
    oracle_F = np.maximum(0, kept_F - (size - wrong)) / kept_F
    aurc, chance, best = risk_F.mean(), wrong / size, oracle_F.mean()
    points = np.unique(np.linspace(0, size - 1, POINTS).astype(int))
    curve = [[float(kept_F[i] / size), float(risk_F[i])] for i in points]
    return {"aurc": float(aurc), "prr": float((chance - aurc) / (chance - best)), "curve": curve}


def reward_agreement(columns: dict[str, np.ndarray], prompts_N: np.ndarray) -> dict[str, Any]:
    """How every two rewards agree on the same responses.

    columns: name -> values [N], NaN if unknown; prompts_N: the number of each response's prompt.
    spearman: rank correlation over the responses that have both rewards. order: among the pairs
    of responses to one prompt on which neither reward ties, the share that both rewards order
    alike (DPO learns from these pairs). Matrices in the order of `names`; null: no such pair.
    """
    names = list(columns)
    order = np.argsort(prompts_N, kind="stable")
    ends = np.flatnonzero(np.diff(prompts_N[order])) + 1
    pairs_P2 = _pairs(np.split(order, ends))
    signs = {n: np.sign(v[pairs_P2[:, 0]] - v[pairs_P2[:, 1]]) for n, v in columns.items()}

    def ranked(a: str, b: str) -> float | None:
        known_N = np.isfinite(columns[a]) & np.isfinite(columns[b])
        return spearman(columns[a][known_N], columns[b][known_N])

    def ordered(a: str, b: str) -> float | None:
        product_P = signs[a] * signs[b]
        untied_P = np.isfinite(product_P) & (product_P != 0)
        return float((product_P[untied_P] > 0).mean()) if untied_P.any() else None

    ranks = [[ranked(a, b) for b in names] for a in names]
    order_alike = [[ordered(a, b) for b in names] for a in names]
    return {"names": names, "spearman": ranks, "order": order_alike}


def _pairs(groups: list[np.ndarray]) -> np.ndarray:
    """[P, 2]: every pair i < j of each group."""
    pairs = [np.stack([g[a] for a in np.triu_indices(len(g), 1)], axis=1) for g in groups]
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), int)


def of_facts(facts: pa.Table, verdicts: pa.Table, column: str) -> pa.ChunkedArray:
    """A column of the verdicts in the order of the facts; null if a fact has no verdict."""
    rows = pc.index_in(facts["fact_id"], value_set=verdicts["fact_id"].combine_chunks())
    return verdicts[column].take(rows)


def human_agreement(facts: pa.Table, verdicts: pa.Table) -> dict[str, Any]:
    """How well verdicts agree with the human labels S and NS. IR and unlabelled facts are ignored.

    auroc: of `score`; accuracy: share of facts whose `supported` equals the label;
    pearson_score, pearson_supported: over responses, the human share of S against the mean score
    and against the share supported;
    human_supported, estimated_supported: the two shares over all facts; facts, responses: the
    number of each; no_verdict: labelled facts left out for a null verdict; no_article: topics
    without an article; abstained: responses; ece, bins, aurc, prr, curve: `score` taken as the
    probability of S. An undefined figure is None.
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
