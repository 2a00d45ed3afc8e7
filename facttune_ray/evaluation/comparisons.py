"""Two models on the same topics: is the tuned one better, by how much, and not by being short?

    compare(base, tuned)["error_rate_reduction"]   ->  {"value": 0.58, "low": 0.51, "high": 0.64}
    length_matched(base, tuned)                    ->  the same over responses of like length

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

CHANGES = {  # name -> the figure that it is about
    "error_rate_reduction": "error_rate",
    "correct_change": "correct",
    "incorrect_change": "incorrect",
}
LIKE = 1.25  # responses of like length: the longer has at most so many times the other's words


def compare(
    base: pa.Table, tuned: pa.Table, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Tuned against base on their common topics.

    error_rate_reduction = 1 - tuned error rate / base error rate (0.58: the error rate is 58%
    lower; the paper's headline figure); correct_change and incorrect_change are
    differences in facts a response; each {value, low, high} by a bootstrap that draws the same
    topics for both, so that easy and hard topics cancel. wins: `win_rates`. p: of each figure's
    paired randomisation test (`resampling.swap_test`), null with `resamples` 0.
    """
    a, b = Sums(base), Sums(tuned)
    _, at_a, at_b = np.intersect1d(a.topics, b.topics, return_indices=True)
    a_TK, b_TK = a.sums_TK[at_a], b.sums_TK[at_b]
    both_T2K = np.concatenate([a_TK, b_TK], axis=1)
    total, drawn = both_T2K.sum(0, keepdims=True), resampled(both_T2K, resamples, seed)

    def change(figure: str, sums_R2K: np.ndarray) -> np.ndarray:
        before, after = (a.ratio(half, RATIOS[figure]) for half in np.split(sums_R2K, 2, axis=1))
        if figure != "error_rate":
            return after - before
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - after / before

    # each topic's means: one of ten responses may change places with one of a single response
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
    out["topics"] = len(at_a)
    out["p"] = {figure: p_of(figure) for figure in CHANGES.values()}
    out["wins"] = win_rates(a, a_TK, b_TK)
    return out


def win_rates(sums: Sums, a_TK: np.ndarray, b_TK: np.ndarray) -> dict[str, dict[str, Any]]:
    """Topic by topic: does the second model do better? By `error_rate` (lower wins) and by `net`
    (correct - incorrect facts a response, higher wins); topics where either has no such figure are
    left out."""
    rate_a, rate_b = (sums.ratio(m, RATIOS["error_rate"]) for m in (a_TK, b_TK))
    net_a, net_b = (
        sums.ratio(m, RATIOS["correct"]) - sums.ratio(m, RATIOS["incorrect"]) for m in (a_TK, b_TK)
    )
    return {
        "error_rate": tally(np.sign(rate_a - rate_b)),
        "net": tally(np.sign(np.round(net_b - net_a, 12))),
    }


def tally(better_T: np.ndarray) -> dict[str, Any]:
    """Wins (1), ties (0) and losses (-1) of topics; NaN: not counted. win_rate: (wins + ties / 2) /
    topics with Wilson's interval; p: the exact sign test of wins against losses."""
    known = better_T[np.isfinite(better_T)]
    wins, losses = int((known > 0).sum()), int((known < 0).sum())
    ties = len(known) - wins - losses
    rate = wilson((wins + ties / 2) / max(1, len(known)), len(known))
    counted = {"wins": wins, "ties": ties, "losses": losses}
    return counted | {"win_rate": rate, "p": sign_test(wins, losses)}


def corrected(comparisons: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same with `p_holm` beside `p`: of each figure, corrected for the number of models."""
    found = {n: c | {"p_holm": {}} for n, c in comparisons.items()}
    for figure in CHANGES.values():
        adjusted = holm({n: c["p"][figure] for n, c in comparisons.items()})
        for name, p in adjusted.items():
            found[name]["p_holm"][figure] = p
    return found


def length_matched(
    base: pa.Table, tuned: pa.Table, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """`compare` over pairs of responses to one prompt that are of like length, so that being short
    gains nothing; of responses that `metrics.known` counts. Pairs are taken nearest first, each
    response once, the longer at most LIKE times the other's words. pairs: how many; share: of the
    tuned model's responses."""
    a, b = (t.filter(known(t)) for t in (base, tuned))
    at_a, at_b = (pa.array(at, pa.int64()) for at in _matches(a, b))
    found = compare(a.take(at_a), b.take(at_b), resamples=resamples, seed=seed)
    share = len(at_b) / b.num_rows if b.num_rows else None
    return found | {"pairs": len(at_a), "share": share, "like": LIKE}


def _matches(a: pa.Table, b: pa.Table) -> tuple[list[int], list[int]]:
    """Rows of a and of b that are matched, in order of prompts."""
    sides: list[dict[str, list[tuple[int, float]]]] = [{}, {}]
    for side, table in zip(sides, (a, b), strict=True):
        rows = zip(table["prompt_id"].to_pylist(), table["words"].to_pylist(), strict=True)
        for i, (prompt, words) in enumerate(rows):
            side.setdefault(prompt, []).append((i, math.log(max(words, 1))))
    out_a, out_b = [], []
    for prompt in sorted(sides[0].keys() & sides[1].keys()):
        apart = sorted((abs(x - y), i, j) for i, x in sides[0][prompt] for j, y in sides[1][prompt])
        used_a: set[int] = set()
        used_b: set[int] = set()
        for gap, i, j in apart:
            if gap > math.log(LIKE) + 1e-12:
                break
            if i not in used_a and j not in used_b:
                used_a.add(i)
                used_b.add(j)
                out_a.append(i)
                out_b.append(j)
    return out_a, out_b
