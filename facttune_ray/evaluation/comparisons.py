"""Compare two models on the same topics, also at equal length of responses.

    compare(base, tuned)["error_rate_reduction"]   ->  {"value": 0.58, "low": 0.51, "high": 0.64}
    length_matched(base, tuned)                    ->  the same over responses of similar length

Pure: tables of `metrics.response_counts` in, numbers out. Array names carry shapes: T topics that
both models have, K sums.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from facttune_ray.evaluation.metrics import RATIOS, Sums, known
from facttune_ray.evaluation.resampling import (
    holm,
    interval,
    resampled,
    sign_test,
    swap_test,
    wilson,
)

CHANGES = {  # name of a change -> its figure
    "error_rate_reduction": "error_rate",
    "correct_change": "correct",
    "incorrect_change": "incorrect",
}
MAX_LENGTH_RATIO = 1.25  # words of the longer by words of the shorter of two matched responses


def compare(
    base: pa.Table, tuned: pa.Table, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Tuned against base on their common topics.

    error_rate_reduction = 1 - tuned error rate / base error rate (0.58: the error rate is 58%
    lower; the paper's headline figure); correct_change and incorrect_change are
    differences in facts a response. Each is {value, low, high} by a bootstrap that draws the same
    topics for both models, so that easy and hard topics cancel. wins: `win_rates`. p: of the
    paired randomisation test of each figure (`resampling.swap_test`), null with `resamples` 0.
    """
    a, b = Sums(base), Sums(tuned)
    _, rows_a, rows_b = np.intersect1d(a.topics, b.topics, return_indices=True)
    a_TK, b_TK = a.sums_TK[rows_a], b.sums_TK[rows_b]
    both_T2K = np.concatenate([a_TK, b_TK], axis=1)
    total, drawn = both_T2K.sum(0, keepdims=True), resampled(both_T2K, resamples, seed)

    def change(figure: str, sums_R2K: np.ndarray) -> np.ndarray:
        before, after = (a.ratio(half, RATIOS[figure]) for half in np.split(sums_R2K, 2, axis=1))
        if figure != "error_rate":
            return after - before
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - after / before

    # Swap means of topics, because one model may have ten responses to a topic and the other one.
    mean_a_TK, mean_b_TK = (m_TK / m_TK[:, [a.at["responses"]]] for m_TK in (a_TK, b_TK))

    def p_of(figure: str) -> float | None:
        if not resamples:
            return None
        return swap_test(mean_a_TK, mean_b_TK, lambda sums: a.ratio(sums, RATIOS[figure]), seed)

    out: dict[str, Any] = {
        name: interval(
            change(f, total)[0],
            change(f, drawn),
            min(a.topics_of(m_TK, RATIOS[f]) for m_TK in (a_TK, b_TK)),
        )
        for name, f in CHANGES.items()
    }
    out["topics"] = len(rows_a)
    out["p"] = {figure: p_of(figure) for figure in CHANGES.values()}
    out["wins"] = win_rates(a, a_TK, b_TK)
    return out


def win_rates(sums: Sums, a_TK: np.ndarray, b_TK: np.ndarray) -> dict[str, dict[str, Any]]:
    """On how many topics the second model wins, by `error_rate` (lower wins) and by `net` (correct
    - incorrect facts a response, higher wins). Topics for which a model has no figure are left
    out."""
    a, b = by_topic(sums, a_TK), by_topic(sums, b_TK)
    return {
        "error_rate": tally(np.sign(a["error_rate"] - b["error_rate"])),
        "net": tally(np.sign(np.round(b["net"] - a["net"], 12))),
    }


def by_topic(sums: Sums, sums_TK: np.ndarray) -> dict[str, np.ndarray]:
    """[T] each: error_rate; correct and incorrect facts a response, and net, their difference. NaN:
    the model has no such figure for the topic."""
    out = {f: sums.ratio(sums_TK, RATIOS[f]) for f in ("error_rate", "correct", "incorrect")}
    return out | {"net": out["correct"] - out["incorrect"]}


def tally(better_T: np.ndarray) -> dict[str, Any]:
    """Counts of wins (1), ties (0) and losses (-1); NaN is not counted. win_rate: (wins + ties / 2)
    / topics with Wilson's interval; p: the exact sign test of wins against losses."""
    known = better_T[np.isfinite(better_T)]
    wins, losses = int((known > 0).sum()), int((known < 0).sum())
    ties = len(known) - wins - losses
    rate = wilson((wins + ties / 2) / max(1, len(known)), len(known))
    counts = {"wins": wins, "ties": ties, "losses": losses}
    return counts | {"win_rate": rate, "p": sign_test(wins, losses)}


def corrected(comparisons: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The comparisons with `p_holm` beside `p`: each figure's p, corrected for the number of
    models."""
    out = {n: c | {"p_holm": {}} for n, c in comparisons.items()}
    for figure in CHANGES.values():
        adjusted = holm({n: c["p"][figure] for n, c in comparisons.items()})
        for name, p in adjusted.items():
            out[name]["p_holm"][figure] = p
    return out


def length_matched(
    base: pa.Table, tuned: pa.Table, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """`compare` over pairs of responses to one prompt that have similar length, so that short
    responses gain nothing. Only responses that are `metrics.known`. Pairs are formed nearest
    first, each response once; the longer has at most MAX_LENGTH_RATIO times the words of the
    other. pairs: their number; share: of the tuned model's responses."""
    a, b = (t.filter(known(t)) for t in (base, tuned))
    rows_a, rows_b = (pa.array(rows, pa.int64()) for rows in _matches(a, b))
    comparison = compare(a.take(rows_a), b.take(rows_b), resamples=resamples, seed=seed)
    share = len(rows_b) / b.num_rows if b.num_rows else None
    return comparison | {"pairs": len(rows_a), "share": share, "like": MAX_LENGTH_RATIO}


def _matches(a: pa.Table, b: pa.Table) -> tuple[list[int], list[int]]:
    """The matched rows of a and of b, in the order of prompts."""
    sides: list[dict[str, list[tuple[int, float]]]] = [{}, {}]
    for side, table in zip(sides, (a, b), strict=True):
        rows = zip(table["prompt_id"].to_pylist(), table["words"].to_pylist(), strict=True)
        for i, (prompt, words) in enumerate(rows):
            side.setdefault(prompt, []).append((i, math.log(max(words, 1))))
    out_a, out_b = [], []
    for prompt in sorted(sides[0].keys() & sides[1].keys()):
        gaps = sorted((abs(x - y), i, j) for i, x in sides[0][prompt] for j, y in sides[1][prompt])
        used_a: set[int] = set()
        used_b: set[int] = set()
        for gap, i, j in gaps:
            if gap > math.log(MAX_LENGTH_RATIO) + 1e-12:
                break
            if i not in used_a and j not in used_b:
                used_a.add(i)
                used_b.add(j)
                out_a.append(i)
                out_b.append(j)
    return out_a, out_b
